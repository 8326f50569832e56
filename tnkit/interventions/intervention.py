"""What is done with neurons: `Intervention`, accepted wherever neurons are switched off.

tn.Intervention(type1)                                       # activations are set to 0
tn.Intervention(type1, value="mean", of=ja)                  # to their mean over the sentences of a capture
tn.Intervention(type1, value="resampled", of=ja, seed=1)     # to those of a sentence drawn for each sentence
tn.Intervention(type1, scale=0.5)                            # halved
tn.Intervention(type1, add=1, of=en, minus=ja)               # moved by what English has more than Japanese
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet, Pair, pairs_of
from tnkit.errors import TnkitError, check_model, whole_number, whole_numbers
from tnkit.models.model import Model
from tnkit.provenance import check_made_with, sentences_of

Captures = Activations | Sequence[Activations] | Mapping[str, Activations]
VALUES = ("mean", "resampled")  # of captures
_NAMED = ("corpus", "language", "split", "n", "hash")  # what is recorded of captured sentences


@dataclass(frozen=True, eq=False)
class Intervention:
    """Neurons and what their activations become; give one of value, scale and add (default: value=0.0).

    Everything that takes neurons takes an `Intervention` or a list of them, as a control too. It has the length, pairs,
    shape and provenance of its neurons.

    Args:
        neurons: a `NeuronSet` or (layer, neuron) pairs.
        value: set each activation to a number, to "mean", its mean over the sentences of `of`, or to "resampled", its
            value in one sentence of `of`. That sentence is drawn from the seed and the tokens of the sentence that
            runs, up to the last token that is set: once for all neurons and all tokens, and alike in any batch, from a
            cached prefix, and while text is generated. One of n draws is the sentence itself where `of` holds it.
        of: captures of the untouched model. The mean of several is the mean of their means, each weighing the same; a
            draw first chooses one of them.
        scale: multiply activations by this, or by this for each layer.
        add, minus: a → a + add · (mean over `of` - mean over `minus`), the additive form of steering (Turner et al.,
            2023) in the space of neurons.
        seed: of the draws.

    Raises:
        TnkitError: for what does not fit together, or a number that is not finite.

    >>> some = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> Intervention(some, scale={0: 0.5, 1: 0.0}).describe()
    '2 neurons multiplied by 0.5 in layer 0, 0.0 in layer 1'
    >>> Intervention(some, value="mean")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: value='mean' needs of=a capture with activations
    """

    neurons: NeuronSet | Iterable[Pair]
    _: KW_ONLY
    value: float | str | None = None
    of: Captures | None = None
    scale: float | Mapping[int, float] | None = None
    add: float | None = None
    minus: Captures | None = None
    seed: SupportsIndex = 0

    def __post_init__(self) -> None:
        if not isinstance(self.neurons, NeuronSet):
            object.__setattr__(self, "neurons", pairs_of(self.neurons))
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        given = {name: getattr(self, name) for name in ("value", "scale", "add") if getattr(self, name) is not None}
        if len(given) > 1:
            named = ", ".join(f"{name}={value!r:.60}" for name, value in given.items())
            raise TnkitError(f"{named} exclude each other: value sets, scale multiplies, add moves; give one of them")
        if not given:
            object.__setattr__(self, "value", 0.0)
        self._check_numbers()
        self._check_captures()

    def _check_numbers(self) -> None:
        scales = dict(self.scale) if isinstance(self.scale, Mapping) else {0: self.scale}
        given: dict[str, list[Any]] = {"value": [self.value], "scale": [*scales.values()], "add": [self.add]}
        for name, numbers in given.items():
            for number in numbers:
                if number is not None and not isinstance(number, str) and not math.isfinite(number):
                    raise TnkitError(f"{name}={number!r} must be a finite number")
        if isinstance(self.value, str) and self.value not in VALUES:
            raise TnkitError(f"value={self.value!r} must be a number, or 'mean' or 'resampled' with of=a capture")
        if isinstance(self.scale, Mapping):
            object.__setattr__(self, "scale", dict(zip(whole_numbers("scale", scales), scales.values(), strict=True)))

    def _check_captures(self) -> None:
        of, minus = sources(self.of), sources(self.minus)
        if isinstance(self.value, str) and not of:
            raise TnkitError(f"value={self.value!r} needs of=a capture with activations")
        if self.add is not None and not (of and minus):
            raise TnkitError(f"add={self.add} needs of= and minus=, captures with activations")
        if self.add is None and minus:
            raise TnkitError("minus= is only for add=, which moves activations by mean of `of` - mean of `minus`")
        if self.add is None and of and not isinstance(self.value, str):
            raise TnkitError("of= is only for value='mean', value='resampled' and add=; give one of these with it")

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs)

    @property
    def _pairs(self) -> tuple[Pair, ...]:
        return self.neurons.pairs if isinstance(self.neurons, NeuronSet) else tuple(self.neurons)

    @property
    def shape(self) -> tuple[int, int]:
        """The model's numbers of layers and of neurons in a layer.

        Raises:
            TnkitError: where the neurons are pairs, which do not tell.
        """
        if isinstance(self.neurons, NeuronSet):
            return self.neurons.shape
        raise TnkitError("pairs of neurons do not tell the model's shape; give NeuronSet(pairs, shape=(layers, width))")

    @property
    def provenance(self) -> dict[str, Any]:
        """The neurons' provenance, and under "intervention" what is done with them."""
        of_neurons = self.neurons.provenance if isinstance(self.neurons, NeuronSet) else {}
        return {**of_neurons, "intervention": self.about()}

    def about(self) -> dict[str, Any]:
        """What is done with the neurons, for provenance: the value or dose, whose activations, the seed."""
        if self.scale is not None:
            scales = self.scale.items() if isinstance(self.scale, Mapping) else ()
            return {"scale": {str(layer): float(scale) for layer, scale in scales} or self.scale}
        about: dict[str, Any] = {"value": self.value} if self.add is None else {"add": self.add}
        for name in ("of", "minus"):
            origins = [
                origin for capture in sources(getattr(self, name)) for origin in sentences_of(capture.provenance)
            ]
            if sources(getattr(self, name)):
                about[name] = [{key: part for key, part in origin.items() if key in _NAMED} for origin in origins]
        return about | ({"seed": self.seed} if self.value == "resampled" else {})

    def describe(self) -> str:
        """One line: how many neurons, and what they become.

        >>> Intervention([(0, 5)], value=1.5).describe()
        '1 neuron set to 1.5'
        """
        subject = f"{len(self)} neuron{'' if len(self) == 1 else 's'}"
        if isinstance(self.scale, Mapping):
            return f"{subject} multiplied by " + ", ".join(f"{by} in layer {layer}" for layer, by in self.scale.items())
        if self.scale is not None:
            return f"{subject} multiplied by {self.scale}"
        if self.add is not None:
            return f"{subject} moved by {self.add} × (mean of {_whose(self.of)} - mean of {_whose(self.minus)})"
        if self.value == "resampled":
            return f"{subject} resampled from {_whose(self.of)}, seed {self.seed}"
        return f"{subject} set to " + (f"the mean of {_whose(self.of)}" if self.value == "mean" else f"{self.value}")

    def target(self, layer: int, places: Sequence[int]) -> tuple[Tensor | None, float | None]:
        """What the activations a of some neurons of a layer become: the target, or scale · a + target.

        Args:
            layer: the layer.
            places: the neurons.

        Returns:
            The target, float64, (neuron,), or (sentence, neuron) of which `draw` chooses a row; None where nothing is
            added. The scale; None where the target replaces a.

        Raises:
            TnkitError: for a layer that a capture, or a scale by layers, does not have.

        >>> Intervention([(0, 5)], value=1.5).target(0, [5]), Intervention([(0, 5)], scale=2.0).target(0, [5])
        ((tensor([1.5000], dtype=torch.float64), None), (None, 2.0))
        """
        if isinstance(self.scale, Mapping):
            if layer not in self.scale:
                raise TnkitError(f"scale= has layers {', '.join(map(str, self.scale))}, not {layer}; add that layer")
            return None, float(self.scale[layer])
        if self.scale is not None:
            return None, self.scale
        if self.add is not None:
            difference = _mean(self.of, layer, places) - _mean(self.minus, layer, places)
            return (self.add * difference if self.add else None), 1.0  # a dose of 0 leaves every bit
        if self.value == "resampled":
            return torch.cat([_values(capture, layer, places) for capture in sources(self.of)]), None
        if self.value == "mean":
            return _mean(self.of, layer, places), None
        return torch.full((len(places),), float(self.value or 0.0), dtype=torch.float64), None

    def draw(self, tokens: Iterable[int]) -> int:
        """The row of a resampled target that a sentence gets.

        Args:
            tokens: its token ids.
        """
        sizes = [len(capture) for capture in sources(self.of)]
        digest = hashlib.sha256(repr([self.seed, *tokens]).encode()).digest()
        rest, chosen = divmod(int.from_bytes(digest, "big"), len(sizes))
        return sum(sizes[:chosen]) + rest % sizes[chosen]


