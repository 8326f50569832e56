"""Tables in binary files: Parquet, Arrow and spreadsheets, read within bounds."""

import io
import zipfile
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError, first_line
from tnkit.text import files
from tnkit.text.files import File

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 256  # decoded at a time


def parquet(file: File) -> "pd.DataFrame":
    """The table of a Parquet file.

    Raises:
        TnkitError: for a file that is damaged, or that unpacks to too much.

    >>> import pandas as pd
    >>> data = pd.DataFrame({"en": ["Hi!"], "it": ["Ciao!"]}).to_parquet()
    >>> parquet(File("pairs.parquet", ".parquet", data)).to_dict("records")
    [{'en': 'Hi!', 'it': 'Ciao!'}]
    """
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(io.BytesIO(file.data), page_checksum_verification=True) as source:
            held = source.metadata
            _check_shape(file.path, source.schema_arrow.names, held.num_rows)
            return _frame(file.path, source.schema_arrow, source.iter_batches(_ROWS))
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(
            f"{file.path} is not a readable Parquet file ({first_line(error)}); is its ending right?"
        ) from error


def arrow(file: File) -> "pd.DataFrame":
    """The table of an Arrow file or stream, as the library datasets writes them."""
    import pyarrow

    try:
        buffer = pyarrow.BufferReader(file.data)
        opened = pyarrow.ipc.open_file if file.data.startswith(b"ARROW1") else pyarrow.ipc.open_stream
        with opened(buffer) as source:
            batches = (
                [source.get_batch(n) for n in range(source.num_record_batches)]
                if opened is (pyarrow.ipc.open_file)
                else [*source]
            )
            for batch in batches:
                batch.validate(full=True)
            _check_shape(file.path, source.schema.names, sum(map(len, batches)))
            return _frame(file.path, source.schema, batches)
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(
            f"{file.path} is not a readable Arrow file ({first_line(error)}); is its ending right?"
        ) from error


def _check_shape(path: str, names: list[str], rows: int) -> None:
    if len({*names}) != len(names):
        raise TnkitError(f"{path}: a column is named twice in {names}; name each column once")
    if rows * len(names) > files.CELLS:
        raise TnkitError(f"{path} holds {rows:,} rows of {len(names)} columns; give a part of them")


def _frame(path: str, schema: Any, batches: Iterable[Any]) -> "pd.DataFrame":
    import pyarrow

    parts, size = [], 0
    for part in batches:
        parts.append(part)
        size += part.nbytes
        if size > files.BYTES:
            raise TnkitError(f"{path} holds more than {files.BYTES >> 20:,} MiB of text; give a part of it")
    frame: pd.DataFrame = pyarrow.Table.from_batches(parts, schema).to_pandas()
    for name in frame.select_dtypes(["object", "string"]):
        frame[name] = [*frame[name]]  # decoded here, where what cannot be is noticed
    return frame


def spreadsheet(file: File) -> "pd.DataFrame":
    """The first sheet of an Excel file; its first row names the columns."""
    import openpyxl
    import pandas as pd

    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > min(files.BYTES, max(64 << 20, 200 * len(file.data))):
            raise TnkitError(f"{file.path} unpacks to {size >> 20:,} MiB; give a part of it")
        book = openpyxl.load_workbook(io.BytesIO(file.data), read_only=True, data_only=True)
        sheet = book.worksheets[0]
        rows, cells, letters = [], 0, 0
        for row in sheet.iter_rows(values_only=True):
            cells += len(row)
            letters += sum(len(cell) for cell in row if isinstance(cell, str))
            if cells > max(1_000_000, 2 * len(file.data)) or letters > files.BYTES:
                raise TnkitError(f"{file.path} holds more than {cells:,} cells; give a part of them")
            rows.append(row)
        book.close()
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(
            f"{file.path} is not a readable Excel file ({first_line(error)}); is its ending right?"
        ) from error
    rows = [row for row in rows if any(cell is not None for cell in row)]
    names = ["" if name is None else str(name).strip() for name in next(islice(rows, 1), ())]
    if names[:1] == [""] and all(isinstance(row[0], int | float) for row in rows[1:]):  # the index of a frame
        rows, names = [row[1:] for row in rows], names[1:]
    width = max((place + 1 for place, name in enumerate(names) if name), default=0)
    if not width or "" in names[:width] or len({*names[:width]}) != width:
        raise TnkitError(
            f"{file.path}, row 1: expected a different name for each column, such as en and ja, not {names}"
        )
    if any(cell is not None for row in rows for cell in row[width:]):
        raise TnkitError(f"{file.path}: a row has more than the {width} cells that row 1 names")
    return pd.DataFrame(
        [[*row[:width], *[None] * (width - len(row))] for row in rows[1:]], columns=names[:width], dtype=object
    )
