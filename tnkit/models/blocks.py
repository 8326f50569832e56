"""Blocks that run only once: `recorded` keeps what one returned, and `skipped` hands it on in place of others."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from tnkit.models.model import Model
from tnkit.models.sessions import replaced


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

    with replaced(block, "forward", record):
        yield


@contextmanager
def skipped(model: Model, layers: Iterable[int], kept: Sequence[Any]) -> Iterator[None]:
    """A context in which some blocks do not run: each returns the last that was kept."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced(model.blocks[layer], "forward", lambda *_, **__: _copied(kept[-1])))
        yield


def _copied(output: Any) -> Any:
    """What a block returned, in tensors that no block after it shares."""
    if isinstance(output, tuple):
        return tuple(map(_copied, output))
    return output.clone() if isinstance(output, Tensor) else output
