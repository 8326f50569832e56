"""Language-specific neurons by activation entropy (LAPE)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.measures.specificity.neurons import activations_of, alike, joint_provenance, model_shape, neuron_frame

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd


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
    shares = [np.count_nonzero(activations_of(part) > threshold, axis=1) / len(part) for part in languages.values()]
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


def _quantile(values: np.ndarray, share: float) -> float:
    place = max(round(share * values.size), 1) - 1
    return float(np.partition(values, place, axis=None)[place])
