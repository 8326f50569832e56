"""Rank neurons by a value: `ranked`, and the checks of which layers and how many were asked for."""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, whole_number, whole_numbers


def chosen_layers(
    layers: Iterable[SupportsIndex] | None, known: Sequence[int], *, verb: str = "scored"
) -> tuple[int, ...]:
    """The layers to choose neurons from, ascending.

    Args:
        layers: any order; None for all.
        known: the layers that have values.
        verb: what was done to these, for the message.

    Raises:
        TnkitError: for none, or a layer without values.

    >>> chosen_layers([5, 2, 5], [2, 3, 5])
    (2, 5)
    """
    chosen = sorted(set(known if layers is None else whole_numbers("layers", layers)))
    missing = [layer for layer in chosen if layer not in known]
    if missing or not chosen:
        raise TnkitError(f"layers {missing or 'none'} were not {verb}; {verb} are {span(known)}")
    return tuple(chosen)


def check_size(name: str, n: SupportsIndex, layers: Sequence[int], widths: Sequence[int]) -> int:
    """How many neurons were asked for, as an int.

    Args:
        name: of the option, for the message.
        n: how many.
        layers: to choose from.
        widths: neurons in each of them.

    Raises:
        TnkitError: where n is not a whole number from 1 to what the layers hold.

    >>> check_size("top", 3, [2, 5], [48, 48])
    3
    """
    n, held = whole_number(name, n), sum(widths)
    if not 0 < n <= held:
        each = " to ".join(map(str, sorted({min(widths), max(widths)})))
        raise TnkitError(
            f"{name} {n} was asked for; {len(layers)} layers of {each} neurons hold {held} neurons: ask for 1 to "
            f"{held}, or for more layers"
        )
    return n


def span(layers: Sequence[int]) -> str:
    """Layers in words.

    >>> span([2, 3, 4]), span([2, 4])
    ('2 to 4', '2, 4')
    """
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))


def ranked(
    values: Float[Tensor, "layer neuron"],
    n: int,
    layers: Sequence[int],
    *,
    n_layers: int,
    provenance: dict[str, Any],
    lowest: bool = False,
) -> NeuronSet:
    """The n neurons of highest (or lowest) value, best first; equal values keep the order (layer, neuron).

    Args:
        values: a row for each of `layers`; NaN for neurons that a layer lacks.
        n: how many, as `check_size` lets pass.
        layers: of the rows.
        n_layers: how many layers the model has.
        provenance: of the set.
        lowest: rank from the lowest value.

    >>> ranked(torch.tensor([[0.1, 0.3], [0.2, 0.3]]), 3, [2, 5], n_layers=6, provenance={}).pairs
    ((2, 1), (5, 1), (5, 0))
    """
    width, values = values.shape[1], values.reshape(-1)
    keys = -values if lowest else values
    keys = torch.where(keys.isnan(), -torch.inf, keys)
    least = keys.topk(n).values[-1] if n else torch.inf
    candidates = (keys >= least).nonzero()[:, 0]
    chosen = candidates[keys[candidates].sort(descending=True, stable=True).indices[:n]]
    pairs = tuple((layers[number // width], number % width) for number in chosen.tolist())
    return NeuronSet(pairs, (n_layers, width), tuple(values[chosen].tolist()), provenance)
