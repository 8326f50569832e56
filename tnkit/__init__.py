"""tnkit finds and explores transfer neurons of multilingual language models.

    import tnkit as tn

    model = tn.load_model("gemma-3-270m")
    corpus = tn.load_corpus("everyday", ["en", "ja"])
    detection = tn.detect(model, corpus, language="ja", kind="type1", top=1000)
    detection.neurons.to_frame()

>>> from tnkit.testing import tiny_corpus, tiny_model
>>> import tnkit as tn
>>> tn.detect(tiny_model(), tiny_corpus(), language="ja", top=10, progress=False).neurons
NeuronSet(10 neurons, layers 0 to 1)

`__init__.pyi` lists the public names; each is imported on first use, and everything heavy (torch, transformers,
nnsight, matplotlib) with it.
"""

import warnings
from importlib import import_module, metadata
from typing import Any

import lazy_loader

try:
    __version__ = metadata.version("tnkit")
except metadata.PackageNotFoundError:  # a copy of the folder that nobody installed
    __version__ = "0+unknown"

_MOVED = {"answers": "behaviour.answers", "generation": "behaviour", "spaces": "geometry"}  # of the first release

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        warnings.warn(
            f"tnkit.{name} is deprecated and goes in the next release; use tnkit.{_MOVED[name]}",
            DeprecationWarning,
            stacklevel=2,
        )
        return import_module(f"tnkit.measures.{_MOVED[name]}")
    return _public(name)
