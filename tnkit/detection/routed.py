"""The sum of scores of neurons in experts: each expert over the sentences that are sent to it, nothing for the others.

A neuron of an expert that is not run writes nothing, so its score in that sentence is exactly 0. Shared experts are
scored over all sentences, as the neurons of any other MLP are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit.detection.closed_form import _length, _length_and_unit, summed_scores

_PAIRS = 512  # (sentence, slot) pairs at a time, so that the (pair, neuron) blocks stay in the processor's cache
_PAIRS_ELSEWHERE = 16_384  # on a GPU, which likes large blocks


def expert_total(
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
    experts: Int[Tensor, "sentence slot"],
    layout: tuple[int, ...],
    size: tuple[int, int],
) -> Float[Tensor, "column"]:
    """The summed scores in one layer, then those of folds, then how many sentences each expert had.

    Args:
        experts: the expert in each slot of a sentence, as a capture keeps them.
        layout: numbers of neurons, of experts and of neurons in an expert; of the first alone without experts.
        size: how many neurons and experts the result has room for; neurons that the layer lacks are NaN.

    >>> mid, ones, kept = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2), torch.ones(2, 1)
    >>> sent = torch.tensor([[0], [0]])  # both sentences to the first of two experts of one neuron each
    >>> given = torch.eye(2), ones, 0 * ones, mid, kept, ones, torch.tensor([1.0, 0.0]), 0 * ones, None, "euclidean"
    >>> expert_total(*given, sent, (2, 2, 1), (2, 2)).tolist()[1:]  # the other expert's neuron, and how often each ran
    [0.0, 2.0, 0.0]
    """
    device = vectors.device
    neurons, count, width = layout if len(layout) > 1 else (layout[0], 0, 0)
    routed = (experts.shape[1] if count else 0) * width
    origin, centroid, experts = origin.to(device), centroid.to(device), experts.to(device)
    states = mid.to(device).float() - origin
    kept = activations.to(device).float() * scale.to(device)[:, None]
    folds = states.new_zeros(0, len(states)) if folds is None else folds.to(device)
    total = torch.full((1 + len(folds), size[0]), torch.nan, dtype=torch.float64, device=device)
    sent = torch.zeros(size[1], dtype=torch.float64, device=device)
    if count:
        slots, of_experts = kept[:, :routed].unflatten(1, (-1, width)), vectors[: count * width]
        summed, sent[:count] = expert_scores(
            states,
            slots,
            experts,
            of_experts.unflatten(0, (count, width)),
            gain,
            centroid - origin,
            distance=distance,
            folds=folds,
        )
        total[:, : count * width] = summed.flatten(1)
    if shared := neurons - count * width:
        total[:, count * width : neurons] = summed_scores(
            states,
            kept[:, routed : routed + shared],
            vectors[count * width :].float() * gain,
            centroid - origin,
            distance=distance,
            folds=folds,
        )
    return torch.cat([total.flatten(), sent])


def expert_scores(
    states: Float[Tensor, "sentence hidden"],
    activations: Float[Tensor, "sentence slot neuron"],
    experts: Int[Tensor, "sentence slot"],
    vectors: Float[Tensor, "expert neuron hidden"],
    gain: Float[Tensor, "hidden"],
    centroid: Float[Tensor, "hidden"],
    *,
    distance: str,
    folds: Float[Tensor, "fold sentence"],
) -> tuple[Float[Tensor, "sum expert neuron"], Float[Tensor, "expert"]]:
    """`summed_scores` of each expert over the sentences that are sent to it, and how many those are, float64.

    (sentence, slot) pairs are sorted by expert, and the formula is computed for the pairs of many experts at once;
    what an expert costs by itself is one matrix product, with the centroid's direction as its last row.

    Args:
        states, centroid: as they are seen from the origin, float32.
        activations: what is multiplied with gain ⊙ value vector, float32.
        experts: the expert in each slot, negative where there is none.

    >>> states, to_second = torch.tensor([[1.0, 0.0]]), torch.tensor([[1]])
    >>> given = states, torch.ones(1, 1, 1), to_second, torch.eye(2)[:, None], torch.ones(2), torch.tensor([0.0, 1.0])
    >>> summed, sent = expert_scores(*given, distance="cosine", folds=torch.zeros(0, 1))
    >>> summed.flatten(), sent
    (tensor([0.0000, 0.7071], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """
    (count, width), device = vectors.shape[:2], states.device
    length, unit = _length_and_unit(states if distance == "cosine" else states - centroid)
    _, goal = _length_and_unit(centroid)
    cosine, before = unit @ goal, (length > 0).to(states.dtype)
    length, goal, doubled = torch.where(length > 0, length, 1), goal[None], 2 * unit
    sentence, slot = torch.where(experts >= 0)
    number, order = experts[sentence, slot].long().sort(stable=True)
    sentence, slot, sent = sentence[order], slot[order], number.bincount(minlength=count)
    total = torch.zeros(1 + len(folds), count, width, dtype=torch.float64, device=device)
    first, written = 0, states.new_empty(width, states.shape[1])  # one expert's, in the same memory
    for block in _blocks(sent.tolist(), _PAIRS if device.type == "cpu" else _PAIRS_ELSEWHERE):
        sizes = [pairs for _, pairs in block]
        pairs = slice(first, first := first + sum(sizes))
        rows, which = (
            sentence[pairs],
            torch.arange(len(block), device=device).repeat_interleave(torch.tensor(sizes, device=device)),
        )
        products, size, slope = [], [], []
        for (expert, _), states_sent in zip(block, doubled[rows].split(sizes), strict=True):
            torch.mul(vectors[expert], gain, out=written)
            product = torch.cat([states_sent, goal]) @ written.T
            products.append(product[:-1])
            slope.append(product[-1])
            size.append(_length(written))
        lengths = torch.stack(size)
        slopes = torch.stack(slope) / torch.where(lengths > 0, lengths, 1)
        beta, start = activations[rows, slot[pairs]] / length[rows, None], before[rows, None]
        alpha = beta * lengths[which]
        delta = torch.cat(products).mul_(beta).addcmul_(alpha, alpha)
        after = torch.add(delta, start, out=beta).clamp_min_(0).sqrt_()
        growth = delta.div_((after + start).clamp_min_(torch.finfo(states.dtype).tiny))
        if distance == "cosine":
            change = alpha.mul_(slopes[which]).sub_(growth.mul_(cosine[rows, None])).div_(after)
            change = torch.where(after > 0, change, -cosine[rows, None])
        else:
            change = growth.mul_(-length[rows, None])
        for (expert, _), part, members in zip(
            block, change.split(sizes), folds[:, rows].split(sizes, dim=1), strict=True
        ):
            total[0, expert] += part.sum(dim=0, dtype=torch.float64)
            total[1:, expert] += members @ part
    return total, sent.double()


def _blocks(sent: Sequence[int], at_once: int) -> Iterator[list[tuple[int, int]]]:
    """Experts with how many of their pairs are next, so many pairs at a time.

    >>> list(_blocks([2, 0, 5], 4))
    [[(0, 2), (2, 2)], [(2, 3)]]
    """
    block, room = [], at_once
    for expert, left in enumerate(sent):
        while left:
            taken = min(left, room)
            block.append((expert, taken))
            left, room = left - taken, room - taken
            if not room:
                yield block
                block, room = [], at_once
    if block:
        yield block
