"""Run the study of Tezuka & Inoue (EMNLP 2025) whole on a model, and write it as a folder with one page.

example:
  tnkit paper --model_id gemma-3-270m --languages ja nl ko it --out paper
"""

import argparse
from typing import Any

from tnkit.cli import flags
from tnkit.errors import TnkitError

_SIZES = {
    "sentences": "the most sentences of each split (default 256)",
    "top_n": "neurons of a set (default: 1000, or 300 in a small model)",
    "draws": "draws of each random control (default 3)",
}


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    text = "languages to study (default ja nl ko it)"
    flags.flag(command, "languages", text, type=flags.names, nargs="+", default=[("ja", "nl", "ko", "it")])
    flags.flag(command, "hub", "language whose space is taken as shared (default en)", default="en")
    text = "aligned sentences, or a packaged corpus (default everyday)"
    flags.flag(command, "sentence_path", text, default="everyday")
    for name, text in _SIZES.items():
        flags.flag(command, name, text, type=flags.positive)
    flags.flag(command, "sections", "those to run, comma-separated (default: all)", type=flags.names)
    flags.flag(command, "mkqa", "MKQA's own file mkqa.jsonl (default: packaged questions)")
    text = "hub, or a file of MMLU-ProX with {language} in its name (default: left out)"
    flags.flag(command, "mmlu_prox", text)
    flags.switch(command, "quick", "the smallest sizes, to see whether all sections work")
    flags.switch(command, "estimate", "only estimate how long it takes")
    flags.flag(command, "out", "folder to write (default paper)", default="paper")


def run(options: argparse.Namespace) -> None:
    import tnkit as tn
    from tnkit.replication.estimate import NOTE

    languages = [name for names in options.languages for name in names]
    if options.hub in languages:
        raise TnkitError(f"--hub {options.hub} is also among --languages; study others, or name another hub")
    given = {name.removesuffix("_n"): getattr(options, name) for name in _SIZES}
    sizes = {name: value for name, value in given.items() if value is not None}
    how: dict[str, Any] = {name: getattr(options, name) for name in ("hub", "out", "quick", "sections", "estimate")}
    how |= {name: getattr(options, name) for name in ("mkqa", "mmlu_prox")}
    corpus = tn.load_corpus(options.sentence_path, [options.hub, *languages])
    done = tn.paper(
        flags.model(options), languages, corpus=corpus, sizes=sizes, progress=flags.progress(options), **how
    )
    if options.estimate:
        flags.show(done.estimate.round(0).astype(int).to_string())
        flags.show(NOTE)
        return
    for name, kept in done.findings.items():
        flags.show(f"{name}: {kept.said[0]}")
    for name, reason in done.failed.items():
        flags.show(f"{name} did not run: {reason}")
    flags.show(done.path)
