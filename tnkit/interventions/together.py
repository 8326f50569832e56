"""Several interventions at once, and what is accepted as neurons: `Together`, `intervention_of`, `neurons_of`.

with tn.Ablation(model, [type2_ja, tn.Intervention(type2_nl, value="mean", of=nl)]): ...       # one off, another on
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tnkit.detection.neurons import NeuronSet, Pair
from tnkit.errors import TnkitError
from tnkit.interventions.direction import Direction
from tnkit.interventions.intervention import Intervention, set_of
from tnkit.interventions.patch import Patch
from tnkit.models.model import Model


@dataclass(frozen=True, eq=False)
class Together:
    """Several interventions at once, such as one set off and another on; a list of them becomes one.

    Args:
        parts: interventions, directions, patches or neuron sets, which are set to 0; each acts on what those before
            it left.

    Raises:
        TnkitError: for no parts, or a neuron in two of them.

    >>> Together([NeuronSet(((0, 5),), (4, 48)), Intervention([(1, 2)], scale=2.0)]).describe()
    '1 neuron set to 0.0, and 1 neuron multiplied by 2.0'
    >>> Together([Intervention([(0, 5)]), Intervention([(0, 5)], scale=2.0)])
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: neuron (0, 5) is in two of these interventions; leave it out of one, or nest tn.Ablation...
    """

    parts: Sequence[Any]

    def __post_init__(self) -> None:
        nested = (part.parts if isinstance(part, Together) else (part,) for part in self.parts)
        given = [part for parts in nested for part in parts]
        parts = tuple(
            part if isinstance(part, Intervention | Direction | Patch) else Intervention(part) for part in given
        )
        if not parts:
            raise TnkitError("there is no intervention in this list; give at least one")
        twice = [pair for pair, count in Counter(pair for part in parts for pair in part).items() if count > 1]
        if twice:
            raise TnkitError(
                f"neuron {twice[0]} is in two of these interventions; leave it out of one, or nest tn.Ablation "
                "contexts, of which the inner one acts on what the outer one left"
            )
        object.__setattr__(self, "parts", parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Pair]:
        return (pair for part in self.parts for pair in part)

    @property
    def shape(self) -> tuple[int, int]:
        """That of the first neurons."""
        shape: tuple[int, int] = next((p for p in self.parts if isinstance(p, Intervention)), self.parts[0]).shape
        return shape

    @property
    def provenance(self) -> dict[str, Any]:
        """Those of its parts, under "together"."""
        return {"together": [part.provenance for part in self.parts]}

    def about(self) -> dict[str, Any]:
        """What its parts do, for provenance."""
        return {"together": [part.about() for part in self.parts]}

    def describe(self) -> str:
        """One line: what each of them does."""
        return ", and ".join(part.describe() for part in self.parts)


Neurons = NeuronSet | Intervention | Direction | Patch | Together
Given = Iterable[Pair | Neurons]  # pairs, one of these, or a list of them
Several = Sequence[Neurons]


def as_one(neurons: Any) -> Any:
    """A list that holds interventions as one, `Together`; anything else as it is.

    >>> as_one([(0, 5)]), len(as_one([Intervention([(0, 5)])]))
    ([(0, 5)], 1)
    """
    if isinstance(neurons, list | tuple) and any(isinstance(part, Neurons) for part in neurons):
        return Together(neurons)
    return neurons


def nothing(neurons: Neurons) -> NeuronSet | Intervention:
    """No neurons, of the shape of these where they have one.

    >>> import torch
    >>> len(nothing(NeuronSet(((0, 5),), (4, 48)))), len(nothing(Direction({1: torch.ones(2)})))
    (0, 0)
    """
    if isinstance(neurons, Direction | Patch | Together):
        return Intervention(())
    return NeuronSet((), neurons.shape)


def intervention_of(neurons: Given, how: Mapping[str, Any]) -> Intervention | Direction | Patch | Together:
    """An intervention as it is, or neurons with what is to be done with them.

    Raises:
        TnkitError: for an `Intervention` with further arguments beside it.
    """
    how, asked = dict(how), as_one(neurons)
    if (means := how.pop("means", None)) is not None:
        warnings.warn("means= is now of=, and goes with the next release", DeprecationWarning, stacklevel=3)
        how["of"] = means
    if not isinstance(asked, Intervention | Direction | Patch | Together):
        return Intervention(asked, **how)
    if how:
        raise TnkitError(
            f"an Intervention says what is done with its neurons, and {', '.join(how)} was given beside it; give "
            "neurons.neurons, or leave that out"
        )
    return asked


def neurons_of(model: Model, neurons: Given) -> Neurons:
    """Neurons as a set of the model's; interventions, and a list of them, stay what they are.

    Raises:
        TnkitError: for one that the model does not have, or a set that was made with another model.
    """
    asked = as_one(neurons)
    if isinstance(asked, Together):
        return Together([neurons_of(model, part) for part in asked.parts])
    if isinstance(asked, Direction | Patch):
        asked.check(model)
        return asked
    if isinstance(asked, Intervention):
        return replace(asked, neurons=set_of(model, asked.neurons))
    return set_of(model, asked)
