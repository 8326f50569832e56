"""What the explorers share: controls that draw one picture, without ever a queue of stale ones.

A subclass says what its picture depends on (`_key`), prepares that a step at a time (`_prepare`), and draws it
(`_draw`). Frames are kept. Steps run on the kernel's own event loop, one between two messages, so that a control that
is moved meanwhile is noticed and what is no longer wanted is dropped; while nothing is asked, the frames that a slider
can reach next (`_near`) are drawn ahead. Where no event loop runs, everything is done at once.
"""

import asyncio
import base64
import html
import json
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets
from matplotlib.figure import Figure

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.explorers.parts import Frame, Picture, Places, rendered
from tnkit.explorers.study import Study
from tnkit.plots.style import save_figure

_KEPT = 400  # frames, about 100 KB each
_PAUSE = 0.02  # seconds left to the kernel between two frames that are drawn ahead
_DROPPED = ("study", "model", "states", "_kept", "_frames", "_cards", "_compared", "_tables")  # by `close`
_log = logging.getLogger("tnkit")
_Key = TypeVar("_Key", bound=Hashable)


class Explorer(ipywidgets.VBox):
    """A picture with controls, which can be saved; made by the functions of `tnkit.explorers`.

    Attributes:
        picture: the picture.
        errors: what went wrong so far, oldest first.
    """

    name = "explorer"
    hint = ""
    study: Study | None
    _closed = False

    def __init__(self, title: str, *, folder: str | Path = "figures") -> None:
        self.folder = Path(folder)
        self.errors: list[str] = []
        self.picture = Picture()
        self._frames: dict[Hashable, Frame] = {}
        self._wanted: Hashable = None
        self._shown: Hashable = None
        self._task: asyncio.Task[None] | None = None
        self._side: asyncio.Task[None] | None = None
        self._turning = False  # while code sets several controls
        self._told = False  # whether a step of preparation is being shown
        study = self.__dict__.setdefault("study", None)
        self._weights = study.weights() if study else ""
        self._title = ipywidgets.HTML(f"<div class='tn-title'>{html.escape(title)}</div>")
        self._hint = ipywidgets.HTML(f"<div class='tn-hint'>{html.escape(self.hint)}</div>")
        self._status = ipywidgets.HTML()
        self._say("")
        self._save_button = ipywidgets.Button(
            description="Save picture", icon="save", tooltip="write what is shown as PNG and SVG"
        )
        self._save_button.on_click(lambda _: self._act(self._save_shown))
        super().__init__()
        self.add_class("tn-explorer")

    # What a subclass says; each has a kind of key of its own.

    def _key(self) -> Hashable:
        """The values of the controls that the picture depends on."""
        raise NotImplementedError

    def _prepare(self, key: Any) -> Iterator[str]:  # noqa: ARG002 - for those that need it
        """Compute what the picture of a key needs, a step at a time; yields what is being done before each."""
        yield from ()

    def _draw(self, key: Any) -> tuple[Figure, str, Places, list[int]]:
        """The figure of a key, what it shows in words, and its points as in `rendered`."""
        raise NotImplementedError

    def _near(self, key: Any) -> Iterable[Hashable]:  # noqa: ARG002
        """The keys that one move of a slider leads to, likeliest first."""
        return ()

    def _after(self, key: Any) -> None:
        """Bring what stands beside the picture up to date."""

    def _renew(self) -> None:
        """Drop what was computed with weights that the model no longer has."""

    def parameters(self) -> dict[str, Any]:
        """The values of the controls, and the provenance of what is shown."""
        raise NotImplementedError

    # What all of them do.

    def figure(self) -> Figure:
        """What is shown, as a matplotlib figure."""
        return self._draw(self._ready(self._key()))[0]

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write what is shown as PNG and SVG, with `parameters()` in the files' metadata; folders are left out of it.

        Args:
            folder: where to (default: the explorer's own).

        Returns:
            The two paths; their name tells the controls' values.

        Raises:
            TnkitError: where the folder cannot be written to.
        """
        about = self.parameters()
        values = [_slug(name, value) for name, value in about["controls"].items()]
        stem = "-".join([self.name, *(value for value in values if value)])[:120]
        folder = self.folder if folder is None else Path(folder)
        about = storage.without_folders({"explorer": self.name, **about, "versions": storage.versions()})
        said = json.dumps(about, ensure_ascii=False)
        with storage.together():
            return [save_figure(self.figure(), folder / f"{stem}.{ending}", about=said) for ending in ("png", "svg")]

    def _open(self, *rows: ipywidgets.Widget, below: Iterable[ipywidgets.Widget] = ()) -> None:
        """Put the parts together and draw the first picture."""
        saving = ipywidgets.HBox([self._save_button])
        self.children = (self._title, self._hint, *rows, self.picture, *below, saving, self._status)
        self._wanted = key = self._key()
        try:
            self._show(key, self._make(self._ready(key)))
        except Exception as error:
            self._fail(error)
            raise
        self._wake()

    def _refresh(self, *_: Any) -> None:
        """Show the picture of the controls' values: at once where it is there, else as soon as it is made."""
        if not self._turning:
            self._act(lambda: self._turn_to(self._key()))

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """A context in which code sets several controls, and no picture of half of them is made."""
        self._turning = True
        try:
            yield
        finally:
            self._turning = False

    def _turn_to(self, key: Hashable) -> None:
        if self._follow():
            key = self._key()
        self._wanted = key
        if key == self._shown:
            return
        if key in self._frames:
            self._show(key, self._frames[key])
            self._wake()
        elif not self._wake():
            self._show(key, self._make(self._ready(key)))

    def _follow(self) -> bool:
        """Whether the model's weights have changed; then nothing that was computed before is shown again."""
        if not self.study or self._weights == self.study.weights():
            return False
        self._weights = self.study.weights()
        self._frames.clear()
        self._shown = None
        self._told = True
        self._say("the model's weights have changed; computing everything again")
        self._renew()
        return True

    def _wake(self) -> bool:
        """See to it that `_work` runs; False where there is no event loop that it could run on."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        return True

    async def _work(self) -> None:
        """Make what is wanted, then, while nothing else is, what is near; ends when all is there."""
        while True:
            await asyncio.sleep(_PAUSE)
            key = self._wanted
            try:
                if key == self._shown:
                    if await self._drawn_ahead(key):
                        return
                elif await self._prepared(key, key, tell=True):
                    self._show(key, self._make(key))
            except Exception as error:
                self._fail(error)
                if key == self._wanted:
                    return

    async def _drawn_ahead(self, key: Hashable) -> bool:
        """Draw what is near a key, frame by frame; False where something else is wanted meanwhile."""
        for near in self._near(key):
            if near not in self._frames:
                if not await self._prepared(near, key, tell=False):
                    return False
                self._make(near)
                await asyncio.sleep(_PAUSE)
        return self._wanted == key

    async def _prepared(self, key: Hashable, wanted: Hashable, *, tell: bool) -> bool:
        """Prepare a key step by step; False where something else is wanted meanwhile."""
        for step in self._prepare(key):
            if tell:
                self._told = True
                self._say(step)
            await asyncio.sleep(0.001)  # let the kernel take messages
            if self._wanted != wanted:
                return False
        return self._wanted == wanted

    def _ready(self, key: _Key) -> _Key:
        """The key, after preparing all that its picture needs."""
        self._follow()
        for _ in self._prepare(key):
            pass
        return key

    def _make(self, key: Hashable) -> Frame:
        if key not in self._frames:
            while len(self._frames) >= _KEPT:
                self._frames.pop(next(iter(self._frames)))
            self._frames[key] = rendered(*self._draw(key))
        return self._frames[key]

    def _show(self, key: Hashable, frame: Frame) -> None:
        self._shown = key
        self.picture.show(frame)
        if self._told:  # what was being prepared; another job's last word stays
            self._told = False
            self._say("")
        self._after(key)

    def _in_steps(self, steps: Iterator[str]) -> None:
        """Do something else step by step, telling each, without holding up the kernel where it can be."""

        async def work() -> None:
            try:
                for step in steps:
                    self._say(step)
                    await asyncio.sleep(0.001)  # let the kernel take messages
            except Exception as error:
                self._fail(error)

        try:
            self._side = asyncio.get_running_loop().create_task(work())
        except RuntimeError:
            for step in steps:
                self._say(step)

    def _save_shown(self) -> None:
        self._say("saved " + " and ".join(map(str, self.save())))

    def _act(self, do: Callable[[], object]) -> None:
        """Do what a control asks; whatever goes wrong is shown in the explorer as a sentence."""
        self._say("")
        try:
            do()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, TnkitError):
            text = str(error)
        else:
            text = f"unexpected {type(error).__name__}: {error}; the kernel's log has the traceback"
            _log.exception("an explorer's callback failed", exc_info=error)
        self.errors.append(text)
        self._status.value = f"<div class='tn-error' role='alert'>{html.escape(text)}</div>"

    def _say(self, text: str) -> None:
        said = f"<div class='tn-status' role='status'>{html.escape(text)}</div>"
        if self._status.value != said:
            self._status.value = said

    def _repr_mimebundle_(self, **how: Any) -> dict[str, Any] | tuple[Any, ...]:
        """The widget, and beside it a still picture for where no widget can run, such as a page on GitHub."""
        bundle = super()._repr_mimebundle_(**how)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data = {**data, "image/png": base64.b64encode(self.picture.png).decode(), "text/plain": repr(self)}
        return (data, *bundle[1:]) if isinstance(bundle, tuple) else data

    def __repr__(self) -> str:
        if self._closed:
            return f"{type(self).__name__}(closed)"
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.parameters()['controls'].items())})"

    def close(self) -> None:
        """Stop all work, remove the explorer from the page, and release the model and what was computed with it."""
        if not self._closed:
            self._closed = True
            for task in (self._task, self._side):
                if task:
                    task.cancel()
            self._task = self._side = None
            for widget in _below(self):
                widget.unobserve_all()
                widget.close()
            for name in _DROPPED:
                self.__dict__.pop(name, None)
        super().close()

    def __getattr__(self, name: str) -> Any:
        if name in _DROPPED and self._closed:
            raise TnkitError("this explorer is closed; open a new one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _below(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """The widgets inside a widget, innermost first."""
    for child in getattr(widget, "children", ()):
        yield from _below(child)
        yield child


def controls(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    """A row of controls that breaks where it is too long."""
    row = ipywidgets.HBox(widgets)
    row.add_class("tn-controls")
    return row


def _slug(name: str, value: Any) -> str:
    """A control's value as it may stand in a file name; a number with the control's name, a tick as the name alone.

    >>> _slug("control", "same layers"), _slug("languages", ["en", "ja"]), _slug("layer", 6), _slug("lines", False)
    ('same-layers', 'en-ja', 'layer-6', '')
    """
    if isinstance(value, bool):
        value = name if value else ""
    elif isinstance(value, int | float):
        value = f"{name} {value}"
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^\w.]+", "-", text).strip("-")
