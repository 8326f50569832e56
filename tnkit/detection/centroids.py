"""The mean hidden state of a language, layer by layer: `Centroids`, and the accumulator that streams them.

language = tn.estimate_centroids([ja])        # target of Type-2
shared = tn.estimate_centroids([en, ja])      # target of Type-1: the mean of the language centroids
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import pickles, storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.models.model import Model
from tnkit.provenance import check_alike, check_made_with, stated
from tnkit.text.rows import check_parallel

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Centroids:
    """One point in the residual stream after each layer.

    Attributes:
        values: (layer, hidden), float32.
        layers: the layers that the first axis stands for.
        provenance: model, and the sentences of each language that went into it.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> parts = [tn.capture(tiny_model(), part, progress=False) for part in (SENTENCES[:3], SENTENCES[3:])]
    >>> estimate_centroids(parts).values.shape
    torch.Size([4, 32])
    """

    values: Float[Tensor, "layer hidden"]
    layers: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Centroids({'+'.join(self.languages) or 'unnamed'}, {len(self.layers)} layers)"

    @property
    def languages(self) -> list[str]:
        """The languages it is the mean of, where they are known."""
        named = [part.get("language") for part in self.provenance.get("sentences", [])]
        return [language for language in named if language]

    def at(self, layer: int) -> Float[Tensor, "hidden"]:
        """The centroid after a layer.

        Raises:
            TnkitError: where it was not estimated.
        """
        if layer not in self.layers:
            raise TnkitError(
                f"these centroids have layers {self.layers[0]} to {self.layers[-1]}, not {layer}; estimate it"
            )
        return self.values[self.layers.index(layer)]

    def check(self, model: Model) -> "Centroids":
        """Itself.

        Raises:
            TnkitError: where they were made with another model.
        """
        made_with = self.provenance.get("model", {})
        depth, width = made_with.get("layers", max(self.layers) + 1), self.values.shape[1]
        if (depth, width) != (model.n_layers, model.hidden_size):
            raise TnkitError(
                f"these centroids have {depth} layers of width {width} ({made_with.get('name', 'model unknown')}), "
                f"{model.name} has {model.n_layers} of width {model.hidden_size}; estimate them with {model.name}"
            )
        check_made_with(model, self.provenance, "these centroids")
        return self

    def to_frame(self) -> "pd.DataFrame":
        """By layer: the centroid's norm, and its cosine with the centroid one layer before."""
        import pandas as pd

        steps = torch.nn.functional.cosine_similarity(self.values[1:], self.values[:-1], dim=1)
        columns = {
            "norm": self.values.norm(dim=1).numpy(),
            "cosine with the layer before": [float("nan"), *steps.tolist()],
        }
        return pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the centroid's norm by layer."""
        from tnkit import plots

        return plots.lines_by_layer(self.to_frame()[["norm"]], ylabel="norm of the centroid", log=True, ax=ax)

    def save(self, path: str | Path, *, format: str = "tnkit") -> Path:
        """Write a safetensors file, or with format="reference" the published code's pickle (a list of arrays)."""
        if format == "reference":
            return pickles.write(path, [row.numpy() for row in self.values])
        about = {"layers": list(self.layers), "provenance": self.provenance}
        return storage.save_tensors(path, "centroids", {"values": self.values}, about)

    @classmethod
    def load(cls, path: str | Path) -> "Centroids":
        """Read what `save` wrote, in either format.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        if Path(path).suffix in (".pkl", ".pickle"):
            return cls._from_reference(path)
        tensors, about = storage.load_tensors(path, "centroids")
        if set(tensors) != {"values"}:
            raise TnkitError(f"{path} lacks the values of centroids; estimate them again")
        layers = storage.layers_of(path, about)
        values = storage.finite(path, "values", tensors["values"], (len(layers), None))
        return cls(values, layers, stated(path, about))

    @classmethod
    def _from_reference(cls, path: str | Path) -> "Centroids":
        content = pickles.read(path)
        plain = isinstance(content, list | tuple) and all(type(row).__name__ == "ndarray" for row in content)
        try:
            values = torch.stack([torch.as_tensor(row, dtype=torch.float32).reshape(-1) for row in content * plain])
        except (TypeError, ValueError, RuntimeError) as error:
            raise TnkitError(
                f"{path} is not a list of arrays, one a layer; expected the published centroids"
            ) from error
        values = storage.finite(path, "values", values, (None, None))
        return cls(values, tuple(range(len(values))), {"file": Path(path).name})

    def _repr_html_(self) -> str:
        rows = {"languages": self.languages, "layers": len(self.layers), "hidden": self.values.shape[1]}
        return storage.html_card("Centroids", rows | {"model": self.provenance.get("model", {}).get("name", "unknown")})


class CentroidAccumulator:
    """A running mean of `post` for one language, in float64; merging two gives the accumulator of both.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> whole = tn.capture(tiny_model(), SENTENCES, progress=False)
    >>> running = CentroidAccumulator()
    >>> for batch in tn.stream(tiny_model(), SENTENCES, batch_tokens=64, progress=False):
    ...     running.add(batch)
    >>> stored = estimate_centroids([whole]).values
    >>> bool((running.result().values - stored).norm() < 1e-5 * stored.norm())
    True
    """

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0
        self.layers: tuple[int, ...] = ()
        self.provenance: dict[str, Any] = {}

    def add(self, batch: Activations) -> None:
        """Count the sentences of a batch in."""
        total = batch.require("post").tensors()["post"].sum(dim=1, dtype=torch.float64).cpu()
        self._add(total, len(batch), batch.layers, batch.provenance)

    def reduction(self) -> Callable[..., Tensor]:
        """What a remote model's server makes of each layer of a batch, so that only that travels; for `take`."""
        return _summed_post

    def take(self, totals: list[Tensor], count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        """Count in a batch of which `reduction` was made."""
        self._add(torch.stack([total.cpu() for total in totals]), count, layers, provenance)

    def _add(self, total: Tensor, count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        if self.count and layers != self.layers:
            raise TnkitError(f"a batch of layers {layers} cannot be added to layers {self.layers}")
        check_alike([self.provenance, provenance])
        self.total = self.total + total
        self.count += count
        self.layers, self.provenance = layers, provenance

    about = "centroid"  # what the sums are of, for the cache

    def resume(self, total: Tensor, count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        """Take up saved sums."""
        self.total, self.count, self.layers, self.provenance = total, count, layers, provenance

    def merge(self, other: "CentroidAccumulator") -> None:
        """Count in what another accumulator has seen."""
        if self.count and other.count and other.layers != self.layers:
            raise TnkitError(f"centroids of layers {other.layers} cannot be merged with layers {self.layers}")
        check_alike([self.provenance, other.provenance])
        self.total = self.total + other.total
        self.count += other.count
        self.layers, self.provenance = other.layers or self.layers, other.provenance or self.provenance

    def result(self) -> Centroids:
        """The centroid of what was added.

        Raises:
            TnkitError: where nothing was.
        """
        if not self.count:
            raise TnkitError("there are no sentences to take a centroid of")
        about = {key: value for key, value in self.provenance.items() if key != "sentences"}
        sentences = [{**self.provenance.get("sentences", {}), "n": self.count}]
        values = torch.as_tensor(self.total / self.count).float()
        return Centroids(values, self.layers, {**about, "sentences": sentences})


def estimate_centroids(languages: Sequence[Activations | Centroids]) -> Centroids:
    """The mean over languages of each language's mean `post` (Tezuka & Inoue, EMNLP 2025).

    With one language this is its own centroid, the target of Type-2; with the hub languages and the language in
    question, on parallel sentences, it is the shared centroid, the target of Type-1.

    Args:
        languages: one capture a language (or its centroid), all of the same model, layers and token position.

    Returns:
        `Centroids` with values (layer, hidden), float32, summed in float64.

    Raises:
        TnkitError: for none, for captures of different models, layers or positions, or under different ablations, and
            for languages of other rows.

    >>> from tnkit.testing import tiny_model
    >>> import tnkit as tn
    >>> estimate_centroids([tn.capture(tiny_model(), ["Hi!"], keep=["post"], progress=False)])
    Centroids(unnamed, 4 layers)
    """
    if isinstance(languages, Activations | Centroids):
        languages = [languages]
    parts = [part if isinstance(part, Centroids) else _centroid(part) for part in languages]
    if not parts:
        raise TnkitError("there are no languages to take a centroid of")
    first = parts[0]
    check_alike([part.provenance for part in parts])
    for part in parts[1:]:
        if part.layers != first.layers:
            raise TnkitError(f"captures of layers {first.layers} and {part.layers} do not make one centroid")
    values = torch.stack([part.values.double() for part in parts]).mean(dim=0).float()
    sentences = [one for part in parts for one in part.provenance.get("sentences", [])]
    check_parallel({f"language {place} ({one.get('language')})": _rows(one) for place, one in enumerate(sentences, 1)})
    return Centroids(values, first.layers, {**first.provenance, "sentences": sentences})


def _rows(origin: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every language: the rows, where they are known."""
    return {what: origin[what] for what in ("corpus", "split", "source", "rows") if "rows" in origin and what in origin}


def _summed_post(_layer: int, sites: Mapping[str, Tensor], *_weights: Tensor) -> Tensor:
    """The sum over a batch's sentences; it runs where the model does."""
    return sites["post"].sum(dim=0, dtype=torch.float64)


def _centroid(captured: Activations) -> Centroids:
    running = CentroidAccumulator()
    running.add(captured)
    return running.result()
