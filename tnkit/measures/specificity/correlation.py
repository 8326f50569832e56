"""The correlation ratio of each neuron's activation with the language of the sentence, and its tests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float64

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.measures.specificity.neurons import absent, comparable, extreme, model_shape, neuron_frame
from tnkit.provenance import joined
from tnkit.statistics import welch

_FAMILIES = {
    "Germanic": "da de en nl no sv", "Romance": "es fr it pt", "Slavic": "cs pl ru", "Hellenic": "el",
    "Indo-Aryan": "hi", "Japonic": "ja", "Koreanic": "ko", "Sinitic": "zh", "Semitic": "ar he", "Uralic": "fi hu",
    "Turkic": "tr", "Austronesian": "id", "Austroasiatic": "vi", "Kra-Dai": "th",
}  # fmt: skip
FAMILIES = {language: family for family, codes in _FAMILIES.items() for language in codes.split()}
# In the published code, the "family" of a language is one of these two.
PUBLISHED_FAMILIES = {"ja": "ja, ko", "ko": "ja, ko", "en": "en, it, nl", "it": "en, it, nl", "nl": "en, it, nl"}


@dataclass(frozen=True, eq=False)
class Specificity:
    """The share of each neuron's variance between groups of sentences, and tests of it.

    All are (layer, neuron), float64, NaN for neurons that a layer lacks. A neuron whose activation never varies has
    eta2, epsilon2 and F 0 and every p and q 1; one that varies between groups only has eta2 1, F infinity and p 0.

    Attributes:
        eta2: η², the correlation ratio, between 0 and 1.
        epsilon2: ε², η² corrected for chance (negative if η² is below chance).
        F, p: one-way analysis of variance, and its p.
        p_welch: p of Welch's analysis of variance, which does not assume equal variances.
        q, q_welch: both p, as false discovery rates over all neurons (Benjamini & Hochberg, 1995).
        layers: of the first axis.
        groups: the languages of each group.
        counts: the sentences of each group.
        shape: the model's numbers of layers and of neurons in a layer.
        provenance: model, sentences, token position, versions.
    """

    eta2: Float64[np.ndarray, "layer neuron"]
    epsilon2: Float64[np.ndarray, "layer neuron"]
    F: Float64[np.ndarray, "layer neuron"]
    p: Float64[np.ndarray, "layer neuron"]
    p_welch: Float64[np.ndarray, "layer neuron"]
    q: Float64[np.ndarray, "layer neuron"]
    q_welch: Float64[np.ndarray, "layer neuron"]
    layers: tuple[int, ...]
    groups: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    shape: tuple[int, int]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Specificity({' | '.join(self.groups)}, {self.eta2.size} neurons)"

    def top(self, n: SupportsIndex, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The n neurons with the highest η², best first; equal ones are in the order (layer, neuron).

        Raises:
            TnkitError: for more neurons than there are, or a layer that was not captured.
        """
        return extreme(self, self.eta2, n, layers, {"eta2": list(self.groups), "top": n})

    def shares(
        self, neurons: NeuronSet, thresholds: Sequence[float] = (0.1, 0.25), *, alpha: float = 0.05
    ) -> pd.DataFrame:
        """The share of a set's neurons that are significant with η² at or above a threshold, and of control neurons.

        The code of Tezuka & Inoue (EMNLP 2025) counts η² ≥ 0.1 and ≥ 0.25 with p < 0.05, uncorrected. With hundreds of
        sentences such an η² is significant by any of the tests: the threshold decides, not p.

        Returns:
            A frame indexed (eta2 above, test); a value equal to the threshold counts. Columns are "set", "same layers"
            (all neurons of the set's layers) and "layer-matched" (the expected share of a random set with as many
            neurons in each layer).

        Raises:
            TnkitError: for an empty set, one of another model, or one with a neuron in a layer that was not captured.
        """
        layers, columns = self._indices(neurons)
        tests = {f"p < {alpha:g}": self.p, f"q < {alpha:g}": self.q, f"Welch q < {alpha:g}": self.q_welch}
        rows = {}
        for threshold in thresholds:
            for test, values in tests.items():
                passed = (self.eta2 >= threshold) & (values < alpha)
                by_layer = passed.mean(axis=1)
                rows[threshold, test] = (
                    passed[layers, columns].mean(),
                    by_layer[np.unique(layers)].mean(),
                    by_layer[layers].mean(),
                )
        index = pd.MultiIndex.from_tuples(rows, names=["eta2 above", "test"])
        return pd.DataFrame(rows.values(), index=index, columns=["set", "same layers", "layer-matched"])

    def to_frame(self) -> pd.DataFrame:
        """Every number of every neuron, indexed (layer, neuron)."""
        names = ("eta2", "epsilon2", "F", "p", "p_welch", "q", "q_welch")
        return neuron_frame(self.layers, {name: getattr(self, name) for name in names})

    def plot(self, ax: "plots.Axes | None" = None, neurons: NeuronSet | None = None) -> "plots.Axes":
        """Draw the share of neurons above each η²; with `neurons`, of that set and of all others in its layers."""
        values = self.eta2
        if neurons is None:
            return plots.exceedance({"all neurons": values.ravel()}, xlabel=self._label(), ax=ax)
        layers, columns = self._indices(neurons)
        others = np.zeros(values.shape, dtype=bool)
        others[layers] = True
        others[layers, columns] = False
        groups = {"the set": values[layers, columns], "all others of its layers": values[others]}
        return plots.exceedance(groups, xlabel=self._label(), ax=ax)

    def _label(self) -> str:
        return f"correlation ratio η² ({' | '.join(self.groups)})"

    def _indices(self, neurons: NeuronSet) -> tuple[np.ndarray, np.ndarray]:
        if neurons.shape != self.shape:
            raise TnkitError(f"the set's model has {neurons.shape} layers × neurons, this one has {self.shape}")
        if not len(neurons):
            raise TnkitError("the set is empty; give a set with neurons")
        missing = sorted({layer for layer, _ in neurons} - set(self.layers))
        if missing:
            raise TnkitError(f"layers {missing} were not captured; captured are {list(self.layers)}")
        layers, columns = np.array(neurons.pairs).T
        return np.searchsorted(self.layers, layers), columns

    def _repr_html_(self) -> str:
        groups = {name: f"{', '.join(self.groups[name])}: {count} sentences" for name, count in self.counts.items()}
        rows = {f"η² ≥ {least}": f"{(self.eta2 >= least).mean():.1%}" for least in (0.1, 0.25)}
        return storage.html_card("Specificity", {**groups, "neurons": self.eta2.size, **rows})


