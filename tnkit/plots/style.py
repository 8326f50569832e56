"""The look of every figure: its style and fonts, and how figures are saved."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes as Axes
from matplotlib.figure import Figure as Figure
from matplotlib.figure import SubFigure
from matplotlib.text import Text

from tnkit import storage
from tnkit.errors import visible
from tnkit.plots.looks import language_name

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# On Linux, macOS and Windows. Japanese fonts come first: a shared character is drawn in the first font that has it.
_CJK_FONTS = (
    "Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic", "Noto Sans CJK KR", "Apple SD Gothic Neo", "Malgun Gothic",
)  # fmt: skip
_SCRIPTS = (
    "Arabic", "Hebrew", "Devanagari", "Bengali", "Gujarati", "Gurmukhi", "Kannada", "Malayalam", "Sinhala", "Tamil",
    "Telugu", "Thai", "Lao", "Khmer", "Myanmar", "Ethiopic", "Georgian", "Armenian",
)  # fmt: skip
_SCRIPT_FONTS = (*(f"Noto Sans {script}" for script in _SCRIPTS), "Nirmala UI", "Leelawadee UI", "Ebrima", "Geeza Pro")
DPI = 200  # dots an inch of saved pictures
_STYLE: "dict[RcKeyType, Any]" = {
    "font.family": ["DejaVu Sans", *_CJK_FONTS, "Noto Sans", *_SCRIPT_FONTS],
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
    "savefig.dpi": DPI,
}
_UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_LONGEST = 80  # characters of a text in a figure
_CJK = {"Hani", "Hira", "Kana", "Hang", "Bopo"}
_log = logging.getLogger("tnkit")


@contextmanager
def style() -> Iterator[None]:
    """Use the project's matplotlib style inside a `with` block.

    Interactive mode is not reset: a notebook's first figure loads the backend, which turns interactive mode on, and
    later figures need it to be shown.

    >>> with style():
    ...     plt.rcParams["legend.frameon"]
    False
    """
    with plt.rc_context({**_STYLE, "font.family": _fonts()}):
        try:
            yield
        finally:
            interactive = plt.isinteractive()
    plt.rcParams["interactive"] = interactive


def use_style() -> None:
    """Use the project's matplotlib style from now on, also for your own figures and titles."""
    plt.rcParams.update({**_STYLE, "font.family": _fonts()})


def _fonts() -> list[str]:
    return [name for name in _STYLE["font.family"] if name in _installed()]


@cache
def _installed() -> frozenset[str]:
    """The names of all fonts; those that were installed after matplotlib made its list are added to the list."""
    from matplotlib import font_manager

    listed, families = font_manager.fontManager, [name.replace(" ", "") for name in _STYLE["font.family"]]
    for path in sorted({*font_manager.findSystemFonts()} - {font.fname for font in listed.ttflist}):
        name = Path(path).stem.partition("-")[0]
        if any(family.startswith(name) for family in families):
            with suppress(OSError, RuntimeError):  # a damaged font
                listed.addfont(path)
    return frozenset(font.name for font in listed.ttflist)


@contextmanager
def axes(ax: Axes | None, width: float, height: float) -> Iterator[Axes]:
    """Draw in the project's style, on `ax` or on a new figure of `width` by `height` inches."""
    with style():
        yield ax or plt.subplots(figsize=(width, height))[1]


def panels(count: int, *, width: float, height: float, title: str = "") -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in a row, each of `width` by `height` inches.

    >>> figure, (left, right) = panels(2, width=4.0, height=3.0, title="before and after")
    >>> figure.get_size_inches().tolist()
    [8.0, 3.0]
    """
    with style():
        figure, grid = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
        if title:
            figure.suptitle(literal(title))
    return figure, list(grid[0])


def titled(ax: Axes, title: str) -> Axes:
    """Give axes a title in the project's style, in as many lines as it needs.

    >>> with style():
    ...     ax = plt.subplots()[1]
    >>> titled(ax, "before and after").get_title("left")
    'before and after'
    """
    with style():
        ax.set_title(literal(title), wrap=True)
    return ax


def literal(text: object) -> str:
    """Text from elsewhere, escaped so that a figure shows it literally, in at most 80 characters.

    matplotlib would read text between dollar signs as mathematics, and omit a label that begins with an underscore
    from the legend. Control characters become escapes.

    >>> print(literal("$x$\\x1b"))
    \\$x\\$\\x1b
    """
    shown = _encodable(text).replace("\t", " ")
    shown = shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def _encodable(text: object) -> str:
    return visible(text).encode(errors="backslashreplace").decode()


def language_label(code: str) -> str:
    """A language's name, as `literal` text for a figure."""
    return literal(language_name(code))


