"""A model, a corpus, and the results that explorers share, each computed once: `Study`."""

import inspect
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from tqdm.auto import tqdm

from tnkit.captures.activations import Activations, gathered
from tnkit.captures.passes import capture, plan
from tnkit.detection.detect import KINDS, detect_steps
from tnkit.detection.detections import Detection
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scoring import contribution_norms
from tnkit.errors import TnkitError, check_model, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.controls import Control, controls
from tnkit.interventions.intervention import Intervention
from tnkit.interventions.last_token import PLACES, LastToken
from tnkit.interventions.together import Neurons
from tnkit.measures.geometry.translation import hits
from tnkit.measures.measurement import BY_STATES
from tnkit.models.model import Model, hashed_once
from tnkit.models.sessions import TURN
from tnkit.plots.looks import KIND_NAMES, language_name
from tnkit.text.corpus import Corpus

CONTROLS = ("same layers and norms", "same layers", "uniform", "lowest scores")
ZERO, RESAMPLED = "zero", "another sentence's value"
_SCALES = {f"{scale} × itself": scale for scale in (0.75, 0.5, 0.25)}
_STUDIES: "WeakValueDictionary[Hashable, Study]" = WeakValueDictionary()  # kept while an explorer uses them
_ALIKE = ("captured", "means", "prefix", "norms")  # what no option of detection changes
_LOOK = 1.0  # seconds between two checks of the model's weights, which are read in full
_T = TypeVar("_T")


