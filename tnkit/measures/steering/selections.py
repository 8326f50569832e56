"""What a language's neurons are compared with when they steer: `selections`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from tnkit.captures.activations import Activations
from tnkit.detection.centroids import estimate_centroids
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scores import NeuronScores
from tnkit.detection.scoring import score_neurons
from tnkit.detection.selection import target_of
from tnkit.errors import one_of
from tnkit.interventions.controls import Control, controls
from tnkit.interventions.direction import Direction
from tnkit.measures.specificity.rivals import rivals_found
from tnkit.models.model import Model

DIRECTIONS = ("DiffMean", "random vector")
SELECTIONS = ("same layers and norms", "random direction", "lowest scores", "LAPE", "average precision", *DIRECTIONS)


def selections(
    model: Model,
    neurons: NeuronSet,
    captured: Mapping[str, Activations],
    means: Mapping[str, Activations],
    *,
    language: str,
    away: str,
    layer: int,
    names: Iterable[str] = SELECTIONS,
) -> dict[str, Control]:
    """The selections that a set is compared with, as many neurons each, by name.

    "DiffMean" is the difference of means of the residual stream that enters a layer (as in CLaS-Bench, arXiv
    2601.08331, where it steers best), and "random vector" a vector of the same length in a random direction. All others
    are those of `tn.controls`, with the language-specific neurons of `tnkit.measures.specificity.rivals`.

    Args:
        model: from `load_model`.
        neurons: the set; one that does not say how it was chosen counts as chosen towards the language's own centroid.
        captured: language → capture of the last token, with `mid`, `post`, `activations` and `scale`.
        means: language → capture with `post` of the layer before, whose means differ by the direction.
        language, away: towards which language, and away from which.
        layer: where the directions are added.
        names: which.

    Raises:
        TnkitError: for an unknown name, and as `tn.controls` does.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> texts = tiny_corpus()["train"]
    >>> captured = {name: tn.capture(tiny_model(), texts[name], progress=False) for name in texts}
    >>> some = tn.detect(tiny_model(), texts, language="it", kind="type2", top=9, progress=False).neurons
    >>> how = {"language": "it", "away": "en", "layer": 2, "names": ["uniform", "DiffMean"]}
    >>> [*selections(tiny_model(), some, captured, captured, **how)]
    ['uniform', 'DiffMean']
    """
    names, layers = tuple(names), sorted(neurons.by_layer())
    others: dict[str, Control] = {}
    if set(names) & set(DIRECTIONS):
        direction = Direction.difference(means[language], means[away], layers=[layer], add=1.0)
        others |= {"DiffMean": direction, "random vector": _random(direction)}
    if not set(names) - set(DIRECTIONS):
        return {name: others[name] for name in names}
    span = range(layers[0], layers[-1] + 1)
    if {"LAPE", "average precision"} & set(names):
        others |= rivals_found(captured, neurons, language=language, layers=span)
    target = target_of(neurons) or (language,)
    scores = _scores(model, captured, language, target, span) if "lowest scores" in names else None
    options: dict[str, Any] = {"language": language, "target": target, "model": model, "captured": captured}
    known = controls(neurons, layers=span, scores=scores, others=others, **options)
    for name in names:
        if name not in ("LAPE", "average precision"):
            one_of("selection", name, tuple(known))
    return {name: known[name] for name in names if name in known}


def _scores(
    model: Model, captured: Mapping[str, Activations], language: str, target: Iterable[str], layers: Iterable[int]
) -> NeuronScores:
    """The scores that the set is the top of."""
    aim = estimate_centroids([captured[name] for name in target])
    return score_neurons(model, captured[language], aim, layers=layers)


def _random(direction: Direction) -> Callable[[int], Direction]:
    """A direction as long in each layer, drawn from a seed."""

    def draw(seed: int) -> Direction:
        generator = torch.Generator().manual_seed(seed)
        vectors = {}
        for layer, vector in direction.vectors.items():
            drawn = torch.randn(len(vector), generator=generator, dtype=torch.float64)
            vectors[layer] = drawn * vector.norm() / drawn.norm()
        return Direction(vectors, add=direction.add, provenance={"control": {"how": "random vector", "seed": seed}})

    return draw
