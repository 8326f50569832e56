"""How a `Patch` of states acts while a model runs: `Patcher`, which an `Ablation` makes for each patched layer.

What enters a block is changed by a hook before it, what leaves it by a hook after it, which captures apply too: they
read a block's output before forward hooks act.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tnkit.errors import TnkitError
from tnkit.interventions.patch import Patch
from tnkit.interventions.routed import Setter
from tnkit.models.experts import called_with, chosen_neurons, shape_of, slot_activations
from tnkit.models.reading import Sites
from tnkit.models.sessions import state_of
from tnkit.models.trace import first


class Patcher:
    """Patches the states of one layer.

    Args:
        ablation: that is active.
        patch: of states or contributions.
        layer: one of its layers.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model
    >>> model = tiny_model("gemma3")
    >>> own = tn.patch(model, ["Hi"], ["Hi"], site="contributions", layers=[1], progress=False)
    >>> with tn.Ablation(model, [tn.Intervention([(1, n) for n in range(48)]), own], tokens="last"):
    ...     restored = tn.capture(model, ["Hi"], progress=False)
    >>> torch.allclose(restored.post, tn.capture(model, ["Hi"], progress=False).post, atol=1e-5)
    True
    """

    def __init__(self, ablation: Setter, patch: Patch, layer: int) -> None:
        self.ablation, self.patch, self.layer, self.model = ablation, patch, layer, ablation.model
        self.block: nn.Module = self.model.blocks[layer]
        self.sites: Sites | None = self.model.sites[layer]
        self.shift: Tensor | None = None  # what is added to post, at the chosen tokens
        self.live: dict[str, Tensor] = {}  # the target run's own activations and scale there
        if patch.site == "contributions" and patch.neurons is not None:
            self.places = patch.neurons.by_layer()[layer]
            self.vectors = self.model.vectors_of(layer, self.places).float()
            self.gain = self.model.output_gain(layer)

    def hook(self, stack: ExitStack) -> None:
        """Register what patches it."""
        site, block = self.patch.site, self.block
        if site == "pre":
            stack.callback(block.register_forward_pre_hook(self._set_read, with_kwargs=True).remove)
            return
        if site == "mid" and self.sites and self.sites.mid:
            reader = block.get_submodule(self.sites.mid)
            stack.callback(reader.register_forward_pre_hook(self._set_read, with_kwargs=True).remove)
        elif site == "contributions" and self.sites:
            self._hook_activations(stack, self.sites)
        entry, state = (self.layer, self._post), state_of(self.model.lm._module)
        state.movers.append(entry)
        stack.callback(state.movers.remove, entry)
        stack.callback(block.register_forward_hook(self._set_post).remove)

    def _hook_activations(self, stack: ExitStack, sites: Sites) -> None:
        last_map, experts = self.block.get_submodule(sites.last_map), sites.experts
        if experts:
            stack.callback(last_map.register_forward_hook(self._note_routed, with_kwargs=True).remove)
            for name, hooked in (("shared", experts.shared), ("gate", experts.gate)):
                if hooked:
                    stack.callback(self.block.get_submodule(hooked).register_forward_hook(self._noting(name)).remove)
        else:
            stack.callback(last_map.register_forward_hook(self._noting("activations")).remove)
        if sites.norm:
            stack.callback(self.block.get_submodule(sites.norm).register_forward_hook(self._note_scale).remove)

    def _chosen(self, states: Tensor) -> Tensor:
        """The patched tokens, in the shape of the states."""
        return self.ablation.tokens_in(self.layer, states).to(states.device).reshape(states.shape[:-1])

    def _source(self, states: Tensor) -> Tensor | None:
        """The source's states for the chosen tokens of this pass, in their order; None where there are none."""
        chosen, sentences = self.ablation.tokens_in(self.layer, states), self.ablation.sentences
        if sentences is None or not chosen.any():
            return None
        running, counts = sentences[chosen.cpu()].unique_consecutive(return_counts=True)
        drawn = self.ablation.drawn or []
        given = [self.patch.values[self.layer][drawn[sentence]] for sentence in running.tolist()]
        if [*map(len, given)] != counts.tolist():
            raise TnkitError(
                f"this pass runs {counts.tolist()} tokens of its sentences, and the patch has {[*map(len, given)]}; "
                'run whole prompts, or patch tokens="last"'
            )
        return torch.cat(given).to(states.device)

    def _set_read(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the block, or its MLP branch, reads first, patched."""
        states = args[0] if args else next(iter(kwargs.values()))
        new, chosen = self._source(states), self._chosen(states)
        if self.patch.site == "pre":
            self.ablation.note(self.layer, int(chosen.sum()))
        else:
            self.shift = None if new is None else new - states[chosen].float()
        states = states if new is None else _replaced(states, chosen, new)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): states})

    def _noting(self, name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = first(output) if name == "gate" else args[0]
            self.live[name] = value[self._chosen(value)]

        return note

    def _note_scale(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if output.ndim == 1:  # a trace reads the norm's gain
            return
        chosen, multiplier = self._chosen(output), self.sites.multiplier if self.sites else 1.0
        gain = self.gain.to(output.device)
        before, after = args[0][chosen.reshape(args[0].shape[:-1])].float() * gain, output[chosen].float() * multiplier
        self.live["scale"] = (after * before).sum(-1) / (before * before).sum(-1).clamp_min(1e-38)

    def _note_routed(self, experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        slots = self.sites.experts.slots if self.sites and self.sites.experts else 0
        hidden, index, weight = called_with(experts, (*args, *kwargs.values()), slots)
        rows = self.ablation.tokens_in(self.layer, index).flatten().to(hidden.device).nonzero()[:, 0]
        kept = slot_activations(experts, hidden[rows], index[rows], weight[rows])
        for layer, edit in state_of(self.model.lm._module).editors:
            if layer == self.layer:
                kept, _ = edit(kept, index[rows], rows)
        count, index = shape_of(experts)[0], index[rows]
        self.live |= {"activations": kept, "experts": torch.where((index >= 0) & (index < count), index, -1)}

    def _own(self) -> Tensor:
        """Activation × scale of the patched neurons in the target run, at the chosen tokens."""
        live, places = self.live, torch.tensor(self.places, device=self.live["activations"].device)
        if "experts" in live:
            kept = live["activations"]
            if "shared" in live:
                share = torch.sigmoid(live["gate"]) if "gate" in live else 1
                kept = torch.cat([kept, (live["shared"] * share).to(kept.dtype)], dim=1)
            layout = (self.model.widths[self.layer], *self.model.experts_of(self.layer))
            own, _ = chosen_neurons(kept, live["experts"], layout, places)
        else:
            own = live["activations"][:, places]
        return own.float() * (live["scale"][:, None] if "scale" in live else 1)

    def _post(self, states: Tensor) -> Tensor:
        """What leaves the block, patched."""
        new, chosen = self._source(states), self._chosen(states)
        if new is None:
            return states
        if self.patch.site == "post":
            return _replaced(states, chosen, new)
        if self.patch.site == "contributions":
            difference = new - self._own().to(new.device)
            new = (difference @ self.vectors.to(new.device)) * self.gain.to(new.device)
        else:
            assert self.shift is not None
            new = self.shift
        return _replaced(states, chosen, states[chosen].float() + new.to(states.device))

    def _set_post(self, _: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        states = first(output)
        patched = self._post(states)
        self.ablation.note(self.layer, int(self._chosen(states).sum()))
        return (patched, *output[1:]) if isinstance(output, tuple) else patched


def _replaced(states: Tensor, chosen: Tensor, new: Tensor) -> Tensor:
    """A copy with other states at chosen tokens."""
    changed = states.clone()
    changed[chosen] = new.to(states.dtype)
    return changed
