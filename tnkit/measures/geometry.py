"""What happens to the spaces of languages, layer by layer: captures in, results with `to_frame()` and `plot()` out.

en, ja = tn.capture(model, test["en"]), tn.capture(model, test["ja"])   # parallel, and unseen when neurons were found
tn.geometry.similarity(en, ja).plot()
tn.geometry.retrieval(ja, en).best()                                     # (layer, share of sentences)

Products run in float64, a layer at a time: cosines of raw hidden states are often above 0.99, so that what tells
sentences apart is small, and many sentences of a large model must not need memory for all layers at once.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Real
from torch import Tensor

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError, whole_number
from tnkit.measures.spaces import (
    CentroidDistances,
    PrincipalComponents,
    centre,
    centroid_distances,
    directions,
    origin,
    pca,
    states,
)
from tnkit.statistics import interval

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

__all__ = [
    "ByLayer",
    "CentroidDistances",
    "PrincipalComponents",
    "alignment",
    "beside",
    "centroid_distances",
    "effective_dimension",
    "hits",
    "mexa",
    "mutual_knn",
    "pca",
    "retrieval",
    "shared_neighbours",
    "similarity",
]

_ALIGNED = 0.75  # of sentences of which half are translations of each other
_log = logging.getLogger("tnkit")
_TIE = 1e-12  # cosines this close are equal: rounding leaves those of parallel vectors about 1e-16 apart


@dataclass(frozen=True, eq=False)
class ByLayer:
    """One number a layer, or several.

    Attributes:
        measure: what the numbers are; the title of the y axis.
        columns: (layer,) each, by name.
        layers: what the axis stands for.
        provenance: model, sentences of each capture, parameters.
        chance: what states that tell nothing give, where that is one number.

    >>> found = ByLayer("share", {"a": np.array([0.1, 0.4]), "b": np.array([0.3, 0.2])}, (4, 5))
    >>> found.best(), found.best("b")
    ((5, 0.4), (4, 0.3))
    """

    measure: str
    columns: dict[str, Real[np.ndarray, "layer"]]
    layers: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    chance: float | None = None

    def __post_init__(self) -> None:
        wrong = [name for name, column in self.columns.items() if column.shape != (len(self.layers),)]
        if wrong or not self.columns or not self.layers:
            raise TnkitError(
                f"{self.measure}: columns {wrong or 'none'} do not have one value for each of {self.layers}"
            )

    def __repr__(self) -> str:
        return f"ByLayer({self.measure}: {', '.join(self.columns)}, {len(self.layers)} layers)"

    def best(self, column: str | None = None) -> tuple[int, float]:
        """The layer of a column's largest value (the first of equals), and that value.

        Args:
            column: which (default: the first).

        Raises:
            TnkitError: for an unknown column, or one of NaN alone.
        """
        name = next(iter(self.columns)) if column is None else column
        if name not in self.columns:
            raise TnkitError(f"there is no column {name!r}; there are {', '.join(self.columns)}")
        values = self.columns[name]
        if np.isnan(values).all():
            raise TnkitError(f"{name} has no values")
        place = int(np.nanargmax(values))
        return self.layers[place], float(values[place])

    def to_frame(self) -> "pd.DataFrame":
        """The columns, indexed by layer."""
        import pandas as pd

        return pd.DataFrame(self.columns, index=pd.Index(self.layers, name="layer"))

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw a line a column, and chance as a dotted one."""
        from tnkit.plots import figures as plots

        return plots.lines_by_layer(self.to_frame(), ylabel=self.measure, chance=self.chance, ax=ax)

    def _repr_html_(self) -> str:
        rows = dict.fromkeys(self.columns, "—")
        for name, values in self.columns.items():
            if not np.isnan(values).all():
                layer, highest = self.best(name)
                rows[name] = f"{highest:z.4g} at layer {layer}, lowest {np.nanmin(values):z.4g}"
        return storage.html_card(f"{self.measure}, {len(self.layers)} layers", rows)


def beside(results: Mapping[str, ByLayer]) -> ByLayer:
    """Results of one measure as columns of one, so that a number and its control share a plot.

    Args:
        results: a label for each; one with several columns gives "label, column" each.

    Raises:
        TnkitError: for none, different measures or different layers.

    >>> one = ByLayer("share", {"retrieved": np.array([0.5, 0.4])}, (0, 1))
    >>> list(beside({"Type-1 off": one, "random off": one}).columns)
    ['Type-1 off', 'random off']
    """
    parts = list(results.values())
    if not parts or any((part.measure, part.layers) != (parts[0].measure, parts[0].layers) for part in parts):
        raise TnkitError(f"{', '.join(results) or 'no results'} must be one measure over the same layers")
    columns = {
        label if len(part.columns) == 1 else f"{label}, {name}": column
        for label, part in results.items()
        for name, column in part.columns.items()
    }
    about = {"results": {label: part.provenance for label, part in results.items()}}
    chances = {part.chance for part in parts}
    return ByLayer(parts[0].measure, columns, parts[0].layers, about, chances.pop() if len(chances) == 1 else None)


