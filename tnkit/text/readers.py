"""Files of sentences, read into a table by their ending: a format is one function and one entry of `READERS`."""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import pandas as pd

from tnkit import pickles
from tnkit.errors import TnkitError
from tnkit.text import files, records, tables
from tnkit.text.files import File, Quoting
from tnkit.text.languages import code_of, matching

_BATCH = 256  # rows of a Parquet file decoded at a time
_SHARED = 100  # a pickle can repeat a string by reference: its text may be this many times longer than the file
_MARKUP = ("bpt", "ept", "ph", "it", "ut")  # elements of a TMX segment whose text is formatting


def read_table(
    path: str | Path | File,
    languages: Sequence[str] | None = None,
    *,
    header: int | None = 0,
    quoting: Quoting | None = None,
) -> pd.DataFrame:
    """Read a file by its ending.

    Args:
        path: a file with an ending in `READERS`; text may be packed as .gz, .bz2 or .xz, or alone in a .zip or .tar.
        languages: names for the columns of files that name none (.txt, .pkl, and tables without a header).
        header, quoting: as in `load_corpus`.

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
    reader, tag = READERS.get(file.ending), file.ending[1:]
    if reader is None and tag and (code_of(tag) or any(matching(language, [tag]) for language in languages or ())):
        reader = _plain  # OPUS names its files after the language: corpus.en
    if reader is None:
        raise TnkitError(f"{file.path} ends in {file.ending or 'nothing'}; tnkit reads {' '.join(READERS)}")
    if header is None and file.ending in READERS and file.ending not in (".tsv", ".csv", ".txt"):
        raise TnkitError(f"header=None is for .tsv and .csv files, and {file.path} is {file.ending}; name its columns")
    return reader(replace(file, languages=languages, header=header, quoting=quoting))


def _csv(file: File) -> pd.DataFrame:
    first = file.text().partition("\n")[0]
    separator = next((mark for mark in "\t,;" if mark in first), ",")  # Tatoeba's .csv files have tabs, Excel's ;
    return tables.frame(file, separator)


def _jsonl(file: File) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(file.text().split("\n"), 1):
        if not line.strip():
            continue
        row = _loaded(f"{file.path}, line {number}", line, "give one object a line")
        if not isinstance(row, dict):
            raise TnkitError(f'{file.path}, line {number}: expected an object such as {{"en": "Hi!", "ja": "やあ！"}}')
        rows.append(row)
    return records.of_rows(file.path, rows)


def _json(file: File) -> pd.DataFrame:
    content = _loaded(file.path, file.text(), "if each line is an object, rename it to .jsonl")
    if isinstance(content, dict) and len(content) == 1:  # {"data": [...]}
        [inner] = content.values()
        content = inner if isinstance(inner, list) and inner and isinstance(inner[0], dict) else content
    return records.table(file.path, content, file.languages)


def _loaded(source: str, text: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TnkitError(f"{source}: not JSON ({error}); {advice}") from error


def _plain(file: File) -> pd.DataFrame:
    lines, languages = file.lines(), file.languages
    widths = {line.count("\t") for line in lines if line}
    if len(widths) == 1 and widths != {0}:
        if tables.export_of([line.split("\t") for line in lines[:20] if line]) or file.header is None:
            return tables.frame(replace(file, quoting="none"), "\t")
        raise TnkitError(
            f"{file.path} has {max(widths) + 1} columns between tabs, expected one sentence per line; rename it to "
            ".tsv, and give header=None if its first line is no header"
        )
    if languages is None or len(languages) != 1:
        raise TnkitError(
            f"{file.path} holds single sentences (requested: {records.listed(languages)}); name one language, or "
            "give a TSV file with a column for each language"
        )
    return pd.DataFrame({languages[0]: lines}, dtype=object)


def _pickle(file: File) -> pd.DataFrame:
    """The published code's sentences.

    Its Tatoeba splits leak: 139 of 850 English test sentences are in Japanese's training split.
    """
    frame = records.table(file.path, pickles.loads(file.path, file.data), file.languages)
    limit, letters = max(1 << 20, _SHARED * len(file.data)), 0
    for column in frame:
        letters += sum(len(cell) for cell in frame[column] if isinstance(cell, str))
        if letters > limit:
            raise TnkitError(
                f"{file.path} repeats its strings to more than {limit >> 20:,} MiB; save it as TSV or JSONL"
            )
    return frame


def _readable(file: File, kind: str) -> AbstractContextManager[None]:
    return files.readable(f"{file.path} is not a readable {kind} file", "is its ending right?", (Exception,))


def _parquet(file: File) -> pd.DataFrame:
    from pyarrow.parquet import ParquetFile

    with _readable(file, "Parquet"), ParquetFile(io.BytesIO(file.data), page_checksum_verification=True) as source:
        return _of_arrow(file.path, source.schema_arrow, source.metadata.num_rows, source.iter_batches(_BATCH))


def _arrow(file: File) -> pd.DataFrame:
    """An Arrow file or stream, as the library datasets writes them."""
    import pyarrow

    opened = pyarrow.ipc.open_file if file.data.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    with _readable(file, "Arrow"), opened(pyarrow.BufferReader(file.data)) as source:
        table = source.read_all()
        table.validate(full=True)
        return _of_arrow(file.path, table.schema, len(table), table.to_batches())


def _of_arrow(path: str, schema: Any, rows: int, batches: Iterable[Any]) -> pd.DataFrame:
    import pyarrow

    names = schema.names
    if len({*names}) != len(names):
        raise TnkitError(f"{path}: a column is named twice in {names}; name each column once")
    if rows * len(names) > files.CELLS:
        raise TnkitError(f"{path} holds {rows:,} rows of {len(names)} columns; load a part of them")
    decoded, size = [], 0
    for batch in batches:
        decoded.append(batch)
        size += batch.nbytes
        if size > files.BYTES:
            raise TnkitError(f"{path} holds more than {files.BYTES >> 20:,} MiB of text; load a part of it")
    frame: pd.DataFrame = pyarrow.Table.from_batches(decoded, schema).to_pandas()
    for name in frame.select_dtypes(["object", "string"]):
        frame[name] = [*frame[name]]  # decoded here, so that damaged text raises here
    return frame


def _spreadsheet(file: File) -> pd.DataFrame:
    """The first sheet of an Excel file; its first row names the columns."""
    with _readable(file, "Excel"):
        rows = [row for row in _sheet(file) if any(cell is not None for cell in row)]
    names = ["" if name is None else str(name).strip() for name in (rows[0] if rows else ())]
    if names[:1] == [""] and all(isinstance(row[0], int | float) for row in rows[1:]):  # the index of a frame
        rows, names = [row[1:] for row in rows], names[1:]
    width = max((number for number, name in enumerate(names, 1) if name), default=0)
    if not width or "" in names[:width] or len({*names[:width]}) != width:
        raise TnkitError(f"{file.path}, row 1: expected a name for each column, such as en and ja, not {names}")
    if any(cell is not None for row in rows for cell in row[width:]):
        raise TnkitError(f"{file.path}: a row has more than the {width} cells that row 1 names")
    cells = [[*row[:width], *[None] * (width - len(row))] for row in rows[1:]]
    return pd.DataFrame(cells, columns=names[:width], dtype=object)


def _sheet(file: File) -> list[tuple[Any, ...]]:
    import openpyxl

    with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > min(files.BYTES, max(64 << 20, 200 * len(file.data))):
        raise TnkitError(f"{file.path} unpacks to {size >> 20:,} MiB; load a part of it")
    rows, cells, letters = [], 0, 0
    book = openpyxl.load_workbook(io.BytesIO(file.data), read_only=True, data_only=True)
    for row in book.worksheets[0].iter_rows(values_only=True):
        cells += len(row)
        letters += sum(len(cell) for cell in row if isinstance(cell, str))
        if cells > max(1_000_000, 2 * len(file.data)) or letters > files.BYTES:
            raise TnkitError(f"{file.path} holds more than {cells:,} cells; load a part of them")
        rows.append(row)
    return rows


def _tmx(file: File) -> pd.DataFrame:
    """A translation memory: a row for each unit, a column for each language; external entities are never loaded.

    If a unit has a language twice, its first segment counts; EN and en are one language.
    """
    units, names = list[dict[str, str]](), dict[str, str]()
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def end(tag: str) -> None:
        element = builder.end(tag)
        if tag == "tu":
            units.append(_unit(element, names))
            element.clear()

    def doctype(_name: str, _system: Any, _public: Any, internal: Any) -> None:
        if internal:  # which could declare entities that grow without end
            raise TnkitError(f"{file.path} declares its own document type; take its <!DOCTYPE …[…]> out")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, doctype
    damage = (expat.ExpatError, LookupError, ValueError, RecursionError)
    with files.readable(f"{file.path} is not a readable TMX file", "is it complete, and in UTF-8?", damage):
        parser.Parse(file.data, True)
    if not units:
        raise TnkitError(f"{file.path} has no translation units (<tu>); is its ending right?")
    return records.of_rows(file.path, units)


def _unit(element: Element, names: dict[str, str]) -> dict[str, str]:
    """The segment of each language in a unit; `names` holds the first spelling of each language."""
    segments: dict[str, str] = {}
    for variant in element.iter("tuv"):
        tag = variant.get("xml:lang") or variant.get("lang") or ""
        language, segment = names.setdefault(tag.lower(), tag), variant.find("seg")
        if language and segment is not None:
            segments.setdefault(language, _text_of(segment))
    return segments


def _text_of(element: Element) -> str:
    """The text of a segment without its formatting."""
    inner = ((_text_of(child) if child.tag not in _MARKUP else "") + (child.tail or "") for child in element)
    return (element.text or "") + "".join(inner)


READERS: dict[str, Callable[[File], pd.DataFrame]] = {
    ".tsv": partial(tables.frame, separator="\t"),
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".xlsx": _spreadsheet,
    ".tmx": _tmx,
    ".txt": _plain,
    ".pkl": _pickle,
}
