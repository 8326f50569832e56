"""Language-specific neurons as other studies find them: by activation entropy and by average precision.

captured = {name: tn.capture(model, train[name], keep=["activations"]) for name in corpus.languages}
lape(captured).neurons["ja"]                               # Tang et al., 2024
average_precision(captured, "ja").top(1000)                # Kojima et al., 2024
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet, ranked
from tnkit.errors import TnkitError, whole_number, whole_numbers

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

    from tnkit.measures.specificity import Specificity

_NEURONS = 256  # at a time


@dataclass(frozen=True, eq=False)
class ActivationEntropy:
    """How evenly languages activate each neuron, and the neurons that few languages activate.

    Attributes:
        values: entropy of the activation probabilities over languages, (layer, neuron), float64, in nats: 0 where one
            language alone activates the neuron, ln(languages) where all do alike or none does.
        probabilities: share of the sentences with an activation above the threshold, (layer, neuron, language).
        neurons: the language-specific neurons of each language, lowest entropy first, with the entropy as score; a
            neuron may belong to several.
        layers, languages: what the first and the last axis stand for.
        provenance: model, sentences, token position, versions.
    """

    values: Float64[np.ndarray, "layer neuron"]
    probabilities: Float64[np.ndarray, "layer neuron language"]
    neurons: dict[str, NeuronSet]
    layers: tuple[int, ...]
    languages: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> "pd.DataFrame":
        """The entropy and each language's activation probability, indexed (layer, neuron)."""
        shares = {f"P({name})": self.probabilities[..., place] for place, name in enumerate(self.languages)}
        return neuron_frame(self.layers, {"entropy": self.values, **shares})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw how many neurons of each language sit in each layer."""
        from tnkit import plots

        n_layers = max(neurons.shape[0] for neurons in self.neurons.values())
        return plots.language_neurons(self.neurons, n_layers=n_layers, ax=ax)

    def _repr_html_(self) -> str:
        sizes = {name: f"{len(neurons)} neurons" for name, neurons in self.neurons.items()}
        return storage.html_card("Language activation probability entropy", sizes)


def lape(
    languages: Mapping[str, Activations],
    *,
    top_share: float = 0.01,
    filter_quantile: float = 0.95,
    language_quantile: float = 0.95,
    threshold: float = 0.0,
) -> ActivationEntropy:
    """Language-specific neurons by language activation probability entropy (Tang et al., ACL 2024).

    P_l = share of language l's sentences with activation > threshold; P'_l = P_l / Σ P; LAPE = −Σ P'_l ln P'_l. Of the
    neurons that reach the filter in some language, the lowest in entropy are taken, and given to each language whose
    P_l exceeds the language's quantile. Two things differ here: theirs counts tokens, ours sentences at the captured
    position; and in gated MLPs theirs looks at the gate's activation, ours at the product of gate and up projection.

    Args:
        languages: a capture of each language with `activations`, of the same model and layers.
        top_share: how many neurons are taken, as a share of all (their top_rate).
        filter_quantile: a neuron must exceed this quantile of all probabilities in some language (filter_rate).
        language_quantile: the same, for being given to a language (activation_bar_ratio).
        threshold: what counts as active.

    Returns:
        `ActivationEntropy`, (layer, neuron), float64, in nats.

    Raises:
        TnkitError: for one language, shares outside 0 to 1, no neuron that reaches the filter, or incompatible
            captures.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> halves = {"en": SENTENCES[:3], "ja": SENTENCES[3:]}
    >>> captured = {name: tn.capture(tiny_model(), texts, progress=False) for name, texts in halves.items()}
    >>> found = lape(captured, top_share=0.1, filter_quantile=0.5, language_quantile=0.5)
    >>> found.values.shape, sum(map(len, found.neurons.values()))
    ((4, 48), 19)
    """
    first = alike(languages, least=2)
    options = {"top_share": top_share, "filter_quantile": filter_quantile, "language_quantile": language_quantile}
    for name, value in options.items():
        if not 0 < value <= 1:
            raise TnkitError(f"{name}={value} must be a share above 0 and at most 1")
    shares = [np.count_nonzero(_values(part) > threshold, axis=1) / len(part) for part in languages.values()]
    probabilities = np.stack(shares, axis=-1)
    total = probabilities.sum(axis=-1, keepdims=True)
    relative = np.divide(probabilities, total, out=np.full_like(probabilities, 1 / len(languages)), where=total > 0)
    logs = np.log(relative, out=np.zeros_like(relative), where=relative > 0)
    values = np.maximum(-(relative * logs).sum(axis=-1), 0.0)
    eligible = (probabilities > _quantile(probabilities, filter_quantile)).any(axis=-1)
    if not eligible.any():
        raise TnkitError(
            f"no neuron is active in more than {_quantile(probabilities, filter_quantile):.3g} of the sentences of any "
            f"language, the {filter_quantile:g} quantile of all probabilities; lower filter_quantile"
        )
    lowest = np.argsort(np.where(eligible, values, np.inf), axis=None, kind="stable")
    lowest = lowest[: min(round(top_share * values.size), int(eligible.sum()))]
    about = {**joint_provenance(languages), "selection": {"lape": options, "threshold": threshold}}
    neurons = {}
    for place, name in enumerate(languages):
        given = lowest[probabilities[..., place].ravel()[lowest] > _quantile(probabilities, language_quantile)]
        pairs = tuple((first.layers[at // values.shape[1]], at % values.shape[1]) for at in given.tolist())
        scores = tuple(values.ravel()[given].tolist())
        neurons[name] = NeuronSet(pairs, model_shape(first), scores, {**about, "language": name})
    return ActivationEntropy(
        values, probabilities, neurons, first.layers, tuple(languages), joint_provenance(languages)
    )


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """How well each neuron's activation tells one language's sentences from the others'.

    Attributes:
        values: average precision, (layer, neuron), float64, between 0 and 1.
        language: which language.
        chance: the share of its sentences, which a neuron of constant activation scores.
        layers: what the first axis stands for.
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
        """The n neurons that are highest in the language, best first."""
        return extreme(self, self.values, n, layers, {"average precision": self.language, "top": n})

    def bottom(self, n: SupportsIndex, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The n neurons that are lowest in the language, lowest average precision first."""
        return extreme(self, self.values, n, layers, {"average precision": self.language, "bottom": n}, lowest=True)

    def to_frame(self) -> "pd.DataFrame":
        """The average precision of every neuron, indexed (layer, neuron)."""
        return neuron_frame(self.layers, {"average precision": self.values})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the share of neurons above each average precision."""
        from tnkit import plots

        label = f"average precision for {plots.language_name(self.language)}"
        return plots.exceedance({"all neurons": self.values.ravel()}, xlabel=label, marks=(self.chance,), ax=ax)

    def _repr_html_(self) -> str:
        rows = {"language": self.language, "chance": self.chance, "highest": float(self.values.max())}
        return storage.html_card("Average precision", rows)


def average_precision(languages: Mapping[str, Activations], language: str) -> AveragePrecision:
    """The average precision of every neuron's activation as a score for "is this language" (Kojima et al., NAACL 2024).

    AP = Σ_t (R_t − R_{t−1}) P_t over thresholds t, the distinct activations from high to low, with recall R_t and
    precision P_t, as in scikit-learn. They take the top and the bottom 1000; their activations are pooled over the
    tokens of a text, for which `capture(..., position="mean")` is nearest.

    Args:
        languages: a capture of each language with `activations`, of the same model and layers.
        language: whose sentences are to be told from all others.

    Returns:
        `AveragePrecision`, (layer, neuron), float64.

    Raises:
        TnkitError: for a missing language, one language only, or incompatible captures.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> halves = {"en": SENTENCES[:3], "ja": SENTENCES[3:]}
    >>> captured = {name: tn.capture(tiny_model(), texts, progress=False) for name, texts in halves.items()}
    >>> found = average_precision(captured, "ja")
    >>> found.values.shape, found.chance, found.top(10)
    ((4, 48), 0.5, NeuronSet(10 neurons, layers 0 to 3))
    """
    first = alike(languages, least=2)
    if language not in languages:
        raise TnkitError(f"there is no capture of {language!r}; there are {', '.join(languages)}")
    positive = np.concatenate([np.full(len(part), name == language) for name, part in languages.items()])
    values = [np.concatenate([_precision(one, positive) for one in blocks]) for blocks in _blocks(languages)]
    chance = float(positive.mean())
    return AveragePrecision(
        np.stack(values), language, chance, first.layers, model_shape(first), joint_provenance(languages)
    )


def alike(languages: Mapping[str, Activations], least: int = 1) -> Activations:
    """The first capture, once all have finite activations of some sentences, of the same layers and width."""
    if len(languages) < least:
        raise TnkitError(f"{len(languages)} language(s) were captured; compare at least {least}")
    first = next(iter(languages.values()))
    for name, part in languages.items():
        values = part.require("activations").tensors()["activations"]
        layers, width = part.layers, values.shape[2]
        if (layers, width) != (first.layers, _values(first).shape[2]):
            raise TnkitError(
                f"{name} was captured at layers {list(layers)} of {width} neurons, {next(iter(languages))} at "
                f"{list(first.layers)} of {_values(first).shape[2]}; capture them alike"
            )
        if not len(part):
            raise TnkitError(f"the capture of {name} has no sentences")
        if not all(bool(bound.isfinite()) for bound in values.aminmax()):
            finite = values.isfinite().all(dim=2).all(dim=1).tolist()
            raise TnkitError(
                f"activations of {name} in layer {layers[finite.index(False)]} hold NaN or Inf; capture again with the "
                "model in float32 or bfloat16"
            )
    return first


def model_shape(captured: Activations) -> tuple[int, int]:
    """The model's layers and neurons a layer; a capture of no known model ends at its last layer."""
    layers = captured.provenance.get("model", {}).get("layers", max(captured.layers) + 1)
    return layers, _values(captured).shape[2]


def joint_provenance(languages: Mapping[str, Activations]) -> dict[str, Any]:
    """The first capture's, with the sentences of each."""
    sentences = {name: part.provenance.get("sentences", {}) for name, part in languages.items()}
    return {**next(iter(languages.values())).provenance, "sentences": sentences}


def neuron_frame(layers: Sequence[int], columns: Mapping[str, np.ndarray]) -> "pd.DataFrame":
    """Values (layer, neuron) as columns, indexed (layer, neuron)."""
    import pandas as pd

    width = next(iter(columns.values())).shape[1]
    index = pd.MultiIndex.from_product([layers, range(width)], names=["layer", "neuron"])
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index)


