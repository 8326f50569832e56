"""Tables of text between tabs or commas: whether quotes are text, and whether the first line names the columns."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tnkit.errors import TnkitError
from tnkit.text.files import File
from tnkit.text.languages import code_of, foreign_script, matching, same
from tnkit.text.records import listed

Rows = list[list[str]]
_PAIR = re.compile("(?=(?<![A-Za-z])([A-Za-z]+)-([A-Za-z]+))")  # Japanese-English
_SAMPLE = 20  # lines that decide whether a table is an export
# Names of columns that are no language but show that the first line is a header.
_NAMES = {"split", "lang", "language", "text", "sentence", "translation", "translations", "english", "non_english"}
_NAMES |= {"id", "locale", "utt", "dialect", "flores_passage", "iso_639_3", "index_id", "category", "queries"}


class Export(NamedTuple):
    """A table without a header that is recognised by its cells.

    Attributes:
        name: of its source.
        fits: whether a row can be one of its rows.
        columns: their names; a number is an index into the requested languages.
    """

    name: str
    fits: Callable[[Sequence[str]], bool]
    columns: tuple[str | int, ...]


def _starts_with_code(row: Sequence[str]) -> bool:
    """Whether a row begins with a number and the code of a language."""
    return row[0].isdecimal() and re.fullmatch(r"\\N|[a-z]{2,4}", row[1]) is not None


_DETAILED = ("id", "lang", "text", "user", "added", "modified")
EXPORTS = (
    Export("Tatoeba's sentences", lambda row: len(row) == 3 and _starts_with_code(row), ("id", "lang", "text")),
    Export("Tatoeba's detailed sentences", lambda row: len(row) == 6 and _starts_with_code(row), _DETAILED),
    Export(
        "Tatoeba's pairs",
        lambda row: len(row) == 4 and row[0].isdecimal() and row[2].isdecimal(),
        ("id", 0, "id of the translation", 1),
    ),
    Export("Tatoeba's links", lambda row: len(row) == 2 and all(map(str.isdecimal, row)), ("id", "translation id")),
    Export("Anki's pairs", lambda row: len(row) == 3 and row[2].startswith("CC-BY"), (0, 1, "attribution")),
)


def frame(file: File, separator: str) -> pd.DataFrame:
    """The table of a file with tabs or commas between its cells.

    >>> frame(File("x.tsv", b'en\\tit\\n"Hi!\\tCiao!\\n'), "\\t").to_dict("records")
    [{'en': '"Hi!', 'it': 'Ciao!'}]
    """
    text = file.text()
    quoting = file.quoting or ("none" if '"' not in text else "csv" if separator in ",;" else None)
    read = {"none": _plain, "csv": _quoted, None: _detected}[quoting]
    rows = read(file.path, text, separator)
    if not rows:
        raise TnkitError(f"{file.path} has no sentences")
    return _headed(file, rows)


def export_of(rows: Rows) -> Export | None:
    """The export that rows without a header come from, or None."""
    return next((export for export in EXPORTS if all(map(export.fits, rows[:_SAMPLE]))), None)


def _headed(file: File, rows: Rows) -> pd.DataFrame:
    export = export_of(rows)
    if export is not None:
        table = pd.DataFrame(rows, columns=_export_columns(file, export))
        _check_order(file, export, table)
        return table
    if file.header is None:
        if file.languages is None or len(file.languages) != len(rows[0]):
            raise TnkitError(
                f"{file.path} has {len(rows[0])} columns and no header (requested: {listed(file.languages)}); name "
                "one language for each column in its order, or add a first line that names the columns"
            )
        return pd.DataFrame(rows, columns=list(file.languages))
    header = [name.strip() for name in rows[0]]
    if len({*header}) != len(header):
        raise TnkitError(f"{file.path}, line 1: a column is named twice in {header}; name each column once")
    requested = any(matching(language, header) for language in file.languages or ())
    if not requested and not any(name in _NAMES or _names_language(name) for name in header):
        raise TnkitError(
            f"{file.path}, line 1: no names of columns; name each by its language code, such as en or ja, or, "
            "for a file without a header, give header=None and languages= in the order of its columns"
        )
    return pd.DataFrame(rows[1:], columns=header)


def _names_language(name: str) -> bool:
    """Whether a cell of the first line names a language, and is not a word such as "No" or "Hi"."""
    is_word = len(name) < 4 and name[:1].isupper() and not name.isupper()
    return len(name) < 40 and not is_word and code_of(name) is not None


def _export_columns(file: File, export: Export) -> list[str]:
    width = sum(isinstance(column, int) for column in export.columns)
    languages = list(file.languages or ())
    if width and len(languages) != width:
        raise TnkitError(
            f"{file.path} looks like {export.name}, which have no header (requested: {listed(languages)}); name "
            f"{width} languages in the order of its columns"
        )
    return [languages[column] if isinstance(column, int) else column for column in export.columns]


def _check_order(file: File, export: Export, table: pd.DataFrame) -> None:
    """Refuse languages in another order than the file's name, its source or the scripts of its text show."""
    pair = [str(table.columns[index]) for index, column in enumerate(export.columns) if isinstance(column, int)]
    if len(pair) != 2:
        return
    named = [match for match in _PAIR.findall(Path(file.path).name) if all(map(code_of, match))]
    stated = [("en", "")] if export.name == "Anki's pairs" else named[-1:]
    left, right = pair
    by_name = any(not same(left, first) and (same(right, first) or same(left, second)) for first, second in stated)
    by_script = all(
        foreign_script(table[column].to_list(), column) and not foreign_script(table[column].to_list(), swapped)
        for column, swapped in ((left, right), (right, left))
    )
    if by_name or by_script:
        raise TnkitError(
            f"{file.path}: {left} and {right} were requested, but its columns are in the other order; give "
            f"languages=[{right!r}, {left!r}]"
        )


