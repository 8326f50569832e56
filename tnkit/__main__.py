"""`tnkit`, `python -m tnkit` and `torchrun -m tnkit` run the command line."""

import sys

from tnkit import program as process


def main() -> int:
    """Run one command as a program of its own, and return its exit code."""
    process.begin()  # before everything else, so that an interrupt is one line from here on
    from tnkit.cli import main as cli

    try:
        return cli.main()
    finally:
        process.ignore()


if __name__ == "__main__":
    sys.exit(main())
