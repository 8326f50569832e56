"""Find transfer neurons with controls: run, stop, save, and pass the results on: `explore_detection`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
from matplotlib.figure import Figure

from tnkit import plots, storage
from tnkit.detection.detect import KINDS, detect_steps
from tnkit.detection.detections import Detection
from tnkit.detection.scores import DISTANCES, SCORES
from tnkit.errors import TnkitError, check_model
from tnkit.explorers.explorer import Explorer
from tnkit.explorers.parts import Places, controls, html_table, language_boxes
from tnkit.explorers.study import usual_top
from tnkit.models import packaged
from tnkit.models.load import load_model
from tnkit.models.model import Model
from tnkit.plots.style import KIND_COLOURS, KIND_NAMES, language_name, style
from tnkit.text.corpus import Corpus, load_corpus

_TYPES = {"both": KINDS, **{name: (kind,) for kind, name in KIND_NAMES.items()}}


class _Key(NamedTuple):
    language: str
    kind: str
    run: int


class DetectionExplorer(Explorer):
    """A form for `tn.detect_all`, and its results so far.

    Attributes:
        result: the detections by (language, kind), for example for `explore_neurons(explorer.result)`.
    """

    name = "detection"
    title = "Find transfer neurons"
    hint = (
        "Set the options, then press Run. Results appear as soon as they are ready; Stop keeps the finished ones. In "
        "code, the results are explorer.result; tn.Detection.load reads saved results."
    )

    def _build(  # type: ignore[override]
        self,
        *,
        model: Model,
        corpus: Corpus,
        hub: str,
        top: int,
        found: Mapping[tuple[str, str], Detection],
        results: str | Path,
    ) -> tuple[list[ipywidgets.Widget], list[ipywidgets.Widget]]:
        self.model, self.corpus, self.hub, self.results = model, corpus, hub, Path(results)
        self.result: dict[tuple[str, str], Detection] = dict(found)
        self._runs: dict[tuple[str, str], int] = dict.fromkeys(found, 0)
        self._run, self._stopped, self._running = 0, False, False
        others = [language for language in corpus.languages if language != hub]
        self.source = ipywidgets.Combobox(
            value=model.name,
            options=sorted({model.name, *packaged.MODELS}),
            description="Model",
            placeholder="a packaged name, a Hub id, or a folder",
            continuous_update=False,
            layout={"width": "330px"},
        )
        self.chosen = language_boxes(others, ticked=others[:1])
        self.types = ipywidgets.Dropdown(options=list(_TYPES), description="Type")
        self.distance = ipywidgets.Dropdown(options=DISTANCES, description="Distance")
        self.score = ipywidgets.Dropdown(options=SCORES, description="Score")
        self.top = ipywidgets.BoundedIntText(value=top, min=1, max=sum(model.widths), description="Top")
        self.position = ipywidgets.Dropdown(options=_positions(model), description="Token")
        self.own_layers = ipywidgets.Checkbox(
            value=True, description="Each type's default layers (early, late)", indent=False
        )
        self.layers = ipywidgets.IntRangeSlider(
            value=(0, model.n_layers - 1), min=0, max=model.n_layers - 1, description="Layers", disabled=True
        )
        # linked in the browser, so that it works at once even while the kernel is busy
        self._link = ipywidgets.jslink((self.own_layers, "value"), (self.layers, "disabled"))
        self._build_buttons()
        if not self.result:
            for _ in self._detecting():
                pass
        self._list()
        rows = [
            controls(self.source, self.types, self.score),
            controls(ipywidgets.Label("Languages"), *self.chosen.values()),
            controls(self.distance, self.top, self.position),
            controls(self.layers, self.own_layers),
            controls(self.start, self.stop, self.progress),
            controls(self.view),
        ]
        return rows, [self.listed, self.save_results]

    def _build_buttons(self) -> None:
        """Make the controls that run a detection, show its results and save them."""
        self.start = ipywidgets.Button(description="Run", icon="play", button_style="primary", tooltip="find neurons")
        self.stop = ipywidgets.Button(
            description="Stop", icon="stop", disabled=True, tooltip="stop and keep the finished results"
        )
        self.start.on_click(lambda _: self._act(self._begin))
        self.stop.on_click(lambda _: self._halt())
        self.progress = ipywidgets.IntProgress(description="Progress", layout={"width": "420px"})
        self.view = ipywidgets.Dropdown(description="Show")
        self.view.observe(self._refresh, "value")
        self.listed = ipywidgets.HTML()
        self.save_results = ipywidgets.Button(
            description="Save results", icon="folder-open", tooltip=f"save every detection in {self.results}"
        )
        self.save_results.on_click(lambda _: self._act(self._save_results))

    def _begin(self) -> None:
        if self._running:
            raise TnkitError("a detection is already running; press Stop first")
        self._set_running(True)
        self._in_steps(self._detecting())

    def _set_running(self, running: bool) -> None:
        self._running = self.start.disabled = running
        self.stop.disabled = not running

    def _halt(self) -> None:
        self._stopped = True

    def _detecting(self) -> Iterator[str]:
        """Detect with the controls' values, batch by batch."""
        languages = [language for language, box in self.chosen.items() if box.value]
        self._stopped = False
        self._run += 1
        try:
            if not languages:
                raise TnkitError("select at least one language")
            if self.source.value != self.model.name:
                yield f"loading {self.source.value}"
                self.model = load_model(self.source.value)
                self.layers.max = self.model.n_layers - 1
                self.top.max = sum(self.model.widths)
                self.position.options = _positions(self.model)
            first, last = self.layers.value
            for step in detect_steps(
                self.model,
                self.corpus,
                languages,
                _TYPES[self.types.value],
                hub=self.hub,
                top=self.top.value,
                distance=self.distance.value,
                score=self.score.value,
                position=self.position.value,
                layers=None if self.own_layers.value else range(first, last + 1),
                cache=True,
            ):
                self.progress.max, self.progress.value = step.total, step.done
                for detection in step.found:
                    self.result[detection.language, detection.kind] = detection
                    self._runs[detection.language, detection.kind] = self._run
                if step.found and self.view.options:
                    self._list()
                yield f"{language_name(step.language)}: {step.done} of {step.total} sentences"
                if self._stopped:
                    break
        finally:
            self._set_running(False)
        yield "stopped; finished results are kept" if self._stopped else f"done: {self.progress.value} sentences"

    def _list(self) -> None:
        """List the results in the "Show" control and the table, and redraw if the shown result is a new one."""
        options = [
            (f"{language_name(language)} {KIND_NAMES[kind]}", (language, kind)) for language, kind in self.result
        ]
        chosen = self.view.value
        with self._quietly():
            self.view.options = options
            self.view.value = chosen if chosen in self.result else options[0][1]
        rows = []
        for name, key in options:
            neurons, scores = self.result[key].neurons, self.result[key].scores
            layers = f"{scores.layers[0]} to {scores.layers[-1]}"
            ends = [f"{neurons.scores[rank]:+z.4g}" for rank in (0, -1)]
            rows.append([name, str(len(neurons)), f"{scores.score} {scores.distance}", layers, *ends])
        heads = ("", "neurons", "score", "layers", "highest score", "lowest score")
        self.listed.value = f"<div class='tn-sentences'>{html_table(heads, rows)}</div>"
        if self._shown is not None:
            self._turn_to(self._key())

    def _save_results(self) -> None:
        folders = {key: self.results / "-".join(map(storage.file_name, key)) for key in self.result}
        with storage.together():
            saved = [str(self.result[key].save(folder)) for key, folder in folders.items()]
        self._say("saved " + ", ".join(saved))

    def _key(self) -> _Key:
        language, kind = self.view.value
        return _Key(language, kind, self._runs[language, kind])

    def _draw(self, key: _Key) -> tuple[Figure, str, Places, list[int]]:
        detection = self.result[key.language, key.kind]
        kinds = {kind: self.result[key.language, kind].neurons for kind in KINDS if (key.language, kind) in self.result}
        name = f"{language_name(key.language)} {KIND_NAMES[key.kind]}"
        with style():
            figure = Figure(figsize=(8.4, 3.5))
            figure.set_layout_engine("none")
            where = figure.add_axes((0.075, 0.15, 0.41, 0.73))
            title, n_layers = f"{language_name(key.language)} transfer neurons", detection.neurons.shape[0]
            plots.neurons_by_layer(kinds, n_layers=n_layers, title=title, ax=where)
            where.locator_params(axis="x", nbins=9)
            scores = figure.add_axes((0.57, 0.15, 0.41, 0.73))
            detection.scores.plot(scores, chosen=detection.neurons, colour=KIND_COLOURS[key.kind])
            scores.set_title(plots.literal(f"scores, {name}"))
        return figure, f"{name} neurons by layer, and the distribution of scores", [], []

    def _values(self) -> dict[str, Any]:
        language, kind = self.view.value
        detection = self.result[language, kind]
        return {
            "language": language,
            "type": KIND_NAMES[kind],
            "distance": detection.scores.distance,
            "score": detection.scores.score,
            "position": detection.scores.provenance["position"],
            "top": len(detection.neurons),
        }

    def _provenance(self) -> Any:
        return self.result[self.view.value].neurons.provenance


