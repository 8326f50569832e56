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

_EPILOG = """\
example: tnkit demo --language ko
each command's own flags and example: tnkit COMMAND --help
exit codes: 0 done, 1 could not be done (one line says why), 2 wrong usage, 130 interrupted
"""
_DTYPES = ("auto", "float16", "bfloat16", "float32", "float64")
_DISTANCES = {"cos_sim": "cosine", "L2_dis": "euclidean"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("tnkit: interrupted; nothing was half-written", file=sys.stderr)
        return 130
    except TnkitError as error:
        print(f"tnkit: {_one_line(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains on its way out
        return 1
    except Exception as error:
        if os.environ.get("TNKIT_DEBUG"):
            raise
        text = f"unexpected {type(error).__name__}: {_one_line(error)} (TNKIT_DEBUG=1 shows where)"
        print(f"tnkit: {text}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _demo(options: argparse.Namespace) -> None:
    from tnkit import demo

    demo.run(language=options.language, model=options.model_id, top=options.top_n, out=options.out)


def _centroids(options: argparse.Namespace) -> None:
    from tnkit.activations import stream
    from tnkit.centroids import CentroidAccumulator, estimate_centroids

    hub = list(options.hub) if options.TN_Type == "type1" else []
    if options.lang_for_TN in hub:
        raise TnkitError(f"--lang_for_TN {options.lang_for_TN} is the hub; name another with --hub")
    out = _out(options, "centroids", ".safetensors")
    texts = _sentences(options, [*hub, options.lang_for_TN])
    model = _model(options)
    captured = []
    for language in (*hub, options.lang_for_TN):
        running = CentroidAccumulator()
        reading = {"keep": ["post"], "last_layer": options.last_layer, **_reading(options)}
        for batch in stream(model, texts[language], **reading):
            running.add(batch)
        captured.append(running.result())
    print(estimate_centroids(captured).save(out, format=options.format))


def _detect(options: argparse.Namespace) -> None:
    from tnkit.centroids import Centroids
    from tnkit.detection import detect_towards

    out = _out(options, "neurons", ".json")
    scores = options.scores and _writable("--scores", Path(options.scores), ".safetensors", options)
    centroids = Centroids.load(options.centroids_path)
    texts = _sentences(options, [options.lang_for_TN])
    model = _model(options)
    found = detect_towards(
        model,
        texts[options.lang_for_TN],
        centroids,
        language=options.lang_for_TN,
        kind=options.TN_Type,
        top=options.top_n,
        distance=_DISTANCES[options.scoring_type],
        layers=_layers(options, model.n_layers),
        **_reading(options),
    )
    written = [found.neurons.save(out, format=options.format)]
    if scores:
        written.append(found.scores.save(scores))
    for path in written:
        print(path)


def _sentences(options: argparse.Namespace, languages: list[str]):
    import tnkit as tn

    corpus = tn.load_corpus(options.sentence_path, languages, test=0.0)
    texts = corpus["train"]
    if not texts[languages[0]]:
        raise TnkitError(f"{corpus.name} has no row of the split 'train'; mark some so, or drop the column split")
    return texts


def _model(options: argparse.Namespace):
    import huggingface_hub
    import transformers

    import tnkit as tn

    transformers.logging.set_verbosity_error()  # what goes wrong is said once, by tnkit
    huggingface_hub.logging.set_verbosity_error()
    return tn.load_model(
        options.model_id,
        revision=options.revision,
        dtype=options.dtype,
        device_map=options.device_map,
        trust_remote_code=options.trust_remote_code,
    )


def _layers(options: argparse.Namespace, n_layers: int) -> range | None:
    if options.layers and options.layers[1] > n_layers:
        start, stop = options.layers
        raise TnkitError(
            f"--layers {start}:{stop} reaches past the last layer of {options.model_id}, {n_layers - 1}; give a range "
            f"within 0:{n_layers}"
        )
    return options.layers and range(*options.layers)


def _reading(options: argparse.Namespace) -> dict:
    progress = not options.quiet and sys.stderr.isatty()
    return {"position": options.position, "batch_tokens": options.batch_tokens, "progress": progress}


def _out(options: argparse.Namespace, what: str, suffix: str) -> Path:
    suffix = ".pkl" if options.format == "reference" else suffix
    out = Path(options.out or f"{options.lang_for_TN}-{options.TN_Type}-{what}{suffix}")
    return _writable("--out", out, suffix, options)


def _writable(flag: str, path: Path, suffix: str, options: argparse.Namespace) -> Path:
    """A place to write to; one that cannot be is refused before the work, not after it."""
    if path.suffix != suffix:
        raise TnkitError(f"{flag} {path} ends in {path.suffix or 'nothing'}; name a file that ends in {suffix}")
    read = [Path(getattr(options, name, None) or "") for name in ("sentence_path", "centroids_path")]
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    reasons = {
        "it is a folder": path.is_dir(),
        "it is read from, too": path.resolve() in [one.resolve() for one in read],
        f"{above} is not a folder": not above.is_dir(),
        f"{above} may not be written to": above.is_dir() and not os.access(above, os.W_OK | os.X_OK),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason:
        raise TnkitError(f"cannot write {path}: {reason}; choose another place with {flag}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tnkit",
        description="Find transfer neurons of multilingual language models (Tezuka & Inoue, EMNLP 2025).",
        epilog=_EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"tnkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = _command(
        commands, "demo", _demo, "detect and draw, with the packaged model and corpus", ["tnkit demo --language ko"]
    )
    _flag(demo, "language", default="ja", help="language in question: ja, ko, nl or it (default ja)")
    _flag(demo, "model_id", default="gemma-3-270m", help="another model (default: the packaged one)")
    _flag(demo, "top_n", type=_positive, default=300, help="neurons of each type (default 300)")
    _flag(demo, "out", default="figures", help="folder for figures and neuron sets (default figures)")

    example = [
        "tnkit centroids --model_id gemma-3-270m --TN_Type type1 --lang_for_TN ja --sentence_path pairs.tsv",
        "tnkit centroids --model_id gemma-3-270m --TN_Type type2 --lang_for_TN ja --sentence_path mono.txt",
    ]
    centroids = _command(
        commands, "centroids", _centroids, "estimate the centroids that neurons are scored against", example
    )
    _shared_flags(centroids, "pairs for type1, single sentences for type2")
    _flag(
        centroids, "hub", type=_names, default=("en",), help="language(s) of the shared space: en or en,fr (default en)"
    )
    _flag(
        centroids,
        "last_layer",
        choices=("raw", "normed"),
        default="raw",
        help="last layer as it is, or through the final norm as in the published code (default raw)",
    )

    example = [
        "tnkit detect --model_id gemma-3-270m --TN_Type type1 --top_n 1000 --lang_for_TN ja \\",
        "  --scoring_type cos_sim --centroids_path ja-type1-centroids.safetensors --sentence_path mono.txt",
    ]
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


class _Formatter(argparse.HelpFormatter):
    """Wraps help as ever, but leaves lines that end in a line break as they are, to be copied and run."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.endswith("\n") else super()._fill_text(text, width, indent)


def _command(commands, name: str, run, summary: str, example: Sequence[str]) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="".join(f"{line}\n" for line in ["example:", *(f"  {line}" for line in example)]),
        formatter_class=_Formatter,
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
    _flag(command, "revision", help="branch, tag or commit on the Hub")
    _flag(command, "dtype", choices=_DTYPES, default="auto", help="auto (default): as stored")
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
