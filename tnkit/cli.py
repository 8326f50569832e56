"""The command line: `tnkit demo`, `tnkit centroids`, `tnkit detect`.

Exit codes: 0 done; 1 it could not be done, one line on standard error says why; 2 wrong usage; 130 interrupted.
Results' paths go to standard output, progress and warnings to standard error. Flags keep the spelling of the
published code (--model_id); hyphens (--model-id) work too.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tnkit import __version__
from tnkit.errors import TnkitError

_DISTANCES = {"cos_sim": "cosine", "L2_dis": "euclidean"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("tnkit: interrupted; nothing was half-written", file=sys.stderr)
        return 130
    except TnkitError as error:
        print(f"tnkit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        if os.environ.get("TNKIT_DEBUG"):
            raise
        text = " ".join(str(error).split())
        print(f"tnkit: unexpected {type(error).__name__}: {text} (TNKIT_DEBUG=1 shows where)", file=sys.stderr)
        return 1
    return 0


def _demo(options: argparse.Namespace) -> None:
    from tnkit import demo

    demo.run(language=options.language, model=options.model_id, top=options.top_n, out=options.out)


def _centroids(options: argparse.Namespace) -> None:
    import tnkit as tn

    hub = [name for name in options.hub.split(",") if name] if options.TN_Type == "type1" else []
    if options.lang_for_TN in hub:
        raise TnkitError(f"--lang_for_TN {options.lang_for_TN} is the hub; name another with --hub")
    out = _out(options, "centroids", ".safetensors")
    texts = _sentences(options, [*hub, options.lang_for_TN])
    model = _model(options)
    captured = []
    for language in (*hub, options.lang_for_TN):
        running = tn.centroids.CentroidAccumulator()
        for batch in tn.stream(
            model, texts[language], keep=["post"], last_layer=options.last_layer, **_reading(options)
        ):
            running.add(batch)
        captured.append(running.result())
    estimated = tn.estimate_centroids(captured)
    print(estimated.save(out, format=options.format))


def _detect(options: argparse.Namespace) -> None:
    import tnkit as tn

    out = _out(options, "neurons", ".json")
    centroids = tn.Centroids.load(options.centroids_path)
    texts = _sentences(options, [options.lang_for_TN])
    model = _model(options)
    found = tn.detect_towards(
        model,
        texts[options.lang_for_TN],
        centroids,
        language=options.lang_for_TN,
        kind=options.TN_Type,
        top=options.top_n,
        distance=_DISTANCES[options.scoring_type],
        layers=options.layers and range(*options.layers),
        **_reading(options),
    )
    written = [found.neurons.save(out, format=options.format)]
    if options.scores:
        written.append(found.scores.save(options.scores))
    for path in written:
        print(path)


def _sentences(options: argparse.Namespace, languages: list[str]):
    import tnkit as tn

    return tn.load_corpus(options.sentence_path, languages, test=0)["train"]


def _model(options: argparse.Namespace):
    import tnkit as tn

    return tn.load_model(
        options.model_id,
        revision=options.revision,
        dtype=options.dtype,
        device_map=options.device_map,
        trust_remote_code=options.trust_remote_code,
    )


def _reading(options: argparse.Namespace) -> dict:
    return {"position": options.position, "batch_tokens": options.batch_tokens, "progress": not options.quiet}


def _out(options: argparse.Namespace, what: str, suffix: str) -> Path:
    """Where the result goes; a place that cannot be written to is refused before the work, not after it."""
    suffix = ".pkl" if options.format == "reference" else suffix
    out = Path(options.out or f"{options.lang_for_TN}-{options.TN_Type}-{what}{suffix}")
    if out.suffix != suffix:
        raise TnkitError(f"--out {out} ends in {out.suffix or 'nothing'}; --format {options.format} writes {suffix}")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TnkitError(f"cannot write {out}; choose another place with --out")
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tnkit",
        description="Find transfer neurons of multilingual language models (Tezuka & Inoue, EMNLP 2025).",
        epilog="exit codes: 0 done, 1 could not be done (one line says why), 2 wrong usage, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"tnkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = _command(
        commands, "demo", _demo, "detect and draw, with the packaged model and corpus", "tnkit demo --language ko"
    )
    _flag(demo, "language", default="ja", help="language in question: ja, ko, nl or it (default ja)")
    _flag(demo, "model_id", default="gemma-3-270m", help="another model (default: the packaged one)")
    _flag(demo, "top_n", type=_positive, default=300, help="neurons of each type (default 300)")
    _flag(demo, "out", default="figures", help="folder for figures and neuron sets (default figures)")

    example = "tnkit centroids --model_id gemma-3-270m --TN_Type type1 --lang_for_TN ja --sentence_path pairs.tsv"
    centroids = _command(
        commands, "centroids", _centroids, "estimate the centroids that neurons are scored against", example
    )
    _shared_flags(centroids, "pairs for type1, single sentences for type2")
    _flag(centroids, "hub", default="en", help="language(s) of the shared space, comma-separated (default en)")
    _flag(
        centroids,
        "last_layer",
        choices=("raw", "normed"),
        default="raw",
        help="last layer as it is, or through the final norm as in the published code (default raw)",
    )

    example = (
        "tnkit detect --model_id gemma-3-270m --TN_Type type1 --top_n 1000 --lang_for_TN ja --scoring_type cos_sim "
        "--centroids_path ja-type1-centroids.safetensors --sentence_path mono.tsv"
    )
    detect = _command(commands, "detect", _detect, "score every neuron against centroids and keep the best", example)
    _shared_flags(detect, "sentences of the language in question")
    _flag(detect, "centroids_path", required=True, help="file from `tnkit centroids`, or the published code's .pkl")
    _flag(detect, "top_n", type=_positive, default=1000, help="how many neurons (default 1000)")
    _flag(detect, "scoring_type", choices=tuple(_DISTANCES), default="cos_sim", help="distance (default cos_sim)")
    _flag(
        detect,
        "layers",
        type=_range,
        help="START:STOP, stop not included (default: first 20/32 for type1, rest for type2)",
    )
    _flag(detect, "scores", help="also write every neuron's score to this .safetensors file")
    return parser


def _command(commands, name: str, run, summary: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"example: {example}"
    )
    command.set_defaults(run=run)
    return command


def _shared_flags(command: argparse.ArgumentParser, sentences: str) -> None:
    _flag(command, "model_id", required=True, help="packaged name (gemma-3-270m), Hub id or local folder")
    _flag(
        command,
        "TN_Type",
        choices=("type1", "type2"),
        required=True,
        help="towards the shared centroid, or the own one",
    )
    _flag(command, "lang_for_TN", required=True, help="language in question, as the file names it: ja")
    _flag(command, "sentence_path", required=True, help=f"{sentences}: .tsv .csv .jsonl .parquet .txt .pkl")
    _flag(command, "out", help="file to write (default: LANG-TYPE-….safetensors or .json here)")
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
    _flag(command, "revision", help="branch, tag or commit on the Hub")
    _flag(command, "dtype", default="auto", help="float32, bfloat16, … (default: as stored)")
    _flag(command, "device_map", help="as in transformers, such as auto or cuda:0")
    _flag(command, "batch_tokens", type=_positive, default=2048, help="most tokens in a batch (default 2048)")
    command.add_argument(
        "--trust_remote_code", "--trust-remote-code", action="store_true", help="run the model's own code"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _flag(command: argparse.ArgumentParser, name: str, **options) -> None:
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    command.add_argument(*spellings, dest=name, metavar=None if "choices" in options else name.upper(), **options)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _range(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    try:
        found = int(start), int(stop)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not START:STOP, such as 0:20") from None
    if not 0 <= found[0] < found[1]:
        raise argparse.ArgumentTypeError(f"{text} holds no layers; START must be below STOP, as in 0:20")
    return found
