"""Distances between the centroids of languages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.measures.geometry.vectors import check_together, common_width, states, unit
from tnkit.provenance import joined


@dataclass(frozen=True, eq=False)
class CentroidDistances:
    """The distances between the centroids of languages, layer by layer.

    Attributes:
        values: (layer, language, language), float64, symmetric, 0 on the diagonal.
        languages: of the second and third axis.
        layers: of the first axis.
        distance: "cosine" (1 - cosine, between 0 and 2) or "euclidean" (units of the residual stream).
        provenance: model, and the sentences of each language.
    """

    values: Float[np.ndarray, "layer language language"]
    languages: tuple[str, ...]
    layers: tuple[int, ...]
    distance: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"CentroidDistances({'+'.join(self.languages)}, {self.distance}, {len(self.layers)} layers)"

    def at(self, layer: int) -> Float[np.ndarray, "language language"]:
        """The distances after a layer.

        Raises:
            TnkitError: for a layer that was not captured.
        """
        if layer not in self.layers:
            raise TnkitError(f"layer {layer} was not captured; these distances have {', '.join(map(str, self.layers))}")
        return self.values[self.layers.index(layer)]

    def to_frame(self) -> pd.DataFrame:
        """One row per ordered pair, indexed (layer, language, other)."""
        axes = [self.layers, self.languages, self.languages]
        index = pd.MultiIndex.from_product(axes, names=["layer", "language", "other"])
        return pd.DataFrame({f"{self.distance} distance": self.values.reshape(-1)}, index=index)

    def by_layer(self, language: str) -> pd.DataFrame:
        """The distances of the other languages from one, indexed by layer, with one column per language.

        Raises:
            TnkitError: for a language that was not captured.
        """
        if language not in self.languages:
            raise TnkitError(f"there is no language {language!r}; there are {', '.join(self.languages)}")
        row = self.languages.index(language)
        others = [name for name in self.languages if name != language]
        distances = np.delete(self.values[:, row], row, axis=1)
        return pd.DataFrame(distances, index=pd.Index(self.layers, name="layer"), columns=others)

    def plot(self, layer: int, ax: "plots.Axes | None" = None, *, cluster: bool = False) -> "plots.Axes":
        """Draw the distances after a layer as a heat map; with `cluster`, near languages are side by side."""
        look: dict[str, Any] = {"label": f"{self.distance} distance", "title": f"layer {layer}", "cluster": cluster}
        return plots.distance_map(self.at(layer), self.languages, **look, ax=ax)

    def plot_all(self, layers: Sequence[int] | None = None) -> "plots.Figure":
        """Draw one heat map per layer (default: four, from the first to the last).

        Cosine distances share one scale; Euclidean distances, which grow with the residual stream, have one per panel.
        """
        if layers is None:
            indices = np.linspace(0, len(self.layers) - 1, min(4, len(self.layers))).round().astype(int)
            layers = [self.layers[index] for index in indices]
        maps = {f"layer {layer}": self.at(layer) for layer in layers}
        return plots.distance_maps(
            maps, self.languages, label=f"{self.distance} distance", shared=self.distance == "cosine"
        )

    def _repr_html_(self) -> str:
        rows = {"languages": self.languages, "distance": self.distance, "layers": self.layers}
        return storage.html_card("Distances between centroids", rows)


def centroid_distances(languages: Mapping[str, Activations], *, distance: str = "cosine") -> CentroidDistances:
    """The distances between language centroids (means of `post`), layer by layer.

    cosine: 1 - cos(C, C'), which is 1 minus the similarity that Tezuka & Inoue (EMNLP 2025) plot; euclidean:
    |C - C'|. A zero centroid has the cosine distance 1 from every other.

    Args:
        languages: a capture of each language, of the same model; they need not be parallel.
        distance: "cosine" or "euclidean".

    Returns:
        `CentroidDistances` with values (layer, language, language), float64; smaller is nearer.

    Raises:
        TnkitError: for an unknown distance, fewer than two languages, or incompatible captures.

    >>> from tnkit.testing import by_language
    >>> centroid_distances(by_language()).values.shape
    (4, 2, 2)
    """
    if distance not in ("cosine", "euclidean"):
        raise TnkitError(f"distance={distance!r} must be one of cosine, euclidean")
    if len(languages) < 2:
        raise TnkitError(f"distances need at least two languages, got {', '.join(languages) or 'none'}")
    check_together(languages)
    vectors = [states(capture, "post") for capture in languages.values()]
    common_width(vectors)
    centroids = torch.stack([rows.mean(dim=1, dtype=torch.float64) for rows in vectors], dim=1)
    if distance == "cosine":
        units = unit(centroids)
        zero = ~units.any(dim=-1)
        values = (_distances(units).square() / 2).clamp_(
            max=2
        )  # 1 - cosine, without the rounding of a difference from 1
        values = torch.where(zero[:, :, None] | zero[:, None], 1, values)
    else:
        values = _distances(centroids)
    values.diagonal(dim1=1, dim2=2).zero_()
    layers = next(iter(languages.values())).layers
    return CentroidDistances(values.numpy(), tuple(languages), layers, distance, joined(languages))


def _distances(points: Float[Tensor, "layer row width"]) -> Float[Tensor, "layer row row"]:
    """Euclidean distances between the rows of each layer, computed from differences, so that equal rows give 0."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
