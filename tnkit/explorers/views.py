"""Open the explorer, at any of its views: `explore`, and one function for each view."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tnkit.detection.detections import Detection
from tnkit.errors import TnkitError, check_model
from tnkit.explorers.app import SEEDS, Explorer
from tnkit.explorers.study import Study
from tnkit.models.load import load_model
from tnkit.models.model import Model
from tnkit.text.corpus import Corpus, load_corpus


def explore(
    model: Model,
    corpus: Corpus,
    *,
    view: str = "map",
    languages: Sequence[str] | None = None,
    hub: str = "en",
    sentences: int = 256,
    seeds: int = SEEDS,
    position: str = "last",
    suffix: str | None = None,
    distance: str = "cosine",
    score: str = "raw",
    top: int | None = None,
    layers: Sequence[int] | None = None,
    found: Mapping[tuple[str, str], Detection] | None = None,
    folder: str | Path = "figures",
    results: str | Path = "detections",
    **state: Any,
) -> Explorer:
    """Explore languages, transfer neurons and what switching them off does, in one application with four views.

    The map shows test sentences in one plane for each layer, fitted to the untouched model and kept, so that states
    with neurons off move in the same picture. Evidence compares a set with its controls, only at layers from the first
    ablated one on, and at a layer that was chosen on training sentences. Views compute what they show when they are
    looked at; in a notebook, this can be cancelled.

    Args:
        model: from `load_model`.
        corpus: neurons are found in its training split; the map and the evidence are of its test split.
        view: "map", "neurons", "evidence" or "detection".
        languages: which languages (default: all).
        hub: the language whose space counts as the shared one.
        sentences: the maximum number per split.
        seeds: the number of draws of each random control.
        position, suffix: which token is read and ablated, as in `capture`.
        distance, score, top, layers: how neurons are found, as in `detect_all` (default of top: 300, or a tenth of a
            small model's late neurons).
        found: earlier detections, by (language, kind), such as the `result` of an explorer.
        folder: where pictures are saved.
        results: where "Save results" writes detections.
        **state: what else is chosen, as "Copy as code" writes it: layer, language, kind, size, value, control, shown
            (of "untouched", "set" and "control"), morph, colour, hidden, measure, fixed, ticked, and others.

    Returns:
        An `Explorer`: a widget with `figure()`, `save()` and `export()`, which writes a page without a kernel.

    Raises:
        TnkitError: for unknown languages, and for a state that the study does not have.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explore(tiny_model(), tiny_corpus(), view="evidence", language="ja", kind="type2")
    Explorer(view='evidence', layer=2, language='ja', kind='type2')
    """
    options: dict[str, Any] = {"languages": languages, "hub": hub, "sentences": sentences, "position": position}
    options |= {"suffix": suffix} | {"distance": distance, "score": score, "top": top, "layers": layers}
    check_model(model)
    if not isinstance(corpus, Corpus):
        raise TnkitError('the explorer needs a corpus beside the model, such as tn.load_corpus("everyday")')
    study = Study.of(model, corpus, found=found, **options)
    return Explorer(study, seeds=seeds, folder=folder, results=results, view=view, **state)


def explore_spaces(model: Model, corpus: Corpus, **options: Any) -> Explorer:
    """`explore` at its map: where languages lie in each layer, with neurons on and off.

    Args:
        model: from `load_model`.
        corpus: whose test sentences are the points.
        **options: those of `explore`.

    Returns:
        An `Explorer`.

    Raises:
        TnkitError: as `explore` does, and for captures in place of a model.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explore_spaces(tiny_model(), tiny_corpus(), layer=3).figure().axes[0].get_title(loc="left")
    'layer 3, untouched'
    """
    if isinstance(model, Mapping):
        raise TnkitError(
            "the explorer reads the states itself: give a model and a corpus; tn.geometry.pca(captures).plot() draws "
            "captures alone"
        )
    return explore(model, corpus, view="map", **options)


def explore_neurons(model: Model, corpus: Corpus, **options: Any) -> Explorer:
    """`explore` at its neurons: a table, what activates each one, what it writes, and its values in your own text.

    Args:
        model: from `load_model`.
        corpus: whose training sentences find the neurons, and are read token by token.
        **options: those of `explore`, such as top, or earlier detections as found.

    Returns:
        An `Explorer`.

    Raises:
        TnkitError: as `explore` does, and for detections in place of a model.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explore_neurons(tiny_model(), tiny_corpus(), top=12, kind="type2").state["size"]
    12
    """
    if isinstance(model, Detection | Mapping):
        raise TnkitError(
            "the explorer reads the neurons in the model: explore_neurons(model, corpus, found=detections) shows "
            "these; detection.plot() draws one alone"
        )
    return explore(model, corpus, view="neurons", **options)


def explore_ablation(model: Model, corpus: Corpus, **options: Any) -> Explorer:
    """`explore` at its evidence: what changes when a set is off, beside controls, and how a prompt is continued.

    Args:
        model: from `load_model`.
        corpus: whose training sentences find the neurons, and whose test sentences are measured.
        **options: those of `explore`, such as seeds.

    Returns:
        An `Explorer`.

    Raises:
        TnkitError: as `explore` does.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explore_ablation(tiny_model(), tiny_corpus(), language="ja", size=10)
    Explorer(view='evidence', layer=2, language='ja', kind='type1')
    """
    return explore(model, corpus, view="evidence", **options)


def explore_detection(
    model: Model | str = "gemma-3-270m", corpus: Corpus | str = "everyday", **options: Any
) -> Explorer:
    """`explore` at its detection: a form that finds neurons, where they are, and which languages share them.

    Args:
        model: from `load_model`, or a name that it accepts.
        corpus: a `Corpus`, or a name that `load_corpus` accepts; neurons are found in its training split.
        **options: those of `explore`, such as distance, score, top, or earlier detections as found.

    Returns:
        An `Explorer`; `result` has the detections so far, and `save_results()` writes them.

    Raises:
        TnkitError: as `explore` does, and for an unknown model or corpus.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> explorer = explore_detection(tiny_model(), tiny_corpus(), distance="euclidean")
    >>> _ = explorer.figure()
    >>> explorer.result["it", "type1"].scores.distance
    'euclidean'
    """
    model = load_model(model) if isinstance(model, str) else model
    check_model(model)
    corpus = load_corpus(corpus) if isinstance(corpus, str) else corpus
    return explore(model, corpus, view="detection", **options)
