"""Language-specific neurons by the entropy of activation probabilities (LAPE)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float64

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.measures.specificity.gates import positive_gates
from tnkit.measures.specificity.neurons import absent, activations_of, comparable, model_shape, neuron_frame
from tnkit.models.model import Model
from tnkit.provenance import joined, provenance_of

_LOG = logging.getLogger("tnkit")


@dataclass(frozen=True, eq=False)
class ActivationEntropy:
    """How evenly languages activate each neuron, and the neurons that few languages activate.

    Attributes:
        values: entropy of the activation probabilities over languages, (layer, neuron), float64, in nats: 0 if only
            one language activates the neuron, ln(languages) if all do equally or none does.
        probabilities: share of the sentences (`lape_of_tokens`: tokens) that activate it, (layer, neuron, language).
        neurons: the language-specific neurons of each language, lowest entropy first, with the entropy as score; a
            neuron may belong to several languages.
        layers, languages: of the first and the last axis.
        provenance: model, sentences, token position, versions.
    """

    values: Float64[np.ndarray, "layer neuron"]
    probabilities: Float64[np.ndarray, "layer neuron language"]
    neurons: dict[str, NeuronSet]
    layers: tuple[int, ...]
    languages: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """The entropy and each language's activation probability, indexed (layer, neuron)."""
        shares = {f"P({name})": self.probabilities[..., column] for column, name in enumerate(self.languages)}
        return neuron_frame(self.layers, {"entropy": self.values, **shares})

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw the number of neurons of each language in each layer."""
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
    """Language-specific neurons by the entropy of activation probabilities at the captured position, after LAPE.

    P_l = share of language l's sentences with activation > threshold; P'_l = P_l / Σ P; LAPE = −Σ P'_l ln P'_l. Among
    the neurons whose P_l exceeds the filter's quantile in some language, those with the lowest entropy are chosen, and
    assigned to each language whose P_l exceeds the language's quantile. This is not the published LAPE (Tang et al.,
    ACL 2024), which counts gate signs over all tokens and finds other neurons; for that, use `lape_of_tokens`. Here the
    activation is the product of gate and up projection, and each sentence counts once.

    Args:
        languages: a capture of each language with `activations`, made in the same way.
        top_share: the number of chosen neurons, as a share of all (the published top_rate).
        filter_quantile: a neuron has to exceed this quantile of all probabilities in some language (filter_rate).
        language_quantile: the same, to be assigned to a language (activation_bar_ratio).
        threshold: a neuron is active above this activation.

    Returns:
        `ActivationEntropy`, (layer, neuron), float64, in nats. If no neuron exceeds the filter's quantile, as happens
        with few sentences, all sets are empty and a warning is logged.

    Raises:
        TnkitError: for one language, shares outside 0 to 1, or incompatible captures.

    >>> from tnkit.testing import by_language
    >>> entropy = lape(by_language(), top_share=0.1, filter_quantile=0.5, language_quantile=0.5)
    >>> entropy.values.shape, sum(map(len, entropy.neurons.values()))
    ((4, 48), 19)
    """
    first = comparable(languages, least=2)
    gone = absent(first)
    shares = {
        name: np.where(gone, np.nan, np.count_nonzero(activations_of(capture) > threshold, axis=1) / len(capture))
        for name, capture in languages.items()
    }
    options = {"top_share": top_share, "filter_quantile": filter_quantile, "language_quantile": language_quantile}
    origin = joined(languages), {"lape": options, "threshold": threshold}
    return _entropy(shares, first.layers, model_shape(first), options, origin)


def lape_of_tokens(
    model: Model,
    texts: Mapping[str, Sequence[str]],
    *,
    top_share: float = 0.01,
    filter_quantile: float = 0.95,
    language_quantile: float = 0.95,
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> ActivationEntropy:
    """Language-specific neurons by language activation probability entropy, LAPE (Tang et al., ACL 2024).

    Like `lape`, with the published counts: P_l = share of language l's tokens at which the neuron's gate is positive,
    without special tokens. The model runs on all texts.

    Args:
        model: from `load_model`.
        texts: language → sentences, such as `corpus["train"]`.
        top_share, filter_quantile, language_quantile: as in `lape`; the defaults are the published ones.
        batch_tokens: the most tokens in a batch, padding included.
        progress: show bars.

    Returns:
        `ActivationEntropy`, as `lape` does.

    Raises:
        TnkitError: for one language, shares outside 0 to 1, sentences that `capture` refuses, or an MLP whose gate has
            no known name.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:2], "ja": SENTENCES[2:3]}
    >>> entropy = lape_of_tokens(tiny_model(), texts, filter_quantile=0.6, language_quantile=0.6, progress=False)
    >>> entropy.probabilities.shape, {name: len(neurons) for name, neurons in entropy.neurons.items()}
    ((4, 48, 2), {'en': 1, 'ja': 1})
    """
    if len(texts) < 2:
        raise TnkitError(f"cannot compare {len(texts)} language(s); give at least 2")
    reading: dict[str, Any] = {"batch_tokens": batch_tokens, "progress": progress}
    shares = {name: positive_gates(model, sentences, **reading) for name, sentences in texts.items()}
    provenances = {name: provenance_of(model, sentences) for name, sentences in texts.items()}
    sentences = [{"language": name, **provenance["sentences"]} for name, provenance in provenances.items()]
    provenance = next(iter(provenances.values())) | {"sentences": sentences, "position": "all"}
    options = {"top_share": top_share, "filter_quantile": filter_quantile, "language_quantile": language_quantile}
    shape = (model.n_layers, model.n_neurons)
    return _entropy(shares, tuple(range(model.n_layers)), shape, options, (provenance, {"lape of tokens": options}))


def _entropy(
    shares: Mapping[str, Float64[np.ndarray, "layer neuron"]],
    layers: tuple[int, ...],
    shape: tuple[int, int],
    options: Mapping[str, float],
    about: tuple[dict[str, Any], dict[str, Any]],
) -> ActivationEntropy:
    """Entropies and language-specific neurons, from activation probabilities by language."""
    for name, value in options.items():
        if not 0 < value <= 1:
            raise TnkitError(f"{name}={value} must be a share above 0 and at most 1")
    probabilities = np.stack(list(shares.values()), axis=-1)
    total = probabilities.sum(axis=-1, keepdims=True)
    relative = np.divide(probabilities, total, out=np.full_like(probabilities, 1 / len(shares)), where=total > 0)
    logs = np.log(relative, out=np.zeros_like(relative), where=relative > 0)
    there = ~np.isnan(probabilities).any(axis=-1)
    values = np.where(there, np.maximum(-(relative * logs).sum(axis=-1), 0.0), np.nan)
    bar = _quantile(probabilities[there], options["filter_quantile"])
    eligible = (probabilities > bar).any(axis=-1)
    if not eligible.any():
        _LOG.warning(
            "LAPE finds no neurons: in no language is any active in a share above %.3g, the %g quantile of all "
            "probabilities; lower filter_quantile, or give more sentences",
            *(bar, options["filter_quantile"]),
        )
    lowest = np.argsort(np.where(eligible, values, np.inf), axis=None, kind="stable")
    lowest = lowest[: min(round(options["top_share"] * there.sum()), int(eligible.sum()))]
    provenance, selection = about
    neurons = {}
    for name, probability in shares.items():
        given = lowest[probability.ravel()[lowest] > _quantile(probabilities[there], options["language_quantile"])]
        pairs = tuple((layers[index // values.shape[1]], index % values.shape[1]) for index in given.tolist())
        scores = tuple(values.ravel()[given].tolist())

        neurons[name] = NeuronSet(pairs, shape, scores, {**provenance, "selection": selection, "language": name})
    return ActivationEntropy(values, probabilities, neurons, layers, tuple(shares), provenance)


def _quantile(values: np.ndarray, share: float) -> float:
    rank = max(round(share * values.size), 1) - 1
    return float(np.partition(values, rank, axis=None)[rank])
