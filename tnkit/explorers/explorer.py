"""The base of the explorers: controls that redraw one picture, and never a queue of outdated pictures.

A subclass makes its controls (`_build`), names what its picture depends on (`_key`), prepares that step by step
(`_prepare`), and draws it (`_draw`). Frames are cached. Steps run on the kernel's event loop, one between two
messages, so a control that moves meanwhile is noticed and outdated work is dropped. While the explorer is idle, the
frames that a slider can reach next (`_near`) are drawn ahead. Without an event loop, everything runs at once.
"""

import asyncio
import html
import json
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets
from matplotlib.figure import Figure

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.explorers.parts import Frame, Picture, Places, below, rendered, slug
from tnkit.explorers.still import Still
from tnkit.explorers.study import Study
from tnkit.plots.style import save_figure

_KEPT = 400  # frames, about 100 KB each
_PAUSE = 0.02  # seconds left to the kernel between two frames that are drawn ahead
_DROPPED = ("study", "model", "states", "steering", "_kept", "_frames", "_cards", "_compared", "_tables")  # by `close`
_log = logging.getLogger("tnkit")
_Key = TypeVar("_Key", bound=Hashable)


class Explorer(Still, ipywidgets.VBox):
    """A picture with controls that can be saved; the functions of `tnkit.explorers` make one.

    An explorer whose construction fails closes itself, which releases the model.

    `picture` shows it, and `errors` keeps the error messages, oldest first.

    >>> from tnkit.explorers.spaces import explore_spaces
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explorer = explore_spaces(tiny_model(), tiny_corpus())
    >>> explorer.parameters()["controls"]["layer"], explorer.errors
    (2, [])
    """

    name = "explorer"
    title = ""
    hint = ""
    study: Study | None
    _closed = False
    _task: asyncio.Task[None] | None = None
    _side: asyncio.Task[None] | None = None
    _turning = False  # while code sets several controls
    _told = False  # whether the status shows a step of preparation
    _wanted: Hashable = None
    _shown: Hashable = None
    _title: ipywidgets.HTML
    _hint: ipywidgets.HTML
    _status: ipywidgets.HTML
    _save_button: ipywidgets.Button

    def __init__(self, *, study: Study | None = None, folder: str | Path = "figures", **given: Any) -> None:
        self.folder = Path(folder)
        super().__init__()  # from here on, ipywidgets keeps this widget until it is closed
        try:
            self.study = study
            self._weights = study.weights() if study else ""
            self._begin_page()
            rows, below = self._build(**given)
            saving = ipywidgets.HBox([self._save_button])
            self.children = (self._title, self._hint, *rows, self.picture, *below, saving, self._status)
            self._wanted = key = self._key()
            self._show(key, self._make(self._ready(key)))
        except BaseException:
            self.close()
            raise
        self._wake()

    def _begin_page(self) -> None:
        """Make the widgets that every explorer has."""
        self.add_class("tn-explorer")
        self.errors: list[str] = []
        self.picture = Picture()
        self._frames: dict[Hashable, Frame] = {}
        self._title = ipywidgets.HTML(f"<div class='tn-title'>{html.escape(self.title)}</div>")
        self._hint = ipywidgets.HTML(f"<div class='tn-hint'>{html.escape(self.hint)}</div>")
        self._status = ipywidgets.HTML()
        self._say("")
        tooltip = "save this picture as PNG and SVG"
        self._save_button = ipywidgets.Button(description="Save picture", icon="save", tooltip=tooltip)
        self._save_button.on_click(lambda _: self._act(self._save_shown))

    # What a subclass defines; each has its own type of key.

    def _build(self, **given: Any) -> tuple[list[ipywidgets.Widget], list[ipywidgets.Widget]]:
        """Make the controls; returns the rows above the picture and the widgets below it."""
        raise NotImplementedError

    def _key(self) -> Hashable:
        """The values of the controls that the picture depends on."""
        raise NotImplementedError

    def _prepare(self, key: Any) -> Iterator[str]:  # noqa: ARG002 - an override may need it
        """Compute what the picture of a key needs; yields a description before each step."""
        yield from ()

    def _draw(self, key: Any) -> tuple[Figure, str, Places, list[int]]:
        """The figure of a key, its description in words, and its points as in `rendered`."""
        raise NotImplementedError

    def _near(self, key: Any) -> Iterable[Hashable]:  # noqa: ARG002
        """The keys that one move of a slider leads to, most likely first."""
        return ()

    def _after(self, key: Any) -> None:
        """Update what is shown next to the picture."""

    def _renew(self) -> None:
        """Recompute what was computed with the model's previous weights."""

    def _values(self) -> dict[str, Any]:
        """The values of the controls, by name."""
        raise NotImplementedError

    def _provenance(self) -> Any:
        """The provenance of what is shown."""
        raise NotImplementedError

    # What all explorers do.

    def parameters(self) -> dict[str, Any]:
        """The values of the controls ("controls") and the provenance of what is shown ("provenance")."""
        return {"controls": self._values(), "provenance": self._provenance()}

    def figure(self) -> Figure:
        """The picture as a matplotlib figure."""
        return self._draw(self._ready(self._key()))[0]

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Save the picture as PNG and SVG, with `parameters()` in the metadata; paths of folders are left out.

        Args:
            folder: the target (default: the explorer's own folder).

        Returns:
            The two paths; the file name contains the values of the controls.

        Raises:
            TnkitError: if the folder is not writable.
        """
        parameters = self.parameters()
        values = [slug(name, value) for name, value in parameters["controls"].items()]
        stem = "-".join([self.name, *filter(None, values)])[:120]
        folder = self.folder if folder is None else Path(folder)
        content = {"explorer": self.name, **parameters, "versions": storage.versions()}
        text = json.dumps(storage.without_folders(content), ensure_ascii=False)
        with storage.together():
            return [save_figure(self.figure(), folder / f"{stem}.{ending}", about=text) for ending in ("png", "svg")]

    def _refresh(self, *_: Any) -> None:
        """Show the picture of the controls' values: at once if it is cached, else as soon as it is drawn."""
        if not self._turning:
            self._act(lambda: self._turn_to(self._key()))

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """A context in which code sets several controls without a redraw for each."""
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
        """Whether the model's weights have changed; if so, drop everything computed before."""
        if not self.study or self._weights == self.study.weights():
            return False
        self._weights = self.study.weights()
        self._frames.clear()
        self._shown = None
        self._told = True
        self._say("the model's weights have changed; recomputing")
        self._renew()
        return True

    def _wake(self) -> bool:
        """Make sure that `_work` runs; False if there is no event loop to run it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        return True

    async def _work(self) -> None:
        """Draw the wanted picture, then, while no other is wanted, those near it; end when all are drawn."""
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
        """Draw the frames near a key one by one; False if another picture is wanted meanwhile."""
        for near in self._near(key):
            if near not in self._frames:
                if not await self._prepared(near, key, tell=False):
                    return False
                self._make(near)
                await asyncio.sleep(_PAUSE)
        return self._wanted == key

    async def _prepared(self, key: Hashable, wanted: Hashable, *, tell: bool) -> bool:
        """Prepare a key step by step; False if another picture is wanted meanwhile."""
        for step in self._prepare(key):
            if tell:
                self._told = True
                self._say(step)
            await asyncio.sleep(0.001)  # let the kernel take messages
            if self._wanted != wanted:
                return False
        return self._wanted == wanted

    def _ready(self, key: _Key) -> _Key:
        """The key, once everything that its picture needs is prepared."""
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
        self._leave()
        if self._told:  # a message from any other job stays
            self._told = False
            self._say("")
        self._after(key)

    def _in_steps(self, steps: Iterator[str]) -> None:
        """Run another job step by step and show each step, without blocking the kernel if it has an event loop."""

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
        """Run what a control asks for; an error is shown in the explorer as a sentence."""
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

    def _picture(self) -> bytes:
        return self.picture.png

    def __repr__(self) -> str:
        if self._closed:
            return f"{type(self).__name__}(closed)"
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.parameters()['controls'].items())})"

    def close(self) -> None:
        """Stop all work, remove the explorer from the page, and release the model and all results."""
        if not self._closed:
            self._closed = True
            for task in (self._task, self._side):
                if task:
                    task.cancel()
            self._task = self._side = None
            for widget in self._widgets():
                widget.unobserve_all()
                widget.close()
            for name in _DROPPED:
                self.__dict__.pop(name, None)
        super().close()

    def __getattr__(self, name: str) -> Any:
        if name in _DROPPED and self._closed:
            raise TnkitError("this explorer is closed; open a new one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _widgets(self) -> Iterator[ipywidgets.Widget]:
        """The widgets of this explorer: those on the page, and those kept as attributes, which may not be on it yet."""
        yield from below(self)
        for value in list(vars(self).values()):
            for item in list(value.values()) if isinstance(value, dict) else [value]:
                if isinstance(item, ipywidgets.Widget):
                    yield item
