"""Every file that tnkit writes or reads: safetensors for tensors, JSON for neuron sets, the published code's pickles.

Writes are atomic (a temporary file in the same folder, then a rename), so a reader never sees half a file. Reads are
checked before anything is built from them, and pickles go through a reader that knows lists, tuples, dicts, strings,
numbers and numpy arrays and nothing else, so that no file can run code.
"""

import hashlib
import html
import importlib
import io
import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from tnkit.errors import TnkitError

_SCHEMA = 1


def cache_folder() -> Path:
    """Where tnkit keeps what can be made again: $TNKIT_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("TNKIT_CACHE") or platformdirs.user_cache_dir("tnkit"))


def versions() -> dict[str, str]:
    """The versions of the packages that decide a number, for provenance."""
    return {name: metadata.version(name) for name in ("tnkit", "torch", "transformers", "nnsight")}


def text_hash(sentences: Iterable[str]) -> str:
    """A fingerprint of sentences in their order (16 hex digits).

    >>> text_hash(["a", "b"]) == text_hash(["ab"])
    False
    """
    digest = hashlib.sha256()
    for sentence in sentences:
        digest.update(sentence.encode() + b"\0")
    return digest.hexdigest()[:16]


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a temporary file, flush it to disk, and put it in the place of `path`.

    Raises:
        TnkitError: where the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(file.name, 0o666 & ~umask)  # noqa: PTH101 - temporary files are private, results are not
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise TnkitError(
            f"cannot write {path}: {error.strerror or error}; choose another place with out=/--out"
        ) from error
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomically(path, lambda file: file.write(text.encode()))


def save_tensors(path: str | Path, kind: str, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write named tensors and a JSON-able description as one safetensors file.

    >>> import torch, tempfile
    >>> file = save_tensors(tempfile.mkdtemp() + "/x", "numbers", {"a": torch.ones(2)}, {"by": "me"})
    >>> load_tensors(file, "numbers")
    ({'a': tensor([1., 1.])}, {'by': 'me'})
    """
    from safetensors.torch import save

    header = {"tnkit": json.dumps({"kind": kind, "schema": _SCHEMA, "about": about}, ensure_ascii=False)}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=header)
    return write_atomically(path, lambda file: file.write(data))


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        TnkitError: for a missing file, one that is damaged, or one of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = existing_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("tnkit", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise TnkitError(f"{path} is not a readable safetensors file: it is damaged or of another format") from error
    return tensors, _checked(path, header, kind)


def save_json(path: str | Path, kind: str, content: Mapping[str, Any]) -> Path:
    """Write a JSON-able description."""
    whole = {"kind": kind, "schema": _SCHEMA, "about": content}
    return write_text(path, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


def load_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Read what `save_json` wrote.

    Raises:
        TnkitError: for a missing file, one that is damaged, or one of another kind.
    """
    path = existing_file(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise TnkitError(f"{path} is not a readable JSON file ({error})") from error
    return _checked(path, content, kind)


def _checked(path: Path, content: Any, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("about"), dict):
        raise TnkitError(f"{path} was not written by tnkit; expected {kind}")
    if content.get("kind") != kind:
        raise TnkitError(f"{path} holds {content.get('kind')!s:.40}, expected {kind}")
    if content.get("schema") != _SCHEMA:
        raise TnkitError(f"{path} has schema {content.get('schema')!s:.40}, this tnkit reads {_SCHEMA}; update tnkit")
    return content["about"]


def existing_file(path: str | Path) -> Path:
    """The path of a file that is there and not empty.

    Raises:
        TnkitError: otherwise.
    """
    path = Path(path)
    if not path.exists():
        raise TnkitError(f"there is no file {path}")
    if path.is_dir():
        raise TnkitError(f"{path} is a folder, expected a file")
    try:
        if path.stat().st_size == 0:
            raise TnkitError(f"{path} is empty")
        with path.open("rb"):
            return path
    except OSError as error:
        raise TnkitError(f"cannot read {path}: {error.strerror}") from error


# Where numpy keeps what a pickled array is made of, in its old and new module names.
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows numpy arrays by name, and no other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_pickle(path: str | Path) -> Any:
    """Read a pickle of lists, tuples, dicts, strings, numbers and numpy arrays, and refuse any other.

    Raises:
        TnkitError: for a missing or damaged file, or one that names anything else (it could run code).
    """
    path = existing_file(path)
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as error:
        raise TnkitError(
            f"{path} is not a plain pickle of lists, strings, numbers and arrays ({error}); save it as TSV or JSONL"
        ) from error
    except Exception as error:
        raise TnkitError(
            f"{path} is not a readable pickle ({type(error).__name__}); save it as TSV or JSONL"
        ) from error
    return _plain(path, content)


def _plain(path: Path, content: Any) -> Any:
    """Refuse arrays of objects, which the unpickler cannot see from the outside."""
    import numpy as np

    stack, seen = [content], set()
    while stack:
        item = stack.pop()
        if isinstance(item, np.ndarray) and item.dtype.hasobject:
            raise TnkitError(f"{path} holds an array of objects; save it as plain lists, TSV or JSONL")
        if isinstance(item, dict | list | tuple | set | frozenset) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.items() if isinstance(item, dict) else item)
    return content


def write_pickle(path: str | Path, content: Any) -> Path:
    """Write the published code's layout."""
    return write_atomically(path, lambda file: pickle.dump(content, file))


def finite(path: str | Path, name: str, tensor: Any, shape: tuple[int | None, ...]) -> Any:
    """The tensor, if it is a finite floating-point one of that shape (None: any length).

    Raises:
        TnkitError: otherwise.
    """
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits or not tensor.dtype.is_floating_point:
        raise TnkitError(f"{path}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, expected {shape} of floats")
    if not bool(tensor.isfinite().all()):
        raise TnkitError(f"{path}: {name} holds values that are not finite")
    return tensor


def html_card(title: str, rows: Mapping[str, Any]) -> str:
    """A small two-column table for notebooks, every value escaped.

    >>> "&lt;b&gt;" in html_card("Corpus", {"name": "<b>"})
    True
    """
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(str(key))}</th>"
        f"<td style='text-align:left'>{html.escape(_short(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table><caption style='text-align:left'><b>{html.escape(title)}</b></caption>{body}</table>"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "—" if math.isnan(value) else f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 120 else text[:117] + "…"
