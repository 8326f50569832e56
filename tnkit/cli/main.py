"""The command line: one module of this folder for each command; `main` reads the words and runs one of them.

Exit codes: 0 success; 1 failure, which one line on standard error explains; 2 wrong usage; 130 interrupted; 143
terminated. The paths of results go to standard output, progress and warnings to standard error.

A command's module has `add_flags`, `run`, and its help as docstring: a sentence, a blank line and an example. It is
imported before it is known whether it will run, so it imports nothing heavy at the top.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from tnkit import __version__, parallel
from tnkit.cli import (
    ablate,
    cache,
    card,
    centroids,
    demo,
    detect,
    doctor,
    evaluate,
    lens,
    neurons,
    page,
    paper,
    patch,
    steer,
)
from tnkit.errors import TnkitError, visible

_MODULES = (demo, centroids, detect, ablate, evaluate, neurons, patch, lens, steer, card, page, paper, cache, doctor)
_COMMANDS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
_DESCRIPTION = "Find transfer neurons of multilingual language models (Tezuka & Inoue, EMNLP\n2025)."
_EPILOG = """\
example: tnkit demo --language ko
each command's own flags and example: tnkit COMMAND --help
exit codes: 0 success, 1 failure (one line says why), 2 wrong usage, 130 interrupted, 143 terminated
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    >>> main(["detect", "--sentence_path", "none.tsv", "--lang_for_TN", "ja", "--TN_Type", "type1", "--model_id", "x",
    ...       "--centroids_path", "none.safetensors"])
    1
    """
    options = _parser().parse_args(_canonical(sys.argv[1:] if arguments is None else arguments))
    if logging.lastResort:
        logging.lastResort.setFormatter(_VisibleFormatter())
    try:
        _check_surroundings(options.command)
        _COMMANDS[options.command].run(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:  # where `tnkit.signals` does not handle the signal
        _say("interrupted; no file was left half-written")
        return 130
    except BrokenPipeError:
        _discard_unwritten(sys.stdout)
    except Exception as error:
        if isinstance(error, OSError):
            _discard_unwritten(sys.stdout)
        if os.environ.get("TNKIT_DEBUG") and not isinstance(error, (TnkitError, OSError, UnicodeError)):
            raise
        _say(_in_one_line(error))
    return 1


def _parser() -> argparse.ArgumentParser:
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(prog="tnkit", description=_DESCRIPTION, epilog=_EPILOG, **layout)
    parser.add_argument("--version", action="version", version=f"tnkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        summary, _, example = (module.__doc__ or "Undocumented, as Python was started with -OO.").partition("\n\n")
        listed = f"{summary[0].lower()}{summary[1:-1]}".replace("\n", " ")
        module.add_flags(commands.add_parser(name, help=listed, description=summary, epilog=example, **layout))
    return parser


class _Parser(argparse.ArgumentParser):
    """Quotes the words of others safely."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def _canonical(words: Sequence[str]) -> list[str]:
    """The words with every flag as it was declared, where hyphens take the place of its underscores.

    >>> _canonical(["detect", "--top-n", "10", "--model-id=my-model"])
    ['detect', '--top_n', '10', '--model_id=my-model']
    """
    canonical = []
    for word in words:
        name, equals, value = word.partition("=")
        canonical.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word)
    return canonical


def _check_surroundings(command: str) -> None:
    try:
        os.getcwd()  # noqa: PTH109 - the folder itself is not needed
    except FileNotFoundError as error:  # PyTorch's libraries abort there
        raise TnkitError("the working folder was removed; change to another folder") from error
    if parallel.size() > 1 and command not in ("centroids", "detect"):
        raise TnkitError(f"torchrun is for centroids and detect; run tnkit {command} without it")


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, TnkitError):
        return text
    if isinstance(error, OSError):
        unusable = f"{error.filename}: " if error.filename else "a file or the output: "
        return f"cannot read or write {unusable}{error.strerror or text}"
    if isinstance(error, UnicodeError):  # such as bytes on the command line that the locale cannot decode
        return f"a name or text is not valid Unicode ({text}); fix it, or rename the file"
    lower = text.lower()  # PyTorch has its own errors
    if isinstance(error, MemoryError) or "out of memory" in lower or "allocate memory" in lower:
        return "out of memory; choose a smaller --batch_tokens, fewer layers or a smaller --dtype"
    return f"unexpected {type(error).__name__}: {text} (TNKIT_DEBUG=1 shows the traceback)"


class _VisibleFormatter(logging.Formatter):
    """Warnings may quote the names and text of others."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _say(text: str) -> None:
    try:
        rank = f" rank {parallel.rank()}:" if parallel.size() > 1 else ""
    except TnkitError:  # the error that is being reported
        rank = ""
    try:
        print(visible(f"tnkit:{rank} {text}"), file=sys.stderr, flush=True)
    except OSError:
        _discard_unwritten(sys.stderr)


def _discard_unwritten(stream: TextIO) -> None:
    """Discard what a stream cannot write, or the interpreter complains about it when it exits."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
