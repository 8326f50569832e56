"""Lists and dicts of sentences, from memory, JSON or a pickle, as a table; every error names the item."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tnkit.errors import TnkitError
from tnkit.text import files

_SPARSE, _FREE = 20, 1_000_000  # a table may have this many cells for each value of its source, or this many in all


def table(name: str, content: Any, languages: Sequence[str] | None = None) -> pd.DataFrame:
    """A table from a dict of lists, or a list of dicts, of sentences, or of tuples of sentences.

    `languages` names the columns where the source does not: one for sentences, one for each position of tuples.

    >>> table("pairs", [("Hi!", "Ciao!")], ["en", "it"]).to_dict("list")
    {'en': ['Hi!'], 'it': ['Ciao!']}
    """
    if isinstance(content, Mapping):
        return _of_columns(name, content)
    if isinstance(content, list | tuple) and content:
        return of_rows(name, content) if isinstance(content[0], Mapping) else _of_tuples(name, content, languages)
    held = "nothing" if content == [] else type(content).__name__
    raise TnkitError(f"{name} holds {held}, expected a list of sentences, or of tuples of sentences")


def of_rows(name: str, rows: Sequence[Any]) -> pd.DataFrame:
    """A table of objects; a field that an object lacks is empty."""
    columns: dict[str, None] = {}
    values = 0
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TnkitError(f'{name}, item {number}: expected an object such as {{"en": "Hi!", "ja": "やあ！"}}')
        columns |= dict.fromkeys(row)
        values += len(row)
    _check_size(name, len(rows), len(columns), values)
    return pd.DataFrame({column: [row.get(column) for row in rows] for column in columns}, dtype=object)


def _check_size(name: str, rows: int, columns: int, values: int) -> None:
    """Refuse a table that is far larger than its source."""
    if rows * columns > min(files.CELLS, max(_FREE, _SPARSE * values)):
        raise TnkitError(f"{name} holds {rows:,} rows of {columns:,} columns; load a part of them")


def _of_columns(name: str, content: Mapping[Any, Any]) -> pd.DataFrame:
    columns = {str(key): value.tolist() if hasattr(value, "tolist") else value for key, value in content.items()}
    wrong = [key for key, cells in columns.items() if not isinstance(cells, Sequence) or isinstance(cells, str | bytes)]
    if wrong or not columns:
        raise TnkitError(f"{name} holds dict, expected a list of sentences for each language; {wrong[:3]} are no lists")
    sizes = {key: len(cells) for key, cells in columns.items()}
    if len({*sizes.values()}) > 1:
        counts = ", ".join(f"{size:,} in {key}" for key, size in sizes.items())
        raise TnkitError(f"{name}: its lists differ in length ({counts}); give one translation for each sentence")
    return pd.DataFrame({key: [*cells] for key, cells in columns.items()}, dtype=object)


def _of_tuples(name: str, content: Sequence[Any], languages: Sequence[str] | None) -> pd.DataFrame:
    rows = [(row,) if isinstance(row, str) else row for row in content]
    width = len(rows[0]) if isinstance(rows[0], list | tuple) else 0
    _check_size(name, len(rows), width, len(rows))
    for number, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != width or not all(isinstance(cell, str) for cell in row):
            expected = f"{width} sentences" if width and not isinstance(content[0], str) else "a sentence"
            raise TnkitError(f"{name}, item {number}: expected {expected}")
    if languages is None or len(languages) != width:
        held = "single sentences" if width == 1 else f"tuples of {width} sentences"
        raise TnkitError(
            f"{name} holds {held} without language names (requested: {listed(languages)}); name {width} "
            f"language{'s' * (width > 1)} in their order, or give a TSV file with a column for each language"
        )
    return pd.DataFrame(rows, columns=list(languages), dtype=object)


def listed(languages: Sequence[str] | None) -> str:
    """The requested languages, as text."""
    return ", ".join(languages or ()) or "no language"
