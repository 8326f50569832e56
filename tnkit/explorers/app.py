"""The explorer with one state and four views, for notebooks and as a page without a kernel: `Explorer`."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import anywidget
import traitlets
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.detection.detections import Detection
from tnkit.errors import TnkitError
from tnkit.explorers.chunks import Chunks
from tnkit.explorers.page import computing_page, script, sheet, write_page
from tnkit.explorers.prompt_rows import SCOPES
from tnkit.explorers.still import Still, png_of
from tnkit.explorers.study import CONTROLS, Study
from tnkit.models.load import load_model
from tnkit.plots.looks import KIND_NAMES

SEEDS = 3
VIEWS = ("map", "neurons", "evidence", "detection")
_FREE: tuple[str, ...] = (
    "shown",
    "morph",
    "colour",
    "hidden",
    "joined",
    "measure",
    "fixed",
    "ticked",
    "neuron",
    "count",
    "group",
)
_FREE += ("own", "prompt", "steering", "away", "added", "strength")  # what the browser checks itself
_KEPT = ("shown", "morph", "colour", "measure", "fixed", "own", "prompt", "steering", "strength")  # in any study
_FOUND = "found|"  # begins the key of a detection, before its options
_log = logging.getLogger("tnkit")


class Explorer(Still, anywidget.AnyWidget):
    """The explorer that `explore` opens: layers, map, neurons, evidence and detection, all showing one choice.

    Attributes:
        state: what is shown: view, layer, language, kind, size, value, control and more; set it to turn the views.
        errors: the error messages, oldest first.

    >>> from tnkit.explorers.views import explore
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explorer = explore(tiny_model(), tiny_corpus(), layer=1)
    >>> explorer.state["layer"], explorer.errors
    (1, [])
    """

    _esm = script() + "\nexport default { render };\n"
    _css = sheet()
    about = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    _used: ClassVar["WeakSet[Explorer]"] = WeakSet()  # those with work
    _asked = 0.0  # when the browser last asked for something

    def __init__(
        self, study: Study, *, seeds: int, folder: str | Path, results: str | Path = "detections", **state: Any
    ) -> None:
        self.folder, self.results = Path(folder), Path(results)
        self._chunks: Chunks | None = Chunks(study, seeds=seeds)
        self.errors: list[str] = []
        self._wanted: list[str] = []
        self._begun: dict[str, Iterator[str]] = {}
        self._task: asyncio.Task[None] | None = None
        self._weights = study.weights()
        about = self._about()
        super().__init__(about=about, state=self._checked(state, about))
        self.on_msg(self._hear)
        self.observe(lambda _: None if self._wanted else self._leave(), "state")

    @property
    def chunks(self) -> Chunks:
        """What the views show.

        Raises:
            TnkitError: once the explorer is closed.
        """
        if self._chunks is None:
            raise TnkitError("this explorer is closed; open a new one")
        return self._chunks

    @property
    def study(self) -> Study:
        """The model, the corpus, and their results."""
        return self.chunks.study

    @property
    def result(self) -> dict[tuple[str, str], Detection]:
        """The detections so far, by (language, kind)."""
        return dict(self.study.found)

    def _about(self) -> dict[str, Any]:
        """What the browser needs to know about the study, including options of `explore` other than the usual ones."""
        given, usual = self.study.options(), Study.usual(self.study.corpus)
        given, usual = given | {"seeds": self.chunks.seeds}, usual | {"seeds": SEEDS}
        options = [f"{name}={value!r}" for name, value in given.items() if value != usual[name]]
        return {**self.chunks.about(), "options": options}

    def _checked(self, state: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """The state that is asked for; a value that the study does not have is refused."""
        choices, defaults = self._choices(about)
        if unknown := [name for name in state if name not in defaults and name not in _FREE]:
            raise TnkitError(f"an explorer has no {unknown[0]!r}; it has {', '.join([*defaults, *sorted(_FREE)])}")
        for name, allowed in choices.items():
            if (value := state.get(name, defaults[name])) not in allowed:
                raise TnkitError(f"{name}={value!r} must be one of {', '.join(map(str, allowed))}")
        return {**defaults, **state}

    def _choices(self, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values that a state can have, and those that it has at first."""
        choices: dict[str, Any] = {"view": VIEWS, "language": self.study.others, "kind": tuple(KIND_NAMES)}
        choices |= {"control": CONTROLS, "value": tuple(about["values"]), "layer": range(about["layers"])}
        choices |= {"scope": SCOPES}
        defaults = {"view": "map", "layer": about["layers"] // 2, "language": self.study.others[0], "kind": "type1"}
        defaults |= {"size": about["size"], "value": about["values"][0], "control": CONTROLS[0], "scope": SCOPES[0]}
        return choices, defaults

    # What the browser asks for.

    def _hear(self, _: Any, message: Mapping[str, Any], __: Any) -> None:
        asked = message.get("ask")
        try:
            if asked == "cancel":
                cancelled, self._wanted = self._wanted, []
                self.send({"done": True, "cancelled": cancelled})
            elif asked == "save":
                self.send({"said": f"saved {', '.join(map(str, self.save_results()))}"})
            elif asked in ("chunks", "found"):
                self._want(message)
        except Exception as error:
            self._fail(error)

    def _want(self, message: Mapping[str, Any]) -> None:
        """Note what is wanted: what is looked at before a detection, which goes on when it is done."""
        self._asked = time.monotonic()
        if self._weights != self.study.weights():
            self._weights = self.study.weights()
            self._begun.clear()
            self.send({"forget": True})
        running = [key for key in self._wanted if key.startswith(_FOUND)]
        if message["ask"] == "found":
            self._wanted = [*self._wanted, *([] if running else [_FOUND + json.dumps(message["options"])])]
        else:
            self._wanted = [*message["keys"], *running]
        self._used.add(self)
        self._start()

    def _start(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            for step in self._steps():
                self.send({"status": step})
            return
        if not self._working():
            self._task = loop.create_task(self._work())

    async def _work(self) -> None:
        """Compute what is wanted, a step between two messages; the explorer that was used last goes first."""
        for step in self._steps():
            self.send({"status": step})
            await asyncio.sleep(0.002)
            while any(other._working() and other._asked > self._asked for other in self._used):
                await asyncio.sleep(0.05)

    def _working(self) -> bool:
        return self._task is not None and not self._task.done()

    def _steps(self) -> Iterator[str]:
        """Do the first of what is wanted, step by step; what comes before it meanwhile is done first."""
        while self._wanted:
            key = self._wanted[0]
            if key not in self._begun:
                self._begun[key] = self._computing(key)
            try:
                yield next(self._begun[key])
                continue
            except StopIteration:
                if not key.startswith(_FOUND):
                    self.send({"key": key, "chunk": self.chunks.now(key)})
            except Exception as error:
                self._fail(error, key)
            self._wanted = [other for other in self._wanted if other != key]
            self._begun = {kept: self._begun[kept] for kept in self._wanted if kept in self._begun}
        self._begun.clear()
        self._used.discard(self)
        self.send({"done": True})
        self._leave()

    def _computing(self, key: str) -> Iterator[str]:
        if key.startswith(_FOUND):
            return self._finding(json.loads(key.removeprefix(_FOUND)))
        return self.chunks.computing(key)

    def _finding(self, options: dict[str, Any]) -> Iterator[str]:
        """Detect with other options in a study of its own, which becomes the one that is explored."""
        name, model = options.pop("model", self.study.model.name), None
        if name != self.study.model.name:
            yield f"loading {name}"
            model = load_model(name)
        if layers := options.pop("layers", None):
            options["layers"] = range(layers[0], layers[1] + 1)
        study = self.study.again(model=model, **options)
        yield from study.detecting(study.others)
        self._take(study)

    def _take(self, study: Study) -> None:
        """Explore another study, with the same choices as far as it has them."""
        self._chunks = Chunks(study, seeds=self.chunks.seeds)
        self._weights = study.weights()
        about = self._about()
        choices, defaults = self._choices(about)
        kept = {name: value for name, value in self.state.items() if value in choices.get(name, ())}
        kept |= {name: self.state[name] for name in _KEPT if name in self.state}
        with self.hold_sync():
            self.about, self.state = about, {**defaults, **kept}

    def _fail(self, error: Exception, key: str = "") -> None:
        text = str(error)
        if not isinstance(error, TnkitError):
            text = f"unexpected {type(error).__name__}: {error}; the kernel's log has the traceback"
            _log.exception("the explorer failed", exc_info=error)
        self.errors.append(text)
        self.send({"failed": text, "key": key})

    # What is shown, without a browser.

    def figure(self) -> "plots.Figure":
        """The view as a matplotlib figure."""
        from tnkit.explorers.pictures import figure_of  # with matplotlib, for which the browser need not wait

        return figure_of(self.chunks, self.state)

    def save(self, path: str | Path | None = None) -> Path:
        """Save `figure()` with the state in its metadata (default: in the explorer's folder, named after the state)."""
        names = ("view", "layer", "language", "kind")
        stem = "-".join(f"{name} {self.state[name]}" if name == "layer" else str(self.state[name]) for name in names)
        target = self.folder / f"explore-{stem.replace(' ', '-')}.png" if path is None else Path(path)
        about = {"model": self.study.model.provenance, "corpus": self.study.corpus.name, **self.study.options()}
        metadata = storage.without_folders({"state": self.state, **about, "versions": storage.versions()})
        return plots.save_figure(self.figure(), target, about=str(metadata))

    def save_results(self, folder: str | Path | None = None) -> list[Path]:
        """Save every detection so far in a folder of its own, for `tn.Detection.load`.

        Args:
            folder: where (default: the folder for results that the explorer was opened with).

        Returns:
            The folders.

        Raises:
            TnkitError: where nothing has been found yet, or the folder is not writable.
        """
        if not self.study.found:
            raise TnkitError("no neurons have been found yet; open a view that shows some, or run a detection")
        target = self.results if folder is None else Path(folder)
        with storage.together():
            return [
                detection.save(target / "-".join(map(storage.file_name, key)))
                for key, detection in self.study.found.items()
            ]

    def export(self, path: str | Path = "page.html", *, progress: bool = True) -> Path:
        """Write one HTML file with all views that opens without a kernel or the network.

        It holds every language and type with the usual number of neurons off, and their evidence; on two CPU cores,
        the packaged model takes minutes.

        Args:
            path: of the file.
            progress: show a bar.

        Returns:
            The path.

        Raises:
            TnkitError: where the file cannot be written.
        """
        with tqdm(total=0, desc="page", disable=not progress, leave=False) as bar:
            for done, total, step in computing_page(self.chunks):
                bar.total, bar.n = total, done
                bar.set_postfix_str(step)
        return write_page(self.chunks, path, state=self.state)

    def _hasten(self) -> None:
        """Send the planes of the layers while the cell runs. If that fails, the browser asks, and shows the error."""
        with suppress(Exception):
            self.send({"key": "plane", "chunk": self.chunks.now("plane")})

    def _picture(self) -> bytes:
        """The view, or the map while the view is not computed: a notebook does not wait for its picture."""
        from tnkit.explorers.pictures import figure_of, needed_by

        ready = self.chunks.kept(needed_by(self.state)) is not None
        return png_of(figure_of(self.chunks, self.state if ready else {**self.state, "view": "map"}))

    def __repr__(self) -> str:
        if self._chunks is None:
            return "Explorer(closed)"
        state = ", ".join(f"{name}={self.state.get(name)!r}" for name in ("view", "layer", "language", "kind"))
        return f"Explorer({state})"

    def close(self) -> None:
        """Stop all work, remove the explorer from the page, and release the model and all results."""
        self._wanted, self._chunks = [], None
        self._begun.clear()
        self._used.discard(self)
        self._replace = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        super().close()
