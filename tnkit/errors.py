"""The one error that tnkit raises on purpose, and how text of others is quoted."""

import re

# What moves a terminal's cursor, changes its colours or title, ends a line, or shows text in another order.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


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


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line; its type where it says nothing.

    >>> first_line(OSError("no route\\nto the host")), first_line(OSError())
    ('no route', 'OSError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def visible(text: object) -> str:
    """Text of others for a terminal: line breaks and tabs stay, other control characters are shown as escapes.

    >>> print(visible("a\\x1b[31mb\\u202ec"))
    a\\x1b[31mb\\u202ec
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in "\n\t" else ascii(found[0])[1:-1], str(text))
