"""The sum of scores of neurons in experts: each expert over the sentences that are sent to it, nothing for the others.

A neuron of an expert that is not run writes nothing, so its score in that sentence is exactly 0. Shared experts are
scored over all sentences, as the neurons of any other MLP are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit.detection.closed_form import summed_scores


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
    slots = experts.shape[1] if count else 0
    origin, centroid, experts = origin.to(device), centroid.to(device), experts.to(device)
    states = mid.to(device).float() - origin
    kept = activations.to(device).float() * scale.to(device)[:, None]
    folds = states.new_zeros(0, len(states)) if folds is None else folds.to(device)
    total = torch.full((1 + len(folds), size[0]), torch.nan, dtype=torch.float64, device=device)
    total[:, :neurons] = 0
    sent = torch.zeros(size[1], dtype=torch.float64, device=device)

    def score(rows: Tensor, columns: Tensor, first: int, last: int) -> None:
        total[:, first:last] = summed_scores(
            states[rows],
            columns,
            vectors[first:last].float() * gain,
            centroid - origin,
            distance=distance,
            folds=folds[:, rows],
        )

    for expert in experts.unique().tolist() if count else ():
        if expert >= 0:
            rows, chosen = torch.where(experts == expert)
            sent[expert] = len(rows)
            score(
                rows,
                kept[:, : slots * width].unflatten(1, (slots, width))[rows, chosen],
                expert * width,
                (expert + 1) * width,
            )
    shared = neurons - count * width
    if shared:
        score(torch.arange(len(states), device=device), kept[:, slots * width :][:, :shared], count * width, neurons)
    return torch.cat([total.flatten(), sent])
