"""The main job of the demo: find transfer neurons of a real model, switch them off beside their controls, draw it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import tnkit as tn
from tnkit.detection.detect import KINDS, Detection
from tnkit.detection.scoring import contribution_norms
from tnkit.interventions.comparison import Comparison
from tnkit.measures import behaviour, geometry
from tnkit.measures.experiments import RetrievalMatrix
from tnkit.measures.geometry import ByLayer
from tnkit.plots import figures as plots

if TYPE_CHECKING:
    from tnkit.models.model import Model
    from tnkit.text.corpus import Sentences, Split

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
    states = {one: tn.capture(loaded, train[one], keep=["post"], progress=progress) for one in corpus.languages}
    files.append(plots.save_figure(geometry.pca(states, layers=shown).plot(), out / "spaces.png"))

    layer, _ = geometry.retrieval(states[language], states[_HUB]).best()
    all_type1 = {one: found[one, "type1"] for one in corpus.languages[1:]}
    captured = tn.capture(loaded, train[language], keep=["activations"], progress=progress)
    compared, at_means = _compare(loaded, test, captured, all_type1, language, seeds=seeds, progress=progress)
    say(_compared(compared, name, layer))
    say(_at_means(at_means, name, layer))
    axes = compared.plot()
    axes.set(
        title=f"{name}: {top} Type-1 neurons set to zero at the last token ({loaded.name})",
        ylabel="translations found (mean-centred retrieval@1)",
    )
    files.append(plots.save_figure(axes.figure, out / "ablation.png"))
    type1 = {one: found[one, "type1"].neurons for one in corpus.languages[1:]}
    matrix = tn.retrieval_matrix(loaded, test, type1, hub=_HUB, layer=layer, progress=progress)
    say(_specific(matrix))
    axes = matrix.plot()
    axes.set_title(plots.literal(f"Type-1 neurons set to zero at the last token ({loaded.name})"))
    files.append(plots.save_figure(axes.figure, out / "specificity.png"))
    type2 = {one: found[one, "type2"].neurons for one in corpus.languages[1:]}
    some = {one: test[one][:_READ] for one in type2}
    confused = behaviour.perplexity_matrix(loaded, some, type2, progress=progress)
    say(_confused(confused, _READ))
    read = {one: test[one][:_READ] for one in (language, _HUB)}
    say(_type2_at_means(loaded, type2[language], captured, read, progress=progress))
    axes = confused.plot()
    axes.set_title(plots.literal(f"Type-2 neurons set to zero at every token ({loaded.name})"))
    files.append(plots.save_figure(axes.figure, out / "perplexity.png"))

    say(f"\ndone in {time.perf_counter() - started:.0f} s; wrote")
    for file in files:
        say(f"  {file}")
    return files


def _compare(
    model: "Model",
    test: "Split",
    captured: tn.Activations,
    found: dict[str, Detection],
    language: str,
    *,
    seeds: int,
    progress: bool,
) -> tuple[Comparison, ByLayer]:
    """Retrieval of translations with the language's Type-1 neurons, and each of five controls, set to zero.

    And with the same neurons set to their mean over what was captured.
    """
    own, other = found[language], next(one for one in found if one != language)
    layers = model.early_layers
    norms = contribution_norms(model, captured)
    others = {f"{plots.language_name(other)} Type-1": found[other].neurons}
    controls = tn.controls(own.neurons, layers=layers, norms=norms, scores=own.scores, others=others)
    compared = tn.ablate(
        model, test, own.neurons, language=language, hub=_HUB, controls=controls, seeds=seeds, progress=progress
    )
    with tn.Ablation(model, own.neurons, tokens="last", value="mean", means=captured):
        at_means = tn.capture(model, test[language], keep=["post"], progress=progress)
    return compared, geometry.retrieval(at_means, tn.capture(model, test[_HUB], keep=["post"], progress=progress))


def _found(found: Detection) -> str:
    target = "shared" if found.kind == "type1" else "own"
    values = found.scores.values[found.scores.layers]
    chosen = found.neurons
    best = (
        f"({layer}, {neuron}) {score:+z.4f}" for (layer, neuron), score in zip(chosen[:5], chosen.scores, strict=False)
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


def _compared(compared: Comparison, name: str, layer: int) -> str:
    rows = compared.at(layer)
    worst = rows.drop("the set")["ratio high"].max()
    lines = [
        "",
        f"Translations found (mean-centred retrieval@1) of {compared.untouched.shape[1]} {name} test sentences, at "
        f"layer {layer}, the best for training sentences in the untouched model:",
        f"  {'set to zero at the last token':<33}{'found':>6}  {'95 % interval':<14}  {'set / this':>10}  "
        f"{'95 % interval':<14}  p",
    ]
    for condition, row in rows.iterrows():
        label = f"{condition} ({int(row['seeds'])} seeds)" if row["seeds"] > 1 else str(condition)
        line = f"  {label:<33}{row['mean']:6.3f}  {row['low']:.3f} – {row['high']:.3f} "
        if condition != "the set":
            line += f"  {row['ratio']:10.2f}  {row['ratio low']:.2f} – {row['ratio high']:.2f}    {row['p']:.4f}"
        lines.append(line)
    lines.append(f"  with the set at zero, at most {worst:.0%} (upper bounds) of what any row above finds")
    return "\n".join(lines)


def _at_means(retrieval: ByLayer, name: str, layer: int) -> str:
    share = retrieval.columns["retrieval@1"][retrieval.layers.index(layer)]
    return (
        f"  {'the set at its mean, not at zero':<33}{share:6.3f}  (mean over {name} training sentences; where this is "
        "near untouched, zeroing\n  removes a constant, and the neurons' values for each sentence are not needed)"
    )


def _specific(matrix: RetrievalMatrix) -> str:
    head = f"\nAt layer {matrix.layer} too: Type-1 neurons of one language at zero (rows), another read (columns):\n"
    table = matrix.to_frame().rename(index=plots.language_name, columns=plots.language_name)
    return head + table.rename_axis(index=None, columns=None).round(3).to_string(line_width=100)


def _type2_at_means(
    model: "Model", neurons: tn.NeuronSet, captured: tn.Activations, read: "dict[str, Sentences]", *, progress: bool
) -> str:
    """What the same neurons do at their mean: nats per token of their own language and of the hub."""
    untouched = {one: behaviour.perplexity(model, texts, progress=progress).nats for one, texts in read.items()}
    with tn.Ablation(model, neurons, value="mean", means=captured):
        at_means = {one: behaviour.perplexity(model, texts, progress=progress).nats for one, texts in read.items()}
    changes = (f"{at_means[one] / untouched[one] - 1:+.0%} on {plots.language_name(one)}" for one in read)
    own = plots.language_name(next(iter(read)))
    return (
        f"  {own} Type-2 neurons at their mean over {own} training sentences, not at zero, change nats per token by "
        + " and ".join(changes)
    )


def _confused(matrix: "behaviour.PerplexityMatrix", count: int) -> str:
    head = (
        f"\nPerplexity of {count} test sentences, Type-2 neurons of one language at zero (rows), another read "
        "(columns):\n"
    )
    table = matrix.to_frame()["perplexity"].unstack(sort=False)
    table = table.rename(index=plots.language_name, columns=plots.language_name)
    return head + table.rename_axis(index=None, columns=None).round(0).astype(int).to_string(line_width=100)
