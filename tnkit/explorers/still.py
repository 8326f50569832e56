"""A widget's picture as an output of its own, which a saved notebook shows where the widget is gone."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

# Where the widget is alive, its picture is hidden; where it is not, the text of the error is.
_STYLE = """<style>
.jp-OutputArea-child:has(.tn-app, .tn-explorer) ~ .jp-OutputArea-child:has(.tn-still-mark) + .jp-OutputArea-child
{ display: none; }
.jp-OutputArea-child:has(+ .jp-OutputArea-child .tn-still-mark):not(:has(.tn-app, .tn-explorer, .widget-box))
{ display: none; }
.jp-OutputArea-child:has(.tn-still-mark) { height: 0; min-height: 0; overflow: hidden; padding: 0; }
</style><span class="tn-still-mark"></span>"""


def png_of(figure: Figure) -> bytes:
    """A figure as PNG.

    >>> png_of(Figure(figsize=(1, 1)))[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def displayed(bundle: Any, draw: Callable[[], bytes], text: str) -> Callable[[bytes], None]:
    """Display a widget and then its picture; returns what replaces the picture.

    Args:
        bundle: the widget's mimebundle.
        draw: makes the picture.
        text: the widget's description.
    """
    from IPython.display import HTML, Image, display

    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    widget: Mapping[str, Any] = {name: value for name, value in data.items() if name != "image/png"}
    display({**widget, "text/plain": text}, metadata=metadata, raw=True)
    display(HTML(_STYLE))
    picture = display(Image(draw()), display_id=True)
    return lambda png: None if picture is None else picture.update(Image(png))
