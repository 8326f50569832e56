"""Score neurons against a centroid: `score_neurons`, and `ScoreAccumulator`, batch by batch.

The sums are taken where the value vectors are, which never travel from a remote model. A pass sends it token ids and
centroids, and gets back one sum for each layer and neuron of a batch. `score_neurons` sends the captured states, since
a capture does not hold its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.detection.centroids import Centroids
from tnkit.detection.closed_form import sizes_written
from tnkit.detection.routed import expert_total
from tnkit.detection.scores import DISTANCES, NeuronScores
from tnkit.detection.sums import NeuronSum
from tnkit.errors import TnkitError, check_model, one_of
from tnkit.models.model import Model, hashed_once
from tnkit.models.sessions import TURN
from tnkit.provenance import check_alike, check_made_with

FOLDS = 8  # of the sentences, for halves; every eighth sentence is in the same fold


class ScoreAccumulator(NeuronSum):
    """The running sum of scores against one centroid.

    Args:
        model: the model that the batches come from.
        centroids: from `estimate_centroids`.
        origin, distance: as in `score_neurons`.
        layers: the layers to score (default: all that the centroids have); those without neurons are left out.

    Raises:
        TnkitError: for an unknown distance, layers without neurons, centroids of another model, an origin that the
            euclidean distance does not depend on, or one that is the centroid itself.

    >>> import tnkit as tn
    >>> from tnkit.testing import captured, tiny_model, SENTENCES
    >>> model, target = tiny_model(), tn.estimate_centroids([captured()])
    >>> running = ScoreAccumulator(model, target)
    >>> for batch in tn.stream(model, SENTENCES, batch_tokens=64, progress=False):
    ...     running.add(batch)
    >>> stored = score_neurons(model, captured(), target).values
    >>> bool((running.result().values - stored).norm() < 1e-5 * stored.norm())
    True
    """

    def __init__(
        self,
        model: Model,
        centroids: Centroids,
        *,
        origin: Centroids | None = None,
        distance: str = "cosine",
        layers: Iterable[SupportsIndex] | None = None,
    ) -> None:
        one_of("distance", distance, DISTANCES)
        self.centroids, self.origin, self.distance = centroids.check(model), origin, distance
        if origin is not None:
            check_origin(distance)
            check_alike([centroids.provenance, origin.check(model).provenance])
        super().__init__(model, centroids.layers if layers is None else layers)
        self.points = [centroids] if origin is None else [centroids, origin]
        self.folds = FOLDS if model.request_bytes is None else 0  # nine times as much would travel
        self.slots = model.slots
        self._views = {layer: (centroids.at(layer), self._origin_at(layer)) for layer in self.layers}

    def _origin_at(self, layer: int) -> Float[Tensor, "hidden"]:
        """The origin after a layer: zeros for raw scores."""
        target = self.centroids.at(layer)
        if self.origin is None:
            return torch.zeros_like(target)
        origin = self.origin.at(layer)
        check_apart(layer, target, origin)
        return origin

    def totals(self, batch: Activations) -> Float[Tensor, "layer neuron"]:
        kept = batch.require("mid", "activations", "scale", *(["experts"] if self.slots else [])).tensors()
        experts = kept.get("experts", torch.zeros(len(batch.layers), len(batch), 0, dtype=torch.int32))
        total = torch.zeros(len(self.layers), self.columns(self.model), dtype=torch.float64)
        folds = None if self.folds == 0 else one_hot(batch.index % self.folds, self.folds).T.float()
        sentence = 4 * (self.model.places + self.model.hidden_size + 1) * len(self.layers)
        limit = self.model.request_bytes
        at_once = max(1, len(batch) if limit is None else limit // sentence)
        for start in range(0, len(batch), at_once):
            rows, parcel = slice(start, start + at_once), dict[int, tuple[Any, ...]]()
            for layer in self.layers:
                place = batch.layers.index(layer)
                states = [kept[name][place][rows] for name in ("mid", "activations", "scale")]
                shape = (self.model.widths[layer], *self.model.experts_of(layer)), (self.model.n_neurons, self.experts)
                parcel[layer] = (*states, *self._views[layer], folds, self.distance, experts[place][rows], *shape)
            summed = self.model.ask_weights(expert_total, parcel)
            total += torch.stack([summed[layer].cpu() for layer in self.layers])
        return total

    def reduction(self) -> Callable[..., Tensor | None]:
        targets, origins = ({layer: views[side].clone() for layer, views in self._views.items()} for side in (0, 1))
        return partial(_totals, targets, origins, self.distance)

    def columns(self, model: Model) -> int:
        return (1 + self.folds) * model.n_neurons + self.experts

    @property
    def identity(self) -> list[Any]:
        values = ((point.layers, storage.text_hash(map(str, point.values.tolist()))) for point in self.points)
        return [self.distance, self.layers, self.folds, *chain.from_iterable(values)]

    def result(self) -> NeuronScores:
        """The scores of the sentences that were added.

        Raises:
            TnkitError: where there are none, or a score is not finite.
        """
        if not self.count:
            raise TnkitError("there are no sentences to score")
        sums = self.total[:, : self.total.shape[1] - self.experts]
        sums = sums.unflatten(1, (-1, self.model.n_neurons))  # (layer, all sentences or fold, neuron)
        means = sums[:, 0] / self.count
        for layer, row in zip(self.layers, means, strict=True):
            if not bool(row[: self.model.widths[layer]].isfinite().all()):
                raise TnkitError(
                    f"scores of layer {layer} are not finite: the captured states or weights hold NaN or Inf"
                )
        values = torch.full((self.model.n_layers, self.model.n_neurons), torch.nan, dtype=torch.float64)
        values[list(self.layers)] = means
        used = zip(("centroid", "origin"), self.points, strict=False)
        points = {name: point.provenance.get("sentences", point.provenance) for name, point in used}
        folds = sums[:, 1:].float().transpose(0, 1).contiguous() if self.folds else None
        routed = shares_sent(self.model, self.layers, self.total[:, self.total.shape[1] - self.experts :], self.count)
        return NeuronScores(values, self.distance, {**self.provenance, **points}, folds, routed)


def shares_sent(
    model: Model, layers: Iterable[int], sent: Float[Tensor, "summed expert"], count: int
) -> Float[Tensor, "layer expert"] | None:
    """The share of the sentences that each expert had, NaN in layers without experts; None in a model without any.

    >>> from tnkit.testing import tiny_model
    >>> shares_sent(tiny_model("mixtral"), [1], torch.tensor([[3.0, 0, 6, 3, 0, 0]]), 6)[1, :4].tolist()
    [0.5, 0.0, 1.0, 0.5]
    """
    if not sent.shape[1]:
        return None
    shares = torch.full((model.n_layers, sent.shape[1]), torch.nan, dtype=torch.float64)
    for layer, row in zip(layers, sent.double().cpu(), strict=True):
        if has := model.experts_of(layer):
            shares[layer, : has[0]] = row[: has[0]] / count
    return shares


def _totals(
    centroids: Mapping[int, Tensor],
    origins: Mapping[int, Tensor],
    distance: str,
    layer: int,
    sites: Mapping[str, Tensor],
    vectors: Tensor,
    gain: Tensor,
    bias: Tensor,
) -> Tensor | None:
    """A batch's summed scores in one layer, None for a layer without a centroid; it runs where the model does."""
    if layer not in centroids:
        return None
    mid, activations, scale = sites["mid"], sites["activations"], sites["scale"]
    target, origin, none = centroids[layer], origins[layer], torch.zeros(len(mid), 0, dtype=torch.int32)
    layout, size = (len(vectors),), (activations.shape[1], 0)
    return expert_total(
        vectors, gain, bias, mid, activations, scale, target, origin, None, distance, none, layout, size
    )