def alignment(
    left: Activations, right: Activations, *, layers: Sequence[int] | None = None, site: str = "post", seed: int = 0
) -> ByLayer:
    """How often a sentence's translation is nearer than a random other sentence: a check that captures are parallel.

    mean_n [ share of m ≠ n with cos(l_n, r_n) > cos(l_n, r_m) ], mean-centred, a tie counts half. Near 1/2 either the
    rows are not translations of each other, or the model does not know it; a warning then says so. Capture the model
    without ablations. Of parallel sentences in which a share p is true, about p + (1 - p) / 2 is expected at most.

    Args:
        left, right: captures of the same sentences in two languages, in the same order.
        layers: which (default: the middle third of the model, as far as it was captured).
        site: "pre", "mid", "post" or "activations".
        seed: of the bootstrap.

    Returns:
        `ByLayer` with columns "share", "low" and "high": the mean over sentences and its 95 % interval (percentile
        bootstrap over sentences, 1,000 draws), float64, between 0 and 1; chance is 0.5.

    Raises:
        TnkitError: for captures with ablations, fewer than 2 sentences, a layer that was not captured, or captures
            that are known not to be parallel.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> alignment(en, en).to_frame()
           share  low  high
    layer
    2        1.0  1.0   1.0
    """
    if left.provenance.get("ablations") or right.provenance.get("ablations"):
        raise TnkitError("alignment needs captures of the model without ablations; capture both again")
    depth = left.provenance.get("model", {}).get("layers", max(left.layers) + 1)
    middle = [layer for layer in left.layers if depth / 3 <= layer < 2 * depth / 3] or list(left.layers)
    chosen = middle if layers is None else list(layers)
    missing = [layer for layer in chosen if layer not in left.layers]
    if missing or not chosen:
        raise TnkitError(f"layers {missing or 'none'} were not captured; choose from {left.layers}")
    shares = []
    for layer, (a, b) in zip(left.layers, directions(left, right, site, centred=True), strict=True):
        if layer in chosen:
            own, other = _own_and_other(a @ b.T)
            nearer = (own[:, None] > other + _TIE).sum(dim=1) - 1.0  # each beats itself, at -inf
            ties = ((own[:, None] - other).abs() <= _TIE).sum(dim=1)
            shares.append(((nearer + ties / 2) / (len(left) - 1)).numpy())
    values = np.stack(shares)
    draws = np.random.default_rng(seed).integers(len(left), size=(1000, len(left)))
    low, high = interval(np.array([[row[draw].mean() for row in values] for draw in draws]))
    names = tuple(layer for layer in left.layers if layer in chosen)
    columns = {"share": values.mean(axis=1), "low": low, "high": high}
    best = int(columns["share"].argmax())
    if low[best] < _ALIGNED:
        _log.warning(
            "even at layer %d a sentence's translation is nearer than a random other sentence only in %.0f %% of cases "
            "(95 %% interval %.0f to %.0f %%, chance 50 %%); check that row n of one language translates row n of the "
            "other",
            *(names[best], *(100 * columns[name][best] for name in ("share", "low", "high"))),
        )
    about = origin(left, right, site=site, seed=seed)
    return ByLayer("translation nearer than another sentence", columns, names, about, 0.5)


def similarity(left: Activations, right: Activations, *, site: str = "post", seed: int = 0) -> ByLayer:
    """The mean cosine of parallel sentences, and of sentences that are no translations of each other, layer by layer.

    Non-parallel pairs come from the same captures: sentences stand in a random circle, and each meets the translation
    of the next, so none meets its own. Capture sentences that were not used to find neurons (the test split). A zero
    vector has cosine 0 with every other. Source: Tezuka & Inoue (EMNLP 2025), for hidden states and for activation
    patterns (site="activations").

    Args:
        left, right: captures of the same sentences in two languages, in the same order.
        site: "pre", "mid", "post", or "activations" for activation patterns.
        seed: of the circle.

    Returns:
        `ByLayer` with columns "parallel" and "non-parallel", cosines, float64.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> bool(np.allclose(similarity(en, en).columns["parallel"], 1))
    True
    """
    pairs = directions(left, right, site, centred=False)
    circle = np.random.default_rng(seed).permutation(len(left))
    stranger = torch.empty(len(left), dtype=torch.long)
    stranger[circle] = torch.from_numpy(np.roll(circle, -1))
    cosines = [((a * b).sum(dim=1).mean(), (a * b[stranger]).sum(dim=1).mean()) for a, b in pairs]
    parallel, other = np.array(cosines).T
    columns = {"parallel": parallel, "non-parallel": other}
    name = "activation patterns" if site == "activations" else site
    return ByLayer(f"mean cosine of {name}", columns, left.layers, origin(left, right, site=site, seed=seed))


