"""Neuron sets that a set is compared with: `controls`.

tn.controls(type1, layers=model.early_layers, norms=norms, scores=scores)
rivals = tn.controls(type1, layers=model.early_layers, model=model, captured={"ja": ja, "en": en, "ko": ko})
list(rivals), rivals["towards ko"], rivals["random direction"](seed)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.ranking import ranked, span
from tnkit.detection.scores import NeuronScores
from tnkit.detection.scoring import contribution_norms, routed_shares
from tnkit.detection.selection import Selection
from tnkit.errors import TnkitError, check_model, whole_number, whole_numbers
from tnkit.interventions.displacement import equal_displacement
from tnkit.interventions.together import Neurons, Several, as_one
from tnkit.models.model import Model

Control = Neurons | Several | Callable[[int], Neurons | Several]


class Controls(Mapping[str, Control]):
    """Controls by name; one that takes work is made when it is first asked for.

    Args:
        makers: name → what makes the control.

    >>> rivals = Controls({"none": lambda: NeuronSet((), (4, 48))})
    >>> list(rivals), rivals["none"]
    (['none'], NeuronSet(0 neurons))
    """

    def __init__(self, makers: Mapping[str, Callable[[], Control]]) -> None:
        self._makers = {name: cache(make) for name, make in makers.items()}

    def __getitem__(self, name: str) -> Control:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:  # the inherited one would make the control
        return name in self._makers

    def __repr__(self) -> str:
        return f"Controls({', '.join(self)})"


def controls(
    neurons: NeuronSet,
    *,
    layers: Iterable[SupportsIndex] | None = None,
    norms: Tensor | None = None,
    scores: NeuronScores | None = None,
    others: Mapping[str, Control] | None = None,
    model: Model | None = None,
    captured: Mapping[str, Activations] | None = None,
    language: str | None = None,
    target: Sequence[str] | None = None,
) -> Controls:
    """The controls of a neuron set, for `compare`.

    "uniform" and "same layers" are random draws. With `norms`, "same layers and norms" is matched neuron by neuron;
    with `scores`, "lowest scores" moves the state away from the target. In a model with experts "same layers and norms"
    also matches how often a neuron runs, which takes `scores` or `model`; the other draws hardly ever run there.

    With `model` and `captured` there are those that were chosen as the set was, but towards another target:
    "random direction" and "shuffled labels" (targets that know nothing of languages), "towards ja" (each language's own
    centroid), "towards all" (the mean over all captured languages) and "towards the difference" (hub − own centroid;
    for Type-2, own − the mean of all others). "wrong layers" keeps the target, in the captured layers outside the
    range. "hub placebo" is of the hub's sentences, towards the hub's own centroid. "largest norm" and "largest norm,
    not in the set" choose by size alone; "equal displacement" are random draws whose members push the same way, as
    `equal_displacement` says, and with "more neurons" as many as it takes. Left out is what equals the set's own
    target, or cannot be had from these captures.

    Args:
        neurons: the set.
        layers: where the set was looked for (default: from its first layer to its last).
        norms: from `tnkit.detection.scoring.contribution_norms` (default: from `model` and `captured`).
        scores: for the control of lowest scores.
        others: further controls by name, such as another language's transfer neurons.
        model: the model that was captured.
        captured: language → capture of the sentences that chose the set.
        language, target: whose sentences were scored, and the languages of the target (default: what the set's
            provenance says).

    Returns:
        A mapping; a random control is a function of the seed. A control is made when it is first asked for.

    Raises:
        TnkitError: for `model` without `captured` or the reverse, and where the language or the target is not known or
            not captured.

    >>> sorted(controls(NeuronSet(((0, 5),), shape=(4, 48))))
    ['same layers', 'uniform']
    """
    layers = None if layers is None else tuple(whole_numbers("layers", layers))
    makers: dict[str, Callable[[], Control]] = {
        "uniform": lambda: lambda seed: neurons.uniform(seed=seed, layers=layers),
        "same layers": lambda: lambda seed: neurons.matched(seed=seed),
    }
    chosen = None
    if model is not None and captured is not None:
        check_model(model)
        chosen = Selection.of(neurons, model, captured, layers=layers, language=language, target=target)
    elif model is not None or captured is not None:
        raise TnkitError("give both model and captured, or neither")

    @cache
    def sizes() -> Tensor:
        if norms is None and chosen is not None:
            return contribution_norms(chosen.model, chosen.captured[chosen.language])
        assert norms is not None
        return norms

    @cache
    def shares() -> Tensor | None:
        if scores is not None and scores.routed is not None:
            return scores.shares()
        return None if chosen is None else routed_shares(chosen.model, chosen.captured[chosen.language])

    if norms is not None or chosen is not None:
        makers["same layers and norms"] = lambda: (
            lambda seed: neurons.matched(seed=seed, norms=sizes(), routed=shares())
        )
    if scores is not None:
        lowest = scores.bottom(len(neurons), layers=layers)
        makers["lowest scores"] = lambda: lowest
    if chosen is not None:
        makers |= _towards_others(chosen) | _elsewhere(neurons, chosen) | _by_size(neurons, chosen, sizes)
    return Controls(makers | {name: (lambda control=control: control) for name, control in (others or {}).items()})


def drawn(control: Control, seeds: SupportsIndex) -> list[Neurons]:
    """The draws of a control: of a function of the seed so many, of a set itself one.

    >>> len(drawn(NeuronSet(((0, 5),), shape=(4, 48)), 3)), len(drawn(NeuronSet(((0, 5),), (4, 48)).uniform, 0))
    (1, 0)
    """
    seeds = whole_number("seeds", seeds)
    return [as_one(control(seed)) for seed in range(seeds)] if callable(control) else [as_one(control)]


def _towards(chosen: Selection, languages: Sequence[str]) -> Control:
    return chosen.towards(chosen.centroid(*languages))


def _towards_others(chosen: Selection) -> dict[str, Callable[[], Control]]:
    """Controls chosen as the set was, towards other targets."""
    makers: dict[str, Callable[[], Control]] = {
        "random direction": lambda: lambda seed: chosen.towards(chosen.random_direction(seed)),
        "shuffled labels": lambda: lambda seed: chosen.towards(chosen.shuffled_labels(seed)),
    }
    targets = {name: (name,) for name in chosen.captured} | {"all": tuple(chosen.captured)}
    for name, languages in targets.items():
        if set(languages) not in (set(chosen.target), set(chosen.origin)):  # nothing is towards the origin itself
            makers[f"towards {name}"] = partial(_towards, chosen, languages)
    if len(chosen.captured) > 1:
        makers["towards the difference"] = lambda: chosen.towards(chosen.difference())
    return makers


def _elsewhere(neurons: NeuronSet, chosen: Selection) -> dict[str, Callable[[], Control]]:
    """Controls from other layers, or of other sentences."""
    makers: dict[str, Callable[[], Control]] = {}
    own = chosen.captured[chosen.language]
    if outside := chosen.model.with_neurons([layer for layer in own.layers if layer not in chosen.layers]):
        counts = {layer: len(members) for layer, members in neurons.by_layer().items()}
        makers["wrong layers"] = lambda: chosen.in_layers(outside, counts)
    kept = [chosen.captured[hub].tensors() for hub in chosen.hub]
    if len(kept) == 1 and {"mid", "activations"} <= set(kept[0]):
        makers["hub placebo"] = partial(chosen.of_language, chosen.hub[0])
    return makers


def _by_size(neurons: NeuronSet, chosen: Selection, norms: Callable[[], Tensor]) -> dict[str, Callable[[], Control]]:
    """Controls chosen by what neurons add to the residual stream, one by one or together."""
    model, own = chosen.model, chosen.captured[chosen.language]
    return {
        "largest norm": lambda: _largest(norms(), chosen, NeuronSet((), neurons.shape)),
        "largest norm, not in the set": lambda: _largest(norms(), chosen, neurons),
        "equal displacement": lambda: lambda seed: equal_displacement(model, own, neurons, seed=seed),
        "equal displacement, more neurons": lambda: (
            lambda seed: equal_displacement(model, own, neurons, seed=seed, more=True)
        ),
    }


def _largest(norms: Float[Tensor, "layer neuron"], chosen: Selection, without: NeuronSet) -> NeuronSet:
    """As many neurons of largest mean contribution norm as the set has, in its layers."""
    values, rows = norms.double().clone(), list(chosen.layers)
    for pair in without:
        values[pair] = -torch.inf
    if int(values[rows].isfinite().sum()) < chosen.size:
        raise TnkitError(f"layers {span(rows)} hold too few other neurons for a control of {chosen.size}")
    selection = {"largest norm": chosen.size, "layers": span(rows), "not in the set": bool(len(without))}
    provenance = {**chosen.captured[chosen.language].provenance, "selection": selection}
    return ranked(values[rows], chosen.size, rows, n_layers=len(values), provenance=provenance)
