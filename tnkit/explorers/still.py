"""A widget's picture as an output of its own, which a saved notebook shows where the widget is gone."""

import base64
import io
import logging
from collections.abc import Callable
from typing import Any

from tnkit import plots

_log = logging.getLogger("tnkit")

# Where the widget is alive, its picture is hidden; where it is not, the text that says so is.
_STYLE = """<style>
.jp-OutputArea-child:has(.tn-app) ~ .jp-OutputArea-child:has(.tn-still-mark) + .jp-OutputArea-child,
.jp-OutputArea-child:has(+ .jp-OutputArea-child .tn-still-mark):has(.jupyter-widgets):not(:has(.jupyter-widgets *))
{ display: none; }
.jp-OutputArea-child:has(.tn-still-mark) { height: 0; min-height: 0; overflow: hidden; padding: 0; }
</style><span class="tn-still-mark"></span>"""


def png_of(figure: "plots.Figure") -> bytes:
    """A figure as PNG.

    >>> png_of(plots.Figure(figsize=(1, 1)))[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


class Still:
    """A widget that leaves its last picture in the notebook.

    JupyterLab shows a saved widget as an error and ignores the picture in the same output, so the picture is another
    output; while the widget is alive, it is hidden and kept up to date.
    """

    _replace: Callable[[bytes], None] | None = None

    def _picture(self) -> bytes:
        """The picture as PNG."""
        raise NotImplementedError

    def _hasten(self) -> None:
        """Send the browser what it shows first, before the picture is drawn."""

    def _repr_mimebundle_(self, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and its picture for pages that cannot run widgets, such as GitHub."""
        data, metadata = self._alive(**how)
        if picture := self._drawn():
            data["image/png"] = base64.b64encode(picture).decode()
        return data, metadata

    def _alive(self, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget without its picture."""
        bundle: Any = super()._repr_mimebundle_(**how)  # type: ignore[misc]
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/plain": repr(self)}, metadata

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, Image, display

        data, metadata = self._alive()
        display(data, metadata=metadata, raw=True)
        display(HTML(_STYLE))
        self._hasten()
        if picture := self._drawn():
            handle = display(Image(picture), display_id=True)
            self._replace = lambda png: None if handle is None else handle.update(Image(png))

    def _leave(self) -> None:
        """Replace the picture by that of what is shown now."""
        if self._replace is not None and (picture := self._drawn()):
            self._replace(picture)

    def _drawn(self) -> bytes | None:
        """The picture, or none where it cannot be drawn: the widget asks for the same and says what is wrong."""
        try:
            return self._picture()
        except Exception:
            _log.debug("the picture of %r could not be drawn", self, exc_info=True)
            return None
