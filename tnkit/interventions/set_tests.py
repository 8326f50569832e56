"""A neuron set among very many random sets: is what it does more than what sets of this kind do?

off = tn.LastToken(model, test["ja"], keep=["post"])
english = tn.capture(model, test["en"], keep=["post"])
same_layers = tn.controls(type1)["same layers"]
tested = tn.set_test(lambda neurons: tn.geometry.hits(off.capture(neurons), english), type1, same_layers, draws=1000)
tested.to_frame()                  # by layer: the set, the draws, p-values
tested.plot(12)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import plots, signals, storage
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, whole_number, whole_numbers
from tnkit.interventions.comparison import values_of
from tnkit.interventions.controls import Control
from tnkit.interventions.together import as_one, nothing
from tnkit.statistics import effect_interval, interval, largest_rank_test, rank_test, resamples


@dataclass(frozen=True, eq=False)
class SetTest:
    """What a neuron set does beside what each of many random sets does.

    Attributes:
        measure: what was measured.
        layers: what the layer axis stands for; (0,) where the measurement has no layers.
        untouched, ablated: (layer, sentence), nothing off and the set off.
        control: (layer, sentence), the mean over the draws.
        draws: (draw, layer), the mean over the sentences with each random set off.
    """

    measure: str
    layers: tuple[int, ...]
    untouched: Float[np.ndarray, "layer sentence"]
    ablated: Float[np.ndarray, "layer sentence"]
    control: Float[np.ndarray, "layer sentence"]
    draws: Float[np.ndarray, "draw layer"]

    def to_frame(self) -> pd.DataFrame:
        """By layer: the set, the random sets, and how unusual the set is among them.

        `untouched`, `set` and `control` are means, and 95 % of the random sets lie from `control low` to
        `control high`. `effect` = set - control, with its 95 % interval over sentences and draws, and the smallest
        effect that would be found with a power of 80 % (`detectable`). `p sets` is the two-sided p-value of
        `tnkit.statistics.rank_test`, at least 1 / (1 + draws), with the 95 % interval (`p low`, `p high`; Clopper &
        Pearson 1934) of the p of infinitely many draws; `p adjusted` is corrected over the layers
        (`tnkit.statistics.largest_rank_test`). All p-values are about these sentences.
        """
        from scipy import stats

        random = np.random.default_rng(0)
        value, count = self.ablated.mean(axis=1), len(self.draws)
        difference = self.ablated - self.control
        by_sentence = resamples(difference.shape[1], random) @ difference.T / difference.shape[1]
        by_draw = resamples(count, random) @ (self.draws - self.draws.mean(axis=0)) / count
        low, high, detectable = effect_interval(by_sentence - by_draw, difference, self.draws)
        within = interval(self.draws)
        p = rank_test(value, self.draws)
        as_far = p * (1 + count) - 1
        columns = {
            "untouched": self.untouched.mean(axis=1),
            "set": value,
            "control": self.draws.mean(axis=0),
            "control low": within[0],
            "control high": within[1],
            "effect": difference.mean(axis=1),
            "effect low": low,
            "effect high": high,
            "detectable": detectable,
            "p sets": p,
            "p low": np.where(as_far < 0.5, 0, stats.beta.ppf(0.025, as_far, count - as_far + 1)),
            "p high": np.where(as_far > count - 0.5, 1, stats.beta.ppf(0.975, as_far + 1, count - as_far)),
            "p adjusted": largest_rank_test(value, self.draws),
        }
        table = pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))
        table.attrs = {"draws": count, "p adjusted": f"largest distance over {len(self.layers)} layers"}
        return table

    def plot(self, layer: int | None = None, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw a histogram of the random sets' means, with the set and the untouched model marked.

        Args:
            layer: which layer; only where there is more than one.
            ax: where to draw (default: a new figure).

        Raises:
            TnkitError: for a layer that was not measured.
        """
        if layer is None and len(self.layers) == 1:
            layer = self.layers[0]
        if layer not in self.layers:
            raise TnkitError(f"layer={layer} was not measured; name one of {self.layers[0]} to {self.layers[-1]}")
        value, untouched, p = (float(self.to_frame()[name][layer]) for name in ("set", "untouched", "p sets"))
        return plots.random_sets(
            self.draws[:, self.layers.index(layer)],
            value=value,
            untouched=untouched,
            p=p,
            xlabel=self.measure,
            title=f"layer {layer}" if len(self.layers) > 1 else "",
            ax=ax,
        )

    def _repr_html_(self) -> str:
        table = self.to_frame()
        rows = {f"layer {layer}": f"p = {p:.4f}" for layer, p in table["p sets"].items()}
        return storage.html_card(f"Set test: {self.measure}", {"draws": len(self.draws), **rows})


def set_test(
    measure: "Callable[[Any], np.ndarray | Tensor]",
    neurons: NeuronSet,
    control: Control,
    *,
    draws: SupportsIndex = 1000,
    name: str = "measure",
    layers: Iterable[SupportsIndex] | None = None,
    progress: bool = True,
) -> SetTest:
    """Measure with a neuron set off, with nothing off, and with each of many random sets off.

    Only the means of a draw are kept, so memory does not grow with the draws. Ctrl-C ends the drawing: the result is of
    the draws until then, and a warning says how many. They are as valid as any other number of draws.

    Args:
        measure: takes the neurons to switch off and returns a number for every sentence, (sentence,) or
            (layer, sentence); sentences in the same order every time.
        neurons: the set.
        control: a random control: a function of a seed, such as those of `controls`.
        draws: how many random sets, at least 2; the smallest possible p is 1 / (1 + draws).
        name: what is measured, for tables and axes.
        layers: what the layer axis stands for (default: from 0).
        progress: show a bar.

    Raises:
        TnkitError: for a control that is a single set, or a measurement that is not finite or changes its shape.

    >>> spread = lambda neurons: np.arange(6.0) - (5 in neurons.by_layer().get(0, ()))
    >>> one = NeuronSet(((0, 5),), shape=(4, 48))
    >>> tested = set_test(spread, one, lambda seed: one.matched(seed=seed), draws=19, progress=False)
    >>> tested.to_frame()[["effect", "p sets"]].values.tolist()
    [[-1.0, 0.05]]
    """
    if not callable(control):
        raise TnkitError("this control is one set, which has no draws; give a function of a seed, or use tn.compare")
    count = whole_number("draws", draws, at_least=2)
    layers = None if layers is None else tuple(whole_numbers("layers", layers))

    ablated, untouched = (values_of(measure, off, name) for off in (neurons, nothing(neurons)))
    total, means = np.zeros_like(ablated), list[np.ndarray]()
    with signals.interruptible(lambda: f"{name} is of {len(means)} draws, not {count}" if len(means) > 1 else ""):
        for seed in tqdm(range(count), desc=name, unit=" sets", disable=not progress, leave=False):
            values = values_of(measure, as_one(control(seed)), name)
            if not values.shape == ablated.shape == untouched.shape:
                raise TnkitError(f"{name} returned different numbers of layers or sentences for different neurons")
            total += values
            means.append(values.mean(axis=1))
    layers = tuple(range(len(ablated))) if layers is None else layers
    return SetTest(name, layers, untouched, ablated, total / len(means), np.array(means))
