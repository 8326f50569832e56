"""The finished shards of a long job, cached in the user's cache folder so that an interrupted job resumes: `Shards`.

shards = Shards({"weights": …, "sentences": …}, what="capture of 256 sentences")
shards.read("00000", most=1 << 20)       # None if it is missing, or damaged (with a warning)
shards.write("00000", {"post": post})    # atomic; if the cache cannot be written to, a warning

A folder's name is a hash of everything that affects its numbers, and each file names its job under a checksum, so
shards of another job are never read. A folder that other users can write to is not used. Processes that share a cache
need no lock: each writes a temporary file and renames it.
"""

import hashlib
import json
import logging
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.models import packaged

_LOG = logging.getLogger("tnkit")
_HEADER = 1 << 16  # bytes of a file that are not tensors, at most
_NAME = re.compile("[0-9a-f]{24}")  # of an entry's folder
_FILE = re.compile(r"(entry\.json|\w+\.safetensors)|\.(entry\.json|\w+\.safetensors)-\w+")  # with a dot: half-written
_RARELY = 50  # the time between two checks, in multiples of the time that a check takes
_LEFT = 3600  # seconds after which the temporary file of a killed process is removed


@dataclass(frozen=True)
class Entry:
    """One folder of the cache: its content, its size, when it was last written to, and tnkit's files in it."""

    what: str
    path: Path
    size: int
    modified: datetime
    files: tuple[Path, ...]


class Shards:
    """Named sets of tensors of one job, in a folder of the cache.

    Args:
        key: everything that affects the numbers, JSON-able.
        what: the description that `tnkit cache` shows.

    >>> import os, tempfile
    >>> os.environ["TNKIT_CACHE"] = tempfile.mkdtemp()
    >>> Shards({"job": 1}, "a job").write("first", {"a": torch.ones(2)})
    >>> [Shards({"job": job}, "a job").read("first", most=8) for job in (1, 2)]
    [{'a': tensor([1., 1.])}, None]
    >>> del os.environ["TNKIT_CACHE"]
    """

    def __init__(self, key: Mapping[str, Any], what: str) -> None:
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        self.name = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.what, self.folder = what, folder() / self.name
        self.writes: int | None = 0  # None once one has failed
        self.trusted = True
        try:
            storage.private(self.folder)
        except TnkitError as error:
            _LOG.warning("%s; the cache is not used", error)
            self.writes, self.trusted = None, False

    def read(self, name: str, *, most: int) -> dict[str, Tensor] | None:
        """The tensors of that name, or None if they are missing or damaged.

        Args:
            name: under which they were written.
            most: the most bytes that they can have; a larger file is not read.
        """
        path = self._path(name)
        try:
            if not self.trusted or not path.exists():
                return None
            if (size := path.stat().st_size) > most + _HEADER:
                raise TnkitError(f"{path} has {size} bytes, expected at most {most + _HEADER}")
            tensors, description = storage.load_tensors(path, "shard")
            if description != {"job": self.name, "part": name}:
                raise TnkitError(f"{path} belongs to another job: it was renamed or moved")
        except (TnkitError, OSError) as error:
            _LOG.warning("%s; it is computed again", error)
            return None
        return tensors

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors under a name; if that fails, warn once and continue without the cache."""
        if self.writes is None:
            return
        try:
            if not self.writes:
                self._open()
            storage.save_tensors(self._path(name), "shard", tensors, {"job": self.name, "part": name})
            self.writes += 1
        except (TnkitError, OSError) as error:
            self.writes = None
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            _LOG.warning(
                "%s cannot be written to (%s), so results are not cached; set TNKIT_CACHE to another folder",
                *(self.folder, reason),
            )

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _open(self) -> None:
        """Write the folder's description, and remove files that killed processes left half-written."""
        storage.private(self.folder, make=True)
        if not (self.folder / "entry.json").exists():
            storage.save_json(self.folder / "entry.json", "cache entry", {"what": self.what})
        for path in _files(self.folder):
            if path.name.startswith(".") and time.time() - path.lstat().st_mtime > _LEFT:
                path.unlink(missing_ok=True)


