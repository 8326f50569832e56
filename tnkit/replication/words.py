"""Numbers as words, and what a comparison with controls comes to: `within`, `verdict`, `overall`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from tnkit.errors import listed
from tnkit.plots import language_name

_NAMES = {"type1": "Type-1", "type2": "Type-2"}


def percent(value: Any) -> str:
    """A share as a whole percentage.

    >>> percent(0.334), percent(float("nan"))
    ('33 %', '—')
    """
    return "—" if math.isnan(value) else f"{100 * value:z.0f} %"


def number(value: Any) -> str:
    """A number with two digits after the point.

    >>> number(4.499), number(float("nan"))
    ('4.50', '—')
    """
    return "—" if math.isnan(value) else f"{value:z.2f}"


def within(row: Any, shown: Callable[[float], str] = percent) -> str:
    """A mean with its 95 % interval.

    >>> within(pd.Series({"mean": 0.33, "low": 0.27, "high": 0.39}))
    '33 % (27 to 39 %)'
    """
    return f"{shown(row['mean'])} ({shown(row['low']).removesuffix(' %')} to {shown(row['high'])})"


def name(code: str) -> str:
    """A language's or a type's name.

    >>> name("ja"), name("type1")
    ('Japanese', 'Type-1')
    """
    return _NAMES.get(code) or language_name(code)


def verdict(rows: pd.DataFrame, *, worse: int) -> str:
    """Whether a set moves a measure, and which controls move it as much.

    A set moves it farther than a condition where the 95 % interval of their difference leaves out 0 on the side that
    was expected.

    Args:
        rows: from `Comparison.at`.
        worse: -1 where the set is expected to lower the measure, 1 where to raise it.

    >>> columns = ["effect low", "effect high"]
    >>> rows = pd.DataFrame([[-0.6, -0.4], [0, 0], [-0.2, 0.1]], ["none", "the set", "random direction"], columns)
    >>> verdict(rows, worse=-1)
    'A control moves it as much: random direction (the interval of the difference holds 0, or is beyond it).'
    """
    moved, level = _moved(rows, worse)
    if not moved:
        return "The set is not told apart from the untouched model."
    if not level:
        return "No control moves it as much."
    many = "Controls move" if len(level) > 1 else "A control moves"
    return f"{many} it as much: {listed(level)} (the interval of the difference holds 0, or is beyond it)."


def overall(what: str, tables: Mapping[str, pd.DataFrame], *, worse: int) -> str:
    """In how many languages a set moves a measure, and in which a control moves it as much.

    Args:
        what: the measure.
        tables: language → rows as in `verdict`.
        worse: as in `verdict`.

    >>> rows = pd.DataFrame({"effect low": [-0.6, 0.0], "effect high": [-0.4, 0.0]}, ["none", "the set"])
    >>> overall("retrieval", {"ja": rows, "it": rows * 0}, worse=-1)
    'The set lowers retrieval in 1 of 2 languages (Japanese), and no control does as much.'
    """
    moved = {language: level for language, rows in tables.items() for set_moves, level in [_moved(rows, worse)]
             if set_moves}  # fmt: skip
    start = f"The set {'lowers' if worse < 0 else 'raises'} {what} in {len(moved)} of {len(tables)} languages"
    if not moved:
        return f"{start}, beyond its interval."
    level = [name(language) for language, controls in moved.items() if controls]
    told = f"a control does as much in {listed(level)}" if level else "no control does as much"
    return f"{start} ({listed(map(name, moved))}), and {told}."


def _moved(rows: pd.DataFrame, worse: int) -> tuple[bool, list[str]]:
    """Whether the set moves a measure, and the controls that move it as much."""
    beyond = rows["effect high"] < 0 if worse < 0 else rows["effect low"] > 0
    return bool(beyond["none"]), [str(key) for key in rows.index if key != "the set" and not beyond[key]]
