"""Write the explorer of a model and sentences as one HTML file that needs no network.

example:
  tnkit page --model_id gemma-3-270m --sentence_path everyday --out page.html
"""

import argparse
from pathlib import Path

from tnkit.cli import flags


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    text = "aligned sentences, or a packaged corpus (default everyday)"
    flags.flag(command, "sentence_path", text, default="everyday")
    flags.flag(command, "languages", "the first is the hub, separated by commas (default: all)", type=flags.names)
    flags.flag(command, "sentences", "the most sentences of each split (default 256)", type=flags.positive, default=256)
    flags.add_reading(command, ("last", "last_word", "end"))
    flags.add_seeds(command)
    flags.flag(command, "out", "file to write, .html (default: page.html in the current folder)")


def run(options: argparse.Namespace) -> None:
    """Compute everything that the page shows, and write it."""
    import tnkit as tn

    out = flags.output(options, "out", ".html", "page.html")
    corpus = tn.load_corpus(options.sentence_path, options.languages and list(options.languages))
    model = flags.model(options)
    reading = {"position": options.position, "suffix": options.suffix}
    languages = list(corpus.languages)
    hub = languages[0] if options.languages or "en" not in languages else "en"
    how = {"languages": languages, "hub": hub, "sentences": options.sentences, "seeds": options.seeds, **reading}
    explorer = tn.explore(model, corpus, **how)
    flags.write(lambda: Path(explorer.export(out, progress=flags.progress(options))))
