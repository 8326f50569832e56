"""One explorer with one state and four views, for notebooks and as a page without a kernel: `explore`."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.detection.detections import Detection
from tnkit.errors import TnkitError
from tnkit.explorers.chunks import ROLES, Chunks
from tnkit.explorers.page import computing_page, script, sheet, write_page
from tnkit.explorers.still import Still, png_of
from tnkit.explorers.study import CONTROLS, Study
from tnkit.models.model import Model
from tnkit.plots.style import KIND_NAMES, language_name, save_figure
from tnkit.text.corpus import Corpus

VIEWS = ("map", "neurons", "evidence", "detection")
_log = logging.getLogger("tnkit")


class Explorer(Still, anywidget.AnyWidget):  # type: ignore[misc]
    """The explorer that `explore` opens: layers, map, neurons, evidence and detection, all showing one choice.

    Attributes:
        state: what is shown: view, layer, language, kind, size, value, control and more; set it to turn the views.
        errors: the error messages, oldest first.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explorer = explore(tiny_model(), tiny_corpus(), layer=1)
    >>> explorer.state["layer"], explorer.errors
    (1, [])
    """

    _esm = script() + "\nexport default { render };\n"
    _css = sheet()
    about = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, study: Study, *, seeds: int, options: Sequence[str], folder: Path, **state: Any) -> None:
        self.study, self.folder = study, folder
        self.chunks = Chunks(study, seeds=seeds)
        self.errors: list[str] = []
        self._wanted: list[str] = []
        self._task: asyncio.Task[None] | None = None
        about = {**self.chunks.about(), "options": list(options)}
        super().__init__(about=about, state=self._checked(state, about))
        self.on_msg(self._hear)
        self.observe(lambda _: None if self._wanted else self._leave(), "state")

    def _checked(self, state: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """The state that is asked for; a value that the study does not have is refused."""
        choices: dict[str, Any] = {"view": VIEWS, "language": self.study.others, "kind": tuple(KIND_NAMES)}
        choices |= {"control": CONTROLS, "value": tuple(about["values"]), "layer": range(about["layers"])}
        defaults = {"view": "map", "layer": about["layers"] // 2, "language": self.study.others[0], "kind": "type1"}
        defaults |= {"size": about["size"], "value": about["values"][0], "control": CONTROLS[0]}
        extra = {"shown", "morph", "colour", "hidden", "joined", "measure", "fixed", "ticked"}
        if unknown := [name for name in state if name not in defaults and name not in extra]:
            raise TnkitError(f"an explorer has no {unknown[0]!r}; it has {', '.join([*defaults, *sorted(extra)])}")
        for name, allowed in choices.items():
            if (value := state.get(name, defaults[name])) not in allowed:
                raise TnkitError(f"{name}={value!r} must be one of {', '.join(map(str, allowed))}")
        return {**defaults, **state}

    # What the browser asks for.

    def _hear(self, _: Any, message: Mapping[str, Any], __: Any) -> None:
        if message.get("ask") == "cancel":
            self._wanted = []
            self.send({"done": True, "failed": "cancelled; choose again to compute it"})
        elif message.get("ask") == "chunks":
            self._wanted = list(message["keys"])
            self._start()

    def _start(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            for step in self._steps():
                self.send({"status": step})
            return
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())

    async def _work(self) -> None:
        """Compute what is wanted, a step between two messages, so that the browser can change its mind."""
        for step in self._steps():
            self.send({"status": step})
            await asyncio.sleep(0.002)

    def _steps(self) -> Iterator[str]:
        while self._wanted:
            key = self._wanted[0]
            try:
                for step in self.chunks.computing(key):
                    yield step
                    if key not in self._wanted:
                        break
                else:
                    self.send({"key": key, "chunk": self.chunks.now(key)})
            except Exception as error:
                self._fail(error)
            self._wanted = [other for other in self._wanted if other != key]
        self.send({"done": True})
        self._leave()

    def _fail(self, error: Exception) -> None:
        text = str(error)
        if not isinstance(error, TnkitError):
            text = f"unexpected {type(error).__name__}: {error}; the kernel's log has the traceback"
            _log.exception("the explorer failed", exc_info=error)
        self.errors.append(text)
        self.send({"failed": text})

    # What is shown, without a browser.

    def figure(self) -> Figure:
        """The view as a matplotlib figure."""
        state, study = self.state, self.study
        if state["view"] == "map":
            figure = self._map()
        elif state["view"] == "evidence":
            names = ("language", "kind", "size", "value")
            measures = self.chunks.now("|".join(["evidence", *(str(state[name]) for name in names)]))["measures"]
            measure = measures.get(state.get("measure")) or next(iter(measures.values()))
            axes = plots.conditions(rows_of(measure), xlabel=measure["name"], title=self._title())
            figure = whole_figure(axes)
        else:
            self.chunks.now("sets")
            sets = {name: study.neurons(name, state["kind"]) for name in study.others}
            title = f"{KIND_NAMES[state['kind']]} neurons by layer"
            axes = plots.neurons_by_layer(sets, n_layers=study.model.n_layers, title=title)
            axes.axvline(state["layer"], color="#555555", lw=1, ls="--")
            figure = whole_figure(axes)
        plt.close(figure)
        return figure

    def _title(self) -> str:
        return f"{KIND_NAMES[self.state['kind']]} neurons of {language_name(self.state['language'])}"

    def _map(self) -> Figure:
        """The planes of what is shown, as far as it is computed."""
        state, study = self.state, self.study
        self.chunks.now("plane")
        planes, layer, panels = self.chunks.planes, state["layer"], {}
        visible = [name for name in study.languages if name not in state.get("hidden", ())]
        for role, name in ROLES.items():
            if role in state.get("shown", ("untouched",)):
                points = {code: self.chunks.points(role, code, state) for code in visible}
                if all(xy is not None for xy in points.values()):
                    panels[f"layer {layer}, {name}"] = points
        if not panels:
            panels[f"layer {layer}"] = {code: self.chunks.points("untouched", code, state) for code in visible}
        share = float(planes.explained[layer])
        stacked = {code: np.stack([np.asarray(xy[code])[layer] for xy in panels.values()]) for code in visible}
        explained = np.full((len(panels), 2), share)
        figure = plots.spaces(stacked, explained=explained, titles=list(panels), centroids=True)
        for number, axes in enumerate(figure.axes):
            axes.set(xlabel=f"the same plane, {share:.0%} of the variance" if not number else "", ylabel="")
        return figure

    def save(self, path: str | Path | None = None) -> Path:
        """Save `figure()` with the state in its metadata (default: in the explorer's folder, named after the state)."""
        names = ("view", "layer", "language", "kind")
        stem = "-".join(f"{name} {self.state[name]}" if name == "layer" else str(self.state[name]) for name in names)
        target = self.folder / f"explore-{stem.replace(' ', '-')}.png" if path is None else Path(path)
        metadata = storage.without_folders({"state": self.state, "versions": storage.versions()})
        return save_figure(self.figure(), target, about=str(metadata))

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

    def _picture(self) -> bytes:
        """The view, or the map while the view is not computed: a notebook does not wait for its picture."""
        state = self.state
        evidence = "|".join(["evidence", *(str(state[name]) for name in ("language", "kind", "size", "value"))])
        needed = {"map": "plane", "evidence": evidence}.get(state["view"], "sets")
        return png_of(self.figure() if needed == "plane" or self.chunks.kept(needed) is not None else self._map())

    def __repr__(self) -> str:
        state = ", ".join(f"{name}={self.state.get(name)!r}" for name in ("view", "layer", "language", "kind"))
        return f"Explorer({state})"

    def close(self) -> None:
        """Stop all work and remove the explorer from the page."""
        self._wanted = []
        self._replace = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        super().close()


def whole_figure(axes: Axes) -> Figure:
    """The figure that axes are in."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def rows_of(measure: Mapping[str, Any]) -> "pd.DataFrame":
    """The rows of an evidence chunk's measure at its chosen layer, indexed by condition."""
    place = measure["layers"].index(measure["chosen"]) if measure["chosen"] is not None else 0
    rows = {row["name"]: {name: row[name][place] for name in ("mean", "low", "high")} for row in measure["conditions"]}
    seeds = {row["name"]: row["seeds"] for row in measure["conditions"]}
    return pd.DataFrame.from_dict(rows, orient="index").assign(seeds=pd.Series(seeds))


def explore(
    model: Model,
    corpus: Corpus,
    *,
    view: str = "map",
    languages: Sequence[str] | None = None,
    hub: str = "en",
    sentences: int = 256,
    seeds: int = 3,
    position: str = "last",
    suffix: str | None = None,
    found: Mapping[tuple[str, str], Detection] | None = None,
    folder: str | Path = "figures",
    **state: Any,
) -> Explorer:
    """Explore languages, transfer neurons and what switching them off does, in one application with four views.

    The map shows test sentences in one plane for each layer, fitted to the untouched model and kept, so that states
    with neurons off move in the same picture. Evidence compares a set with its controls, only at layers from the first
    ablated one on, and at a layer that was chosen on training sentences. Views compute what they show when they are
    looked at; in a notebook, this can be cancelled.

    Args:
        model: from `load_model`.
        corpus: neurons are found in its training split; the map and the evidence are of its test split.
        view: "map", "neurons", "evidence" or "detection".
        languages: which languages (default: all).
        hub: the language whose space counts as the shared one.
        sentences: the maximum number per split.
        seeds: the number of draws of each random control.
        position, suffix: which token is read and ablated, as in `capture`.
        found: earlier detections, by (language, kind), such as `explore_detection(...).result`.
        folder: where pictures are saved.
        **state: what else is chosen, as "Copy as code" writes it: layer, language, kind, size, value, control, shown
            (of "untouched", "set" and "control"), morph, colour, hidden, measure, fixed, ticked.

    Returns:
        An `Explorer`: a widget with `figure()`, `save()` and `export()`, which writes a page without a kernel.

    Raises:
        TnkitError: for unknown languages, and for a state that the study does not have.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explore(tiny_model(), tiny_corpus(), view="evidence", language="ja", kind="type2")
    Explorer(view='evidence', layer=2, language='ja', kind='type2')
    """
    reading = {"position": position, "suffix": suffix}
    study = Study.of(model, corpus, found=found, languages=languages, hub=hub, sentences=sentences, **reading)
    given = {"languages": languages, "hub": hub, "sentences": sentences, "seeds": seeds, **reading}
    usual = {"languages": None, "hub": "en", "sentences": 256, "seeds": 3, "position": "last", "suffix": None}
    options = [f"{name}={value!r}" for name, value in given.items() if value != usual[name]]
    return Explorer(study, seeds=seeds, options=options, folder=Path(folder), view=view, **state)
