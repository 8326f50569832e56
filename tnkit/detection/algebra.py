"""Sets of several languages taken together: `shared` by so many of them, and `own` to one.

sets = {"ja": ja_type1, "ko": ko_type1, "it": it_type1}
tn.shared(sets, at_least=2), tn.shared(sets, exactly=3)
tn.own(sets, "ja")                                        # in no other set
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, SupportsIndex

from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, whole_number


def shared(
    sets: Mapping[str, NeuronSet], *, at_least: SupportsIndex | None = None, exactly: SupportsIndex | None = None
) -> NeuronSet:
    """The neurons that several of some sets have in common.

    Args:
        sets: by name; of the same model.
        at_least: how many sets a neuron must be in (default: all of them).
        exactly: how many sets it must be in, no more and no fewer; instead of `at_least`.

    Returns:
        The neurons in the order of the first set that has each, without scores, which differ between the sets.

    Raises:
        TnkitError: for no sets, sets of different models, a number that no neuron can reach, or both numbers.

    >>> sets = {"ja": NeuronSet(((0, 5), (1, 2)), (4, 48)), "ko": NeuronSet(((1, 2), (3, 0)), (4, 48))}
    >>> shared(sets).pairs, shared(sets, exactly=1).pairs
    (((1, 2),), ((0, 5), (3, 0)))
    """
    first = _alike(sets)
    if at_least is not None and exactly is not None:
        raise TnkitError(f"give at_least={at_least} or exactly={exactly}, not both")
    name, asked = ("exactly", exactly) if exactly is not None else ("at_least", at_least)
    number = len(sets) if asked is None else whole_number(name, asked, at_least=1)
    if number > len(sets):
        raise TnkitError(f"{name}={number} is more than the {len(sets)} sets; ask for 1 to {len(sets)}")
    counts = Counter(pair for neurons in sets.values() for pair in neurons)
    pairs = tuple(pair for pair, count in counts.items() if count == number or (exactly is None and count > number))
    return replace(first, pairs=pairs, scores=(), provenance=_provenance(sets, {name: number}))


def own(sets: Mapping[str, NeuronSet], name: str) -> NeuronSet:
    """The neurons of one set that no other set has, in its order and with its scores.

    Raises:
        TnkitError: for an unknown name, or sets of different models.

    >>> sets = {"ja": NeuronSet(((0, 5), (1, 2)), (4, 48)), "ko": NeuronSet(((1, 2), (3, 0)), (4, 48))}
    >>> own(sets, "ja").pairs
    ((0, 5),)
    """
    _alike(sets)
    if name not in sets:
        raise TnkitError(f"there is no set {name!r}; there are {', '.join(sets)}")
    theirs = {pair for other, neurons in sets.items() if other != name for pair in neurons}
    kept = sets[name].take([place for place, pair in enumerate(sets[name]) if pair not in theirs])
    return replace(kept, provenance={**kept.provenance, **_provenance(sets, {"own": name})})


def by_membership(sets: Mapping[str, NeuronSet], name: str) -> dict[str, NeuronSet]:
    """The neurons of one set that no other has, and those that all have, by name; none where there are none."""
    chosen = {"in no other set": own(sets, name), "in all sets": shared(sets)} if len(sets) > 1 else {}
    return {how: neurons for how, neurons in chosen.items() if len(neurons)}


def _alike(sets: Mapping[str, NeuronSet]) -> NeuronSet:
    """The first set, once all are of models of one shape."""
    if not sets:
        raise TnkitError("there are no sets; name at least one")
    first, *others = sets.values()
    for other in others:
        first.comparable(other)
    return first


def _provenance(sets: Mapping[str, NeuronSet], selection: dict[str, Any]) -> dict[str, Any]:
    return {"selection": selection, "sets": {name: neurons.provenance for name, neurons in sets.items()}}
