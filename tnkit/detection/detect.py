"""From a model and a corpus to transfer neurons in one call: `detect`, `detect_all`.

found = tn.detect(model, corpus, language="ja", kind="type1", top=1000)
found.neurons, found.scores, found.centroids
tn.detect(model, {"en": english, "ja": japanese}, language="ja", score="centred")   # of captures: nothing runs again

everything = tn.detect_all(model, corpus)          # every language, both types, each sentence captured once
everything["ja", "type2"].neurons

for step in tn.detect_steps(model, corpus): ...    # the same, a batch at a time
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

from tqdm.auto import tqdm

from tnkit import parallel
from tnkit.captures.activations import Activations
from tnkit.captures.passes import plan
from tnkit.captures.token_ids import Texts
from tnkit.detection.centroids import Centroids
from tnkit.detection.detections import Detection
from tnkit.detection.ranking import check_size, span
from tnkit.detection.scores import DISTANCES, SCORES
from tnkit.detection.scoring import ScoreAccumulator
from tnkit.detection.steps import SCORED, Job, Step, detection_of
from tnkit.detection.sums import add_up, drain
from tnkit.errors import TnkitError, check_model, one_of, whole_number
from tnkit.models.model import Model, check_layers
from tnkit.text.corpus import Corpus

KINDS = ("type1", "type2")


def detect(
    model: Model,
    corpus: Corpus | Mapping[str, Texts | Activations],
    *,
    language: str,
    kind: str = "type1",
    **options: Any,
) -> Detection:
    """Detect the transfer neurons of one language and kind (Tezuka & Inoue, EMNLP 2025).

    Args:
        model: from `load_model`.
        corpus: a `Corpus`, or a mapping from language to aligned sentences, or to captures of them.
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
    corpus: Corpus | Mapping[str, Texts | Activations],
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
        **options: hub, top, distance, score, layers, position, suffix, split, cache and the others of `detect_steps`.

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


def detect_steps(
    model: Model,
    corpus: Corpus | Mapping[str, Texts | Activations],
    languages: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    *,
    hub: str | Sequence[str] = "en",
    top: SupportsIndex = 1000,
    distance: str = "cosine",
    score: str = "raw",
    layers: Iterable[SupportsIndex] | None = None,
    position: str = "last",
    suffix: str | None = None,
    last_layer: str = "raw",
    split: str = "train",
    streaming: bool | None = None,
    stability: bool = True,
    batch_tokens: SupportsIndex | None = None,
    cache: bool = False,
) -> Iterator[Step]:
    """Detect as `detect_all` does, a batch at a time; leaving the loop stops the detection.

    Args:
        model: from `load_model`.
        corpus: a `Corpus`, or a mapping from language to aligned sentences; or to captures of them, with `mid`, `post`
            and `activations`. Nothing runs then, and options that cannot change a capture are refused: position,
            suffix, last_layer, batch_tokens, streaming and cache.
        languages: the languages in question (default: all but the hub).
        kinds: "type1", "type2" or both.
        hub: the language(s) that make up the shared centroid together with the one in question. Each language counts
            once in the mean, also if it is named twice or is the one in question.
        top: how many neurons a set has.
        distance: "cosine" or "euclidean".
        score: "raw", as published, or "centred" on the mean over the centroids of all languages of the corpus (`origin`
            in `tn.score_neurons`), which takes two passes over each language. Centred Type-1 neurons are scored
            towards the mean over the hub's languages alone: seen from the origin, the shared centroid points largely
            to the language itself. With two languages, the targets of Type-1 and Type-2 are opposite: the difference
            of their centroids.
        layers: where to look (default: the early layers for Type-1, the late ones for Type-2).
        position, suffix, last_layer, batch_tokens: as in `capture`.
        split: which split of a `Corpus`.
        streaming: keep only sums in memory; None does so for a remote model, and where a language's activations need
            more than 2 GiB (on a GPU, a third of its free memory). Raw cosine scores then take one pass over each
            language, if a third of the free memory holds how every neuron turns the residual stream
            (`tn.Attraction`): eight times the down projections of the layers, in float32. Other scores, a remote
            model, and less memory take a second pass, once the centroids are known.
        stability: keep what `Detection.stability` needs. False takes an eighth of that memory.
        cache: save captures (sums when streaming) in the cache folder, and resume a killed detection from there.

    Returns:
        An iterator of `Step`: one after each batch, and one after each language.

    Raises:
        TnkitError: before anything runs, for an unknown kind, language or layer, for a hub that gives no shared
            centroid or is not parallel to the language, for more neurons than candidates, and for a centred score of
            euclidean distances or towards the mean over all languages.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> for step in detect_steps(tiny_model(), {"en": SENTENCES[:3], "it": SENTENCES[3:]}, top=10):
    ...     print(f"{step.language} {step.done}/{step.total}", *(detection.kind for detection in step.found))
    en 3/6
    it 6/6
    it 6/6 type1 type2
    """
    check_model(model)
    texts = corpus[split] if isinstance(corpus, Corpus) else dict(corpus)
    hub = (hub,) if isinstance(hub, str) else tuple(dict.fromkeys(hub))
    languages = [name for name in texts if name not in hub] if languages is None else list(dict.fromkeys(languages))
    if layers is not None:
        layers = check_layers(model, layers)  # of an iterator, before it is used up
    layers_of = {kind: _layers(model, kind, layers) for kind in kinds}
    options: dict[str, Any] = {"position": position, "suffix": suffix, "last_layer": last_layer}
    options |= {"batch_tokens": batch_tokens, "layers": tuple(sorted(set().union(*layers_of.values())))}
    top = whole_number("top", top, at_least=1)
    one_of("distance", distance, DISTANCES)
    one_of("score", score, SCORES)
    _check_captured(texts, {**options, "streaming": streaming, "cache": cache})
    job = Job(model, texts, hub, languages, layers_of, top, distance, score, streaming, stability, cache, options)
    job.check()
    return job.steps()


