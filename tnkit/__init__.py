"""tnkit finds and explores transfer neurons of multilingual language models.

    import tnkit as tn

    model = tn.load_model("gemma-3-270m")
    corpus = tn.load_corpus("everyday", ["en", "ja"])
    found = tn.detect(model, corpus, language="ja", kind="type1", top=1000)
    found.neurons.to_frame()

>>> from tnkit.tests.tiny import tiny_corpus, tiny_model
>>> import tnkit as tn
>>> tn.detect(tiny_model(), tiny_corpus(), language="ja", top=10, progress=False).neurons
NeuronSet(10 neurons, layers 0 to 1)

Everything heavy (torch, transformers, nnsight, matplotlib) is imported on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Activations": "activations",
    "capture": "passes",
    "stream": "passes",
    "Centroids": "centroids",
    "estimate_centroids": "centroids",
    "ablate": "experiments",
    "retrieval_matrix": "experiments",
    "NeuronCard": "cards",
    "neuron_card": "cards",
    "Comparison": "comparison",
    "compare": "comparison",
    "controls": "comparison",
    "Corpus": "corpora",
    "load_corpus": "corpora",
    "Detection": "detection",
    "detect": "detection",
    "detect_all": "detection",
    "detect_steps": "detection",
    "Step": "detection",
    "TnkitError": "errors",
    "Ablation": "interventions",
    "LastToken": "last_token",
    "export_ablated": "export",
    "explore_ablation": "explorers",
    "explore_detection": "explorers",
    "explore_neurons": "explorers",
    "explore_spaces": "explorers",
    "Model": "models",
    "load_model": "models",
    "NeuronSet": "neurons",
    "NeuronScores": "scoring",
    "score_neurons": "scoring",
}
_MODULES = """
answers behaviour explorers generation geometry harness lens plots scoring spaces specificity storage variants
""".split()

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"tnkit.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"tnkit.{name}")
    else:
        raise AttributeError(f"module 'tnkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