def save_figure(figure: Figure | SubFigure, path: str | Path, *, close: bool = True, about: str = "") -> Path:
    """Write a figure atomically, in the format of the path's ending, with 200 dots an inch where it has dots.

    The same figure gives the same bytes.

    Args:
        figure: to write; of a subfigure, the whole figure.
        path: of the file; its folder is created.
        close: whether to close the figure; a notebook shows figures that stay open.
        about: a description for the file's metadata.

    Returns:
        The path.
    """
    figure, path = figure.get_figure(root=True), Path(path)
    ending = path.suffix.lstrip(".") or "png"
    key = "Subject" if ending == "pdf" else "Description"
    metadata = {**_UNDATED.get(ending, {}), **({key: _encodable(about)} if about else {})}
    warn_of_boxes(figure)
    with plt.rc_context({"svg.hashsalt": "tnkit"}):
        written = storage.write_atomically(
            path, lambda file: figure.savefig(file, format=ending, dpi=DPI, metadata=metadata)
        )
    if close:
        plt.close(figure)
    return written


def figure_saver(prefix: str | Path, **parameters: object) -> Callable[..., None]:
    """A function that saves figures with the parameters that they were made with, and leaves them open.

    Args:
        prefix: folder and beginning of the file names.
        parameters: written as JSON, with the versions of the packages, into each file's metadata.

    Returns:
        `save(name, drawn, title="")`, which sets the title of the axes or figure if one is given, and writes
        PREFIX-NAME.png and PREFIX-NAME.svg.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save = figure_saver(f"{folder}/01", model="gemma-3-270m", top=300)
    ...     save("empty", plt.figure())
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['01-empty.png', '01-empty.svg']
    """
    about = storage.without_folders({"parameters": parameters, "versions": storage.versions()})

    def save(name: str, drawn: Axes | Figure, title: str = "") -> None:
        if title:
            with style():
                titled(drawn, title) if isinstance(drawn, Axes) else drawn.suptitle(literal(title))
        figure = drawn.figure if isinstance(drawn, Axes) else drawn
        for ending in ("png", "svg"):
            save_figure(figure, f"{prefix}-{name}.{ending}", close=False, about=json.dumps(about, ensure_ascii=False))

    return save


def cjk_font() -> str | None:
    """The font that draws Japanese, Chinese and Korean, or None if none is installed."""
    return next((name for name in _fonts() if name in _CJK_FONTS), None)


def warn_of_boxes(figure: Figure) -> None:
    """Warn once of each script that would be drawn as boxes in a figure, naming the font to install."""
    letters = {letter for element in figure.findobj(Text) for letter in element.get_text() if letter > "\u024f"}
    if not letters:
        return
    from fontTools import unicodedata as scripts

    drawn = _drawn(tuple(_fonts()))
    for script in sorted({scripts.script(letter) for letter in letters if ord(letter) not in drawn}):
        if script not in ("Zyyy", "Zinh", "Zzzz"):  # common, inherited and unknown
            _warn_of_script("Japanese, Chinese and Korean" if script in _CJK else scripts.script_name(script))


@cache
def _drawn(fonts: tuple[str, ...]) -> frozenset[int]:
    """The characters that some of the fonts have."""
    from matplotlib import font_manager

    return frozenset().union(*(font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in fonts))


@cache
def _warn_of_script(script: str) -> None:
    one = f"install Noto Sans {script} (Debian, Ubuntu: fonts-noto-core; elsewhere fonts.google.com/noto)"
    advice = GET_CJK_FONT if "Chinese" in script else one
    _log.warning("no font with %s glyphs was found, so figures show boxes instead: %s", script, advice)


GET_CJK_FONT = (
    "install Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk; conda: noto-fonts-cjk; elsewhere fonts.google.com/noto)"
)
