"""Ctrl-C and SIGTERM end the program cleanly at any time, and no file is left half-written.

Call `begin` before any heavy import. A signal then ends the process at once. Nothing is raised, so neither an import in
progress nor another library's `except` can swallow it or turn it into another error.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_unfinished: set[str] = set()


def begin() -> None:
    """From now on, exit with one line on Ctrl-C (exit code 130) and on SIGTERM (143)."""
    process = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        ignore()
        code = _CODES[signal.Signals(number)]
        if os.getpid() != process:  # a worker that another library forked
            os._exit(code)
        try:
            _remove_unfinished()
            line = f"tnkit: {_NAMES[signal.Signals(number)]}; no file was left half-written\n"
            os.write(2, ("\n" + line if os.isatty(2) else line).encode())
        finally:
            os._exit(code)

    for number in _CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # which nohup and a script's background jobs set
            signal.signal(number, stop)


def ignore() -> None:
    """From now on, ignore the signals: the work is done, and only the interpreter is shutting down."""
    for number in _CODES:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible(told: Callable[[], str]) -> Iterator[None]:
    """A context in which Ctrl-C ends a loop early, with a warning of how much of it was done.

    Args:
        told: what the warning says; "" where too little was done to be of use, and the interrupt goes on.

    >>> with interruptible(lambda: "2 of 9 were drawn"):
    ...     raise KeyboardInterrupt
    """
    try:
        yield
    except KeyboardInterrupt:
        if not (text := told()):
            raise
        logging.getLogger("tnkit").warning("interrupted: %s", text)


@contextmanager
def unfinished(path: str) -> Iterator[None]:
    """A context that creates a temporary file or folder, which is removed if a signal ends the program.

    >>> with unfinished("/tmp/half"):
    ...     "/tmp/half" in _unfinished
    True
    >>> "/tmp/half" in _unfinished
    False
    """
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def _remove_unfinished() -> None:
    for path in list(_unfinished):
        if os.path.isdir(path):  # noqa: PTH112 - pathlib is not imported this early
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)  # noqa: PTH108
