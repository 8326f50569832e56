"""Ablate a neuron set and controls, and measure the effect.

example:
  tnkit ablate --model_id gemma-3-270m --neurons ja-type1-neurons.json --lang_for_TN ja \\
    --sentence_path test-pairs.tsv --measure retrieval --figure ja-retrieval.png
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tnkit.cli import flags

if TYPE_CHECKING:
    from tnkit.detection.neurons import NeuronSet
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
    flags.add_seeds(command)
    text = "file from `tnkit detect --scores`; adds the neurons with the lowest scores as a control"
    flags.flag(command, "scores_path", text)
    flags.flag(command, "other", "another neuron set as a control; can be repeated", action="append")
    flags.flag(command, "out", "table to write, .csv (default: LANG-MEASURE.csv in the current folder)")
    flags.flag(command, "figure", "also write a figure to this .png file")


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    language, measure = options.lang_for_TN, options.measure
    out = flags.output(options, "out", ".csv", f"{tn.storage.file_name(language)}-{measure}.csv")
    figure = options.figure and flags.output(options, "figure", ".png")
    paired = measure in _PAIRED
    texts = flags.sentences(options, [options.hub, language] if paired else [language])
    model = flags.model(options)
    neurons = flags.neurons(options.neurons, model)
    if measure == "generation":
        _generate(model, texts[language], neurons, options, out)
        return
    reading = flags.reading(options)
    captured = tn.capture(model, texts[language], keep=["activations"], **reading)
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
        measure=measure,
        hub=options.hub,
        tokens=options.tokens,
        seeds=options.seeds,
        **reading,
    )
    rows = effect.at()
    where = f" at {effect.layer_name()}" if paired else ""
    flags.show(f"{effect.measure}{where}; neurons set to zero, tokens: {options.tokens}")
    flags.show(rows.round(4).to_string())
    flags.show(
        f"p adjusted: {rows.attrs['p adjusted']}; p sentences: of these very sets; p sets: among the seeds' sets"
    )
    drawn = [lambda: tn.plots.save_figure(effect.plot().figure, figure)] if figure else []
    flags.write(lambda: tn.storage.write_text(out, effect.to_frame().to_csv()), *drawn)


def _generate(
    model: "Model", prompts: "Sentences", neurons: "NeuronSet", options: argparse.Namespace, out: Path
) -> None:
    """Write continuations of the prompts with the set off, and with a control from the same layers off."""
    import tnkit as tn

    controls = {"same layers": neurons.matched(seed=0)}
    continued = tn.behaviour.continuations(
        model, prompts, neurons=neurons, controls=controls, tokens=options.tokens, progress=flags.progress(options)
    )
    table = continued.by_condition()
    flags.show(table.to_string())
    flags.write(lambda: tn.storage.write_text(out, table.to_csv()))
