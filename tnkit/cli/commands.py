"""What each command of `tnkit` does; `tnkit.cli.main` reads the flags."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit import processes as parallel
from tnkit.errors import TnkitError, first_line, visible

if TYPE_CHECKING:
    from tnkit.detection.neurons import NeuronSet
    from tnkit.models.model import Model
    from tnkit.text.corpus import Split

DISTANCES = {"cos_sim": "cosine", "L2_dis": "euclidean"}


def demo(options: argparse.Namespace) -> None:
    from tnkit.cli.demo import run

    run(
        language=options.language,
        model=options.model_id,
        top=options.top_n,
        seeds=options.seeds,
        out=options.out,
        progress=_progress(options),
    )


def centroids(options: argparse.Namespace) -> None:
    from tnkit.detection.centroids import estimate_centroids
    from tnkit.detection.sums import centroid
    from tnkit.text.languages import code_of

    hub = list(options.hub) if options.TN_Type == "type1" else []
    if code_of(options.lang_for_TN) in map(code_of, hub) and hub:
        raise TnkitError(f"--lang_for_TN {options.lang_for_TN} is also the hub; choose another hub with --hub")
    out = _out(options, "centroids", ".safetensors")
    texts = _sentences(options, [*hub, options.lang_for_TN])
    model = _model(options)
    captured = [
        centroid(model, texts[language], last_layer=options.last_layer, cache=options.cache, **_reading(options))
        for language in (*hub, options.lang_for_TN)
    ]
    if parallel.rank() == 0:
        _print(estimate_centroids(captured).save(out, format=options.format))


def detect(options: argparse.Namespace) -> None:
    from tnkit import storage
    from tnkit.detection.centroids import Centroids
    from tnkit.detection.detect import detect_towards
    from tnkit.models.tokens import ends_lines

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
        distance=DISTANCES[options.scoring_type],
        layers=_layers(options, model.n_layers),
        cache=options.cache,
        **_reading(options),
    )
    if parallel.rank():
        return
    with storage.together():
        written = [found.neurons.save(out, format=options.format)]
        if scores:
            written.append(found.scores.save(scores))
    for path in written:
        _print(path)
    if not options.quiet:
        for language, text in ends_lines([found.scores.provenance["sentences"]]).items():
            print(visible(f"tnkit: sentences in {language} end: {text}"), file=sys.stderr)


def ablate(options: argparse.Namespace) -> None:
    """Ablate a neuron set and its controls, or show continuations with and without it."""
    import tnkit as tn
    from tnkit.detection.scoring import contribution_norms
    from tnkit.plots import figures as plots

    language = options.lang_for_TN
    out = _writable(
        "--out", Path(options.out or f"{tn.storage.file_name(language)}-{options.measure}.csv"), ".csv", options
    )
    figure = options.figure and _writable("--figure", Path(options.figure), ".png", options)
    paired = options.measure in ("retrieval", "similarity", "mutual_knn")
    texts = _sentences(options, [options.hub, language] if paired else [language])
    model = _model(options)
    neurons = _neurons(options.neurons, model)
    if options.measure == "generation":
        how: dict[str, Any] = {"tokens": options.tokens, "progress": _progress(options)}
        how["controls"] = {"same layers": neurons.matched(seed=0)}
        continued = tn.behaviour.continuations(model, texts[language], neurons=neurons, **how)
        generated = continued.by_condition()
        _print(generated.to_string())
        _print(tn.storage.write_text(out, generated.to_csv()))
        return
    reading = {"position": options.position, "suffix": options.suffix}
    captured = tn.capture(model, texts[language], keep=["activations"], progress=_progress(options), **reading)
    scores = tn.NeuronScores.load(options.scores_path) if options.scores_path else None
    others = {Path(path).stem: _neurons(path, model) for path in options.other or ()}
    controls = tn.controls(neurons, norms=contribution_norms(model, captured), scores=scores, others=others)
    found = tn.ablate(
        model,
        texts,
        neurons,
        language=language,
        controls=controls,
        measure=options.measure,
        hub=options.hub,
        tokens=options.tokens,
        position=options.position,
        suffix=options.suffix,
        seeds=options.seeds,
        progress=_progress(options),
    )
    where = f" at layer {found.best_layer}, where the untouched model does best on these sentences" if paired else ""
    _print(f"{found.measure}{where}; neurons set to zero, tokens: {options.tokens}")
    _print(found.at().round(4).to_string())
    with tn.storage.together():
        written = [tn.storage.write_text(out, found.to_frame().to_csv())]
        if figure:
            written.append(plots.save_figure(found.plot().figure, figure))
    for path in written:
        _print(path)


def evaluate(options: argparse.Namespace) -> None:
    """Run tasks of the lm-evaluation-harness without and with a neuron set ablated."""
    import tnkit as tn

    out = _writable("--out", Path(options.out or "evaluation.csv"), ".csv", options)
    model = _model(options)
    found = tn.harness.evaluate(
        model,
        list(options.tasks),
        neurons=_neurons(options.neurons, model),
        tokens=options.tokens,
        limit=options.limit,
        include_path=options.include_path,
        trust_remote_code=options.trust_remote_code,
    )
    _print(found.to_frame().to_string())
    _print(tn.storage.write_text(out, found.to_frame().to_csv()))


def cache(options: argparse.Namespace) -> None:
    """List what the cache folder holds, or clear it.

    >>> import contextlib, io
    >>> with contextlib.redirect_stdout(io.StringIO()) as said:
    ...     cache(argparse.Namespace(clear=False, models=False, yes=False))
    >>> "in all, in" in said.getvalue()
    True
    """
    from tnkit.captures import shards
    from tnkit.storage import cache_folder

    listed = shards.entries()
    if options.clear and not options.models:
        listed = [entry for entry in listed if entry.path.parent == shards.folder()]
    for entry in listed:
        _print(f"{_size(entry.size):>9}  {entry.modified:%Y-%m-%d %H:%M}  {entry.what}")
    _print(f"{_size(sum(entry.size for entry in listed)):>9}  in all, in {cache_folder()}")
    if not options.clear or not listed:
        return
    if not options.yes:
        if not sys.stdin.isatty():
            raise TnkitError("--clear asks before it removes these; add --yes to remove them without a question")
        if _answer("remove these? [y/N] ") not in ("y", "yes"):
            print("nothing was removed")
            return
    _print(f"freed {_size(shards.clear(listed))} in {cache_folder()}")


def _answer(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:  # Ctrl-D
        print()
        return ""


def doctor(options: argparse.Namespace) -> None:
    """Check the setup, and fail where something must be fixed first."""
    from tnkit.cli.doctor import examine

    broken = 0
    for finding in examine(options.model):
        _print(finding)
        broken += finding.needed
    if broken:
        raise TnkitError(f"{broken} of these must be fixed before tnkit works; see FIX above")


def _print(text: object) -> None:
    """Print a result; text of models, files and folders is shown and never interpreted by the terminal."""
    print(visible(text), flush=True)


def _size(count: int | float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _neurons(path: str, model: "Model") -> "NeuronSet":
    import tnkit as tn
    from tnkit.provenance import check_made_with

    found = tn.NeuronSet.load(path, shape=(model.n_layers, model.n_neurons))
    check_made_with(model, found.provenance, f"the neurons of {path}")
    return found


def _sentences(options: argparse.Namespace, languages: list[str]) -> "Split":
    import tnkit as tn

    how = {"header": None if options.no_header else 0, "quoting": options.quoting, "leaks": options.leaks}
    corpus = tn.load_corpus(options.sentence_path, languages, test=0.0, **how)
    texts = corpus["train"]
    if not texts[languages[0]]:
        raise TnkitError(
            f"{corpus.name} has no row in the split 'train'; mark some rows 'train', or drop the column split"
        )
    return texts


def _model(options: argparse.Namespace) -> "Model":
    import huggingface_hub
    import transformers

    import tnkit as tn

    transformers.logging.set_verbosity_error()  # tnkit reports each problem once
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


def _layers(options: argparse.Namespace, n_layers: int) -> range | None:
    if options.layers and options.layers[1] > n_layers:
        start, stop = options.layers
        raise TnkitError(
            f"--layers {start}:{stop} reaches past the last layer of {options.model_id}, {n_layers - 1}; give a range "
            f"within 0:{n_layers}"
        )
    return options.layers and range(*options.layers)


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    reading = {"position": options.position, "suffix": options.suffix, "batch_tokens": options.batch_tokens}
    return {**reading, "progress": _progress(options)}


def _progress(options: argparse.Namespace) -> bool:
    return not options.quiet and sys.stderr.isatty()


def _out(options: argparse.Namespace, what: str, suffix: str) -> Path:
    from tnkit.storage import file_name

    suffix = ".pkl" if options.format == "reference" else suffix
    name = options.out or f"{file_name(options.lang_for_TN)}-{options.TN_Type}-{what}{suffix}"
    return _writable("--out", Path(name), suffix, options)


def _writable(flag: str, path: Path, suffix: str, options: argparse.Namespace) -> Path:
    """The path of a file that can be written; others are refused before the work begins."""
    if path.suffix != suffix:
        raise TnkitError(f"{flag} {path} ends in {path.suffix or 'nothing'}; name a file that ends in {suffix}")
    names = [getattr(options, name, None) for name in ("model_id", "sentence_path", "centroids_path", "neurons")]
    names += [getattr(options, "scores_path", None), *(getattr(options, "other", None) or ())]
    try:
        read, target = {Path(name).resolve() for name in names if name}, path.resolve()
        above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        reasons = {
            "it is a folder": path.is_dir(),
            "this command also reads it": path.exists() and not read.isdisjoint({target, *target.parents}),
            f"{above} is not a folder": not above.is_dir(),
            f"you may not write to {above}": above.is_dir() and not os.access(above, os.W_OK | os.X_OK),
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
    except (OSError, ValueError, RuntimeError) as error:  # names that no file can have, loops of links
        reason = first_line(error)
    if reason:
        raise TnkitError(f"cannot write {path}: {reason}; choose another place with {flag}")
    return path
