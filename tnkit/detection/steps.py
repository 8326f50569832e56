"""The passes of a detection, in order: `Job`, which yields a `Step` after each batch.

for step in tn.detect_steps(model, corpus):
    print(step.language, step.done, step.total, step.found)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any

import psutil

from tnkit import parallel
from tnkit.captures.activations import Activations, Gathering
from tnkit.captures.batches import free_memory, sites_of
from tnkit.captures.passes import Pass, plan
from tnkit.captures.token_ids import Texts
from tnkit.detection.centroids import CentroidAccumulator, Centroids, estimate_centroids
from tnkit.detection.detections import Detection
from tnkit.detection.ranking import check_size
from tnkit.detection.scores import NeuronScores
from tnkit.detection.scoring import FOLDS, ScoreAccumulator, check_origin
from tnkit.detection.sums import RunningSum, add_up, share_sums
from tnkit.detection.targets import described, target_languages, warn
from tnkit.detection.turns import TurnAccumulator
from tnkit.errors import TnkitError
from tnkit.models.model import Model, hashed_at_ends, hashed_once
from tnkit.models.sessions import TURN
from tnkit.text.rows import check_texts

SCORED = ("activations", "mid", "scale")
_Work = Iterator[tuple[int, tuple[Detection, ...]]]  # sentences done, and the detections that this finished
_Source = Pass | Activations  # sentences to run, or states that were captured before
_Run = Callable[[str, _Source, str | None], _Work]
_HELD = 2 << 30  # bytes of activations held at once, on a CPU; a larger corpus is streamed in two passes


@dataclass(frozen=True, eq=False)
class Step:
    """The progress of a detection.

    Attributes:
        done, total: sentences run so far and in all; a language may run twice, as `streaming` of `detect_steps` says.
        language: of the last sentences.
        found: the detections that this step finished, mostly none.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> steps = tn.detect_steps(tiny_model(), {"en": SENTENCES[:3], "it": SENTENCES[3:]}, top=10)
    >>> [(step.done, step.total, len(step.found)) for step in steps]
    [(3, 6, 0), (6, 6, 0), (6, 6, 2)]
    """

    done: int
    total: int
    language: str
    found: tuple[Detection, ...] = ()


@dataclass(frozen=True, eq=False)
class Job:
    """The checked arguments of `detect_steps`, and its steps."""

    model: Model
    texts: Mapping[str, Texts | Activations]
    hub: tuple[str, ...]
    languages: list[str]
    layers: dict[str, tuple[int, ...]]  # where to look, by kind
    top: int
    distance: str
    score: str
    streaming: bool | None
    stability: bool
    cache: bool
    options: dict[str, Any]  # of `plan`
    centroids: dict[str, Centroids] = field(default_factory=dict)  # of each language so far

    def check(self) -> None:
        """Refuse what cannot be done before a long pass begins."""
        if not self.languages or not self.layers:
            raise TnkitError(f"name at least one language and kind; the corpus has {', '.join(self.texts)}")
        hub = self.hub if "type1" in self.layers else ()
        missing = [name for name in (*self.languages, *hub) if name not in self.texts]
        if missing:
            raise TnkitError(f"the corpus has no sentences in {', '.join(missing)}; it has {', '.join(self.texts)}")
        for name in self.languages if "type1" in self.layers else ():
            if set(hub) <= {name}:
                raise TnkitError(
                    f"Type-1 neurons of {name} need another hub: with hub={name!r} the shared centroid is its own"
                )
            check_texts(self.texts, [*hub, name])
        if self.score == "centred":
            self._check_centred()
        for layers in self.layers.values():
            check_size("top", self.top, layers, [self.model.widths[layer] for layer in layers])

    def _check_centred(self) -> None:
        """Refuse a centred score that does not differ from the raw one, or has no direction."""
        check_origin(self.distance)
        if self.streaming is False:
            raise TnkitError(
                "a centred score needs the centroids of all languages first and runs its sentences again; leave "
                "streaming out"
            )
        check_texts(self.texts)
        for kind, name in product(self.layers, self.languages):
            if set(self._towards(kind, name)) == set(self.texts):
                raise TnkitError(
                    f"a centred score of {name} ({kind}) needs a corpus with more languages than "
                    f"{', '.join(self.texts)}: the mean over all languages is both its origin and its target"
                )

    def steps(self) -> Iterator[Step]:
        """Every pass, batch by batch; the weights are read as it begins, and before detections are handed out.

        With the cache they are read after each pass too, for nothing is kept there that was captured from others.
        """
        if self.cache:
            return self._steps()
        return hashed_at_ends(self.model, self._steps(), due=lambda step: bool(step.found))

    def _steps(self) -> Iterator[Step]:
        passes = [*self._passes()]
        total = sum(len(self.texts[name]) for name, _ in passes)
        key, done = self.model.fingerprint() if self.cache else None, 0
        for name, run in passes:
            # no name for the plan: the token ids of one language are gone before those of the next are there
            for sentences, detections in run(name, self._source(name), key):
                done += sentences
                yield Step(done, total, name, detections)

    def _source(self, name: str) -> _Source:
        texts, options = self.texts[name], self.options
        if name not in self.languages and self.score == "raw":  # of the hub, which only Type-1 is scored towards
            options = {**options, "layers": self.layers["type1"]}
        return texts if isinstance(texts, Activations) else plan(self.model, texts, **options)

    def _passes(self) -> Iterator[tuple[str, _Run]]:
        """The centroids that other languages need first, then each language: whose sentences run, and what for."""
        hub = self.hub if "type1" in self.layers else ()
        names = sorted(self.languages, key=lambda name: name not in hub)
        first = set(self.texts) if self.score == "centred" else set(hub) - set(names[:1])
        for name in self.texts:
            if name in first:
                yield name, self._centroid
        for name in names:
            if name not in first and not self._streamed(name):
                yield name, self._hold
                continue
            if name not in first and self._fits():
                yield name, self._turn
                continue
            if name not in first:
                yield name, self._centroid
            yield name, self._score

    def _streamed(self, name: str) -> bool:
        """Whether the activations of a language are too large to be held."""
        if isinstance(self.texts[name], Activations):
            return False
        if self.streaming is not None:
            return self.streaming
        columns = 2 * self.model.hidden_size + self.model.places + self.model.slots + 1
        size = 4 * len(self.options["layers"]) * columns * len(self.texts[name])
        device = self.model.home
        room = free_memory(device) // 3 if device.type == "cuda" and not self.cache else _HELD
        return self.model.request_bytes is not None or size > room

    def _fits(self) -> bool:
        """Whether memory holds the turns of all neurons, so that a streamed language need not run twice."""
        if self.distance != "cosine" or self.score == "centred" or self.model.request_bytes is not None:
            return False
        device, folds = self.model.home, FOLDS if self.stability else 1
        free = free_memory(device) if device.type == "cuda" else psutil.virtual_memory().available // parallel.size()
        size = 4 * folds * len(self.options["layers"]) * self.model.n_neurons * self.model.hidden_size
        return size <= parallel.least(free) // 3

    # Each of these yields (sentences, detections) as it runs; the first and the last add the language's centroid.

    def _centroid(self, name: str, source: _Source, key: str | None) -> _Work:
        running = CentroidAccumulator()
        for sentences in _added(source, ("post",), {"centroid": running}, key):
            yield sentences, ()
        self.centroids[name] = running.result()

    def _score(self, name: str, source: _Source, key: str | None) -> _Work:
        """A second pass in flat memory, once the centroids are known."""
        scores = self._scores(name)
        for sentences in _added(source, SCORED, scores, key):
            yield sentences, ()
        yield 0, self._detections(name, {kind: running.result() for kind, running in scores.items()})

    def _turn(self, name: str, source: _Source, key: str | None) -> _Work:
        """One pass in flat memory, for the centroid and for sums from which the scores towards it follow."""
        turns = TurnAccumulator(self.model, layers=self.options["layers"], folds=FOLDS if self.stability else 1)
        centroid = CentroidAccumulator()
        running = {"centroid": centroid, "turns": turns}
        for sentences in _added(source, (*SCORED, "post"), running, key):
            yield sentences, ()
        self.centroids[name], attraction = centroid.result(), turns.result()
        scores = {}
        for kind, layers in self.layers.items():
            scored = [layer for layer in layers if layer in attraction.layers]
            scores[kind] = attraction.scores(self._target(kind, name), layers=scored)
        yield 0, self._detections(name, scores)

    def _hold(self, name: str, source: _Source, key: str | None) -> _Work:
        """One pass, whose activations are held for both; or none."""
        captured: Activations | None = None
        share: Pass | None = None
        if isinstance(source, Activations):
            captured = source
            yield len(captured), ()
        else:
            share = source.share()
            gathering = Gathering(chain(*share.batches))
            batches = share.kept(key, device=self.model.home)
            for sentences in parallel.scaled(gathering.fill(batches), len(share), len(source)):
                yield sentences, ()
            captured = gathering.result() if len(share) else None
        running = CentroidAccumulator()
        _add(captured, share, {"centroid": running})
        self.centroids[name] = running.result()
        with TURN, hashed_once(self.model):
            scores = self._scores(name)
            _add(captured, share, scores)
        yield 0, self._detections(name, {kind: running.result() for kind, running in scores.items()})

    def _towards(self, kind: str, name: str) -> tuple[str, ...]:
        """The languages whose mean centroid is the target."""
        return target_languages(kind, name, self.hub, centred=self.score == "centred")

    def _scores(self, name: str) -> dict[str, ScoreAccumulator]:
        """Empty sums of the scores of each kind, against its target."""
        options: dict[str, Any] = {"distance": self.distance, "origin": self._origin()}
        return {
            kind: ScoreAccumulator(self.model, self._target(kind, name), layers=layers, **options)
            for kind, layers in self.layers.items()
        }

    def _target(self, kind: str, name: str) -> Centroids:
        return self._mean(self._towards(kind, name))

    def _origin(self) -> Centroids | None:
        """The mean over all languages, for centred scores."""
        return self._mean(tuple(self.texts)) if self.score == "centred" else None

    def _mean(self, languages: tuple[str, ...]) -> Centroids:
        """The mean of languages' centroids, in the layers that all of them have."""
        centroids = [self.centroids[name] for name in languages]
        shared = tuple(sorted(set.intersection(*(set(centroid.layers) for centroid in centroids))))
        return estimate_centroids([centroid.of_layers(shared) for centroid in centroids])

    def _detections(self, name: str, scores: dict[str, NeuronScores]) -> tuple[Detection, ...]:
        origin, detections = self._origin(), []
        for kind, of_kind in scores.items():
            about = {"origin": origin, "rival": self._rival(kind, name)}
            detections.append(detection_of(name, kind, of_kind, self._target(kind, name), self.top, **about))
        return tuple(detections)

    def _rival(self, kind: str, name: str) -> Centroids | None:
        """The target of the other kind, where its languages are others and have run up to the layers of this one."""
        languages = self._towards("type2" if kind == "type1" else "type1", name)
        if not set(languages) <= set(self.centroids) or set(languages) == set(self._towards(kind, name)):
            return None
        rival = self._mean(languages)
        return rival if set(self.layers[kind]) <= set(rival.layers) else None


