"""Setting neurons in experts: `Routed`, which an `Ablation` makes for each layer of experts.

The activations of chosen neurons are computed again at the tokens that are to be set, and what their change adds is put
on the experts' output. A neuron is set only where its expert runs. Shared experts are set as any other MLP is, at the
input of their last linear map; where a gate multiplies their output, it counts as the router's weight does.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tnkit.models.experts import Experts, called_with, output_change, set_slots, shape_of, slot_activations
from tnkit.models.model import Model
from tnkit.models.reading import present
from tnkit.models.sessions import state_of
from tnkit.models.trace import changed

_Values = tuple[Tensor, Tensor | None, float | None]


@runtime_checkable
class Setter(Protocol):
    """What a layer needs to know of its ablation."""

    model: Model
    values: dict[int, _Values]
    chosen: Tensor | None
    drawn: list[int] | None
    sentences: Tensor | None

    def tokens_in(self, layer: int, states: Tensor) -> Tensor: ...

    def target(self, layer: int) -> Tensor | None: ...

    def note(self, layer: int, tokens: int, count: int | None = None) -> None: ...


class Routed:
    """Sets the neurons of one layer of experts.

    Args:
        ablation: whose neurons.
        layer: of experts.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model
    >>> model = tiny_model("qwen2-moe")
    >>> layer = next(layer for layer in range(model.n_layers) if model.experts_of(layer))
    >>> off = tn.Ablation(model, [(layer, neuron) for neuron in range(model.widths[layer])], tokens="last")
    >>> with off:
    ...     state = tn.capture(model, ["Hi"], keep=["mid", "post"], progress=False)
    >>> torch.allclose(state.mid[layer], state.post[layer], atol=1e-6)  # without its neurons, the layer writes nothing
    True
    >>> off.count < model.widths[layer]  # only those of experts that ran were set
    True
    """

    def __init__(self, ablation: Setter, layer: int) -> None:
        model, self.ablation, self.layer = ablation.model, ablation, layer
        self.experts: Any = model.module.get_submodule(model.map_path(layer))
        count, self.width = shape_of(self.experts)
        places, _, self.scale = ablation.values[layer]
        self.routed, self.shared = places < count * self.width, places >= count * self.width
        self.places, self.beyond = places[self.routed], places[self.shared] - count * self.width
        self.only = set((self.places // self.width).tolist())
        sites = model.sites[layer]
        self.slots = sites.experts.slots if sites and sites.experts else 0
        self.state = state_of(model.lm._module)

    def hook(self, stack: ExitStack) -> None:
        """Register what sets them."""
        if len(self.places):
            entry = self.layer, self.edit
            self.state.editors.append(entry)
            stack.callback(self.state.editors.remove, entry)
            stack.callback(self.experts.register_forward_hook(self._set_routed, with_kwargs=True).remove)
        sites = self.ablation.model.sites[self.layer]
        if len(self.beyond) and sites and sites.experts:
            self._hook_shared(stack, sites.experts)

    def edit(self, kept: Tensor, index: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """Activations, slot by slot, of some tokens of the pass under way, with the neurons set, and how many were.

        Args:
            kept, index: activations and experts of these tokens.
            rows: their places among all tokens of the pass, row by row.
        """
        chosen, target = self.ablation.chosen, self.ablation.target(self.layer)
        at = torch.arange(len(rows), device=rows.device)
        if chosen is not None:
            at = chosen.flatten().to(rows.device)[rows].nonzero()[:, 0]
        if target is not None:
            target = target[..., self.routed]
        if target is not None and self.ablation.sentences is not None:  # a row for each sentence
            target = target[self.ablation.sentences.flatten()[rows[at].cpu()].to(target.device)]
        changed_rows, count = set_slots(kept[at], index[at], self.width, self.places, (target, self.scale))
        kept = kept.clone()
        kept[at] = changed_rows
        return kept, count

    def _set_routed(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        hidden, index, weight = called_with(self.experts, (*args, *kwargs.values()), self.slots)
        chosen = self.ablation.tokens_in(self.layer, index)
        rows = chosen.flatten().to(hidden.device).nonzero()[:, 0]
        if not len(rows):  # no token of this pass is to be set
            self.ablation.note(self.layer, 0, 0)
            return output
        with present(self.experts):
            kept = slot_activations(self.experts, hidden[rows], index[rows], weight[rows], self.only)
        for layer, edit in self.state.editors:  # those of the ablations around this one come first
            if layer == self.layer and edit == self.edit:
                break
            if layer == self.layer:
                kept, _ = edit(kept, index[rows], rows)
        new, count = self.edit(kept, index[rows], rows)
        self.ablation.note(self.layer, len(rows), count)
        with present(self.experts):
            change = output_change(self.experts, new - kept, index[rows], self.only)
        output = output.clone()
        output[rows] = (output[rows].float() + change).to(output.dtype)
        return output

    def _hook_shared(self, stack: ExitStack, sites: Experts) -> None:
        block = self.ablation.model.blocks[self.layer]
        path = str(sites.shared)
        gate: Any = block.get_submodule(sites.gate) if sites.gate else None
        states: list[Tensor] = []

        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            states[:] = args[:1]

        def set_shared(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            chosen, target = self.ablation.tokens_in(self.layer, args[0]), self.ablation.target(self.layer)
            share: Any = 1
            if gate:
                with present(gate):
                    share = torch.sigmoid(nn.functional.linear(states[0], gate.weight, gate.bias))
            target = None if target is None else target[..., self.shared]
            before = args[0] * share
            after = changed(before, chosen, self.beyond, target, self.scale, self.ablation.sentences)
            self.ablation.note(self.layer, int(chosen.sum()), int(chosen.sum()) * len(self.beyond))
            return (torch.where(after == before, args[0], after / share), *args[1:])

        if gate:
            around = block.get_submodule(path.rpartition(".")[0])
            stack.callback(around.register_forward_pre_hook(note).remove)
        stack.callback(block.get_submodule(path).register_forward_pre_hook(set_shared).remove)