def extreme(
    result: "AveragePrecision | Specificity",
    values: np.ndarray,
    n: SupportsIndex,
    layers: Iterable[SupportsIndex] | None,
    selection: dict[str, Any],
    *,
    lowest: bool = False,
) -> NeuronSet:
    """The n neurons of highest (or lowest) value in some layers."""
    layers = result.layers if layers is None else tuple(sorted(set(whole_numbers("layers", layers))))
    n = whole_number("n", n)
    missing = [layer for layer in layers if layer not in result.layers]
    if missing or not 0 < n <= len(layers) * values.shape[1]:
        raise TnkitError(
            f"{n} neurons of layers {list(layers)} were asked for; captured are layers {list(result.layers)} of "
            f"{values.shape[1]} neurons: ask for layers among them, and for 1 neuron or more, up to all they have"
        )
    values = values[[result.layers.index(layer) for layer in layers]]
    about = {**result.provenance, "selection": selection}
    return ranked(torch.from_numpy(values), n, layers, result.shape[0], about, lowest=lowest)


def _precision(
    block: Float[np.ndarray, "neuron sentence"], positive: Bool[np.ndarray, "sentence"]
) -> Float64[np.ndarray, "neuron"]:
    """Average precision of each row. The label rides in a last bit that float32 values leave free in float64."""
    keys = np.negative(block, dtype=np.float64)
    keys.view(np.int64)[...] |= positive
    keys.sort(axis=1)
    scores = keys.astype(np.float32)
    found = (keys.view(np.int64) & 1).cumsum(axis=1)
    found[:, :-1][scores[:, 1:] == scores[:, :-1]] = 0  # a threshold takes equal activations together
    np.maximum.accumulate(found, axis=1, out=found)
    gained = np.diff(found, axis=1, prepend=0)
    return np.einsum("ns,ns->n", gained, found / np.arange(1, len(positive) + 1)) / positive.sum()


def _values(captured: Activations) -> Float[np.ndarray, "layer sentence neuron"]:
    return captured.tensors()["activations"].numpy()


def _blocks(languages: Mapping[str, Activations]) -> Iterator[list[np.ndarray]]:
    """Of each layer the activations of all sentences, (neuron, sentence), in pieces that stay in the cache."""
    for layers in zip(*map(_values, languages.values()), strict=True):
        whole = np.concatenate(layers)
        yield [
            np.ascontiguousarray(whole[:, start : start + _NEURONS].T) for start in range(0, whole.shape[1], _NEURONS)
        ]


def _quantile(values: np.ndarray, share: float) -> float:
    place = max(round(share * values.size), 1) - 1
    return float(np.partition(values, place, axis=None)[place])