def sources(captures: Captures | None) -> tuple[Activations, ...]:
    """The captures that are given, one or several.

    >>> sources(None)
    ()
    """
    if captures is None or isinstance(captures, Activations):
        return () if captures is None else (captures,)
    return tuple(captures.values() if isinstance(captures, Mapping) else captures)


def _whose(captures: Captures | None) -> str:
    """The captures' languages, or how many sentences they have."""
    if isinstance(captures, Mapping):
        return ", ".join(captures)
    named = [origin.get("language") for one in sources(captures) for origin in sentences_of(one.provenance)]
    languages = [language for language in named if language]
    return ", ".join(dict.fromkeys(languages)) or f"{sum(map(len, sources(captures)))} sentences"


def _mean(captures: Captures | None, layer: int, places: Sequence[int]) -> Tensor:
    """The mean over captures of their mean activations (neuron,), float64; in experts, of sentences that they had."""
    means = []
    for capture in sources(captures):
        values, ran = _values(capture, layer, places), capture.ran(layer, places)
        means.append(values.mean(dim=0) if bool(ran.all()) else values.sum(dim=0) / ran.sum(dim=0).clamp_min(1))
    return torch.stack(means).mean(dim=0)


def _values(capture: Activations, layer: int, places: Sequence[int]) -> Tensor:
    """The activations of some neurons of a layer (sentence, neuron), float64."""
    return capture.of_neurons(layer, places).double()


def set_of(model: Model, neurons: Iterable[tuple[int, int]]) -> NeuronSet:
    """Neurons as a set of the model's.

    Raises:
        TnkitError: for a neuron that the model does not have, or a set that was made with another model.
    """
    check_model(model)
    shape, layout = (model.n_layers, model.n_neurons), tuple(map(tuple, model.layout))
    if not isinstance(neurons, NeuronSet):
        return NeuronSet(pairs_of(neurons), shape, layout=layout)
    if neurons.shape != shape:
        raise TnkitError(
            f"the neurons are of a model of {neurons.shape} (layers, neurons a layer), and {model.name} has {shape}; "
            "select neurons of this model"
        )
    check_made_with(model, neurons.provenance, "these neurons")
    return replace(neurons, layout=layout) if layout else neurons