def _positions(model: Model) -> list[tuple[str, str]]:
    """The token positions that a model can be read at, as (label, position)."""
    names = {"last": "last token", "last_word": "last word", "mean": "mean over tokens", "end": "end of the template"}
    return [(name, position) for position, name in names.items() if position != "end" or model.template]


def explore_detection(
    model: Model | str = "gemma-3-270m",
    corpus: Corpus | str = "everyday",
    *,
    hub: str = "en",
    top: int | None = None,
    found: Mapping[tuple[str, str], Detection] | None = None,
    results: str | Path = "detections",
    folder: str = "figures",
) -> DetectionExplorer:
    """Explore detection: set model, languages, type, distance, layers and set size, then run, stop and save.

    It opens with the first language's neurons unless `found` has detections.

    Args:
        model: from `load_model`, or a name that it accepts.
        corpus: a `Corpus`, or a name that `load_corpus` accepts; neurons are found in its training split.
        hub: the language whose space is taken as the shared one.
        top: the initial number of neurons in a set (default: 300, or a tenth of a small model's).
        found: earlier detections to start with.
        results: the folder that "Save results" writes to, one folder per detection.
        folder: where pictures are saved.

    Returns:
        An `Explorer`: a widget with `figure()`, `save()` and `parameters()`; `result` has the detections.

    Raises:
        TnkitError: for an unknown model or corpus, or a corpus without the hub.

    >>> from tnkit.testing import tiny_model, tiny_corpus
    >>> explorer = explore_detection(tiny_model(), tiny_corpus())
    >>> explorer.distance.value = "euclidean"
    >>> explorer.start.click()
    >>> explorer.result["it", "type1"].scores.distance
    'euclidean'
    """
    model = load_model(model) if isinstance(model, str) else model
    check_model(model)
    corpus = load_corpus(corpus) if isinstance(corpus, str) else corpus
    if hub not in corpus.languages or len(corpus.languages) < 2:
        raise TnkitError(f"the corpus has {', '.join(corpus.languages)}; it needs the hub {hub!r} and another language")
    options: dict[str, Any] = {"hub": hub, "top": top or usual_top(model), "found": found or {}, "results": results}
    return DetectionExplorer(model=model, corpus=corpus, folder=folder, **options)
