"""The flags that commands share, and what their values stand for: a model, sentences, neurons, files to write.

Flags keep the spelling of the published code (--model_id); hyphens (--model-id) work too.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError, first_line, visible

if TYPE_CHECKING:
    from tnkit.detection.neurons import NeuronSet
    from tnkit.models.model import Model
    from tnkit.text.corpus import Split

# flags that name input
_READ = (
    "model_id",
    "sentence_path",
    "centroids_path",
    "origin_path",
    "neurons",
    "scores_path",
    "other",
    "include_path",
    "prompts",
    "evidence",
)
_POSITIONS = {
    "last": "last token",
    "last_word": "last one that is no punctuation",
    "mean": "mean over tokens",
    "end": "end of the template",
}


def flag(command: argparse.ArgumentParser, name: str, text: str, **options: Any) -> None:
    """Add a flag; `tnkit.cli.main` accepts its hyphenated spelling, which the help names."""
    if "choices" not in options and options.get("action") != "store_true":
        options = {"metavar": name.upper(), "type": given, **options}
    hyphened = name.replace("_", "-")
    command.add_argument(f"--{name}", help=text if hyphened == name else f"[--{hyphened}] {text}", **options)


def switch(command: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add a flag without a value."""
    flag(command, name, text, action="store_true")


def add_model(command: argparse.ArgumentParser) -> None:
    flag(command, "model_id", "packaged model (gemma-3-270m), Hub id or local folder", required=True)
    flag(command, "revision", "branch, tag or commit on the Hub")
    dtypes = ("auto", "float16", "bfloat16", "float32", "float64")
    flag(command, "dtype", "auto (default): as stored", choices=dtypes, default="auto")
    flag(command, "device_map", "as in transformers, such as auto or cuda:0")
    switch(command, "trust_remote_code", "run Python code of the model repository, and of task files")
    add_quiet(command)


def add_quiet(command: argparse.ArgumentParser) -> None:
    switch(command, "quiet", "no progress bar and no notes")


def add_sentences(command: argparse.ArgumentParser, expected: str) -> None:
    endings = ".tsv .csv .jsonl .json .parquet .arrow .feather .xlsx .tmx .txt .pkl, or a folder"
    flag(command, "lang_for_TN", "language to study, as the file names it: ja", required=True)
    flag(command, "sentence_path", f"{expected}: {endings}", required=True)
    switch(command, "no_header", "the first line is a row; languages are in column order")
    flag(command, "quoting", "of a .tsv file: quotes mark cells, or are text", choices=("csv", "none"))
    flag(command, "leaks", "training rows that are in the test split", choices=("refuse", "drop"), default="refuse")
    switch(command, "chat", "wrap each sentence in the tokenizer's chat template")


def add_neurons(command: argparse.ArgumentParser, tokens: str) -> None:
    flag(command, "neurons", "file from `tnkit detect`, or the published code's .pkl", required=True)
    text = f"where to ablate: last prompt token, last word, whole prompt or all tokens (default {tokens})"
    flag(command, "tokens", text, choices=("last", "last_word", "prompt", "all"), default=tokens)


def add_detection(command: argparse.ArgumentParser) -> None:
    text = "type1: towards the shared centroid; type2: towards the language's own"
    flag(command, "TN_Type", text, choices=("type1", "type2"), required=True)
    names = "LANG-TYPE-centroids.safetensors or LANG-TYPE-neurons.json"
    flag(command, "out", f"file to write (default: {names} in the current folder)")
    text = "tnkit, or reference for a pickle as in the published code (default tnkit)"
    flag(command, "format", text, choices=("tnkit", "reference"), default="tnkit")
    add_reading(command, ("last", "last_word", "mean", "end"))
    text = "maximum number of tokens in a batch (default 1536, padded rows 768; on a GPU, chosen by its free memory)"
    flag(command, "batch_tokens", text, type=positive)
    flag(command, "tp_plan", "spread the model over the processes that torchrun starts", choices=("auto",))
    switch(command, "cache", "cache partial results and resume")


def add_reading(command: argparse.ArgumentParser, positions: tuple[str, ...]) -> None:
    text = f"what is read of a sentence: {', '.join(_POSITIONS[name] for name in positions)} (default last)"
    flag(command, "position", text, choices=positions, default="last")
    text = "put in place of each sentence's final punctuation ('' only takes it off)"
    flag(command, "suffix", text, type=unicode_text)


