"""Which rows of which source sentences are, so that sentences of other rows are not taken for translations."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

from tnkit.errors import TnkitError

_log = logging.getLogger("tnkit")
Origin = Mapping[str, Any]  # corpus, split, language, source, rows, n: of one language's sentences, what is known


def fingerprint(ids: Sequence[int]) -> str:
    """Row numbers in their order, as 16 hex digits.

    >>> fingerprint([0, 1]) == fingerprint((0, 1)), fingerprint([0, 1]) == fingerprint([1, 0])
    (True, False)
    """
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def check_parallel(origins: Mapping[str, Origin]) -> None:
    """Refuse sentences that are known not to be translations of each other, row by row.

    Rows are compared where both sides say which they are; names of corpus and split where they do not. The same row
    numbers of two sources may or may not be translations, which a warning says once.

    Args:
        origins: what is known of each side's sentences, by a name for the message.

    Raises:
        TnkitError: naming two sides of other rows, corpora, splits or numbers of sentences.

    >>> check_parallel({"en": {"rows": "1f", "source": "a"}, "ja": {"rows": "1f", "source": "a"}})
    >>> check_parallel({"en": {"rows": "1f", "source": "a"}, "ja": {"rows": "2e", "source": "a"}})
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: en and ja hold different rows, so their sentences are not translations of each other; ...
    """
    for (name, one), (other_name, other) in combinations(origins.items(), 2):
        sides = f"{_described(name, one)} and {_described(other_name, other)}"
        if "n" in one and "n" in other and one["n"] != other["n"]:
            raise TnkitError(f"{sides} hold {one['n']} and {other['n']} sentences; give the same rows of one corpus")
        if one.get("rows") and other.get("rows"):
            if one["rows"] != other["rows"]:
                raise TnkitError(
                    f"{sides} hold different rows, so their sentences are not translations of each other; "
                    "load both languages as one corpus and take the same split and rows of both"
                )
            if one.get("source") != other.get("source"):
                _tell(
                    f"{sides} come from two sources, so nothing says that their rows are translations of each other; "
                    "load them as one corpus, or check them with tnkit.measures.geometry.alignment"
                )
            continue
        for what in ("corpus", "split"):
            if one.get(what) and other.get(what) and one[what] != other[what]:
                raise TnkitError(f"{sides} are of {what} {one[what]!r} and {other[what]!r}, so they are not parallel")


def check_texts(texts: Mapping[str, Sequence[str]]) -> None:
    """Refuse languages of other rows before a model reads them; plain lists state only their length.

    Raises:
        TnkitError: as `check_parallel` does.
    """
    known = ("corpus", "split", "source", "rows")
    check_parallel(
        {
            name: {"n": len(sentences), **{what: getattr(sentences, what, None) for what in known}}
            for name, sentences in texts.items()
        }
    )


def _described(name: str, origin: Origin) -> str:
    named = " ".join(str(origin[what]) for what in ("corpus", "split") if origin.get(what))
    return f"{name} ({named})" if named else name


@lru_cache(1024)
def _tell(text: str) -> None:
    """Say something once."""
    _log.warning("%s", text)
