"""Why an architecture has no reading, told by its parts (`unknown`) or seen from a pass (`seen_reason`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tnkit.errors import TnkitError


def unknown(block: nn.Module, attentions: Collection[str]) -> TnkitError:
    """The error for a block whose MLP is not found.

    Args:
        block: a decoder block.
        attentions: names of parts that read other tokens.

    >>> print(unknown(nn.Sequential(nn.Linear(2, 2)), ["0"]))
    the model has blocks (Sequential: 0) which have no MLP, and so no neurons; load a model with MLPs
    """
    children = ", ".join(name for name, _ in block.named_children())
    maps = [path for path, child in block.named_modules() if isinstance(child, nn.Linear)]
    if hasattr(block, "mamba_decoder"):  # Zamba's
        why = "whose MLP feeds a Mamba layer and is not added to the residual stream"
    elif maps and all(path.split(".")[0] in attentions for path in maps):
        why = "which have no MLP, and so no neurons"
    else:
        return TnkitError(
            f"{type(block).__name__} is not a decoder block that tnkit knows: it has {children}, but no last linear "
            "map of an MLP by a usual name (mlp.down_proj, mlp.c_proj, mlp.dense_4h_to_h, …)"
        )
    return TnkitError(f"the model has blocks ({type(block).__name__}: {children}) {why}; load a model with MLPs")


def seen_reason(module: nn.Module, block: nn.Module, ids: Sequence[int]) -> str | None:
    """What a block does that no reading allows for, as the end of a sentence; None where nothing of the kind is seen.

    Args:
        module: the whole model, in eval mode.
        block: one of its decoder blocks.
        ids: tokens to run it on.

    >>> from tnkit.testing import tiny_module
    >>> module = tiny_module("llama")
    >>> seen_reason(module, module.model.layers[0], [1, 2, 3]) is None
    True
    """
    runs: list[Any] = []
    normed: list[tuple[str, Tensor]] = []

    def keep(record: Callable[[Any], None]) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple | list) else output
            record(state.detach().clone() if isinstance(state, Tensor) else None)

        return hook

    with ExitStack() as stack, torch.no_grad():
        stack.callback(block.register_forward_hook(keep(runs.append)).remove)
        for path, child in block.named_modules():
            if "norm" in type(child).__name__.lower():
                record = keep(lambda state, path=path: normed.append((path, state)))  # type: ignore[misc]
                stack.callback(child.register_forward_hook(record).remove)
        module(input_ids=torch.tensor([list(ids)], device=next(module.parameters()).device), use_cache=False)
    if not runs:
        return "which does not run on text alone"
    if len(runs) > 1:
        return f"which runs {len(runs)} times in a pass, so that a neuron has no one activation"
    state = runs[0]
    if state is None:
        return "which returns no state"
    if state.ndim > 3:
        streams = max(state.shape[:-1].numel() // len(ids), 1)
        return (
            f"which carries {streams} residual streams beside each other, where a neuron does not add its value vector"
        )
    if state.numel() != len(ids) * state.shape[-1]:
        return f"which is given {state.shape[-2]} tokens where the text has {len(ids)}"
    last = next((path for path, value in reversed(normed) if torch.equal(value, state)), None)
    if last is not None:
        return f"which normalises the sum of state and MLP ({last}), so that the state is no sum of what neurons add"
    return None
