"""Numbers layer by layer: `ByLayer`, and `beside`, which joins several results of one measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Real

from tnkit import storage
from tnkit.errors import TnkitError

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ByLayer:
    """One number a layer, or several.

    Attributes:
        measure: what the numbers are; the title of the y axis.
        columns: (layer,) each, by name.
        layers: what the axis stands for.
        provenance: model, sentences of each capture, parameters.
        chance: what states that tell nothing give, where that is one number.

    >>> found = ByLayer("share", {"a": np.array([0.1, 0.4]), "b": np.array([0.3, 0.2])}, (4, 5))
    >>> found.best(), found.best("b")
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
        """The layer of a column's largest value (the first of equals), and that value.

        Args:
            column: which (default: the first).

        Raises:
            TnkitError: for an unknown column, or one of NaN alone.
        """
        name = next(iter(self.columns)) if column is None else column
        if name not in self.columns:
            raise TnkitError(f"there is no column {name!r}; there are {', '.join(self.columns)}")
        values = self.columns[name]
        if np.isnan(values).all():
            raise TnkitError(f"{name} has no values")
        index = int(np.nanargmax(values))
        return self.layers[index], float(values[index])

    def to_frame(self) -> "pd.DataFrame":
        """The columns, indexed by layer."""
        import pandas as pd

        return pd.DataFrame(self.columns, index=pd.Index(self.layers, name="layer"))

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw a line a column, and chance as a dotted one."""
        from tnkit import plots

        return plots.lines_by_layer(self.to_frame(), ylabel=self.measure, chance=self.chance, ax=ax)

    def _repr_html_(self) -> str:
        rows = dict.fromkeys(self.columns, "—")
        for name, values in self.columns.items():
            if not np.isnan(values).all():
                layer, highest = self.best(name)
                rows[name] = f"{highest:z.4g} at layer {layer}, lowest {np.nanmin(values):z.4g}"
        return storage.html_card(f"{self.measure}, {len(self.layers)} layers", rows)


def beside(results: Mapping[str, ByLayer]) -> ByLayer:
    """Results of one measure as columns of one, so that a number and its control share a plot.

    Args:
        results: a label for each; one with several columns gives "label, column" each.

    Raises:
        TnkitError: for none, different measures or different layers.

    >>> one = ByLayer("share", {"retrieved": np.array([0.5, 0.4])}, (0, 1))
    >>> list(beside({"Type-1 off": one, "random off": one}).columns)
    ['Type-1 off', 'random off']
    """
    parts = list(results.values())
    if not parts or any((part.measure, part.layers) != (parts[0].measure, parts[0].layers) for part in parts):
        raise TnkitError(f"{', '.join(results) or 'no results'} must be one measure over the same layers")
    columns = {
        label if len(part.columns) == 1 else f"{label}, {name}": column
        for label, part in results.items()
        for name, column in part.columns.items()
    }
    about = {"results": {label: part.provenance for label, part in results.items()}}
    chances = {part.chance for part in parts}
    return ByLayer(parts[0].measure, columns, parts[0].layers, about, chances.pop() if len(chances) == 1 else None)
