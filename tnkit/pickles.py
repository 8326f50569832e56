"""Pickles of the published code, read without running any code in them.

The reader accepts lists, tuples, dicts, strings, numbers and numpy arrays. It first loads a file with stand-ins for
numpy, and reads it only if it holds exactly what pickle and numpy write for these types.

A plain `pickle.Unpickler` with `find_class` is not enough: numpy trusts the state of a pickled dtype, which can address
memory outside an array, and hashing a dict key can take 2^100 steps, which only the handlers of opcodes can notice.
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

# The names in pickled arrays, of old and new versions of numpy.
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
_KEY = 64  # the longest tuple that may be a key of a dict
_SETS = ("EMPTY_SET", "ADDITEMS", "FROZENSET")
_LOAD: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch  # the handlers of opcodes


class _Plain:
    """Finds the names in numpy arrays and in bytes of protocols 0 to 2, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("_codecs", "encode"), ("__builtin__", "bytes")}:
            return self._bytes
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)

    def _bytes(self, text: Any = "", codec: Any = "latin1") -> bytes:
        if not isinstance(text, str) or codec != "latin1":
            raise pickle.UnpicklingError("it holds bytes that pickle does not write")
        return text.encode("latin1")

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002 - unpicklers name it so
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _PlainUnpickler(_Plain, pickle.Unpickler):
    """Reads the file."""


def _check_key(key: Any) -> None:
    items = key if type(key) is tuple else (key,)
    if len(items) > _KEY or any(isinstance(item, int) and item.bit_length() > 64 * _KEY for item in items):
        raise pickle.UnpicklingError("it has a dict with a very long key")  # each use computes its hash again
    for item in items:
        if not isinstance(item, str | bytes | int | float | complex | None):
            raise pickle.UnpicklingError(f"it has a dict with a key of type {type(item).__name__}")


def _keys_checked(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """The handler of an opcode that fills a dict, with a check of the keys on the stack."""

    def checked(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            _check_key(key)
        load(unpickler)

    return checked


class _Rehearsal(_Plain, pickle._Unpickler):
    """Loads a pickle with stand-ins for numpy, and refuses anything that numpy does not write for numbers and text."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _LOAD | {
        opcode[0]: _keys_checked(_LOAD[opcode[0]], keys)
        for opcode, keys in (
            (pickle.SETITEM, slice(-2, -1)),
            (pickle.SETITEMS, slice(None, None, 2)),
            (pickle.DICT, slice(None, None, 2)),
        )
    }
    stack: list[Any]

    def __init__(self, file: io.BytesIO, size: int):
        super().__init__(file)
        self.budget = 2 * size + 1024  # bytes that calls may copy: the file holds each of them once

    def _copy(self, data: Any) -> None:
        """Count the bytes that a call copies: each reference to a string is another copy."""
        self.budget -= len(data) if isinstance(data, str | bytes | bytearray) else 0
        if self.budget < 0:
            raise pickle.UnpicklingError("it makes more bytes than it holds")

    def _bytes(self, text: Any = "", codec: Any = "latin1") -> bytes:
        self._copy(text)
        return super()._bytes(text, codec)

    def find_class(self, module: str, name: str) -> Any:
        real = super().find_class(module, name)
        if (module, name) not in _NUMPY:
            return real
        return name if name == "ndarray" else getattr(self, name)

    def dtype(self, code: Any, *flags: Any) -> "_StandIn":
        import numpy as np

        if not isinstance(code, str) or flags != (False, True) or np.dtype(code).kind not in "biufcSU":
            raise pickle.UnpicklingError("it holds an array of objects or records")
        both = np.dtype(code).newbyteorder("<"), np.dtype(code).newbyteorder(">")
        return _StandIn(self, [dtype.__reduce__()[2] for dtype in both])

    def _reconstruct(self, *arguments: Any) -> "_StandIn":
        if arguments not in (("ndarray", (0,), b"b"), ("ndarray", (0,), "b")):
            raise pickle.UnpicklingError("it holds an array that numpy does not write")
        return _StandIn(self)

    def _frombuffer(self, *_: Any) -> "_StandIn":
        return _StandIn(self)

    def scalar(self, kind: Any, data: Any) -> "_StandIn":  # noqa: ARG002
        self._copy(data)
        return _StandIn(self)


class _StandIn:
    """Replaces an array, a scalar, or a dtype, which may have only the given states."""

    def __init__(self, rehearsal: _Rehearsal, states: list[Any] | None = None):
        self.rehearsal, self.states = rehearsal, states

    def __setstate__(self, state: Any) -> None:
        if self.states is None:
            for value in state if isinstance(state, tuple) and len(state) < 8 else ():
                self.rehearsal._copy(value)
        elif state not in self.states:
            raise pickle.UnpicklingError("it holds an array of objects or records")


def read(path: str | Path) -> Any:
    """Read a pickle of lists, tuples, dicts, strings, numbers and numpy arrays, and refuse anything else.

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
    """`read` for the bytes of a file."""
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(data):
                raise pickle.UnpicklingError("it is damaged")  # it would allocate a list of that length
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
    """Write a pickle in the layout of the published code."""
    return write_atomically(path, lambda file: pickle.dump(content, file))
