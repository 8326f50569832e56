"""Patch states of one language's runs into another's, layer by layer, and measure the effect.

example:
  tnkit patch --model_id gemma-3-270m --lang_for_TN ja --source_language en --sentence_path pairs.tsv \\
    --figure ja-patched.png
"""

import argparse
from typing import Any

from tnkit.cli import flags
from tnkit.errors import TnkitError

_MEASURES = ("next_token", "retrieval", "similarity", "centred_similarity", "margin", "mutual_knn")


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_sentences(command, "aligned sentences of both languages; states go into the runs of --lang_for_TN")
    flags.flag(command, "source_language", "language whose states are patched in (default en)", default="en")
    text = "what is patched (default post)"
    sites = ("pre", "mid", "post", "activations", "contributions")
    flags.flag(command, "site", text, choices=sites, default="post")
    flags.flag(command, "neurons", "file from `tnkit detect`, for --site activations or contributions")
    flags.flag(command, "layers", "which layers are patched, START:STOP (default all)", type=flags.span)
    text = "into which tokens: last, last word, or all of sentences with as many tokens (default last)"
    flags.flag(command, "tokens", text, choices=("last", "last_word", "prompt"), default="last")
    text = "next_token: log-probability of the source's next token; others: states at --layer (default next_token)"
    flags.flag(command, "measure", text, choices=_MEASURES, default="next_token")
    flags.flag(command, "layer", "layer at which states are measured, from 0", type=flags.layer)
    flags.flag(command, "suffix", "put in place of each sentence's final punctuation", type=flags.unicode_text)
    flags.flag(command, "out", "table to write, .csv (default: LANG-patched.csv in the current folder)")
    flags.flag(command, "figure", "also write a figure to this .png file")


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    into, source = options.lang_for_TN, options.source_language
    out = flags.output(options, "out", ".csv", f"{tn.storage.file_name(into)}-patched.csv")
    figure = options.figure and flags.output(options, "figure", ".png")
    if source == into:
        raise TnkitError(f"--source_language {source} is also --lang_for_TN; name another column for the source")
    texts = flags.sentences(options, [source, into])
    model = flags.model(options)
    how: dict[str, Any] = {name: getattr(options, name) for name in ("site", "tokens", "measure", "layer", "suffix")}
    neurons = flags.neurons(options.neurons, model) if options.neurons else None
    found = tn.patching.by_layer(
        model,
        texts,
        source=source,
        into=into,
        neurons=neurons,
        layers=options.layers,
        progress=flags.progress(options),
        **how,
    )
    frame = found.to_frame()
    flags.show(f"{found.compared.measure}; {options.site} of {source} patched into {into}, tokens: {options.tokens}")
    flags.show(frame[["mean", "low", "high", "effect", "effect low", "effect high"]].round(3).to_string())
    drawn = [lambda: tn.plots.save_figure(found.plot().figure, figure)] if figure else []
    flags.write(lambda: tn.storage.write_text(out, frame.to_csv()), *drawn)
