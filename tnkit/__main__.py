"""`tnkit`, `python -m tnkit` and `torchrun -m tnkit` run the command line."""

import os
import sys

from tnkit import signals


def main() -> int:
    """Run one command as a program of its own, and return its exit code."""
    _open_streams()
    signals.begin()  # before every heavy import, so that an interrupt is one line from here on
    from tnkit.cli import main as cli

    try:
        return cli.main()
    finally:
        signals.ignore()


def _open_streams() -> None:
    """Make the standard streams usable where the caller closed them, or where their encoding lacks characters."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would be written to as standard output or error
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")  # text that the terminal's encoding lacks


if __name__ == "__main__":
    sys.exit(main())
