"""The command line: `tnkit demo`, `centroids`, `detect`, `ablate`, `evaluate`, `cache`, `doctor`.

Exit codes: 0 success; 1 failure, which one line on standard error explains; 2 wrong usage; 130 interrupted; 143
terminated. The paths of results go to standard output, progress and warnings to standard error. Flags keep the
spelling of the published code (--model_id); hyphens (--model-id) work too.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from tnkit import __version__
from tnkit import processes as parallel
from tnkit.cli import commands
from tnkit.errors import TnkitError, visible

_EPILOG = """\
example: tnkit demo --language ko
each command's own flags and example: tnkit COMMAND --help
exit codes: 0 success, 1 failure (one line says why), 2 wrong usage, 130 interrupted, 143 terminated
"""
_DTYPES = ("auto", "float16", "bfloat16", "float32", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    >>> main(["detect", "--sentence_path", "none.tsv", "--lang_for_TN", "ja", "--TN_Type", "type1", "--model_id", "x",
    ...       "--centroids_path", "none.safetensors"])
    1
    """
    options = _parser().parse_args(arguments)
    if logging.lastResort:
        logging.lastResort.setFormatter(_VisibleFormatter())
    try:
        _check_folder()
        if parallel.size() > 1 and options.command not in ("centroids", "detect"):
            raise TnkitError(f"torchrun is for centroids and detect; run tnkit {options.command} without it")
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:  # where `tnkit.program` does not handle the signal
        _say("interrupted; no file was left half-written")
        return 130
    except TnkitError as error:
        _say(_one_line(error))
        return 1
    except BrokenPipeError:
        _discard(sys.stdout)
        return 1
    except OSError as error:
        if not _flushed():
            _discard(sys.stdout)
        place = f"{error.filename}: " if error.filename else ""
        _say(f"cannot read or write {place or 'a file or the output: '}{error.strerror or _one_line(error)}")
        return 1
    except UnicodeError as error:  # such as bytes on the command line that the locale cannot decode
        _say(f"a name or text is not valid Unicode ({_one_line(error)}); fix it, or rename the file")
        return 1
    except Exception as error:
        if os.environ.get("TNKIT_DEBUG"):
            raise
        said = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:  # PyTorch's own
            _say("out of memory; choose a smaller --batch_tokens, fewer layers or a smaller --dtype")
            return 1
        _say(f"unexpected {type(error).__name__}: {_one_line(error)} (TNKIT_DEBUG=1 shows the traceback)")
        return 1
    return 0


def _check_folder() -> None:
    try:
        os.getcwd()  # noqa: PTH109 - the folder itself is not needed
    except FileNotFoundError as error:  # PyTorch's libraries abort there
        raise TnkitError("the working folder was removed; change to another folder") from error


