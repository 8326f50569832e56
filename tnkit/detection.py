"""From a model and a corpus to transfer neurons in one call: `detect`, `detect_all`.

found = tn.detect(model, corpus, language="ja", kind="type1", top=1000)
found.neurons, found.scores, found.centroids

everything = tn.detect_all(model, corpus)          # every language, both types, each sentence captured once
everything["ja", "type2"].neurons
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tnkit import storage
from tnkit.activations import capture, stream
from tnkit.centroids import CentroidAccumulator, Centroids, estimate_centroids
from tnkit.corpora import Corpus
from tnkit.errors import TnkitError
from tnkit.models import Model, check_layers
from tnkit.neurons import NeuronSet
from tnkit.scoring import NeuronScores, ScoreAccumulator

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

KINDS = ("type1", "type2")
_HOLD = 2 << 30  # bytes of activations held at once; a larger corpus is streamed in two passes


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

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the score distribution with the chosen tail."""
        return self.scores.plot(ax, chosen=self.neurons)

    def save(self, folder: str | Path) -> Path:
        """Write neurons.json, scores.safetensors and centroids.safetensors into a folder."""
        folder = Path(folder)
        self.scores.save(folder / "scores.safetensors")
        self.centroids.save(folder / "centroids.safetensors")
        self.neurons.save(folder / "neurons.json")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Detection":
        """Read what `save` wrote.

        Raises:
            TnkitError: for missing, damaged or foreign files.
        """
        folder = Path(folder)
        neurons = NeuronSet.load(folder / "neurons.json")
        about = neurons.provenance.get("selection", {})
        return cls(
            about.get("language", ""),
            about.get("kind", ""),
            neurons,
            NeuronScores.load(folder / "scores.safetensors"),
            Centroids.load(folder / "centroids.safetensors"),
        )

    def _repr_html_(self) -> str:
        about = {"language": self.language, "kind": self.kind, "distance": self.scores.distance}
        return storage.html_card("Transfer neurons", about) + self.neurons._repr_html_()


def detect(
    model: Model,
    corpus: Corpus | Mapping[str, Sequence[str]],
    *,
    language: str,
    kind: str = "type1",
    **options,
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

    >>> from tnkit.tests.tiny import tiny_model, SENTENCES
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
    hub: str | Sequence[str] = "en",
    top: int = 1000,
    distance: str = "cosine",
    layers: Iterable[int] | None = None,
    position: str = "last",
    last_layer: str = "raw",
    split: str = "train",
    streaming: bool | None = None,
    batch_tokens: int = 768,
    progress: bool = True,
) -> dict[tuple[str, str], Detection]:
    """Detect the transfer neurons of several languages and kinds, capturing every sentence once.

    Args:
        model: from `load_model`.
        corpus: a `Corpus`, or a mapping from language to aligned sentences.
        languages: the languages in question (default: all but the hub).
        kinds: "type1", "type2" or both.
        hub: the language(s) that make up the shared centroid together with the one in question.
        top: how many neurons a set has.
        distance: "cosine" or "euclidean".
        layers: where to look (default: the early layers for Type-1, the late ones for Type-2).
        position, last_layer, batch_tokens, progress: as in `capture`.
        split: which split of a `Corpus`.
        streaming: hold nothing but sums, at the price of a second pass over each language; None does so where the
            activations of one language would take more than 2 GiB.

    Returns:
        A `Detection` for each (language, kind).

    Raises:
        TnkitError: for an unknown kind or language, a hub without a shared centroid, more neurons than candidates, or
            a layer that the model does not have.

    >>> from tnkit.tests.tiny import tiny_model, SENTENCES
    >>> found = detect_all(tiny_model(), {"en": SENTENCES[:3], "it": SENTENCES[3:]}, top=10, progress=False)
    >>> sorted(found)
    [('it', 'type1'), ('it', 'type2')]
    """
    texts = corpus[split] if isinstance(corpus, Corpus) else dict(corpus)
    hub = (hub,) if isinstance(hub, str) else tuple(hub)
    languages = [name for name in texts if name not in hub] if languages is None else list(languages)
    where = {kind: _layers(model, kind, layers) for kind in kinds}
    _check(texts, languages, kinds, hub, top, where, model.n_neurons)
    read = tuple(sorted(set().union(*where.values())))
    options = {
        "position": position,
        "last_layer": last_layer,
        "batch_tokens": batch_tokens,
        "progress": progress,
        "layers": read,
    }
    centroids = {
        name: _centroid(model, texts[name], options) for name in hub if "type1" in kinds and name not in languages
    }
    found = {}
    for name in sorted(languages, key=lambda one: one not in hub):  # a hub's centroid is needed by the others
        held = 4 * len(read) * (2 * model.hidden_size + model.n_neurons + 1) * len(texts[name])
        captured = None
        if held > _HOLD if streaming is None else streaming:
            centroids[name] = _centroid(model, texts[name], options)
        else:
            captured = capture(model, texts[name], **options)
            centroids[name] = estimate_centroids([captured])
        running = {}
        for kind in kinds:
            parts = [centroids[one] for one in (*hub, name)] if kind == "type1" else [centroids[name]]
            running[kind] = ScoreAccumulator(model, estimate_centroids(parts), distance=distance, layers=where[kind])
        for batch in [captured] if captured else stream(model, texts[name], keep=("mid", "activations"), **options):
            for accumulator in running.values():
                accumulator.add(batch)
        for kind, accumulator in running.items():
            found[name, kind] = _detection(name, kind, accumulator, top)
    return found


