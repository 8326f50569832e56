"""Blocks that run only once: `recorded` keeps what one returned, and `skipped` hands it on in place of others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from tnkit.models.model import Model


@contextmanager
def recorded(model: Model, layer: int, kept: list[Any]) -> Iterator[None]:
    """A context in which what a block returns is appended to a list, before hooks change it.

    >>> import torch
    >>> from tnkit.testing import tiny_model
    >>> model, kept, ids = tiny_model("llama"), [], torch.tensor([[256, 7]])
    >>> with torch.no_grad(), recorded(model, 1, kept):
    ...     whole = model.module(ids, use_cache=False).logits
    >>> with torch.no_grad(), skipped(model, range(2), kept):
    ...     torch.equal(model.module(ids, use_cache=False).logits, whole)
    True
    """
    block = model.blocks[layer]
    forward = block.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        kept.append(_copied(output))
        return output

    with _running_instead([block], record):
        yield


@contextmanager
def skipped(model: Model, layers: Iterable[int], kept: Sequence[Any]) -> Iterator[None]:
    """A context in which some blocks do not run: each returns the last that was kept."""
    with _running_instead([model.blocks[layer] for layer in layers], lambda *_, **__: _copied(kept[-1])):
        yield


@contextmanager
def _running_instead(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """A context in which modules run a function in place of their forward; their hooks run as ever."""
    with ExitStack() as stack:
        for module in modules:
            own = vars(module).get("forward")
            stack.callback(vars(module).pop if own is None else vars(module).__setitem__, "forward", own)
            module.forward = forward
        yield


def _copied(output: Any) -> Any:
    """What a block returned, in tensors that no block after it shares."""
    if isinstance(output, tuple):
        return tuple(map(_copied, output))
    return output.clone() if isinstance(output, Tensor) else output
