"""One look for every figure: palette, markers, names, fonts, and how figures are saved."""

import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from tnkit import storage
from tnkit.errors import visible

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe & Ito's palette, which readers with any colour vision tell apart; a language keeps its colour everywhere.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
_FIXED = dict(zip(("en", "ja", "ko", "nl", "it", "zh", "de", "fr"), PALETTE, strict=True))
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
# Of Linux, macOS and Windows; Japanese first, because shared characters are drawn in the first font that has them.
_CJK_FONTS = (
    "Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic", "Noto Sans CJK KR", "Apple SD Gothic Neo", "Malgun Gothic",
)  # fmt: skip
_STYLE: "dict[RcKeyType, Any]" = {
    "font.family": ["DejaVu Sans", *_CJK_FONTS, "Noto Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
}
_UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_LONGEST = 80  # characters of a name in a figure
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef]")
_log = logging.getLogger("tnkit")


@contextmanager
def style() -> Iterator[None]:
    """The project's matplotlib style, as a context.

    Interactive mode stays as it is left: in a notebook, the first figure loads the backend, which turns it on, and
    without it no later figure would be shown.

    >>> with style():
    ...     figure = plt.figure()
    >>> plt.close(figure)
    """
    with plt.rc_context({**_STYLE, "font.family": _fonts()}):
        try:
            yield
        finally:
            interactive = plt.isinteractive()
    plt.rcParams["interactive"] = interactive


def use_style() -> None:
    """The project's matplotlib style from here on, so that titles and figures of your own in a notebook go with it."""
    plt.rcParams.update({**_STYLE, "font.family": _fonts()})


def _fonts() -> list[str]:
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _STYLE["font.family"] if name in there]


def language_name(code: str) -> str:
    """A language's English name, or its code where tnkit knows none.

    >>> language_name("ja"), language_name("tlh")
    ('Japanese', 'tlh')
    """
    return _NAMES.get(code, code)


def literal(text: object) -> str:
    """Text of others as a figure can draw it: as it is, never as a formula, and of at most 80 characters.

    matplotlib would read what is between dollar signs as mathematics, and leave a label that begins with an underscore
    out of a legend. Control characters are shown as escapes.

    >>> print(literal("$x$\\x1b"))
    \\$x\\$\\x1b
    """
    shown = _encodable(text).replace("\t", " ")
    shown = shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def _encodable(text: object) -> str:
    return visible(text).encode(errors="backslashreplace").decode()


def language_label(code: str) -> str:
    """A language's name for a figure."""
    return literal(language_name(code))


def language_colour(code: str) -> str:
    """The colour that a language has in every figure."""
    return _FIXED.get(code) or PALETTE[zlib.crc32(code.encode(errors="replace")) % len(PALETTE)]


def is_language(code: object) -> bool:
    """Whether it is the code of a language whose name tnkit knows.

    >>> is_language("ja"), is_language("non-parallel")
    (True, False)
    """
    return code in _NAMES


def save_figure(figure: Figure | SubFigure, path: str | Path, *, close: bool = True, about: str = "") -> Path:
    """Write a figure in the format of its ending, atomically; the same figure gives the same bytes, without a date.

    Args:
        figure: what to write, whole.
        path: where to; its folder is made.
        close: close it afterwards; False leaves it open, so that a notebook still shows it.
        about: a description for the file's metadata.
    """
    figure, path = figure.get_figure(root=True), Path(path)
    ending = path.suffix.lstrip(".") or "png"
    key = "Subject" if ending == "pdf" else "Description"
    metadata = {**_UNDATED.get(ending, {}), **({key: _encodable(about)} if about else {})}
    warn_of_boxes(figure)
    with plt.rc_context({"svg.hashsalt": "tnkit"}):
        written = storage.write_atomically(path, lambda file: figure.savefig(file, format=ending, metadata=metadata))
    if close:
        plt.close(figure)
    return written


def cjk_font() -> str | None:
    """The font that draws Japanese, Chinese and Korean, or None where there is none."""
    return next((name for name in _fonts() if name in _CJK_FONTS), None)


def warn_of_boxes(figure: Figure) -> None:
    """Log, once, which font package is missing where a figure's text would be drawn as boxes."""
    text = " ".join(part.get_text() for part in figure.findobj(Text))
    if _CJK.search(text) and cjk_font() is None:
        _warn_of_cjk()


@cache
def _warn_of_cjk() -> None:
    _log.warning(
        "no font with Japanese, Chinese and Korean glyphs was found, so figures show boxes in their place: %s",
        GET_CJK_FONT,
    )


GET_CJK_FONT = (
    "install Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk; conda: noto-fonts-cjk; elsewhere fonts.google.com/noto)"
)
