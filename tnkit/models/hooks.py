"""What may change a pass from outside the model: hooks of others, training mode and autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from tnkit.errors import TnkitError
from tnkit.models.reading import Sites

_OURS = tuple(
    f"tnkit.interventions.{name}." for name in ("ablation", "patching", "routed", "scopes")
)  # hooks of ablations
_KNOWN = (*_OURS, "torch.", "transformers.", "accelerate.")  # hooks from here are part of the model, or in the key


def check_repeatable(module: nn.Module) -> None:
    """Refuse a pass whose numbers another pass would not give again, or would round in another way.

    Raises:
        TnkitError: for a module in training mode, which may draw at random, or under `torch.autocast`.

    >>> check_repeatable(nn.Linear(2, 2).eval())
    >>> check_repeatable(nn.Sequential(nn.Linear(2, 2)))
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: Sequential is in training mode (it, or 0 in it), where dropout draws at random; call ...
    """
    name = type(module).__name__
    for path, child in module.named_modules():
        if child.training:
            inner = next((path for path, child in module.named_modules() if path and child.training), path)
            raise TnkitError(
                f"{name} is in training mode (it, or {inner} in it), where dropout draws at random; call .eval() on it"
            )
    for device in {tensor.device.type for tensor in module.parameters()} - {"meta"}:
        if torch.is_autocast_enabled(device):
            raise TnkitError(
                f"torch.autocast is on, so {name} would compute in {torch.get_autocast_dtype(device)} and not in its "
                "own dtype; leave the autocast context, or load the model with dtype='bfloat16'"
            )


@contextmanager
def hooks_checked(module: nn.Module, blocks_path: str, sites: Sequence[Sites | None]) -> Iterator[bool]:
    """A context in which hooks that are not tnkit's may observe what is read, but not change it; whether there are any.

    States are read before a forward hook acts on them, and after a pre-hook of the norm or block that they enter.

    Raises:
        TnkitError: in a pass, for a hook that changes what is read; it names module and hook, and how to remove it.
    """
    for _, hook in hooks_of("", nn.modules.module, "_global"):
        if is_foreign(hook):
            raise TnkitError(
                f"every module has the hook {_called(hook)}, which may change states after they are read; call "
                "remove() on the handle that registering it returned"
            )
    hooked = False
    with ExitStack() as stack:
        for number, (block, read) in enumerate(zip(attrgetter(blocks_path)(module), sites, strict=True)):
            late = (read.last_map, read.attention) if read else ()  # their pre-hooks act before they are read
            for path in ["", *(read.names if read else ())]:
                child = attrgetter(path)(block) if path else block
                where = f"{blocks_path}.{number}" + (f".{path}" if path else "")
                hooked |= _compare(stack, where, child._forward_hooks, child.register_forward_hook)
                if path not in late:
                    hooked |= _compare(stack, where, child._forward_pre_hooks, child.register_forward_pre_hook)
        yield hooked


def hooks_of(path: str, owner: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The forward hooks of a module, or of all."""
    names = (f"{prefix}_forward_hooks", f"{prefix}_forward_pre_hooks")
    return [(path, hook) for name in names for hook in getattr(owner, name).values()]


def is_foreign(hook: Any) -> bool:
    """Whether a hook is neither tnkit's nor one that comes with the model."""
    return not f"{origin(hook)}.".startswith(_KNOWN)


def _called(hook: Any) -> str:
    """A hook's module and name, for messages."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return f"{origin(hook)}.{getattr(hook, '__qualname__', type(hook).__qualname__)}"


def _compare(stack: ExitStack, where: str, hooks: Mapping[int, Any], register: Callable[..., Any]) -> bool:
    """Compare what comes before and after a module's own hooks of one kind; whether some are not tnkit's."""
    names = [_called(hook) for hook in hooks.values() if is_foreign(hook)]
    if not names:
        return False
    before: list[Tensor | None] = [None]

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        before[0] = state(args, kwargs, output).clone()

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        if before[0] is None or not torch.equal(before[0], state(args, kwargs, output)):
            raise TnkitError(
                f"{where} has the hook {', '.join(names)}, which changes a state that tnkit reads without it; call "
                "remove() on the handle that registering it returned, or load the model again"
            )

    def state(args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]) -> Tensor:
        value = output[0] if output else args[0] if args else next(iter(kwargs.values()))
        return value[0] if isinstance(value, tuple) else value

    for hook, first in ((note, True), (check, False)):
        stack.callback(register(hook, prepend=first, with_kwargs=True).remove)
    return True


def is_ours(hook: Any) -> bool:
    """Whether a hook is of an ablation."""
    return f"{origin(hook)}.".startswith(_OURS)


def origin(hook: Any) -> str:
    """The dotted module that a hook was defined in."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__module__", None) or type(hook).__module__


@contextmanager
def without_ablations(module: nn.Module) -> Iterator[None]:
    """Take tnkit's hooks off for a moment: they count what they set, and the key names them anyway."""
    kept = []
    for child in module.modules():
        for hooks in (child._forward_hooks, child._forward_pre_hooks):
            ours = [number for number, hook in hooks.items() if is_ours(hook)]
            if ours:
                kept.append((hooks, hooks.copy()))
            for number in ours:
                del hooks[number]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)
