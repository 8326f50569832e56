"""How much each neuron moves the residual stream towards a centroid: `NeuronScores`, by `tnkit.detection.closed_form`.

The sums are taken where the value vectors are. Of a remote model, a pass (`sums`) sends token ids and centroids
and gets one sum a layer and neuron for each batch; `score_neurons` sends the captured states of the scored layers
instead, since a capture does not hold its text. Value vectors, by far the largest part, never travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.detection.centroids import Centroids
from tnkit.detection.closed_form import layer_total, layer_totals, sizes_written, summed_scores
from tnkit.detection.neurons import NeuronSet, ranked
from tnkit.errors import TnkitError, one_of, whole_number, whole_numbers
from tnkit.models.model import Model, check_layers
from tnkit.provenance import check_alike, check_fits, check_made_with, stated

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

__all__ = ["DISTANCES", "NeuronScores", "ScoreAccumulator", "score_neurons", "summed_scores"]
DISTANCES = ("cosine", "euclidean")


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """The score of every neuron: mean over sentences of how much nearer it brings `mid` to a centroid.

    Attributes:
        values: (layer, neuron), float64; positive is nearer; NaN where a layer was not scored. In cosine units for
            "cosine", in units of the residual stream for "euclidean".
        distance: "cosine" or "euclidean".
        provenance: model, sentences, centroid, versions.
    """

    values: Float[Tensor, "layer neuron"]
    distance: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        language = self.provenance.get("sentences", {}).get("language", "unnamed")
        return f"NeuronScores({language}, {self.distance}, layers {self.layers[0]} to {self.layers[-1]})"

    @property
    def layers(self) -> list[int]:
        """The layers that were scored."""
        return torch.nonzero(~self.values.isnan().all(dim=1))[:, 0].tolist()

    def top(self, n: SupportsIndex, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The n neurons of highest score, best first; equal scores keep the order (layer, neuron).

        Args:
            n: how many.
            layers: where to look (default: every scored layer).

        Raises:
            TnkitError: for more neurons than there are candidates, or a layer that was not scored.

        >>> NeuronScores(torch.tensor([[0.1, 0.3], [0.2, 0.3]]).double(), "cosine").top(3).pairs
        ((0, 1), (1, 1), (1, 0))
        """
        return self._extreme("top", n, layers)

    def bottom(self, n: SupportsIndex, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The n neurons of lowest score, lowest first: those that move the stream away, a control.

        >>> NeuronScores(torch.tensor([[0.1, 0.3], [0.2, 0.3]]).double(), "cosine").bottom(2).pairs
        ((0, 0), (1, 0))
        """
        return self._extreme("bottom", n, layers)

    def above(self, threshold: float, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The neurons whose score is greater than a threshold, best first (may be none).

        >>> len(NeuronScores(torch.tensor([[0.1, 0.3], [0.2, 0.3]]).double(), "cosine").above(0.15))
        3
        """
        chosen, values = self._candidates(layers)
        n = int((values > threshold).sum())
        return ranked(values, n, chosen, len(self.values), self._about(layers, threshold=threshold))

    def to_frame(self) -> "pd.DataFrame":
        """The score of every scored neuron, indexed (layer, neuron)."""
        import pandas as pd

        layers, width = self.layers, self.values.shape[1]
        index = pd.MultiIndex.from_product([layers, range(width)], names=["layer", "neuron"])
        return pd.DataFrame({"score": self.values[layers].reshape(-1).numpy()}, index=index)

    def plot(
        self, ax: "matplotlib.axes.Axes | None" = None, *, chosen: NeuronSet | None = None, colour: str = "#0072B2"
    ) -> "matplotlib.axes.Axes":
        """Draw the distribution of scores, with the scores of a chosen set in colour."""
        from tnkit import plots

        values, picked = self.values.numpy(), chosen.scores if chosen else ()
        return plots.score_distribution(values, distance=self.distance, chosen=picked, colour=colour, ax=ax)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        about = {"distance": self.distance, "provenance": self.provenance}
        return storage.save_tensors(path, "scores", {"values": self.values}, about)

    @classmethod
    def load(cls, path: str | Path) -> "NeuronScores":
        """Read what `save` wrote.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        tensors, about = storage.load_tensors(path, "scores")
        if set(tensors) != {"values"} or about.get("distance") not in DISTANCES or tensors["values"].ndim != 2:
            raise TnkitError(f"{path} lacks the values or the distance of scores; score again")
        scored = ~tensors["values"].isnan().all(dim=1)
        storage.finite(path, "values", tensors["values"][scored], (None, None))
        if not bool(scored.any()):
            raise TnkitError(f"{path} holds no scored layer; score again")
        return cls(tensors["values"], about["distance"], stated(path, about))

    def _candidates(self, layers: Iterable[SupportsIndex] | None) -> tuple[list[int], Float[Tensor, "layer neuron"]]:
        """The layers to choose from, and the scores of their neurons."""
        chosen = sorted(set(self.layers if layers is None else whole_numbers("layers", layers)))
        missing = [layer for layer in chosen if layer not in self.layers]
        if missing or not chosen:
            raise TnkitError(f"layers {missing or 'none'} were not scored; scored are {self._named(None)}")
        return chosen, self.values[chosen]

    def _extreme(
        self, end: Literal["top", "bottom"], n: SupportsIndex, layers: Iterable[SupportsIndex] | None
    ) -> NeuronSet:
        """The n neurons at one end of the scores."""
        n, layers = whole_number("n", n), None if layers is None else tuple(layers)
        chosen, values = self._candidates(layers)
        if not 0 < n <= values.numel():
            raise TnkitError(
                f"{end} {n} was asked for, layers {self._named(layers)} hold {values.numel()} neurons; "
                f"ask for 1 to {values.numel()}"
            )
        about = self._about(layers, **{end: n})
        return ranked(values, n, chosen, len(self.values), about, lowest=end == "bottom")

    def _about(self, layers: Iterable[SupportsIndex] | None, **selection: Any) -> dict[str, Any]:
        """The provenance of neurons chosen from these scores."""
        selection["layers"] = self._named(layers)
        return {**self.provenance, "distance": self.distance, "selection": selection}

    def _named(self, layers: Iterable[SupportsIndex] | None) -> str:
        chosen = sorted(self.layers if layers is None else whole_numbers("layers", layers))
        whole = chosen == list(range(chosen[0], chosen[-1] + 1))
        return f"{chosen[0]} to {chosen[-1]}" if whole else ", ".join(map(str, chosen))

    def _repr_html_(self) -> str:
        rows = {
            "distance": self.distance,
            "layers": self._named(None),
            "neurons a layer": self.values.shape[1],
        }
        return storage.html_card("Neuron scores", rows | {"highest": float(self.values.nan_to_num(-torch.inf).max())})


class ScoreAccumulator:
    """A running sum of scores against one centroid; merging two gives the accumulator of both.

    Args:
        model: the model that the batches come from.
        centroids: from `estimate_centroids`.
        distance: "cosine" or "euclidean".
        layers: the layers to score (default: all that the centroids have).

    Raises:
        TnkitError: for an unknown distance, or centroids of another model.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> model = tiny_model()
    >>> whole = tn.capture(model, SENTENCES, progress=False)
    >>> target = tn.estimate_centroids([whole])
    >>> running = ScoreAccumulator(model, target)
    >>> for batch in tn.stream(model, SENTENCES, batch_tokens=64, progress=False):
    ...     running.add(batch)
    >>> stored = score_neurons(model, whole, target).values
    >>> bool((running.result().values - stored).norm() < 1e-5 * stored.norm())
    True
    """

    def __init__(
        self,
        model: Model,
        centroids: Centroids,
        *,
        distance: str = "cosine",
        layers: Iterable[SupportsIndex] | None = None,
    ) -> None:
        one_of("distance", distance, DISTANCES)
        self.model, self.centroids, self.distance = model, centroids.check(model), distance
        self.layers = check_layers(model, centroids.layers if layers is None else layers)
        for layer in self.layers:
            centroids.at(layer)
        self.total = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.float64)
        self.count = 0
        self.provenance: dict[str, Any] = {}

    def add(self, batch: Activations) -> None:
        """Count the sentences of a batch in.

        Raises:
            TnkitError: where the batch lacks a layer, `mid` or `activations`, or comes from another model.
        """
        batch.require("mid", "activations", "scale")
        self._check(batch.layers, batch.provenance)
        for parcel in self._parcels(batch):
            for layer, total in self.model.ask_weights(layer_total, parcel).items():
                self.total[layer] += total.cpu()
        self._counted(len(batch), batch.provenance)

    def _parcels(self, batch: Activations) -> Iterator[dict[int, tuple[Any, ...]]]:
        """What is asked of the layers: all at once here, in requests of limited size of a remote model."""
        sentence = 4 * (self.model.n_neurons + self.model.hidden_size + 1)
        limit = self.model.request_bytes
        rows = len(batch) if limit is None else max(1, limit // sentence)
        parcel: dict[int, tuple[Any, ...]] = {}
        room = rows * len(self.layers) if limit is None else rows
        for layer, start in product(self.layers, range(0, len(batch), rows)):
            place, part = batch.layers.index(layer), slice(start, start + rows)
            kept = batch.tensors()
            states = [kept[name][place][part] for name in ("mid", "activations", "scale")]
            states += [self.centroids.at(layer)]
            if layer in parcel or len(states[0]) > room:
                yield parcel
                parcel, room = {}, rows
            parcel[layer] = (*states, self.distance)
            room -= len(states[0])
        yield parcel

    def _check(self, layers: Sequence[int], provenance: dict[str, Any]) -> None:
        if provenance is not self.provenance:  # batches of one pass share theirs
            check_made_with(self.model, provenance, "these captured states", states=True)
            check_alike([self.provenance, provenance])
            check_fits(provenance, self.centroids.provenance)
        missing = [layer for layer in self.layers if layer not in layers]
        if missing:
            raise TnkitError(f"layers {missing} were not captured; capture them or score layers={layers}")

    def _counted(self, count: int, provenance: dict[str, Any]) -> None:
        self.count += count
        self.provenance = provenance

    @property
    def about(self) -> list[Any]:
        """What the sums are of, for the cache."""
        exact = storage.text_hash(str(row) for row in self.centroids.values.tolist())
        return [self.distance, self.layers, self.centroids.layers, exact]

    def resume(self, total: Tensor, count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:  # noqa: ARG002
        """Take up saved sums."""
        self.total, self.count, self.provenance = total, count, provenance

    def reduction(self) -> Callable[..., Tensor | None]:
        """What a remote model's server makes of each layer of a batch, so that only that travels; for `take`."""
        return partial(layer_totals, {layer: self.centroids.at(layer).clone() for layer in self.layers}, self.distance)

    def take(self, totals: list[Tensor], count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        """Count in a batch of which `reduction` was made."""
        self._check(layers, provenance)
        self.total[list(self.layers)] += torch.stack([total.cpu() for total in totals])
        self._counted(count, provenance)

    def merge(self, other: "ScoreAccumulator") -> None:
        """Count in what another accumulator, of the same centroid and distance, has seen."""
        if (self.distance, self.layers) != (other.distance, other.layers):
            raise TnkitError(
                f"scores of {other.distance}, layers {other.layers}, do not add to {self.distance}, {self.layers}"
            )
        check_alike([self.provenance, other.provenance])
        self.total += other.total
        self.count += other.count
        self.provenance = other.provenance or self.provenance

    def result(self) -> NeuronScores:
        """The scores of what was added.

        Raises:
            TnkitError: where nothing was.
        """
        if not self.count:
            raise TnkitError("there are no sentences to score")
        values = torch.full_like(self.total, torch.nan)
        values[list(self.layers)] = self.total[list(self.layers)] / self.count
        if not bool(values[list(self.layers)].isfinite().all()):
            layer = next(layer for layer in self.layers if not bool(values[layer].isfinite().all()))
            raise TnkitError(f"scores of layer {layer} are not finite: the captured states or weights hold NaN or Inf")
        about = {
            **self.provenance,
            "centroid": self.centroids.provenance.get("sentences", self.centroids.provenance),
        }
        return NeuronScores(values, self.distance, about)


def score_neurons(
    model: Model,
    activations: Activations,
    centroids: Centroids,
    *,
    distance: str = "cosine",
    layers: Iterable[SupportsIndex] | None = None,
) -> NeuronScores:
    """Score every neuron against a centroid (Tezuka & Inoue, EMNLP 2025).

    cosine: mean over sentences of cos(m + c, C) - cos(m, C); euclidean: of |m - C| - |m + c - C|, where m is `mid`, c a
    neuron's contribution and C the centroid of the layer. The cosine with a zero vector counts as 0.

    Args:
        model: the model that was captured.
        activations: from `capture`, with `mid` and `activations`.
        centroids: the target, from `estimate_centroids`.
        distance: "cosine" or "euclidean".
        layers: the layers to score (default: all that centroids and capture share).

    Returns:
        `NeuronScores`, (layer, neuron), float64; positive is nearer.

    Raises:
        TnkitError: for an unknown distance, centroids or a capture of another model (or of this one before its weights
            or dtype changed), a capture that lacks what is needed, or one made under other ablations, at another
            position, with another template or attention implementation than the centroids. Where both were made under
            one ablation, the scores' provenance says so.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> ja = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> score_neurons(tiny_model(), ja, tn.estimate_centroids([ja])).values.shape
    torch.Size([4, 48])
    """
    shared = [layer for layer in centroids.layers if layer in activations.layers]
    running = ScoreAccumulator(model, centroids, distance=distance, layers=shared if layers is None else layers)
    running.add(activations)
    return running.result()


def contribution_norms(model: Model, activations: Activations) -> Float[Tensor, "layer neuron"]:
    """The mean over sentences of the length of each neuron's contribution, to match controls by.

    Args:
        model: the model that was captured.
        activations: from `capture`, with `activations`.

    Returns:
        (layer, neuron), float32, in units of the residual stream; NaN where a layer was not captured.

    Raises:
        TnkitError: for a capture of another model.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> contribution_norms(tiny_model(), tn.capture(tiny_model(), SENTENCES, progress=False)).shape
    torch.Size([4, 48])
    """
    check_made_with(model, activations.provenance, "these captured states", states=True)
    kept = activations.require("activations", "scale").tensors()
    norms = torch.full((model.n_layers, model.n_neurons), torch.nan, dtype=torch.float32)
    sizes = model.ask_weights(sizes_written, dict.fromkeys(activations.layers, ()))
    for place, layer in enumerate(activations.layers):
        written = kept["activations"][place].abs() * kept["scale"][place][:, None]
        norms[layer] = sizes[layer].cpu() * written.mean(dim=0)
    return norms
