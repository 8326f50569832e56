"""The error that tnkit raises, checks of options and of optional packages, and how text from elsewhere is quoted."""

import operator
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

# Characters that control a terminal, end a line, or change the direction of text.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNPRINTABLE = re.compile(f"{_CONTROLS.pattern}|[\ud800-\udfff]")  # and unpaired surrogates, which UTF-8 lacks


class TnkitError(ValueError):
    """A problem with the caller's input, in one line of text.

    >>> raise TnkitError("layers 3:40 reach past the model's last layer, 17; give a range within 0:18")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: layers 3:40 reach past the model's last layer, 17; give a range within 0:18
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(re.sub(f"(?:{_CONTROLS.pattern})+", " ", text))


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is not among the choices.

    >>> one_of("position", "first", ("last", "mean"))
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: position='first' must be one of last, mean
    """
    if value not in choices:
        raise TnkitError(f"{name}={value!r} must be one of {', '.join(choices)}")


def whole_number(name: str, value: Any, *, at_least: int = 0) -> int:
    """A whole number of Python, NumPy or PyTorch as int; anything else, such as True or 2.0, is refused.

    >>> import numpy as np
    >>> whole_number("top", np.int64(3), at_least=1)
    3
    >>> whole_number("top", 1.5)
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: top=1.5 must be a whole number of at least 0
    """
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        number = None if is_bool else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TnkitError(f"{name}={value!r:.60} must be a whole number of at least {at_least}")
    if number < at_least:
        raise TnkitError(f"{name}={number} must be at least {at_least}")
    return number


def whole_numbers(name: str, values: Iterable[Any]) -> Iterator[int]:
    """Whole numbers of at least 0 from a list, a range or an array, as ints.

    >>> list(whole_numbers("layers", range(2)))
    [0, 1]
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TnkitError(f"{name}={values!r:.60} must be whole numbers in a list, a range or an array")
    for value in values:
        yield whole_number(name, value)


def check_model(value: object) -> None:
    """Refuse what is given as a model and was not loaded: its name, a module of transformers, or anything else.

    >>> check_model("gemma-3-270m")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: 'gemma-3-270m' is not a loaded model; pass what tn.load_model('gemma-3-270m') returns
    """
    if not hasattr(value, "check_unchanged"):
        name = f"{value!r:.60}" if isinstance(value, str) else ""
        how = name or ("module, tokenizer=tokenizer" if hasattr(value, "named_modules") else "…")
        raise TnkitError(
            f"{name or type(value).__name__} is not a loaded model; pass what tn.load_model({how}) returns"
        )


def optional(module: str, purpose: str, install: str = "pip install 'tnkit[measures]'") -> ModuleType:
    """A module of an optional package; a `TnkitError` that says how to install it if it is missing.

    >>> optional("none_such", "telling languages apart")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: telling languages apart needs none_such, which is not installed: pip install ...
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name or module).split(".")[0]
        raise TnkitError(f"{purpose} needs {missing}, which is not installed: {install}") from error
    except ImportError as error:
        raise TnkitError(
            f"{purpose} needs {module}, which cannot be imported ({first_line(error)}): {install}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of another library's error, or its type if it has no text.

    >>> first_line(OSError("no route\\nto the host")), first_line(OSError())
    ('no route', 'OSError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: Exception) -> str:
    """The last line of another library's error if it holds a traceback, otherwise the first.

    >>> last_line(RuntimeError("Traceback (most recent call last):\\n  File x\\nKeyError: 'y'"))
    "KeyError: 'y'"
    """
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines and "Traceback" in lines[0] else first_line(error)


def listed(names: Iterable[str]) -> str:
    """Names, separated by commas and an "and".

    >>> listed(["a", "b", "c"]), listed([])
    ('a, b and c', 'none')
    """
    *first, last = [*names] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def visible(text: object) -> str:
    """Text made safe for a terminal: control characters (but line breaks and tabs) and unpaired surrogates are escaped.

    >>> print(visible("a\\x1b[31mb\\u202ec\\udcff"))
    a\\x1b[31mb\\u202ec\\udcff
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t" else ascii(match[0])[1:-1], str(text))
