"""Numbers layer by layer: `ByLayer`, and `beside`, which combines several results of one measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Real

from tnkit import plots, storage
from tnkit.errors import TnkitError


@dataclass(frozen=True, eq=False)
class ByLayer:
    """One or several numbers per layer.

    Attributes:
        measure: what the numbers are; the title of the y axis.
        columns: (layer,) each, by name.
        layers: of the axis.
        provenance: model, sentences of each capture, parameters.
        chance: the expected value for uninformative states, if that is one number.

    >>> shares = ByLayer("share", {"a": np.array([0.1, 0.4]), "b": np.array([0.3, 0.2])}, (4, 5))
    >>> shares.best(), shares.best("b")
    ((5, 0.4), (4, 0.3))
    """

    measure: str
    columns: dict[str, Real[np.ndarray, "layer"]]
    layers: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    chance: float | None = None

    def __post_init__(self) -> None:
        wrong = [name for name, column in self.columns.items() if column.shape != (len(self.layers),)]
        if wrong or not self.columns or not self.layers:
            raise TnkitError(
                f"{self.measure}: columns {wrong or 'none'} do not have one value for each of {self.layers}"
            )

    def __repr__(self) -> str:
        return f"ByLayer({self.measure}: {', '.join(self.columns)}, {len(self.layers)} layers)"

    def best(self, column: str | None = None) -> tuple[int, float]:
        """The layer of a column's largest value (the first if several are equal), and that value.

        Args:
            column: which (default: the first).

        Raises:
            TnkitError: for an unknown column, or one that holds only NaN.
        """
        name = next(iter(self.columns)) if column is None else column
        if name not in self.columns:
            raise TnkitError(f"there is no column {name!r}; there are {', '.join(self.columns)}")
        values = self.columns[name]
        if np.isnan(values).all():
            raise TnkitError(f"{name} has no values")
        index = int(np.nanargmax(values))
        return self.layers[index], float(values[index])

    def to_frame(self) -> pd.DataFrame:
        """The columns, indexed by layer."""
        return pd.DataFrame(self.columns, index=pd.Index(self.layers, name="layer"))

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw one line per column, and chance as a dotted line."""
        return plots.lines_by_layer(self.to_frame(), ylabel=self.measure, chance=self.chance, ax=ax)

    def _repr_html_(self) -> str:
        rows = dict.fromkeys(self.columns, "—")
        for name, values in self.columns.items():
            if not np.isnan(values).all():
                layer, highest = self.best(name)
                rows[name] = f"{highest:z.4g} at layer {layer}, lowest {np.nanmin(values):z.4g}"
        return storage.html_card(f"{self.measure}, {len(self.layers)} layers", rows)


def beside(results: Mapping[str, ByLayer]) -> ByLayer:
    """Combine results of one measure as columns of one, so that a number and its control share a plot.

    Args:
        results: by label; a result with several columns gives the columns "label, column".

    Raises:
        TnkitError: for no results, different measures or different layers.

    >>> shares = ByLayer("share", {"retrieved": np.array([0.5, 0.4])}, (0, 1))
    >>> list(beside({"Type-1 off": shares, "random off": shares}).columns)
    ['Type-1 off', 'random off']
    """
    first = next(iter(results.values()), None)
    if first is None or any((each.measure, each.layers) != (first.measure, first.layers) for each in results.values()):
        raise TnkitError(f"{', '.join(results) or 'no results'} must be one measure over the same layers")
    columns = {
        label if len(result.columns) == 1 else f"{label}, {name}": column
        for label, result in results.items()
        for name, column in result.columns.items()
    }
    provenance = {"results": {label: result.provenance for label, result in results.items()}}
    chances = {result.chance for result in results.values()}
    return ByLayer(first.measure, columns, first.layers, provenance, chances.pop() if len(chances) == 1 else None)
