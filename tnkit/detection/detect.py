"""From a model and a corpus to transfer neurons in one call: `detect`, `detect_all`.

found = tn.detect(model, corpus, language="ja", kind="type1", top=1000)
found.neurons, found.scores, found.centroids

everything = tn.detect_all(model, corpus)          # every language, both types, each sentence captured once
everything["ja", "type2"].neurons

for step in tn.detect_steps(model, corpus): ...    # the same, a batch at a time: show, use what is found, or stop
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from tqdm.auto import tqdm

from tnkit import parallel, storage
from tnkit.captures.activations import Gathering
from tnkit.captures.batches import free_memory
from tnkit.captures.passes import Pass, plan
from tnkit.detection.centroids import CentroidAccumulator, Centroids, estimate_centroids
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scoring import NeuronScores, ScoreAccumulator
from tnkit.detection.sums import add_up, drain, together
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.models.model import Model, check_layers
from tnkit.models.tokens import ends_frame, ends_lines
from tnkit.text.corpus import Corpus
from tnkit.text.rows import check_texts

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas as pd

KINDS = ("type1", "type2")
_SCORED = ("activations", "mid", "scale")
_Work = Iterator[tuple[int, tuple["Detection", ...]]]  # sentences done, and what that finished
_NEURONS, _SCORES, _CENTROIDS = "neurons.json", "scores.safetensors", "centroids.safetensors"
_HOLD = 2 << 30  # bytes of activations held at once, on a CPU; a larger corpus is streamed in two passes


@dataclass(frozen=True, eq=False)
class Detection:
    """The transfer neurons of one kind and language, with the scores and the centroid that chose them.

    Attributes:
        language: whose neurons.
        kind: "type1" (towards the shared centroid) or "type2" (towards the language's own).
        neurons, scores, centroids: the results of each step.
    """

    language: str
    kind: str
    neurons: NeuronSet
    scores: NeuronScores
    centroids: Centroids

    def to_frame(self) -> "pd.DataFrame":
        """The neurons with rank and score, indexed (layer, neuron)."""
        return self.neurons.to_frame()

    def ends(self) -> "pd.DataFrame":
        """How the sentences of each language end, as `Activations.ends` says, indexed by language."""
        return ends_frame(self._sentences())

    def _sentences(self) -> list[dict[str, Any]]:
        own = self.scores.provenance.get("sentences", {})
        return [*self.centroids.provenance.get("sentences", []), {"language": self.language, **own}]

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the score distribution with the chosen tail."""
        return self.scores.plot(ax, chosen=self.neurons)

    @staticmethod
    def plot_all(detections: Iterable["Detection"], *, title: str = "") -> "matplotlib.figure.Figure":
        """Draw the score distributions of several detections side by side, in the colours of their kinds."""
        from tnkit import plots
        from tnkit.plots.style import KIND_COLOURS, KIND_NAMES

        shown = list(detections)
        figure, axes = plots.panels(len(shown), width=5.2, height=3.4, title=title)
        for ax, detection in zip(axes, shown, strict=True):
            scores, kind = detection.scores, detection.kind
            target = "the shared centroid" if kind == "type1" else "the own centroid"
            plots.score_distribution(
                scores.values.numpy(),
                distance=scores.distance,
                chosen=detection.neurons.scores,
                colour=KIND_COLOURS[kind],
                title=f"{KIND_NAMES[kind]}: towards {target}, layers {scores.layers[0]}–{scores.layers[-1]}",
                ax=ax,
            )
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write scores.safetensors, centroids.safetensors and neurons.json into a folder.

        The last one records the hashes of the other two, so that `load` notices a save that was cut short.

        >>> import tempfile
        >>> from tnkit.testing import tiny_corpus, tiny_model
        >>> found = detect(tiny_model(), tiny_corpus(), language="it", top=10, progress=False)
        >>> Detection.load(found.save(tempfile.mkdtemp())).neurons == found.neurons
        True
        """
        folder = Path(folder)
        with storage.together() as waiting:
            others = self.scores.save(folder / _SCORES), self.centroids.save(folder / _CENTROIDS)
            about = self.neurons.provenance | {"saved_with": {path.name: _file_hash(waiting[path]) for path in others}}
            replace(self.neurons, provenance=about).save(folder / _NEURONS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Detection":
        """Read what `save` wrote.

        Raises:
            TnkitError: for missing, damaged or foreign files, and for files of different detections.
        """
        folder = Path(folder)
        neurons = NeuronSet.load(folder / _NEURONS)
        about = dict(neurons.provenance)
        saved_with = about.pop("saved_with", {})
        scores = NeuronScores.load(folder / _SCORES)
        centroids = Centroids.load(folder / _CENTROIDS)
        for name in (_SCORES, _CENTROIDS) if saved_with else ():
            if saved_with.get(name) != _file_hash(folder / name):
                raise _mixed(folder, name, "its content")
        found = cls(*_chosen(about), replace(neurons, provenance=about), scores, centroids)
        found._check_files(folder)
        return found

    def _check_files(self, folder: Path) -> None:
        """Refuse results of different detections, whatever wrote them."""
        about, scored, target = (part.provenance for part in (self.neurons, self.scores, self.centroids))
        for name in ("model", "sentences", "position", "centroid"):
            if about.get(name) != scored.get(name):
                raise _mixed(folder, _SCORES, f"its {name}")
        if about.get("distance", self.scores.distance) != self.scores.distance:
            raise _mixed(folder, _SCORES, f"its distance ({self.scores.distance})")
        values = self.scores.values
        if self.neurons.shape != tuple(values.shape):
            raise _mixed(folder, _SCORES, f"its shape {tuple(values.shape)}")
        stated = zip(self.neurons.pairs, self.neurons.scores, strict=False)
        if any(values[pair] != score for pair, score in stated):
            raise _mixed(folder, _SCORES, "its scores of these neurons")
        for name in ("model", "position"):
            if target.get(name, scored.get(name)) != scored.get(name):
                raise _mixed(folder, _CENTROIDS, f"its {name}")
        if "centroid" in scored and target.get("sentences", target) != scored["centroid"]:
            raise _mixed(folder, _CENTROIDS, "its sentences")

    def _repr_html_(self) -> str:
        about = {"language": self.language, "kind": self.kind, "distance": self.scores.distance}
        about |= {f"last tokens, {name}": text for name, text in ends_lines(self._sentences()).items()}
        return storage.html_card("Transfer neurons", about) + self.neurons._repr_html_()


def _chosen(about: Mapping[str, Any]) -> tuple[str, str]:
    selection = about.get("selection", {})
    return selection.get("language", ""), selection.get("kind", "")


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _mixed(folder: Path, name: str, difference: str) -> TnkitError:
    return TnkitError(
        f"{folder / name} belongs to another detection than {_NEURONS} beside it: {difference} differs, as after a "
        "save that was cut short; detect again and save it"
    )


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
    found: dict[tuple[str, str], Detection] = {}
    steps = detect_steps(model, corpus, languages, kinds, **options)
    with tqdm(unit=" sentences", desc="detect", disable=not progress or parallel.rank() > 0, leave=False) as bar:
        for step in steps:
            bar.total = step.total
            bar.set_postfix_str(step.language, refresh=False)
            bar.update(step.done - bar.n)
            found |= {(one.language, one.kind): one for one in step.found}
    return found


@dataclass(frozen=True, eq=False)
class Step:
    """How far a detection has come.

    Attributes:
        done, total: sentences that have been run, and that are to be run in all; a language whose activations are too
            large to be held is run twice.
        language: whose sentences were the last.
        found: the detections that this step has finished, mostly none.
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
    """Detect as `detect_all` does, a batch at a time, with what is found as soon as it is; leaving the loop stops it.

    Args:
        model: from `load_model`.
        corpus: a `Corpus`, or a mapping from language to aligned sentences.
        languages: the languages in question (default: all but the hub).
        kinds: "type1", "type2" or both.
        hub: the language(s) that make up the shared centroid together with the one in question. Each language counts
            once in the mean, also where it is named twice or is the one in question.
        top: how many neurons a set has.
        distance: "cosine" or "euclidean".
        layers: where to look (default: the early layers for Type-1, the late ones for Type-2).
        position, suffix, last_layer, batch_tokens: as in `capture`.
        split: which split of a `Corpus`.
        streaming: hold nothing but sums, at the price of a second pass over each language; None does so where the
            activations of one language would take more than 2 GiB (on a GPU, a third of its free memory), and for a
            remote model: then only sums travel.
        cache: keep captures, or when streaming the sums, in the user's cache folder while it runs, and take up those
            that are there: a killed detection goes on where it stopped.

    Returns:
        An iterator of `Step`, one after each batch and one after each language.

    Raises:
        TnkitError: for an unknown kind or language, a hub without a shared centroid or with other rows than the
            language, more neurons than candidates, or a layer that the model does not have, before anything runs.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> for step in detect_steps(tiny_model(), {"en": SENTENCES[:3], "it": SENTENCES[3:]}, top=10):
    ...     print(f"{step.language} {step.done}/{step.total}", *(one.kind for one in step.found))
    en 3/6
    it 6/6
    it 6/6 type1 type2
    """
    texts = corpus[split] if isinstance(corpus, Corpus) else dict(corpus)
    hub = (hub,) if isinstance(hub, str) else tuple(dict.fromkeys(hub))
    languages = [name for name in texts if name not in hub] if languages is None else list(dict.fromkeys(languages))
    if layers is not None:
        layers = check_layers(model, layers)  # of an iterator, before it is used up
    where = {kind: _layers(model, kind, layers) for kind in kinds}
    options: dict[str, Any] = {"position": position, "suffix": suffix, "last_layer": last_layer}
    options["batch_tokens"] = batch_tokens
    options["layers"] = tuple(sorted(set().union(*where.values())))
    top = whole_number("top", top, at_least=1)
    job = _Job(model, texts, hub, languages, where, top, distance, streaming, cache, options)
    job.check()
    return job.steps()


@dataclass(frozen=True, eq=False)
class _Job:
    """What `detect_steps` was asked for, checked."""

    model: Model
    texts: Mapping[str, Sequence[str]]
    hub: tuple[str, ...]
    languages: list[str]
    where: dict[str, tuple[int, ...]]
    top: int
    distance: str
    streaming: bool | None
    cache: bool
    options: dict[str, Any]
    centroids: dict[str, Centroids] = field(default_factory=dict)  # of each language so far

    def check(self) -> None:
        """Refuse what cannot be done before a long pass begins."""
        if not self.languages or not self.where:
            raise TnkitError(f"name at least one language and kind; the corpus has {', '.join(self.texts)}")
        shared = self.hub if "type1" in self.where else ()
        missing = [name for name in (*self.languages, *shared) if name not in self.texts]
        if missing:
            raise TnkitError(f"the corpus has no sentences in {', '.join(missing)}; it has {', '.join(self.texts)}")
        alone = next((name for name in self.languages if "type1" in self.where and set(self.hub) <= {name}), None)
        if alone:
            raise TnkitError(
                f"Type-1 neurons of {alone} need another hub: with hub={alone!r} the shared centroid is its own"
            )
        for name in self.languages if shared else ():
            check_texts({part: self.texts[part] for part in dict.fromkeys([*shared, name])})
        for layers in self.where.values():
            _check_size(self.top, layers, self.model.n_neurons)

    def steps(self) -> Iterator[Step]:
        shared = [name for name in self.hub if "type1" in self.where and name not in self.languages]
        names = sorted(self.languages, key=lambda one: one not in self.hub)  # a hub's centroid is needed by the others
        total = sum(len(self.texts[name]) * (1 + self._streamed(name)) for name in names)
        total += sum(len(self.texts[name]) for name in shared)
        fingerprint, done = self.model.fingerprint() if self.cache else None, 0
        for name in (*shared, *names):
            part = self._centroid if name in shared else self._stream if self._streamed(name) else self._capture
            # no name for the plan: the token ids of one language are gone before those of the next are there
            for more, found in part(name, plan(self.model, self.texts[name], **self.options), fingerprint):
                done += more
                yield Step(done, total, name, found)

    def _streamed(self, name: str) -> bool:
        width = 2 * self.model.hidden_size + self.model.n_neurons + 1
        held = 4 * len(self.options["layers"]) * width * len(self.texts[name])
        if self.streaming is not None:
            return self.streaming
        device = self.model.home
        room = free_memory(device) // 3 if device.type == "cuda" and not self.cache else _HOLD
        return self.model.request_bytes is not None or held > room

    # Each part of the work yields (sentences, detections) as it goes, and leaves the centroid it estimates behind.

    def _centroid(self, name: str, planned: Pass, fingerprint: str | None) -> _Work:
        running = CentroidAccumulator()
        for sentences in add_up(replace(planned, keep=("post",)), {"centroid": running}, fingerprint=fingerprint):
            yield sentences, ()
        self.centroids[name] = running.result()

    def _stream(self, name: str, planned: Pass, fingerprint: str | None) -> _Work:
        """Two passes in flat memory: one for the centroid, one for the scores."""
        yield from self._centroid(name, planned, fingerprint)
        scores = self._scores(name)
        for sentences in add_up(replace(planned, keep=_SCORED), scores, fingerprint=fingerprint):
            yield sentences, ()
        yield 0, self._found(name, scores)

    def _capture(self, name: str, planned: Pass, fingerprint: str | None) -> _Work:
        """One pass, held until both are done."""
        mine, running = planned.share(), CentroidAccumulator()
        whole = Gathering(chain(*mine.batches))
        batches = mine.kept(fingerprint, device=self.model.home)
        for sentences in parallel.scaled(whole.fill(batches), len(mine), len(planned)):
            yield sentences, ()
        captured = [whole.result()] if len(mine) else []
        for batch in captured:
            running.add(batch)
        together(mine, {"centroid": running})
        self.centroids[name] = running.result()
        scores = self._scores(name)
        for accumulator in scores.values():
            for batch in captured:
                accumulator.add(batch)
        together(mine, scores)
        yield 0, self._found(name, scores)

    def _scores(self, name: str) -> dict[str, ScoreAccumulator]:
        of, scores = {"type1": list(dict.fromkeys([*self.hub, name])), "type2": [name]}, {}
        for kind, layers in self.where.items():
            target = estimate_centroids([self.centroids[one] for one in of[kind]])
            scores[kind] = ScoreAccumulator(self.model, target, distance=self.distance, layers=layers)
        return scores

    def _found(self, name: str, scores: dict[str, ScoreAccumulator]) -> tuple[Detection, ...]:
        return tuple(_detection(name, kind, accumulator, self.top) for kind, accumulator in scores.items())


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
        cache: save the sums on the way, and go on from those that were saved.
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
    where, top = _layers(model, kind, layers), whole_number("top", top, at_least=1)
    _check_size(top, where, model.n_neurons)
    of = centroids.languages
    fits = len(of) > 1 and language in of if kind == "type1" else of == [language]
    if of and not fits:
        wanted = f"the hub's language(s) and {language}" if kind == "type1" else f"{language} alone"
        raise TnkitError(f"these centroids are of {' and '.join(of)}; {kind} of {language} needs those of {wanted}")
    running = ScoreAccumulator(model, centroids, distance=distance, layers=where)
    planned = plan(model, sentences, keep=_SCORED, layers=where, **options)
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


def _check_size(top: int, layers: Sequence[int], n_neurons: int) -> None:
    if not 0 < top <= len(layers) * n_neurons:
        raise TnkitError(
            f"top {top} was asked for; {len(layers)} layers of {n_neurons} neurons hold {len(layers) * n_neurons}: "
            f"ask for 1 to {len(layers) * n_neurons}, or for more layers"
        )
