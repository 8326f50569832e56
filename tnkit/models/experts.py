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
        slots: how many experts a token is sent to; not sure before the block has run.
    """

    shared: str | None = None
    gate: str | None = None
    shared_first: bool = False
    slots: int = 0


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the experts of a layer as transformers' `use_experts_implementation` makes them.

    Llama 4's are of another kind: the router multiplies what they read, by 0 for all but the chosen ones.

    >>> is_experts(nn.Linear(2, 2))
    False
    """
    down = getattr(module, "down_proj", None)
    plain = {name for name, _ in module.named_parameters()} <= _WEIGHTS
    plain &= hasattr(module, "is_transposed") or _reads_products(module)
    return plain and isinstance(down, Tensor) and down.ndim == 3 and not getattr(module, "has_post_expert_norm", False)


def experts_in(block: nn.Module) -> list[Experts]:
    """The ways to read a block of experts: shared ones may run after the others, or before."""
    named = dict(block.named_modules())
    shared = next((name for name in named if _SHARED.search(name) and isinstance(named[name], nn.Linear)), None)
    above = next(name for name in named if is_experts(named[name])).rpartition(".")[0]
    slots = int(getattr(named.get(above), "top_k", 0))  # what a call tells, but for Llama 4
    if shared is None:
        return [Experts(slots=slots)]
    gate = next((name for name in named if name.endswith("shared_expert_gate")), None)
    return [Experts(shared, gate, first, slots) for first in (False, True)]


def weight_of(last_map: Any) -> Any:
    """The weight of a linear map, None where it is in other parameters, or of experts that of their last maps."""
    return last_map.down_proj if is_experts(last_map) else getattr(last_map, "weight", None)


def shape_of(module: Any) -> tuple[int, int]:
    """How many experts there are, and how many neurons each has."""
    return module.down_proj.shape[0], module.down_proj.shape[1 if is_transposed(module) else 2]


def is_transposed(module: Any) -> bool:
    """Whether value vectors are rows of the experts' last maps."""
    return getattr(module, "is_transposed", True)


def _reads_products(module: Any) -> bool:
    return type(module).__name__ == "Llama4TextExperts"


def called_with(module: Any, given: Sequence[Tensor], slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """The states that each token's experts read, those experts' numbers, and the router's weights, (token, slot).

    Args:
        module: the experts.
        given: what it is called with.
        slots: how many experts a token is sent to, where that does not tell.

    Returns:
        States (token, hidden), or (token, slot, hidden) where the router multiplies them.
    """
    if not _reads_products(module):
        hidden, index, weight = given
        return hidden.reshape(-1, hidden.shape[-1]), index.flatten(0, -2), weight.flatten(0, -2)
    states = given[0].reshape(shape_of(module)[0], -1, given[0].shape[-1]).transpose(0, 1)
    sizes, index = states.abs().amax(dim=2).topk(slots, dim=1)
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states[rows, index], torch.where(sizes > 0, index, -1), torch.ones_like(sizes)


def expert_vectors(module: Any, expert: int) -> Float[Tensor, "neuron hidden"]:
    """The value vectors of one expert."""
    down = module.down_proj.detach()[expert]
    return down if is_transposed(module) else down.T


def all_vectors(module: Any) -> Float[Tensor, "neuron hidden"]:
    """The value vectors of all experts of a layer."""
    down = module.down_proj.detach()
    if not is_transposed(module):
        columns = down.transpose(1, 2)
        down = torch.empty_like(columns, memory_format=torch.contiguous_format)
        for rows, expert in zip(down, columns, strict=True):  # all at once takes 1.5 times as long
            rows.copy_(expert)
    return down.flatten(0, 1)


def some_vectors(module: Any, neurons: Sequence[int]) -> Float[Tensor, "neuron hidden"]:
    """The value vectors of some neurons, numbered expert × width + index."""
    down, places = module.down_proj.detach(), torch.tensor(list(neurons), device=module.down_proj.device)
    experts, index = places // shape_of(module)[1], places % shape_of(module)[1]
    return down[experts, index] if is_transposed(module) else down[experts, :, index]


def slot_activations(
    module: Any,
    hidden: Float[Tensor, "token *slot hidden"],
    index: Int[Tensor, "token slot"],
    weight: Float[Tensor, "token slot"],
    only: Collection[int] | None = None,
) -> Float[Tensor, "token place"]:
    """Router weight × activation of the neurons of each token's experts, slot by slot.

    Args:
        module: the experts.
        hidden, index, weight: as `called_with` has them.
        only: compute these experts alone, and leave 0 in other slots.
    """
    (count, width), flat = shape_of(module), index.flatten()
    kept = hidden.new_zeros(len(flat), width, dtype=torch.promote_types(hidden.dtype, weight.dtype))
    wanted = (flat >= 0) & (flat < count)  # a number beyond is no expert
    if only is not None:
        wanted &= torch.isin(flat, torch.tensor(sorted(only), dtype=flat.dtype, device=flat.device))
    order = wanted.nonzero()[:, 0]
    order = order[flat[order].argsort(stable=True)]
    experts = flat[order]
    gated = getattr(module, "has_gate", True)
    name = "gate_up_proj" if gated else "up_proj"
    up, bias = getattr(module, name).detach(), getattr(module, f"{name}_bias", None)
    states = hidden[order // index.shape[1]] if hidden.ndim == 2 else hidden.flatten(0, 1)[order]
    parts = states.split(experts.bincount(minlength=count).tolist())
    state = torch.cat(
        [
            part @ (up[expert] if is_transposed(module) else up[expert].T)
            for expert, part in enumerate(parts)
            if len(part)
        ]
        or [states.new_zeros(0, (1 + gated) * width)]
    )
    if bias is not None:
        state = state + bias.detach()[experts]
    if gated and not hasattr(module, "_apply_gate"):
        gate, state = state.chunk(2, dim=-1)
        state = state * module.act_fn(gate)
    else:
        state = module._apply_gate(state) if gated else module.act_fn(state)
    kept[order] = (state * weight.flatten()[order, None]).to(kept.dtype)
    return kept.reshape(len(index), index.shape[1] * width)


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
