"""The command line: `tnkit demo`, `centroids`, `detect`, `ablate`, `evaluate`, `cache`, `doctor`.

Exit codes: 0 done; 1 it could not be done, one line on standard error says why; 2 wrong usage; 130 interrupted.
Results' paths go to standard output, progress and warnings to standard error. Flags keep the spelling of the
published code (--model_id); hyphens (--model-id) work too.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tnkit import __version__, commands, parallel
from tnkit.errors import TnkitError

_EPILOG = """\
example: tnkit demo --language ko
each command's own flags and example: tnkit COMMAND --help
exit codes: 0 done, 1 could not be done (one line says why), 2 wrong usage, 130 interrupted
"""
_DTYPES = ("auto", "float16", "bfloat16", "float32", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    >>> main(["detect", "--sentence_path", "none.tsv", "--lang_for_TN", "ja", "--TN_Type", "type1", "--model_id", "x",
    ...       "--centroids_path", "none.safetensors"])
    1
    """
    options = _parser().parse_args(arguments)
    try:
        if parallel.size() > 1 and options.command not in ("centroids", "detect"):
            raise TnkitError(f"torchrun is for centroids and detect; run tnkit {options.command} without it")
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted; nothing was half-written")
        return 130
    except TnkitError as error:
        _say(_one_line(error))
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains on its way out
        return 1
    except Exception as error:
        if os.environ.get("TNKIT_DEBUG"):
            raise
        said = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:  # PyTorch's own
            _say("out of memory; ask for less at once: a smaller --batch_tokens, fewer layers, or a smaller --dtype")
            return 1
        _say(f"unexpected {type(error).__name__}: {_one_line(error)} (TNKIT_DEBUG=1 shows where)")
        return 1
    return 0


def _say(text: str) -> None:
    process = f" rank {parallel.rank()}:" if parallel.size() > 1 else ""
    print(f"tnkit:{process} {text}", file=sys.stderr, flush=True)


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
        "find, switch off and draw, with the packaged model and corpus",
        "tnkit demo --language ko",
    )
    _flag(command, "language", default="ja", help="language in question: ja, ko, nl or it (default ja)")
    _flag(command, "model_id", default="gemma-3-270m", help="another model (default: the packaged one)")
    _flag(command, "top_n", type=_positive, default=300, help="neurons of each type (default 300)")
    _flag(command, "seeds", type=_positive, default=10, help="draws of each random control (default 10)")
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
        help="last layer as it is, or through the final norm as in the published code (default raw)",
    )

    example = [
        "tnkit detect --model_id gemma-3-270m --TN_Type type1 --top_n 1000 --lang_for_TN ja \\",
        "  --scoring_type cos_sim --centroids_path ja-type1-centroids.safetensors --sentence_path mono.txt",
    ]
    command = _command(subparsers, commands.detect, "score every neuron against centroids and keep the best", *example)
    _model_flags(command)
    _sentence_flags(command, "sentences of the language in question")
    _detection_flags(command)
    _flag(command, "centroids_path", required=True, help="file from `tnkit centroids`, or the published code's .pkl")
    _flag(command, "top_n", type=_positive, default=1000, help="how many neurons (default 1000)")
    _flag(
        command, "scoring_type", choices=tuple(commands.DISTANCES), default="cos_sim", help="distance (default cos_sim)"
    )
    _flag(
        command,
        "layers",
        type=_range,
        help="START:STOP, stop not included (default: first 20/32 for type1, rest for type2)",
    )
    _flag(command, "scores", help="also write every neuron's score to this .safetensors file")

    example = [
        "tnkit ablate --model_id gemma-3-270m --neurons ja-type1-neurons.json --lang_for_TN ja \\",
        "  --sentence_path test-pairs.tsv --measure retrieval --figure ja-retrieval.png",
    ]
    command = _command(subparsers, commands.ablate, "switch a neuron set off, beside controls, and measure", *example)
    _model_flags(command)
    _sentence_flags(command, "pairs with the hub for measures of states, else single sentences or prompts")
    _neuron_flags(command, "last")
    _flag(
        command,
        "measure",
        choices=("retrieval", "similarity", "mutual_knn", "perplexity", "generation"),
        default="retrieval",
        help="what to measure, or generation to continue each sentence (default retrieval)",
    )
    _flag(command, "hub", default="en", help="language of the translations (default en)")
    _flag(command, "seeds", type=_positive, default=10, help="draws of each random control (default 10)")
    _flag(command, "scores_path", help="file from `tnkit detect --scores`, for the control of lowest scores")
    _flag(command, "other", action="append", help="another neuron set as a control; may be given more than once")
    _flag(command, "out", help="table to write, .csv (default: LANG-MEASURE.csv here)")
    _flag(command, "figure", help="also draw it to this .png file")

    example = [
        "tnkit evaluate --model_id gemma-3-270m --neurons ja-type1-neurons.json --tasks mmlu_prox_lite_ja --limit 100"
    ]
    command = _command(subparsers, commands.evaluate, "run lm-evaluation-harness tasks with a neuron set off", *example)
    _model_flags(command)
    _neuron_flags(command, "prompt")
    _flag(command, "tasks", type=_names, required=True, help="task names, comma-separated")
    _flag(command, "limit", type=_positive, help="documents of each task (default all)")
    _flag(command, "include_path", help="folder with tasks of your own")
    _flag(command, "out", help="table to write, .csv (default: evaluation.csv here)")

    command = _command(
        subparsers, commands.cache, "show what the cache folder holds, or clear it", "tnkit cache --clear"
    )
    _flag(command, "clear", action="store_true", help="remove captures and running sums, and say what that freed")
    _flag(command, "models", action="store_true", help="with --clear: the converted models, too")
    _command(
        subparsers, commands.doctor, "say what is on this machine, and what to do about what is not", "tnkit doctor"
    )
    return parser


