"""What switching a neuron set off does, beside what its controls do: `Comparison`, `compare`.

off = tn.LastToken(model, test["ja"], keep=["post"])
english = tn.capture(model, test["en"], keep=["post"])
compared = tn.compare(
    lambda neurons: tn.geometry.hits(off.capture(neurons), english),   # (layer, sentence)
    type1,
    controls=tn.controls(type1, layers=model.early_layers, norms=norms, scores=scores),
    seeds=10,
)
compared.at()       # at the layer where the untouched model does best: means, intervals, effects, p-values
compared.plot()
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import storage
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, whole_number, whole_numbers
from tnkit.interventions.controls import Control
from tnkit.interventions.intervention import Neurons
from tnkit.statistics import flips, interval, resamples, sign_flip_test

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

T = TypeVar("T")
NONE, SET = "none", "the set"  # conditions beside the controls: what is switched off


@dataclass(frozen=True, eq=False)
class Comparison:
    """A measurement with a neuron set off, with each control off, and with nothing off; a value for every sentence.

    Attributes:
        measure: what was measured.
        layers: what the layer axis stands for; (0,) where the measurement has no layers.
        untouched, ablated: (layer, sentence), nothing off and the set off.
        controls: (seed, layer, sentence) for each control.
    """

    measure: str
    layers: tuple[int, ...]
    untouched: Float[np.ndarray, "layer sentence"]
    ablated: Float[np.ndarray, "layer sentence"]
    controls: dict[str, Float[np.ndarray, "seed layer sentence"]]

    @property
    def best_layer(self) -> int:
        """The layer at which the untouched model's mean is highest."""
        return self.layers[int(self.untouched.mean(axis=1).argmax())]

    def to_frame(self) -> "pd.DataFrame":
        """Means and statistics, indexed (layer, condition).

        Conditions are what is switched off: "none", "the set", and each control. `mean` with a 95 % bootstrap interval
        (`low`, `high`) over sentences and seeds; `effect` = mean with the set off - mean of the condition, with its
        interval, sentences paired; `ratio` = mean with the set off / mean of the condition, with its interval (infinite
        or, where both means are 0, 1); `p` of a two-sided permutation test of the effect that flips the sign of each
        sentence's difference (10,000 flips, so p ≥ 0.0001; 1 for the set itself).
        """
        import pandas as pd

        random = np.random.default_rng(0)
        sentences = self.untouched.shape[1]
        weights = resamples(sentences, random) / sentences
        signs = flips(sentences, random)
        base = weights @ self.ablated.T
        frames = {}
        for condition, values in self._conditions().items():
            resampled = self._resampled(values, weights, random)
            difference = self.ablated - values.mean(axis=0)
            mean = values.mean(axis=(0, 2))
            columns: dict[str, Any] = {}
            columns["mean"], columns["low"], columns["high"] = mean, *interval(resampled)
            effects, ratios = interval(base - resampled), interval(_ratio(base, resampled), method="nearest")
            columns["effect"], columns["effect low"], columns["effect high"] = difference.mean(axis=1), *effects
            columns["ratio"] = _ratio(self.ablated.mean(axis=1), mean)
            columns["ratio low"], columns["ratio high"] = ratios
            columns |= {"p": sign_flip_test(difference, signs), "seeds": len(values)}
            frames[condition] = pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))
        return pd.concat(frames, names=["condition"]).swaplevel().sort_index(level=0, sort_remaining=False)

    def at(self, layer: int | None = None) -> "pd.DataFrame":
        """The rows of one layer (default: where the untouched model's mean is highest).

        Raises:
            TnkitError: for a layer that was not measured.
        """
        layer = self.best_layer if layer is None else layer
        if layer not in self.layers:
            raise TnkitError(f"layer {layer} was not measured; measured are {self.layers[0]} to {self.layers[-1]}")
        return self.to_frame().loc[[layer]].droplevel("layer")

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw each condition's mean by layer, with its interval as a band."""
        from tnkit import plots

        return plots.conditions_by_layer(self.to_frame(), ylabel=self.measure, ax=ax)

    def plot_at(self, layer: int | None = None, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the means of one layer with their intervals (default: where the untouched model's mean is highest)."""
        from tnkit import plots

        title = f"layer {self.best_layer if layer is None else layer}" if len(self.layers) > 1 else ""
        return plots.conditions(self.at(layer), xlabel=self.measure, title=title, ax=ax)

    def _conditions(self) -> dict[str, Float[np.ndarray, "seed layer sentence"]]:
        return {NONE: self.untouched[None], SET: self.ablated[None], **self.controls}

    def _resampled(
        self, values: np.ndarray, weights: np.ndarray, random: np.random.Generator
    ) -> Float[np.ndarray, "resample layer"]:
        """Means over resampled sentences, and over resampled seeds."""
        seeds = len(values)
        chosen = resamples(seeds, random) / seeds
        return sum(chosen[:, seed, None] * (weights @ values[seed].T) for seed in range(seeds))

    def _repr_html_(self) -> str:
        means = self.at()["mean"]
        return storage.html_card(
            f"Comparison: {self.measure}", {str(name): float(mean) for name, mean in means.items()}
        )


def _ratio(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """These over those; 1 where both are 0, infinite where only the latter is."""
    both = (these == 0) & (those == 0)
    return np.divide(these, those, out=np.where(both, 1.0, np.inf), where=those != 0)


def compare(
    measure: Callable[[Any], "np.ndarray | Tensor"],
    neurons: Neurons,
    *,
    controls: Mapping[str, Control],
    seeds: SupportsIndex = 10,
    name: str = "measure",
    layers: Iterable[SupportsIndex] | None = None,
    progress: bool = True,
) -> Comparison:
    """Run a measurement with a neuron set off, with each of its controls off, and with nothing off.

    Args:
        measure: takes the neurons to switch off and returns a number for every sentence, (sentence,) or
            (layer, sentence); sentences in the same order every time.
        neurons: the set.
        controls: from `controls`, or sets and functions of a seed of your own.
        seeds: how many draws of each random control.
        name: what is measured, for tables and axes.
        layers: what the layer axis stands for (default: from 0).
        progress: show a bar.

    Raises:
        TnkitError: where a measurement is not finite or changes its shape.

    >>> from tnkit.interventions.controls import controls
    >>> spread = lambda neurons: np.arange(6.0) - len(neurons)
    >>> one = NeuronSet(((0, 5),), shape=(4, 48))
    >>> compared = compare(spread, one, controls=controls(one), seeds=2, name="spread", progress=False)
    >>> compared.at()["effect"].tolist()
    [-1.0, 0.0, 0.0, 0.0]
    """
    layers = None if layers is None else tuple(whole_numbers("layers", layers))

    def run(off: Neurons) -> np.ndarray:
        values = np.atleast_2d(np.asarray(measure(off), dtype=np.float64))
        if not np.isfinite(values).all():
            raise TnkitError(f"{name} is not finite for every sentence with {len(off)} neurons off")
        return values

    results = each_condition(run, neurons, controls=controls, seeds=seeds, name=name, progress=progress)
    shape = results[NONE][0].shape
    if any(values.shape != shape for draws in results.values() for values in draws):
        raise TnkitError(f"{name} returned different numbers of layers or sentences for different neurons")
    (untouched,), (ablated,) = results.pop(NONE), results.pop(SET)
    layers = tuple(range(len(untouched))) if layers is None else layers
    return Comparison(
        name, layers, untouched, ablated, {control: np.stack(draws) for control, draws in results.items()}
    )


def each_condition(
    run: Callable[[Any], T],
    neurons: Neurons,
    *,
    controls: Mapping[str, Control],
    seeds: SupportsIndex,
    name: str,
    progress: bool,
) -> dict[str, list[T]]:
    """Run something with a neuron set off, with nothing off, and with every draw of each control off.

    Args:
        run: takes the neurons to switch off; the set comes first, and an empty one runs only once.
        neurons, controls, seeds, name, progress: as in `compare`.

    Returns:
        condition ("the set", "none", and each control) → what `run` returned for each draw.

    Raises:
        TnkitError: for no seeds, or a control with the name of another condition.

    >>> one = NeuronSet(((0, 5),), shape=(4, 48))
    >>> each_condition(len, one, controls={"a": one}, seeds=1, name="size", progress=False)
    {'the set': [1], 'none': [0], 'a': [1]}
    """
    seeds = whole_number("seeds", seeds, at_least=1)
    if reserved := {SET, NONE} & set(controls):
        raise TnkitError(f"a control is named {reserved.pop()!r}, which is a condition of its own; rename it")
    drawn: dict[str, list[Any]] = {
        SET: [neurons],
        NONE: [NeuronSet((), neurons.shape)] if len(neurons) else [],
        **{
            control: [drawing(seed) for seed in range(seeds)] if callable(drawing) else [drawing]
            for control, drawing in controls.items()
        },
    }
    results: dict[str, list[T]] = {}
    with tqdm(total=sum(map(len, drawn.values())), desc=name, disable=not progress, leave=False) as bar:
        for condition, sets in drawn.items():
            results[condition] = []
            for off in sets:
                results[condition].append(run(off))
                bar.update()
    results[NONE] = results[NONE] or results[SET]
    return results


def compared(result: Any, measure: str, values: Callable[[Any], Any]) -> Comparison:
    """The `Comparison` of a result that has `controls`: of each control a result of the same kind for each draw.

    Args:
        result: such as `tn.behaviour.Continuations`.
        measure: what is measured, for tables and axes.
        values: takes a result and returns a number for every item, untouched and ablated.
    """
    untouched, ablated = np.array(values(result), dtype=np.float64)[:, None]
    draws = {name: [values(draw)[1] for draw in drawn] for name, drawn in result.controls.items()}
    controls = {name: np.array(drawn, dtype=np.float64)[:, None] for name, drawn in draws.items()}
    return Comparison(measure, (0,), untouched, ablated, controls)


def frame_of_conditions(result: Any) -> "pd.DataFrame":
    """The `to_frame` of a result and of each draw of its controls, indexed (off, seed, ...)."""
    import pandas as pd

    drawn = {SET: (result,), **result.controls}
    frames = {(off, seed): draw.to_frame() for off, draws in drawn.items() for seed, draw in enumerate(draws)}
    return pd.concat(frames, names=["off", "seed"])
