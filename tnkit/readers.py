"""Files of sentences, read into a frame with one column a language; every complaint names the file and the line."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tnkit import pickles, storage
from tnkit.errors import TnkitError

if TYPE_CHECKING:
    import pandas as pd

# Of a Parquet file, which can say in a kilobyte that it holds more than any memory, and repeat one value for ever.
_CELLS, _BYTES = 100_000_000, 2 << 30
_ROWS = 256  # decoded at a time


def read_table(path: str | Path, languages: Sequence[str] | None = None) -> "pd.DataFrame":
    """Read a file by its ending.

    Args:
        path: .tsv .csv .jsonl .parquet .txt .pkl
        languages: names for the columns of files that name none (.txt, .pkl).

    Raises:
        TnkitError: for a file that is missing, empty, damaged, or not what its ending says.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "pairs.tsv"
    >>> _ = file.write_text("en\\tit\\nHi!\\tCiao!\\n")
    >>> read_table(file).to_dict("records")
    [{'en': 'Hi!', 'it': 'Ciao!'}]
    """
    path = storage.existing_file(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TnkitError(f"{path} ends in {path.suffix or 'nothing'}; tnkit reads {' '.join(READERS)}")
    return reader(path, languages)


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1  # without the byte-order mark
        raise TnkitError(f"{path}, line {line}: not UTF-8 text; save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TnkitError(f"{path}, line {line}: not text but binary data; is its ending right?")
    return text


def _separated(path: Path, separator: str, quoting: Literal[0, 3]) -> "pd.DataFrame":
    import pandas as pd

    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=separator, quoting=quoting, strict=True)
    rows = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise TnkitError(f"{path}, line 1: no names of columns; name each by its language code, such as en or ja")
        if len(set(header)) != len(header):
            raise TnkitError(f"{path}, line 1: a column is named twice in {header}; name each column once")
        for row in reader:
            if len(row) not in (0, len(header)):
                raise TnkitError(
                    f"{path}, line {reader.line_num}: {len(row)} columns, expected {len(header)} as in line 1 "
                    f"({', '.join(header)})"
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise TnkitError(f"{path}, line {reader.line_num}: {error}; check its quotes and separators") from error
    return pd.DataFrame(rows, columns=header)


def _tsv(path: Path, _: Sequence[str] | None) -> "pd.DataFrame":
    return _separated(path, "\t", csv.QUOTE_NONE)


def _csv(path: Path, _: Sequence[str] | None) -> "pd.DataFrame":
    return _separated(path, ",", csv.QUOTE_MINIMAL)


def _jsonl(path: Path, _: Sequence[str] | None) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TnkitError(f"{path}, line {number}: not JSON ({error}); give one object a line") from error
        if not isinstance(row, dict):
            raise TnkitError(f'{path}, line {number}: expected an object such as {{"en": "Hi!", "ja": "やあ！"}}')
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _parquet(path: Path, _: Sequence[str] | None) -> "pd.DataFrame":
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, page_checksum_verification=True) as source:
            held, names, parts, size = source.metadata, source.schema_arrow.names, [], 0
            if len(set(names)) != len(names):
                raise TnkitError(f"{path}: a column is named twice in {names}; name each column once")
            if held.num_rows * held.num_columns > _CELLS:
                raise TnkitError(
                    f"{path} holds {held.num_rows:,} rows of {held.num_columns} columns; give a part of them"
                )
            for part in source.iter_batches(_ROWS):
                parts.append(part)
                size += part.nbytes
                if size > _BYTES:
                    raise TnkitError(f"{path} holds more than {_BYTES >> 20:,} MiB of text; give a part of it")
            frame = pyarrow.Table.from_batches(parts, source.schema_arrow).to_pandas()
        for name in frame.select_dtypes(["object", "string"]):
            frame[name] = [*frame[name]]  # decoded here, where what cannot be is noticed
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(
            f"{path} is not a readable Parquet file ({str(error).split(chr(10))[0]}); is its ending right?"
        ) from error
    return frame


def _plain(path: Path, languages: Sequence[str] | None) -> "pd.DataFrame":
    import pandas as pd

    if languages is None or len(languages) != 1:
        raise TnkitError(
            f"{path} holds single sentences, one a line, and was asked for {_listed(languages)}; name one language, or "
            "give aligned sentences as TSV with a column a language"
        )
    return pd.DataFrame({languages[0]: [line.rstrip("\n") for line in io.StringIO(_text(path), newline=None)]})


def _pickle(path: Path, languages: Sequence[str] | None) -> "pd.DataFrame":
    import pandas as pd

    content = pickles.read(path)
    if not isinstance(content, list | tuple) or not content:
        raise TnkitError(
            f"{path} holds {type(content).__name__}, expected a list, not empty, of sentences or of tuples of them"
        )
    rows = [(row,) if isinstance(row, str) else row for row in content]
    width = len(rows[0]) if isinstance(rows[0], list | tuple) else 0
    for number, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != width or not all(isinstance(cell, str) for cell in row):
            raise TnkitError(f"{path}, item {number}: expected {f'{width} sentences' if width else 'a sentence'}")
    if languages is None or len(languages) != width:
        holds = "single sentences" if width == 1 else f"tuples of {width} sentences"
        raise TnkitError(
            f"{path} holds {holds} without language names, and was asked for {_listed(languages)}; name {width} "
            f"language{'s' * (width > 1)} in their order, or give TSV with a column a language"
        )
    return pd.DataFrame(rows, columns=list(languages), dtype=object)


def _listed(languages: Sequence[str] | None) -> str:
    return ", ".join(languages or ()) or "no language"


READERS: dict[str, Callable[[Path, Sequence[str] | None], "pd.DataFrame"]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".txt": _plain,
    ".pkl": _pickle,
}
