"""Read what neurons promote, or in which language states say an answer.

example:
  tnkit lens --model_id gemma-3-270m --neurons ja-type1-neurons.json --top_n 20 --lens jacobian
  tnkit lens --model_id gemma-3-270m --lang_for_TN ja --source_language it --figure ja-latent.png
"""

import argparse
from pathlib import Path
from typing import Any

from tnkit.cli import flags
from tnkit.errors import TnkitError


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    text = "file from `tnkit detect`: what they promote, or, with --lang_for_TN, what is switched off"
    flags.flag(command, "neurons", text)
    flags.flag(
        command,
        "top_n",
        "how many of the neurons, best first (default 20 to read, all to switch off)",
        type=flags.positive,
    )
    text = "logit, or jacobian: by way of the layers after, averaged over packaged sentences (default logit)"
    flags.flag(command, "lens", text, choices=("logit", "jacobian"), default="logit")
    flags.flag(command, "k", "number of vocabulary items at each end (default 10)", type=flags.positive, default=10)
    flags.flag(command, "lang_for_TN", "read the latent language of prompts whose answer is in this language: ja")
    text = "language that prompts translate from (default: sentences to complete)"
    flags.flag(command, "source_language", text)
    flags.add_seeds(command)
    names = "NEURONS-lens.csv or LANG-latent.csv"
    flags.flag(command, "out", f"table to write, .csv (default: {names} in the current folder)")
    flags.flag(command, "figure", "also write a figure of the latent language to this .png file")


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    language = options.lang_for_TN
    if not (language or options.neurons):
        raise TnkitError("nothing to read: give --neurons, or --lang_for_TN for the latent language")
    if not language and (options.figure or options.source_language):
        raise TnkitError("--figure and --source_language are of the latent language; give --lang_for_TN with them")
    default = f"{tn.storage.file_name(language)}-latent" if language else f"{Path(options.neurons).stem}-lens"
    out = flags.output(options, "out", ".csv", f"{default}.csv")
    figure = options.figure and flags.output(options, "figure", ".png")
    model = flags.model(options)
    neurons = flags.neurons(options.neurons, model) if options.neurons else None
    if neurons is not None:
        neurons = neurons[: options.top_n or (len(neurons) if language else 20)]
    progress = flags.progress(options)
    fitted = tn.lens.jacobians(model, progress=progress) if options.lens == "jacobian" else None
    if not language:
        assert neurons is not None
        frame = tn.lens.promoted(model, neurons, k=options.k, lens=fitted or "logit").to_frame()
        flags.show(f"{options.lens} lens; the first of {len(neurons)} neurons:")
        flags.show(frame.head(options.k).round(3).to_string())
        flags.write(lambda: tn.storage.write_text(out, frame.to_csv()))
        return
    how: dict[str, Any] = {"source": options.source_language, "lens": fitted, "seeds": options.seeds}
    if neurons is not None:
        how |= {"neurons": neurons, "controls": {"same layers": lambda seed: neurons.matched(seed=seed)}}
    measured = tn.lens.latent_language(model, language, **how, progress=progress)
    frame = measured.to_frame()
    flags.show(f"{measured.prompts}; {len(measured.concepts)} concepts, {measured.left_out} left out")
    flags.show(frame["mean"].unstack("language").round(3).to_string())
    drawn = [lambda: tn.plots.save_figure(measured.plot().figure, figure)] if figure else []
    flags.write(lambda: tn.storage.write_text(out, frame.to_csv()), *drawn)
