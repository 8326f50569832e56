"""Two experiments on the effect of transfer neurons, for any model, sentences and neuron sets.

compared = tn.ablate(model, test, type1, language="ja", controls=tn.controls(type1))   # with matched controls
matrix = tn.retrieval_matrix(model, test, {"ja": ja_type1, "it": it_type1})            # off in A, read in B
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.captures.batches import check_position
from tnkit.captures.passes import capture
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.comparison import Comparison, compare
from tnkit.interventions.controls import Control
from tnkit.interventions.last_token import PLACES, LastToken
from tnkit.measures.behaviour.likelihood import perplexity
from tnkit.measures.geometry.neighbours import shared_neighbours
from tnkit.measures.geometry.translation import hits
from tnkit.models.model import Model, check_layers
from tnkit.text.rows import check_texts

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

Texts = Mapping[str, Sequence[str]]


def ablate(
    model: Model,
    texts: Texts,
    neurons: NeuronSet,
    *,
    language: str,
    controls: Mapping[str, Control],
    measure: str = "retrieval",
    hub: str = "en",
    tokens: str = "last",
    position: str = "last",
    suffix: str | None = None,
    seeds: SupportsIndex = 10,
    layers: Iterable[SupportsIndex] | None = None,
    progress: bool = True,
) -> Comparison:
    """Switch a neuron set off in one language, and compare with its controls and the untouched model.

    Args:
        model: from `load_model`.
        texts: language → aligned sentences, which were not used to find the neurons.
        neurons: the set.
        language: the language to ablate.
        controls: from `tnkit.controls`.
        measure: "retrieval" (is the nearest hub sentence the translation? mean-centred cosine), "similarity" (cosine
            with the translation) or "mutual_knn" (share of the 10 nearest neighbours common to both), by layer; or
            "perplexity" (nats per token).
        hub: the language of the translations, which is never ablated (as in Tezuka & Inoue, EMNLP 2025).
        tokens: where the neurons are off: "last", "last_word" (the last token that is not punctuation; states are still
            read at the last token), "prompt" or "all" (the same for sentences).
        position, suffix: which token is read for measures of states, as in `capture`, in both languages.
        seeds: the number of draws of each random control.
        layers: which layers to measure (default: all).
        progress: show a bar.

    Returns:
        `Comparison`, with a value for every layer and sentence.

    Raises:
        TnkitError: for an unknown measure or language, unaligned sentences, or tokens after the one that is read.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> some = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> ablate(tiny_model(), texts, some, language="it", controls=tn.controls(some), seeds=1, progress=False).layers
    (0, 1, 2, 3)
    """
    _check_measure(measure, texts, (language,) if measure == "perplexity" else (language, hub))
    run: Callable[[NeuronSet], np.ndarray | Tensor]
    if measure == "perplexity":
        run, layers, label = _nats(model, texts[language], tokens), (0,), f"{MEASURE_NAMES[measure]}, {language}"
    else:
        check_texts({name: texts[name] for name in (language, hub)})
        layers = check_layers(model, range(model.n_layers) if layers is None else layers)
        reading: dict[str, Any] = {"position": position, "suffix": suffix, "keep": ["post"], "layers": layers}
        targets = capture(model, texts[hub], **reading, progress=progress)
        run = _by_states(measure, model, texts[language], targets, tokens, reading, progress)
        label = f"{MEASURE_NAMES[measure]}, {language} and {hub}"
    return compare(run, neurons, controls=controls, seeds=seeds, name=label, layers=layers, progress=progress)


def _check_measure(measure: str, texts: Texts, languages: Sequence[str]) -> None:
    if measure not in MEASURES:
        raise TnkitError(f"measure={measure!r} must be one of {', '.join(MEASURES)}")
    for name in languages:
        if name not in texts:
            raise TnkitError(f"there are no sentences in {name!r}; there are {', '.join(texts)}")


def _similarity(off: Activations, targets: Activations) -> Tensor:
    return torch.nn.functional.cosine_similarity(off.tensors()["post"], targets.tensors()["post"], dim=-1)


# Measures of a language's hidden states against those of the hub, each (layer, sentence).
BY_STATES: dict[str, Callable[[Activations, Activations], "np.ndarray | Tensor"]] = {
    "retrieval": hits,
    "similarity": _similarity,
    "mutual_knn": shared_neighbours,
}
MEASURES = (*BY_STATES, "perplexity")
MEASURE_NAMES = {
    "retrieval": "mean-centred retrieval@1",
    "similarity": "cosine similarity",
    "mutual_knn": "mutual 10-NN",
    "perplexity": "nats a token",
}


def _by_states(
    measure: str,
    model: Model,
    sentences: Sequence[str],
    targets: Activations,
    tokens: str,
    reading: dict[str, Any],
    progress: bool,
) -> "Callable[[NeuronSet], np.ndarray | Tensor]":
    """A function that measures the sentences with a neuron set off."""
    measured, position = BY_STATES[measure], reading["position"]
    if tokens == "last" and position == "last_word":
        raise TnkitError(
            "tokens='last' ablates the punctuation after the word that position='last_word' reads, which changes "
            "nothing; give tokens='last_word'"
        )
    if (tokens, position) in (("last", "last"), ("last", "end"), ("last_word", "last_word")):
        prefix = LastToken(model, sentences, **reading, progress=progress)
        return lambda neurons: measured(prefix.capture(neurons), targets)

    def off(neurons: NeuronSet) -> "np.ndarray | Tensor":
        with Ablation(model, neurons, tokens=tokens):
            states = capture(model, sentences, **reading, progress=False)
        return measured(states, targets)

    return off


def _nats(model: Model, sentences: Sequence[str], tokens: str) -> Callable[[NeuronSet], np.ndarray]:
    return lambda neurons: perplexity(model, sentences, neurons=neurons, tokens=tokens, progress=False).nll


@dataclass(frozen=True, eq=False)
class RetrievalMatrix:
    """Translation retrieval in each language with each language's neurons off, at one layer.

    Attributes:
        values: (off, read), the share of sentences whose nearest hub sentence is their translation, 0 to 1.
        off: the languages whose neurons are off; the first is "none".
        read: the languages that are read.
        layer: the layer measured.
    """

    values: Float[np.ndarray, "off read"]
    off: tuple[str, ...]
    read: tuple[str, ...]
    layer: int

    def to_frame(self) -> "pd.DataFrame":
        """One row per ablated set, one column per language that is read."""
        import pandas as pd

        return pd.DataFrame(self.values, index=pd.Index(self.off, name="off"), columns=pd.Index(self.read, name="read"))

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the matrix as a heat map with numbers."""
        from tnkit import plots

        return plots.matrix(
            self.to_frame(),
            xlabel="language that is read",
            ylabel="neurons that are off",
            value=f"retrieval@1, layer {self.layer}",
            ax=ax,
        )

    def _repr_html_(self) -> str:
        rows = {
            f"off: {name}": [f"{value:.2f}" for value in row] for name, row in zip(self.off, self.values, strict=True)
        }
        return storage.html_card("Retrieval matrix", {"read": self.read, **rows, "layer": self.layer})


