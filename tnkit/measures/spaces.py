"""Where languages lie, layer by layer: their principal components and the distances between their centroids.

tn.geometry.pca({"en": en, "ja": ja}).plot([0, 8, 17])
tn.geometry.centroid_distances({"en": en, "ja": ja, "ko": ko}).plot(8)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.text.rows import check_parallel

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas as pd

STATES = ("pre", "mid", "post", "activations")


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The hidden states of several languages in the plane of their largest variance, layer by layer.

    Attributes:
        coordinates: (layer, sentence, component) of each language.
        explained: share of the variance, (layer, component), between 0 and 1; 0 where the states do not vary.
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

    def plot(self, layers: Sequence[int] | None = None, *, centroids: bool = False) -> "matplotlib.figure.Figure":
        """Draw one panel per layer, a colour per language; with `centroids`, also their means and the mean of these."""
        from tnkit import plots

        layers = self.layers if layers is None else layers
        rows = [self._row(layer) for layer in layers]
        points = {language: states[rows, :, :2] for language, states in self.coordinates.items()}
        titles = [f"layer {layer}" for layer in layers]
        return plots.spaces(points, explained=self.explained[rows, :2], titles=titles, centroids=centroids)

    def plot_at(
        self,
        layer: int,
        ax: "matplotlib.axes.Axes | None" = None,
        *,
        pair: tuple[int, int] = (0, 1),
        centroids: bool = False,
        joined: bool = False,
    ) -> "matplotlib.axes.Axes":
        """Draw one layer in the plane of two components, numbered from 0; with `joined`, link translations by lines."""
        from tnkit import plots

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
            has = ", ".join(map(str, self.layers))
            raise TnkitError(f"there are no principal components of layer {layer}; choose one of {has}")
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

    A component's sign means nothing; here the first language's mean is never positive, so that layers compare.

    Args:
        languages: a capture of each language, of the same model.
        layers: which layers (default: all captured).
        components: how many.

    Returns:
        `PrincipalComponents`: coordinates in units of the residual stream, around the mean of all languages.

    Raises:
        TnkitError: for no languages, a layer that was not captured, or too few sentences.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> captured = {"en": tn.capture(tiny_model(), SENTENCES, progress=False)}
    >>> pca(captured).coordinates["en"].shape
    (4, 6, 2)
    """
    from sklearn.decomposition import PCA

    parts = {language: states(part, "post") for language, part in languages.items()}
    if not parts:
        raise TnkitError("there are no languages to find components of; give one capture a language")
    layers = next(iter(languages.values())).layers if layers is None else tuple(layers)
    missing = [layer for layer in layers if any(layer not in part.layers for part in languages.values())]
    if missing or not layers:
        raise TnkitError(f"layers {missing or 'none'} were not captured in every language; capture them")
    width = _one_width(parts.values())
    if sum(map(len, languages.values())) < max(components, 2):
        raise TnkitError(f"{components} components need at least {max(components, 2)} sentences")
    if not 1 <= components <= width:
        raise TnkitError(f"components={components} must be between 1 and {width}, the hidden states' width")
    points: dict[str, list[np.ndarray]] = {language: [] for language in languages}
    explained = []
    for layer in layers:
        here = [part[languages[language].layers.index(layer)] for language, part in parts.items()]
        together = torch.cat(here).numpy()
        if not (together != together[0]).any():
            explained.append(np.zeros(components, together.dtype))
            for language, part in zip(languages, here, strict=True):
                points[language].append(np.zeros((len(part), components), together.dtype))
            continue
        fit = PCA(components, svd_solver="full").fit(together)
        explained.append(fit.explained_variance_ratio_)
        signs = np.where(fit.transform(here[0].numpy()).mean(axis=0) > 0, -1, 1).astype(together.dtype)
        for language, part in zip(languages, here, strict=True):
            points[language].append(fit.transform(part.numpy()) * signs)
    coordinates = {language: np.stack(rows) for language, rows in points.items()}
    return PrincipalComponents(coordinates, np.stack(explained), tuple(layers))


