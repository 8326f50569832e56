"""The parts of explorers: a picture with points to hover over, a table, and rows of controls.

Picture and table draw in the browser and need nothing from the network.
"""

import html
import io
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnkit.plots.style import language_name

_HERE = Path(__file__).parent
SCALE = 1.5  # pixels drawn per pixel shown, for sharp text
_DPI = 96
Places = list[tuple[Axes, np.ndarray | Sequence[float], np.ndarray | Sequence[float]]]


@dataclass(frozen=True, eq=False)
class Frame:
    """A drawn picture: PNG bytes, its description in words, and the positions of its points.

    Attributes:
        png: the picture.
        alt: its description, for screen readers.
        points: (point, 2), fractions of width and height from the upper left corner.
        ids: (point,), the index of each point's label.
    """

    png: bytes
    alt: str
    points: Float[np.ndarray, "point 2"]
    ids: Int[np.ndarray, "point"]


def rendered(figure: Figure, alt: str, places: Places, ids: list[int]) -> Frame:
    """A figure as a frame; `places` are (axes, x, y) with x and y in data units, `ids` has a number for each point.

    >>> figure = Figure(figsize=(4, 3))
    >>> axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
    >>> rendered(figure, "a point", [(axes, [0.25], [0.75])], [0]).points.tolist()
    [[0.25, 0.25]]
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI * SCALE)  # a tight box would move the points
    width, height = figure.bbox.width, figure.bbox.height
    positions = [axes.transData.transform(np.column_stack([x, y])) / (width, height) for axes, x, y in places]
    points = np.concatenate([np.empty((0, 2)), *positions])
    points[:, 1] = 1 - points[:, 1]
    return Frame(buffer.getvalue(), alt, points, np.array(ids, dtype=np.int32))


class Picture(anywidget.AnyWidget):
    """A picture whose points show their labels on hover or with the arrow keys.

    A click or Enter pins a point and marks its translations: the points whose ids are equal modulo `aligned`.

    Attributes:
        labels: the text of each id.
        aligned: the number of sentences per language.
        drawn: the number of frames shown so far.
    """

    _esm = _HERE / "picture.js"
    _css = _HERE / "explorer.css"
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    points = traitlets.Bytes(b"").tag(sync=True)
    ids = traitlets.Bytes(b"").tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    aligned = traitlets.Int(1).tag(sync=True)
    scale = traitlets.Float(SCALE).tag(sync=True)
    drawn = traitlets.Int(0).tag(sync=True)

    def show(self, frame: Frame) -> None:
        """Replace the current frame."""
        with self.hold_sync():
            self.png, self.alt = frame.png, frame.alt
            self.points, self.ids = frame.points.astype("<f4").tobytes(), frame.ids.astype("<i4").tobytes()
            self.drawn += 1


class Table(anywidget.AnyWidget):
    """A table that its column heads sort, with one selected row.

    Attributes:
        columns, rows: the contents; a cell is a number, text or None.
        digits: significant digits of each column, 0 for all.
        chosen: the index of the selected row in `rows`.
        label: its description, for screen readers.
    """

    _esm = _HERE / "table.js"
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    rows: "traitlets.List[Any]" = traitlets.List().tag(sync=True)
    digits = traitlets.List(traitlets.Int()).tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)


def controls(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    """A row of controls that wraps when it is too long."""
    row = ipywidgets.HBox(widgets)
    row.add_class("tn-controls")
    return row


def language_boxes(languages: Iterable[str], *, ticked: Container[str]) -> dict[str, ipywidgets.Checkbox]:
    """A tick box for each language."""
    return {
        language: ipywidgets.Checkbox(value=language in ticked, description=language_name(language), indent=False)
        for language in languages
    }


def html_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table of texts, all escaped.

    >>> html_table(["a"], [["<b>"]])
    '<table><tr><th>a</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def slug(name: str, value: Any) -> str:
    """A control's value for a file name: a number follows the control's name, a ticked box is the name alone.

    >>> slug("control", "same layers"), slug("languages", ["en", "ja"]), slug("layer", 6), slug("lines", False)
    ('same-layers', 'en-ja', 'layer-6', '')
    """
    if isinstance(value, bool):
        value = name if value else ""
    elif isinstance(value, int | float):
        value = f"{name} {value}"
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def below(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """The widgets inside a widget, innermost first."""
    for child in getattr(widget, "children", ()):
        yield from below(child)
        yield child
