"""What the spaces look like: tensors in, results with `to_frame()` and `plot()` out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from tnkit.activations import Activations
from tnkit.errors import TnkitError

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The hidden states of several languages in the plane of their largest variance, layer by layer.

    Attributes:
        coordinates: (layer, sentence, component) of each language.
        explained: share of the variance, (layer, component), between 0 and 1.
        layers: what the first axis stands for.
    """

    coordinates: dict[str, Float[np.ndarray, "layer sentence component"]]
    explained: Float[np.ndarray, "layer component"]
    layers: tuple[int, ...]

    def to_frame(self) -> "pd.DataFrame":
        """One row a sentence, indexed (layer, language, sentence)."""
        import pandas as pd

        names = [f"PC{place + 1}" for place in range(self.explained.shape[1])]
        frames = {
            (layer, language): pd.DataFrame(points[place], columns=names)
            for place, layer in enumerate(self.layers)
            for language, points in self.coordinates.items()
        }
        return pd.concat(frames, names=["layer", "language", "sentence"])

    def plot(self, layers: Sequence[int] | None = None) -> "matplotlib.figure.Figure":
        """Draw one panel a layer, a colour a language."""
        from tnkit import plots

        return plots.spaces(self, self.layers if layers is None else layers)


def pca(
    languages: Mapping[str, Activations], *, layers: Sequence[int] | None = None, components: int = 2
) -> PrincipalComponents:
    """Principal components of `post`, fitted to all languages together, layer by layer.

    Args:
        languages: a capture of each language, of the same model.
        layers: which layers (default: all captured).
        components: how many.

    Returns:
        `PrincipalComponents`, float32; centred on the mean over languages.

    Raises:
        TnkitError: for fewer sentences in all than components, or a layer that was not captured.

    >>> from tnkit.tests.tiny import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> captured = {"en": tn.capture(tiny_model(), SENTENCES, progress=False)}
    >>> pca(captured).coordinates["en"].shape
    (4, 6, 2)
    """
    from sklearn.decomposition import PCA

    first = next(iter(languages.values())).require("post")
    layers = first.layers if layers is None else tuple(layers)
    missing = [layer for layer in layers if any(layer not in part.layers for part in languages.values())]
    if missing:
        raise TnkitError(f"layers {missing} were not captured in every language")
    if sum(map(len, languages.values())) < max(components, 2):
        raise TnkitError(f"{components} components need at least {max(components, 2)} sentences")
    points: dict[str, list] = {language: [] for language in languages}
    explained = []
    for layer in layers:
        states = [part.require("post").post[part.layers.index(layer)] for part in languages.values()]
        fit = PCA(components, svd_solver="full").fit(torch.cat(states).numpy())
        explained.append(fit.explained_variance_ratio_)
        for language, state in zip(languages, states, strict=True):
            points[language].append(fit.transform(state.numpy()))
    coordinates = {language: np.stack(parts) for language, parts in points.items()}
    return PrincipalComponents(coordinates, np.stack(explained), tuple(layers))
