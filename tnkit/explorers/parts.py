"""What explorers are made of beside ipywidgets' own controls: a picture that can be hovered, and a table.

Both draw in the browser and need nothing from the network.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_HERE = Path(__file__).parent
SCALE = 1.5  # pixels drawn for each pixel shown, so that text stays sharp
_DPI = 96
Places = list[tuple[Axes, np.ndarray | Sequence[float], np.ndarray | Sequence[float]]]


@dataclass(frozen=True, eq=False)
class Frame:
    """A drawn picture: PNG bytes, what it shows in words, and where its points are.

    Attributes:
        png: the picture.
        alt: what it shows, for those who cannot see it.
        points: as fractions of width and height from the upper left corner, (point, 2).
        ids: which label each point has, (point,).
    """

    png: bytes
    alt: str
    points: Float[np.ndarray, "point 2"]
    ids: Int[np.ndarray, "point"]


def rendered(figure: Figure, alt: str, places: Places, ids: list[int]) -> Frame:
    """A figure as a frame; `places` are (axes, x, y), x and y arrays in the axes' units, `ids` one number a point.

    >>> figure = Figure(figsize=(4, 3))
    >>> axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
    >>> rendered(figure, "a point", [(axes, [0.25], [0.75])], [0]).points.tolist()
    [[0.25, 0.25]]
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI * SCALE)  # never a tight box, which would move the points
    width, height = figure.bbox.width, figure.bbox.height
    parts = [axes.transData.transform(np.column_stack([x, y])) / (width, height) for axes, x, y in places]
    points = np.concatenate([np.empty((0, 2)), *parts])
    points[:, 1] = 1 - points[:, 1]
    return Frame(buffer.getvalue(), alt, points, np.array(ids, dtype=np.int32))


class Picture(anywidget.AnyWidget):
    """A picture whose points tell what they are when they are hovered or reached with the arrow keys.

    A click or Enter pins a point: the points of its translations are ringed and joined. Points are of translations
    where their ids are equal modulo `aligned`.

    Attributes:
        labels: what is said of each id.
        aligned: how many sentences each language has.
        drawn: how many frames have been shown.
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
        """Put a frame in the place of the last one."""
        with self.hold_sync():
            self.png, self.alt = frame.png, frame.alt
            self.points, self.ids = frame.points.astype("<f4").tobytes(), frame.ids.astype("<i4").tobytes()
            self.drawn += 1


class Table(anywidget.AnyWidget):
    """Rows that are sorted by their column heads, and of which one is chosen.

    Attributes:
        columns, rows: what is shown; a cell is a number, text or None.
        digits: significant digits of each column's numbers, 0 for all.
        chosen: the place of the chosen row in `rows`.
        label: what the table holds, for those who cannot see it.
    """

    _esm = _HERE / "table.js"
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    rows: "traitlets.List[Any]" = traitlets.List().tag(sync=True)
    digits = traitlets.List(traitlets.Int()).tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