def _plain(path: str, text: str, separator: str) -> Rows:
    """Rows in which quotes are text."""
    rows: Rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if (line := line.removesuffix("\r")) or (rows and len(rows[0]) == 1):  # an empty cell
            rows.append(line.split(separator))
            _check_width(path, number, rows)
    return rows


def _quoted(path: str, text: str, separator: str) -> Rows:
    """Rows of cells that may be quoted, with inner quotes doubled, as csv and pandas write them."""
    text, mark = _marked(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: Rows = []
    try:
        for row in reader:
            if row or (rows and len(rows[0]) == 1):
                rows.append([cell.replace(mark, "\r") for cell in row or [""]])
                _check_width(path, reader.line_num, rows)
    except csv.Error as error:
        raise TnkitError(f"{path}, line {reader.line_num}: {error}; check its quotes and separators") from error
    return rows


def _marked(text: str) -> tuple[str, str]:
    """The text, and the character that replaces carriage returns within lines, where csv would end a line."""
    mark = next(chr(code) for code in range(0xFDD0, 0x110000) if chr(code) not in text)
    if text.partition("\n")[0].endswith("\r"):
        text = text.replace("\r\n", "\n")
    return text.replace("\r", mark), mark


def _check_width(path: str, number: int, rows: Rows) -> None:
    if len(rows[-1]) != len(rows[0]):
        names = ", ".join(rows[0])
        raise TnkitError(
            f"{path}, line {number}: {len(rows[-1])} columns, expected {len(rows[0])} as in line 1 ({names:.80})"
        )


def _detected(path: str, text: str, separator: str) -> Rows:
    """Rows of a file with quotes, if it can have been written in only one way."""
    first = text.split("\n", 1)[0].removesuffix("\r").split(separator)
    if all(map(_in_quotes, first)):
        return _quoted(path, text, separator)  # no column's name has quotes
    try:
        quoted = _quoted(path, text, separator)
    except TnkitError:
        return _plain(path, text, separator)
    try:
        plain = _plain(path, text, separator)
    except TnkitError:
        if _as_written(quoted, separator) != _marked(text)[0].strip("\n"):
            raise
        if any("\n" in cell and separator in cell for row in quoted for cell in row):
            raise _ambiguous(path) from None
        return quoted
    if [*map(len, plain)] != [*map(len, quoted)]:
        raise _ambiguous(path)
    pairs = [
        (raw, cell) for raws, cells in zip(plain, quoted, strict=True) for raw, cell in zip(raws, cells, strict=True)
    ]
    if plain == quoted or any(raw == cell and '"' in cell for raw, cell in pairs):
        return plain  # csv and pandas quote every cell that holds a quote
    inner = ['"' in cell or "\r" in cell for raw, cell in pairs if raw != cell]  # from 3.13 on, csv quotes returns
    if all(inner):
        return quoted
    columns = zip(*plain[1:], strict=True)
    if any(inner) or any(raw == '""' for raw, _ in pairs) or any(all(map(_in_quotes, column)) for column in columns):
        raise _ambiguous(path)
    return plain


def _in_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _as_written(rows: Rows, separator: str) -> str:
    """Rows as csv and pandas write them."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    return text.getvalue().strip("\n")


def _ambiguous(path: str) -> TnkitError:
    return TnkitError(
        f"{path}: its quotes can be read in two ways; give quoting='csv' if quotes enclose cells and inner quotes are "
        "doubled, or quoting='none' if quotes are text"
    )
