"""The overlap of neuron sets, compared with chance."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import SupportsIndex

import numpy as np
import pandas as pd

from tnkit import plots, storage
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, whole_number, whole_numbers


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How many neurons each pair of sets shares, compared with chance.

    Attributes:
        sets: the sets.
        layers: from which the neurons were chosen.
        table: indexed (first, second): `first size`, `second size`, `both`, `jaccard` (NaN for two empty sets);
            `expected` by chance and `p` of at least as many, for neurons drawn from all the layers; `expected in
            layers`, `low in layers` and `high in layers` (the central 95 %) and `p in layers`, for neurons drawn with
            the sets' numbers in each layer. With `nulls` also `expected of nulls` and `p of nulls`, NaN for a pair
            without nulls.
    """

    sets: dict[str, NeuronSet]
    layers: tuple[int, ...]
    table: pd.DataFrame

    def by_layer(self, first: str, second: str) -> pd.DataFrame:
        """`NeuronSet.overlap` of two of the sets, layer by layer."""
        return self.sets[first].overlap(self.sets[second])

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def plot(self, ax: "plots.Axes | None" = None, *, cluster: bool = False) -> "plots.Axes":
        """Draw Jaccard indices as a heat map, annotated with the numbers of shared neurons.

        With `cluster`, sets with many neurons in common are side by side.
        """
        names = list(self.sets)
        jaccard = np.full((len(names), len(names)), np.nan)
        shared = np.diag([len(neurons) for neurons in self.sets.values()])
        for first, second in self.table.index:
            row, column = names.index(first), names.index(second)
            jaccard[row, column] = jaccard[column, row] = self.table.loc[(first, second), "jaccard"]
            shared[row, column] = shared[column, row] = self.table.loc[(first, second), "both"]
        return plots.overlap_matrix(jaccard, shared, names, cluster=cluster, ax=ax)

    def _repr_html_(self) -> str:
        rows = self.table[["both", "expected in layers"]].itertuples()
        return storage.html_card("Neurons in both", {" and ".join(a): f"{n} (chance {by:.1f})" for a, n, by in rows})


def overlaps(
    sets: Mapping[str, NeuronSet],
    *,
    layers: Iterable[SupportsIndex] | None = None,
    nulls: Mapping[str, Callable[[int], NeuronSet]] | None = None,
    seeds: SupportsIndex = 20,
) -> Overlaps:
    """How many neurons each pair of sets shares, compared with chance (hypergeometric, one-sided).

    Sets in the same layers share more neurons than sets drawn from the whole model. The columns "in layers" therefore
    draw within each layer, with an exact convolution for the sum over layers.

    Both assume that the neurons of a set are drawn independently, which scores do not do: neurons with large
    contributions score high towards any target. In Gemma 3 270M, 300 neurons chosen towards a random direction share 75
    with 300 chosen towards the shared centroid, where independent draws would share 4. Give such draws as `nulls` to
    see the overlap that the method of selection produces by itself.

    Args:
        sets: by name; of the same model.
        layers: from which all sets were chosen (default: the whole model), such as `model.early_layers`.
        nulls: name of a set → a function of the seed that chooses neurons as the set was chosen, but towards a
            meaningless target, such as `tn.controls(…)["random direction"]`. The columns "of nulls" count the neurons
            that a draw for one set shares with the other set: the mean over draws, and the share of draws with at
            least as many, (1 + such draws) / (1 + draws).
        seeds: the number of draws of each null.

    Returns:
        `Overlaps`; each p is the probability of at least as many shared neurons.

    Raises:
        TnkitError: for fewer than two sets, sets of different models, or a neuron outside the layers.

    >>> a, b = NeuronSet(((0, 5), (1, 2)), shape=(4, 48)), NeuronSet(((1, 2), (3, 0)), shape=(4, 48))
    >>> overlaps({"a": a, "b": b}).table.loc[("a", "b"), ["both", "expected", "expected in layers"]].round(4).tolist()
    [1.0, 0.0208, 0.0208]
    """
    from scipy import stats

    if len(sets) < 2:
        raise TnkitError(f"{len(sets)} set(s) do not overlap; give at least 2")
    (depth, _), *others = [neurons.shape for neurons in sets.values()]
    if any(shape != next(iter(sets.values())).shape for shape in others):
        raise TnkitError(f"sets of different models do not compare: {[neurons.shape for neurons in sets.values()]}")
    layers = range(depth) if layers is None else layers
    layers = tuple(sorted(set(whole_numbers("layers", layers)) & set(range(depth))))
    counts = {name: np.bincount([layer for layer, _ in neurons], minlength=depth) for name, neurons in sets.items()}
    for name, count in counts.items():
        if count.sum() > count[list(layers)].sum():
            raise TnkitError(
                f"{name} has neurons outside the layers {list(layers)}; name all layers it was chosen from"
            )
    if unknown := [name for name in nulls or {} if name not in sets]:
        raise TnkitError(f"nulls names {', '.join(unknown)}, which is not among the sets {', '.join(sets)}")
    numbers = range(whole_number("seeds", seeds, at_least=1))
    widths = next(iter(sets.values())).widths
    candidates = sum(widths[layer] for layer in layers)
    draws = {name: [null(seed) for seed in numbers] for name, null in (nulls or {}).items()}
    rows = {}
    for first, second in combinations(sets, 2):
        both = len(set(sets[first]) & set(sets[second]))
        a, b = len(sets[first]), len(sets[second])
        chances = np.ones(1)
        for left, right, width in zip(counts[first], counts[second], widths, strict=True):
            if left and right:
                chances = np.convolve(chances, stats.hypergeom.pmf(range(min(left, right) + 1), width, left, right))
        low, high = np.searchsorted(chances.cumsum(), (0.025, 0.975))
        rows[first, second] = {
            "first size": a,
            "second size": b,
            "both": both,
            "jaccard": both / (a + b - both) if a + b else np.nan,
            "expected": a * b / candidates,
            "p": float(stats.hypergeom.sf(both - 1, candidates, a, b)),
            "expected in layers": float((counts[first] * counts[second] / np.maximum(widths, 1)).sum()),
            "low in layers": int(low),
            "high in layers": int(high),
            "p in layers": min(float(chances[both:].sum()), 1.0),
            **(_of_nulls(sets, first, second, draws) if draws else {}),
        }
    index = pd.MultiIndex.from_tuples(rows, names=["first", "second"])
    return Overlaps(dict(sets), layers, pd.DataFrame(rows.values(), index=index))


def _of_nulls(
    sets: Mapping[str, NeuronSet], first: str, second: str, draws: Mapping[str, list[NeuronSet]]
) -> dict[str, float]:
    """How many neurons the draws for either set share with the other set."""
    shared = [len(draw & sets[second]) for draw in draws.get(first, [])]
    shared += [len(draw & sets[first]) for draw in draws.get(second, [])]
    if not shared:
        return {"expected of nulls": np.nan, "p of nulls": np.nan}
    as_many = sum(number >= len(sets[first] & sets[second]) for number in shared)
    return {"expected of nulls": float(np.mean(shared)), "p of nulls": (1 + as_many) / (1 + len(shared))}
