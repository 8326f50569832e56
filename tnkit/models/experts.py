"""Neurons inside the experts of a layer: who is sent to them, what they do there, and how their output is changed.

transformers keeps the experts of a layer in parameters of three axes, in one module. It is called with the tokens'
states, and for each of a token's `slots` with the number of an expert and the router's weight. From these three inputs
the activations of the chosen experts are computed again at the tokens that are wanted, whatever kernel ran them.

A neuron is numbered expert × width + index; shared experts, which run for every token, come after the others. An
activation here is counted with the router's weight, so that contribution = activation × value vector, and it is 0 where
the expert is not run. Kept are only the slots: (token, slots × width + shared), beside the experts' numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_SHARED = re.compile(r"shared.*(down_proj|output_linear|w2)$")  # last linear maps of shared experts
_WEIGHTS = {"gate_up_proj", "up_proj", "down_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj_bias"}


@dataclass(frozen=True)
class Experts:
    """What else is read in a block of experts, by name relative to it; `Sites.last_map` names the experts themselves.

    Attributes:
        shared: the last linear map of the shared experts, or None.
        gate: the module whose output, through a sigmoid, multiplies the shared experts', or None.
        shared_first: whether shared experts run before the others.
        slots: how many experts a token is sent to; 0 until the block has run.
    """

    shared: str | None = None
    gate: str | None = None
    shared_first: bool = False
    slots: int = 0


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the experts of a layer as transformers' `use_experts_implementation` makes them.

    >>> is_experts(nn.Linear(2, 2))
    False
    """
    down = getattr(module, "down_proj", None)
    plain = {name for name, _ in module.named_parameters()} <= _WEIGHTS and hasattr(module, "is_transposed")
    return plain and isinstance(down, Tensor) and down.ndim == 3 and not getattr(module, "has_post_expert_norm", False)


def experts_in(block: nn.Module) -> list[Experts]:
    """The ways to read a block of experts: shared ones may run after the others, or before."""
    named = dict(block.named_modules())
    shared = next((name for name in named if _SHARED.search(name) and isinstance(named[name], nn.Linear)), None)
    if shared is None:
        return [Experts()]
    gate = next((name for name in named if name.endswith("shared_expert_gate")), None)
    return [Experts(shared, gate, first) for first in (False, True)]


def weight_of(last_map: Any) -> Tensor:
    """The weight of a linear map, or of experts that of their last maps."""
    return last_map.down_proj if is_experts(last_map) else last_map.weight


def shape_of(module: Any) -> tuple[int, int]:
    """How many experts there are, and how many neurons each has."""
    return module.down_proj.shape[0], module.down_proj.shape[1 if module.is_transposed else 2]


def expert_vectors(module: Any, expert: int) -> Float[Tensor, "neuron hidden"]:
    """The value vectors of one expert."""
    down = module.down_proj.detach()[expert]
    return down if module.is_transposed else down.T


def all_vectors(module: Any) -> Float[Tensor, "neuron hidden"]:
    """The value vectors of all experts of a layer."""
    down = module.down_proj.detach()
    return (down if module.is_transposed else down.transpose(1, 2)).flatten(0, 1)


def slot_activations(
    module: Any,
    hidden: Float[Tensor, "token hidden"],
    index: Int[Tensor, "token slot"],
    weight: Float[Tensor, "token slot"],
    only: Collection[int] | None = None,
) -> Float[Tensor, "token place"]:
    """Router weight × activation of the neurons of each token's experts, slot by slot.

    Args:
        module: the experts.
        hidden, index, weight: what it is called with.
        only: compute these experts alone, and leave 0 in other slots.
    """
    count, width = shape_of(module)
    kept = hidden.new_zeros(*index.shape, width, dtype=torch.promote_types(hidden.dtype, weight.dtype))
    name = "gate_up_proj" if module.has_gate else "up_proj"
    up, bias = getattr(module, name).detach(), getattr(module, f"{name}_bias", None)
    for expert in index.unique().tolist():
        if not 0 <= expert < count or (only is not None and expert not in only):  # a number beyond is no expert
            continue
        rows, slots = torch.where(index == expert)
        state = hidden[rows] @ (up[expert] if module.is_transposed else up[expert].T)
        if bias is not None:
            state = state + bias.detach()[expert]
        state = module._apply_gate(state) if module.has_gate else module.act_fn(state)
        kept[rows, slots] = (state * weight[rows, slots][:, None]).to(kept.dtype)
    return kept.flatten(1)