class _VisibleFormatter(logging.Formatter):
    """For warnings, which may quote names and text of others."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _say(text: str) -> None:
    try:
        rank = f" rank {parallel.rank()}:" if parallel.size() > 1 else ""
    except TnkitError:  # which is what is being said
        rank = ""
    try:
        print(visible(f"tnkit:{rank} {text}"), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _flushed() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _discard(stream: TextIO) -> None:
    """Send what is left in a stream that cannot be written to nowhere, or the interpreter complains when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tnkit",
        description="Find transfer neurons of multilingual language models (Tezuka & Inoue, EMNLP 2025).",
        epilog=_EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"tnkit {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _command(
        subparsers,
        commands.demo,
        "find neurons, ablate them and draw figures, with the packaged model and corpus",
        "tnkit demo --language ko",
    )
    _flag(command, "language", default="ja", help="language to study: ja, ko, nl or it (default ja)")
    _flag(command, "model_id", default="gemma-3-270m", help="model to use (default: the packaged one)")
    _flag(command, "top_n", type=_positive, default=300, help="number of neurons of each type (default 300)")
    _flag(command, "seeds", type=_positive, default=10, help="number of draws of each random control (default 10)")
    _flag(command, "out", default="figures", help="folder for figures and neuron sets (default figures)")
    _quiet_flag(command)

    example = [
        "tnkit centroids --model_id gemma-3-270m --TN_Type type1 --lang_for_TN ja --sentence_path pairs.tsv",
        "tnkit centroids --model_id gemma-3-270m --TN_Type type2 --lang_for_TN ja --sentence_path mono.txt",
    ]
    command = _command(
        subparsers, commands.centroids, "estimate the centroids that neurons are scored against", *example
    )
    _model_flags(command)
    _sentence_flags(command, "pairs for type1, single sentences for type2")
    _detection_flags(command)
    _flag(
        command, "hub", type=_names, default=("en",), help="language(s) of the shared space: en or en,fr (default en)"
    )
    _flag(
        command,
        "last_layer",
        choices=("raw", "normed"),
        default="raw",
        help="output of the last layer: raw, or after the final norm as in the published code (default raw)",
    )

    example = [
        "tnkit detect --model_id gemma-3-270m --TN_Type type1 --top_n 1000 --lang_for_TN ja \\",
        "  --scoring_type cos_sim --centroids_path ja-type1-centroids.safetensors --sentence_path mono.txt",
    ]
    command = _command(
        subparsers, commands.detect, "score every neuron against centroids and keep the highest-scoring ones", *example
    )
    _model_flags(command)
    _sentence_flags(command, "sentences in that language")
    _detection_flags(command)
    _flag(command, "centroids_path", required=True, help="file from `tnkit centroids`, or the published code's .pkl")
    _flag(command, "top_n", type=_positive, default=1000, help="number of neurons (default 1000)")
    _flag(
        command, "scoring_type", choices=tuple(commands.DISTANCES), default="cos_sim", help="distance (default cos_sim)"
    )
    _flag(
        command,
        "layers",
        type=_range,
        help="START:STOP without STOP itself (default: the first 20/32 of the layers for type1, the rest for type2)",
    )
    _flag(command, "scores", help="also write every neuron's score to this .safetensors file")

    example = [
        "tnkit ablate --model_id gemma-3-270m --neurons ja-type1-neurons.json --lang_for_TN ja \\",
        "  --sentence_path test-pairs.tsv --measure retrieval --figure ja-retrieval.png",
    ]
    command = _command(
        subparsers, commands.ablate, "ablate a neuron set and controls, and measure the effect", *example
    )
    _model_flags(command)
    _sentence_flags(
        command,
        "pairs with the hub language for retrieval, similarity and mutual_knn, else single sentences or prompts",
    )
    _neuron_flags(command, "last")
    _reading_flags(command, ("last", "last_word", "end"))
    _flag(
        command,
        "measure",
        choices=("retrieval", "similarity", "mutual_knn", "perplexity", "generation"),
        default="retrieval",
        help="what to measure; generation continues each sentence (default retrieval)",
    )
    _flag(command, "hub", default="en", help="language of the translations (default en)")
    _flag(command, "seeds", type=_positive, default=10, help="number of draws of each random control (default 10)")
    _flag(
        command,
        "scores_path",
        help="file from `tnkit detect --scores`; adds the neurons with the lowest scores as a control",
    )
    _flag(command, "other", action="append", help="another neuron set as a control; can be repeated")
    _flag(command, "out", help="table to write, .csv (default: LANG-MEASURE.csv in the current folder)")
    _flag(command, "figure", help="also write a figure to this .png file")

    example = [
        "tnkit evaluate --model_id gemma-3-270m --neurons ja-type1-neurons.json --tasks mmlu_prox_lite_ja --limit 100"
    ]
    command = _command(
        subparsers, commands.evaluate, "run lm-evaluation-harness tasks with a neuron set ablated", *example
    )
    _model_flags(command)
    _neuron_flags(command, "prompt")
    _flag(command, "tasks", type=_names, required=True, help="task names, comma-separated")
    _flag(command, "limit", type=_positive, help="number of documents of each task (default all)")
    _flag(command, "include_path", help="folder with your own tasks")
    _flag(command, "out", help="table to write, .csv (default: evaluation.csv in the current folder)")

    command = _command(subparsers, commands.cache, "list or clear the cache", "tnkit cache --clear --yes")
    _flag(
        command, "clear", action="store_true", help="remove cached captures and sums, and say how much space that freed"
    )
    _flag(command, "models", action="store_true", help="with --clear: also remove the converted models")
    _flag(command, "yes", action="store_true", help="with --clear: remove without asking")
    command = _command(subparsers, commands.doctor, "check your setup and suggest fixes", "tnkit doctor")
    _flag(command, "model", help="also check what the tokenizer of this model or folder adds to sentences")
    return parser


