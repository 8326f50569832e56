"""What a section of the study is, and what it finds: `Section`, `Findings`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure, SubFigure

from tnkit.replication.study import Study, Work

UNPUBLISHED = (
    "The paper's values for this are in figures and tables that could not be checked against a text at hand, so none "
    "is shown beside these."
)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a section finds.

    Attributes:
        measured: what was measured: measure, layer and how it was chosen, number, interval, control.
        said: what came out, in sentences made of the numbers.
        tables: every table, by name; the page shows those named in `shown`.
        figures: by name.
        shown: tables that the page shows.
        published: what the paper says, or why nothing of it is shown.

    >>> Findings("retrieval", ("It falls.",), {}, {}).published[:19]
    "The paper's values "
    """

    measured: str
    said: tuple[str, ...]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure | SubFigure]
    shown: tuple[str, ...] = ()
    published: str = UNPUBLISHED


class Section(NamedTuple):
    """A section of the study.

    Attributes:
        name: for files and `sections=`.
        title: its heading.
        question: what it asks.
        run: computes it.
        work: how much it runs, for the estimate.
        uses: names of the attributes of `Study` and `Sizes` that it depends on, beside model, sentences and languages.
    """

    name: str
    title: str
    question: str
    run: Callable[[Study], Findings]
    work: Callable[[Study], Work]
    uses: tuple[str, ...] = ()
