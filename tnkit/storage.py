"""The files that tnkit writes and reads: safetensors for tensors, JSON for neuron sets.

Writes are atomic (a temporary file in the same folder, then a rename), so a reader never sees a partial file. Both
formats carry a checksum, so a changed byte is an error, never a wrong number. For pickles, see `tnkit.pickles`.
"""

import hashlib
import html
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from tnkit import signals
from tnkit.errors import TnkitError

_SCHEMA = 2
_TOGETHER: ContextVar[tuple[ExitStack, dict[Path, Path]] | None] = ContextVar("together", default=None)


def cache_folder() -> Path:
    """The cache folder: $TNKIT_CACHE (~ is the home folder), or the user's default.

    Raises:
        TnkitError: for ~ of an unknown user.
    """
    import platformdirs

    folder = Path(os.environ.get("TNKIT_CACHE") or platformdirs.user_cache_dir("tnkit"))
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise TnkitError(f"TNKIT_CACHE={folder} is in the home folder of an unknown user; set another one") from error


def private(folder: Path, *, make: bool = False) -> Path:
    """A folder of the cache whose files can be trusted, because only this user (and root) can write to it.

    Args:
        folder: `cache_folder()` or a folder in it; every existing folder from the first to the second is checked.
        make: create missing folders, for this user only.

    Raises:
        TnkitError: if another user owns or can write to one of them (on POSIX systems).
        OSError: if it cannot be created.
    """
    root = cache_folder()
    for level in [root, *reversed([inner for inner in (folder, *folder.parents) if root in inner.parents])]:
        if make:
            level.mkdir(mode=0o700, parents=level == root, exist_ok=True)
        status = level.stat() if os.name == "posix" and level.exists() else None
        if status and (status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022):
            raise TnkitError(
                f"the cache folder {level} belongs to another user or can be written to by others, so its files cannot "
                f"be trusted; check them and run chmod -R go-w {level}, or set TNKIT_CACHE to another folder"
            )
    return folder


def versions() -> dict[str, str]:
    """The versions of the packages that affect numbers, for provenance; of an imported package, the one in memory."""
    names = ("tnkit", "torch", "transformers", "nnsight")
    return {name: getattr(sys.modules.get(name), "__version__", None) or metadata.version(name) for name in names}


