"""The sum over sentences of every neuron's score, in closed form.

With r = m (cosine) or m - C (euclidean) and c = a v, every neuron's move r + c has length |r| q, where

    q² = 1 + 2 β (r · v) / |r| + (β |v|)²,    β = a / |r|,

so that one matrix product serves all neurons of a layer. For centred scores, m and C are seen from an origin G: m - G
takes the place of m, and C - G that of C. Changes are computed as small differences, not as differences
of large numbers, which keeps float32 products exact to about 1e-7 of a contribution's size. Sums over sentences are in
float64.

These functions also run on a remote model's server, so they follow the rules in `tnkit.models.remote`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ROWS = 64  # sentences at a time, so that the (sentence, neuron) blocks stay in the processor's cache
_ROWS_ELSEWHERE = 1024  # on a GPU, which likes large blocks


def summed_scores(
    mid: Float[Tensor, "sentence hidden"],
    activations: Float[Tensor, "sentence neuron"],
    vectors: Float[Tensor, "neuron hidden"],
    centroid: Float[Tensor, "hidden"],
    *,
    distance: str,
    folds: Float[Tensor, "fold sentence"] | None = None,
) -> Float[Tensor, "sum neuron"]:
    """The sum over sentences of every neuron's score in one layer, float64, and under it those over folds of them.

    Products run in the dtype of `mid`. Contributions are activations × vectors. In float32 one may be up to 10^18 times
    as long as the state it is added to; beyond that the sum is not finite, which `ScoreAccumulator.result` refuses.

    Args:
        folds: 1 where a sentence is in a fold. Their sums are products in the dtype of `mid`, added up in float64.

    >>> mid, vectors, centroid = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.0, 1.0])
    >>> summed_scores(mid, torch.tensor([[1.0]]), vectors, centroid, distance="cosine")
    tensor([[0.7071]], dtype=torch.float64)
    """
    origin = mid if distance == "cosine" else mid - centroid
    length, unit = _length_and_unit(origin)
    _, goal = _length_and_unit(centroid)
    size = _length(vectors)
    slope, cosine = (vectors @ goal) / torch.where(size > 0, size, 1), unit @ goal
    nonzero = (length > 0).to(mid.dtype)
    length = torch.where(length > 0, length, 1)
    total = torch.zeros(len(vectors), dtype=torch.float64, device=mid.device)
    folds = mid.new_zeros(0, len(mid)) if folds is None else folds.to(mid)
    parts = torch.zeros(len(folds), len(vectors), dtype=torch.float64, device=mid.device)
    at_once = _ROWS if mid.device.type == "cpu" else _ROWS_ELSEWHERE
    for start in range(0, len(mid), at_once):
        rows = slice(start, start + at_once)
        alpha, growth, after = _moves(unit[rows], activations[rows], length[rows], nonzero[rows], vectors, size)
        if distance == "cosine":
            change = alpha.mul_(slope).sub_(growth.mul_(cosine[rows, None])).div_(after)
            change = torch.where(after > 0, change, -cosine[rows, None])
        else:
            change = growth.mul_(-length[rows, None])
        total += change.sum(dim=0, dtype=torch.float64)
        parts += folds[:, rows] @ change
    return torch.cat([total[None], parts])


def add_turns(
    mid: Float[Tensor, "sentence hidden"],
    activations: Float[Tensor, "sentence neuron"],
    vectors: Float[Tensor, "neuron hidden"],
    total: Float[Tensor, "fold neuron hidden"],
    folds: Int[Tensor, "sentence"],
) -> None:
    """Add to `total` how every neuron of a layer turns the states, (m + c) / |m + c| - m / |m|, summed over sentences.

    Times the direction of a centroid, this is the sum of cosine scores towards it. With u = m / |m| and a neuron's
    v / |v|, it is Σ (1/q - 1) u + Σ (β |v| / q) v / |v|: one more matrix product. The direction of a zero vector is 0.

    Args:
        total: in the dtype of `mid`, which products run in.
        folds: the row of `total` that each sentence is added to.

    >>> total, fold = torch.zeros(1, 1, 2), torch.tensor([0])
    >>> add_turns(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0]]), torch.tensor([[0.0, 1.0]]), total, fold)
    >>> total
    tensor([[[-0.2929,  0.7071]]])
    """
    length, unit = _length_and_unit(mid)
    size, along = _length_and_unit(vectors)
    nonzero = (length > 0).to(mid.dtype)
    length = torch.where(length > 0, length, 1)
    at_once = _ROWS if mid.device.type == "cpu" else _ROWS_ELSEWHERE
    groups = [(fold, *(folds == fold).nonzero()[:, 0].split(_ROWS_ELSEWHERE)) for fold in folds.unique().tolist()]
    for fold, members in ((fold, some.to(mid.device)) for fold, *parts in groups for some in parts):
        shrunk, pushed = mid.new_empty(len(members), len(vectors)), torch.zeros_like(size, dtype=torch.float64)
        for start in range(0, len(members), at_once):
            rows = members[start : start + at_once]
            alpha, growth, after = _moves(unit[rows], activations[rows], length[rows], nonzero[rows], vectors, size)
            shrunk[start : start + at_once] = torch.where(after > 0, growth.div_(-after), -1)
            pushed += torch.where(after > 0, alpha.div_(after), 0).sum(dim=0, dtype=torch.float64)
        total[fold].addmm_(shrunk.T, unit[members]).addcmul_(pushed.to(mid.dtype)[:, None], along)


def _moves(
    unit: Float[Tensor, "sentence hidden"],
    activations: Float[Tensor, "sentence neuron"],
    length: Float[Tensor, "sentence"],
    before: Float[Tensor, "sentence"],
    vectors: Float[Tensor, "neuron hidden"],
    size: Float[Tensor, "neuron"],
) -> tuple[Float[Tensor, "sentence neuron"], Float[Tensor, "sentence neuron"], Float[Tensor, "sentence neuron"]]:
    """β |v|, by how much q grows, and q after the move; `before` is q before it: 1, or 0 for a zero vector."""
    beta, before = activations / length[:, None], before[:, None]
    alpha = beta * size
    delta = (2 * unit @ vectors.T).mul_(beta).addcmul_(alpha, alpha)
    after = torch.add(delta, before, out=beta).clamp_min_(0).sqrt_()
    return alpha, delta.div_((after + before).clamp_min_(torch.finfo(unit.dtype).tiny)), after


def _length(vectors: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows"]:
    """Norms, without overflow or underflow."""
    norm = vectors.norm(dim=-1)
    if bool(((norm > 1e-15) & (norm < 1e15)).all()):
        return norm
    return _length_and_unit(vectors)[0]


def _length_and_unit(
    vectors: Float[Tensor, "*rows hidden"],
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows hidden"]]:
    """Norms, and the vectors divided by them; a zero vector stays zero."""
    largest = vectors.abs().amax(dim=-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1)
    norm = scaled.norm(dim=-1, keepdim=True)
    return (norm * largest)[..., 0], scaled / torch.where(norm > 0, norm, 1)


def sizes_written(
    vectors: Float[Tensor, "neuron hidden"], gain: Float[Tensor, "hidden"], _bias: Float[Tensor, "hidden"]
) -> Float[Tensor, "neuron"]:
    """The lengths of a layer's value vectors as they are written to the residual stream."""
    return (vectors.float() * gain).norm(dim=1)
