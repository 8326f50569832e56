"""Files as people have them: packed or not, in any marked encoding, unpacked and decoded within limits."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tnkit import storage
from tnkit.errors import TnkitError, first_line

BYTES = 2 << 30  # of text in one file or table
CELLS = 100_000_000
_FREE, _RATIO = 64 << 20, 200  # a file may unpack to the first, or to this many times its packed size
_NAMES = 10_000  # files in a folder or archive
_PACKED: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, RuntimeError, KeyError)
_DAMAGE += (zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
Quoting = Literal["csv", "none"]


@dataclass(frozen=True)
class File:
    """The content of a file, and how to read it.

    Attributes:
        path: its name in errors.
        data: its bytes, unpacked.
        languages: the requested languages.
        header: 0 if the first line names the columns, None if it does not.
        quoting: "csv" or "none"; None to detect it.
    """

    path: str
    data: bytes
    languages: Sequence[str] | None = None
    header: int | None = 0
    quoting: Quoting | None = None

    @property
    def ending(self) -> str:
        """The file's ending in lower case, without .gz, .bz2 or .xz."""
        return ending_of(self.path)

    def text(self) -> str:
        """The text, in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark."""
        encoding = next((name for mark, name in _MARKS.items() if self.data.startswith(mark)), "utf-8-sig")
        try:
            text = self.data.decode(encoding)
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1  # without the byte-order mark
            raise TnkitError(f"{self.path}, line {line}: not UTF-8 text; save it as UTF-8") from error
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise TnkitError(f"{self.path}, line {line}: not text but binary data; is its ending right?")
        return text if "\n" in text else text.replace("\r", "\n")

    def lines(self) -> list[str]:
        """The lines; a carriage return ends one before a newline, or in a file without newlines."""
        lines = [line.removesuffix("\r") for line in self.text().split("\n")]
        return lines[:-1] if lines[-1] == "" else lines


Members = Mapping[str, Callable[[], File]]  # how to read each file, by its path in a folder or archive


def opened(path: str | Path) -> File:
    """Read a file; unpack .gz, .bz2 and .xz, and an archive that holds one file.

    Raises:
        TnkitError: for a file that is missing, empty, damaged, or unpacks to too much.
    """
    path = storage.existing_file(path)
    if is_archive(path):
        members = listing(path)
        if len(members) != 1:
            raise TnkitError(f"{path} holds {len(members)} files, expected one; unpack it and name one of them")
        [read] = members.values()
        return read()
    if path.stat().st_size > BYTES:
        raise _too_large(str(path), BYTES)
    with readable(f"{path} cannot be read"):
        return File(str(path), _unpacked(str(path), path.read_bytes()))


def unpacked_name(name: str) -> str:
    """A file's name without .gz, .bz2 or .xz.

    >>> unpacked_name("pairs.tsv.gz"), unpacked_name("pairs.tsv")
    ('pairs.tsv', 'pairs.tsv')
    """
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in _PACKED else name


def ending_of(name: str) -> str:
    """A file's ending in lower case, without .gz, .bz2 or .xz.

    >>> ending_of("pairs.TSV.gz")
    '.tsv'
    """
    return Path(unpacked_name(name)).suffix.lower()


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive."""
    return path.name.lower().endswith(_ARCHIVES)


def listing(path: Path) -> Members:
    """The files of a folder or archive; nothing is written to disk, so no name in an archive can lead outside it."""
    with readable(f"{path} is not a readable archive"):
        members = _of_folder(path) if path.is_dir() else _of_archive(path)
    if len(members) > _NAMES:
        raise TnkitError(f"{path} holds more than {_NAMES:,} files; unpack it, or name the folder of the corpus")
    hidden = ("__MACOSX", ".")
    return {
        name: read
        for name, read in members.items()
        if not any(step.startswith(hidden) for step in name.split("/") if step != ".")
    }


def _of_folder(path: Path) -> Members:
    members: dict[str, Callable[[], File]] = {}
    for folder, folders, names in os.walk(path):
        folders.sort()
        for file in (Path(folder, name) for name in sorted(names)):
            members[file.relative_to(path).as_posix()] = partial(opened, file)
        if len(members) > _NAMES:
            break
    return members


def _of_archive(path: Path) -> Members:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
    else:
        with tarfile.open(path) as tape:
            names = [member.name for member in islice(filter(tarfile.TarInfo.isfile, tape), _NAMES + 1)]
    return {name: partial(_member, path, name) for name in names}


def _member(path: Path, name: str) -> File:
    """A file in an archive."""
    packed, whole = path.stat().st_size, f"{path}/{name}"
    with readable(f"{path} is not a readable archive"):
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                return File(whole, _unpacked(name, _bounded(whole, file, packed)))
        with tarfile.open(path) as tape:
            member = tape.extractfile(name)
            return File(whole, _unpacked(name, _bounded(whole, member, packed)) if member else b"")


def _unpacked(name: str, data: bytes) -> bytes:
    ending = Path(name).suffix.lower()
    if ending not in _PACKED:
        return data
    with readable(f"{name} is not a readable {ending} file"), _PACKED[ending](io.BytesIO(data)) as file:
        return _bounded(name, file, len(data))


@contextmanager
def readable(
    problem: str, advice: str = "is it complete?", errors: tuple[type[Exception], ...] = _DAMAGE
) -> Iterator[None]:
    """Report an error of another library that reads a file as a `TnkitError`."""
    try:
        yield
    except TnkitError:
        raise
    except errors as error:
        raise TnkitError(f"{problem} ({first_line(error)}); {advice}") from error


def _bounded(name: str, file: Any, packed: int) -> bytes:
    """The content of a packed file, unless it is larger than the limits allow."""
    limit = min(BYTES, max(_FREE, _RATIO * packed))
    data: bytes = file.read(limit + 1)
    if len(data) > limit:
        raise _too_large(name, limit)
    return data


def _too_large(name: str, limit: int) -> TnkitError:
    return TnkitError(f"{name} holds more than {limit >> 20:,} MiB of text; load a part of it")
