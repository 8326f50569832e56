"""The finished parts of a long job, kept in the user's cache folder so that a killed one goes on: `Shards`.

shards = Shards({"weights": …, "sentences": …}, what="capture of 256 sentences")
shards.read("00000")                     # None where it is not there, or damaged (a warning names it)
shards.write("00000", {"post": post})    # whole or not at all; a cache that cannot be written to is a warning

A folder is named after everything that decides its numbers, and each file says whose part it is, under a checksum, so
that nothing of another job is ever read. Processes that share a cache need no lock: each writes
under a name of its own and renames.
"""

import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.models import Model
from tnkit.remote import server_of

_LOG = logging.getLogger("tnkit")
_OURS = (
    "tnkit.interventions.",
    "tnkit.scopes.",
    "torch.",
    "transformers.",
    "accelerate.",
)  # hooks from here are part of the model, or in the key
_CODE = (
    "architecture",
    "models",
    "trace",
    "batches",
    "activations",
    "passes",
    "centroids",
    "closed_form",
    "scoring",
)  # what makes the numbers
_LEFT = 3600  # seconds after which the temporary file of a killed process is cleared away


@dataclass(frozen=True)
class Entry:
    """One folder of the cache: what is in it, how large it is, and when it was last written to."""

    what: str
    path: Path
    size: int
    modified: datetime


class Shards:
    """Named sets of tensors of one job, in a folder of the cache.

    Args:
        key: everything that decides the numbers, JSON-able.
        what: what a person should read about it in `tnkit cache`.

    >>> import os, tempfile
    >>> os.environ["TNKIT_CACHE"] = tempfile.mkdtemp()
    >>> Shards({"job": 1}, "a job").write("first", {"a": torch.ones(2)})
    >>> Shards({"job": 1}, "a job").read("first"), Shards({"job": 2}, "another").read("first")
    ({'a': tensor([1., 1.])}, None)
    >>> del os.environ["TNKIT_CACHE"]
    """

    def __init__(self, key: Mapping[str, Any], what: str) -> None:
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        self.name = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.what, self.folder = what, folder() / self.name
        self.writes: int | None = 0  # None once one has failed

    def read(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of that name, or None where they are not there or not what was written."""
        path = self._path(name)
        try:
            if not path.exists():
                return None
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
        if not (self.folder / "entry.json").exists():
            storage.save_json(self.folder / "entry.json", "cache entry", {"what": self.what})
        for path in self.folder.glob(".*"):
            if time.time() - path.stat().st_mtime > _LEFT:
                path.unlink(missing_ok=True)


def joined(parts: list[Any]) -> dict[str, Tensor]:
    """The tensors of batches, side by side."""
    sites = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in parts[0].tensors()}
    return {"index": torch.cat([part.index for part in parts]), **sites}


def fingerprint(model: Model) -> str | None:
    """Of all in a model that decides its numbers, read as it is now: weights, buffers, configuration, sites, device.

    None, with a warning, where a forward hook that is not tnkit's is at work, for what it does cannot be told from
    outside, and where the model is spread over processes, which would have to agree on what is there.

    >>> from tnkit.tests.tiny import tiny_model
    >>> fingerprint(tiny_model("llama")) == fingerprint(tiny_model("llama")) != fingerprint(tiny_model("gpt2"))
    True
    """
    if model.remote:
        return _fingerprint_there(model)
    module = model.module
    if model.sharded:
        _LOG.warning("%s is spread over processes, so nothing is read from the cache or kept", model.name)
        return None
    for path, child in module.named_modules():
        for hook in (*child._forward_hooks.values(), *child._forward_pre_hooks.values()):
            origin = getattr(getattr(hook, "func", hook), "__module__", None) or ""
            if not f"{origin}.".startswith(_OURS):
                _LOG.warning("%s has a forward hook of %s, so nothing is read from the cache or kept", path, origin)
                return None
    named = [*module.named_parameters(), *module.named_buffers()]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        sums = list(pool.map(lambda one: zlib.crc32(storage.tensor_bytes(one[1])), named))
    about = [
        *((name, tuple(tensor.shape), tensor.dtype, tensor.device.type) for name, tensor in named),
        sums,
        (type(module).__name__, module.config.to_json_string(use_diff=False), module.config._attn_implementation),
        [zlib.crc32(Path(__file__).with_name(f"{name}.py").read_bytes()) for name in _CODE],
        (str(model.sites), module.training, torch.get_float32_matmul_precision(), sorted(storage.versions().items())),
    ]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]


def _fingerprint_there(model: Model) -> str | None:
    if model.weights_hash.startswith("named:"):
        _LOG.warning(
            "the weights of %s cannot be read on its server, so nothing is kept or read from the cache", model.name
        )
        return None
    code = [zlib.crc32(Path(__file__).with_name(f"{name}.py").read_bytes()) for name in _CODE]
    about = [model.provenance, server_of(model.remote), code, str(model.sites), sorted(storage.versions().items())]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]


def folder() -> Path:
    """Where shards are kept."""
    return storage.cache_folder() / "captures"


def entries() -> list[Entry]:
    """What the cache holds: captures and running sums, then converted models; the newest first."""
    captures = [_entry(path, _what(path)) for path in _folders(folder())]
    models = storage.cache_folder() / "models"
    converted = [_entry(path, f"converted model {path.name}") for path in _folders(models)]
    return [one for part in (captures, converted) for one in sorted(part, key=lambda one: one.modified, reverse=True)]


def clear(*, models: bool = False) -> int:
    """Remove captures and running sums, and with `models` the converted models too; returns the bytes freed."""
    freed = 0
    for entry in entries():
        if models or entry.path.parent == folder():
            shutil.rmtree(entry.path, ignore_errors=True)
            freed += entry.size - _entry(entry.path, "").size
    return freed


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _entry(path: Path, what: str) -> Entry:
    sizes, times = [], [0.0]
    for file in path.rglob("*"):
        try:
            stat = file.stat()
        except FileNotFoundError:  # another process has just renamed it
            continue
        times.append(stat.st_mtime)
        sizes.append(stat.st_size if file.is_file() else 0)
    return Entry(what, path, sum(sizes), datetime.fromtimestamp(max(times)))


def _what(path: Path) -> str:
    try:
        return str(storage.load_json(path / "entry.json", "cache entry").get("what"))
    except TnkitError:
        return "unfinished"
