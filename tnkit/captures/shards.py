"""The finished parts of a long job, kept in the user's cache folder so that a killed one goes on: `Shards`.

shards = Shards({"weights": …, "sentences": …}, what="capture of 256 sentences")
shards.read("00000", most=1 << 20)       # None where it is not there, or damaged (a warning names it)
shards.write("00000", {"post": post})    # whole or not at all; a cache that cannot be written to is a warning

A folder is named after everything that decides its numbers, and each file says whose part it is, under a checksum, so
that nothing of another job is ever read. A folder that other users can write to is left alone. Processes that share a
cache need no lock: each writes under a name of its own and renames.
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
_FILE = re.compile(
    r"(entry\.json|\w+\.safetensors)|\.(entry\.json|\w+\.safetensors)-\w+"
)  # half-written begin with a dot
_RARELY = 50  # times as long as a check took pass before the next one
_LEFT = 3600  # seconds after which the temporary file of a killed process is cleared away


@dataclass(frozen=True)
class Entry:
    """One folder of the cache: what is in it, how large it is, when it was last written to, and tnkit's files in it."""

    what: str
    path: Path
    size: int
    modified: datetime
    files: tuple[Path, ...]


class Shards:
    """Named sets of tensors of one job, in a folder of the cache.

    Args:
        key: everything that decides the numbers, JSON-able.
        what: what a person should read about it in `tnkit cache`.

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
            _LOG.warning("%s; nothing is read from it or kept", error)
            self.writes, self.trusted = None, False

    def read(self, name: str, *, most: int) -> dict[str, Tensor] | None:
        """The tensors of that name, or None where they are not there or not what was written.

        Args:
            name: under which they were written.
            most: how many bytes they have at most; a larger file is not read.
        """
        path = self._path(name)
        try:
            if not self.trusted or not path.exists():
                return None
            if (size := path.stat().st_size) > most + _HEADER:
                raise TnkitError(f"{path} has {size} bytes, where at most {most + _HEADER} were written")
            tensors, about = storage.load_tensors(path, "shard")
            if about != {"job": self.name, "part": name}:
                raise TnkitError(f"{path} is not of this job: it was renamed or moved")
        except (TnkitError, OSError) as error:
            _LOG.warning("%s; it is made again", error)
            return None
        return tensors

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name; where that fails, say so once and go on without."""
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
                "%s cannot be written to (%s), so this is not kept; TNKIT_CACHE names another cache folder",
                self.folder,
                reason,
            )

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _open(self) -> None:
        """Say what the folder is of, and clear away what killed processes left half-written."""
        storage.private(self.folder, make=True)
        if not (self.folder / "entry.json").exists():
            storage.save_json(self.folder / "entry.json", "cache entry", {"what": self.what})
        for path in _files(self.folder):
            if path.name.startswith(".") and time.time() - path.lstat().st_mtime > _LEFT:
                path.unlink(missing_ok=True)


class Waiting:
    """Shards that are written once a check has passed; a slow check runs so seldom that it takes 2 % of the time.

    A process that is killed loses what waits: at most a shard, or what it made in 50 times the time of a check.

    Args:
        shards: to which they are written.
        check: raises where what waits must not be kept.
        most: how many bytes may wait.

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
        """Let tensors wait under a name."""
        self._tensors[name] = tensors

    def write(self, *, at_once: bool = False) -> None:
        """Check and write what waits, where that is due.

        Args:
            at_once: it is due in any case.
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


def joined(parts: list[Any]) -> dict[str, Tensor]:
    """The tensors of batches, side by side."""
    sites = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in parts[0].tensors()}
    return {"index": torch.cat([part.index for part in parts]), **sites}


def folder() -> Path:
    """Where shards are kept."""
    return storage.cache_folder() / "captures"


def entries() -> list[Entry]:
    """What tnkit keeps in the cache folder: captures and running sums, then converted models; the newest first.

    Folders and files that tnkit did not make are not among them.

    Raises:
        TnkitError: where the cache folder is a file.
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
    """Remove entries: the files that tnkit wrote, and their folders where nothing else is in them.

    Args:
        chosen: some of `entries()`.

    Returns:
        The bytes freed.

    Raises:
        TnkitError: where others own the cache folder or can write to it.
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
            with suppress(OSError):  # it holds what is not ours
                path.rmdir()
    return freed


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()] if parent.is_dir() else []


def _own(path: Path) -> tuple[Path, ...]:
    """The files of a cache entry, none of a folder that is not one: tnkit's have a name and a mark."""
    return _files(path) if _NAME.fullmatch(path.name) and _what(path) is not None else ()


def _files(path: Path) -> tuple[Path, ...]:
    """The files in an entry's folder that have names such as tnkit gives, but links."""
    return tuple(file for file in path.iterdir() if _FILE.fullmatch(file.name) and stat.S_ISREG(file.lstat().st_mode))


def _entry(path: Path, what: str, files: tuple[Path, ...]) -> Entry:
    sizes, times = [], [0.0]
    for file in files:
        with suppress(FileNotFoundError):  # another process has just renamed it
            about = file.lstat()
            times.append(about.st_mtime)
            sizes.append(about.st_size)
    return Entry(what, path, sum(sizes), datetime.fromtimestamp(max(times)), files)


def _what(path: Path) -> str | None:
    """What the mark of an entry says; None where there is none, or one that tnkit did not write."""
    try:
        return str(storage.load_json(path / "entry.json", "cache entry").get("what"))
    except TnkitError:
        return None