def check_apart(layer: int, target: Float[Tensor, "hidden"], origin: Float[Tensor, "hidden"]) -> None:
    """Refuse a centroid that has no direction, because it is the origin.

    >>> check_apart(0, torch.ones(2), torch.zeros(2))
    """
    if (target - origin).norm() <= 1e-6 * origin.norm():
        raise TnkitError(
            f"the centroid of layer {layer} is the origin itself, which no neuron can move towards; give the mean "
            "over more languages as the origin"
        )


def check_origin(distance: str) -> None:
    """Refuse to centre distances, which would be the raw ones.

    >>> check_origin("cosine")
    """
    if distance != "cosine":
        raise TnkitError(
            f"{distance} distances are the same from every origin, so a centred score would be the raw one; leave the "
            "origin (or score='centred') out, or use distance='cosine'"
        )


def score_neurons(
    model: Model,
    activations: Activations,
    centroids: Centroids,
    *,
    origin: Centroids | None = None,
    distance: str = "cosine",
    layers: Iterable[SupportsIndex] | None = None,
) -> NeuronScores:
    """Score every neuron against a centroid (Tezuka & Inoue, EMNLP 2025).

    cosine: mean over sentences of cos(m + c, C) - cos(m, C); euclidean: of |m - C| - |m + c - C|, where m is `mid`, c a
    neuron's contribution and C the centroid of the layer. The cosine with a zero vector counts as 0.

    The centroids of all languages are nearly parallel, so raw cosines hardly tell one target from another. An origin G,
    usually the mean over the centroids of all languages, takes away what they share. The centred score, which is not
    published, is the mean over sentences of cos(m - G + c, C - G) - cos(m - G, C - G).

    Args:
        model: the model that was captured.
        activations: from `capture`, with `mid` and `activations`.
        centroids: the target, from `estimate_centroids`.
        origin: G, from `estimate_centroids`, for centred scores; None gives the raw, published ones. Euclidean
            distances are the same from every origin.
        distance: "cosine" or "euclidean".
        layers: the layers to score (default: all that centroids and capture share).

    Returns:
        `NeuronScores`, (layer, neuron), float64; positive is nearer.

    Raises:
        TnkitError: for an unknown distance, an origin with the euclidean one or equal to the centroid in some layer,
            centroids or a capture of another model (or of this one before its weights or dtype changed), a capture that
            lacks what is needed, or one made under other ablations, at another position, with another template or
            attention implementation than the centroids. Where both were made under one ablation, the scores' provenance
            says so.

    >>> import tnkit as tn
    >>> from tnkit.testing import captured, tiny_model
    >>> score_neurons(tiny_model(), captured(), tn.estimate_centroids([captured()])).values.shape
    torch.Size([4, 48])
    """
    check_model(model)
    shared = [layer for layer in centroids.layers if layer in activations.layers]
    layers = shared if layers is None else layers
    with TURN, hashed_once(model):
        running = ScoreAccumulator(model, centroids, origin=origin, distance=distance, layers=layers)
        running.add(activations)
        return running.result()


