"""Factors on neurons' activations while a model runs, through which gradients flow: `Gates`.

with Gates(model, layers, 1.0, last) as gates:
    states = ...                                   # of a forward pass with autograd
gates.gradients(states, cotangents, [])            # (neuron,) for each layer
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tnkit.models.experts import called_with, output_change, shape_of, slot_activations, spread
from tnkit.models.model import Model


class Gates:
    """Multiplies each neuron's activation by a factor, one for each sentence and neuron.

    Args:
        model: from `load_model`.
        layers: whose neurons.
        alpha: the factor.
        last: the place of the token in each sentence where they are multiplied; None is every token.
        frozen: whether the branch's output norm divides by what it would without the factors, so that contributions
            are multiplied as activations are; otherwise it undoes a factor that all have in common.

    >>> from tnkit.testing import tiny_model
    >>> model, ids = tiny_model(), torch.tensor([[256, 72, 105]])
    >>> with Gates(model, [1], 1.0, torch.tensor([2])) as gates:
    ...     logits = model.module(ids).logits[:, -1]
    >>> gates.gradients(logits, torch.ones_like(logits), [])[0].shape
    torch.Size([48])
    """

    def __init__(
        self, model: Model, layers: Sequence[int], alpha: float, last: Tensor | None, *, frozen: bool = False
    ) -> None:
        self.frozen = frozen
        self.model, self.layers, self.alpha, self.last = model, tuple(layers), alpha, last
        self.factors: dict[tuple[int, str], Tensor] = {}
        self.experts: dict[int, Tensor] = {}
        self.ungated: dict[int, Tensor] = {}  # what the last map makes of activations without factors
        self._stack = ExitStack()

    def __enter__(self) -> Gates:
        with ExitStack() as stack:
            for layer in self.layers:
                block = self.model.blocks[layer]
                sites = self.model.sites[layer]
                assert sites is not None
                last_map: nn.Module | None = block.get_submodule(sites.last_map)
                if sites.norm and self.frozen:
                    norm, gain = block.get_submodule(sites.norm), self.model.output_gain(layer) / sites.multiplier
                    stack.callback(norm.register_forward_hook(self._linear(layer, gain)).remove)
                if sites.experts:
                    routed = block.get_submodule(sites.last_map)
                    stack.callback(routed.register_forward_hook(self._routed(layer), with_kwargs=True).remove)
                    last_map = block.get_submodule(sites.experts.shared) if sites.experts.shared else None
                if last_map is not None:
                    stack.callback(last_map.register_forward_pre_hook(self._dense(layer)).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _factor(self, key: tuple[int, str], like: Tensor, rows: int, width: int) -> Tensor:
        shape = (rows, width)
        self.factors[key] = torch.full(shape, self.alpha, dtype=like.dtype, device=like.device, requires_grad=True)
        return self.factors[key]

    def _dense(self, layer: int) -> Any:
        def gate(last_map: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            states = args[0]
            if self.frozen:
                self.ungated[layer] = last_map.forward(states)
            width, rows = states.shape[-1], len(self.last) if self.last is not None else None
            if rows is None:  # whole sentences: states are (sentence, token, neuron)
                return (states * self._factor((layer, "dense"), states, len(states), width)[:, None], *args[1:])
            factor, flat = self._factor((layer, "dense"), states, rows, width), states.reshape(rows, -1, width)
            gated = torch.where(self._here(flat)[..., None], flat * factor[:, None], flat)
            return (gated.reshape(states.shape), *args[1:])

        return gate

    def _linear(self, layer: int, gain: Tensor) -> Any:
        def pass_on(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if output.ndim == 1:  # the norm's gain is being read
                return output
            by, ungated = gain.to(output.device, output.dtype), self.ungated.pop(layer)
            before, after = ungated * by, norm.forward(ungated)
            scale = (after * before).sum(-1, keepdim=True) / (before * before).sum(-1, keepdim=True).clamp_min(1e-38)
            linear = args[0] * by * scale
            if self.last is None:
                return linear
            return torch.where(self._here(output)[..., None], linear, output)

        return pass_on

    def _here(self, states: Tensor) -> Tensor:
        """Which tokens of (sentence, token, width) states are multiplied."""
        assert self.last is not None
        return torch.arange(states.shape[1], device=states.device) == self.last.to(states.device)[:, None]

    def _routed(self, layer: int) -> Any:
        sites = self.model.sites[layer]
        slots = sites.experts.slots if sites and sites.experts else 0

        def gate(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            hidden, index, weight = called_with(experts, (*args, *kwargs.values()), slots)
            assert self.last is not None
            tokens = len(index) // len(self.last)
            rows = torch.arange(len(self.last), device=hidden.device) * tokens + self.last.to(hidden.device)
            index = index[rows]
            kept = slot_activations(experts, hidden[rows], index, weight[rows])
            factor = self._factor((layer, "routed"), kept, *kept.shape)
            count = shape_of(experts)[0]
            self.experts[layer] = torch.where((index >= 0) & (index < count), index, -1)
            run = sorted({*self.experts[layer].flatten().tolist()} - {-1})
            change = output_change(experts, kept * (factor - 1), self.experts[layer], run)
            flat = output.reshape(-1, output.shape[-1])
            return flat.index_add(0, rows, change.to(output.dtype)).reshape(output.shape)

        return gate

    def gradients(self, states: Tensor, cotangents: Tensor, total: list[Tensor]) -> list[Tensor]:
        """The gradient for each neuron, summed over sentences, added to totals of other batches.

        Args:
            states: what the pass made.
            cotangents: the gradient of the measure with respect to them.
            total: of batches before this one, or none.

        Returns:
            For each layer (neuron,), float64, on the CPU.
        """
        keys = list(self.factors)
        found = dict(zip(keys, torch.autograd.grad(states, list(self.factors.values()), cotangents), strict=True))
        rows = []
        for layer in self.layers:
            dense = found.get((layer, "dense"))
            if (routed := found.get((layer, "routed"))) is None:
                assert dense is not None
                rows.append(dense.double().sum(dim=0).cpu())
                continue
            kept = routed if dense is None else torch.cat([routed, dense.to(routed.dtype)], dim=1)
            layout = (self.model.widths[layer], *self.model.experts_of(layer))
            rows.append(spread(kept, self.experts[layer], layout).double().sum(dim=0).cpu())
        return [row + (total[place] if total else 0) for place, row in enumerate(rows)]
