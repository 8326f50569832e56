"""Pickles of the published code, read without running anything in them.

The reader knows lists, tuples, dicts, strings, numbers and numpy arrays, and nothing else. A file is first followed
with stand-ins, and only one that holds nothing but what pickle and numpy write for these is then read.
"""

import importlib
import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tnkit.errors import TnkitError
from tnkit.storage import existing_file, write_atomically

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
_KEY = 64  # places of a tuple that is a key of a dict
_SETS = ("EMPTY_SET", "ADDITEMS", "FROZENSET")
_LOAD: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch  # what Python does, by operation


class _Plain:
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

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002 - unpicklers name it so
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _PlainUnpickler(_Plain, pickle.Unpickler):
    """Reads what `_Plain` knows."""


class _Rehearsal(_Plain, pickle._Unpickler):
    """Follows a pickle with stand-ins for numpy, and lets pass only what numpy itself writes for numbers and text.

    The real ones believe the file: a dtype with a forged state reads and writes memory outside its array. And a tuple
    of tuples of tuples that share their parts is small in the file, but as a key of a dict it is walked to its end.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _LOAD.copy()
    stack: list[Any]

    def __init__(self, file: io.BytesIO, size: int):
        super().__init__(file)
        self.left = 2 * size + 1024  # bytes of arrays and bytes objects, which each stand in the file once

    def _copy(self, data: Any) -> None:
        """Count what a call copies: a string that is referred to again would be copied again."""
        self.left -= len(data) if isinstance(data, str | bytes | bytearray) else 0
        if self.left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it holds")

    def _bytes(self, text: Any = "", codec: Any = "latin1") -> bytes:
        self._copy(text)
        return super()._bytes(text, codec)

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if (module, name) not in _NUMPY:
            return found
        return name if name == "ndarray" else getattr(self, name)

    def dtype(self, code: Any, *how: Any) -> "_StandIn":
        import numpy as np

        if not isinstance(code, str) or how != (False, True) or np.dtype(code).kind not in "biufcSU":
            raise pickle.UnpicklingError("it holds an array of objects or records")
        both = np.dtype(code).newbyteorder("<"), np.dtype(code).newbyteorder(">")
        return _StandIn(self, [one.__reduce__()[2] for one in both])

    def _reconstruct(self, *how: Any) -> "_StandIn":
        if how not in (("ndarray", (0,), b"b"), ("ndarray", (0,), "b")):
            raise pickle.UnpicklingError("it holds an array that numpy did not write")
        return _StandIn(self)

    def _frombuffer(self, *_: Any) -> "_StandIn":
        return _StandIn(self)

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        _LOAD[pickle.SETITEM[0]](self)

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        _LOAD[pickle.SETITEMS[0]](self)

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        _LOAD[pickle.DICT[0]](self)

    dispatch |= {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }

    def scalar(self, kind: Any, data: Any) -> "_StandIn":  # noqa: ARG002
        self._copy(data)
        return _StandIn(self)


class _StandIn:
    def __init__(self, rehearsal: _Rehearsal, states: list[Any] | None = None):
        self.rehearsal, self.states = rehearsal, states

    def __setstate__(self, state: Any) -> None:
        if self.states is None:
            for value in state if isinstance(state, tuple) and len(state) < 8 else ():
                self.rehearsal._copy(value)
        elif state not in self.states:
            raise pickle.UnpicklingError("it holds an array of objects or records")


def _check_key(key: Any) -> None:
    parts = key if type(key) is tuple else (key,)
    if len(parts) > _KEY or any(isinstance(part, int) and part.bit_length() > 64 * _KEY for part in parts):
        raise pickle.UnpicklingError("it has a very long key of a dict")  # hashed anew each time it is used
    for part in parts:
        if not isinstance(part, str | bytes | int | float | complex | None):
            raise pickle.UnpicklingError(f"it has {type(part).__name__} as a key of a dict")


def read(path: str | Path) -> Any:
    """Read a pickle of lists, tuples, dicts, strings, numbers and numpy arrays, and refuse any other.

    >>> import tempfile
    >>> file = tempfile.mkdtemp() + "/pairs.pkl"
    >>> read(write(file, [(0, 5), (1, 2)]))
    [(0, 5), (1, 2)]
    >>> _ = Path(file).write_bytes(b"cos\\nsystem\\n(S'echo harm'\\ntR.")
    >>> read(file)
    Traceback (most recent call last):
    tnkit.errors.TnkitError: ...pairs.pkl is not a plain pickle of lists, ... (it names os.system)...

    Raises:
        TnkitError: for a missing or damaged file, or one that names anything else (it could run code).
    """
    path = existing_file(path)
    return loads(path, path.read_bytes())


def loads(path: str | Path, data: bytes) -> Any:
    """`read` of bytes that a file held.

    Raises:
        TnkitError: as `read` does.
    """
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(data):
                raise pickle.UnpicklingError("it is damaged")  # room would be made for so many objects
            if code.name in _SETS:
                raise pickle.UnpicklingError("it holds a set")
        _Rehearsal(io.BytesIO(data), len(data)).load()
        return _PlainUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise TnkitError(
            f"{path} is not a plain pickle of lists, strings, numbers and arrays ({error}); save it as TSV or JSONL"
        ) from error
    except Exception as error:
        raise TnkitError(
            f"{path} is not a readable pickle ({type(error).__name__}); save it as TSV or JSONL"
        ) from error


def write(path: str | Path, content: Any) -> Path:
    """Write the published code's layout."""
    return write_atomically(path, lambda file: pickle.dump(content, file))
