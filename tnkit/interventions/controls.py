"""Neuron sets that a set is compared with: `controls`.

tn.controls(type1, layers=model.early_layers, norms=norms, scores=scores)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import SupportsIndex

from torch import Tensor

from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scores import NeuronScores
from tnkit.errors import whole_numbers
from tnkit.interventions.intervention import Neurons

Control = Neurons | Callable[[int], Neurons]


def controls(
    neurons: NeuronSet,
    *,
    layers: Iterable[SupportsIndex] | None = None,
    norms: Tensor | None = None,
    scores: NeuronScores | None = None,
    others: Mapping[str, NeuronSet] | None = None,
) -> dict[str, Control]:
    """The controls of a neuron set, for `compare`.

    Args:
        neurons: the set.
        layers: the range of the uniform control (default: the set's own first to last layer).
        norms: from `tnkit.detection.scoring.contribution_norms`, for the control matched by layer and norm.
        scores: for the control of lowest scores.
        others: further sets by name, such as another language's transfer neurons.

    Returns:
        "uniform", "same layers", and, of what was given, "same layers and norms", "lowest scores", and the others; a
        random control is a function of the seed.

    >>> sorted(controls(NeuronSet(((0, 5),), shape=(4, 48))))
    ['same layers', 'uniform']
    """
    layers = None if layers is None else tuple(whole_numbers("layers", layers))
    found: dict[str, Control] = {
        "uniform": lambda seed: neurons.uniform(seed=seed, layers=layers),
        "same layers": lambda seed: neurons.matched(seed=seed),
    }
    if norms is not None:
        found["same layers and norms"] = lambda seed: neurons.matched(seed=seed, norms=norms)
    if scores is not None:
        found["lowest scores"] = scores.bottom(len(neurons), layers=layers)
    return found | dict(others or {})
