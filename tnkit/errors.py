"""The one error that tnkit raises on purpose, and how text of others is quoted."""

import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

# What moves a terminal's cursor, changes its colours or title, ends a line, or shows text in another order.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNPRINTABLE = re.compile(f"{_CONTROLS.pattern}|[\ud800-\udfff]")  # and unpaired surrogates, which UTF-8 lacks


class TnkitError(ValueError):
    """A problem with what the caller gave; its text is one line, meant to be read by a person.

    >>> raise TnkitError("layers 3:40 reach past the model's last layer, 17; give a range within 0:18")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: layers 3:40 reach past the model's last layer, 17; give a range within 0:18
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(re.sub(f"(?:{_CONTROLS.pattern})+", " ", text))


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is not one of the choices.

    >>> one_of("position", "last", ("last", "mean"))
    """
    if value not in choices:
        raise TnkitError(f"{name}={value!r} must be one of {', '.join(choices)}")


def whole_number(name: str, value: Any, *, at_least: int = 0) -> int:
    """A whole number as int, also one of NumPy or PyTorch; refuse anything else, True and 2.0 included.

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
    """Whole numbers from 0 as ints, of a list, a range or an array, one after another.

    >>> list(whole_numbers("layers", range(2)))
    [0, 1]
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TnkitError(f"{name}={values!r:.60} must be whole numbers in a list, a range or an array")
    for value in values:
        yield whole_number(name, value)


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line; its type where it says nothing.

    >>> first_line(OSError("no route\\nto the host")), first_line(OSError())
    ('no route', 'OSError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: Exception) -> str:
    """The end of another library's error, where it holds a traceback; else its first line.

    >>> last_line(RuntimeError("Traceback (most recent call last):\\n  File x\\nKeyError: 'y'"))
    "KeyError: 'y'"
    """
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines and "Traceback" in lines[0] else first_line(error)


def visible(text: object) -> str:
    """Text of others for a terminal: line breaks and tabs stay; other control characters and unpaired surrogates are
    shown as escapes.

    >>> print(visible("a\\x1b[31mb\\u202ec\\udcff"))
    a\\x1b[31mb\\u202ec\\udcff
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in "\n\t" else ascii(found[0])[1:-1], str(text))
