"""Mutual nearest neighbours: the neighbours of a sentence that two spaces share."""

from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError, whole_number
from tnkit.measures.geometry.layers import ByLayer
from tnkit.measures.geometry.vectors import TIE, directions, states
from tnkit.provenance import joined


def mutual_knn(
    left: Activations, right: Activations, *, k: SupportsIndex = 10, site: str = "post", clamp: float | None = None
) -> ByLayer:
    """The mean share of each sentence's k nearest neighbours that two spaces have in common (Huh et al. 2024).

    mean_n | N_left(n) ∩ N_right(n) | / k, where N(n) are the k sentences of the same language nearest to n by cosine,
    excluding n. Sentences that tie for the last places share them equally, which is the expected value of a random
    choice, so states that do not vary give chance, k / (sentences - 1). Source: "The Platonic Representation
    Hypothesis", ICML 2024, whose code clamps outliers at q = 0.95 (`clamp`) and searches all pairs of layers; Tezuka &
    Inoue (EMNLP 2025) use k = 5 and 10 and do not clamp.

    Args:
        left, right: captures of the same sentences in two languages (or models of equal depth), in the same order.
        k: the number of neighbours.
        site: "pre", "mid", "post" or "activations".
        clamp: limit every coordinate to ± the mean over sentences of this quantile of |coordinate|, over all captured
            layers; None does not clamp.

    Returns:
        `ByLayer` with column "mutual {k}-NN", between 0 and 1.

    Raises:
        TnkitError: for fewer than k + 1 sentences, or incompatible captures.

    >>> from tnkit.testing import captured
    >>> mutual_knn(captured(), captured(), k=2).columns["mutual 2-NN"].round(6)
    array([1., 1., 1., 1.])
    """
    k = whole_number("k", k, at_least=1)
    shares = shared_neighbours(left, right, k=k, site=site, clamp=clamp).mean(axis=1)
    provenance = joined([left, right], site=site, k=k, **({} if clamp is None else {"clamp": clamp}))
    return ByLayer("mutual k-NN", {f"mutual {k}-NN": shares}, left.layers, provenance, k / (len(left) - 1))


def shared_neighbours(
    left: Activations, right: Activations, *, k: SupportsIndex = 10, site: str = "post", clamp: float | None = None
) -> Float64[np.ndarray, "layer sentence"]:
    """The share of each sentence's k nearest neighbours that two spaces have in common; `mutual_knn` is its mean.

    Args:
        left, right, k, site, clamp: as in `mutual_knn`.

    Returns:
        (layer, sentence), float64, between 0 and 1: resample its second axis for an interval.

    Raises:
        TnkitError: for fewer than k + 1 sentences, or incompatible captures.

    >>> from tnkit.testing import captured
    >>> shared_neighbours(captured(), captured(), k=2).shape
    (4, 6)
    """
    k = whole_number("k", k, at_least=1)
    if clamp is not None:
        left, right = (_clamped(capture, site, clamp) for capture in (left, right))
    pairs = directions(left, right, site, centred=False, at_least=k + 1, one_width=False)
    return np.stack([((_neighbours(a, k) * _neighbours(b, k)).sum(dim=1) / k).numpy() for a, b in pairs])


def _clamped(captured: Activations, site: str, quantile: float) -> Activations:
    """A capture whose coordinates are limited to the mean over sentences of a quantile of their size."""
    if not 0 < quantile <= 1:
        raise TnkitError(f"clamp={quantile} must be a quantile above 0 and at most 1, such as 0.95, or None")
    vectors = states(captured, site)
    bound = float(np.quantile(vectors.abs().transpose(0, 1).flatten(1).numpy(), quantile, axis=1).mean())
    clamped: dict[str, Any] = {site: vectors.clamp(-bound, bound)}
    return replace(captured, **clamped)


def _neighbours(points: Float[Tensor, "sentence width"], k: int) -> Float[Tensor, "sentence sentence"]:
    """Whether sentence m is among the k nearest of n: 1, 0, or a share if it ties for the last places."""
    cosines = (points @ points.T).fill_diagonal_(-torch.inf)
    last = cosines.topk(k, dim=1).values[:, -1:]
    nearer = (cosines > last + TIE).double()
    equal = ((cosines - last).abs() <= TIE).double()
    free = k - nearer.sum(dim=1, keepdim=True)
    return nearer + equal * free / equal.sum(dim=1, keepdim=True)
