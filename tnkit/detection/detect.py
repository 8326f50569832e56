"""From a model and a corpus to transfer neurons in one call: `detect`, `detect_all`.

found = tn.detect(model, corpus, language="ja", kind="type1", top=1000)
found.neurons, found.scores, found.centroids

everything = tn.detect_all(model, corpus)          # every language, both types, each sentence captured once
everything["ja", "type2"].neurons

for step in tn.detect_steps(model, corpus): ...    # the same, a batch at a time
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, SupportsIndex

from tqdm.auto import tqdm

from tnkit import parallel
from tnkit.captures.activations import Activations, Gathering
from tnkit.captures.batches import free_memory
from tnkit.captures.passes import Pass, plan
from tnkit.detection.centroids import CentroidAccumulator, Centroids, estimate_centroids
from tnkit.detection.detections import Detection
from tnkit.detection.ranking import check_size
from tnkit.detection.scoring import ScoreAccumulator
from tnkit.detection.sums import RunningSum, add_up, drain, share_sums
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.models.model import Model, check_layers
from tnkit.text.corpus import Corpus
from tnkit.text.rows import check_texts

KINDS = ("type1", "type2")
_SCORED = ("activations", "mid", "scale")
_Work = Iterator[tuple[int, tuple[Detection, ...]]]  # sentences done, and the detections that this finished
_HELD = 2 << 30  # bytes of activations held at once, on a CPU; a larger corpus is streamed in two passes


def detect(
    model: Model, corpus: Corpus | Mapping[str, Sequence[str]], *, language: str, kind: str = "type1", **options: Any
) -> Detection:
    """Detect the transfer neurons of one language and kind (Tezuka & Inoue, EMNLP 2025).

    Args:
        model: from `load_model`.
        corpus: a `Corpus`, or a mapping from language to aligned sentences.
        language: the language in question.
        kind: "type1" or "type2".
        **options: as in `detect_all`.

    Raises:
        TnkitError: as `detect_all` does.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> found = detect(tiny_model(), {"en": SENTENCES[:3], "it": SENTENCES[3:]}, language="it", top=10, progress=False)
    >>> found.neurons
    NeuronSet(10 neurons, layers 0 to 1)
    """
    return detect_all(model, corpus, [language], [kind], **options)[language, kind]


def detect_all(
    model: Model,
    corpus: Corpus | Mapping[str, Sequence[str]],
    languages: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    *,
    progress: bool = True,
    **options: Any,
) -> dict[tuple[str, str], Detection]:
    """Detect the transfer neurons of several languages and kinds, capturing every sentence once.

    Args:
        model, corpus, languages, kinds: as in `detect_steps`.
        progress: show a bar.
        **options: hub, top, distance, layers, position, suffix, split, cache and the others of `detect_steps`.

    Returns:
        A `Detection` for each (language, kind).

    Raises:
        TnkitError: as `detect_steps` does.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> found = detect_all(tiny_model(), {"en": SENTENCES[:3], "it": SENTENCES[3:]}, top=10, progress=False)
    >>> sorted(found)
    [('it', 'type1'), ('it', 'type2')]
    """
    detections: dict[tuple[str, str], Detection] = {}
    steps = detect_steps(model, corpus, languages, kinds, **options)
    hidden = not progress or parallel.rank() > 0
    with tqdm(unit=" sentences", desc="detect", disable=hidden, leave=False) as bar:
        for step in steps:
            bar.total = step.total
            bar.set_postfix_str(step.language, refresh=False)
            bar.update(step.done - bar.n)
            detections |= {(detection.language, detection.kind): detection for detection in step.found}
    return detections


@dataclass(frozen=True, eq=False)
class Step:
    """The progress of a detection.

    Attributes:
        done, total: sentences run so far and in all; a language whose activations are too large to be held runs twice.
        language: of the last sentences.
        found: the detections that this step finished, mostly none.
    """

    done: int
    total: int
    language: str
    found: tuple[Detection, ...] = ()


def detect_steps(
    model: Model,
    corpus: Corpus | Mapping[str, Sequence[str]],
    languages: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    *,
    hub: str | Sequence[str] = "en",
    top: SupportsIndex = 1000,
    distance: str = "cosine",
    layers: Iterable[SupportsIndex] | None = None,
    position: str = "last",
    suffix: str | None = None,
    last_layer: str = "raw",
    split: str = "train",
    streaming: bool | None = None,
    batch_tokens: SupportsIndex | None = None,
    cache: bool = False,
) -> Iterator[Step]:
    """Detect as `detect_all` does, a batch at a time; leaving the loop stops the detection.

    Args:
        model: from `load_model`.
        corpus: a `Corpus`, or a mapping from language to aligned sentences.
        languages: the languages in question (default: all but the hub).
        kinds: "type1", "type2" or both.
        hub: the language(s) that make up the shared centroid together with the one in question. Each language counts
            once in the mean, also if it is named twice or is the one in question.
        top: how many neurons a set has.
        distance: "cosine" or "euclidean".
        layers: where to look (default: the early layers for Type-1, the late ones for Type-2).
        position, suffix, last_layer, batch_tokens: as in `capture`.
        split: which split of a `Corpus`.
        streaming: keep only sums in memory, which takes a second pass over each language; None does so for a remote
            model, and where a language's activations need more than 2 GiB (on a GPU, a third of its free memory).
        cache: save captures (sums when streaming) in the cache folder, and resume a killed detection from there.

    Returns:
        An iterator of `Step`: one after each batch, and one after each language.

    Raises:
        TnkitError: before anything runs, for an unknown kind, language or layer, for a hub that gives no shared
            centroid or is not parallel to the language, and for more neurons than candidates.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> for step in detect_steps(tiny_model(), {"en": SENTENCES[:3], "it": SENTENCES[3:]}, top=10):
    ...     print(f"{step.language} {step.done}/{step.total}", *(detection.kind for detection in step.found))
    en 3/6
    it 6/6
    it 6/6 type1 type2
    """
    texts = corpus[split] if isinstance(corpus, Corpus) else dict(corpus)
    hub = (hub,) if isinstance(hub, str) else tuple(dict.fromkeys(hub))
    languages = [name for name in texts if name not in hub] if languages is None else list(dict.fromkeys(languages))
    if layers is not None:
        layers = check_layers(model, layers)  # of an iterator, before it is used up
    layers_of = {kind: _layers(model, kind, layers) for kind in kinds}
    options: dict[str, Any] = {"position": position, "suffix": suffix, "last_layer": last_layer}
    options |= {"batch_tokens": batch_tokens, "layers": tuple(sorted(set().union(*layers_of.values())))}
    top = whole_number("top", top, at_least=1)
    job = _Job(model, texts, hub, languages, layers_of, top, distance, streaming, cache, options)
    job.check()
    return job.steps()


@dataclass(frozen=True, eq=False)
class _Job:
    """The checked arguments of `detect_steps`, and its steps."""

    model: Model
    texts: Mapping[str, Sequence[str]]
    hub: tuple[str, ...]
    languages: list[str]
    layers: dict[str, tuple[int, ...]]  # where to look, by kind
    top: int
    distance: str
    streaming: bool | None
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
            check_texts({language: self.texts[language] for language in dict.fromkeys([*hub, name])})
        for layers in self.layers.values():
            check_size("top", self.top, layers, self.model.n_neurons)

    def steps(self) -> Iterator[Step]:
        """The hub's centroids first, where they are needed, then each language."""
        hub_only = [name for name in self.hub if "type1" in self.layers and name not in self.languages]
        names = sorted(self.languages, key=lambda name: name not in self.hub)
        total = sum(len(self.texts[name]) * (1 + self._streamed(name)) for name in names)
        total += sum(len(self.texts[name]) for name in hub_only)
        key, done = self.model.fingerprint() if self.cache else None, 0
        for name in (*hub_only, *names):
            run = self._centroid if name in hub_only else self._stream if self._streamed(name) else self._hold
            # no name for the plan: the token ids of one language are gone before those of the next are there
            for sentences, detections in run(name, plan(self.model, self.texts[name], **self.options), key):
                done += sentences
                yield Step(done, total, name, detections)

    def _streamed(self, name: str) -> bool:
        """Whether the activations of a language are too large to be held."""
        if self.streaming is not None:
            return self.streaming
        columns = 2 * self.model.hidden_size + self.model.n_neurons + 1
        size = 4 * len(self.options["layers"]) * columns * len(self.texts[name])
        device = self.model.home
        room = free_memory(device) // 3 if device.type == "cuda" and not self.cache else _HELD
        return self.model.request_bytes is not None or size > room

    # Each of these yields (sentences, detections) as it runs, and adds the language's centroid to `centroids`.

    def _centroid(self, name: str, planned: Pass, key: str | None) -> _Work:
        running = CentroidAccumulator()
        for sentences in add_up(replace(planned, keep=("post",)), {"centroid": running}, fingerprint=key):
            yield sentences, ()
        self.centroids[name] = running.result()

    def _stream(self, name: str, planned: Pass, key: str | None) -> _Work:
        """Two passes in flat memory: one for the centroid, one for the scores."""
        yield from self._centroid(name, planned, key)
        scores = self._scores(name)
        for sentences in add_up(replace(planned, keep=_SCORED), scores, fingerprint=key):
            yield sentences, ()
        yield 0, self._detections(name, scores)

    def _hold(self, name: str, planned: Pass, key: str | None) -> _Work:
        """One pass, whose activations are held for both."""
        share = planned.share()
        gathering = Gathering(chain(*share.batches))
        batches = share.kept(key, device=self.model.home)
        for sentences in parallel.scaled(gathering.fill(batches), len(share), len(planned)):
            yield sentences, ()
        captured = gathering.result() if len(share) else None
        running = CentroidAccumulator()
        _add(captured, share, {"centroid": running})
        self.centroids[name] = running.result()
        scores = self._scores(name)
        _add(captured, share, scores)
        yield 0, self._detections(name, scores)

    def _scores(self, name: str) -> dict[str, ScoreAccumulator]:
        """Empty sums of the scores of each kind, against its target."""
        languages, scores = {"type1": list(dict.fromkeys([*self.hub, name])), "type2": [name]}, {}
        for kind, layers in self.layers.items():
            target = estimate_centroids([self.centroids[language] for language in languages[kind]])
            scores[kind] = ScoreAccumulator(self.model, target, distance=self.distance, layers=layers)
        return scores

    def _detections(self, name: str, scores: dict[str, ScoreAccumulator]) -> tuple[Detection, ...]:
        return tuple(_detection(name, kind, running, self.top) for kind, running in scores.items())