def detect_towards(
    model: Model,
    sentences: Texts,
    centroids: Centroids,
    *,
    language: str,
    kind: str = "type1",
    top: SupportsIndex = 1000,
    distance: str = "cosine",
    origin: Centroids | None = None,
    layers: Iterable[SupportsIndex] | None = None,
    cache: bool = False,
    progress: bool = True,
    **options: Any,
) -> Detection:
    """Detect transfer neurons against centroids estimated before: one pass in flat memory.

    Args:
        model: from `load_model`.
        sentences: of the language in question.
        centroids: the target, of the same model. Centred Type-1 scores take those of the hub's languages alone.
        language, kind, top, distance, layers: as in `detect_steps`.
        origin: for centred scores, the mean over the centroids of all languages, as in `tn.score_neurons`.
        cache: save the sums on the way, and resume from saved ones.
        progress: show a bar.
        **options: position, suffix, batch_tokens, as in `capture`.

    Raises:
        TnkitError: for centroids of another model, and as `detect_steps` does.

    >>> import tnkit as tn
    >>> from tnkit.testing import captured, tiny_model, SENTENCES
    >>> own = tn.estimate_centroids([captured()])
    >>> detect_towards(tiny_model(), SENTENCES, own, language="it", kind="type2", top=10, progress=False).neurons
    NeuronSet(10 neurons, layers 2 to 3)
    """
    layers = _layers(model, kind, layers)
    top = check_size("top", whole_number("top", top, at_least=1), layers, [model.widths[layer] for layer in layers])
    _check_target(centroids.languages, language, kind, centred=origin is not None)
    running = ScoreAccumulator(model, centroids, origin=origin, distance=distance, layers=layers)
    planned = plan(model, sentences, keep=SCORED, layers=layers, **options)
    work = add_up(planned, {kind: running}, fingerprint=model.fingerprint() if cache else None)
    drain(work, len(planned), desc="detect", progress=progress)
    return detection_of(language, kind, running.result(), centroids, top, origin=origin)


def _check_captured(texts: Mapping[str, Texts | Activations], options: Mapping[str, Any]) -> None:
    """Refuse captures among sentences, that lack what is asked for, and options that cannot change them."""
    captured = [name for name, given in texts.items() if isinstance(given, Activations)]
    if not captured:
        return
    if others := [name for name in texts if name not in captured]:
        raise TnkitError(
            f"{', '.join(captured)} are captures, {', '.join(others)} are sentences; capture these too, or give all as "
            "sentences"
        )
    plain = {"position": "last", "last_layer": "raw", "cache": False}
    if changed := [name for name, value in options.items() if name != "layers" and value != plain.get(name)]:
        raise TnkitError(f"{', '.join(changed)} cannot change captures; leave it out, or give their sentences")
    for name, given in texts.items():
        assert isinstance(given, Activations)
        given.require("mid", "post", "activations")
        if missing := [layer for layer in options["layers"] if layer not in given.layers]:
            raise TnkitError(f"the capture of {name} lacks layers {span(missing)}; capture them, or name others")


def _check_target(known: list[str], language: str, kind: str, *, centred: bool) -> None:
    """Refuse centroids of other languages than a kind of neuron is scored towards."""
    shared = known != [language] if centred else len(known) > 1 and language in known
    if known and not (shared if kind == "type1" else known == [language]):
        hub = "the hub's language(s)" + ("" if centred else f" and {language}")
        wanted = hub if kind == "type1" else f"{language} alone"
        raise TnkitError(f"these centroids are of {' and '.join(known)}; {kind} of {language} needs those of {wanted}")


def _layers(model: Model, kind: str, layers: Iterable[SupportsIndex] | None) -> tuple[int, ...]:
    one_of("kind", kind, KINDS)
    if layers is None:
        layers = model.early_layers if kind == "type1" else model.late_layers
    return check_layers(model, layers)
