"""Where languages lie in the residual stream, layer by layer, with neurons on and off: `explore_spaces`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnkit.captures.activations import Activations
from tnkit.detection.detect import Detection
from tnkit.errors import TnkitError
from tnkit.explorers.explorer import Explorer, controls
from tnkit.explorers.parts import Places
from tnkit.explorers.study import NOTHING, OFFS, Study
from tnkit.measures.geometry import CentroidDistances, PrincipalComponents, centroid_distances, pca
from tnkit.models.model import Model
from tnkit.plots import figures as plots
from tnkit.plots import heatmaps
from tnkit.plots.style import PALETTE, language_name
from tnkit.text.corpus import Corpus

_PAIRS = {"1 and 2": (0, 1), "1 and 3": (0, 2), "2 and 3": (1, 2)}


class _Key(NamedTuple):
    layer: int
    off: str
    languages: tuple[str, ...]
    pair: str
    joined: bool


class SpacesExplorer(Explorer):
    """The plane of two principal components at a layer, and how alike the languages' centroids are there."""

    name = "spaces"
    hint = (
        "Each point is a sentence at the token that is read. Hover a point to read it, click it to find its "
        "translations; or go to the picture with the Tab key and use the arrow keys and Enter."
    )

    def __init__(
        self,
        states: Mapping[str, Activations],
        texts: Mapping[str, Sequence[str]],
        *,
        study: Study | None = None,
        **options: Any,
    ) -> None:
        first = next(iter(states.values()))
        self.study, self.states, self.languages = study, dict(states), tuple(states)
        self._count = len(first)
        self._kept: dict[Any, Any] = {}
        model = first.provenance.get("model", {}).get("name", "")
        super().__init__(
            f"Where the languages of {model} lie, layer by layer" if model else "Where languages lie", **options
        )
        layers = first.layers
        start = layers[len(layers) // 2]
        self.layer = ipywidgets.SelectionSlider(options=layers, value=start, description="Layer")
        play = ipywidgets.Play(min=0, max=len(layers) - 1, value=layers.index(start), interval=600)
        ipywidgets.jslink((play, "value"), (self.layer, "index"))
        self.off = ipywidgets.Dropdown(
            options=OFFS if study else [NOTHING], description="Neurons off", disabled=study is None
        )
        self.pair = ipywidgets.Dropdown(options=list(_PAIRS), description="Components")
        self.joined = ipywidgets.Checkbox(description="Lines between translations", indent=False)
        self.shown = {
            language: ipywidgets.Checkbox(value=True, description=language_name(language), indent=False)
            for language in self.languages
        }
        for control in (self.layer, self.off, self.pair, self.joined, *self.shown.values()):
            control.observe(self._refresh, "value")
        self.picture.labels = [
            f"{language_name(language)}: {text}"
            for language in self.languages
            for text in (texts[language] if texts else [f"sentence {number}" for number in range(self._count)])
        ]
        self.picture.aligned = self._count
        self._open(
            controls(self.layer, play),
            controls(self.off, self.pair, self.joined),
            controls(ipywidgets.Label("Languages"), *self.shown.values()),
        )

    def _key(self) -> _Key:
        languages = tuple(language for language, box in self.shown.items() if box.value)
        if len(languages) < 2:
            raise TnkitError("select at least two languages")
        return _Key(self.layer.value, self.off.value, languages, self.pair.value, self.joined.value)

    def _prepare(self, key: _Key) -> Iterator[str]:
        if self.study and key.off != NOTHING:
            yield from self.study.switching_off(key.off, key.languages)
        if (key.off, key.languages) not in self._kept:
            self._kept[key.off, key.languages] = centroid_distances(self._states(key))
        if (key.off, key.languages, key.layer) not in self._kept:
            found = pca(self._states(key), layers=[key.layer], components=min(3, self._count))
            self._kept[key.off, key.languages, key.layer] = found

    def _renew(self) -> None:
        self._kept.clear()
        self.states = self.study.all_states() if self.study else self.states

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
        with plots.style():
            figure = Figure(figsize=(8.2, 6.9))
            figure.set_layout_engine("none")
            plane = figure.add_axes((0.105, 0.46, 0.69, 0.49))
            plots.space(components, key.layer, pair=pair, joined=key.joined, ax=plane)
            off = "" if key.off == NOTHING else f", off: {key.off}"
            plane.set_title(f"layer {key.layer}{off}")
            legend = plane.legend(loc="upper left", bbox_to_anchor=(1.02, 1), markerscale=2.5)
            for handle in filter(None, legend.legend_handles):
                handle.set_alpha(1)
            similar = 1 - distances.values
            here = similar[distances.layers.index(key.layer)]
            heat = figure.add_axes((0.135, 0.06, 0.44, 0.3))
            title = f"cosines of the centroids, layer {key.layer}"
            heatmaps.similarity_map(here, key.languages, lowest=min(float(here.min()), 0.999), title=title, ax=heat)
            self._draw_profile(figure.add_axes((0.68, 0.09, 0.29, 0.27)), distances, similar, key.layer)
        coordinates = [components.coordinates[language][0][:, list(pair)] for language in key.languages]
        ids = [
            self.languages.index(language) * self._count + number
            for language in key.languages
            for number in range(self._count)
        ]
        names = ", ".join(map(language_name, key.languages))
        alt = f"Sentences in {names} at layer {key.layer}, principal components {key.pair}{off}; cosines of centroids"
        return figure, alt, [(plane, part[:, 0], part[:, 1]) for part in coordinates], ids

    def _draw_profile(self, ax: Axes, distances: CentroidDistances, similar: np.ndarray, layer: int) -> None:
        """The mean cosine between two languages' centroids by layer, and where the slider stands."""
        count = len(distances.languages)
        mean = (similar.sum(axis=(1, 2)) - count) / (count * (count - 1))
        ax.plot(distances.layers, mean, color=PALETTE[0], marker="o", ms=3)
        ax.axvline(layer, color=PALETTE[1], lw=1.5)
        ax.set(xlabel="layer", title="their mean, by layer")
        ax.locator_params(axis="x", integer=True, nbins=6)

    def parameters(self) -> dict[str, Any]:
        """The values of the controls, and where what is shown comes from."""
        shown = [language for language, box in self.shown.items() if box.value]
        values = {
            "layer": self.layer.value,
            "neurons off": self.off.value,
            "components": self.pair.value,
            "languages": shown,
            "lines between translations": self.joined.value,
        }
        about = {language: self.states[language].provenance for language in shown}
        return {"controls": values, "provenance": about}


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

    Each layer's components are fitted to the sentences that are shown. Switched off is each language's own set, at the
    token that is read; the hub is read untouched (as in Tezuka & Inoue, EMNLP 2025). Random controls are drawn
    with seed 0.

    Args:
        source: a model, or captures of parallel sentences by language with `post` (then nothing can be switched off).
        corpus: of a model: a `Corpus`, whose test sentences are shown; of captures: their sentences by language, for
            the points to say what they are.
        languages: which languages (default: all).
        hub: the language whose space is taken as the shared one.
        sentences: how many of each split, at most.
        position, suffix: of a model: which token is read and ablated, as in `capture`.
        found: detections made before, by (language, kind), such as `explore_detection(...).result`.
        folder: where saved pictures go.

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
        return SpacesExplorer(study.all_states(), study.texts["test"], study=study, folder=folder)
    if isinstance(corpus, Corpus):
        raise TnkitError('captures need the sentences that were captured, by language, such as corpus["test"]')
    states = {language: source[language].require("post") for language in languages or source}
    if len({len(part) for part in states.values()}) != 1 or len(states) < 2:
        raise TnkitError("captures of at least two languages with the same number of sentences are needed")
    return SpacesExplorer(states, corpus or {}, folder=folder)