def _added(source: _Source, keep: tuple[str, ...], running: Mapping[str, RunningSum], key: str | None) -> Iterator[int]:
    """Add the states of a source to sums, and yield how many sentences they are of."""
    if isinstance(source, Activations):
        _add(source, None, running)
        yield len(source)
    else:
        keep = sites_of(source.model, keep, source.position)
        yield from add_up(replace(source, keep=keep), running, fingerprint=key)


def _add(captured: Activations | None, share: Pass | None, running: Mapping[str, RunningSum]) -> None:
    """Add captured states to sums, which processes that ran shares of a pass exchange; one without a share has none."""
    if captured is not None:
        for running_sum in running.values():
            running_sum.add(captured)
    if share is not None:
        share_sums(share, running)


def detection_of(
    language: str,
    kind: str,
    scores: NeuronScores,
    centroids: Centroids,
    top: int,
    *,
    origin: Centroids | None = None,
    rival: Centroids | None = None,
) -> Detection:
    """The transfer neurons of scores towards centroids; the rival is what `described` compares these with."""
    target = described(centroids, scores.layers, origin=origin, rival=rival)
    warn(scores.provenance["model"], f"{language}, {kind},", target, centred=scores.score == "centred")
    scores = replace(scores, provenance={**scores.provenance, "target": target})
    neurons = scores.top(top)
    selection = {"kind": kind, "language": language, **neurons.provenance["selection"]}
    neurons = replace(neurons, provenance={**neurons.provenance, "selection": selection})
    return Detection(language, kind, neurons, scores, centroids)
