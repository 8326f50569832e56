"""What a session does to a module that its wrappers share: whose turn it is to run it, and which ablations are on.

One thread at a time traces or ablates models, because nnsight is not thread-safe and an ablated module is ablated for
whoever runs it. `TURN` is held while a trace runs and from the entry of an `Ablation` to its exit; other threads wait.
"""

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

if TYPE_CHECKING:
    from tnkit.scopes import Given, Prompt

_PATIENCE = 10  # seconds of waiting after which the log says so
_LOG = logging.getLogger("tnkit")


class Turn:
    """A re-entrant lock, for `with`; a thread that waits for long says so in the log, once each time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> "Turn":
        if not self._lock.acquire(timeout=_PATIENCE):
            _LOG.warning(
                "waiting for another thread that runs a trace or is inside an Ablation; it goes on once that one ends"
            )
            self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


TURN = Turn()


@dataclass
class State:
    """What is done to one module.

    Attributes:
        entered: the thread that entered each active ablation, and what the ablation's provenance says.
        hooks: undoes what all active ablations share, once the last of `watchers` has left.
        given: what the call under way was given, and by which module it was noted.
        prompt: the prompts of the call of `generate` under way.
        generated: how many calls of `generate` there have been.
    """

    entered: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    hooks: ExitStack = field(default_factory=ExitStack)
    watchers: int = 0
    given: "Given | None" = None
    prompt: "Prompt | None" = None
    generated: int = 0

    @property
    def ablations(self) -> list[dict[str, Any]]:
        """Those of this thread: another thread's have ended before this one runs the model."""
        return [about for thread, about in self.entered if thread == threading.get_ident()]


_STATES: "WeakKeyDictionary[nn.Module, State]" = WeakKeyDictionary()


def state_of(module: nn.Module) -> State:
    """The state of a module, the same for all its wrappers.

    >>> module = nn.Linear(1, 1)
    >>> state_of(module) is state_of(module), state_of(module).ablations
    (True, [])
    """
    return _STATES.setdefault(module, State())
