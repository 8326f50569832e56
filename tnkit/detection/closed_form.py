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

from collections.abc import Mapping

import torch
from jaxtyping import Float
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
        beta, before = activations[rows] / length[rows, None], nonzero[rows, None]  # q before the move: 1, or 0
        alpha = beta * size
        delta = (2 * unit[rows] @ vectors.T).mul_(beta).addcmul_(alpha, alpha)
        after = torch.add(delta, before, out=beta).clamp_min_(0).sqrt_()
        growth = delta.div_((after + before).clamp_min_(torch.finfo(mid.dtype).tiny))
        if distance == "cosine":
            change = alpha.mul_(slope).sub_(growth.mul_(cosine[rows, None])).div_(after)
            change = torch.where(after > 0, change, -cosine[rows, None])
        else:
            change = growth.mul_(-length[rows, None])
        total += change.sum(dim=0, dtype=torch.float64)
        parts += folds[:, rows] @ change
    return torch.cat([total[None], parts])


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


def layer_totals(
    centroids: Mapping[int, Tensor],
    origins: Mapping[int, Tensor],
    distance: str,
    layer: int,
    sites: Mapping[str, Tensor],
    vectors: Tensor,
    gain: Tensor,
    bias: Tensor,
) -> Tensor | None:
    """A batch's summed scores in one layer, None for a layer without a centroid; it runs where the model does."""
    if layer not in centroids:
        return None
    mid, activations, scale = sites["mid"], sites["activations"], sites["scale"]
    return layer_total(vectors, gain, bias, mid, activations, scale, centroids[layer], origins[layer], None, distance)


def layer_total(
    vectors: Float[Tensor, "neuron hidden"],
    gain: Float[Tensor, "hidden"],
    _bias: Float[Tensor, "hidden"],
    mid: Float[Tensor, "sentence hidden"],
    activations: Float[Tensor, "sentence place"],
    scale: Float[Tensor, "sentence"],
    centroid: Float[Tensor, "hidden"],
    origin: Float[Tensor, "hidden"],
    folds: Float[Tensor, "fold sentence"] | None,
    distance: str,
) -> Float[Tensor, "column"]:
    """The summed scores in one layer, and then those of folds, from what a pass keeps and the layer's weights.

    States and centroid are seen from the origin: zeros for raw scores. Neurons that the layer lacks are NaN.
    """
    device = vectors.device
    origin = origin.to(device)
    missing = activations.shape[1] - len(vectors)  # columns of a layer with fewer neurons than the widest
    summed = summed_scores(
        mid.to(device).float() - origin,
        activations[:, : len(vectors)].to(device).float() * scale.to(device)[:, None],
        vectors.float() * gain,
        centroid.to(device) - origin,
        distance=distance,
        folds=folds,
    )
    return (torch.nn.functional.pad(summed, (0, missing), value=torch.nan) if missing else summed).flatten()
