"""The MLP of the last block that a pass reads, run at the tokens that are read alone: `narrowed`.

Nothing reads what the other tokens become there. In a model of few layers that is much of a pass.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tnkit.models.hooks import hooks_of, is_foreign
from tnkit.models.reading import Sites
from tnkit.models.sessions import INTERRUPTS


def mlp_of(block: nn.Module, sites: Sites) -> nn.Module | None:
    """The module of a block that holds its neurons and reads nothing but their input; None where none is known to."""
    path = sites.last_map.rpartition(".")[0]
    inside = [name for name in sites.names if name != sites.last_map and f"{name}.".startswith(f"{path}.")]
    if not path or sites.experts or inside:
        return None
    mlp = block.get_submodule(path)
    hooks = (hook for child in mlp.modules() for _, hook in hooks_of("", child))
    return None if any(map(is_foreign, hooks)) else mlp


@contextmanager
@INTERRUPTS.unbroken
def narrowed(mlp: nn.Module, read: Int[Tensor, "sentence"], shape: torch.Size) -> Iterator[None]:
    """A context in which a module is given some tokens only, as one row; what it returns is 0 at the others.

    Args:
        mlp: from `mlp_of`.
        read: places of those tokens, counted through the rows.
        shape: rows and tokens that the model is given.

    >>> double = nn.Identity()
    >>> with narrowed(double, torch.tensor([2, 0]), torch.Size([1, 3])):
    ...     print(double(torch.tensor([[[1.0], [2.0], [3.0]]])).tolist())
    [[[1.0], [0.0], [3.0]]]
    """

    def some(value: Any) -> Any:
        given = isinstance(value, Tensor) and value.shape[:2] == shape
        return value.flatten(0, 1)[read.to(value.device)][None] if given else value

    def before(
        _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(some, args)), {name: some(value) for name, value in kwargs.items()}

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        whole = state.new_zeros(shape.numel(), state.shape[-1])
        whole[read.to(state.device)] = state[0]
        whole = whole.unflatten(0, shape)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    with mlp.register_forward_pre_hook(before, with_kwargs=True), mlp.register_forward_hook(after):
        yield