def correlation_ratio(
    languages: Mapping[str, Activations], *, language: str | None = None, groups: Mapping[str, str] | None = None
) -> Specificity:
    """The correlation ratio of each neuron's activation with the language, or group of languages, of the sentence.

    η² = Σ_g n_g (ā_g − ā)² / Σ_n (a_n − ā)², between-group over total sum of squares (Fisher, 1925). This is η², not
    its root η, as in the published code of Tezuka & Inoue (EMNLP 2025), who compare one language with the rest. Also
    ε² = (SS_between − (k − 1) MS_within) / SS_total (Kelley, 1935), F = MS_between / MS_within, and Welch's (1951)
    test, in which a group without variance has 10⁻¹² of the total variance (practically the limit of zero).

    Args:
        languages: a capture of each language with `activations`, of the same model and layers.
        language: test this language (or, with `groups`, its group) against the rest; None compares all groups.
        groups: the group of each language, such as `FAMILIES`, or `PUBLISHED_FAMILIES` for the published labels;
            default: each language is a group.

    Returns:
        `Specificity`, (layer, neuron), float64; sums run in float64.

    Raises:
        TnkitError: for a language that is missing or has no group, fewer than two groups, a group of fewer than two
            sentences, incompatible captures, or activations that are not finite.

    >>> from tnkit.testing import by_language
    >>> of_ja = correlation_ratio(by_language(), language="ja")
    >>> of_ja, of_ja.eta2.shape, bool((of_ja.eta2 >= 0).all() and (of_ja.eta2 <= 1).all())
    (Specificity(ja | rest, 192 neurons), (4, 48), True)
    """
    from scipy import stats

    first = comparable(languages)
    members = _members(languages, language, groups)
    counts = {name: sum(len(languages[member]) for member in inside) for name, inside in members.items()}
    few = next((name for name, count in counts.items() if count < 2), None)
    if few is not None:
        raise TnkitError(f"the group {few} has {counts[few]} sentence; a variance needs at least 2")
    moments = {name: _moments(capture) for name, capture in languages.items()}
    centres, spreads = [], []
    for name, inside in members.items():
        mean = sum(len(languages[member]) * moments[member][0] for member in inside) / counts[name]
        centres.append(mean)
        spreads.append(
            sum(moments[member][1] + len(languages[member]) * (moments[member][0] - mean) ** 2 for member in inside)
        )
    means, squares = np.stack(centres), np.stack(spreads)
    sizes = np.array(list(counts.values()), dtype=np.float64)[:, None, None]
    n, k = int(sizes.sum()), len(sizes)
    between = (sizes * (means - (sizes * means).sum(axis=0) / n) ** 2).sum(axis=0)
    within = squares.sum(axis=0)
    total = between + within
    f = np.where(between > 0, np.inf, 0.0)
    np.divide(between / (k - 1), within / (n - k), out=f, where=within > 0)
    p = stats.f.sf(f, k - 1, n - k)
    p_welch = welch(means, squares, sizes)
    gone = absent(first)
    values = {"eta2": _over(between, total), "epsilon2": _over(between - (k - 1) * within / (n - k), total)}
    values |= {"F": f, "p": p, "p_welch": p_welch, "q": _rates(p, gone), "q_welch": _rates(p_welch, gone)}
    return Specificity(
        **{name: np.where(gone, np.nan, of_all) for name, of_all in values.items()},
        layers=first.layers,
        groups=members,
        counts=counts,
        shape=model_shape(first),
        provenance=joined(languages),
    )


