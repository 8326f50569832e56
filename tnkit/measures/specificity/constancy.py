"""How much of each neuron's activation is a constant: `constant_share`."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from tnkit.captures.activations import Activations
from tnkit.measures.specificity.neurons import absent, activations_of, comparable


def constant_share(languages: Mapping[str, Activations]) -> Float64[np.ndarray, "layer neuron"]:
    """The squared mean as a share of each neuron's mean squared activation, over the sentences of all languages.

    mean(a)² / mean(a²) = 1 − variance / mean(a²): 1 for a neuron with the same value in every sentence, 0 for one whose
    activations cancel out. Setting a neuron of share 1 to zero removes a constant from the residual stream; setting it
    to its mean changes nothing.

    Args:
        languages: a capture of each language with `activations`, of the same model and layers.

    Returns:
        (layer, neuron), float64, from 0 to 1; 0 for a neuron that is never active, NaN for one that the
        layer lacks.

    Raises:
        TnkitError: for incompatible captures.

    >>> import torch
    >>> values = torch.tensor([[[2.0, 1.0, 0.0], [2.0, -1.0, 0.0]]])
    >>> constant_share({"ja": Activations((0,), torch.arange(2), activations=values)}).tolist()
    [[1.0, 0.0, 0.0]]
    """
    comparable(languages)
    captures = [activations_of(captured) for captured in languages.values()]
    sentences = sum(activations.shape[1] for activations in captures)
    mean = sum(activations.sum(axis=1, dtype=np.float64) for activations in captures) / sentences
    square = sum(np.square(activations, dtype=np.float64).sum(axis=1) for activations in captures) / sentences
    shares = np.divide(mean**2, square, out=np.zeros_like(mean), where=square > 0)
    return np.where(absent(next(iter(languages.values()))), np.nan, shares)
