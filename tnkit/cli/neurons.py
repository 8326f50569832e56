"""Measure each neuron of a set on the sentences of several languages.

example:
  tnkit neurons --model_id gemma-3-270m --neurons ja-type1-neurons.json --lang_for_TN ja --beside en,ko \\
    --sentence_path sentences.tsv --figure ja-type1.png
"""

import argparse
from pathlib import Path

from tnkit.cli import flags


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_sentences(command, "sentences of each language")
    flags.flag(command, "neurons", "file from `tnkit detect`, or the published code's .pkl", required=True)
    text = "languages of the same file to compare with, separated by commas (default en)"
    flags.flag(command, "beside", text, type=flags.names, default=("en",))
    flags.add_reading(command, ("last", "last_word", "mean", "end"))
    flags.flag(command, "out", "table to write, .csv (default: NEURONS-table.csv in the current folder)")
    flags.flag(command, "figure", "also write a figure to this .png file: the set beside the others of its layers")


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    out = flags.output(options, "out", ".csv", f"{Path(options.neurons).stem}-table.csv")
    figure = options.figure and flags.output(options, "figure", ".png")
    languages = list(dict.fromkeys([options.lang_for_TN, *options.beside]))
    texts = flags.sentences(options, languages)
    model = flags.model(options)
    neurons = flags.neurons(options.neurons, model)
    layers = list(neurons.by_layer()) or None
    reading = flags.reading(options)
    captured = {
        name: tn.capture(model, texts[name], keep=["activations"], layers=layers, **reading) for name in languages
    }
    measured = tn.specificity.table(neurons, captured)
    frame = measured.to_frame()
    flags.show(f"on {', '.join(languages)}; the first of {len(frame)} neurons:")
    flags.show(frame.head(10).round(4).to_string())
    drawn = [lambda: tn.plots.save_figure(measured.plot(), figure)] if figure else []
    flags.write(lambda: tn.storage.write_text(out, frame.to_csv()), *drawn)