class _Formatter(argparse.HelpFormatter):
    """Wraps help as usual, but keeps text that ends in a line break as it is: examples to copy and run."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.endswith("\n") else super()._fill_text(text, width, indent)


def _command(
    subparsers: "argparse._SubParsersAction[_Parser]",
    run: Callable[..., None],
    summary: str,
    *example: str,
) -> argparse.ArgumentParser:
    command = subparsers.add_parser(
        run.__name__,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="".join(f"{line}\n" for line in ["example:", *(f"  {line}" for line in example)]),
        formatter_class=_Formatter,
    )
    command.set_defaults(run=run)
    return command


def _model_flags(command: argparse.ArgumentParser) -> None:
    _flag(command, "model_id", required=True, help="packaged model (gemma-3-270m), Hub id or local folder")
    _flag(command, "revision", help="branch, tag or commit on the Hub")
    _flag(command, "dtype", choices=_DTYPES, default="auto", help="auto (default): as stored")
    _flag(command, "device_map", help="as in transformers, such as auto or cuda:0")
    _flag(
        command,
        "trust_remote_code",
        action="store_true",
        help="run Python code of the model repository, and of task files",
    )
    _quiet_flag(command)


def _quiet_flag(command: argparse.ArgumentParser) -> None:
    _flag(command, "quiet", action="store_true", help="no progress bar and no notes")


def _sentence_flags(command: argparse.ArgumentParser, sentences: str) -> None:
    _flag(command, "lang_for_TN", required=True, help="language to study, as the file names it: ja")
    endings = ".tsv .csv .jsonl .json .parquet .arrow .xlsx .tmx .txt .pkl, or a folder"
    _flag(command, "sentence_path", required=True, help=f"{sentences}: {endings}")
    _flag(command, "no_header", action="store_true", help="the first line is a row; languages are in column order")
    _flag(command, "quoting", choices=("csv", "none"), help="of a .tsv file: quotes mark cells, or are text")
    _flag(
        command, "leaks", choices=("refuse", "drop"), default="refuse", help="training rows that are in the test split"
    )
    _flag(command, "chat", action="store_true", help="wrap each sentence in the tokenizer's chat template")


def _neuron_flags(command: argparse.ArgumentParser, tokens: str) -> None:
    _flag(command, "neurons", required=True, help="file from `tnkit detect`, or the published code's .pkl")
    _flag(
        command,
        "tokens",
        choices=("last", "last_word", "prompt", "all"),
        default=tokens,
        help=f"where to ablate: last prompt token, last word, whole prompt or all tokens (default {tokens})",
    )


def _detection_flags(command: argparse.ArgumentParser) -> None:
    _flag(
        command,
        "TN_Type",
        choices=("type1", "type2"),
        required=True,
        help="type1: towards the shared centroid; type2: towards the language's own",
    )
    _flag(
        command,
        "out",
        help="file to write (default: LANG-TYPE-centroids.safetensors or LANG-TYPE-neurons.json in the current folder)",
    )
    _flag(
        command,
        "format",
        choices=("tnkit", "reference"),
        default="tnkit",
        help="tnkit, or reference for a pickle as in the published code (default tnkit)",
    )
    _reading_flags(command, ("last", "last_word", "mean", "end"))
    _flag(
        command,
        "batch_tokens",
        type=_positive,
        help="maximum number of tokens in a batch (default 768; on a GPU, chosen by its free memory)",
    )
    _flag(command, "tp_plan", choices=("auto",), help="spread the model over the processes that torchrun starts")
    _flag(command, "cache", action="store_true", help="cache partial results and resume")


def _reading_flags(command: argparse.ArgumentParser, positions: tuple[str, ...]) -> None:
    kinds = {"last": "last token", "last_word": "last one that is no punctuation", "mean": "mean over tokens"}
    kinds["end"] = "end of the template"
    _flag(
        command,
        "position",
        choices=positions,
        default="last",
        help=f"what is read of a sentence: {', '.join(kinds[name] for name in positions)} (default last)",
    )
    _flag(
        command, "suffix", type=_text, help="put in place of each sentence's final punctuation ('' only takes it off)"
    )


class _Parser(argparse.ArgumentParser):
    """Accepts an abbreviated flag where both spellings of one flag are all that match."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        matches = super()._get_option_tuples(option_string)
        return [*{id(match[0]): match for match in matches}.values()]

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def _flag(command: argparse.ArgumentParser, name: str, **options: Any) -> None:
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    if "choices" not in options and options.get("action") != "store_true":
        options["metavar"] = name.upper()
        options.setdefault("type", _given)
    command.add_argument(*spellings, dest=name, **options)


def _given(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a value, not an empty text")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not valid Unicode") from None
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r:.60} holds a NUL character")
    return text


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not valid Unicode") from None
    return text


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a positive whole number")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("expected one or more names, separated by commas")
    return names


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch("([0-9]{1,9}):([0-9]{1,9})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not START:STOP, such as 0:20")
    start, stop = map(int, match.groups())
    if start >= stop:
        raise argparse.ArgumentTypeError(f"{text} holds no layers; START must be less than STOP, as in 0:20")
    return start, stop
