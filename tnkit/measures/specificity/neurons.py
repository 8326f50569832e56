"""Shared by measures of all neurons: the check of captures, the frame, the selection of extreme neurons."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.ranking import check_size, chosen_layers, ranked
from tnkit.errors import TnkitError
from tnkit.provenance import check_alike
from tnkit.widths import present


def comparable(languages: Mapping[str, Activations], least: int = 1) -> Activations:
    """The first capture, after a check that all hold finite activations of some sentences, captured in the same way."""
    if len(languages) < least:
        raise TnkitError(f"cannot compare {len(languages)} language(s); capture at least {least}")
    values = {name: capture.require("activations").tensors()["activations"] for name, capture in languages.items()}
    check_alike(
        {
            name: {**capture.provenance, "layers": capture.layers, "width": values[name].shape[2]}
            for name, capture in languages.items()
        },
        ("layers", "width", "model", "position", "suffix", "ablations"),
    )
    for name, capture in languages.items():
        if not len(capture):
            raise TnkitError(f"the capture of {name} has no sentences")
        if not all(bool(bound.isfinite()) for bound in values[name].aminmax()):
            finite = values[name].isfinite().all(dim=2).all(dim=1).tolist()
            raise TnkitError(
                f"activations of {name} in layer {capture.layers[finite.index(False)]} hold NaN or Inf; capture again "
                "with the model in float32 or bfloat16"
            )
    return next(iter(languages.values()))


def model_shape(captured: Activations) -> tuple[int, int]:
    """The model's numbers of layers and of neurons in a layer; an unknown model is taken to end at the last layer."""
    layers = captured.provenance.get("model", {}).get("layers", max(captured.layers) + 1)
    return layers, captured.of_layer(captured.layers[0]).shape[1]


def absent(captured: Activations) -> Bool[np.ndarray, "layer neuron"]:
    """Which columns of a capture stand for no neuron, because its layer has fewer than the widest one."""
    there = present(captured.provenance, model_shape(captured))
    return ~there[list(captured.layers)].numpy()


def neuron_frame(layers: Sequence[int], columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Values (layer, neuron) as columns, indexed (layer, neuron).

    >>> neuron_frame([0, 2], {"score": np.array([[0.0, 1.0], [2.0, 3.0]])}).loc[(2, 1), "score"].item()
    3.0
    """
    width = next(iter(columns.values())).shape[1]
    index = pd.MultiIndex.from_product([layers, range(width)], names=["layer", "neuron"])
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index).dropna(how="all")


def extreme(
    result: Any,
    values: np.ndarray,
    n: SupportsIndex,
    layers: Iterable[SupportsIndex] | None,
    selection: dict[str, Any],
    *,
    lowest: bool = False,
) -> NeuronSet:
    """The n neurons with the highest (or lowest) value in some layers of a result, with its shape and provenance."""
    chosen = chosen_layers(layers, result.layers, verb="captured")
    values = values[[result.layers.index(layer) for layer in chosen]]
    n = check_size("bottom" if lowest else "top", n, chosen, (~np.isnan(values)).sum(axis=1).tolist())
    provenance = {**result.provenance, "selection": selection}
    return ranked(torch.from_numpy(values), n, chosen, n_layers=result.shape[0], provenance=provenance, lowest=lowest)


def activations_of(captured: Activations) -> Float[np.ndarray, "layer sentence neuron"]:
    if captured.experts is None:
        return captured.tensors()["activations"].numpy()
    return torch.stack([captured.of_layer(layer) for layer in captured.layers]).numpy()
