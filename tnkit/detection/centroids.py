"""The mean hidden state of a language, layer by layer: `Centroids`, `estimate_centroids`.

language = tn.estimate_centroids([ja])        # target of Type-2
shared = tn.estimate_centroids([en, ja])      # target of Type-1: the mean of the language centroids
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import pickles, plots, storage
from tnkit.captures.activations import Activations
from tnkit.captures.passes import plan
from tnkit.captures.token_ids import Texts
from tnkit.detection.sums import RunningSum, add_up, drain
from tnkit.errors import TnkitError, check_model
from tnkit.models.model import Model
from tnkit.provenance import check_alike, check_made_with, sentences_of, stated
from tnkit.text.rows import check_parallel


@dataclass(frozen=True, eq=False)
class Centroids:
    """One point in the residual stream after each layer.

    Attributes:
        values: (layer, hidden), float32.
        layers: of the rows of `values`.
        provenance: the model, and the sentences of each language.

    >>> from tnkit.testing import by_language
    >>> estimate_centroids([*by_language().values()]).values.shape
    torch.Size([4, 32])
    """

    values: Float[Tensor, "layer hidden"]
    layers: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Centroids({'+'.join(self.languages) or 'unnamed'}, {len(self.layers)} layers)"

    @property
    def languages(self) -> list[str]:
        """The languages whose mean this is, where they are known."""
        named = [origin.get("language") for origin in sentences_of(self.provenance)]
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

    def of_layers(self, layers: Sequence[int]) -> "Centroids":
        """These centroids in some of their layers.

        Raises:
            TnkitError: where one was not estimated.

        >>> Centroids(torch.tensor([[1.0], [2.0]]), (3, 4)).of_layers([4])
        Centroids(unnamed, 1 layers)
        """
        return Centroids(torch.stack([self.at(layer) for layer in layers]), tuple(layers), self.provenance)

    @property
    def largest_share(self) -> Float[Tensor, "layer"]:
        """The share of |C|² that the largest coordinate holds, by layer, float32.

        Language models have a few massive coordinates (Sun et al., COLM 2024). Where one holds most of a centroid, the
        cosine with it says little about the rest.

        >>> Centroids(torch.tensor([[1.0, -3.0], [2.0, 2.0]]), (0, 1)).largest_share
        tensor([0.9000, 0.5000])
        """
        squares = self.values.double().square()
        return (squares.amax(dim=1) / squares.sum(dim=1)).float()

    def cosines(self, other: "Centroids") -> Float[Tensor, "layer"]:
        """The cosine with other centroids in each layer of these, float32.

        Raises:
            TnkitError: where the others lack a layer.

        >>> en, ja = (Centroids(torch.tensor([values]), (0,)) for values in ([3.0, 4.0], [0.0, 2.0]))
        >>> en.cosines(ja)
        tensor([0.8000])
        """
        others = other.of_layers(self.layers).values
        return torch.nn.functional.cosine_similarity(self.values.double(), others.double(), dim=1).float()

    def seen_from(self, origin: "Centroids") -> "Centroids":
        """The differences from an origin, such as the mean over all languages, in each layer of these.

        Raises:
            TnkitError: where the origin lacks a layer.

        >>> en, ja = (Centroids(torch.tensor([values]), (0,)) for values in ([3.0, 4.0], [1.0, 5.0]))
        >>> en.seen_from(ja).values
        tensor([[ 2., -1.]])
        """
        return Centroids(self.values - origin.of_layers(self.layers).values, self.layers, self.provenance)

    def check(self, model: Model) -> "Centroids":
        """These centroids, if they were made with this model.

        Raises:
            TnkitError: otherwise.
        """
        check_model(model)
        made_with = self.provenance.get("model", {})
        depth, width = made_with.get("layers", max(self.layers) + 1), self.values.shape[1]
        if (depth, width) != (model.n_layers, model.hidden_size):
            raise TnkitError(
                f"these centroids have {depth} layers of width {width} ({made_with.get('name', 'model unknown')}), "
                f"{model.name} has {model.n_layers} of width {model.hidden_size}; estimate them with {model.name}"
            )
        check_made_with(model, self.provenance, "these centroids")
        return self

    def to_frame(self) -> pd.DataFrame:
        """By layer: the centroid's norm, its cosine with the layer before, and the share of its largest coordinate."""
        steps = torch.nn.functional.cosine_similarity(self.values[1:], self.values[:-1], dim=1)
        columns = {
            "norm": self.values.norm(dim=1).numpy(),
            "cosine with the layer before": [float("nan"), *steps.tolist()],
            "largest share": self.largest_share.numpy(),
        }
        return pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw the centroid's norm by layer."""
        return plots.lines_by_layer(self.to_frame()[["norm"]], ylabel="norm of the centroid", log=True, ax=ax)

    def save(self, path: str | Path, *, format: str = "tnkit") -> Path:
        """Write a safetensors file, or with format="reference" the published code's pickle (a list of arrays)."""
        if format == "reference":
            return pickles.write(path, [row.numpy() for row in self.values])
        description = {"layers": list(self.layers), "provenance": self.provenance}
        return storage.save_tensors(path, "centroids", {"values": self.values}, description)

    @classmethod
    def load(cls, path: str | Path) -> "Centroids":
        """Read what `save` wrote, in either format.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        if Path(path).suffix in (".pkl", ".pickle"):
            return cls._from_reference(path)
        tensors, description = storage.load_tensors(path, "centroids")
        if set(tensors) != {"values"}:
            raise TnkitError(f"{path} lacks the values of centroids; estimate them again")
        layers = storage.layers_of(path, description)
        values = storage.finite(path, "values", tensors["values"], (len(layers), None))
        return cls(values, layers, stated(path, description))

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


class CentroidAccumulator(RunningSum):
    """The running sum of `post` in one language.

    >>> import tnkit as tn
    >>> from tnkit.testing import captured, tiny_model, SENTENCES
    >>> running = CentroidAccumulator()
    >>> for batch in tn.stream(tiny_model(), SENTENCES, batch_tokens=64, progress=False):
    ...     running.add(batch)
    >>> stored = estimate_centroids([captured()]).values
    >>> bool((running.result().values - stored).norm() < 1e-5 * stored.norm())
    True
    """

    identity = "centroid"

    def totals(self, batch: Activations) -> Float[Tensor, "layer hidden"]:
        return batch.require("post").tensors()["post"].sum(dim=1, dtype=torch.float64).cpu()

    def reduction(self) -> Callable[..., Tensor]:
        return _summed_post

    def check(self, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        if self.count and layers != self.layers:
            raise TnkitError(f"a batch of layers {layers} cannot be added to layers {self.layers}")
        check_alike([self.provenance, provenance])

    def columns(self, model: Model) -> int:
        return model.hidden_size

    def result(self) -> Centroids:
        """The centroid of the sentences that were added.

        Raises:
            TnkitError: where there are none.
        """
        if not self.count:
            raise TnkitError("there are no sentences to take a centroid of")
        sentences = [{**self.provenance.get("sentences", {}), "n": self.count}]
        values = (self.total / self.count).float()
        return Centroids(values, self.layers, {**self.provenance, "sentences": sentences})


def _summed_post(_layer: int, sites: Mapping[str, Tensor], *_weights: Tensor) -> Tensor:
    """The sum over a batch's sentences; it runs where the model does."""
    return sites["post"].sum(dim=0, dtype=torch.float64)


