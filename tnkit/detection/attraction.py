"""Scores towards any centroid, from one pass: `Attraction`; `tnkit.detection.turns` makes it.

ja = tn.attraction(model, train["ja"])             # each sentence once, in flat memory; or from a capture
ja.scores(shared), ja.scores(own)                  # as `tn.score_neurons`, in milliseconds
ja.scores(captured.post[:, picked].mean(dim=1))    # towards any points: some sentences, one, a random direction
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.detection.centroids import Centroids, estimate_centroids
from tnkit.detection.ranking import chosen_layers, span
from tnkit.detection.scores import NeuronScores
from tnkit.detection.scoring import check_apart
from tnkit.errors import TnkitError
from tnkit.provenance import check_alike, check_fits, stated


@dataclass(frozen=True, eq=False)
class Attraction:
    """How every neuron turns the residual stream, from which its score towards any centroid follows.

    A neuron with contribution c turns a state m by t = (m + c) / |m + c| - m / |m|. The cosine score towards a centroid
    C is the mean of t over sentences, times C / |C|. For centred scores, m and C are seen from an origin G.

    Attributes:
        sums: (layer, fold, neuron, hidden), float32: t summed over the sentences of each fold, 0 for neurons that a
            layer lacks. There is one fold, or eight for `Detection.stability` (every eighth sentence is in the same).
        layers: of the first axis.
        widths: how many neurons each layer of the model has.
        count: how many sentences were summed.
        origin: G, (layer, hidden), float32; None for raw scores.
        provenance: model, sentences, origin, versions.
        routed: as in `NeuronScores`.

    >>> import tnkit as tn
    >>> from tnkit.testing import captured, tiny_model
    >>> own = tn.estimate_centroids([captured()])
    >>> scores = tn.attraction(tiny_model(), captured()).scores(own)
    >>> bool((scores.values - tn.score_neurons(tiny_model(), captured(), own).values).abs().max() < 1e-7)
    True
    """

    distance: ClassVar[str] = "cosine"

    sums: Float[Tensor, "summed fold neuron hidden"]
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    count: int
    origin: Float[Tensor, "summed hidden"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    routed: Float[Tensor, "layer expert"] | None = None

    def __repr__(self) -> str:
        language = self.provenance.get("sentences", {}).get("language", "unnamed")
        return f"Attraction({language}, {self.score}, layers {span(self.layers)})"

    @property
    def score(self) -> str:
        """Whether its scores are "centred" on an origin, or "raw"."""
        return "raw" if self.origin is None else "centred"

    def scores(
        self, target: Centroids | Activations | Tensor, *, layers: Iterable[SupportsIndex] | None = None
    ) -> NeuronScores:
        """The cosine scores towards a target, as `tn.score_neurons` gives them.

        Args:
            target: centroids; a capture with `post`, whose mean is taken; or points of any kind, (layer, hidden), one
                for each layer of this or of the model. An origin is taken away from it here.
            layers: where to score (default: all layers that this and the target share).

        Returns:
            `NeuronScores`, (layer, neuron), float64; positive is nearer.

        Raises:
            TnkitError: for a target of another width or model, captured in another way, not finite, or equal to the
                origin in some layer; and for layers that this or the target lacks.

        >>> import tnkit as tn
        >>> from tnkit.testing import tiny_model, SENTENCES
        >>> ours = tn.attraction(tiny_model(), SENTENCES, layers=[1, 2], progress=False)
        >>> ours.scores(torch.ones(2, 32)).layers
        [1, 2]
        """
        point = self._point(target)
        chosen, goals = self.directions(point, layers=layers)
        values = torch.full((len(self.widths), self.sums.shape[2]), torch.nan, dtype=torch.float64)
        folds = torch.full((self.sums.shape[1], len(chosen), self.sums.shape[2]), torch.nan)
        for number, layer in enumerate(chosen):
            row, width = self.layers.index(layer), self.widths[layer]
            turned = self.sums[row, :, :width]
            turned = turned.double() if len(turned) == 1 else turned  # errors of eight cancel out
            sums = torch.stack([fold @ goals[number].to(fold) for fold in turned]).double().cpu()
            values[layer, :width] = sums.sum(dim=0) / self.count
            folds[:, number, :width] = sums
        about = {**self.provenance, "centroid": point.provenance.get("sentences", point.provenance)}
        routed = self.routed
        if routed is not None:
            routed = torch.full_like(routed, torch.nan).index_copy_(0, torch.tensor(chosen), routed[list(chosen)])
        return NeuronScores(values, self.distance, about, folds if len(folds) > 1 else None, routed)

    def directions(
        self, target: Centroids | Activations | Tensor, *, layers: Iterable[SupportsIndex] | None = None
    ) -> tuple[tuple[int, ...], Float64[Tensor, "layer hidden"]]:
        """The layers and, for each, where the target is seen from the origin: of length 1, or 0 for a zero vector.

        Args:
            target, layers: as in `scores`.

        Raises:
            TnkitError: as `scores` does.
        """
        point, rows = self._point(target), []
        shared = [layer for layer in self.layers if layer in point.layers]
        if not shared:
            raise TnkitError(
                f"the target has layers {span(point.layers)}, this attraction {span(self.layers)}; give a target of "
                "these layers"
            )
        chosen = chosen_layers(layers, shared, verb="summed up")
        for layer in chosen:
            rows.append(point.at(layer).double())
            if self.origin is not None:
                origin = self.origin[self.layers.index(layer)].cpu()
                check_apart(layer, point.at(layer), origin)
                rows[-1] -= origin.double()
        return chosen, torch.nn.functional.normalize(torch.stack(rows), dim=1, eps=1e-300)

    def turns(self, layer: int) -> Float64[Tensor, "neuron hidden"]:
        """The mean over sentences of how each neuron of a layer turns the residual stream, on the device of `sums`.

        Raises:
            TnkitError: for a layer without sums.

        >>> import tnkit as tn
        >>> from tnkit.testing import tiny_model, SENTENCES
        >>> tn.attraction(tiny_model(), SENTENCES, progress=False).turns(2).shape
        torch.Size([48, 32])
        """
        (layer,) = chosen_layers([layer], self.layers, verb="summed up")
        return self.sums[self.layers.index(layer), :, : self.widths[layer]].sum(dim=0, dtype=torch.float64) / self.count

    def _point(self, target: Centroids | Activations | Tensor) -> Centroids:
        """The target as centroids, checked."""
        width = self.sums.shape[3]
        if isinstance(target, Activations):
            target = estimate_centroids([target])
        elif isinstance(target, Tensor):
            rows = {len(self.widths): tuple(range(len(self.widths))), len(self.layers): self.layers}
            if target.ndim != 2 or len(target) not in rows:
                raise TnkitError(
                    f"the target is a tensor of shape {tuple(target.shape)}, expected ({len(self.layers)}, {width}): a "
                    f"row for each of the layers {span(self.layers)}"
                )
            target = Centroids(target.detach().cpu().float(), rows[len(target)])
        if target.values.shape[1] != width:
            raise TnkitError(
                f"the target has states of width {target.values.shape[1]}, this attraction of width {width}; capture "
                "both with the same model"
            )
        if not bool(target.values.isfinite().all()):
            raise TnkitError("the target holds NaN or Inf; leave out the sentences that they come from")
        check_alike({"the attraction": self.provenance, "the target": target.provenance}, ("model",))
        check_fits(self.provenance, target.provenance)
        return target

    def to_frame(self) -> pd.DataFrame:
        """The `reach` of every neuron, indexed (layer, neuron): its score towards the centroid that gives it the most.

        It is the length of the mean turn.
        """
        frames = []
        for layer in self.layers:
            reach = self.turns(layer).norm(dim=1).cpu().numpy()
            index = pd.MultiIndex.from_product([[layer], range(len(reach))], names=["layer", "neuron"])
            frames.append(pd.DataFrame({"reach": reach}, index=index))
        return pd.concat(frames)

    def plot(self, ax: plots.Axes | None = None) -> plots.Axes:
        """Draw the mean and the largest reach in each layer."""
        reach = self.to_frame()["reach"].groupby("layer")
        frame = reach.agg(["mean", "max"]).rename(columns={"max": "largest"})
        return plots.lines_by_layer(frame, ylabel="score towards the best target", log=True, ax=ax)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, as large as the down projections of its layers in float32."""
        description = {"layers": list(self.layers), "widths": list(self.widths), "count": self.count}
        tensors = {"sums": self.sums, "origin": self.origin, "routed": self.routed}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        return storage.save_tensors(path, "attraction", tensors, {**description, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path) -> Attraction:
        """Read what `save` wrote.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        tensors, about = storage.load_tensors(path, "attraction")
        layers, count = storage.layers_of(path, about), about.get("count")
        widths: list[Any] = about["widths"] if isinstance(about.get("widths"), list) else []
        whole = len(widths) > layers[-1] and all(type(width) is int and width >= 0 for width in widths)
        if "sums" not in tensors or not whole or type(count) is not int or count < 1:
            raise TnkitError(f"{path} lacks the sums of an attraction, their count or their widths; make it again")
        sums = storage.finite(path, "sums", tensors["sums"], (len(layers), None, max(widths), None))
        origin, routed = tensors.get("origin"), tensors.get("routed")
        if origin is not None:
            storage.finite(path, "origin", origin, (len(layers), sums.shape[3]))
        if routed is not None:
            storage.finite(path, "routed", routed, (len(widths), None), at=~routed.isnan())
        return cls(sums, layers, tuple(widths), count, origin, stated(path, about), routed)

    def _repr_html_(self) -> str:
        rows = {"sentences": self.count, "score": self.score, "layers": span(self.layers)}
        size = f"{self.sums.nbytes / 1e6:,.0f} MB"
        return storage.html_card("Attraction", rows | {"neurons a layer": self.sums.shape[2], "size": size})