def slot_bias(
    module: Any, index: Int[Tensor, "token slot"], weight: Float[Tensor, "token slot"]
) -> Float[Tensor, "token hidden"] | None:
    """What the biases of the chosen experts' last maps add, None without any."""
    bias, count = getattr(module, "down_proj_bias", None), shape_of(module)[0]
    if bias is None:
        return None
    weight = torch.where((index >= 0) & (index < count), weight, 0)
    return torch.einsum("ts,tsh->th", weight.float(), bias.detach()[index.clamp(0, count - 1)].float())


def spread(
    kept: Float[Tensor, "token place"], experts: Int[Tensor, "token slot"], layout: Sequence[int]
) -> Float[Tensor, "token neuron"]:
    """Activations of all neurons of a layer, 0 where an expert was not run.

    Args:
        kept: slot by slot, then shared, then columns that stand for nothing.
        experts: the number of the expert in each slot, negative where there is none.
        layout: numbers of neurons, of experts, and of neurons in an expert.

    >>> spread(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1]]), (5, 2, 2)).tolist()
    [[0.0, 0.0, 1.0, 2.0, 3.0]]
    """
    neurons, count, width = layout
    slots = experts.shape[1]
    whole = kept.new_zeros(len(kept), count + 1, width)
    places = torch.where(experts < 0, count, experts).long()  # the last one is thrown away
    whole[torch.arange(len(kept), device=kept.device)[:, None], places] = kept[:, : slots * width].unflatten(
        1, (slots, width)
    )
    shared = neurons - count * width
    return torch.cat([whole[:, :count].flatten(1), kept[:, slots * width : slots * width + shared]], dim=1)


def chosen_neurons(
    kept: Float[Tensor, "token place"],
    experts: Int[Tensor, "token slot"],
    layout: Sequence[int],
    places: Int[Tensor, "neuron"],
) -> tuple[Float[Tensor, "token neuron"], Tensor]:
    """Activations of some neurons of a layer, and where they run; the arguments are those of `spread`.

    >>> chosen_neurons(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1]]), (5, 2, 2), torch.tensor([0, 3, 4]))
    (tensor([[0., 2., 3.]]), tensor([[False,  True,  True]]))
    """
    _, count, width = layout
    slots, routed = experts.shape[1], places < count * width
    hit = (experts[:, :, None] == (places // width)) & routed  # (token, slot, neuron)
    columns = torch.arange(slots, device=places.device)[:, None] * width + places % width
    values = (kept[:, torch.where(routed, columns, 0)] * hit).sum(dim=1)
    shared = kept[:, torch.where(routed, 0, places - (count - slots) * width)]
    return torch.where(routed, values, shared), hit.any(dim=1) | ~routed


def set_slots(
    kept: Float[Tensor, "token place"],
    experts: Int[Tensor, "token slot"],
    width: int,
    places: Int[Tensor, "neuron"],
    change: tuple[Float[Tensor, "*token neuron"] | None, float | None],
) -> tuple[Float[Tensor, "token place"], int]:
    """A copy in which routed neurons are set where they run, and how many (token, neuron) values that were.

    Args:
        kept, experts: as in `spread`.
        width: neurons in an expert.
        places: of routed neurons.
        change: their target, alike for all tokens or for each, and the scale, as `tnkit.models.trace.changed` has them.
    """
    target, scale = change
    tokens, slots, which = torch.where(experts[:, :, None] == (places // width))
    at = tokens, slots * width + places[which] % width
    new = kept[at] * (0 if scale is None else scale)
    if target is not None:
        added = target.to(kept.device)[which] if target.ndim == 1 else target.to(kept.device)[tokens, which]
        new = added if scale is None else new + added
    kept = kept.clone()
    kept[at] = new.to(kept.dtype)
    return kept, len(which)


def output_change(
    module: Any, difference: Float[Tensor, "token place"], index: Int[Tensor, "token slot"], only: Collection[int]
) -> Float[Tensor, "token hidden"]:
    """What the experts' output changes by where activations change, float32."""
    width = shape_of(module)[1]
    parts = difference.unflatten(1, (-1, width))
    change: Any = 0
    for expert in only:
        rows, slots = torch.where(index == expert)
        added = parts[rows, slots].float() @ expert_vectors(module, expert).float()
        whole = added.new_zeros(len(index), added.shape[1])
        change = change + whole.index_add_(0, rows, added)
    return change
