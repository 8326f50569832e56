"""Files as people have them: packed or not, in any marked encoding, unpacked and decoded within bounds."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tnkit import storage
from tnkit.errors import TnkitError, first_line

BYTES = 2 << 30  # of text, of one file or table
CELLS = 100_000_000
_FREE, _RATIO = 64 << 20, 200  # bytes that any file may unpack to; beyond them, at most so many for each packed one
_NAMES = 10_000  # files of a folder or archive
_PACKED: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
Quoting = Literal["csv", "none"]


@dataclass(frozen=True)
class File:
    """What a file holds, and how the caller said to read it.

    Attributes:
        path: what errors call it.
        ending: in lower case, without the ending of the packing.
        data: its bytes, unpacked.
        languages: the names asked for.
        header: 0 where the first line names the columns, None where it does not.
        quoting: "csv" or "none"; None to find out.
    """

    path: str
    ending: str
    data: bytes
    languages: Sequence[str] | None = None
    header: int | None = 0
    quoting: Quoting | None = None

    def text(self) -> str:
        """Its text, of UTF-8 or of UTF-16 or UTF-32 with a byte-order mark."""
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
        """Its lines; a carriage return ends one where it precedes a newline, or where the file has no newline."""
        lines = [line.removesuffix("\r") for line in self.text().split("\n")]
        return lines[:-1] if lines[-1] == "" else lines


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
        [(name, read)] = members.items()
        return File(f"{path}/{name}", Path(name).suffix.lower(), read())
    try:
        size = path.stat().st_size
        if size > BYTES:
            raise _too_large(str(path))
        return unpacked(str(path), path.read_bytes())
    except OSError as error:
        raise TnkitError(f"cannot read {path}: {error.strerror}") from error


def unpacked(name: str, data: bytes) -> File:
    """A file of those bytes, unpacked where its ending says that it is packed."""
    ending = Path(name).suffix.lower()
    if ending not in _PACKED:
        return File(name, ending, data)
    try:
        with _PACKED[ending](io.BytesIO(data)) as file:
            whole = _bounded(name, file, len(data))
    except _FAILURES as error:
        if isinstance(error, TnkitError):
            raise
        raise TnkitError(f"{name} is not a readable {ending} file ({first_line(error)}); is it complete?") from error
    return File(name, Path(unpacked_name(name)).suffix.lower(), whole)


def unpacked_name(name: str) -> str:
    """A file's name without the ending of its packing.

    >>> unpacked_name("pairs.tsv.gz"), unpacked_name("pairs.tsv")
    ('pairs.tsv', 'pairs.tsv')
    """
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in _PACKED else name


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it holds several."""
    return path.name.lower().endswith(_ARCHIVES)


def listing(path: Path) -> Mapping[str, Callable[[], bytes]]:
    """The files of a folder or archive by their path within it, and how to read each.

    Nothing is written to disk, so that no name in an archive can lead outside of it.
    """
    try:
        if path.is_dir():
            members = _of_folder(path)
        elif path.suffix.lower() == ".zip":
            members = _of_zip(path)
        else:
            members = _of_tar(path)
    except _FAILURES as error:
        if isinstance(error, TnkitError):
            raise
        raise TnkitError(f"{path} is not a readable archive ({first_line(error)}); is it complete?") from error
    hidden = ("__MACOSX", ".")
    return {name: read for name, read in members.items() if not any(part.startswith(hidden) for part in _parts(name))}


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _of_folder(path: Path) -> dict[str, Callable[[], bytes]]:
    members: dict[str, Callable[[], bytes]] = {}
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            members[file.relative_to(path).as_posix()] = lambda file=file: opened(file).data  # type: ignore[misc]
        if len(members) > _NAMES:
            raise TnkitError(f"{path} holds more than {_NAMES:,} files; name the folder of the corpus itself")
    return members


def _of_zip(path: Path) -> dict[str, Callable[[], bytes]]:
    packed = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > _NAMES:
        raise TnkitError(f"{path} holds more than {_NAMES:,} files; unpack it and name one of them")

    def read(member: zipfile.ZipInfo) -> bytes:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return unpacked(member.filename, _bounded(f"{path}/{member.filename}", file, packed)).data

    return {member.filename: _reading(path, read, member) for member in members}


def _of_tar(path: Path) -> dict[str, Callable[[], bytes]]:
    packed, members = path.stat().st_size, {}
    with tarfile.open(path) as archive:
        names = [member.name for member in archive if member.isfile()][: _NAMES + 1]

    def read(name: str) -> bytes:
        with tarfile.open(path) as archive:
            file = archive.extractfile(name)
            return unpacked(name, _bounded(f"{path}/{name}", file, packed)).data if file else b""

    for name in names:
        members[name] = _reading(path, read, name)
    return members


def _reading(path: Path, read: Callable[[Any], bytes], member: Any) -> Callable[[], bytes]:
    def reading() -> bytes:
        try:
            return read(member)
        except TnkitError:
            raise
        except _FAILURES as error:
            raise TnkitError(f"{path} is not a readable archive ({first_line(error)}); is it complete?") from error

    return reading


def _bounded(name: str, file: Any, packed: int) -> bytes:
    """All that a file unpacks to, within the bounds."""
    limit = min(BYTES, max(_FREE, _RATIO * packed))
    data = file.read(limit + 1)
    if len(data) > limit:
        raise _too_large(name, limit)
    return data


def _too_large(name: str, limit: int = 0) -> TnkitError:
    return TnkitError(f"{name} holds more than {(limit or BYTES) >> 20:,} MiB of text; give a part of it")
