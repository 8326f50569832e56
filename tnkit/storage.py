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
import pickletools
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
        data = sentence.encode()
        digest.update(b"%d:" % len(data) + data)
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
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
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
    except (ValueError, RecursionError) as error:
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
    try:
        if not path.exists():
            raise TnkitError(f"there is no file {path}; check its name and folder")
        if path.is_dir():
            raise TnkitError(f"{path} is a folder, expected a file; name one file in it")
        if path.stat().st_size == 0:
            raise TnkitError(f"{path} is empty; was it saved or downloaded to its end?")
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
    """Knows numpy arrays by name, and how protocols 0 to 2 write bytes, and no other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("_codecs", "encode"), ("__builtin__", "bytes")}:
            return self._bytes
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)

    def _bytes(self, text: Any = "", codec: Any = "latin1") -> bytes:
        if not isinstance(text, str) or codec != "latin1":
            raise pickle.UnpicklingError("it holds bytes that pickle did not write")
        return text.encode("latin1")

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _Rehearsal(_PlainUnpickler):
    """Follows a pickle with stand-ins for numpy, and lets pass only what numpy itself writes for numbers and text.

    The real ones believe the file: a dtype with a forged state reads and writes memory outside its array.
    """

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if (module, name) not in _NUMPY:
            return found
        return name if name == "ndarray" else getattr(self, name)

    def dtype(self, code: Any, *how: Any) -> "_StandIn":
        import numpy as np

        if not isinstance(code, str) or how != (False, True) or np.dtype(code).kind not in "biufcSU":
            raise pickle.UnpicklingError("it holds an array of objects or records")
        return _StandIn([np.dtype(code).newbyteorder(order).__reduce__()[2] for order in "<>"])

    def _reconstruct(self, *how: Any) -> "_StandIn":
        if how not in (("ndarray", (0,), b"b"), ("ndarray", (0,), "b")):
            raise pickle.UnpicklingError("it holds an array that numpy did not write")
        return _StandIn()

    def _frombuffer(self, *_: Any) -> "_StandIn":
        return _StandIn()

    def scalar(self, kind: Any, data: Any) -> "_StandIn":  # noqa: ARG002
        return _StandIn()


class _StandIn:
    def __init__(self, states: list[Any] | None = None):
        self.states = states

    def __setstate__(self, state: Any) -> None:
        if self.states is not None and state not in self.states:
            raise pickle.UnpicklingError("it holds an array of objects or records")


def read_pickle(path: str | Path) -> Any:
    """Read a pickle of lists, tuples, dicts, strings, numbers and numpy arrays, and refuse any other.

    Raises:
        TnkitError: for a missing or damaged file, or one that names anything else (it could run code).
    """
    path = existing_file(path)
    data = path.read_bytes()
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
                raise pickle.UnpicklingError("it is damaged")  # room would be made for so many objects
        _Rehearsal(io.BytesIO(data)).load()
        return _PlainUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise TnkitError(
            f"{path} is not a plain pickle of lists, strings, numbers and arrays ({error}); save it as TSV or JSONL"
        ) from error
    except Exception as error:
        raise TnkitError(
            f"{path} is not a readable pickle ({type(error).__name__}); save it as TSV or JSONL"
        ) from error


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