def routed_shares(model: Model, activations: Activations) -> Float[Tensor, "layer neuron"] | None:
    """The share of sentences in which each neuron runs, to match controls by; None for a model without experts.

    Args:
        model: the model that was captured.
        activations: from `capture`, with `activations`.

    Returns:
        (layer, neuron), float32: 1 but in experts; NaN where a layer was not captured, or has no such neuron.

    >>> from tnkit.testing import captured, tiny_model
    >>> routed_shares(tiny_model(), captured()) is None
    True
    """
    if not model.slots:
        return None
    shares = torch.full((model.n_layers, model.n_neurons), torch.nan)
    for layer in activations.layers:
        width = model.widths[layer]
        shares[layer, :width] = activations.ran(layer, range(width)).float().mean(dim=0)
    return shares


def contribution_norms(model: Model, activations: Activations) -> Float[Tensor, "layer neuron"]:
    """The mean over sentences of the length of each neuron's contribution, to match controls by.

    Args:
        model: the model that was captured.
        activations: from `capture`, with `activations`.

    Returns:
        (layer, neuron), float32, in units of the residual stream; NaN where a layer was not captured, or has no such
        neuron.

    Raises:
        TnkitError: for a capture of another model.

    >>> from tnkit.testing import captured, tiny_model
    >>> contribution_norms(tiny_model(), captured()).shape
    torch.Size([4, 48])
    """
    check_made_with(model, activations.provenance, "these captured states", states=True)
    kept = activations.require("activations", "scale").tensors()
    norms = torch.full((model.n_layers, model.n_neurons), torch.nan, dtype=torch.float32)
    sizes = model.ask_weights(sizes_written, dict.fromkeys(activations.layers, ()))
    for row, layer in enumerate(activations.layers):
        written = activations.of_layer(layer).abs() * kept["scale"][row][:, None]
        width = model.widths[layer]
        norms[layer, :width] = sizes[layer].cpu() * written.mean(dim=0)[:width]
    return norms
