"""The names, colours and markers of languages and types, the same in every figure and in the explorer."""

import zlib
from collections.abc import Sequence
from functools import cache

# The palette of Okabe & Ito, which is safe for colour-blind readers; a language keeps its colour in every figure.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
_FIXED = dict(zip(("en", "ja", "ko", "nl", "it", "zh", "de", "fr"), PALETTE, strict=True))
# Twelve more, of other lightness than their neighbours in hue; with the markers below no two languages look the same.
_MORE = (
    "#882255", "#44AA99", "#332288", "#999933", "#AA4499", "#117733", "#F0E442", "#661100", "#6699CC", "#888888",
    "#DDCC77", "#CC6677",
)  # fmt: skip
_NAMES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
KIND_NAMES = {"type1": "Type-1", "type2": "Type-2"}
KIND_COLOURS = {"type1": "#0072B2", "type2": "#D55E00"}
MARKERS = "osD^vPX*"


def language_name(code: str) -> str:
    """A language's English name, from CLDR; the name itself if it has neither two letters nor a script.

    >>> [language_name(code) for code in ("ja", "sw", "hin_Deva", "all", "non-parallel")]
    ['Japanese', 'Swahili', 'Hindi', 'all', 'non-parallel']
    """
    return _NAMES.get(code) or _name_of(code)


@cache
def _name_of(code: str) -> str:
    import langcodes

    language, _, script = code.partition("_")
    if not (len(code) == 2 or (len(language) == 3 and len(script) == 4)) or not langcodes.tag_is_valid(code):
        return code
    return langcodes.Language.get(language).display_name()


def language_colour(code: str) -> str:
    """The colour of a language, the same in every figure."""
    place = _place(code) - len(_FIXED)
    return _FIXED.get(code) or _MORE[(place - place // (len(_MORE) + 1)) % len(_MORE)]


def language_marker(code: str) -> str:
    """The marker of a language, the same in every figure, whatever other languages are shown.

    >>> [language_marker(code) for code in ("en", "ja", "ko")]
    ['o', 's', 'D']
    """
    return MARKERS[_place(code) % len(MARKERS)]


def language_looks(codes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each language of a study: up to 20 colours differ, and up to 160 pairs of both.

    A language keeps `language_colour` unless another of the study has it; then it takes the next colour that is left.
    Where none is left, it keeps its colour, and takes the next marker that no other language has in this colour.
    Hiding a language of the study changes no other.

    >>> looks = language_looks(["en", "ja", "ar", "ru"])
    >>> looks["ja"], len({colour for colour, _ in looks.values()})
    (('#D55E00', 's'), 4)
    """
    looks: dict[str, tuple[str, str]] = {}
    left = [*PALETTE, *_MORE]
    for code in sorted(set(codes), key=lambda code: (_place(code), code)):
        colour = language_colour(code)
        colour = colour if colour in left or not left else left[0]
        if colour in left:
            left.remove(colour)
        first = MARKERS.index(language_marker(code))
        pairs = [(colour, marker) for marker in MARKERS[first:] + MARKERS[:first]]
        looks[code] = next((pair for pair in pairs if pair not in looks.values()), pairs[0])
    return {code: looks[code] for code in codes}


def _place(code: str) -> int:
    """The place of a language among colours and markers; two that share a colour differ in their markers."""
    if code in _FIXED:
        return list(_FIXED).index(code)
    others = sorted(_NAMES.keys() - _FIXED.keys())
    place = others.index(code) if code in others else zlib.crc32(code.encode(errors="replace")) % 96
    return len(_FIXED) + place + place // len(_MORE)


def is_language(code: object) -> bool:
    """Whether `code` is a language code that tnkit has a name for.

    >>> is_language("ja"), is_language("non-parallel")
    (True, False)
    """
    return code in _NAMES