class Study:
    """A model and a corpus, with their captures, detections and ablations kept in memory.

    Captures are also cached on disk. Methods whose names end in -ing yield a description before each step.

    Args:
        model: from `load_model`.
        corpus: a `Corpus`; neurons are found in its training split, their effects are measured in its test split.
        languages: which languages (default: all of the corpus).
        hub: the language whose space counts as the shared one.
        sentences: the maximum number of sentences per split.
        position, suffix: which token is read and ablated, as in `capture`.
        distance, score, top, layers: how neurons are found, as in `detect_steps` (default of top: `usual_top`).

    Raises:
        TnkitError: for unknown languages, if there is only the hub, or if `top` or `sentences` is not a number from 1.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        *,
        languages: Sequence[str] | None = None,
        hub: str = "en",
        sentences: int = 256,
        position: str = "last",
        suffix: str | None = None,
        distance: str = "cosine",
        score: str = "raw",
        top: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.model, self.hub, self.corpus = model, hub, corpus
        self.reading: dict[str, Any] = {"position": position, "suffix": suffix}
        size = None if top is None else whole_number("top", top, at_least=1)
        self.finding: dict[str, Any] = {"distance": distance, "score": score, "top": size, "layers": layers}
        self.sentences = sentences = whole_number("sentences", sentences, at_least=1)
        named = tuple(corpus.languages if languages is None else languages)
        self.languages = (hub, *(name for name in named if name != hub))
        self.texts = {
            split: {name: corpus[split][name][:sentences] for name in self.languages} for split in ("train", "test")
        }
        if len(self.languages) < 2:
            raise TnkitError(f"{hub} is the only language and the hub; add another language")
        self.found: dict[tuple[str, str], Detection] = {}
        self._kept: dict[Hashable, Any] = {}
        self._weights, self._looked = self._digest(), time.monotonic()

    @classmethod
    def of(
        cls,
        model: Model,
        corpus: Corpus,
        *,
        found: Mapping[tuple[str, str], Detection] | None = None,
        languages: Sequence[str] | None = None,
        **options: Any,
    ) -> "Study":
        """The study that all explorers of a model and a corpus share."""
        check_model(model)
        key = (model, corpus.hash, repr(languages), repr(sorted(options.items())))
        study = _STUDIES.get(key)
        if study is None:
            study = _STUDIES[key] = cls(model, corpus, languages=languages, **options)
        else:
            study.weights(now=True)
        study.found |= found or {}
        return study

    def options(self) -> dict[str, Any]:
        """What the study was made with, besides the model and the corpus."""
        given = {"languages": list(self.languages), "hub": self.hub, "sentences": self.sentences}
        return given | self.reading | self.finding

    @classmethod
    def usual(cls, corpus: Corpus) -> dict[str, Any]:
        """What `options` gives for a study of a corpus that is made with no option."""
        given = {name: option.default for name, option in inspect.signature(cls).parameters.items()}
        hub = given["hub"]
        languages = [hub, *(name for name in corpus.languages if name != hub)]
        return {name: value for name, value in given.items() if name not in ("model", "corpus")} | {
            "languages": languages
        }

    def again(self, *, model: Model | None = None, **changes: Any) -> "Study":
        """The same study with other options; captures that are made alike are shared.

        >>> from tnkit.testing import tiny_corpus, tiny_model
        >>> study = Study(tiny_model(), tiny_corpus())
        >>> study.again(distance="euclidean", languages=["en", "ja"]).options()["languages"]
        ['en', 'ja']
        """
        study = Study(model or self.model, self.corpus, **(self.options() | changes))
        if (study.model, study.reading, study.sentences) == (self.model, self.reading, self.sentences):
            shared = {key: value for key, value in self._kept.items() if isinstance(key, tuple) and key[0] in _ALIKE}
            study._kept.update(shared)
        return study

    def weights(self, *, now: bool = False) -> str:
        """A digest of the model now, checked at most once a second unless `now`; a change drops all results."""
        if now or time.monotonic() - self._looked > _LOOK:
            weights = self._digest()
            if weights != self._weights:
                self._weights = weights
                self._kept.clear()
                self.found.clear()
            self._looked = time.monotonic()
        return self._weights

    def _digest(self) -> str:
        return f"{self.model.weights_hash} {self.model.settings()}"

    @property
    def others(self) -> tuple[str, ...]:
        """Every language except the hub."""
        return self.languages[1:]

    @property
    def top(self) -> int:
        """The default size of a neuron set."""
        return self.finding["top"] or usual_top(self.model)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of a key, computed when it is first asked for."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def captured(self, split: str, language: str, *, progress: bool = False) -> Activations:
        """An untouched capture of a language: everything for the training split, only `post` for the test split."""
        texts, reading = self.texts[split][language], self._reading_of(split)
        run = partial(capture, self.model, texts, cache=True, progress=progress, **reading)
        return self.once(("captured", split, language), run)

    def _reading_of(self, split: str) -> dict[str, Any]:
        return ({"keep": ["post"]} if split == "test" else {}) | self.reading

    def recall(self, split: str) -> None:
        """Take what was captured of a split from the cache, for all languages at once: the weights are read once."""
        missing = [name for name in self.languages if ("captured", split, name) not in self._kept]
        if not missing:
            return
        with TURN, hashed_once(self.model):
            passes = {name: plan(self.model, self.texts[split][name], **self._reading_of(split)) for name in missing}
            key = self.model.fingerprint()
        for name, run in passes.items():
            if key and run.shards(key, what="capture").folder.exists():  # a shard that is missing there is made
                self._kept["captured", split, name] = gathered(run.kept(key), len(run))

    def means(self, language: str) -> Activations:
        """An untouched capture of a language's training sentences, of the mean over their tokens."""
        reading: dict[str, Any] = {"keep": ["activations", "post"], "position": "mean", "cache": True}
        run = partial(capture, self.model, self.texts["train"][language], progress=False, **reading)
        return self.once(("means", language), run)

    def all_captured(self, split: str, *, progress: bool = True) -> dict[str, Activations]:
        """`captured` for every language, with a progress bar."""
        return {language: self.captured(split, language, progress=progress) for language in self.languages}

    def per_neuron(self, measure: Callable[[Mapping[str, Activations]], _T]) -> _T:
        """A measurement of every neuron on the training sentences of all languages."""
        result: _T = self.once(measure, lambda: measure(self.all_captured("train", progress=False)))
        return result

    def detecting(self, languages: Sequence[str], kinds: Sequence[str] = KINDS) -> Iterator[str]:
        """Detect the neurons of languages and add them to `found`."""
        missing = [name for name in languages if any((name, kind) not in self.found for kind in kinds)]
        if not missing:
            return
        options = self.finding | {"hub": self.hub, "top": self.top, "cache": True} | self.reading
        for step in detect_steps(self.model, self.texts["train"], missing, KINDS, **options):
            for detection in step.found:
                self.found.setdefault((detection.language, detection.kind), detection)
            yield f"detecting transfer neurons: {step.done} of {step.total} sentences"

    def detect(self, languages: Sequence[str]) -> None:
        """Run `detecting` with a progress bar."""
        for _ in tqdm(self.detecting(languages), desc="detecting transfer neurons", unit=" batches", leave=False):
            pass

    def values(self) -> list[str]:
        """What neurons can be set to, as `set_to` takes it."""
        return [ZERO, *self._means(), RESAMPLED, *_SCALES]

    def _means(self) -> dict[str, tuple[str, ...]]:
        means: dict[str, tuple[str, ...]] = {f"mean of {language_name(name)}": (name,) for name in self.languages}
        return {**means, "mean of all languages": self.languages} if len(means) > 2 else means

    def sources(self, language: str, value: str) -> tuple[str, ...]:
        """The languages whose training sentences `set_to` reads."""
        return self._means().get(value, (language,) if value == RESAMPLED else ())

    def set_to(self, neurons: Neurons, language: str, value: str) -> Neurons:
        """Neurons, and what they are set to: for 0 they alone, and a control that says what is done as it is."""
        if value == ZERO or not isinstance(neurons, NeuronSet) or not len(neurons):
            return neurons
        if value in _SCALES:
            return Intervention(neurons, scale=_SCALES[value])
        captured = {name: self.captured("train", name) for name in self.sources(language, value)}
        if value == RESAMPLED:
            return Intervention(neurons, value="resampled", of=captured[language])
        return Intervention(neurons, value="mean", of=captured)

    def neurons(self, language: str, kind: str, count: int | None = None) -> NeuronSet:
        """The highest-scoring neurons of a language that has been detected."""
        return self.found[language, kind].scores.top(self.top if count is None else count)

    def controls(self, language: str, kind: str, count: int | None = None) -> Mapping[str, Control]:
        """The controls of the highest-scoring neurons, as `controls_of` says."""
        return self.controls_of(self.neurons(language, kind, count), language, kind)

    def controls_of(self, neurons: NeuronSet, language: str, kind: str) -> Mapping[str, Control]:
        """The controls of a set, as in `tnkit.controls`, and as many neurons of other detected languages."""
        scores = self.found[language, kind].scores
        norms = self.once(("norms", language), lambda: contribution_norms(self.model, self.captured("train", language)))
        others = {
            f"{language_name(name)} {KIND_NAMES[kind]}": self.neurons(name, kind, len(neurons))
            for name in self.others
            if name != language and (name, kind) in self.found
        }
        return controls(neurons, layers=scores.layers, norms=norms, scores=scores, others=others)

    def chosen_layer(self, language: str, first: int) -> int:
        """The layer, from `first` on, where most translations of the training sentences are found, nothing off."""

        def shares() -> np.ndarray:
            found = hits(self.captured("train", language), self.captured("train", self.hub))
            return np.asarray(found, float).mean(axis=1)

        return first + int(self.once(("found", language), shares)[first:].argmax())

    def measured(self, language: str, neurons: Neurons, tokens: str) -> dict[str, np.ndarray]:
        """Every measure of `BY_STATES` on a language's test sentences with neurons off, each (layer, sentence)."""

        def measure() -> dict[str, np.ndarray]:
            states = self.off(language, neurons, tokens) if len(neurons) else self.captured("test", language)
            hub = self.captured("test", self.hub)
            return {name: np.asarray(score(states, hub), float) for name, score in BY_STATES.items()}

        return self.once(self._measured_key(language, neurons, tokens), measure)

    @staticmethod
    def _measured_key(language: str, neurons: Neurons, tokens: str) -> Hashable:
        done = "" if isinstance(neurons, NeuronSet) else repr(neurons.about())
        return ("measured", language, tokens, tuple(neurons), done)

    def off(self, language: str, neurons: Neurons, tokens: str) -> Activations:
        """The states of a language's test sentences with neurons changed; tokens as in `Ablation`."""
        texts = self.texts["test"][language]
        options: dict[str, Any] = {"keep": ["post"], "progress": False, **self.reading}
        if tokens == "last" and self.reading["position"] in PLACES:
            prefix = partial(LastToken, self.model, texts, **options)
            return self.once(("prefix", language), prefix).capture(neurons)
        with Ablation(self.model, neurons, tokens=tokens):
            return capture(self.model, texts, **options)


def usual_top(model: Model) -> int:
    """The default size of a neuron set: 300, or a tenth of the late layers' neurons in a small model.

    >>> from tnkit.testing import tiny_model
    >>> usual_top(tiny_model())
    9
    """
    return max(1, min(300, sum(model.widths[layer] for layer in model.late_layers) // 10))