class Waiting:
    """Shards that are written once a check has passed; a slow check runs so rarely that it takes 2 % of the time.

    A process that is killed loses the waiting shards: at most one, or those made in 50 times the time of a check.

    Args:
        shards: to which they are written.
        check: raises an error if the waiting shards are invalid.
        most: the most bytes that may wait.

    >>> import os, tempfile
    >>> os.environ["TNKIT_CACHE"] = tempfile.mkdtemp()
    >>> waiting = Waiting(Shards({"job": 1}, "a job"), lambda: print("checked"), most=1 << 20)
    >>> for number in range(2):
    ...     waiting.add(str(number), {"a": torch.ones(number)})
    >>> waiting.write(at_once=True)
    checked
    >>> waiting.shards.read("1", most=8)
    {'a': tensor([1.])}
    >>> del os.environ["TNKIT_CACHE"]
    """

    def __init__(self, shards: Shards, check: Callable[[], None], *, most: int) -> None:
        self.shards, self.check, self.most = shards, check, most
        self._tensors: dict[str, Mapping[str, Tensor]] = {}
        self._due = 0.0

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors under a name."""
        self._tensors[name] = tensors

    def write(self, *, at_once: bool = False) -> None:
        """Check and write the waiting shards if it is time.

        Args:
            at_once: do so in any case.
        """
        began = time.monotonic()
        size = sum(tensor.nbytes for tensors in self._tensors.values() for tensor in tensors.values())
        if not self._tensors or not (at_once or began >= self._due or size >= self.most):
            return
        self.check()
        self._due = time.monotonic() + _RARELY * (time.monotonic() - began)
        for name, tensors in self._tensors.items():
            self.shards.write(name, tensors)
        self._tensors = {}


def joined(batches: list[Any]) -> dict[str, Tensor]:
    """The tensors of several batches, concatenated."""
    sites = {name: torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in batches[0].tensors()}
    return {"index": torch.cat([batch.index for batch in batches]), **sites}


def folder() -> Path:
    """The folder of all shards."""
    return storage.cache_folder() / "captures"


def entries() -> list[Entry]:
    """The entries of the cache folder: captures and running sums, then converted models; the newest first.

    Folders and files that tnkit did not create are not included.

    Raises:
        TnkitError: if the cache folder is a file.
    """
    root = storage.cache_folder()
    if root.exists() and not root.is_dir():
        raise TnkitError(f"the cache folder {root} is a file; set TNKIT_CACHE to a folder")
    captures = [_entry(path, _what(path) or "", files) for path in _folders(folder()) if (files := _own(path))]
    models = [
        _entry(path, f"converted model {path.name}", files)
        for path in _folders(root / "models")
        if (files := packaged.own_files(path))
    ]
    return [entry for kind in (captures, models) for entry in sorted(kind, key=attrgetter("modified"), reverse=True)]


def clear(chosen: Iterable[Entry]) -> int:
    """Remove entries: the files that tnkit wrote, and their folders if they are then empty.

    Args:
        chosen: some of `entries()`.

    Returns:
        The freed bytes.

    Raises:
        TnkitError: if other users own the cache folder or can write to it.
    """
    freed = 0
    for entry in chosen:
        storage.private(entry.path)
        for file in entry.files:
            size = file.lstat().st_size if file.exists() else 0
            with suppress(OSError):
                file.unlink()
                freed += size
        inner = {parent for file in entry.files for parent in file.parents if entry.path in (parent, *parent.parents)}
        for path in sorted(inner, reverse=True):
            with suppress(OSError):  # it holds other files
                path.rmdir()
    return freed


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()] if parent.is_dir() else []


def _own(path: Path) -> tuple[Path, ...]:
    """The files of a cache entry; none if a folder lacks the name and description of one."""
    return _files(path) if _NAME.fullmatch(path.name) and _what(path) is not None else ()


def _files(path: Path) -> tuple[Path, ...]:
    """The files in an entry's folder that are named like tnkit's, without links."""
    return tuple(file for file in path.iterdir() if _FILE.fullmatch(file.name) and stat.S_ISREG(file.lstat().st_mode))


def _entry(path: Path, what: str, files: tuple[Path, ...]) -> Entry:
    sizes, times = [], [0.0]
    for file in files:
        with suppress(FileNotFoundError):  # another process has just renamed it
            status = file.lstat()
            times.append(status.st_mtime)
            sizes.append(status.st_size)
    return Entry(what, path, sum(sizes), datetime.fromtimestamp(max(times)), files)


def _what(path: Path) -> str | None:
    """The description of an entry; None if it is missing or was not written by tnkit."""
    try:
        return str(storage.load_json(path / "entry.json", "cache entry").get("what"))
    except TnkitError:
        return None
