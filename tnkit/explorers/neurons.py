"""Which neurons were found, where they are, what activates each one and what it writes: `explore_neurons`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from tnkit import plots
from tnkit.detection.detections import Detection
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, check_model
from tnkit.explorers.explorer import Explorer
from tnkit.explorers.parts import Places, Table, controls
from tnkit.explorers.study import Study
from tnkit.measures.cards import NeuronCard, neuron_card
from tnkit.measures.specificity.table import MEASUREMENTS
from tnkit.models.model import Model
from tnkit.plots.style import KIND_NAMES, language_name, style
from tnkit.text.corpus import Corpus

_AHEAD = 6  # rows whose pictures are drawn ahead on each side of the chosen one


class _Key(NamedTuple):
    language: str
    beside: str
    kind: str
    neuron: tuple[int, int]


class NeuronsExplorer(Explorer):
    """A language's neurons beside another language's, and one neuron in detail."""

    name = "neurons"
    title = "Transfer neurons one by one"
    hint = (
        "Select a neuron in the table (click, or press Tab and the arrow keys; column heads sort), or enter its layer "
        "and number. Below: the sentences that activate it most, with the token read marked, and what it writes."
    )

    def _build(  # type: ignore[override]
        self, *, found: Mapping[tuple[str, str], Detection], top: int | None
    ) -> tuple[list[ipywidgets.Widget], list[ipywidgets.Widget]]:
        self._top = top
        self._take(found)
        self._cards: dict[tuple[int, int], NeuronCard] = {}
        languages = list(dict.fromkeys(language for language, _ in found))
        named = [(language_name(language), language) for language in languages]
        kinds = [(KIND_NAMES[kind], kind) for kind in KIND_NAMES if any(key[1] == kind for key in found)]
        layers, width = next(iter(found.values())).neurons.shape
        self.language = ipywidgets.Dropdown(options=named, description="Language")
        self.beside = ipywidgets.Dropdown(options=named, value=languages[-1], description="Compare with")
        self.kind = ipywidgets.Dropdown(options=kinds, description="Type")
        self.layer = ipywidgets.BoundedIntText(min=0, max=layers - 1, description="Layer")
        self.number = ipywidgets.BoundedIntText(min=0, max=width - 1, description="Neuron")
        digits = [significant for significant, _ in MEASUREMENTS.values()]
        self.table = Table(columns=["rank", "layer", "neuron", "score", *MEASUREMENTS], digits=[0, 0, 0, 3, *digits])
        self.card = ipywidgets.HTML()
        self._fill()
        for control in (self.language, self.kind):
            control.observe(lambda _: self._act(self._fill_and_refresh), "value")
        self.table.observe(lambda _: self._act(self._choose), "chosen")
        for control in (self.beside, self.layer, self.number):
            control.observe(self._refresh, "value")
        chosen = controls(self.language, self.beside, self.kind)
        return [chosen, self.table, controls(self.layer, self.number)], [self.card]

    @property
    def neurons(self) -> NeuronSet:
        """The neurons in the table."""
        return self._sets[self.language.value, self.kind.value]

    def _take(self, found: Mapping[tuple[str, str], Detection]) -> None:
        self.found = found
        self._sets = {
            key: detection.scores.top(self._top or len(detection.neurons)) for key, detection in found.items()
        }

    def _renew(self) -> None:
        if self.study:
            self._cards.clear()
            self.study.detect(self.study.others)
            self._take({key: self.study.found[key] for key in self.found})
            self._fill()

    def _fill(self) -> None:
        """Fill the table with the neurons of the selected language and type, and select the first one."""
        if (self.language.value, self.kind.value) not in self._sets:
            raise TnkitError(
                f"no {KIND_NAMES[self.kind.value]} neurons of {self.language.value} were given; select another type"
            )
        neurons = self.neurons
        measured = [self.study.per_neuron(measure) if self.study else None for _, measure in MEASUREMENTS.values()]
        rows = [
            [rank, *neuron, float(score), *(None if values is None else float(values[neuron]) for values in measured)]
            for rank, (neuron, score) in enumerate(zip(neurons, neurons.scores, strict=True), 1)
        ]
        with self.table.hold_sync():
            self.table.label = f"{KIND_NAMES[self.kind.value]} neurons of {language_name(self.language.value)}"
            self.table.chosen, self.table.rows = 0, rows
        self._set_neuron(*neurons[0])

    def _fill_and_refresh(self) -> None:
        self._fill()
        self._turn_to(self._key())

    def _choose(self) -> None:
        self._set_neuron(*self.neurons[self.table.chosen])
        self._turn_to(self._key())

    def _set_neuron(self, layer: int, number: int) -> None:
        with self._quietly():
            self.layer.value, self.number.value = layer, number

    def _key(self) -> _Key:
        neuron = (self.layer.value, self.number.value)
        return _Key(self.language.value, self.beside.value, self.kind.value, neuron)

    def _prepare(self, key: _Key) -> Iterator[str]:
        if self.study and key.neuron not in self._cards:
            yield "looking up the sentences that activate the neuron"
            captured = self.study.all_captured("train", progress=False)
            self._cards[key.neuron] = neuron_card(self.study.model, captured, self.study.texts["train"], key.neuron)

    def _near(self, key: _Key) -> Iterable[_Key]:
        pairs = self.neurons.pairs
        row = pairs.index(key.neuron) if key.neuron in pairs else 0
        for step in range(1, _AHEAD + 1):
            for near in (row + step, row - step):
                if 0 <= near < len(pairs):
                    yield key._replace(neuron=pairs[near])

    def _draw(self, key: _Key) -> tuple[Figure, str, Places, list[int]]:
        kind, both = KIND_NAMES[key.kind], dict.fromkeys((key.language, key.beside))
        shown = [language for language in both if (language, key.kind) in self._sets]
        layer, number = key.neuron
        with style():
            figure = Figure(figsize=(8.2, 5.9))
            figure.set_layout_engine("none")
            where = figure.add_axes((0.085, 0.57, 0.39, 0.36))
            sets = {language: self._sets[language, key.kind] for language in shown}
            plots.neurons_by_layer(sets, n_layers=self.neurons.shape[0], ax=where)
            where.set_title(f"{kind} neurons by layer")
            where.locator_params(axis="x", nbins=9)
            where.axvline(layer, color="#555555", lw=1, ls="--")
            scores = {language: self.found[language, key.kind].scores for language in shown}
            spread = figure.add_axes((0.58, 0.57, 0.39, 0.36))
            values = {language: one.values.numpy() for language, one in scores.items()}
            plots.score_distributions(values, distance=scores[key.language].distance, title="all scores", ax=spread)
            score = float(scores[key.language].values[layer, number])
            if np.isfinite(score):
                spread.axvline(score, color="#555555", lw=1, ls="--")
            violins = figure.add_axes((0.085, 0.07, 0.885, 0.35))
            title = f"layer {layer}, neuron {number}"
            if self.study:
                self._cards[key.neuron].plot(violins)
                values = {
                    name: self.study.per_neuron(measure)[layer, number] for name, (_, measure) in MEASUREMENTS.items()
                }
                title += ": " + ", ".join(f"{name} {value:.2f}" for name, value in values.items())
            else:
                violins.set_axis_off()
                title += ": give a model and a corpus to see what activates it"
            violins.set_title(title + ("" if np.isnan(score) else f", score {score:+z.4f}"))
        names = " and ".join(map(language_name, shown))
        alt = f"{kind} neurons of {names} by layer, their scores, and the activations of layer {layer}, neuron {number}"
        return figure, alt, [], []

    def _after(self, key: _Key) -> None:
        if not self.study:
            return
        self.card.value = f"<div class='tn-sentences'>{self._cards[key.neuron]._repr_html_()}</div>"

    def _values(self) -> dict[str, Any]:
        return {
            "language": self.language.value,
            "beside": self.beside.value,
            "type": KIND_NAMES[self.kind.value],
            "layer": self.layer.value,
            "neuron": self.number.value,
        }

    def _provenance(self) -> Any:
        return self.found[self.language.value, self.kind.value].scores.provenance


def explore_neurons(
    source: Model | Detection | Mapping[tuple[str, str], Detection],
    corpus: Corpus | None = None,
    *,
    languages: Sequence[str] | None = None,
    hub: str = "en",
    sentences: int = 256,
    top: int | None = None,
    position: str = "last",
    suffix: str | None = None,
    found: Mapping[tuple[str, str], Detection] | None = None,
    folder: str = "figures",
) -> NeuronsExplorer:
    """Explore transfer neurons: a table, their layers, what activates each one and what it writes.

    Args:
        source: a model, whose neurons are detected first unless `found` has them; or detections, such as
            `tn.detect_all(...)`, with which the explorer cannot show what activates a neuron.
        corpus: for a model: its training sentences are used to find neurons and to show what activates them.
        languages: which languages (default: all).
        hub: the language whose space counts as the shared one.
        sentences: the maximum number of sentences per language.
        top: neurons per set (default: as many as each detection has).
        position, suffix: for a model: which token is read, as in `capture`.
        found: earlier detections, by (language, kind).
        folder: where pictures are saved.

    Returns:
        An `Explorer`: a widget with `figure()`, `save()` and `parameters()`; `neurons` is the set in the table.

    Raises:
        TnkitError: if there are no detections, or for unknown languages.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> explorer = explore_neurons(tn.detect_all(tiny_model(), texts, top=20, progress=False))
    >>> explorer.table.chosen = 4
    >>> (explorer.layer.value, explorer.number.value) == explorer.neurons[4]
    True
    """
    if isinstance(source, Model):
        if corpus is None:
            raise TnkitError("a model needs a corpus: explore_neurons(model, corpus)")
        reading = {"position": position, "suffix": suffix}
        study = Study.of(source, corpus, found=found, languages=languages, hub=hub, sentences=sentences, **reading)
        study.detect(study.others)
        study.all_captured("train")
        shown = {key: detection for key, detection in study.found.items() if key[0] in study.others}
        return NeuronsExplorer(study=study, found=shown, top=top, folder=folder)
    if isinstance(source, Detection):
        source = {(source.language, source.kind): source}
    if source is not None and not isinstance(source, Mapping):
        check_model(source)
    if not source:
        raise TnkitError("there are no detections to explore; find some with tn.detect_all(model, corpus)")
    return NeuronsExplorer(found=source, top=top, folder=folder)
