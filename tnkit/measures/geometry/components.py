"""Principal components of several languages: the plane of the largest variance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.measures.geometry.vectors import check_together, common_width, states


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The hidden states of several languages in the plane of their largest variance, layer by layer.

    Attributes:
        coordinates: (layer, sentence, component) of each language.
        explained: share of the variance, (layer, component), between 0 and 1; 0 if the states do not vary.
        layers: of the first axis.
    """

    coordinates: dict[str, Float[np.ndarray, "layer sentence component"]]
    explained: Float[np.ndarray, "layer component"]
    layers: tuple[int, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per sentence, indexed (layer, language, sentence)."""
        names = [f"PC{number}" for number in range(1, 1 + self.explained.shape[1])]
        frames = {
            (layer, language): pd.DataFrame(points[row], columns=names)
            for row, layer in enumerate(self.layers)
            for language, points in self.coordinates.items()
        }
        return pd.concat(frames, names=["layer", "language", "sentence"])

    def plot(self, layers: Sequence[int] | None = None, *, centroids: bool = False) -> "plots.Figure":
        """Draw one panel per layer, one colour per language; `centroids` adds the languages' means and their mean."""
        layers = self.layers if layers is None else layers
        rows = [self._row(layer) for layer in layers]
        points = {language: states[rows, :, :2] for language, states in self.coordinates.items()}
        titles = [f"layer {layer}" for layer in layers]
        return plots.spaces(points, explained=self.explained[rows, :2], titles=titles, centroids=centroids)

    def plot_at(
        self,
        layer: int,
        ax: "plots.Axes | None" = None,
        *,
        pair: tuple[int, int] = (0, 1),
        centroids: bool = False,
        joined: bool = False,
    ) -> "plots.Axes":
        """Draw one layer in the plane of two components, numbered from 0; with `joined`, link translations by lines."""
        row, columns = self._row(layer), list(pair)
        return plots.space(
            {language: states[row][:, columns] for language, states in self.coordinates.items()},
            explained=self.explained[row, columns].tolist(),
            pair=pair,
            title=f"layer {layer}",
            centroids=centroids,
            joined=joined,
            ax=ax,
        )

    def _row(self, layer: int) -> int:
        if layer not in self.layers:
            layers = ", ".join(map(str, self.layers))
            raise TnkitError(f"there are no principal components of layer {layer}; choose one of {layers}")
        return self.layers.index(layer)

    def _repr_html_(self) -> str:
        rows = {
            "sentences": sum(points.shape[1] for points in self.coordinates.values()),
            "languages": list(self.coordinates),
            "layers": self.layers,
        }
        return storage.html_card(f"{self.explained.shape[1]} principal components", rows)


def pca(
    languages: Mapping[str, Activations], *, layers: Sequence[int] | None = None, components: int = 2
) -> PrincipalComponents:
    """Principal components of `post`, fitted to all languages together, layer by layer.

    The sign of a component is arbitrary; here the first language's mean is never positive, so that layers compare.

    Args:
        languages: a capture of each language, of the same model.
        layers: which layers (default: all captured).
        components: how many.

    Returns:
        `PrincipalComponents`: coordinates in units of the residual stream, around the mean of all languages.

    Raises:
        TnkitError: for no languages, a layer that was not captured, or too few sentences.

    >>> from tnkit.testing import captured
    >>> pca({"en": captured()}).coordinates["en"].shape
    (4, 6, 2)
    """
    from sklearn.decomposition import PCA

    vectors = {language: states(capture, "post") for language, capture in languages.items()}
    if not vectors:
        raise TnkitError("there are no captures; give one for each language")
    check_together(languages, layers=False)
    layers = next(iter(languages.values())).layers if layers is None else tuple(layers)
    missing = [layer for layer in layers if any(layer not in capture.layers for capture in languages.values())]
    if missing or not layers:
        raise TnkitError(f"layers {missing or 'none'} were not captured in every language; capture them")
    width = common_width(vectors.values())
    if sum(map(len, languages.values())) < max(components, 2):
        raise TnkitError(f"{components} components need at least {max(components, 2)} sentences")
    if not 1 <= components <= width:
        raise TnkitError(f"components={components} must be between 1 and {width}, the hidden states' width")
    points: dict[str, list[np.ndarray]] = {language: [] for language in languages}
    explained = []
    for layer in layers:
        of_layer = {name: rows[languages[name].layers.index(layer)] for name, rows in vectors.items()}
        stacked = torch.cat([*of_layer.values()]).numpy()
        if not (stacked != stacked[0]).any():
            explained.append(np.zeros(components, stacked.dtype))
            for language, rows in of_layer.items():
                points[language].append(np.zeros((len(rows), components), stacked.dtype))
            continue
        fit = PCA(components, svd_solver="full").fit(stacked)
        explained.append(fit.explained_variance_ratio_)
        first = next(iter(of_layer.values()))
        signs = np.where(fit.transform(first.numpy()).mean(axis=0) > 0, -1, 1).astype(stacked.dtype)
        for language, rows in of_layer.items():
            points[language].append(fit.transform(rows.numpy()) * signs)

    coordinates = {language: np.stack(rows) for language, rows in points.items()}
    return PrincipalComponents(coordinates, np.stack(explained), tuple(layers))
