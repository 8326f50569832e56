"""Ablate a neuron set and controls, and measure the effect.

example:
  tnkit ablate --model_id gemma-3-270m --neurons ja-type1-neurons.json --lang_for_TN ja \\
    --sentence_path test-pairs.tsv --measure retrieval --figure ja-retrieval.png
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit.cli import flags
from tnkit.errors import TnkitError

if TYPE_CHECKING:
    from tnkit.captures.activations import Activations
    from tnkit.detection.neurons import NeuronSet
    from tnkit.interventions.intervention import Intervention
    from tnkit.models.model import Model
    from tnkit.text.corpus import Sentences

_PAIRED = ("retrieval", "similarity", "mutual_knn")


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_sentences(
        command,
        "pairs with the hub language for retrieval, similarity and mutual_knn, else single sentences or prompts",
    )
    flags.add_neurons(command, "last")
    flags.add_reading(command, ("last", "last_word", "end"))
    text = "what to measure; generation continues each sentence (default retrieval)"
    flags.flag(command, "measure", text, choices=(*_PAIRED, "perplexity", "generation"), default="retrieval")
    flags.flag(command, "hub", "language of the translations (default en)", default="en")
    _add_values(command)
    flags.add_seeds(command)
    text = "file from `tnkit detect --scores`; adds the neurons with the lowest scores as a control"
    flags.flag(command, "scores_path", text)
    flags.flag(command, "other", "another neuron set as a control; can be repeated", action="append")
    flags.flag(command, "out", "table to write, .csv (default: LANG-MEASURE.csv in the current folder)")
    flags.flag(command, "figure", "also write a figure to this .png file")


def _add_values(command: argparse.ArgumentParser) -> None:
    text = "what activations are set to: zero (default), mean or resampled (of --of_language), or a number"
    flags.flag(command, "value", text)
    text = "language of the sentences whose activations --value or --add takes (default: the language studied)"
    flags.flag(command, "of_language", text)
    flags.flag(command, "scale", "multiply activations by this instead", type=_number)
    text = "move activations by this times (mean of --of_language - mean of --minus_language) instead"
    flags.flag(command, "add", text, type=_number)
    flags.flag(command, "minus_language", "the language whose mean --add takes away")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a number") from None


def _asked(
    options: argparse.Namespace, capture: "Callable[[str], Activations]", neurons: "NeuronSet"
) -> "Intervention":
    """The neurons, and what is done with them; `capture` reads a language's activations."""
    import tnkit as tn

    how: dict[str, Any] = {name: getattr(options, name) for name in ("scale", "add")}
    value = options.value
    if value is not None:
        how["value"] = 0.0 if value == "zero" else value if value in ("mean", "resampled") else _read_number(value)
    if value in ("mean", "resampled") or options.add is not None:
        how["of"] = capture(options.of_language or options.lang_for_TN)
    elif options.of_language:
        raise TnkitError("--of_language is only for --value mean, --value resampled and --add; give one of them")
    if options.minus_language:
        how["minus"] = capture(options.minus_language)
    return tn.Intervention(neurons, **how)


def _read_number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise TnkitError(f"--value {value!r:.60} must be zero, mean, resampled or a number") from None


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    language, measure = options.lang_for_TN, options.measure
    out = flags.output(options, "out", ".csv", f"{tn.storage.file_name(language)}-{measure}.csv")
    figure = options.figure and flags.output(options, "figure", ".png")
    paired = measure in _PAIRED
    needed = [options.hub, language] if paired else [language]
    needed += [name for name in (options.of_language, options.minus_language) if name and name not in needed]
    texts = flags.sentences(options, list(dict.fromkeys(needed)))
    model = flags.model(options)
    neurons = flags.neurons(options.neurons, model)
    reading = flags.reading(options)
    capture = cache(lambda name: tn.capture(model, texts[name], keep=["activations"], **reading))
    asked = _asked(options, capture, neurons)
    if measure == "generation":
        _generate(model, texts[language], asked, options, out)
        return
    captured = capture(language)
    controls = tn.controls(
        neurons,
        norms=tn.scoring.contribution_norms(model, captured),
        scores=tn.NeuronScores.load(options.scores_path) if options.scores_path else None,
        others={Path(path).stem: flags.neurons(path, model) for path in options.other or ()},
    )
    effect = tn.ablate(
        model,
        texts,
        neurons,
        language=language,
        controls=controls,
        **{name: getattr(asked, name) for name in ("value", "of", "scale", "add", "minus")},
        measure=measure,
        hub=options.hub,
        tokens=options.tokens,
        seeds=options.seeds,
        **reading,
    )
    rows = effect.at()
    where = f" at {effect.layer_name()}" if paired else ""
    flags.show(f"{effect.measure}{where}; {asked.describe()}, tokens: {options.tokens}")
    flags.show(rows.round(4).to_string())
    flags.show(
        f"p adjusted: {rows.attrs['p adjusted']}; p sentences: of these very sets; p sets: among the seeds' sets"
    )
    drawn = [lambda: tn.plots.save_figure(effect.plot().figure, figure)] if figure else []
    flags.write(lambda: tn.storage.write_text(out, effect.to_frame().to_csv()), *drawn)


def _generate(
    model: "Model", prompts: "Sentences", asked: "Intervention", options: argparse.Namespace, out: Path
) -> None:
    """Write continuations of the prompts with the set changed, and with a control from the same layers."""
    import tnkit as tn

    assert isinstance(asked.neurons, tn.NeuronSet)
    controls = {"same layers": replace(asked, neurons=asked.neurons.matched(seed=0))}
    continued = tn.behaviour.continuations(
        model, prompts, neurons=asked, controls=controls, tokens=options.tokens, progress=flags.progress(options)
    )
    table = continued.by_condition()
    flags.show(table.to_string())
    flags.write(lambda: tn.storage.write_text(out, table.to_csv()))
