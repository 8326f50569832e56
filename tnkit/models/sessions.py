"""What a session does to a module that its wrappers share: whose turn it is to run it, and which ablations are on.

One thread at a time traces or ablates models, because nnsight is not thread-safe and an ablated module is ablated for
whoever runs it. `TURN` is held while a trace runs and from the entry of an `Ablation` to its exit; other threads wait.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_PATIENCE = 10  # seconds of waiting after which the log says so
_POLL = 0.1  # seconds after which a waiting thread looks for Ctrl-C
_LOG = logging.getLogger("tnkit")


_Function = TypeVar("_Function", bound=Callable[..., Any])


class Interrupts:
    """Ctrl-C that waits while a function marked `unbroken` runs, so that no hook is left on a module by half.

    Python can raise KeyboardInterrupt between any two steps, also before the first line of an `__exit__`. From `hold`
    to `release`, an interrupt that arrives inside a marked function is raised once that function is done.
    """

    def __init__(self) -> None:
        self._codes: set[CodeType] = set()
        self._held = 0
        self._before: Any = None
        self._waiting = False

    def unbroken(self, function: _Function) -> _Function:
        """Mark a function, as a decorator."""
        self._codes.add(function.__code__)
        return function

    def hold(self) -> None:
        """Begin; only the main thread gets interrupts."""
        if threading.current_thread() is threading.main_thread():
            if not self._held and callable(before := signal.getsignal(signal.SIGINT)):
                self._before = before
                signal.signal(signal.SIGINT, self._arrived)
            self._held += 1

    def release(self) -> None:
        """End, and raise what waits."""
        if threading.current_thread() is threading.main_thread():
            self._held -= 1
            if not self._held and signal.getsignal(signal.SIGINT) == self._arrived:
                signal.signal(signal.SIGINT, self._before)
            self.let_through()

    def let_through(self) -> None:
        """Raise what waits."""
        if self._waiting and threading.current_thread() is threading.main_thread():
            self._waiting = False
            self._before(signal.SIGINT, None)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        inner = frame
        while inner is not None:
            if inner.f_code in self._codes:
                self._waiting = True
                return
            inner = inner.f_back
        self._before(number, frame)


INTERRUPTS = Interrupts()


class Turn:
    """A re-entrant lock, for `with`; a thread that waits for long says so in the log, once each time.

    Ctrl-C cannot leave it locked: an interrupt that arrives while it is taken or given back waits until that is done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @INTERRUPTS.unbroken
    def __enter__(self) -> "Turn":
        INTERRUPTS.hold()
        try:
            started = time.monotonic()
            while not self._lock.acquire(timeout=_POLL):
                INTERRUPTS.let_through()
                if started and time.monotonic() - started > _PATIENCE:
                    started = 0.0
                    _LOG.warning(
                        "waiting for another thread that runs a trace or is inside an Ablation; it goes on once that "
                        "one ends"
                    )
        except BaseException:
            INTERRUPTS.release()
            raise
        return self

    @INTERRUPTS.unbroken
    def __exit__(self, *_: object) -> None:
        self._lock.release()
        INTERRUPTS.release()


TURN = Turn()


@dataclass
class Given:
    """What the outermost module of a forward pass was called with.

    Attributes:
        module: the one that was called.
        mask: its attention_mask.
        ids: its input_ids, or None.
        positions: its position_ids, where they begin again within a row, which holds several texts then.
        packed: whether a row holds several texts.
    """

    module: nn.Module
    mask: Any
    ids: Tensor | None
    positions: Tensor | None
    packed: bool


@dataclass
class Prompt:
    """The prompts of one call of `generate`, or of any passes that run them in pieces.

    Attributes:
        width: columns of the prompts.
        real: which tokens are not padding, (prompt, token), or None where `generate` makes the mask itself.
        ids: their token ids, or None where embeddings were given.
        own: which tokens are a sentence's own, where a template is around it.
    """

    width: int
    real: Tensor | None
    ids: Tensor | None
    own: Tensor | None = None


@dataclass
class State:
    """What is done to one module.

    Attributes:
        entered: the thread that entered each active ablation, and what the ablation's provenance says.
        editors: by layer, what changes activations inside experts, slot by slot.
        movers: by layer, what changes the states that leave a block after it ran.
        hooks: undoes what all active ablations share, once the last of `watchers` has left.
        given: what the call under way was given, and by which module it was noted.
        prompt: the prompts of the call of `generate` under way.
        own: which tokens of the pass or prompts under way are a sentence's own, where a template is around it.
        texts: of packed sentences under way, the place of each token, counted through the rows, -1 after a sentence's
            end, (sentence, token).
        generated: how many calls of `generate` there have been.
        weights: the hash of its weights, while `tnkit.models.model.hashed_once` keeps it.
    """

    entered: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    hooks: ExitStack = field(default_factory=ExitStack)
    editors: list[tuple[int, Callable[..., Any]]] = field(default_factory=list)
    movers: list[tuple[int, Callable[[Tensor], Tensor]]] = field(default_factory=list)
    watchers: int = 0
    given: Given | None = None
    prompt: Prompt | None = None
    own: Tensor | None = None
    texts: Tensor | None = None
    generated: int = 0
    weights: str | None = None

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


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which an attribute of a module, of Python's or PyTorch's, is another one.

    >>> layer = nn.Linear(1, 1)
    >>> with replaced(layer, "forward", lambda states: 2 * states):
    ...     layer(3)
    6
    >>> "forward" in vars(layer)
    False
    """
    own = {name: vars(owner)[name]} if name in vars(owner) else {}  # also one that is None
    setattr(owner, name, value)
    try:
        yield
    finally:
        vars(owner).pop(name)
        vars(owner).update(own)


@contextmanager
def running(module: nn.Module, **known: Any) -> Iterator[None]:
    """A context in which something is known of the passes that run: `prompt`, `own` or `texts` of `State`.

    >>> module, own = nn.Linear(1, 1), Tensor([1])
    >>> with running(module, own=own):
    ...     print(state_of(module).own is own)
    True
    >>> state_of(module).own is None
    True
    """
    state = state_of(module)
    outer = {name: getattr(state, name) for name in known}
    vars(state).update(known)
    try:
        yield
    finally:
        vars(state).update(outer)
