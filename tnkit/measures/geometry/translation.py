"""Whether a sentence is nearest to its own translation: alignment, similarity, retrieval, MEXA.

Products run in float64, one layer at a time: cosines of raw hidden states are often above 0.99, so the differences
between sentences are small.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.measures.geometry.layers import ByLayer
from tnkit.measures.geometry.vectors import TIE, directions
from tnkit.provenance import joined
from tnkit.statistics import interval

_ALIGNED = 0.75  # expected if half of the sentences are translations of each other
_log = logging.getLogger("tnkit")


def alignment(
    left: Activations, right: Activations, *, layers: Sequence[int] | None = None, site: str = "post", seed: int = 0
) -> ByLayer:
    """How often a sentence's translation is nearer than a random other sentence: a check that captures are parallel.

    mean_n [ share of m ≠ n with cos(l_n, r_n) > cos(l_n, r_m) ], mean-centred; a tie counts half. A value near 1/2
    means that the rows are not translations of each other, or that the model does not represent them as such, and
    causes a warning. If only a share p of the rows are translations, expect at most about p + (1 - p) / 2. Capture the
    model without ablations.

    Args:
        left, right: captures of the same sentences in two languages, in the same order.
        layers: which (default: the captured layers of the model's middle third).
        site: "pre", "mid", "post" or "activations".
        seed: of the bootstrap.

    Returns:
        `ByLayer` with columns "share", "low" and "high": the mean over sentences and its 95 % interval (percentile
        bootstrap over sentences, 1,000 draws), float64, between 0 and 1; chance is 0.5.

    Raises:
        TnkitError: for captures with ablations, fewer than 2 sentences, a layer that was not captured, or captures
            that are known not to be parallel.

    >>> from tnkit.testing import captured
    >>> alignment(captured(), captured()).to_frame()
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
            own, others = _own_and_others(a @ b.T)
            nearer = (own[:, None] > others + TIE).sum(dim=1) - 1.0  # each beats itself, at -inf
            ties = ((own[:, None] - others).abs() <= TIE).sum(dim=1)
            shares.append(((nearer + ties / 2) / (len(left) - 1)).numpy())
    values = np.stack(shares)
    draws = np.random.default_rng(seed).integers(len(left), size=(1000, len(left)))
    low, high = interval(np.array([[row[draw].mean() for row in values] for draw in draws]))
    used = tuple(layer for layer in left.layers if layer in chosen)
    columns = {"share": values.mean(axis=1), "low": low, "high": high}
    best = int(columns["share"].argmax())
    if low[best] < _ALIGNED:
        _log.warning(
            "even at layer %d a sentence's translation is nearer than a random other sentence only in %.0f %% of cases "
            "(95 %% interval %.0f to %.0f %%, chance 50 %%); check that row n of one language translates row n of the "
            "other",
            *(used[best], *(100 * columns[name][best] for name in ("share", "low", "high"))),
        )
    provenance = joined([left, right], site=site, seed=seed)
    return ByLayer("translation nearer than another sentence", columns, used, provenance, 0.5)


def similarity(left: Activations, right: Activations, *, site: str = "post", seed: int = 0) -> ByLayer:
    """The mean cosine of parallel and of non-parallel sentences, layer by layer.

    Non-parallel pairs come from a random cyclic shift of the same captures, so no sentence is paired with its
    translation. Capture sentences that were not used to find neurons (the test split). A zero vector has cosine 0 with
    every other. Source: Tezuka & Inoue (EMNLP 2025), for hidden states and activation patterns (site="activations").

    Args:
        left, right: captures of the same sentences in two languages, in the same order.
        site: "pre", "mid", "post", or "activations" for activation patterns.
        seed: of the shift.

    Returns:
        `ByLayer` with columns "parallel" and "non-parallel", cosines, float64.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import captured
    >>> bool(np.allclose(similarity(captured(), captured()).columns["parallel"], 1))
    True
    """
    pairs = directions(left, right, site, centred=False)
    cycle = np.random.default_rng(seed).permutation(len(left))
    shifted = torch.empty(len(left), dtype=torch.long)
    shifted[cycle] = torch.from_numpy(np.roll(cycle, -1))
    cosines = [((a * b).sum(dim=1).mean(), (a * b[shifted]).sum(dim=1).mean()) for a, b in pairs]
    parallel, non_parallel = np.array(cosines).T
    columns = {"parallel": parallel, "non-parallel": non_parallel}
    name = "activation patterns" if site == "activations" else site
    return ByLayer(f"mean cosine of {name}", columns, left.layers, joined([left, right], site=site, seed=seed))


def hits(
    queries: Activations, targets: Activations, *, site: str = "post", centred: bool = True
) -> Bool[np.ndarray, "layer sentence"]:
    """Whether each query sentence is nearer to its own translation than to any other target, layer by layer.

    Nearness is the cosine after subtracting each language's mean (`centred`). A tie is a miss, so states that do not
    vary have no hits.

    Args:
        queries, targets: captures of the same sentences in two languages, in the same order.
        site: "pre", "mid", "post" or "activations".
        centred: subtract each language's mean over these sentences first.

    Returns:
        (layer, sentence), bool: resample its second axis for an interval.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import captured
    >>> hits(captured(), captured()).shape, bool(hits(captured(), captured()).all())
    ((4, 6), True)
    """
    nearest = []
    for query, target in directions(queries, targets, site, centred=centred):
        own, others = _own_and_others(query @ target.T)
        nearest.append(own > others.amax(dim=1) + TIE)
    return torch.stack(nearest).numpy()


def margins(
    queries: Activations, targets: Activations, *, site: str = "post", centred: bool = True
) -> Float[np.ndarray, "layer sentence"]:
    """How much nearer each query sentence lies to its own translation than to the nearest other target, layer by layer.

    cos(q_n, t_n) - max over m ≠ n of cos(q_n, t_m); positive for what `hits` counts.

    Args:
        queries, targets, site, centred: as in `hits`.

    Returns:
        (layer, sentence), float64, between -2 and 2.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import captured
    >>> bool((margins(captured(), captured()) > 0).all())
    True
    """
    rows = []
    for query, target in directions(queries, targets, site, centred=centred):
        own, other = _own_and_others(query @ target.T)
        rows.append(own - other.amax(dim=1))
    return torch.stack(rows).double().numpy()


def retrieval(queries: Activations, targets: Activations, *, site: str = "post", centred: bool = True) -> ByLayer:
    """Translation retrieval@1: the share of query sentences whose nearest target is their own translation.

    The mean of `hits` over sentences; chance is 1 / sentences, so compare only equal numbers of sentences.

    Args:
        queries, targets: captures of the same sentences in two languages, in the same order.
        site: "pre", "mid", "post" or "activations".
        centred: subtract each language's mean over these sentences first.

    Returns:
        `ByLayer` with column "retrieval@1", between 0 and 1.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import captured
    >>> retrieval(captured(), captured()).best()
    (0, 1.0)
    """
    values = hits(queries, targets, site=site, centred=centred).mean(axis=1)
    provenance = joined([queries, targets], site=site, centred=centred)
    name = f"{'mean-centred' if centred else 'raw'} retrieval@1"
    return ByLayer(name, {"retrieval@1": values}, queries.layers, provenance, 1 / len(queries))


def mexa(left: Activations, right: Activations, *, site: str = "post") -> ByLayer:
    """MEXA: the share of sentences whose parallel cosine is greater than every non-parallel one (Kargaran et al. 2024).

    mean_n [ c_nn > max over m ≠ n of c_nm and c_mn ], where c are the uncentred cosines; a tie counts as not greater.
    The value falls with the number of sentences, so compare only equal numbers of sentences. The paper's code takes
    English as `left`, 100 sentences, and the last token or a mean over tokens weighted by position, which `capture`
    does not offer (position="mean" weights all tokens equally). Its first layer is the embedding, here site="pre" of
    layer 0, and it pools layers by their mean or maximum. Source: "MEXA: Multilingual Evaluation of English-Centric
    LLMs via Cross-Lingual Alignment", Findings of ACL 2025 (arXiv 2410.05873).

    Args:
        left, right: captures of the same sentences in two languages, in the same order; swapping them changes nothing.
        site: "pre", "mid", "post" or "activations".

    Returns:
        `ByLayer` with column "MEXA", between 0 and 1.

    Raises:
        TnkitError: for fewer than 2 sentences, or incompatible captures.

    >>> from tnkit.testing import captured
    >>> mexa(captured(), captured()).columns["MEXA"]
    array([1., 1., 1., 1.])
    """
    shares = []
    for a, b in directions(left, right, site, centred=False):
        own, others = _own_and_others(a @ b.T)
        rival = torch.maximum(others.amax(dim=0), others.amax(dim=1))
        shares.append((own > rival + TIE).double().mean().item())
    return ByLayer("MEXA", {"MEXA": np.array(shares)}, left.layers, joined([left, right], site=site))


def _own_and_others(
    cosines: Float[Tensor, "sentence sentence"],
) -> tuple[Float[Tensor, "sentence"], Float[Tensor, "sentence sentence"]]:
    """The diagonal, and the matrix with -inf on its diagonal."""
    own = cosines.diagonal().clone()
    return own, cosines.fill_diagonal_(-torch.inf)
