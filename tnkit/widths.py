"""How many neurons and experts each layer of a model has, as its results record it in their provenance ("layout")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from tnkit.errors import TnkitError


def widths_of(provenance: Mapping[str, Any], shape: tuple[int, int]) -> tuple[int, ...]:
    """How many neurons each layer has, of a result for a model of that many layers and neurons in the widest one.

    Raises:
        TnkitError: where the provenance states another number of layers, or of neurons.

    >>> widths_of({"model": {"layout": [[48], [0], [32]]}}, (3, 48)), widths_of({}, (2, 48))
    ((48, 0, 32), (48, 48))
    """
    model = provenance.get("model")
    layout = model.get("layout") if isinstance(model, Mapping) else None
    if not layout:
        return (shape[1],) * shape[0]
    try:
        widths = tuple(int(layer[0]) for layer in layout)
    except (TypeError, ValueError, LookupError):
        widths = ()
    if len(widths) != shape[0] or max(widths) != shape[1] or min(widths) < 0:
        raise TnkitError(
            f"the provenance states the layers {layout!s:.60}, which are not {shape[0]} of up to {shape[1]} neurons; "
            "make the result again"
        )
    return widths


def present(provenance: Mapping[str, Any], shape: tuple[int, int]) -> Any:
    """Which neurons there are, as a tensor of bool (layer, neuron); the arguments are those of `widths_of`."""
    import torch

    return torch.arange(shape[1]) < torch.tensor(widths_of(provenance, shape))[:, None]


def expert_column(layout: Sequence[Sequence[int]], index: Iterable[tuple[int, int]]) -> Any:
    """The expert of each neuron; shared ones have the number after the last, and layers without experts none.

    >>> expert_column([[4], [10, 3, 2]], [(0, 3), (1, 1), (1, 5), (1, 9)]).tolist()
    [<NA>, 0, 2, 3]
    """
    experts = [None if len(layout[at]) < 2 else min(neuron // layout[at][2], layout[at][1]) for at, neuron in index]
    return pd.array(experts, dtype="Int64")
