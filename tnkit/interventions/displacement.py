"""How far a neuron set moves the residual stream, and random sets that move it as far: `displacement`.

displacement(model, ja, type1).norm(dim=1)             # by layer: what setting the set to zero takes away
equal_displacement(model, ja, type1, seed=0)           # as many others in each layer, which move it as far together
"""

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, whole_number
from tnkit.models.model import Model
from tnkit.provenance import check_made_with

_WITHIN = 0.05  # how near the length is to be, as a share of the set's
_SWEEPS = 30  # over a layer's members; most layers need fewer than ten


def displacement(model: Model, captured: Activations, neurons: NeuronSet) -> Float64[Tensor, "layer hidden"]:
    """The mean over sentences of what a set's neurons add to the residual stream together, layer by layer.

    d = Σ_i mean_n(s_n a_in) g ⊙ v_i over the layer's neurons i of the set, with activations a, the scale s and gain g
    of the branch's output norm, and value vectors v. Setting the set to zero moves the state by −d, with that norm's
    denominator as it was.

    Args:
        model: the model that was captured.
        captured: from `capture`, with `activations`.
        neurons: the set.

    Returns:
        (layer, hidden), float64, in units of the residual stream, on the CPU; 0 in layers without a member.

    Raises:
        TnkitError: for a capture of another model, or one that lacks a layer of the set.

    >>> from tnkit.testing import captured, tiny_model
    >>> displacement(tiny_model(), captured(), NeuronSet(((0, 5), (1, 2)), (4, 48))).norm(dim=1).count_nonzero().item()
    2
    """
    given = {layer: (members, amounts[members]) for layer, members, amounts in _written(model, captured, neurons)}
    moved = torch.zeros(model.n_layers, model.hidden_size, dtype=torch.float64)
    for layer, vector in model.ask_weights(_joint, given).items():
        moved[layer] = vector.cpu()
    return moved


def equal_displacement(
    model: Model, captured: Activations, neurons: NeuronSet, *, seed: int, more: bool = False
) -> NeuronSet:
    """A control: as many other neurons in each layer, drawn at random, that move the residual stream as far together.

    Neurons of one layer that are drawn at random rarely push the same way. So members are swapped, one after another,
    for random other neurons that bring the length of the layer's `displacement` nearer to the set's, until it is
    within 5 % or no swap helps. As many others may not reach it: where the set holds the neurons that push most, none
    do.

    Args:
        model: the model that was captured.
        captured: from `capture`, with `activations`.
        neurons: the set.
        seed: of the draw.
        more: where no swap helps, add the neurons that help most until it is reached; the control is then larger.

    Returns:
        The control; its provenance states the length reached in each layer, as a share of the set's, under "reached".

    Raises:
        TnkitError: as `displacement` does, and where a layer has too few other neurons.

    >>> from tnkit.testing import captured, tiny_model
    >>> some = NeuronSet(((0, 5), (1, 2)), (4, 48))
    >>> {*equal_displacement(tiny_model(), captured(), some, seed=0).by_layer()}
    {0, 1}
    """
    seed, given = whole_number("seed", seed), {}
    for layer, members, amounts in _written(model, captured, neurons):
        others = model.widths[layer] - len(members)
        if others < len(members):
            raise TnkitError(f"layer {layer} has {others} other neurons, too few for a control of {len(members)}")
        given[layer] = (members, amounts, seed * model.n_layers + layer, more)
    answers = model.ask_weights(_equally_far, given)
    pairs = tuple((layer, neuron) for layer, (drawn, _) in answers.items() for neuron in drawn)
    reached = {str(layer): share for layer, (_, share) in answers.items()}
    control = {"how": "equal displacement" + (", more neurons" if more else ""), "seed": seed, "reached": reached}
    provenance = {"control": control, "of": neurons.provenance}
    return replace(neurons, pairs=pairs, scores=(), provenance=provenance)


def _written(
    model: Model, captured: Activations, neurons: NeuronSet
) -> list[tuple[int, list[int], Float64[Tensor, "neuron"]]]:
    """Of each layer of a set: its members, and each neuron's mean activation × scale."""
    check_made_with(model, captured.provenance, "these captured states", states=True)
    kept, members = captured.require("activations", "scale").tensors(), neurons.by_layer()
    if missing := [layer for layer in members if layer not in captured.layers]:
        raise TnkitError(f"the set has neurons in layers {missing}, which were not captured; capture them")
    means = []
    for layer in members:
        scale = kept["scale"][captured.layers.index(layer)].double()
        added = captured.of_layer(layer).double() * scale[:, None]
        means.append((layer, members[layer], added.mean(dim=0)[: model.widths[layer]]))
    return means


# These two also run on a remote model's server, so they follow the rules in `tnkit.models.remote`.


def _joint(vectors: Tensor, gain: Tensor, _bias: Tensor, members: list[int], amounts: Tensor) -> Tensor:
    """The summed mean contributions of a layer's members."""
    return amounts.to(vectors.device) @ (vectors[members].double() * gain.double())


def _equally_far(
    vectors: Tensor,
    gain: Tensor,
    _bias: Tensor,
    members: list[int],
    amounts: Tensor,
    seed: int,
    more: bool,
) -> tuple[list[int], float]:
    """Other neurons of a layer whose summed mean contributions are as long, and how long as a share of the members'."""
    moves = amounts.to(vectors.device)[:, None] * (vectors.double() * gain.double())
    random, squares = torch.Generator().manual_seed(seed), moves.square().sum(dim=1)
    wanted = float(moves[members].sum(dim=0).norm())
    free = torch.ones(len(moves), dtype=torch.bool)
    free[members] = False
    others = free.nonzero()[:, 0]
    drawn = others[torch.randperm(len(others), generator=random)[: len(members)]].tolist()
    free[drawn] = False
    products = moves[drawn] @ moves.T  # of each drawn neuron with every neuron; kept, so that only swaps cost a product
    summed = products.sum(dim=0)
    swaps, sweeps = 1, 0
    while swaps and sweeps < _SWEEPS:
        swaps, sweeps = 0, sweeps + 1
        for place in torch.randperm(len(drawn), generator=random).tolist():
            square = float(summed[drawn].sum().clamp_min(0))
            gap = abs(square**0.5 - wanted)
            if gap <= _WITHIN * wanted:
                break
            rest = summed - products[place]
            left = square - float(summed[drawn[place]] + rest[drawn[place]])
            gaps = ((left + 2 * rest + squares).clamp_min(0).sqrt() - wanted).abs().cpu()
            nearer = ((gaps < gap) & free).nonzero()[:, 0]
            if len(nearer):
                chosen = int(nearer[torch.randint(len(nearer), (1,), generator=random)])
                free[drawn[place]], free[chosen] = True, False
                drawn[place], products[place], swaps = chosen, moves @ moves[chosen], swaps + 1
                summed = rest + products[place]
    while more and bool(free.any()):
        square = float(summed[drawn].sum().clamp_min(0))
        gaps = ((square + 2 * summed + squares).clamp_min(0).sqrt() - wanted).abs().cpu()
        chosen, gap = int(torch.where(free, gaps, torch.inf).argmin()), abs(square**0.5 - wanted)
        if gap <= _WITHIN * wanted or gaps[chosen] >= gap:
            break
        free[chosen] = False
        drawn.append(chosen)
        summed = summed + moves @ moves[chosen]
    reached = float(moves[drawn].sum(dim=0).norm())
    return sorted(drawn), reached / wanted if wanted else 1.0
