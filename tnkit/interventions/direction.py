"""What is done along a direction of the residual stream: `Direction`, accepted wherever neurons are switched off.

towards = tn.Direction.difference(en, ja, layers=[12])                # mean of English - mean of Japanese, as captured
with tn.Ablation(model, towards): ...                                 # the state's projection is set to 0
tn.Direction.difference(en, ja, layers=[12], add=2)                   # moved by twice the difference
tn.Direction({12: vector}, scale=0.5)                                 # any vector; its part of the state is halved
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, SupportsFloat, SupportsIndex

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import Pair
from tnkit.errors import TnkitError, whole_numbers
from tnkit.models.model import Model
from tnkit.provenance import check_alike, check_made_with, sentences_of


@dataclass(frozen=True, eq=False)
class Direction:
    """Directions of the residual stream and what the state becomes along them; value, scale or add (default: value=0).

    With h the state that enters a layer, v the direction there and u = v / |v|:

    - value: h → h + (value - h·u) u, which sets the projection; 0 takes the direction out of the state;
    - scale: h → h + (scale - 1)(h·u) u;
    - add: h → h + add · v, activation addition (Turner et al., 2023).

    Everything that takes an `Intervention` takes a `Direction`, except remote models and what needs neurons. Its length
    is its number of layers; it holds no neurons.

    Args:
        vectors: layer → v (hidden,), for the state that enters the layer: `pre` of the layer, `post` of the one before.
        value, scale, add: what is done; a scale of 1 and an add of 0 change no bit.
        provenance: where the vectors come from.

    Raises:
        TnkitError: for no vectors, one that is zero or not finite, or several of value, scale and add.

    >>> Direction({2: torch.tensor([3.0, 4.0])}, scale=0.5).describe()
    'the state along a direction at layer 2 multiplied by 0.5'
    """

    vectors: Mapping[int, Tensor]
    _: KW_ONLY
    value: SupportsFloat | None = None
    scale: SupportsFloat | None = None
    add: SupportsFloat | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = whole_numbers("vectors", self.vectors)
        vectors = {layer: torch.as_tensor(v).double() for layer, v in zip(layers, self.vectors.values(), strict=True)}
        if not vectors:
            raise TnkitError("a Direction needs a vector for at least one layer, as in {12: vector}")
        for layer, vector in vectors.items():
            if vector.ndim != 1 or not bool(vector.isfinite().all()) or not bool(vector.any()):
                raise TnkitError(f"the direction at layer {layer} must be one vector of finite numbers, not all 0")
        object.__setattr__(self, "vectors", vectors)
        given = {name: getattr(self, name) for name in ("value", "scale", "add") if getattr(self, name) is not None}
        if len(given) > 1:
            raise TnkitError(f"{' and '.join(given)} exclude each other; give one of them")
        for name, number in (given or {"value": 0.0}).items():
            if not math.isfinite(number):
                raise TnkitError(f"{name}={number!r} must be a finite number")
            object.__setattr__(self, name, float(number))

    @classmethod
    def difference(
        cls, of: Activations, minus: Activations, *, layers: Iterable[SupportsIndex], **how: SupportsFloat
    ) -> "Direction":
        """The difference of means (DiffMean): mean over the sentences of `of` - mean over those of `minus`.

        Args:
            of, minus: captures alike, with `pre` of the layers or `post` of the layers before them.
            layers: which states are changed: those that enter these layers.
            **how: value, scale or add.

        Raises:
            TnkitError: for captures of different models or positions, or ones that lack a layer.

        >>> from tnkit.testing import by_language
        >>> of, minus = by_language().values()
        >>> found = Direction.difference(of, minus, layers=[2]).vectors[2]
        >>> torch.allclose(found.float(), of.post[1].mean(dim=0) - minus.post[1].mean(dim=0), atol=1e-6)
        True
        """
        check_alike([of.provenance, minus.provenance])
        vectors = {layer: _entering(of, layer) - _entering(minus, layer) for layer in whole_numbers("layers", layers)}
        sides: dict[str, Any] = {"of": sentences_of(of.provenance), "minus": sentences_of(minus.provenance)}
        stated = {name: of.provenance[name] for name in ("model", "position", "ablations") if name in of.provenance}
        return cls(vectors, provenance=stated | sides, **how)

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[Pair]:
        return iter(())

    @property
    def shape(self) -> tuple[int, int]:
        """Of a neuron set.

        Raises:
            TnkitError: always.
        """
        raise TnkitError("a Direction holds no neurons; give a neuron set, or leave the direction out here")

    def about(self) -> dict[str, Any]:
        """What is done, for provenance: a hash of each layer's vector, the value or dose, and whose means they are."""
        hashes = {str(layer): storage.text_hash([v.numpy().tobytes().hex()]) for layer, v in self.vectors.items()}
        number = {name: getattr(self, name) for name in ("value", "scale", "add") if getattr(self, name) is not None}
        sides: dict[str, Any] = {name: self.provenance[name] for name in ("of", "minus") if name in self.provenance}
        return {"direction": hashes, **number, **sides}

    def describe(self) -> str:
        """One line: where, and what is done."""
        where = f"at layer{'s' if len(self) > 1 else ''} {', '.join(map(str, self.vectors))}"
        if self.add is not None:
            return f"the state moved by {self.add} × a direction {where}"
        done = f"multiplied by {self.scale}" if self.scale is not None else f"set to {self.value}"
        return f"the state along a direction {where} {done}"

    def check(self, model: Model) -> None:
        """Refuse a direction that a model does not have, or that was made with another model.

        Raises:
            TnkitError: saying why.
        """
        for layer, vector in self.vectors.items():
            if layer >= model.n_layers or len(vector) != model.hidden_size:
                raise TnkitError(
                    f"the direction is of {len(vector)} numbers at layer {layer}, and {model.name} has "
                    f"{model.n_layers} layers with a state of {model.hidden_size}"
                )
        check_made_with(model, self.provenance, "these vectors", states=True)

    def moved(self, states: Tensor, chosen: Bool[Tensor, "sentence token"], layer: int) -> Tensor:
        """The states that enter a layer, changed at chosen tokens; the same tensor where nothing is to be done."""
        if self.add == 0 or self.scale == 1:
            return states
        direction = self.vectors[layer].to(states.device, torch.float32)
        mask = chosen.to(states.device).reshape(states.shape[:-1])
        old = states[mask].float()
        if self.add is not None:
            new = old + float(self.add) * direction
        else:
            unit = direction / direction.norm()
            along = (old @ unit)[:, None]
            new = old + (self._target(along) - along) * unit
        changed = states.clone()
        changed[mask] = new.to(states.dtype)
        return changed

    def _target(self, along: Float[Tensor, "token 1"]) -> Tensor | float:
        """What projections become."""
        return float(self.value or 0.0) if self.scale is None else along * float(self.scale)


def _entering(captured: Activations, layer: int) -> Float[Tensor, "hidden"]:
    """The mean over sentences of the states that enter a layer, float64."""
    site, at = ("pre", layer) if captured.pre is not None else ("post", layer - 1)
    if at not in captured.layers:
        raise TnkitError(
            f"the capture holds {site} of layers {captured.layers}, which tells nothing of the states that enter layer "
            f"{layer}; capture layer {at}" + (", or keep pre" if site == "post" else "")
        )
    states = captured.require(site).tensors()[site][captured.layers.index(at)]
    return states.double().mean(dim=0)