def detect_towards(
    model: Model,
    sentences: Sequence[str],
    centroids: Centroids,
    *,
    language: str,
    kind: str = "type1",
    top: int = 1000,
    distance: str = "cosine",
    layers: Iterable[int] | None = None,
    **options,
) -> Detection:
    """Detect transfer neurons against centroids estimated before: one pass in flat memory.

    Args:
        model: from `load_model`.
        sentences: of the language in question.
        centroids: the target, of the same model.
        language, kind, top, distance, layers: as in `detect_all`.
        **options: position, batch_tokens, progress, as in `capture`.

    Raises:
        TnkitError: for centroids of another model, and as `detect_all` does.

    >>> import tnkit as tn
    >>> from tnkit.tests.tiny import tiny_model, SENTENCES
    >>> own = tn.estimate_centroids([tn.capture(tiny_model(), SENTENCES, progress=False)])
    >>> detect_towards(tiny_model(), SENTENCES, own, language="it", kind="type2", top=10, progress=False).neurons
    NeuronSet(10 neurons, layers 2 to 3)
    """
    where = _layers(model, kind, layers)
    _check_size(top, where, model.n_neurons)
    of = centroids.languages
    fits = len(of) > 1 and language in of if kind == "type1" else of == [language]
    if of and not fits:
        wanted = f"the hub's language(s) and {language}" if kind == "type1" else f"{language} alone"
        raise TnkitError(f"these centroids are of {' and '.join(of)}; {kind} of {language} needs those of {wanted}")
    running = ScoreAccumulator(model, centroids, distance=distance, layers=where)
    for batch in stream(model, sentences, keep=("mid", "activations"), layers=where, **options):
        running.add(batch)
    return _detection(language, kind, running, top)


def _detection(language: str, kind: str, running: ScoreAccumulator, top: int) -> Detection:
    scores = running.result()
    neurons = scores.top(top)
    selection = {"kind": kind, "language": language, **neurons.provenance["selection"]}
    neurons = replace(neurons, provenance={**neurons.provenance, "selection": selection})
    return Detection(language, kind, neurons, scores, running.centroids)


def _layers(model: Model, kind: str, layers: Iterable[int] | None) -> tuple[int, ...]:
    if kind not in KINDS:
        raise TnkitError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if layers is None:
        layers = model.early_layers if kind == "type1" else model.late_layers
    return check_layers(model, layers)


def _check(texts, languages, kinds, hub, top, where, n_neurons) -> None:
    """Refuse what cannot be done before a long pass begins."""
    if not languages or not kinds:
        raise TnkitError(f"name at least one language and kind; the corpus has {', '.join(texts)}")
    missing = [name for name in (*languages, *(hub if "type1" in kinds else ())) if name not in texts]
    if missing:
        raise TnkitError(f"the corpus has no sentences in {', '.join(missing)}; it has {', '.join(texts)}")
    alone = next((name for name in languages if "type1" in kinds and set(hub) <= {name}), None)
    if alone:
        raise TnkitError(
            f"Type-1 neurons of {alone} need another hub: with hub={alone!r} the shared centroid is its own"
        )
    for layers in where.values():
        _check_size(top, layers, n_neurons)


def _check_size(top: int, layers: Sequence[int], n_neurons: int) -> None:
    if not 0 < top <= len(layers) * n_neurons:
        raise TnkitError(
            f"top {top} was asked for; {len(layers)} layers of {n_neurons} neurons hold {len(layers) * n_neurons}: "
            f"ask for 1 to {len(layers) * n_neurons}, or for more layers"
        )


def _centroid(model: Model, sentences: Sequence[str], options: dict) -> Centroids:
    running = CentroidAccumulator()
    for batch in stream(model, sentences, keep=("post",), **options):
        running.add(batch)
    return running.result()