def retrieval_matrix(
    model: Model,
    texts: Texts,
    sets: Mapping[str, NeuronSet],
    *,
    hub: str = "en",
    position: str = "last",
    suffix: str | None = None,
    layer: SupportsIndex | None = None,
    progress: bool = True,
) -> RetrievalMatrix:
    """Switch each language's neurons off at the token that is read, and measure retrieval in every language.

    Args:
        model: from `load_model`.
        texts: language → aligned sentences, which were not used to find the neurons.
        sets: language → its neurons.
        hub: the language of the translations.
        position: "last", "last_word" or "end", as in `LastToken`.
        suffix: as in `capture`.
        layer: the layer to measure (default: where mean retrieval of the untouched languages is highest).
        progress: show a bar.

    Raises:
        TnkitError: for a language without aligned sentences, or a layer that the model does not have.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:2], "it": SENTENCES[2:4], "ja": SENTENCES[4:]}
    >>> some = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> retrieval_matrix(tiny_model(), texts, {"it": some, "ja": some}, progress=False).values.shape
    (3, 2)
    """
    missing = [name for name in (*sets, hub) if name not in texts]
    if missing or not sets:
        raise TnkitError(
            f"there are no sentences in {', '.join(missing) or 'any language'}; there are {', '.join(texts)}"
        )
    check_position(model, position, PLACES)
    for name in sets:
        check_texts({language: texts[language] for language in (hub, name)})
    layers = check_layers(model, range(model.n_layers) if layer is None else (layer,))
    nothing = NeuronSet((), (model.n_layers, model.n_neurons))
    reading: dict[str, Any] = {"position": position, "suffix": suffix, "keep": ["post"], "layers": layers}
    targets = capture(model, texts[hub], **reading, progress=progress)
    columns = []
    for name in sets:
        prefix = LastToken(model, texts[name], **reading, progress=progress)
        columns.append([hits(prefix.capture(off), targets).mean(axis=1) for off in (nothing, *sets.values())])
    values = np.array(columns).transpose(2, 1, 0)  # (layer, off, read)
    best = int(values[:, 0].mean(axis=1).argmax())
    return RetrievalMatrix(values[best], ("none", *sets), tuple(sets), tuple(layers)[best])