def hits(
    queries: Activations, targets: Activations, *, site: str = "post", centred: bool = True
) -> Bool[np.ndarray, "layer sentence"]:
    """Whether each query sentence lies nearer to its own translation than to any other target, layer by layer.

    Nearness is cosine, after each language's mean was taken away (`centred`). A tie is a miss, so states that do not
    vary hit nothing.

    Args:
        queries, targets: captures of the same sentences in two languages, in the same order.
        site: "pre", "mid", "post" or "activations".
        centred: take away each language's mean over these sentences first.

    Returns:
        (layer, sentence), bool: resample its second axis for an interval.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> hits(en, en).shape, bool(hits(en, en).all())
    ((4, 6), True)
    """
    found = []
    for query, target in directions(queries, targets, site, centred=centred):
        own, other = _own_and_other(query @ target.T)
        found.append(own > other.amax(dim=1) + _TIE)
    return torch.stack(found).numpy()


def retrieval(queries: Activations, targets: Activations, *, site: str = "post", centred: bool = True) -> ByLayer:
    """Translation retrieval@1: the share of query sentences whose nearest target is their own translation.

    The mean of `hits` over sentences; chance is 1 / sentences, so compare only the same number of them.

    Args:
        queries, targets: captures of the same sentences in two languages, in the same order.
        site: "pre", "mid", "post" or "activations".
        centred: take away each language's mean over these sentences first.

    Returns:
        `ByLayer` with column "retrieval@1", between 0 and 1.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> retrieval(en, en).best()
    (0, 1.0)
    """
    values = hits(queries, targets, site=site, centred=centred).mean(axis=1)
    about = origin(queries, targets, site=site, centred=centred)
    return ByLayer("retrieval@1", {"retrieval@1": values}, queries.layers, about, 1 / len(queries))


def mexa(left: Activations, right: Activations, *, site: str = "post") -> ByLayer:
    """MEXA: the share of sentences whose parallel cosine is greater than every non-parallel one (Kargaran et al. 2024).

    mean_n [ c_nn > max over m ≠ n of c_nm and c_mn ], c the matrix of cosines, uncentred; a tie counts as not greater.
    The paper's code takes English as `left`, position-weighted or last-token embeddings and 100 sentences; the value
    falls with their number, so compare only the same number of them. Source: "MEXA: Multilingual Evaluation of
    English-Centric LLMs via Cross-Lingual Alignment", Findings of ACL 2025 (arXiv 2410.05873).

    Args:
        left, right: captures of the same sentences in two languages, in the same order; swapping them changes nothing.
        site: "pre", "mid", "post" or "activations".

    Returns:
        `ByLayer` with column "MEXA", between 0 and 1.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> mexa(en, en).columns["MEXA"]
    array([1., 1., 1., 1.])
    """
    shares = []
    for a, b in directions(left, right, site, centred=False):
        own, other = _own_and_other(a @ b.T)
        rival = torch.maximum(other.amax(dim=0), other.amax(dim=1))
        shares.append((own > rival + _TIE).double().mean().item())
    return ByLayer("MEXA", {"MEXA": np.array(shares)}, left.layers, origin(left, right, site=site))