def _rates(p: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """False discovery rates over the neurons that there are."""
    from scipy import stats

    rates = np.ones_like(p)
    rates[~gone] = stats.false_discovery_control(p[~gone])
    return rates


def _moments(capture: Activations) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the sum of squared deviations of each neuron, float64, computed one layer at a time."""
    means, squares = [], []
    for values in (capture.of_layer(layer).numpy() for layer in capture.layers):
        means.append(values.mean(axis=0, dtype=np.float64))
        deviations = values - means[-1]
        squares.append(np.einsum("sn,sn->n", deviations, deviations))
    return np.stack(means), np.stack(squares)


def _members(
    languages: Iterable[str], language: str | None, groups: Mapping[str, str] | None
) -> dict[str, tuple[str, ...]]:
    """The languages of each group, in their order."""
    groups = {name: name for name in languages} if groups is None else groups
    missing = [name for name in languages if name not in groups]
    if missing:
        raise TnkitError(f"groups has no group for {', '.join(missing)}; give one for each language")
    if language is not None and language not in languages:
        raise TnkitError(f"there is no capture of {language!r}; there are {', '.join(languages)}")
    members: dict[str, tuple[str, ...]] = {} if language is None else {groups[language]: ()}
    for name in languages:
        group = groups[name] if language is None or groups[name] == groups[language] else "rest"
        members[group] = (*members.get(group, ()), name)
    if len(members) < 2:
        raise TnkitError(
            f"{', '.join(languages)} are all in one group, {next(iter(members))}; compare at least 2 groups"
        )
    return members


def _over(numerator: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The ratio, or 0 if the whole is 0."""
    return np.divide(numerator, whole, out=np.zeros_like(whole), where=whole > 0)