def centroid(
    model: Model, sentences: Texts, *, cache: bool = False, progress: bool = True, **options: Any
) -> Centroids:
    """The centroid of one language, in memory that does not grow with the sentences.

    Args:
        model, sentences: as in `tn.capture`.
        cache: save the sums on the way, and resume from saved ones.
        progress: show a bar.
        **options: position, suffix, layers, last_layer, batch_tokens, as in `tn.capture`.

    >>> from tnkit.testing import captured, tiny_model, SENTENCES
    >>> stored = estimate_centroids([captured()])
    >>> bool((centroid(tiny_model(), SENTENCES, progress=False).values - stored.values).abs().max() < 1e-5)
    True
    """
    running, planned = CentroidAccumulator(), plan(model, sentences, keep=["post"], **options)
    work = add_up(planned, {"centroid": running}, fingerprint=model.fingerprint() if cache else None)
    drain(work, len(planned), desc="centroid", progress=progress)
    return running.result()


def estimate_centroids(languages: Sequence[Activations | Centroids]) -> Centroids:
    """The mean over languages of each language's mean `post` (Tezuka & Inoue, EMNLP 2025).

    The centroid of one language is the target of Type-2. That of the hub's languages and the language in question, on
    parallel sentences, is the shared centroid, the target of Type-1.

    Args:
        languages: a capture (or centroid) of each language, all of the same model, layers and token position.

    Returns:
        `Centroids` with values (layer, hidden), float32, summed in float64.

    Raises:
        TnkitError: for no languages; for captures of different models, layers, positions or ablations; and for
            sentences that are not parallel.

    >>> en, ja = Centroids(torch.zeros(1, 2), (0,)), Centroids(torch.tensor([[2.0, 4.0]]), (0,))
    >>> estimate_centroids([en, ja]).values
    tensor([[1., 2.]])
    """
    if isinstance(languages, Activations | Centroids):
        languages = [languages]
    centroids = [language if isinstance(language, Centroids) else _centroid(language) for language in languages]
    if not centroids:
        raise TnkitError("there are no languages to take a centroid of")
    first = centroids[0]
    check_alike([centroid.provenance for centroid in centroids])
    for other in centroids[1:]:
        if other.layers != first.layers:
            raise TnkitError(f"captures of layers {first.layers} and {other.layers} do not make one centroid")
    values = torch.stack([centroid.values.double() for centroid in centroids]).mean(dim=0).float()
    sentences = [origin for centroid in centroids for origin in sentences_of(centroid.provenance)]
    check_parallel(
        {f"language {number} ({origin.get('language')})": _rows(origin) for number, origin in enumerate(sentences, 1)}
    )
    return Centroids(values, first.layers, {**first.provenance, "sentences": sentences})


def _centroid(captured: Activations) -> Centroids:
    running = CentroidAccumulator()
    running.add(captured)
    return running.result()


def _rows(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Which rows of which corpus the sentences are, where that is known; all languages must have the same."""
    names = ("corpus", "split", "source", "rows") if "rows" in origin else ()
    return {name: origin[name] for name in names if name in origin}
