"""Numbers as words, and what a comparison with controls comes to: `within`, `verdict`, `overall`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from tnkit.errors import listed
from tnkit.plots import language_name

_NAMES = {"type1": "Type-1", "type2": "Type-2"}


def percent(value: Any) -> str:
    """A share as a percentage, whole from 1 % on.

    >>> percent(0.334), percent(1 / 256), percent(float("nan"))
    ('33 %', '0.4 %', '—')
    """
    return "—" if math.isnan(value) else f"{100 * value:z.{int(0.0005 < value < 0.01)}f} %"


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
    """Whether a set moves a measure, which controls move it as much, and which too few draws tell apart from it.

    A set moves it farther than a condition where the 95 % interval of their difference leaves out 0 on the side that
    was expected.

    Args:
        rows: from `Comparison.at`.
        worse: -1 where the set is expected to lower the measure, 1 where to raise it.

    >>> columns = ["effect", "effect low", "effect high", "seeds"]
    >>> values = [[-0.5, -0.6, -0.4, 1], [0, 0, 0, 1], [-0.05, -0.2, 0.1, 3]]
    >>> rows = pd.DataFrame(values, ["none", "the set", "random direction"], columns)
    >>> verdict(rows, worse=-1)
    'Not told apart from it: random direction at 3 draws (the interval of the difference holds 0).'
    """
    moved, level, unclear = _moved(rows, worse)
    if not moved:
        return "The set is not told apart from the untouched model."
    if not level and not unclear:
        return "No control moves it as much."
    many = "Controls move" if len(level) > 1 else "A control moves"
    draws = [
        f"{control} at {seeds} draws" if (seeds := int(rows["seeds"][control])) > 1 else control for control in unclear
    ]
    said = [f"{many} it as much: {listed(level)}."] if level else []
    said += [f"Not told apart from it: {listed(draws)} (the interval of the difference holds 0)."] if unclear else []
    return " ".join(said)


def overall(what: str, tables: Mapping[str, pd.DataFrame], *, worse: int) -> str:
    """In how many languages a set moves a measure, and in which a control may move it as much.

    Args:
        what: the measure.
        tables: language → rows as in `verdict`.
        worse: as in `verdict`.

    >>> ends = {"effect": [-0.5, 0.0], "effect low": [-0.6, 0.0], "effect high": [-0.4, 0.0]}
    >>> rows = pd.DataFrame(ends, ["none", "the set"])
    >>> overall("retrieval", {"ja": rows, "it": rows * 0}, worse=-1)
    'The set lowers retrieval in 1 of 2 languages (Japanese), and no control does as much.'
    """
    all_moved = {language: _moved(rows, worse) for language, rows in tables.items()}
    moved = {language: controls for language, (set_moves, *controls) in all_moved.items() if set_moves}
    start = f"The set {'lowers' if worse < 0 else 'raises'} {what}"
    if not moved:
        return f"{start} beyond its interval in none of {len(tables)} languages."
    level = [name(language) for language, (controls, _) in moved.items() if controls]
    unclear = [name(language) for language, (controls, others) in moved.items() if others and not controls]
    told = [f"a control does as much in {listed(level)}"] if level else []
    told += [f"{'one' if told else 'a control'} is not told apart from it in {listed(unclear)}"] if unclear else []
    start += f" in {len(moved)} of {len(tables)} languages ({listed(map(name, moved))})"
    return f"{start}, and {' and '.join(told or ['no control does as much'])}."


def _moved(rows: pd.DataFrame, worse: int) -> tuple[bool, list[str], list[str]]:
    """Whether the set moves a measure, the controls that move it as much, and those that may move it less."""
    beyond = rows["effect high"] < 0 if worse < 0 else rows["effect low"] > 0
    held = [key for key in rows.index if key not in ("the set", "none") and not beyond[key]]
    less = {key: bool(rows["effect"][key] * worse > 0) for key in held}
    level, unclear = ([str(key) for key in held if less[key] is wanted] for wanted in (False, True))
    return bool(beyond["none"]), level, unclear
