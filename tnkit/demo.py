"""The main job of the demo: transfer neurons of a real model in real sentences, summarised and drawn."""

import time
from collections.abc import Callable
from pathlib import Path

import tnkit as tn
from tnkit import geometry, plots
from tnkit.detection import KINDS, Detection


def run(
    *,
    language: str = "ja",
    model: str = "gemma-3-270m",
    top: int = 300,
    out: str | Path = "figures",
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Detect both types of one language, print a summary, and draw three figures.

    Args:
        language: one of the packaged corpus's, other than English.
        model: a packaged model's name, a Hub id or a folder.
        top: how many neurons of each type.
        out: where the figures and neuron sets go.
        say: receives each line of the summary.

    Returns:
        The files that were written.

    Raises:
        TnkitError: for an unknown language or model.
    """
    started = time.perf_counter()
    corpus = tn.load_corpus("everyday")
    train = corpus["train"]
    train[language]
    if language == "en":
        raise tn.TnkitError("English is the demo's hub; choose --language " + ", ".join(corpus.languages[1:]))
    say(f"loading {model} (the first time it is converted, about a minute)")
    loaded = tn.load_model(model)
    say(f"{loaded.name}: {loaded.n_layers} layers of {loaded.n_neurons:,} neurons, {loaded.sites}")
    say(f"corpus {corpus.name}: {len(train['en'])} training sentences each in {', '.join(corpus.languages)}")
    found = tn.detect_all(loaded, corpus, [language], hub="en", top=top)
    for kind in KINDS:
        say(_summary(found[language, kind]))
    shown = (loaded.n_layers // 8, loaded.n_layers // 2, loaded.n_layers - 1)
    states = {name: tn.capture(loaded, train[name], keep=["post"], layers=shown) for name in corpus.languages}
    out, name = Path(out), plots.language_name(language)
    where = plots.neurons_by_layer(
        {kind: found[language, kind].neurons for kind in KINDS}, title=f"{name} transfer neurons of {loaded.name}"
    )
    by_kind = {kind: found[language, kind] for kind in KINDS}
    files = [
        plots.save_figure(where.figure, out / "neurons_by_layer.png"),
        plots.save_figure(plots.detections(by_kind, title=f"{name}, {loaded.name}"), out / "score_distribution.png"),
        plots.save_figure(geometry.pca(states).plot(), out / "spaces.png"),
        *(found[language, kind].neurons.save(out / f"{language}-{kind}.json") for kind in KINDS),
    ]
    say(f"done in {time.perf_counter() - started:.0f} s; wrote")
    for file in files:
        say(f"  {file}")
    return files


def _summary(found: Detection) -> str:
    target = "shared" if found.kind == "type1" else "own"
    values = found.scores.values[found.scores.layers]
    chosen = found.neurons
    best = (
        f"({layer}, {neuron}) {score:+.4f}" for (layer, neuron), score in zip(chosen[:5], chosen.scores, strict=False)
    )
    kind, language = found.kind.replace("type", "Type-"), plots.language_name(found.language)
    return "\n".join(
        [
            "",
            f"{kind} neurons of {language}: the {len(chosen)} of {values.numel():,} that move the residual stream most "
            f"towards the {target} centroid",
            f"  scores above 0: {(values > 0).double().mean():.1%} of all; chosen: from {chosen.scores[-1]:+.5f}",
            f"  best (layer, neuron): {', '.join(best)}",
            "  neurons by layer: "
            + "  ".join(f"{layer}:{len(neurons)}" for layer, neurons in chosen.by_layer().items()),
        ]
    )