def mutual_knn(left: Activations, right: Activations, *, k: SupportsIndex = 10, site: str = "post") -> ByLayer:
    """The mean share of each sentence's k nearest neighbours that two spaces have in common (Huh et al. 2024).

    mean_n | N_left(n) ∩ N_right(n) | / k, where N(n) are sentence n's nearest of the same language by cosine, itself
    excluded. Those that tie for the last places share them equally, which is the expected value of a random choice, so
    states that do not vary give chance, k / (sentences - 1). Source: "The Platonic Representation Hypothesis", ICML
    2024; Tezuka & Inoue (EMNLP 2025) take k = 5 and 10.

    Args:
        left, right: captures of the same sentences in two languages (or models of equal depth), in the same order.
        k: how many neighbours.
        site: "pre", "mid", "post" or "activations".

    Returns:
        `ByLayer` with column "mutual {k}-NN", between 0 and 1.

    Raises:
        TnkitError: for fewer than k + 1 sentences, or incompatible captures.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> mutual_knn(en, en, k=2).columns["mutual 2-NN"].round(6)
    array([1., 1., 1., 1.])
    """
    k = whole_number("k", k, at_least=1)
    shares = shared_neighbours(left, right, k=k, site=site).mean(axis=1)
    about = origin(left, right, site=site, k=k)
    return ByLayer("mutual k-NN", {f"mutual {k}-NN": shares}, left.layers, about, k / (len(left) - 1))


def shared_neighbours(
    left: Activations, right: Activations, *, k: SupportsIndex = 10, site: str = "post"
) -> Float64[np.ndarray, "layer sentence"]:
    """The share of each sentence's k nearest neighbours that two spaces have in common; its mean is `mutual_knn`.

    Args:
        left, right, k, site: as in `mutual_knn`.

    Returns:
        (layer, sentence), float64, between 0 and 1: resample its second axis for an interval.

    Raises:
        TnkitError: for fewer than k + 1 sentences, or incompatible captures.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> shared_neighbours(en, en, k=2).shape
    (4, 6)
    """
    k = whole_number("k", k, at_least=1)
    pairs = directions(left, right, site, centred=False, at_least=k + 1, one_width=False)
    return np.stack([((_neighbours(a, k) * _neighbours(b, k)).sum(dim=1) / k).numpy() for a, b in pairs])


def effective_dimension(
    captured: Activations, *, shares: Sequence[float] = (0.9, 0.95, 0.99), centred: bool = True, site: str = "post"
) -> ByLayer:
    """How many principal components hold a share of the variance, layer by layer.

    The smallest d with σ_1² + … + σ_d² ≥ share · Σ σ² (to 1e-12 of the sum), σ the singular values of the (sentence,
    hidden) matrix less its mean. centred=False keeps the mean, which then counts as variance, as the code of Tezuka &
    Inoue (EMNLP 2025) does. No d exceeds the number of sentences, so compare only the same number of them.

    Args:
        captured: of one language, or of any sentences.
        shares: of the variance, each above 0 and at most 1.
        centred: take away the mean over sentences first.
        site: "pre", "mid", "post" or "activations".

    Returns:
        `ByLayer` with a column a share, int64; 0 where nothing varies (one sentence, or equal states).

    Raises:
        TnkitError: for a share out of range, or a capture that lacks the site.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> int(effective_dimension(en, shares=[1.0]).columns["100%"][3])
    5
    """
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong or not len(shares):
        raise TnkitError(f"shares {wrong or 'none'} must be above 0 and at most 1, as in shares=(0.9, 0.95, 0.99)")
    needed = []
    for layer in states(captured, site):
        points = centre(layer.double()) if centred else layer.double()
        product = points @ points.T if len(points) <= points.shape[1] else points.T @ points
        variance = torch.linalg.eigvalsh(product).flip(0).clamp_min_(0).cumsum(0)  # of σ²
        goal = torch.tensor(shares, dtype=torch.float64) - _TIE
        reached = torch.searchsorted(variance, goal * variance[-1]) + 1
        needed.append(torch.where(variance[-1] > 0, reached, 0))
    columns = {f"{100 * share:g}%": column.numpy() for share, column in zip(shares, torch.stack(needed).T, strict=True)}
    about = origin(captured, site=site, centred=centred)
    return ByLayer("principal components", columns, captured.layers, about)


def _own_and_other(
    cosines: Float[Tensor, "sentence sentence"],
) -> tuple[Float[Tensor, "sentence"], Float[Tensor, "sentence sentence"]]:
    """The diagonal, and the matrix with -inf there."""
    own = cosines.diagonal().clone()
    return own, cosines.fill_diagonal_(-torch.inf)


def _neighbours(points: Float[Tensor, "sentence width"], k: int) -> Float[Tensor, "sentence sentence"]:
    """How much of a place each sentence has among the k nearest of each other: 1, 0, or a share where they tie."""
    cosines = (points @ points.T).fill_diagonal_(-torch.inf)
    last = cosines.topk(k, dim=1).values[:, -1:]
    nearer = (cosines > last + _TIE).double()
    equal = ((cosines - last).abs() <= _TIE).double()
    left_over = k - nearer.sum(dim=1, keepdim=True)
    return nearer + equal * left_over / equal.sum(dim=1, keepdim=True)
