"""The one error that tnkit raises on purpose: a sentence that says what, where, what was expected and what to do."""


class TnkitError(ValueError):
    """A problem with what the caller gave; its text is meant to be read by a person.

    >>> raise TnkitError("layers 3:40 reach past the model's last layer, 17; give a range within 0:18")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: layers 3:40 reach past the model's last layer, 17; give a range within 0:18
    """


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is not one of the choices.

    >>> one_of("position", "last", ("last", "mean"))
    """
    if value not in choices:
        raise TnkitError(f"{name}={value!r} must be one of {', '.join(choices)}")
