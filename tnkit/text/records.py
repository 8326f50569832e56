"""Lists and dicts of sentences, from memory, JSON or a pickle, as a table; every complaint names the item."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError
from tnkit.text import files

if TYPE_CHECKING:
    import pandas as pd

_SPARSE, _FREE = 20, 1_000_000  # cells of a table for each one given, and so many without asking


def table(name: str, content: Any, languages: Sequence[str] | None = None, *, first: str = "item 0") -> "pd.DataFrame":
    """A table of what a list or dict holds.

    Args:
        name: what errors call it.
        content: a dict of lists, or a list of dicts, of sentences, or of tuples of sentences.
        languages: names for what has none: one for a list of sentences, one for each place of tuples.
        first: what errors call the first item.

    Raises:
        TnkitError: for anything else, and for lists of other lengths.

    >>> table("pairs", [("Hi!", "Ciao!")], ["en", "it"]).to_dict("list")
    {'en': ['Hi!'], 'it': ['Ciao!']}
    """
    if isinstance(content, Mapping):
        return _of_columns(name, content)
    if isinstance(content, list | tuple) and content:
        if isinstance(content[0], Mapping):
            return of_rows(name, content, first=first)
        return _of_tuples(name, content, languages, first=first)
    raise TnkitError(
        f"{name} holds {type(content).__name__}, expected a list, not empty, of sentences or of tuples of them"
    )


def of_rows(name: str, rows: Sequence[Any], *, first: str = "item 0") -> "pd.DataFrame":
    """A table of objects; a field that an object lacks is empty."""
    import pandas as pd

    columns: dict[str, None] = {}
    given = 0
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TnkitError(
                f'{name}, {_item(first, number)}: expected an object such as {{"en": "Hi!", "ja": "やあ！"}}'
            )
        columns |= dict.fromkeys(row)
        given += len(row)
    bounded(name, len(rows), len(columns), given)
    return pd.DataFrame({column: [row.get(column) for row in rows] for column in columns}, dtype=object)


def bounded(name: str, rows: int, columns: int, given: int) -> None:
    """Refuse a table that is far larger than what was given for it."""
    if rows * columns > min(files.CELLS, max(_FREE, _SPARSE * given)):
        raise TnkitError(f"{name} holds {rows:,} rows of {columns:,} columns; give a part of them")


def _of_columns(name: str, content: Mapping[Any, Any]) -> "pd.DataFrame":
    import pandas as pd

    columns = {str(key): _cells(value) for key, value in content.items()}
    wrong = [key for key, cells in columns.items() if cells is None]
    if wrong or not columns:
        raise TnkitError(f"{name} holds dict, expected a list of sentences for each language, and not for {wrong[:3]}")
    sizes = {key: len(cells or ()) for key, cells in columns.items()}
    if len({*sizes.values()}) > 1:
        counts = ", ".join(f"{size:,} in {key}" for key, size in sizes.items())
        raise TnkitError(f"{name}: its lists are not of one length ({counts}); give one translation for each sentence")
    return pd.DataFrame(columns, dtype=object)


def _cells(value: Any) -> list[Any] | None:
    if isinstance(value, list | tuple):
        return [*value]
    if hasattr(value, "tolist") and getattr(value, "ndim", 1) == 1:  # an array or a column of a frame
        return list(value.tolist())
    return [*value] if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def _of_tuples(name: str, content: Sequence[Any], languages: Sequence[str] | None, *, first: str) -> "pd.DataFrame":
    import pandas as pd

    single = isinstance(content[0], str)
    width = 1 if single else len(content[0]) if isinstance(content[0], list | tuple) else 0
    bounded(name, len(content), width, len(content))
    for number, row in enumerate(content):
        cells = (row,) if isinstance(row, str) else row
        if not isinstance(cells, list | tuple) or len(cells) != width or not all(isinstance(one, str) for one in cells):
            expected = f"{width} sentences" if width and not single else "a sentence"
            raise TnkitError(f"{name}, {_item(first, number)}: expected {expected}")
    rows = [(row,) if isinstance(row, str) else row for row in content]
    if languages is None or len(languages) != width:
        holds = "single sentences" if width == 1 else f"tuples of {width} sentences"
        raise TnkitError(
            f"{name} holds {holds} without language names, and was asked for {listed(languages)}; name {width} "
            f"language{'s' * (width > 1)} in their order, or give TSV with a column a language"
        )
    return pd.DataFrame(rows, columns=list(languages), dtype=object)


def _item(first: str, number: int) -> str:
    kind, start = first.rsplit(" ", 1)
    return f"{kind} {int(start) + number}"


def listed(languages: Sequence[str] | None) -> str:
    """The languages asked for, in words."""
    return ", ".join(languages or ()) or "no language"
