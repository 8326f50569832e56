"""What measures of all neurons share: one look at the captures, one frame, one choice of the most extreme."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float

from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.ranking import check_size, chosen_layers, ranked
from tnkit.errors import TnkitError

if TYPE_CHECKING:
    import pandas as pd


def alike(languages: Mapping[str, Activations], least: int = 1) -> Activations:
    """The first capture, once all have finite activations of some sentences, of the same layers and width."""
    if len(languages) < least:
        raise TnkitError(f"{len(languages)} language(s) were captured; compare at least {least}")
    first = next(iter(languages.values()))
    for name, part in languages.items():
        values = part.require("activations").tensors()["activations"]
        layers, width = part.layers, values.shape[2]
        if (layers, width) != (first.layers, activations_of(first).shape[2]):
            raise TnkitError(
                f"{name} was captured at layers {list(layers)} of {width} neurons, {next(iter(languages))} at "
                f"{list(first.layers)} of {activations_of(first).shape[2]}; capture them alike"
            )
        if not len(part):
            raise TnkitError(f"the capture of {name} has no sentences")
        if not all(bool(bound.isfinite()) for bound in values.aminmax()):
            finite = values.isfinite().all(dim=2).all(dim=1).tolist()
            raise TnkitError(
                f"activations of {name} in layer {layers[finite.index(False)]} hold NaN or Inf; capture again with the "
                "model in float32 or bfloat16"
            )
    return first


def model_shape(captured: Activations) -> tuple[int, int]:
    """The model's layers and neurons a layer; a capture of no known model ends at its last layer."""
    layers = captured.provenance.get("model", {}).get("layers", max(captured.layers) + 1)
    return layers, activations_of(captured).shape[2]


def joint_provenance(languages: Mapping[str, Activations]) -> dict[str, Any]:
    """The first capture's, with the sentences of each."""
    sentences = {name: part.provenance.get("sentences", {}) for name, part in languages.items()}
    return {**next(iter(languages.values())).provenance, "sentences": sentences}


def neuron_frame(layers: Sequence[int], columns: Mapping[str, np.ndarray]) -> "pd.DataFrame":
    """Values (layer, neuron) as columns, indexed (layer, neuron).

    >>> neuron_frame([0, 2], {"score": np.array([[0.0, 1.0], [2.0, 3.0]])}).loc[(2, 1), "score"].item()
    3.0
    """
    import pandas as pd

    width = next(iter(columns.values())).shape[1]
    index = pd.MultiIndex.from_product([layers, range(width)], names=["layer", "neuron"])
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index)


def extreme(
    result: Any,
    values: np.ndarray,
    n: SupportsIndex,
    layers: Iterable[SupportsIndex] | None,
    selection: dict[str, Any],
    *,
    lowest: bool = False,
) -> NeuronSet:
    """The n neurons of highest (or lowest) value in some layers of a result with `layers`, `shape` and `provenance`."""
    chosen = chosen_layers(layers, result.layers, verb="captured")
    n = check_size("bottom" if lowest else "top", n, chosen, values.shape[1])
    values = values[[result.layers.index(layer) for layer in chosen]]
    provenance = {**result.provenance, "selection": selection}
    return ranked(torch.from_numpy(values), n, chosen, n_layers=result.shape[0], provenance=provenance, lowest=lowest)


def activations_of(captured: Activations) -> Float[np.ndarray, "layer sentence neuron"]:
    return captured.tensors()["activations"].numpy()