def text_hash(sentences: Iterable[str]) -> str:
    """A hash of sentences in order (16 hex digits).

    >>> text_hash(["a", "b"]) == text_hash(["ab"])
    False
    """
    digest = hashlib.sha256()
    for sentence in sentences:
        data = sentence.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:16]


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a temporary file with `write`, flush it to disk, and replace `path` with it; permissions are kept.

    Raises:
        TnkitError: if the folder cannot be written to.
    """
    path = Path(path)
    name = os.fsdecode(os.fsencode(path.name)[:200])  # a name can have 255 bytes
    temporary = path.with_name(f".{name}-{secrets.token_hex(4)}")
    try:
        with ExitStack() as own_stack:
            stack, waiting = _TOGETHER.get() or (own_stack, None)
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(signals.unfinished(str(temporary)))
            stack.callback(temporary.unlink, missing_ok=True)
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            if waiting is None:
                temporary.replace(path)
            else:
                waiting[path] = temporary
    except OSError as error:
        raise _not_written(path, error) from error
    return path


@contextmanager
def together() -> Iterator[dict[Path, Path]]:
    """A context in which written files replace the old ones only at the end: all of them, or none after an error.

    Yields:
        The temporary file of each written file.

    Raises:
        TnkitError: if a file cannot be replaced.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "x")
    >>> with together() as waiting:
    ...     file == write_text(file, "text"), file.exists(), waiting[file].read_text()
    (True, False, 'text')
    >>> file.read_text()
    'text'
    """
    if outer := _TOGETHER.get():
        yield outer[1]
        return
    with ExitStack() as stack:
        waiting: dict[Path, Path] = {}
        stack.callback(_TOGETHER.reset, _TOGETHER.set((stack, waiting)))
        yield waiting
        for path, temporary in waiting.items():
            try:
                temporary.replace(path)
            except OSError as error:
                raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> TnkitError:
    return TnkitError(f"cannot write {path}: {error.strerror or error}; choose another path with out=/--out")


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomically(path, lambda file: file.write(text.encode()))


def save_tensors(path: str | Path, kind: str, tensors: Mapping[str, Any], description: Mapping[str, Any]) -> Path:
    """Write named tensors and a JSON-able description as one safetensors file.

    >>> import torch, tempfile
    >>> file = save_tensors(tempfile.mkdtemp() + "/x", "numbers", {"a": torch.ones(2)}, {"by": "me"})
    >>> load_tensors(file, "numbers")
    ({'a': tensor([1., 1.])}, {'by': 'me'})
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = json.dumps(_sealed(kind, description, tensors), ensure_ascii=False)
    data = save(tensors, metadata={"tnkit": header})  # the order of several entries would vary
    return write_atomically(path, lambda file: file.write(data))


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        TnkitError: for a missing or damaged file, or one of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = existing_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("tnkit", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise TnkitError(f"{path} is not a readable safetensors file: it is damaged or of another format") from error
    return tensors, _checked(path, header, kind, tensors)


def save_json(path: str | Path, kind: str, content: Mapping[str, Any]) -> Path:
    """Write a JSON-able description."""
    return write_text(path, json.dumps(_sealed(kind, content, {}), ensure_ascii=False, indent=1) + "\n")


def load_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Read what `save_json` wrote.

    Raises:
        TnkitError: for a missing or damaged file, or one of another kind.
    """
    path = existing_file(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TnkitError(f"{path} is not a readable JSON file ({error})") from error
    return _checked(path, content, kind, {})


def _sealed(kind: str, description: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A file's header, with a checksum over the header and the tensors."""
    header = json.loads(json.dumps({"kind": kind, "schema": _SCHEMA, "about": description}))
    return header | {"checksum": _checksum(header, tensors)}


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f" {name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Any) -> memoryview:
    """The bytes of a tensor's values."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy() if len(flat) else b"")


def _checked(path: Path, header: Any, kind: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The description in a header, checked against the tensors."""
    if not isinstance(header, dict) or not isinstance(header.get("about"), dict):
        raise TnkitError(f"{path} was not written by tnkit; expected {kind}")
    if header.get("kind") != kind:
        raise TnkitError(f"{path} holds {header.get('kind')!s:.40}, expected {kind}")
    if header.get("schema") != _SCHEMA:
        raise TnkitError(f"{path} has schema {header.get('schema')!s:.40}, this tnkit reads {_SCHEMA}; create it again")
    if header.pop("checksum", None) != _checksum(header, tensors):
        raise TnkitError(f"{path} was edited or damaged after it was saved; create it again")
    return header["about"]


def existing_file(path: str | Path) -> Path:
    """The path of a file; a `TnkitError` if it cannot be read or is empty."""
    path = Path(path)
    try:
        if not path.exists():
            raise TnkitError(f"there is no file {path}; check its name and folder")
        if path.is_dir():
            raise TnkitError(f"{path} is a folder, expected a file; name one file in it")
        if path.stat().st_size == 0:
            raise TnkitError(f"{path} is empty; was it saved or downloaded completely?")
        path.open("rb").close()
    except OSError as error:
        raise TnkitError(f"cannot read {path}: {error.strerror}") from error
    return path


def layers_of(path: str | Path, description: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers in a file's description; a `TnkitError` if they are not whole numbers in ascending order."""
    layers = description.get("layers")
    if not isinstance(layers, list) or not layers or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise TnkitError(f"{path} does not state its layers; create it again")
    if sorted(set(layers)) != layers:
        raise TnkitError(f"{path}: its layers {layers!s:.60} are not in order; create it again")
    return tuple(layers)


def finite(path: str | Path, name: str, tensor: Any, shape: tuple[int | None, ...], *, at: Any = None) -> Any:
    """The tensor, if it holds finite floating-point numbers in that shape (None: any length), or where `at` is true.

    Raises:
        TnkitError: otherwise.
    """
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits or not tensor.dtype.is_floating_point:
        raise TnkitError(f"{path}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, expected {shape} of floats")
    if not bool((tensor if at is None else tensor.where(at, 0)).isfinite().all()):
        raise TnkitError(f"{path}: {name} holds values that are not finite")
    return tensor


def file_name(text: str) -> str:
    """A file name made from any text: it cannot lead to another folder, and differs between texts.

    >>> file_name("same layers"), file_name("ja"), file_name("../ja")
    ('same-layers-4d4e7a', 'ja', 'ja-fb5e93')
    """
    name = re.sub(r"[^\w.-]+", "-", text).strip("-.")[:60]
    return name if name == text else f"{name}-{text_hash([ascii(text)])[:6]}".lstrip("-")


def without_folders(content: Any) -> Any:
    """JSON-able content in which absolute paths, such as a model's, are shortened to their last part.

    >>> without_folders({"model": {"name": "/home/ann/llama"}})
    {'model': {'name': 'llama'}}
    """
    if isinstance(content, Mapping):
        return {key: without_folders(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_folders(value) for value in content]
    return Path(content).name if isinstance(content, str) and Path(content).is_absolute() else content


def html_card(title: str, rows: Mapping[str, Any]) -> str:
    """A two-column HTML table for notebooks; all text is escaped.

    >>> "&lt;b&gt;" in html_card("Corpus", {"name": "<b>"})
    True
    """
    left, texts = "style='text-align:left'", {html.escape(str(key)): _short(value) for key, value in rows.items()}
    body = "".join(f"<tr><th {left}>{key}</th><td {left}>{html.escape(text)}</td></tr>" for key, text in texts.items())
    return f"<table><caption {left}><b>{html.escape(title)}</b></caption>{body}</table>"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "—" if math.isnan(value) else f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 120 else text[:117] + "…"
