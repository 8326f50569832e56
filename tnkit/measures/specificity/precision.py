"""How well each neuron distinguishes one language from the others: average precision."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.measures.specificity.neurons import absent, activations_of, comparable, extreme, model_shape, neuron_frame
from tnkit.provenance import joined

_NEURONS = 256  # at a time


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """How well each neuron's activation distinguishes one language's sentences from the others.

    Attributes:
        values: average precision, (layer, neuron), float64, between 0 and 1.
        language: the language.
        chance: the share of its sentences, which is the average precision of a constant activation.
        layers: of the first axis.
        shape: the model's numbers of layers and of neurons in a layer.
        provenance: model, sentences, token position, versions.
    """

    values: Float64[np.ndarray, "layer neuron"]
    language: str
    chance: float
    layers: tuple[int, ...]
    shape: tuple[int, int]
    provenance: dict[str, Any] = field(default_factory=dict)

    def top(self, n: SupportsIndex, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The n neurons with the highest average precision, best first."""
        return extreme(self, self.values, n, layers, {"average precision": self.language, "top": n})

    def bottom(self, n: SupportsIndex, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The n neurons with the lowest average precision, lowest first."""
        return extreme(self, self.values, n, layers, {"average precision": self.language, "bottom": n}, lowest=True)

    def to_frame(self) -> pd.DataFrame:
        """The average precision of every neuron, indexed (layer, neuron)."""
        return neuron_frame(self.layers, {"average precision": self.values})

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw the share of neurons above each average precision."""
        label = f"average precision for {plots.language_name(self.language)}"
        return plots.exceedance({"all neurons": self.values.ravel()}, xlabel=label, marks=(self.chance,), ax=ax)

    def _repr_html_(self) -> str:
        rows = {"language": self.language, "chance": self.chance, "highest": float(self.values.max())}
        return storage.html_card("Average precision", rows)


def average_precision(languages: Mapping[str, Activations], language: str) -> AveragePrecision:
    """The average precision of every neuron's activation as a score for "is this language" (Kojima et al., NAACL 2024).

    AP = Σ_t (R_t − R_{t−1}) P_t over thresholds t, the distinct activations from high to low, with recall R_t and
    precision P_t, as in scikit-learn. The paper takes the top and the bottom 1000 of the outputs of all linear maps,
    including those of attention; here only the neurons of the MLP are ranked. The paper averages activations over the
    tokens of a text; the closest match is `capture(..., position="mean")`.

    Args:
        languages: a capture of each language with `activations`, of the same model and layers.
        language: the language to distinguish from all others.

    Returns:
        `AveragePrecision`, (layer, neuron), float64.

    Raises:
        TnkitError: for a missing language, a single language, or incompatible captures.

    >>> from tnkit.testing import by_language
    >>> of_ja = average_precision(by_language(), "ja")
    >>> of_ja.values.shape, of_ja.chance, of_ja.top(10)
    ((4, 48), 0.5, NeuronSet(10 neurons, layers 0 to 3))
    """
    first = comparable(languages, least=2)
    if language not in languages:
        raise TnkitError(f"there is no capture of {language!r}; there are {', '.join(languages)}")
    positive = np.concatenate([np.full(len(capture), name == language) for name, capture in languages.items()])
    values = [np.concatenate([_precision(block, positive) for block in blocks]) for blocks in _blocks(languages)]
    chance = float(positive.mean())
    precision = np.where(absent(first), np.nan, np.stack(values))
    return AveragePrecision(precision, language, chance, first.layers, model_shape(first), joined(languages))


def _precision(
    block: Float[np.ndarray, "neuron sentence"], positive: Bool[np.ndarray, "sentence"]
) -> Float64[np.ndarray, "neuron"]:
    """Average precision of each row."""
    order = np.argsort(-block, axis=1)
    scores = np.take_along_axis(block, order, axis=1)
    hits = positive[order].cumsum(axis=1)
    hits[:, :-1][scores[:, 1:] == scores[:, :-1]] = 0  # a threshold takes equal activations together
    np.maximum.accumulate(hits, axis=1, out=hits)
    gained = np.diff(hits, axis=1, prepend=0)
    return np.einsum("ns,ns->n", gained, hits / np.arange(1, len(positive) + 1)) / positive.sum()


def _blocks(languages: Mapping[str, Activations]) -> Iterator[list[np.ndarray]]:
    """The activations of all sentences in each layer, (neuron, sentence), in blocks that fit into the CPU's cache."""
    for layers in zip(*map(activations_of, languages.values()), strict=True):
        whole = np.concatenate(layers)
        yield [
            np.ascontiguousarray(whole[:, start : start + _NEURONS].T) for start in range(0, whole.shape[1], _NEURONS)
        ]
