"""The main job of the demo: find transfer neurons of a real model, switch them off beside their controls, draw it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import tnkit as tn
from tnkit import behaviour, plots, spaces
from tnkit.comparison import Comparison
from tnkit.detection import KINDS, Detection
from tnkit.experiments import RetrievalMatrix
from tnkit.scoring import contribution_norms

if TYPE_CHECKING:
    from tnkit.corpora import Corpus
    from tnkit.models import Model

_HUB = "en"
_READ = 24  # sentences of each language whose perplexity is taken


def run(
    *,
    language: str = "ja",
    model: str = "gemma-3-270m",
    top: int = 300,
    seeds: int = 10,
    out: str | Path = "figures",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Detect both types, switch Type-1 off beside its controls, print the findings, and draw the figures.

    Args:
        language: one of the packaged corpus's, other than English.
        model: a packaged model's name, a Hub id or a folder.
        top: how many neurons of each type.
        seeds: draws of each random control.
        out: where the figures and neuron sets go.
        progress: show bars.
        say: receives each line of the summary.

    Returns:
        The files that were written.

    >>> run(language="ko", out="figures")  # doctest: +SKIP

    Raises:
        TnkitError: for an unknown language or model.
    """
    started, out, name = time.perf_counter(), Path(out), plots.language_name(language)
    corpus = tn.load_corpus("everyday")
    train, test = corpus["train"], corpus["test"]
    train[language]
    if language == _HUB:
        raise tn.TnkitError("English is the demo's hub; choose --language " + ", ".join(corpus.languages[1:]))
    say(f"loading {model} (a packaged model is converted the first time, about a minute)")
    loaded = tn.load_model(model)
    say(f"{loaded.name}: {loaded.n_layers} layers of {loaded.n_neurons:,} neurons, {loaded.sites}")
    say(f"corpus {corpus.name}: {len(train[_HUB])} training and {len(test[_HUB])} test sentences each in "
        + ", ".join(map(plots.language_name, corpus.languages)))  # fmt: skip

    found = tn.detect_all(loaded, corpus, hub=_HUB, top=top, progress=progress)
    for kind in KINDS:
        say(_found(found[language, kind]))
    by_kind = {kind: found[language, kind] for kind in KINDS}
    title = f"{name} transfer neurons of {loaded.name}"
    where = plots.neurons_by_layer({kind: one.neurons for kind, one in by_kind.items()}, title=title)
    files = [
        plots.save_figure(where.figure, out / "neurons_by_layer.png"),
        plots.save_figure(plots.detections(by_kind, title=f"{name}, {loaded.name}"), out / "score_distribution.png"),
        *(one.neurons.save(out / f"{language}-{kind}.json") for kind, one in by_kind.items()),
    ]
    shown = (loaded.n_layers // 8, loaded.n_layers // 2, loaded.n_layers - 1)
    how = {"keep": ["post"], "layers": shown, "progress": progress}
    states = {one: tn.capture(loaded, train[one], **how) for one in corpus.languages}
    files.append(plots.save_figure(spaces.pca(states).plot(), out / "spaces.png"))

    all_type1 = {one: found[one, "type1"] for one in corpus.languages[1:]}
    compared = _compare(loaded, corpus, all_type1, language, seeds=seeds, progress=progress)
    say(_compared(compared, name))
    axes = compared.plot()
    axes.set(
        title=f"{name}: {top} Type-1 neurons off at the last token ({loaded.name})",
        ylabel="translations found (retrieval@1)",
    )
    files.append(plots.save_figure(axes.figure, out / "ablation.png"))
    type1 = {one: found[one, "type1"].neurons for one in corpus.languages[1:]}
    matrix = tn.retrieval_matrix(loaded, test, type1, hub=_HUB, progress=progress)
    say(_specific(matrix))
    axes = matrix.plot()
    axes.set_title(plots.literal(f"Type-1 neurons off at the last token ({loaded.name})"))
    files.append(plots.save_figure(axes.figure, out / "specificity.png"))
    type2 = {one: found[one, "type2"].neurons for one in corpus.languages[1:]}
    some = {one: test[one][:_READ] for one in type2}
    confused = behaviour.perplexity_matrix(loaded, some, type2, progress=progress)
    say(_confused(confused, _READ))
    axes = confused.plot()
    axes.set_title(plots.literal(f"Type-2 neurons off at every token ({loaded.name})"))
    files.append(plots.save_figure(axes.figure, out / "perplexity.png"))

    say(f"\ndone in {time.perf_counter() - started:.0f} s; wrote")
    for file in files:
        say(f"  {file}")
    return files


def _compare(
    model: "Model", corpus: "Corpus", found: dict[str, Detection], language: str, *, seeds: int, progress: bool
) -> Comparison:
    """Retrieval of translations with the language's Type-1 neurons off, and with each of five controls off."""
    own, other = found[language], next(one for one in found if one != language)
    layers = model.early_layers
    captured = tn.capture(model, corpus["train"][language], keep=["activations"], layers=layers, progress=progress)
    norms = contribution_norms(model, captured)
    others = {f"{plots.language_name(other)} Type-1": found[other].neurons}
    controls = tn.controls(own.neurons, layers=layers, norms=norms, scores=own.scores, others=others)
    how = {"controls": controls, "seeds": seeds, "progress": progress}
    return tn.ablate(model, corpus["test"], own.neurons, language=language, hub=_HUB, **how)


def _found(found: Detection) -> str:
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
            "  neurons by layer: " + "  ".join(f"{layer}:{len(ones)}" for layer, ones in chosen.by_layer().items()),
        ]
    )


def _compared(compared: Comparison, name: str) -> str:
    rows = compared.at()
    layer = compared.layers[int(compared.untouched.mean(axis=1).argmax())]
    worst = rows.drop("the set")["ratio high"].max()
    lines = [
        "",
        f"Translations found (retrieval@1) of {compared.untouched.shape[1]} {name} test sentences at layer {layer}, "
        "where the untouched model does best:",
        f"  {'neurons off at the last token':<33}{'found':>6}  {'95 % interval':<14}  {'set / this':>10}  "
        f"{'95 % interval':<14}  p",
    ]
    for condition, row in rows.iterrows():
        label = f"{condition} ({int(row['seeds'])} seeds)" if row["seeds"] > 1 else str(condition)
        line = f"  {label:<33}{row['mean']:6.3f}  {row['low']:.3f} – {row['high']:.3f} "
        if condition != "the set":
            line += f"  {row['ratio']:10.2f}  {row['ratio low']:.2f} – {row['ratio high']:.2f}    {row['p']:.4f}"
        lines.append(line)
    lines.append(
        f"  with the set off, at most {worst:.0%} (upper bounds) of what is found with nothing or a control off"
    )
    return "\n".join(lines)


def _specific(matrix: RetrievalMatrix) -> str:
    head = f"\nThe same at layer {matrix.layer}, Type-1 neurons of one language off (rows), another read (columns):\n"
    table = matrix.to_frame().rename(index=plots.language_name, columns=plots.language_name)
    return head + table.rename_axis(index=None, columns=None).round(3).to_string(line_width=100)


def _confused(matrix: "behaviour.PerplexityMatrix", count: int) -> str:
    head = (
        f"\nPerplexity of {count} test sentences, Type-2 neurons of one language off (rows), another read (columns):\n"
    )
    table = matrix.to_frame()["perplexity"].unstack(sort=False)
    table = table.rename(index=plots.language_name, columns=plots.language_name)
    return head + table.rename_axis(index=None, columns=None).round(0).astype(int).to_string(line_width=100)