class _Formatter(argparse.HelpFormatter):
    """Wraps help as ever, but leaves lines that end in a line break as they are, to be copied and run."""

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
    _flag(command, "model_id", required=True, help="packaged name (gemma-3-270m), Hub id or local folder")
    _flag(command, "revision", help="branch, tag or commit on the Hub")
    _flag(command, "dtype", choices=_DTYPES, default="auto", help="auto (default): as stored")
    _flag(command, "device_map", help="as in transformers, such as auto or cuda:0")
    _flag(command, "trust_remote_code", action="store_true", help="run the model's own code")
    _quiet_flag(command)


def _quiet_flag(command: argparse.ArgumentParser) -> None:
    _flag(command, "quiet", action="store_true", help="no progress bar")


def _sentence_flags(command: argparse.ArgumentParser, sentences: str) -> None:
    _flag(command, "lang_for_TN", required=True, help="language in question, as the file names it: ja")
    endings = ".tsv .csv .jsonl .json .parquet .arrow .xlsx .tmx .txt .pkl, or a folder"
    _flag(command, "sentence_path", required=True, help=f"{sentences}: {endings}")


def _neuron_flags(command: argparse.ArgumentParser, tokens: str) -> None:
    _flag(command, "neurons", required=True, help="file from `tnkit detect`, or the published code's .pkl")
    _flag(
        command,
        "tokens",
        choices=("last", "prompt", "all"),
        default=tokens,
        help=f"where the neurons are off: last prompt token, whole prompt, every step (default {tokens})",
    )


def _detection_flags(command: argparse.ArgumentParser) -> None:
    _flag(
        command,
        "TN_Type",
        choices=("type1", "type2"),
        required=True,
        help="towards the shared centroid, or the own one",
    )
    _flag(
        command, "out", help="file to write (default: LANG-TYPE-centroids.safetensors or LANG-TYPE-neurons.json here)"
    )
    _flag(
        command,
        "format",
        choices=("tnkit", "reference"),
        default="tnkit",
        help="reference: the published code's pickle",
    )
    _flag(
        command,
        "position",
        choices=("last", "mean"),
        default="last",
        help="last token, or mean over tokens (default last)",
    )
    _flag(
        command,
        "batch_tokens",
        type=_positive,
        help="most tokens in a batch (default 768; on a GPU, by its free memory)",
    )
    _flag(command, "tp_plan", choices=("auto",), help="spread the model over the processes of torchrun")
    _flag(
        command, "cache", action="store_true", help="keep what is done on the way, and go on after a run that was cut"
    )


class _Parser(argparse.ArgumentParser):
    """Takes a flag's beginning for it where its two spellings are all that begin so."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        found = super()._get_option_tuples(option_string)
        return [*{id(one[0]): one for one in found}.values()]


def _flag(command: argparse.ArgumentParser, name: str, **options: Any) -> None:
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    if "choices" not in options and options.get("action") != "store_true":
        options["metavar"] = name.upper()
    command.add_argument(*spellings, dest=name, **options)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("names no language; give one or more, such as en or en,fr")
    return names


def _range(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    try:
        found = int(start), int(stop)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not START:STOP, such as 0:20") from None
    if not 0 <= found[0] < found[1]:
        raise argparse.ArgumentTypeError(f"{text} holds no layers; START must be below STOP, as in 0:20")
    return found
