"""How much nearer each neuron moves the residual stream to a centroid: `NeuronScores`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import plots, storage
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.ranking import check_size, chosen_layers, ranked, span
from tnkit.errors import TnkitError
from tnkit.provenance import stated
from tnkit.widths import expert_column, present

DISTANCES = ("cosine", "euclidean")
SCORES = ("raw", "centred")


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """The score of every neuron: mean over sentences of how much nearer it brings `mid` to a centroid.

    Attributes:
        values: (layer, neuron), float64; positive is nearer; NaN in layers that were not scored, and for neurons that a
            layer lacks. Cosines for "cosine", units of the residual stream for "euclidean".
        distance: "cosine" or "euclidean".
        provenance: model, sentences, centroid, origin (of centred scores), versions.
        folds: (fold, scored layer, neuron), float32: sums over eight folds of the sentences, for `Detection.stability`;
            None where they were not kept.
        routed: (layer, expert), float64: the share of the sentences that each expert had, NaN in layers without
            experts; None for a model without any. In other sentences the neurons of an expert score 0.
    """

    values: Float[Tensor, "layer neuron"]
    distance: str
    provenance: dict[str, Any] = field(default_factory=dict)
    folds: Float[Tensor, "fold scored neuron"] | None = None
    routed: Float[Tensor, "layer expert"] | None = None

    def __repr__(self) -> str:
        language = self.provenance.get("sentences", {}).get("language", "unnamed")
        kind = f"{self.score} {self.distance}" if self.score == "centred" else self.distance
        return f"NeuronScores({language}, {kind}, layers {self.layers[0]} to {self.layers[-1]})"

    @property
    def score(self) -> str:
        """Whether states and centroid were seen from an origin: "centred", or "raw"."""
        return "centred" if "origin" in self.provenance else "raw"

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
        """The n neurons of lowest score, lowest first: they move the stream away, as a control.

        >>> NeuronScores(torch.tensor([[0.1, 0.3], [0.2, 0.3]]).double(), "cosine").bottom(2).pairs
        ((0, 0), (1, 0))
        """
        return self._extreme("bottom", n, layers)

    def above(self, threshold: float, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The neurons whose score is greater than a threshold, best first (may be none).

        >>> len(NeuronScores(torch.tensor([[0.1, 0.3], [0.2, 0.3]]).double(), "cosine").above(0.15))
        3
        """
        chosen = chosen_layers(layers, self.layers)
        values = self.values[list(chosen)]
        n = int((values > threshold).sum())
        provenance = self._provenance(chosen, threshold=threshold)
        return ranked(values, n, chosen, n_layers=len(self.values), provenance=provenance)

    def to_frame(self) -> pd.DataFrame:
        """The score of every scored neuron, indexed (layer, neuron).

        Of a model with experts there are also the neuron's expert, the share of the sentences that this had ("routed"),
        and the mean score in those ("score where routed").
        """
        layers, width = self.layers, self.values.shape[1]
        index = pd.MultiIndex.from_product([layers, range(width)], names=["layer", "neuron"])
        frame = pd.DataFrame({"score": self.values[layers].reshape(-1).numpy()}, index=index).dropna()
        if self.routed is None:
            return frame
        shares = self.shares()[layers].reshape(-1)
        frame["expert"] = expert_column(self._layout(), frame.index)
        frame["routed"] = shares[~self.values[layers].reshape(-1).isnan()].numpy()
        frame["score where routed"] = frame["score"] / frame["routed"]
        return frame

    def shares(self) -> Float[Tensor, "layer neuron"]:
        """The share of the sentences in which each neuron ran: 1 but in experts; NaN where it was not scored."""
        shares = torch.where(self.values.isnan(), torch.nan, 1.0)
        for layer, row in enumerate(self._layout() if self.routed is not None else ()):
            if self.routed is not None and len(row) > 1:
                _, count, width = row
                shares[layer, : count * width] = self.routed[layer, :count].repeat_interleave(width)
        return shares

    def _layout(self) -> Sequence[Sequence[int]]:
        return self.provenance["model"]["layout"]

    def plot(
        self, ax: "plots.Axes | None" = None, *, chosen: NeuronSet | None = None, colour: str = "#0072B2"
    ) -> "plots.Axes":
        """Draw the distribution of scores, with the scores of a chosen set in colour."""
        values, picked = self.values.numpy(), chosen.scores if chosen else ()
        return plots.score_distribution(values, distance=self.distance, chosen=picked, colour=colour, ax=ax)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        description = {"distance": self.distance, "provenance": self.provenance}
        tensors = {"values": self.values, "folds": self.folds, "routed": self.routed}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        return storage.save_tensors(path, "scores", tensors, description)

    @classmethod
    def load(cls, path: str | Path) -> "NeuronScores":
        """Read what `save` wrote.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        tensors, description = storage.load_tensors(path, "scores")
        distance = description.get("distance")
        folds, routed = tensors.pop("folds", None), tensors.pop("routed", None)
        if set(tensors) != {"values"} or distance not in DISTANCES or tensors["values"].ndim != 2:
            raise TnkitError(f"{path} lacks the values or the distance of scores; score again")
        values, provenance = tensors["values"], stated(path, description)
        scored = ~values.isnan().all(dim=1)
        there = present(provenance, tuple(values.shape))
        storage.finite(path, "values", values[scored], (None, None), at=there[scored])
        if not bool(scored.any()):
            raise TnkitError(f"{path} holds no scored layer; score again")
        if folds is not None:
            storage.finite(path, "folds", folds, (None, int(scored.sum()), values.shape[1]), at=there[scored])
        if routed is not None:
            storage.finite(path, "routed", routed, (len(values), None), at=~routed.isnan())
        return cls(values, distance, provenance, folds, routed)

    def _extreme(self, end: str, n: SupportsIndex, layers: Iterable[SupportsIndex] | None) -> NeuronSet:
        """The n neurons at one end of the scores."""
        chosen = chosen_layers(layers, self.layers)
        values = self.values[list(chosen)]
        n = check_size(end, n, chosen, (~values.isnan()).sum(dim=1).tolist())
        provenance = self._provenance(chosen, **{end: n})
        return ranked(values, n, chosen, n_layers=len(self.values), provenance=provenance, lowest=end == "bottom")

    def _provenance(self, layers: Sequence[int], **selection: Any) -> dict[str, Any]:
        """Of neurons chosen from these scores."""
        selection = {"score": self.score, **selection, "layers": span(layers)}
        return {**self.provenance, "distance": self.distance, "selection": selection}

    def _repr_html_(self) -> str:
        rows = {
            "distance": self.distance,
            "score": self.score,
            "layers": span(self.layers),
            "neurons a layer": self.values.shape[1],
        }
        return storage.html_card("Neuron scores", rows | {"highest": float(self.values.nan_to_num(-torch.inf).max())})
