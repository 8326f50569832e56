"""Files of sentences, read into a table by their ending; every complaint names the file and the line."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit import pickles
from tnkit.errors import TnkitError
from tnkit.text import columnar, files, records, tables, tmx
from tnkit.text.files import File, Quoting
from tnkit.text.languages import code_of, matching

if TYPE_CHECKING:
    import pandas as pd

_SHARED = 100  # times that a pickle's text may be longer than its file, which refers to strings again


def read_table(
    path: str | Path | File,
    languages: Sequence[str] | None = None,
    *,
    header: int | None = 0,
    quoting: Quoting | None = None,
) -> "pd.DataFrame":
    """Read a file by its ending.

    Args:
        path: one of the endings in `READERS`, of text also with .gz, .bz2 or .xz, or alone in a .zip or .tar file.
        languages: names for the columns of files that name none (.txt, .pkl, and tables without a header).
        header: None for a .tsv or .csv file whose first line is a row.
        quoting: of a .tsv file, "csv" where cells may be quoted and "none" where quotes are text; found out otherwise.

    Raises:
        TnkitError: for a file that is missing, empty, damaged, or not what its ending says.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "pairs.tsv"
    >>> _ = file.write_text("en\\tit\\nHi!\\tCiao!\\n")
    >>> read_table(file).to_dict("records")
    [{'en': 'Hi!', 'it': 'Ciao!'}]
    """
    if header not in (0, None):
        raise TnkitError(f"header={header} must be 0, for names in the first line, or None, for no names")
    if quoting not in ("csv", "none", None):
        raise TnkitError(f"quoting={quoting!r} must be 'csv', 'none' or None")
    file = path if isinstance(path, File) else files.opened(path)
    reader = READERS.get(file.ending)
    if reader is None and file.ending and _is_language(file.ending[1:], languages):
        reader = _plain  # OPUS names files so: corpus.en
    if reader is None:
        raise TnkitError(f"{file.path} ends in {file.ending or 'nothing'}; tnkit reads {' '.join(READERS)}")
    if header is None and file.ending in READERS and file.ending not in (".tsv", ".csv", ".txt"):
        raise TnkitError(f"header=None is for .tsv and .csv files, and {file.path} is {file.ending}; name its columns")
    return reader(replace(file, languages=languages, header=header, quoting=quoting))


def _is_language(ending: str, languages: Sequence[str] | None) -> bool:
    return any(matching(language, [ending]) for language in languages or ()) or code_of(ending) is not None


def _tsv(file: File) -> "pd.DataFrame":
    return tables.frame(file, "\t")


def _csv(file: File) -> "pd.DataFrame":
    first = file.text().partition("\n")[0]
    separator = next((mark for mark in "\t,;" if mark in first), ",")  # Tatoeba's .csv files have tabs, Excel's ;
    return tables.frame(file, separator)


def _jsonl(file: File) -> "pd.DataFrame":
    rows = []
    for number, line in enumerate(file.text().split("\n"), 1):
        if not line.strip():
            continue
        row = _json(f"{file.path}, line {number}", line, "; give one object a line")
        if not isinstance(row, dict):
            raise TnkitError(f'{file.path}, line {number}: expected an object such as {{"en": "Hi!", "ja": "やあ！"}}')
        rows.append(row)
    return records.of_rows(file.path, rows)


def _json(where: str, text: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TnkitError(f"{where}: not JSON ({error}){advice}") from error


def _json_file(file: File) -> "pd.DataFrame":
    content = _json(file.path, file.text(), "; for one object a line, end its name in .jsonl")
    if isinstance(content, dict) and len(content) == 1:  # {"data": [...]}
        [(_, inner)] = content.items()
        content = inner if isinstance(inner, list) and inner and isinstance(inner[0], dict) else content
    return records.table(file.path, content, file.languages)


def _plain(file: File) -> "pd.DataFrame":
    import pandas as pd

    lines, languages = file.lines(), file.languages
    widths = {line.count("\t") for line in lines if line}
    if len(widths) == 1 and widths != {0}:
        if tables.export_of([line.split("\t") for line in lines[:20] if line]) or file.header is None:
            return tables.frame(replace(file, quoting="none"), "\t")
        raise TnkitError(
            f"{file.path} holds {max(widths) + 1} columns between tabs, expected a sentence a line; end its name in "
            ".tsv, and give header=None if its first line is no header"
        )
    if languages is None or len(languages) != 1:
        raise TnkitError(
            f"{file.path} holds single sentences, one a line, and was asked for {records.listed(languages)}; name one "
            "language, or give aligned sentences as TSV with a column a language"
        )
    return pd.DataFrame({languages[0]: lines}, dtype=object)


def _pickle(file: File) -> "pd.DataFrame":
    content = pickles.loads(file.path, file.data)
    frame = records.table(file.path, content, file.languages)
    limit = max(1 << 20, _SHARED * len(file.data))
    letters = 0
    for column in frame:
        letters += sum(len(cell) for cell in frame[column] if isinstance(cell, str))
        if letters > limit:
            raise TnkitError(
                f"{file.path} repeats its strings to more than {limit >> 20:,} MiB; save it as TSV or JSONL"
            )
    return frame


READERS: dict[str, Callable[[File], "pd.DataFrame"]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json_file,
    ".parquet": columnar.parquet,
    ".arrow": columnar.arrow,
    ".xlsx": columnar.spreadsheet,
    ".tmx": tmx.table,
    ".txt": _plain,
    ".pkl": _pickle,
}
