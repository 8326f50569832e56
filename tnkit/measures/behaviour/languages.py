"""Which language a text is in."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from tnkit.errors import TnkitError, optional

if TYPE_CHECKING:
    from lingua import LanguageDetector

_BYTES = 8  # of letters in UTF-8, below which no language is named: 8 Latin letters, 4 Cyrillic, 3 Japanese


def languages_of(texts: Sequence[str], *, candidates: Iterable[str] | None = None) -> tuple[str | None, ...]:
    """The language of each text, by lingua (https://github.com/pemistahl/lingua-py); tags such as <em> are ignored.

    Args:
        texts: any sequence of str.
        candidates: ISO 639-1 codes to choose from, at least two (default: all 75 that lingua knows). Fewer
            candidates make it more reliable, but a text in any other language is then misidentified.

    Returns:
        ISO 639-1 codes; None for a text with fewer than 8 bytes of letters in UTF-8 (8 Latin letters, 3 Japanese ones),
        and where lingua finds no language.

    Raises:
        TnkitError: for an unknown or a single candidate, and where lingua is missing.

    >>> languages_of(["時間はいくらでも作れる。", "We are here.", "Ja!", ""], candidates=["en", "ja"])
    ('ja', 'en', None, None)
    """
    detector = detector_of(None if candidates is None else tuple(candidates))
    codes = []
    for text in texts:
        text = re.sub("<[^<>]*>", " ", text)
        enough = len("".join(filter(str.isalpha, text)).encode()) >= _BYTES
        language = detector.detect_language_of(text) if enough else None
        codes.append(language and language.iso_code_639_1.name.lower())
    return tuple(codes)


@cache
def detector_of(candidates: tuple[str, ...] | None) -> "LanguageDetector":
    optional("lingua", "telling languages apart")
    from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

    if candidates is None:
        return LanguageDetectorBuilder.from_all_languages().build()
    known = sorted(language.iso_code_639_1.name.lower() for language in Language.all())
    unknown = sorted(set(candidates) - set(known))
    if unknown or len(set(candidates)) < 2:
        raise TnkitError(
            f"languages {list(candidates)} must be at least two of {', '.join(known)}"
            + (f"; {', '.join(unknown)} is not among them" if unknown else "")
        )
    return LanguageDetectorBuilder.from_iso_codes_639_1(*(IsoCode639_1.from_str(code) for code in candidates)).build()
