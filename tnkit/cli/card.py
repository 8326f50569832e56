"""Describe a neuron set: where it comes from, how to use it, and what it does where a table says so.

example:
  tnkit card --neurons ja-type1-neurons.json --licence cc0-1.0 --evidence ja-retrieval.csv --out README.md
"""

import argparse
from typing import TYPE_CHECKING

from tnkit.cli import flags
from tnkit.errors import TnkitError, first_line

if TYPE_CHECKING:
    import pandas as pd


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.flag(command, "neurons", "file from `tnkit detect`", required=True)
    flags.flag(command, "licence", "licence of the set, as the Hub names it: cc0-1.0")
    flags.flag(command, "evidence", "table of what the set does beside its controls, .csv, as from `tnkit ablate`")
    flags.flag(command, "out", "file to write, .md (default: print the card)")


def run(options: argparse.Namespace) -> None:
    import tnkit as tn

    out = flags.output(options, "out", ".md") if options.out else None
    neurons = tn.NeuronSet.load(options.neurons)
    card = neurons.card(licence=options.licence or "", evidence=_table(options.evidence) if options.evidence else None)
    if out is None:
        flags.show(card.rstrip())
    else:
        flags.write(lambda: tn.storage.write_text(out, card))


def _table(path: str) -> "pd.DataFrame":
    """A table of results, with a plain index."""
    import pandas as pd

    from tnkit.storage import existing_file

    try:
        return pd.read_csv(existing_file(path))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        raise TnkitError(f"{path} is not a readable table ({first_line(error)}); give a .csv file") from error