def add_seeds(command: argparse.ArgumentParser) -> None:
    flag(command, "seeds", "number of draws of each random control (default 10)", type=positive, default=10)


def unicode_text(text: str) -> str:
    return _encodable(text, str.encode)


def given(text: str) -> str:
    """A value that can be part of a file's name."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a value, not an empty text")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r:.60} holds a NUL character")
    return _encodable(text, os.fsencode)


def _encodable(text: str, encode: Callable[[str], bytes]) -> str:
    try:
        encode(text)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not valid Unicode") from None
    return text


def positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a positive whole number")
    return int(text)


def layer(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a layer, counted from 0")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    listed = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not listed:
        raise argparse.ArgumentTypeError("expected one or more names, separated by commas")
    return listed


def span(text: str) -> range:
    match = re.fullmatch("([0-9]{1,9}):([0-9]{1,9})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not START:STOP, such as 0:20")
    layers = range(int(match[1]), int(match[2]))
    if not layers:
        raise argparse.ArgumentTypeError(f"{text} holds no layers; START must be less than STOP, as in 0:20")
    return layers


def model(options: argparse.Namespace) -> "Model":
    """Load the model; tnkit reports each problem once, so transformers and the Hub's client are silenced."""
    import huggingface_hub
    import transformers

    import tnkit as tn

    transformers.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    return tn.load_model(
        options.model_id,
        revision=options.revision,
        dtype=options.dtype,
        device_map=options.device_map,
        tp_plan=getattr(options, "tp_plan", None),
        trust_remote_code=options.trust_remote_code,
        chat=getattr(options, "chat", False),
    )


def sentences(options: argparse.Namespace, languages: list[str]) -> "Split":
    import tnkit as tn

    layout = {"header": None if options.no_header else 0, "quoting": options.quoting, "leaks": options.leaks}
    corpus = tn.load_corpus(options.sentence_path, languages, test=0.0, **layout)
    texts = corpus["train"]
    if not texts[languages[0]]:
        raise TnkitError(
            f"{corpus.name} has no row in the split 'train'; mark some rows 'train', or drop the column split"
        )
    return texts


def neurons(path: str, of: "Model") -> "NeuronSet":
    import tnkit as tn
    from tnkit.provenance import check_made_with

    loaded = tn.NeuronSet.load(path, shape=(of.n_layers, of.n_neurons))
    check_made_with(of, loaded.provenance, f"the neurons of {path}")
    return loaded


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """How sentences are read, as arguments of `tn.capture`."""
    given = {name: getattr(options, name) for name in ("position", "suffix", "batch_tokens") if name in options}
    return {**given, "progress": progress(options)}


def progress(options: argparse.Namespace) -> bool:
    return not options.quiet and sys.stderr.isatty()


def output(options: argparse.Namespace, name: str, suffix: str, default: str = "") -> Path:
    """The path that a flag names for a result; a path that cannot be written is refused before the work begins."""
    path = Path(getattr(options, name) or default)
    if path.suffix != suffix:
        raise TnkitError(f"--{name} {path} ends in {path.suffix or 'nothing'}; name a file that ends in {suffix}")
    try:
        reason = _obstacle(path, options)
    except (OSError, ValueError, RuntimeError) as error:  # names that no file can have, loops of links
        reason = first_line(error)
    if reason:
        raise TnkitError(f"cannot write {path}: {reason}; choose another place with --{name}")
    return path


def _obstacle(path: Path, options: argparse.Namespace) -> str | None:
    values = [getattr(options, name, None) or () for name in _READ]
    listed = [value for value in values for value in ([value] if isinstance(value, str) else value)]
    read, target = {Path(value).resolve() for value in listed}, path.resolve()
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not read.isdisjoint({target, *target.parents}):
        return "this command also reads it"
    if not above.is_dir():
        return f"{above} is not a folder"
    return None if os.access(above, os.W_OK | os.X_OK) else f"you may not write to {above}"


def write(*writers: Callable[[], Path]) -> None:
    """Write the files of one result, all of them or none, and print their paths."""
    from tnkit import storage

    with storage.together():
        written = [writer() for writer in writers]
    for path in written:
        show(path)


def show(text: object) -> None:
    """Print a result; text of models, files and folders cannot control the terminal."""
    print(visible(text), flush=True)