def _add(captured: Activations | None, share: Pass, running: Mapping[str, RunningSum]) -> None:
    """Add captured states; a process without a share has none."""
    if captured is not None:
        for running_sum in running.values():
            running_sum.add(captured)
    share_sums(share, running)


def detect_towards(
    model: Model,
    sentences: Sequence[str],
    centroids: Centroids,
    *,
    language: str,
    kind: str = "type1",
    top: SupportsIndex = 1000,
    distance: str = "cosine",
    layers: Iterable[SupportsIndex] | None = None,
    cache: bool = False,
    progress: bool = True,
    **options: Any,
) -> Detection:
    """Detect transfer neurons against centroids estimated before: one pass in flat memory.

    Args:
        model: from `load_model`.
        sentences: of the language in question.
        centroids: the target, of the same model.
        language, kind, top, distance, layers: as in `detect_steps`.
        cache: save the sums on the way, and resume from saved ones.
        progress: show a bar.
        **options: position, suffix, batch_tokens, as in `capture`.

    Raises:
        TnkitError: for centroids of another model, and as `detect_steps` does.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> own = tn.estimate_centroids([tn.capture(tiny_model(), SENTENCES, progress=False)])
    >>> detect_towards(tiny_model(), SENTENCES, own, language="it", kind="type2", top=10, progress=False).neurons
    NeuronSet(10 neurons, layers 2 to 3)
    """
    layers = _layers(model, kind, layers)
    top = check_size("top", whole_number("top", top, at_least=1), layers, model.n_neurons)
    known = centroids.languages
    fits = len(known) > 1 and language in known if kind == "type1" else known == [language]
    if known and not fits:
        wanted = f"the hub's language(s) and {language}" if kind == "type1" else f"{language} alone"
        raise TnkitError(f"these centroids are of {' and '.join(known)}; {kind} of {language} needs those of {wanted}")
    running = ScoreAccumulator(model, centroids, distance=distance, layers=layers)
    planned = plan(model, sentences, keep=_SCORED, layers=layers, **options)
    work = add_up(planned, {kind: running}, fingerprint=model.fingerprint() if cache else None)
    drain(work, len(planned), desc="detect", progress=progress)
    return _detection(language, kind, running, top)


def _detection(language: str, kind: str, running: ScoreAccumulator, top: int) -> Detection:
    scores = running.result()
    neurons = scores.top(top)
    selection = {"kind": kind, "language": language, **neurons.provenance["selection"]}
    neurons = replace(neurons, provenance={**neurons.provenance, "selection": selection})
    return Detection(language, kind, neurons, scores, running.centroids)


def _layers(model: Model, kind: str, layers: Iterable[SupportsIndex] | None) -> tuple[int, ...]:
    one_of("kind", kind, KINDS)
    if layers is None:
        layers = model.early_layers if kind == "type1" else model.late_layers
    return check_layers(model, layers)
