"""Find neurons, ablate them and draw figures, with the packaged model and corpus.

example:
  tnkit demo --language ko
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tnkit as tn
from tnkit.cli import flags
from tnkit.cli.flags import show

if TYPE_CHECKING:
    import pandas as pd

_HUB = "en"
_CENTROIDS = {"type1": "shared", "type2": "own"}
_AT_MEAN = "the set at its mean"  # the one condition that is not set to zero
_MATCHED = ("uniform", "same layers", "same layers and norms", "lowest scores")
_FEW = 2  # draws of the random ones among the other selections
_ELSEWHERE = 128  # pairs of each split of the second corpus
_READ = 24  # sentences of each language whose perplexity is measured


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.flag(command, "language", "language to study: ja, ko, nl or it (default ja)", default="ja")
    flags.flag(command, "model_id", "model to use (default: the packaged one)", default="gemma-3-270m")
    flags.flag(command, "top_n", "number of neurons of each type (default 300)", type=flags.positive, default=300)
    flags.add_seeds(command)
    flags.flag(command, "out", "folder for figures and neuron sets (default figures)", default="figures")
    flags.add_quiet(command)


def run(options: argparse.Namespace) -> None:
    """Detect both types, ablate them beside their controls, print the results and draw the figures."""
    started, language, out = time.perf_counter(), options.language, Path(options.out)
    corpus, bar = tn.load_corpus("everyday"), _bar(options)
    train, test = corpus["train"], corpus["test"]
    train[language]  # refuses an unknown language before the model is loaded
    if language == _HUB:
        raise tn.TnkitError("English is the demo's hub; choose --language " + ", ".join(corpus.languages[1:]))
    show(f"loading {options.model_id} (a packaged model is converted the first time, in about half a minute)")
    model = tn.load_model(options.model_id)
    show(f"{model.name}: {model.n_layers} layers of {model.n_neurons:,} neurons, {model.reading}")
    names = ", ".join(map(_name, corpus.languages))
    show(f"corpus {corpus.name}: {len(train[_HUB])} training and {len(test[_HUB])} test sentences each in {names}")

    captured = {code: tn.capture(model, train[code], **bar) for code in corpus.languages}
    detections = tn.detect_all(model, captured, hub=_HUB, top=options.top_n, **bar)
    own = {kind: detections[language, kind] for kind in ("type1", "type2")}
    for detection in own.values():
        show(_summary(detection))
    sets = {kind: detection.neurons for kind, detection in own.items()}
    by_layer = tn.plots.neurons_by_layer(
        sets, n_layers=model.n_layers, title=f"{_name(language)} transfer neurons of {model.name}"
    )
    scores = tn.Detection.plot_all(own.values(), title=f"{_name(language)}, {model.name}")
    written = [
        tn.plots.save_figure(by_layer.figure, out / "neurons_by_layer.png"),
        tn.plots.save_figure(scores, out / "score_distribution.png"),
        *(neurons.save(out / f"{language}-{kind}.json") for kind, neurons in sets.items()),
    ]
    written += _type1(model, corpus, detections, captured, options=options)
    written += _type2(model, corpus, detections, options=options)
    _on_tatoeba(model, options)
    show("\n  ".join([f"\ndone in {time.perf_counter() - started:.0f} s; wrote", *map(str, written)]))


def _type1(model: Any, corpus: Any, detections: Any, captured: Any, *, options: Any) -> Iterator[Path]:
    """How well translations are found, at the layer that is best for training sentences in the untouched model."""
    from tnkit.detection.algebra import by_membership
    from tnkit.measures.measurement import measurement

    language, out, bar = options.language, Path(options.out), _bar(options)
    test, shown = corpus["test"], (model.n_layers // 8, model.n_layers // 2, model.n_layers - 1)
    yield tn.plots.save_figure(tn.geometry.pca(captured, layers=shown).plot(), out / "spaces.png")
    layer, _ = tn.geometry.retrieval(captured[language], captured[_HUB]).best()

    sets = {code: detections[code, "type1"].neurons for code in corpus.languages[1:]}
    neurons, other = sets[language], next(code for code in sets if code != language)
    rivals = tn.controls(
        neurons,
        layers=model.early_layers,
        scores=detections[language, "type1"].scores,
        others={f"{_name(code)} Type-1": sets[code] for code in sets if code != language},
        model=model,
        captured=captured,
    )
    first = {name: rivals[name] for name in (*_MATCHED, f"{_name(other)} Type-1", "random direction")}
    first[_AT_MEAN] = tn.Intervention(neurons, value="mean", of=captured[language])
    # what `tn.ablate` runs; all comparisons share what comes before the last token, and the translations
    test = {**test} | {code: tn.LastToken(model, test[code], keep=["post"], **bar) for code in (_HUB, language)}
    found: Any = measurement(model, test, language=language, hub=_HUB, **bar).run
    how: dict[str, Any] = {"name": "mean-centred retrieval@1", "model": model, **bar}
    effect = tn.compare(found, neurons, controls=first, seeds=options.seeds, **how)
    show(_compared(effect, f"{_name(language)} test sentences of {corpus.name}", layer))
    show("  random direction: as many chosen in the same way, towards a target that knows nothing of languages\n"
         f"  {_AT_MEAN}: each neuron at its mean over {_name(language)} training sentences; where this is near\n"
         "  untouched, zeroing removes a constant; the values for each sentence are not needed")  # fmt: skip
    axes, title = effect.plot(), f"{options.top_n} Type-1 neurons set to zero at the last token ({model.name})"
    axes.set_ylabel("translations found (mean-centred retrieval@1)")
    yield _drawn(axes, f"{_name(language)}: {title}", out / "ablation.png")

    others = {name: rivals[name] for name in rivals if name not in first}
    others |= by_membership(sets, language) | tn.specificity.rivals_found(
        captured, neurons, language=language, layers=model.early_layers
    )
    at_layer: dict[str, Any] = {"layers": [layer], "chosen_layer": layer, "chosen_on": "training sentences"}
    seeds = min(options.seeds, _FEW)
    effect = tn.compare(lambda changed: found(changed)[layer], neurons, controls=others, seeds=seeds, **at_layer, **how)
    show(_rivals(effect, _name(language), layer))
    axes = effect.plot_at()
    axes.set_xlabel("translations found (mean-centred retrieval@1)")
    yield _drawn(axes, f"{_name(language)}: other selections set to zero, layer {layer}", out / "selections.png")
    matrix = tn.retrieval_matrix(model, test, sets, hub=_HUB, layer=layer, **bar)
    show(f"\nAt layer {layer} too: Type-1 neurons of one language at zero (rows), another read (columns):")
    show(_table(matrix.to_frame().round(3)))
    title = f"Type-1 neurons set to zero at the last token ({model.name})"
    yield _drawn(matrix.plot(), title, out / "specificity.png")


def _type2(model: Any, corpus: Any, detections: Any, *, options: Any) -> Iterator[Path]:
    """How well the model predicts the first test sentences of each language."""
    language, bar = options.language, _bar(options)
    texts = {code: corpus["test"][code][:_READ] for code in corpus.languages}
    sets = {code: detections[code, "type2"].neurons for code in corpus.languages[1:]}
    matrix = tn.behaviour.perplexity_matrix(model, {code: texts[code] for code in sets}, sets, **bar)
    head = f"Perplexity of {_READ} test sentences, Type-2 neurons of one language at zero (rows)"
    show(f"\n{head}, another read (columns):")
    show(_table(matrix.to_frame()["perplexity"].unstack(sort=False).round(0).astype(int)))
    averaged = tn.capture(model, corpus["train"][language], keep=["activations"], position="mean",
                          layers=model.late_layers, **bar)  # fmt: skip
    at_mean = tn.Intervention(sets[language], value="mean", of=averaged)  # of all tokens, as all are set
    before = {language: matrix.values["none", language], _HUB: tn.behaviour.perplexity(model, texts[_HUB], **bar)}
    after = {code: tn.behaviour.perplexity(model, texts[code], neurons=at_mean, **bar) for code in before}
    changes = " and ".join(f"{after[code].nats / before[code].nats - 1:+.0%} on {_name(code)}" for code in before)
    show(f"  {_name(language)} Type-2 neurons at their mean over all tokens of {_name(language)} training "
         f"sentences, not at zero, change nats per token by {changes}")  # fmt: skip
    title = f"Type-2 neurons set to zero at every token ({model.name})"
    yield _drawn(matrix.plot(), title, Path(options.out) / "perplexity.png")


def _on_tatoeba(model: Any, options: Any) -> None:
    """The first result again, detected and measured on sentences that people wrote."""
    language, bar = options.language, _bar(options)
    try:
        corpus = tn.load_corpus("tatoeba", [_HUB, language])
    except tn.TnkitError as error:
        return show(f"\nOn a second corpus: {error}")
    train, test = ({code: corpus[split][code][:_ELSEWHERE] for code in corpus.languages} for split in ("train", "test"))
    captured = {code: tn.capture(model, train[code], **bar) for code in corpus.languages}
    neurons = tn.detect(model, captured, language=language, hub=_HUB, top=options.top_n, **bar).neurons
    layer, _ = tn.geometry.retrieval(captured[language], captured[_HUB]).best()
    rivals = tn.controls(neurons, layers=model.early_layers, model=model, captured=captured)
    first: dict[str, Any] = {name: rivals[name] for name in ("same layers and norms", "random direction")}
    first[_AT_MEAN] = tn.Intervention(neurons, value="mean", of=captured[language])
    how: dict[str, Any] = {"layers": [layer], "chosen_layer": layer, "chosen_on": "training sentences", **bar}
    effect = tn.ablate(
        model, test, neurons, language=language, hub=_HUB, controls=first, seeds=min(options.seeds, _FEW), **how
    )
    show(f"\nAgain on sentences that people wrote, with Type-1 neurons from {len(train[_HUB])} pairs of {corpus.name}:")
    show(_compared(effect, f"{_name(language)} test sentences of {corpus.name}", layer).removeprefix("\n"))


def _drawn(axes: Any, title: str, path: Path) -> Path:
    return tn.plots.save_figure(tn.plots.titled(axes, title).figure, path)


def _bar(options: argparse.Namespace) -> dict[str, Any]:
    return {"progress": flags.progress(options)}


def _name(code: str) -> str:
    return tn.plots.language_name(code)


def _summary(detection: "tn.Detection") -> str:
    kind, neurons, scores = detection.kind, detection.neurons, detection.scores.values[detection.scores.layers]
    pairs = zip(neurons[:5], neurons.scores, strict=False)
    lines = [
        f"\n{kind.replace('type', 'Type-')} neurons of {_name(detection.language)}: the {len(neurons)} of "
        f"{scores.numel():,} that move the residual stream most towards the {_CENTROIDS[kind]} centroid",
        f"scores above 0: {(scores > 0).double().mean():.1%} of all; chosen: from {neurons.scores[-1]:+.5f}",
        "best (layer, neuron): " + ", ".join(f"({layer}, {neuron}) {score:+z.4f}" for (layer, neuron), score in pairs),
        "neurons by layer: " + "  ".join(f"{layer}:{len(indices)}" for layer, indices in neurons.by_layer().items()),
    ]
    return "\n  ".join(lines)


def _compared(effect: "tn.Comparison", sentences: str, layer: int) -> str:
    rows, interval = effect.at(layer), f"{'95 % interval':<14}"
    lines = [
        f"\nTranslations found (mean-centred retrieval@1) of {effect.untouched.shape[1]} {sentences}, "
        f"at layer {layer}, the best for training sentences in the untouched model:",
        f"{'set to zero at the last token':<33}{'found':>6}  {interval}  {'set / this':>10}  {interval}  "
        "p sentences  p sets",
    ]
    for condition, row in rows.iterrows():
        label = f"{condition} ({row['seeds']:.0f} seeds)" if row["seeds"] > 1 else str(condition)
        ratio = (
            f"  {row['ratio']:10.2f}  {row['ratio low']:.2f} – {row['ratio high']:.2f}    {row['p sentences']:<11.4f}"
        )
        ratio += f"  {row['p sets']:.4f}" if row["seeds"] > 1 else ""
        line = f"{label:<33}{row['mean']:6.3f}  {row['low']:.3f} – {row['high']:.3f} "
        lines.append(line if condition == "the set" else line + ratio)
    highest = rows.drop("the set")["ratio high"].max()
    lines.append("p sentences: of these very sets; p sets: among random sets, at least 1 / (1 + seeds)")
    lines.append(f"with the set at zero, at most {highest:.0%} (upper bounds) of what any row above finds")
    return "\n  ".join(lines)


def _rivals(effect: "tn.Comparison", name: str, layer: int) -> str:
    rows = effect.at().drop(index=["none", "the set"])
    lines = [f"\nThe same with other selections of {name} neurons at zero, at layer {layer} (docs/evidence.md):"]
    lines += [
        f"{condition:<33}{row['mean']:6.3f}  {row['low']:.3f} – {row['high']:.3f}" for condition, row in rows.iterrows()
    ]
    return "\n  ".join(lines)


def _table(frame: "pd.DataFrame") -> str:
    named = frame.rename(index=_name, columns=_name).rename_axis(index=None, columns=None)
    return named.to_string(line_width=100)
