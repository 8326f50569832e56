"""How a neuron set was chosen, and as many neurons chosen in the same way towards another target: `Selection`.

chosen = Selection.of(type1, model, {"ja": ja, "en": en, "ko": ko})      # what detection captured, by language
chosen.towards(chosen.centroid("ko"))                                    # Korean's own centroid
chosen.towards(chosen.difference())                                      # what the hub has more than the language
chosen.towards(chosen.random_direction(seed))                            # a target that knows nothing of languages
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.detection.centroids import CentroidAccumulator, Centroids, estimate_centroids
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scores import NeuronScores
from tnkit.detection.scoring import score_neurons
from tnkit.errors import TnkitError, whole_number
from tnkit.models.model import Model, check_layers
from tnkit.provenance import sentences_of


@dataclass(frozen=True, eq=False)
class Selection:
    """The procedure that chose a neuron set, to be repeated with another target.

    Every set it returns has as many neurons, from the same layers and sentences, by the same distance. What a set
    towards a target without meaning shares with the first, or does like it, is due to the procedure.

    Attributes:
        model: the model.
        captured: language → capture, with `post`; that of `language` with `mid` and `activations`, too.
        language: whose sentences are scored.
        target: the languages whose mean centroid the set was chosen towards.
        size: how many neurons.
        layers: where to look.
        distance: "cosine" or "euclidean".
        origin: the languages whose mean centroid is the origin of a centred score; none for the raw one.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> captured = {name: tn.capture(tiny_model(), text, progress=False) for name, text in texts.items()}
    >>> type1 = tn.detect(tiny_model(), texts, language="it", top=10, progress=False).neurons
    >>> chosen = Selection.of(type1, tiny_model(), captured, language="it", target=["en", "it"])
    >>> own, random = chosen.centroid("en", "it"), chosen.random_direction(0)
    >>> chosen.towards(own) == type1, len(type1 & chosen.towards(random)) < 10
    (True, True)
    """

    model: Model
    captured: Mapping[str, Activations]
    language: str
    target: tuple[str, ...]
    size: int
    layers: tuple[int, ...]
    distance: str = "cosine"
    origin: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        neurons: NeuronSet,
        model: Model,
        captured: Mapping[str, Activations],
        *,
        layers: Iterable[SupportsIndex] | None = None,
        language: str | None = None,
        target: Sequence[str] | None = None,
    ) -> "Selection":
        """The procedure that chose a set, as far as its provenance says.

        Args:
            neurons: the set.
            model, captured: as above.
            layers: where it was looked for (default: from the set's first layer to its last).
            language: whose sentences were scored (default: what the provenance says).
            target: the languages of the target (default: what the provenance says).

        Raises:
            TnkitError: where neither the arguments nor the provenance tell, or a capture is missing.
        """
        language = language or language_of(neurons)
        origin = _languages(neurons, "origin")
        if neurons.provenance.get("origin") and not origin:
            raise TnkitError(
                "these neurons were chosen by a centred score and do not say the languages of its origin; score "
                "sentences that name their language"
            )
        target = target_of(neurons) if target is None else tuple(target)
        if language is None or not target:
            raise TnkitError(
                "these neurons do not say which language they are of and which languages' centroid they were chosen "
                "towards; name both, as in language='ja', target=['en', 'ja']"
            )
        missing = [name for name in dict.fromkeys((language, *target, *origin)) if name not in captured]
        if missing:
            raise TnkitError(f"there is no capture of {', '.join(missing)}; there are {', '.join(captured)}")
        counts = neurons.by_layer()
        searched = range(min(counts, default=0), max(counts, default=0) + 1) if layers is None else layers
        distance = neurons.provenance.get("distance", "cosine")
        return cls(model, captured, language, target, len(neurons), check_layers(model, searched), distance, origin)

    @property
    def hub(self) -> tuple[str, ...]:
        """The languages of the target beside the one in question; none for Type-2."""
        return tuple(name for name in self.target if name != self.language)

    def centroid(self, *languages: str) -> Centroids:
        """The mean of the centroids of captured languages."""
        return estimate_centroids([self.captured[language] for language in languages])

    def towards(self, target: Centroids) -> NeuronSet:
        """The neurons of highest score towards a target."""
        return self._scores(target, self.layers).top(self.size)

    def _scores(self, target: Centroids, layers: Sequence[int]) -> NeuronScores:
        origin = self.centroid(*self.origin) if self.origin else None
        captured, how = self.captured[self.language], self.distance
        return score_neurons(self.model, captured, target, origin=origin, distance=how, layers=layers)

    def random_direction(self, seed: SupportsIndex) -> Centroids:
        """A target in a random direction, the same in all layers, as the centroids of neighbouring layers nearly are.

        For the euclidean distance it lies in that direction from the mean state, and for a centred score from the
        origin, as far off as the set's own target.
        """
        seed = whole_number("seed", seed)
        random = torch.Generator().manual_seed(seed)
        direction = torch.randn(self.model.hidden_size, generator=random, dtype=torch.float64)
        directions = direction.expand(self.model.n_layers, -1)
        return self._aimed(directions, {"target": "random direction", "seed": seed})

    def difference(self) -> Centroids:
        """A target in the direction of hub centroid − own centroid; for Type-2, of own − the mean of all others.

        For the euclidean distance it lies in that direction from the mean state, and for a centred score from the
        origin, as far off as the set's own target.
        """
        near = self.hub or (self.language,)
        far = (self.language,) if self.hub else tuple(name for name in self.captured if name != self.language)
        if not far:
            raise TnkitError(f"only {self.language} was captured; capture another language, to differ from")
        start, end = self.centroid(*far), self.centroid(*near)
        directions = torch.zeros(self.model.n_layers, self.model.hidden_size, dtype=torch.float64)
        directions[list(end.layers)] = end.values.double() - start.values.double()
        return self._aimed(directions, {"target": f"{'+'.join(near)} - {'+'.join(far)}"})

    def shuffled_labels(self, seed: SupportsIndex) -> Centroids:
        """A target of sentences drawn at random from all captured languages, as if the labels meant nothing.

        Each language of the set's target gives way to as many sentences, drawn without replacement.
        """
        seed = whole_number("seed", seed)
        sizes = [len(self.captured[name]) for name in self.target]
        bounds = np.cumsum([0, *(len(part) for part in self.captured.values())])
        order = np.random.default_rng(seed).permutation(bounds[-1])
        groups = [self._pooled(np.sort(group), bounds) for group in np.split(order, np.cumsum(sizes))[:-1]]
        drawn = [{"target": "shuffled labels", "seed": seed, "n": size} for size in sizes]
        target = estimate_centroids(groups)
        return replace(target, provenance={**target.provenance, "sentences": drawn})

    def in_layers(self, layers: Iterable[SupportsIndex], counts: Mapping[int, int]) -> NeuronSet:
        """Towards the set's own target, but in other layers.

        Args:
            layers: where to look.
            counts: layer → how many of the set are in it; the n-th of these layers gives its number to the n-th of the
                others, from whose first it goes on where they are fewer.
        """
        others, moved = check_layers(self.model, layers), Counter[int]()
        target = self.centroid(*self.target)
        for number, layer in enumerate(sorted(counts)):
            moved[others[number % len(others)]] += counts[layer]
        scores = self._scores(target, others)
        tops = [scores.top(count, layers=[layer]) for layer, count in sorted(moved.items()) if count]
        pairs, values = (tuple(value for top in tops for value in getattr(top, name)) for name in ("pairs", "scores"))
        selection = {"by layer": {str(layer): count for layer, count in sorted(moved.items())}}
        provenance = {**scores.provenance, "distance": self.distance, "selection": selection}
        return NeuronSet(pairs, (self.model.n_layers, self.model.n_neurons), values, provenance)

    def of_language(self, language: str) -> NeuronSet:
        """Of another language's sentences, towards its own centroid: of the hub, a placebo."""
        return replace(self, language=language, target=(language,)).towards(self.centroid(language))

    def _aimed(self, directions: Float64[Tensor, "layer hidden"], described: dict[str, Any]) -> Centroids:
        """A target in a direction, given for every layer of the model."""
        own = self.centroid(*self.target)
        values = directions[list(own.layers)]
        if self.distance == "euclidean":
            captured = self.captured[self.language].require("mid")
            rows = [captured.layers.index(layer) for layer in own.layers]
            start = captured.tensors()["mid"][rows].mean(dim=1, dtype=torch.float64)
        elif self.origin:
            start = self.centroid(*self.origin).values.double()
        if self.distance == "euclidean" or self.origin:
            distance = (own.values.double() - start).norm(dim=1, keepdim=True)
            values = start + distance * torch.nn.functional.normalize(values, dim=1)
        return Centroids(values.float(), own.layers, {**own.provenance, "sentences": [described]})

    def _pooled(self, places: np.ndarray, bounds: np.ndarray) -> Centroids:
        """The centroid of sentences of all languages, numbered through; its provenance names none."""
        running = CentroidAccumulator()
        for part, start, stop in zip(self.captured.values(), bounds[:-1], bounds[1:], strict=True):
            rows = torch.from_numpy(places[(start <= places) & (places < stop)] - start)
            post = part.require("post").tensors()["post"][:, rows]
            if len(rows):
                running.add(Activations(part.layers, part.index[rows], post=post, provenance=part.provenance))
        pooled = running.result()
        provenance = {name: value for name, value in pooled.provenance.items() if name != "sentences"}
        return replace(pooled, provenance=provenance)


def language_of(neurons: NeuronSet) -> str | None:
    """The language whose sentences chose a set, where its provenance says so.

    >>> language_of(NeuronSet((), (4, 48), provenance={"sentences": {"language": "ja"}}))
    'ja'
    """
    named = [origin.get("language") for origin in sentences_of(neurons.provenance)]
    return neurons.provenance.get("selection", {}).get("language") or (named[0] if len(named) == 1 else None)


def target_of(neurons: NeuronSet) -> tuple[str, ...]:
    """The languages whose mean centroid a set was chosen towards; none where its provenance does not say so.

    >>> target_of(NeuronSet((), (4, 48), provenance={"centroid": [{"language": "en"}, {"language": "ja"}]}))
    ('en', 'ja')
    """
    return _languages(neurons, "centroid")


def _languages(neurons: NeuronSet, point: str) -> tuple[str, ...]:
    """The languages of the centroid or the origin of a set's scores; none where its provenance does not name all."""
    origins = sentences_of({"sentences": neurons.provenance.get(point, [])})
    named = tuple(origin["language"] for origin in origins if origin.get("language"))
    return named if len(named) == len(origins) else ()


def target_frame(captured: Mapping[str, Activations], target: Sequence[str]) -> pd.DataFrame:
    """How much of a target is about languages, by layer.

    Args:
        captured: language → capture, with `post`.
        target: the languages whose mean centroid is the target.

    Returns:
        A frame with the share of the largest coordinate in the target's squared length, and its cosine with the
        centroid of each language.

    >>> from tnkit.testing import by_language
    >>> target_frame(by_language(), ["en"]).columns.tolist()
    ['largest coordinate', 'en', 'ja']
    """
    aim = estimate_centroids([captured[name] for name in target])
    columns = {"largest coordinate": aim.largest_share}
    columns |= {name: aim.cosines(estimate_centroids([capture])) for name, capture in captured.items()}
    index = pd.Index(aim.layers, name="layer")
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()}, index=index)
