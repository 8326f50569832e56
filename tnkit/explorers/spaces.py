"""Languages in the residual stream, layer by layer, with neurons on and off: `explore_spaces`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnkit import plots
from tnkit.captures.activations import Activations
from tnkit.detection.detections import Detection
from tnkit.errors import TnkitError, check_model
from tnkit.explorers.explorer import Explorer
from tnkit.explorers.parts import Places, controls, language_boxes
from tnkit.explorers.study import NOTHING, OFFS, Study
from tnkit.measures.geometry import CentroidDistances, PrincipalComponents, centroid_distances, pca
from tnkit.models.model import Model
from tnkit.plots.style import PALETTE, language_name, style
from tnkit.text.corpus import Corpus

_PAIRS = {"1 and 2": (0, 1), "1 and 3": (0, 2), "2 and 3": (1, 2)}


class _Key(NamedTuple):
    layer: int
    off: str
    languages: tuple[str, ...]
    pair: str
    joined: bool


class SpacesExplorer(Explorer):
    """Two principal components of a layer, and the cosines of the languages' centroids there."""

    name = "spaces"
    title = "Languages in the residual stream, layer by layer"
    hint = (
        "Each point is a sentence, read at one token. Hover over a point to read the sentence; click it to see its "
        "translations. With the keyboard: press Tab to reach the picture, then the arrow keys and Enter."
    )

    def _build(  # type: ignore[override]
        self, *, states: Mapping[str, Activations], texts: Mapping[str, Sequence[str]]
    ) -> tuple[list[ipywidgets.Widget], list[ipywidgets.Widget]]:
        study, first = self.study, next(iter(states.values()))
        self.states, self.languages = dict(states), tuple(states)
        self._count = len(first)
        self._kept: dict[Any, Any] = {}
        layers = first.layers
        start = layers[len(layers) // 2]
        self.layer = ipywidgets.SelectionSlider(options=layers, value=start, description="Layer")
        play = ipywidgets.Play(min=0, max=len(layers) - 1, value=layers.index(start), interval=600)
        self._link = ipywidgets.jslink((play, "value"), (self.layer, "index"))
        self.off = ipywidgets.Dropdown(
            options=OFFS if study else [NOTHING], description="Neurons off", disabled=study is None
        )
        self.pair = ipywidgets.Dropdown(options=list(_PAIRS), description="Components")
        self.joined = ipywidgets.Checkbox(description="Lines between translations", indent=False)
        self.shown = language_boxes(self.languages, ticked=self.languages)
        for control in (self.layer, self.off, self.pair, self.joined, *self.shown.values()):
            control.observe(self._refresh, "value")
        self.picture.labels = [
            f"{language_name(language)}: {text}"
            for language in self.languages
            for text in (texts[language] if texts else [f"sentence {number}" for number in range(self._count)])
        ]
        self.picture.aligned = self._count
        languages = controls(ipywidgets.Label("Languages"), *self.shown.values())
        return [controls(self.layer, play), controls(self.off, self.pair, self.joined), languages], []

    def _key(self) -> _Key:
        languages = self._languages()
        if len(languages) < 2:
            raise TnkitError("select at least two languages")
        return _Key(self.layer.value, self.off.value, languages, self.pair.value, self.joined.value)

    def _prepare(self, key: _Key) -> Iterator[str]:
        if self.study and key.off != NOTHING:
            yield from self.study.switching_off(key.off, key.languages)
        if (key.off, key.languages) not in self._kept:
            self._kept[key.off, key.languages] = centroid_distances(self._states(key))
        if (key.off, key.languages, key.layer) not in self._kept:
            components = pca(self._states(key), layers=[key.layer], components=min(3, self._count))
            self._kept[key.off, key.languages, key.layer] = components

    def _renew(self) -> None:
        self._kept.clear()
        self.states = self.study.all_captured("test") if self.study else self.states

    def _states(self, key: _Key) -> dict[str, Activations]:
        off = self.study.switched_off(key.off, key.languages) if self.study and key.off != NOTHING else {}
        return {language: off.get(language, self.states[language]) for language in key.languages}

    def _near(self, key: _Key) -> Iterable[_Key]:
        layers = self.layer.options
        here = layers.index(key.layer)
        for layer in sorted(layers, key=lambda layer: abs(layers.index(layer) - here)):
            yield key._replace(layer=layer)

    def _draw(self, key: _Key) -> tuple[Figure, str, Places, list[int]]:
        components: PrincipalComponents = self._kept[key.off, key.languages, key.layer]
        distances: CentroidDistances = self._kept[key.off, key.languages]
        pair = _PAIRS[key.pair]
        with style():
            figure = Figure(figsize=(8.2, 6.9))
            figure.set_layout_engine("none")
            plane = figure.add_axes((0.105, 0.46, 0.69, 0.49))
            components.plot_at(key.layer, plane, pair=pair, joined=key.joined)
            off = "" if key.off == NOTHING else f", off: {key.off}"
            plane.set_title(f"layer {key.layer}{off}")
            legend = plane.legend(loc="upper left", bbox_to_anchor=(1.02, 1), markerscale=2.5)
            for handle in filter(None, legend.legend_handles):
                handle.set_alpha(1)
            similar = 1 - distances.values
            here = similar[distances.layers.index(key.layer)]
            heat = figure.add_axes((0.135, 0.06, 0.44, 0.3))
            title = f"cosines of the centroids, layer {key.layer}"
            plots.similarity_map(here, key.languages, lowest=min(float(here.min()), 0.999), title=title, ax=heat)
            self._draw_profile(figure.add_axes((0.68, 0.09, 0.29, 0.27)), distances, similar, key.layer)
        coordinates = [components.coordinates[language][0][:, list(pair)] for language in key.languages]
        ids = [
            self.languages.index(language) * self._count + number
            for language in key.languages
            for number in range(self._count)
        ]
        names = ", ".join(map(language_name, key.languages))
        alt = f"Sentences in {names} at layer {key.layer}, principal components {key.pair}{off}; cosines of centroids"
        return figure, alt, [(plane, *points.T) for points in coordinates], ids

    def _draw_profile(self, ax: Axes, distances: CentroidDistances, similar: np.ndarray, layer: int) -> None:
        """The mean cosine between two languages' centroids by layer, with the selected layer marked."""
        count = len(distances.languages)
        mean = (similar.sum(axis=(1, 2)) - count) / (count * (count - 1))
        ax.plot(distances.layers, mean, color=PALETTE[0], marker="o", ms=3)
        ax.axvline(layer, color=PALETTE[1], lw=1.5)
        ax.set(xlabel="layer", title="their mean, by layer")
        ax.locator_params(axis="x", integer=True, nbins=6)

    def _languages(self) -> tuple[str, ...]:
        return tuple(language for language, box in self.shown.items() if box.value)

    def _values(self) -> dict[str, Any]:
        return {
            "layer": self.layer.value,
            "neurons off": self.off.value,
            "components": self.pair.value,
            "languages": list(self._languages()),
            "lines between translations": self.joined.value,
        }

    def _provenance(self) -> Any:
        return {language: self.states[language].provenance for language in self._languages()}


def explore_spaces(
    source: Model | Mapping[str, Activations],
    corpus: Corpus | Mapping[str, Sequence[str]] | None = None,
    *,
    languages: Sequence[str] | None = None,
    hub: str = "en",
    sentences: int = 256,
    position: str = "last",
    suffix: str | None = None,
    found: Mapping[tuple[str, str], Detection] | None = None,
    folder: str = "figures",
) -> SpacesExplorer:
    """Explore where languages lie: principal components by layer, neurons on and off, and centroids' similarity.

    Each layer's components are fitted to the sentences shown. Each language's own neurons are switched off at the token
    that is read; the hub is never ablated (as in Tezuka & Inoue, EMNLP 2025). Random controls are drawn with seed 0.

    Args:
        source: a model, or captures of parallel sentences by language with `post` (without neurons off).
        corpus: for a model: a `Corpus`, whose test sentences are shown; for captures: their sentences by language, as
            labels of the points.
        languages: which languages (default: all).
        hub: the language whose space counts as the shared one.
        sentences: the maximum number per split.
        position, suffix: for a model: which token is read and ablated, as in `capture`.
        found: earlier detections, by (language, kind), such as `explore_detection(...).result`.
        folder: where pictures are saved.

    Returns:
        An `Explorer`: a widget with `figure()`, `save()` and `parameters()`.

    Raises:
        TnkitError: for unknown or too few languages, or captures that are not parallel.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> captured = {name: tn.capture(tiny_model(), SENTENCES, progress=False) for name in ("en", "it")}
    >>> explorer = explore_spaces(captured, {"en": SENTENCES, "it": SENTENCES})
    >>> explorer.layer.value = 3
    >>> explorer.figure().axes[0].get_title(loc="left")
    'layer 3'
    """
    if isinstance(source, Model):
        if not isinstance(corpus, Corpus):
            raise TnkitError("a model needs a corpus: explore_spaces(model, corpus)")
        reading = {"position": position, "suffix": suffix}
        study = Study.of(source, corpus, found=found, languages=languages, hub=hub, sentences=sentences, **reading)
        return SpacesExplorer(study=study, states=study.all_captured("test"), texts=study.texts["test"], folder=folder)
    if not isinstance(source, Mapping):
        check_model(source)
    if isinstance(corpus, Corpus):
        raise TnkitError('captures need their own sentences by language, such as corpus["test"]')
    states = {language: source[language].require("post") for language in languages or source}
    if len({len(captured) for captured in states.values()}) != 1 or len(states) < 2:
        raise TnkitError("need captures of at least two languages with the same number of sentences")
    return SpacesExplorer(states=states, texts=corpus or {}, folder=folder)
