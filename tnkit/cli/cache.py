"""List or clear the cache.

example:
  tnkit cache --clear --yes
"""

import argparse
import sys

from tnkit.cli import flags
from tnkit.errors import TnkitError


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.switch(command, "clear", "remove cached captures and sums, and say how much space that freed")
    flags.switch(command, "models", "with --clear: also remove the converted models")
    flags.switch(command, "yes", "with --clear: remove without asking")


def run(options: argparse.Namespace) -> None:
    """List what the cache folder holds, and clear it where asked for.

    >>> import contextlib, io
    >>> with contextlib.redirect_stdout(io.StringIO()) as printed:
    ...     run(argparse.Namespace(clear=False, models=False, yes=False))
    >>> "in all, in" in printed.getvalue()
    True
    """
    from tnkit.captures import shards
    from tnkit.storage import cache_folder

    listed = shards.entries()
    if options.clear and not options.models:
        listed = [entry for entry in listed if entry.path.parent == shards.folder()]
    for entry in listed:
        flags.show(f"{_size(entry.size):>9}  {entry.modified:%Y-%m-%d %H:%M}  {entry.what}")
    flags.show(f"{_size(sum(entry.size for entry in listed)):>9}  in all, in {cache_folder()}")
    if not options.clear or not listed:
        return
    if not options.yes and not sys.stdin.isatty():
        raise TnkitError("--clear asks before it removes these; add --yes to remove them without a question")
    if options.yes or _confirmed():
        flags.show(f"freed {_size(shards.clear(listed))} in {cache_folder()}")
    else:
        flags.show("nothing was removed")


def _confirmed() -> bool:
    try:
        return input("remove these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False


def _size(count: int | float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
