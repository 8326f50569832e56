"""The layers that a caller names, checked against a model: `check_layers`."""

from collections.abc import Iterable
from typing import Any, SupportsIndex

from tnkit.errors import TnkitError, check_model, whole_numbers


def check_layers(model: Any, layers: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """The layers as a tuple of ints, ascending.

    Raises:
        TnkitError: for none, for a layer that the model does not have, or that is not a whole number.

    >>> from tnkit.testing import tiny_model
    >>> check_layers(tiny_model(), [2, 0, 2])
    (0, 2)
    """
    check_model(model)
    chosen = set()
    for layer in whole_numbers("layers", layers):
        if not layer < model.n_layers:
            raise TnkitError(f"layer {layer} is not in {model.name}, which has layers 0 to {model.n_layers - 1}")
        chosen.add(layer)
    if not chosen:
        raise TnkitError(f"no layers were named; {model.name} has layers 0 to {model.n_layers - 1}")
    return tuple(sorted(chosen))