@dataclass(frozen=True, eq=False)
class CentroidDistances:
    """How far apart the centroids of languages lie, layer by layer.

    Attributes:
        values: (layer, language, language), float64, symmetric, 0 on the diagonal.
        languages: what the other axes stand for.
        layers: what the first axis stands for.
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
            TnkitError: where it was not captured.
        """
        if layer not in self.layers:
            raise TnkitError(f"layer {layer} was not captured; these distances have {', '.join(map(str, self.layers))}")
        return self.values[self.layers.index(layer)]

    def to_frame(self) -> "pd.DataFrame":
        """One row an ordered pair, indexed (layer, language, other)."""
        import pandas as pd

        axes = [self.layers, self.languages, self.languages]
        index = pd.MultiIndex.from_product(axes, names=["layer", "language", "other"])
        return pd.DataFrame({f"{self.distance} distance": self.values.reshape(-1)}, index=index)

    def by_layer(self, language: str) -> "pd.DataFrame":
        """How far every other language is from one, indexed by layer, a column a language.

        Raises:
            TnkitError: for a language that was not captured.
        """
        if language not in self.languages:
            raise TnkitError(f"there is no language {language!r}; there are {', '.join(self.languages)}")
        column = self.to_frame()[f"{self.distance} distance"]
        others = [name for name in self.languages if name != language]
        wide = column.unstack("other")
        mine = wide[wide.index.get_level_values("language") == language].droplevel("language")
        return mine[others].rename_axis(columns=None)

    def plot(self, layer: int, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the distances after a layer as a heat map."""
        from tnkit import plots

        return plots.distance_map(
            self.at(layer), self.languages, label=f"{self.distance} distance", title=f"layer {layer}", ax=ax
        )

    def plot_all(self, layers: Sequence[int] | None = None) -> "matplotlib.figure.Figure":
        """Draw one heat map a layer (default: four, from the first to the last).

        Cosine distances share one scale; Euclidean ones, which grow with the residual stream, have one a panel.
        """
        from tnkit import plots

        if layers is None:
            places = np.linspace(0, len(self.layers) - 1, min(4, len(self.layers))).round().astype(int)
            layers = [self.layers[place] for place in places]
        maps = {f"layer {layer}": self.at(layer) for layer in layers}
        return plots.distance_maps(
            maps, self.languages, label=f"{self.distance} distance", shared=self.distance == "cosine"
        )

    def _repr_html_(self) -> str:
        rows = {"languages": self.languages, "distance": self.distance, "layers": self.layers}
        return storage.html_card("Distances between centroids", rows)


def centroid_distances(languages: Mapping[str, Activations], *, distance: str = "cosine") -> CentroidDistances:
    """The distance between every two language centroids (means of `post`), layer by layer.

    cosine: 1 - cos(C, C'), so that 1 minus it is the similarity that Tezuka & Inoue (EMNLP 2025) draw; euclidean:
    |C - C'|. A zero centroid is at cosine distance 1 from every other.

    Args:
        languages: a capture of each language, of the same model; they need not be parallel.
        distance: "cosine" or "euclidean".

    Returns:
        `CentroidDistances` with values (layer, language, language), float64; smaller is nearer.

    Raises:
        TnkitError: for an unknown distance, fewer than two languages, or incompatible captures.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> en, ja = (tn.capture(tiny_model(), part, progress=False) for part in (SENTENCES[:2], SENTENCES[2:3]))
    >>> centroid_distances({"en": en, "ja": ja}).values.shape
    (4, 2, 2)
    """
    if distance not in ("cosine", "euclidean"):
        raise TnkitError(f"distance={distance!r} must be one of cosine, euclidean")
    if len(languages) < 2:
        raise TnkitError(f"distances need at least two languages, got {', '.join(languages) or 'none'}")
    check_together(languages)
    parts = [states(part, "post") for part in languages.values()]
    _one_width(parts)
    centroids = torch.stack([part.mean(dim=1, dtype=torch.float64) for part in parts], dim=1)
    if distance == "cosine":
        units = unit(centroids)
        zero = ~units.any(dim=-1)
        values = (_apart(units).square() / 2).clamp_(max=2)  # 1 - cosine, without the rounding of a difference from 1
        values = torch.where(zero[:, :, None] | zero[:, None], 1, values)
    else:
        values = _apart(centroids)
    values.diagonal(dim1=1, dim2=2).zero_()
    layers = next(iter(languages.values())).layers
    return CentroidDistances(values.numpy(), tuple(languages), layers, distance, origin(*languages.values()))


def states(captured: Activations, site: str) -> Float[Tensor, "layer sentence width"]:
    """The captured vectors of a site, (layer, sentence, hidden | neuron).

    Raises:
        TnkitError: for an unknown site, one that was not kept, no sentences, or values that are not finite.
    """
    if site not in STATES:
        raise TnkitError(f"site={site!r} must be one of {', '.join(STATES)}")
    found = getattr(captured.require(site), site)
    if not len(captured):
        raise TnkitError("this capture holds no sentences; capture some")
    whole = found.isfinite().flatten(1).all(dim=1)
    if not bool(whole.all()):
        layer = captured.layers[int(whole.int().argmin())]
        raise TnkitError(f"{site} of layer {layer} holds NaN or Inf; capture again, in bfloat16 or float32")
    return found


def check_together(parts: Mapping[str, Activations]) -> None:
    """Refuse captures of different layers, token positions or last layers.

    Raises:
        TnkitError: naming the two that are incompatible.
    """
    names = list(parts)
    first = parts[names[0]]
    for name in names[1:]:
        if parts[name].layers != first.layers:
            raise TnkitError(
                f"{names[0]} has layers {_listed(first.layers)}, {name} has {_listed(parts[name].layers)}; "
                "capture both with the same layers"
            )
        for option in ("position", "suffix", "last_layer"):
            one, other = first.provenance.get(option), parts[name].provenance.get(option)
            if one != other:
                raise TnkitError(f"{names[0]} was captured with {option}={one!r}, {name} with {other!r}; use one")


def directions(
    left: Activations, right: Activations, site: str, *, centred: bool, at_least: int = 2, one_width: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Unit vectors of parallel captures, float64, a layer at a time, once they are known to be compatible.

    Raises:
        TnkitError: for captures of other rows, layers, positions or (with one_width) models.
    """
    a, b = states(left, site), states(right, site)
    check_together({"the first capture": left, "the second": right})
    sides = {"the first capture": left, "the second": right}
    check_parallel({side: {**part.provenance.get("sentences", {}), "n": len(part)} for side, part in sides.items()})
    if not torch.equal(left.index, right.index):
        raise TnkitError(
            "the captures hold sentences in different orders; use capture, or batches of the same sentences"
        )
    if one_width:
        _one_width([a, b])
    if len(left) < at_least:
        raise TnkitError(f"{len(left)} sentences are too few; capture at least {at_least}")
    prepare = centre if centred else torch.Tensor.clone
    return ((unit(prepare(one.double())), unit(prepare(other.double()))) for one, other in zip(a, b, strict=True))


def unit(points: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Vectors divided by their norm; a zero vector stays zero, so that its cosine with any other is 0."""
    norm = points.norm(dim=-1, keepdim=True)
    return points / torch.where(norm > 0, norm, 1)


def _apart(points: Float[Tensor, "layer row width"]) -> Float[Tensor, "layer row row"]:
    """Euclidean distances between the rows of each layer, from differences: 0 for equal rows, whatever the kernel."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def centre(points: Float[Tensor, "sentence width"]) -> Float[Tensor, "sentence width"]:
    """Vectors less their mean; exactly zero where float32 states, summed in float64, are all equal."""
    return points - points.mean(dim=0)


def origin(*parts: Activations, **parameters: Any) -> dict[str, Any]:
    """The provenance of what was computed from captures: the first's, the sentences of all, and the parameters."""
    about = {key: value for key, value in parts[0].provenance.items() if key != "sentences"}
    sentences = [part.provenance.get("sentences", {"n": len(part)}) for part in parts]
    return {**about, "sentences": sentences, **({"parameters": parameters} if parameters else {})}


def _one_width(parts: Iterable[Tensor]) -> int:
    widths = [part.shape[2] for part in parts]
    if len(set(widths)) > 1:
        raise TnkitError(f"the captured states are {' and '.join(map(str, widths))} wide; capture with one model")
    return widths[0]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) if len(layers) <= 6 else f"{layers[0]} to {layers[-1]} ({len(layers)})"
