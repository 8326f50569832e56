"""A neuron set as a table of measurements: `table`.

tn.specificity.table(type1, captured).to_frame()     # one row per neuron, one column per measurement
tn.specificity.table(type1, captured).plot()         # the set beside all other neurons of its layers
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.measures.specificity.constancy import constant_share
from tnkit.measures.specificity.correlation import correlation_ratio

Measurement = Callable[[Mapping[str, Activations]], Float[np.ndarray, "layer neuron"]]

# Heading → significant digits, and a value from 0 to 1 for each neuron in the captured layers. An entry here is a
# column of `table`, of the neuron explorer and of `tnkit neurons`, and a panel of their figure.
MEASUREMENTS: dict[str, tuple[int, Measurement]] = {
    "η²": (3, lambda languages: correlation_ratio(languages).eta2),
    "constant share": (3, constant_share),
}


@dataclass(frozen=True, eq=False)
class NeuronTable:
    """The measurements of a neuron set.

    Attributes:
        neurons: the set.
        layers: of the first axis of `values`.
        values: measurement → (layer, neuron), of all neurons of these layers.
    """

    neurons: NeuronSet
    layers: tuple[int, ...]
    values: dict[str, Float[np.ndarray, "layer neuron"]]

    def to_frame(self) -> pd.DataFrame:
        """Rank, score and measurements of each neuron of the set, in its order, indexed (layer, neuron)."""
        rows, columns = self._indices()
        return self.neurons.to_frame().assign(**{name: values[rows, columns] for name, values in self.values.items()})

    def plot(self) -> "plots.Figure":
        """Draw the share of neurons above each value of each measurement: the set, and all others in its layers."""
        rows, columns = self._indices()
        others = np.zeros((len(self.layers), self.neurons.shape[1]), dtype=bool)
        others[rows] = True
        others[rows, columns] = False
        figure, grid = plots.panels(len(self.values), width=5.0, height=3.4)
        for (name, of_all), axes in zip(self.values.items(), grid, strict=True):
            groups = {"the set": of_all[rows, columns], "all others of its layers": of_all[others & ~np.isnan(of_all)]}
            plots.exceedance(groups, xlabel=name, marks=(), ax=axes)
        return figure

    def _indices(self) -> tuple[np.ndarray, np.ndarray]:
        layers, columns = np.array(self.neurons.pairs).T
        return np.searchsorted(self.layers, layers), columns

    def _repr_html_(self) -> str:
        means = self.to_frame()[[*self.values]].mean().round(3)
        rows = {f"mean {name}": value for name, value in means.items()}
        return storage.html_card("Neuron table", {"neurons": len(self.neurons), **rows})


def table(neurons: NeuronSet, languages: Mapping[str, Activations]) -> NeuronTable:
    """Measure every neuron of a set with all `MEASUREMENTS`.

    Args:
        neurons: the set.
        languages: a capture of each language with `activations`, of the set's model and layers.

    Raises:
        TnkitError: for an empty set, one of another model, a layer that was not captured, or incompatible captures.

    >>> from tnkit.testing import by_language
    >>> frame = table(NeuronSet(((3, 17), (0, 5)), shape=(4, 48)), by_language()).to_frame()
    >>> frame.index.tolist(), bool(frame["η²"].between(0, 1).all())
    ([(3, 17), (0, 5)], True)
    """
    if not len(neurons):
        raise TnkitError("the neuron set is empty; give a set of at least one neuron")
    values = {name: measure(languages) for name, (_, measure) in MEASUREMENTS.items()}
    captured = next(iter(languages.values()))
    if missing := sorted({layer for layer, _ in neurons} - set(captured.layers)):
        raise TnkitError(f"layers {missing} were not captured; captured are {list(captured.layers)}")
    width = next(iter(values.values())).shape[1]
    if width != neurons.shape[1]:
        raise TnkitError(
            f"the set's model has {neurons.shape[1]} neurons in a layer, the captured model {width}; give captures of "
            "the same model"
        )
    return NeuronTable(neurons, captured.layers, values)
