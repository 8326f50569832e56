"""A plane for each layer, fitted once to untouched states and kept: `aligned_planes`.

planes = tn.geometry.aligned_planes({"en": en, "ja": ja})
planes.project(ja), planes.project(ja_with_neurons_off)      # (layer, sentence, 2), in the same planes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.measures.geometry.vectors import check_together, common_width, states

_AT_ONCE = 8  # layers: NumPy and SciPy have threads of their own, which slow each other down where they take turns


@dataclass(frozen=True, eq=False)
class Planes:
    """A plane for each layer, into which other states of the same model can be projected.

    Attributes:
        origins: (layer, hidden), the mean of the states that the plane was fitted to.
        axes: (layer, hidden, 2), orthonormal columns.
        explained: (layer,), the share of the variance in the plane, between 0 and 1.
        spread: (layer,), the root mean square distance from the origin in the plane, in units of the residual stream.
        layers: of the first axis.
    """

    origins: Float[np.ndarray, "layer hidden"]
    axes: Float[np.ndarray, "layer hidden 2"]
    explained: Float[np.ndarray, "layer"]
    spread: Float[np.ndarray, "layer"]
    layers: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Planes({len(self.layers)} layers, {self.explained.mean():.0%} of the variance on average)"

    def project(self, captured: Activations) -> Float[np.ndarray, "layer sentence 2"]:
        """The coordinates of captured states, float64, in units of the residual stream.

        Raises:
            TnkitError: for a capture of other layers or of another width.
        """
        vectors = states(captured, "post").double().numpy()
        if captured.layers != self.layers or vectors.shape[2] != self.origins.shape[1]:
            raise TnkitError("these states have other layers or another width than the planes; capture them alike")
        layers = zip(vectors, self.origins, self.axes, strict=True)
        return np.stack([(rows - origin) @ plane for rows, origin, plane in layers])

    def _repr_html_(self) -> str:
        rows = {"layers": self.layers, "variance in the plane": [round(float(share), 2) for share in self.explained]}
        return storage.html_card("Planes of two components", rows)


def aligned_planes(languages: Mapping[str, Activations]) -> Planes:
    """The plane of the first two principal components of each layer, turned to agree with the layer before.

    Components are fitted to all languages together, layer by layer. Their signs and their order are arbitrary where
    variances are near, so each plane is turned or mirrored within itself until its sentences lie as near as possible
    to where they lie in the layer before (orthogonal Procrustes, Schönemann 1966). This keeps the plane: distances in
    it do not change. In the first layer, the first language's mean is not positive on either axis.

    Args:
        languages: a capture of each language without neurons off, of the same model and layers.

    Raises:
        TnkitError: for no languages, fewer than two sentences, or captures that differ in layers or token.

    >>> from tnkit.testing import captured
    >>> planes = aligned_planes({"en": captured()})
    >>> planes.project(captured()).shape, bool(np.allclose(planes.project(captured()).mean(axis=1), 0, atol=1e-6))
    ((4, 6, 2), True)
    """
    from scipy.linalg import orthogonal_procrustes

    vectors = {name: states(captured, "post") for name, captured in languages.items()}
    if not vectors or sum(map(len, languages.values())) < 2:
        raise TnkitError("a plane needs at least two sentences; give a capture of each language")
    check_together(languages)
    common_width(vectors.values())
    first = len(next(iter(languages.values())))
    origins, axes, explained, spread = [], [], [], []
    before = None
    layers = next(iter(languages.values())).layers
    for start in range(0, len(layers), _AT_ONCE):
        group = zip(*(rows[start : start + _AT_ONCE] for rows in vectors.values()), strict=True)
        stacked = [torch.cat(rows).double().numpy() for rows in group]
        means = [rows.mean(axis=0) for rows in stacked]
        centred = [rows - mean for rows, mean in zip(stacked, means, strict=True)]
        for rows, (plane, share) in zip(centred, _principal(centred), strict=True):
            points = rows @ plane
            if before is None:
                plane = plane * np.where(points[:first].mean(axis=0) > 0, -1, 1)
            else:
                plane = plane @ orthogonal_procrustes(points, before)[0]
            before = rows @ plane
            axes.append(plane)
            explained.append(share)
            spread.append(float(np.sqrt((before**2).sum(axis=1).mean())))
        origins += means
    return Planes(np.stack(origins), np.stack(axes), np.array(explained), np.array(spread), layers)


def _principal(layers: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float]]:
    """The first two principal axes of each layer's centred rows, and their share of the variance.

    The axes are orthonormal columns. Of the products of rows and of columns, the smaller has the same largest
    eigenvalues, many times as fast as an SVD.
    """
    from scipy.linalg import eigh

    wide = [rows.shape[1] > len(rows) for rows in layers]
    products = [rows @ rows.T if is_wide else rows.T @ rows for rows, is_wide in zip(layers, wide, strict=True)]
    largest = [eigh(product, subset_by_index=[len(product) - 2, len(product) - 1]) for product in products]
    principal = []
    for rows, is_wide, product, (variances, vectors) in zip(layers, wide, products, largest, strict=True):
        axes = np.linalg.qr(rows.T @ vectors[:, ::-1] if is_wide else vectors[:, ::-1])[0]
        total = np.trace(product)
        principal.append((axes, float(variances.sum() / total) if total > 0 else 0.0))
    return principal
