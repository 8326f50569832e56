"""What switching a neuron set off does, beside what its controls do: `Comparison`, `compare`.

off = tn.LastToken(model, test["ja"], keep=["post"])
english = tn.capture(model, test["en"], keep=["post"])
compared = tn.compare(
    lambda neurons: tn.geometry.hits(off.capture(neurons), english),   # (layer, sentence)
    type1,
    controls=tn.controls(type1, layers=model.early_layers, norms=norms, scores=scores),
    seeds=10,
)
compared.at(12)     # one layer, chosen beforehand: means, intervals, effects, p-values
compared.plot()

`docs/statistics.md` says what each p-value tests. `tnkit.interventions.set_tests` draws a control a thousand times.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.errors import TnkitError, check_model, whole_number, whole_numbers
from tnkit.interventions.controls import Control, drawn
from tnkit.interventions.together import Neurons, Several, as_one, nothing
from tnkit.models.model import Model, hashed_at_ends
from tnkit.statistics import effect_interval, flips, holm, interval, rank_test, resamples, sign_flip_test

T = TypeVar("T")
NONE, SET = "none", "the set"  # conditions beside the controls: what is switched off
THESE = "these sentences"


@dataclass(frozen=True, eq=False)
class Comparison:
    """A measurement with a neuron set off, with each control off, and with nothing off; a value for every sentence.

    Attributes:
        measure: what was measured.
        layers: what the layer axis stands for; (0,) where the measurement has no layers.
        untouched, ablated: (layer, sentence), nothing off and the set off.
        controls: (seed, layer, sentence) for each control.
        chosen_layer: the layer to report, chosen on other sentences than these.
        chosen_on: which sentences those are.
    """

    measure: str
    layers: tuple[int, ...]
    untouched: Float[np.ndarray, "layer sentence"]
    ablated: Float[np.ndarray, "layer sentence"]
    controls: dict[str, Float[np.ndarray, "seed layer sentence"]]
    chosen_layer: int | None = None
    chosen_on: str = ""

    @property
    def best_layer(self) -> int:
        """The layer at which the untouched model's mean is highest on these sentences."""
        return best_layer(self.untouched, self.layers)

    def to_frame(self) -> pd.DataFrame:
        """Means and statistics, indexed (layer, condition).

        Conditions are what is switched off: "none", "the set", and each control.

        - `mean`, with its 95 % bootstrap interval (`low`, `high`) over sentences and seeds.
        - `effect`: mean with the set off - mean of the condition, sentences paired, with its 95 % interval over
          sentences and seeds, widened where they are few (`tnkit.statistics.effect_interval`).
        - `detectable`: the effect that would be found with a power of 80 % at 5 %, two-sided.
        - `ratio`: mean with the set off / mean of the condition, with its interval (infinite or, where both means are
          0, 1).
        - `p sentences`: of the effect of *these very sets*, under sign flips of each sentence's difference (10,000
          flips; 1 for the set itself). It says nothing of other draws of a control.
        - `p sets`: of the set among the draws of a random control (`tnkit.statistics.rank_test`), at least
          1 / (1 + seeds); NaN for a single set.
        - `p adjusted`: `p sets`, or `p sentences` where there is only one set, corrected (Holm) over all layers and
          conditions; NaN for the set itself.
        """
        random = np.random.default_rng(0)
        sentences = self.untouched.shape[1]
        weights = resamples(sentences, random) / sentences
        signs = flips(sentences, random)
        base = weights @ self.ablated.T
        frames, conditions = {}, {NONE: self.untouched[None], SET: self.ablated[None], **self.controls}
        for condition, values in conditions.items():
            resampled = self._resampled(values, weights, random)
            difference, draws = self.ablated - values.mean(axis=0), values.mean(axis=2)
            mean = values.mean(axis=(0, 2))
            columns: dict[str, Any] = {}
            columns["mean"], columns["low"], columns["high"] = mean, *interval(resampled)
            columns["effect"] = difference.mean(axis=1)
            columns["effect low"], columns["effect high"], columns["detectable"] = effect_interval(
                base - resampled, difference, draws
            )
            columns["ratio"] = _ratio(self.ablated.mean(axis=1), mean)
            columns["ratio low"], columns["ratio high"] = interval(_ratio(base, resampled), method="nearest")
            columns["p sentences"] = sign_flip_test(difference, signs)
            columns["p sets"] = rank_test(self.ablated.mean(axis=1), draws)
            columns |= {"p adjusted": np.nan, "seeds": len(values)}
            frames[condition] = pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))
        table = pd.concat(frames, names=["condition"]).swaplevel().sort_index(level=0, sort_remaining=False)
        return _corrected(table, "all layers and conditions")

    def at(self, layer: int | None = None) -> pd.DataFrame:
        """The rows of one layer: the one named, or the chosen one, or the untouched model's best on these sentences.

        A layer that is named here counts as chosen beforehand: `p adjusted` is corrected over its conditions alone. The
        best layer on these very sentences was not, so there `p adjusted` is that of all layers.
        `attrs` of the frame say which layer it is, how it was chosen, and over what `p adjusted` is corrected.

        Raises:
            TnkitError: for a layer that was not measured.
        """
        layer, chosen = self._reported(layer)
        if layer not in self.layers:
            raise TnkitError(f"layer {layer} was not measured; measured are {self.layers[0]} to {self.layers[-1]}")
        table = self.to_frame()
        rows = table.loc[[layer]].droplevel("layer")
        if chosen != THESE:
            rows = _corrected(rows, "conditions at this layer")
        rows.attrs = {"layer": layer, "layer chosen on": chosen, **rows.attrs}
        return rows

    def _reported(self, layer: int | None) -> tuple[int, str]:
        """The layer to report, and the sentences on which it was chosen."""
        if layer is not None or len(self.layers) == 1:
            return self.layers[0] if layer is None else layer, ""
        if self.chosen_layer is not None:
            return self.chosen_layer, self.chosen_on
        return self.best_layer, THESE

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw each condition's mean by layer, with its interval as a band."""
        return plots.conditions_by_layer(self.to_frame(), ylabel=self.measure, ax=ax)

    def plot_at(self, layer: int | None = None, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw the means of one layer with their intervals; the layer as in `at`."""
        rows = self.at(layer)
        title = self.layer_name(layer) if len(self.layers) > 1 else ""
        return plots.conditions(rows, xlabel=self.measure, title=title, ax=ax)

    def layer_name(self, layer: int | None = None) -> str:
        """The layer that `at` reports, and how it was chosen, for titles and tables."""
        layer, chosen = self._reported(layer)
        return f"layer {layer}" + (f", chosen on {chosen}" if chosen else "")

    def _resampled(
        self, values: np.ndarray, weights: np.ndarray, random: np.random.Generator
    ) -> Float[np.ndarray, "resample layer"]:
        """Means over resampled sentences, and over resampled seeds."""
        seeds = len(values)
        chosen = resamples(seeds, random) / seeds
        return sum(chosen[:, seed, None] * (weights @ values[seed].T) for seed in range(seeds))

    def _repr_html_(self) -> str:
        rows = {"at": self.layer_name()} if len(self.layers) > 1 else {}
        return storage.html_card(
            f"Comparison: {self.measure}", rows | {str(name): float(mean) for name, mean in self.at()["mean"].items()}
        )


def best_layer(values: Float[np.ndarray, "layer sentence"], layers: Sequence[int]) -> int:
    """The layer with the highest mean over sentences; choose it on other sentences than those of the effect.

    >>> best_layer(np.array([[0.0, 1.0], [1.0, 1.0]]), (4, 5))
    5
    """
    return layers[int(values.mean(axis=1).argmax())]


def _corrected(table: pd.DataFrame, family: str) -> pd.DataFrame:
    """The table with `p adjusted`, corrected over all its rows but those of the set itself."""
    is_set = table.index.get_level_values("condition") == SET
    adjusted = holm(table["p sets"].fillna(table["p sentences"]).mask(is_set).to_numpy())
    corrected = table.assign(**{"p adjusted": adjusted})
    corrected.attrs = {"p adjusted": f"Holm over {family} ({int((~is_set).sum())} tests)"}
    return corrected


def _ratio(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """These over those; 1 where both are 0, infinite where only the latter is."""
    both = (these == 0) & (those == 0)
    return np.divide(these, those, out=np.where(both, 1.0, np.inf), where=those != 0)


def compare(
    measure: Callable[[Any], "np.ndarray | Tensor"],
    neurons: Neurons | Several,
    *,
    controls: Mapping[str, Control],
    seeds: SupportsIndex = 10,
    name: str = "measure",
    layers: Iterable[SupportsIndex] | None = None,
    chosen_layer: SupportsIndex | None = None,
    chosen_on: str = "other sentences",
    model: Model | None = None,
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
        chosen_layer: the layer to report, chosen on other sentences than those measured here.
        chosen_on: which sentences those are, such as "training sentences".
        model: what the measurement runs: its weights are then read before the first and after the last, not each time.
        progress: show a bar.

    Raises:
        TnkitError: where a measurement is not finite or changes its shape, or does not reach the chosen layer; where
            the model's weights were changed meanwhile.

    >>> from tnkit.detection.neurons import NeuronSet
    >>> from tnkit.interventions.controls import controls
    >>> spread = lambda neurons: np.arange(6.0) - len(neurons)
    >>> one = NeuronSet(((0, 5),), shape=(4, 48))
    >>> compared = compare(spread, one, controls=controls(one), seeds=2, name="spread", progress=False)
    >>> compared.at()["effect"].tolist()
    [-1.0, 0.0, 0.0, 0.0]
    """
    given = None if layers is None else tuple(whole_numbers("layers", layers))
    chosen = None if chosen_layer is None else whole_number("chosen_layer", chosen_layer)

    def run(off: Neurons) -> np.ndarray:
        values = values_of(measure, off, name)
        measured = given or range(len(values))
        if chosen is not None and chosen not in measured:
            raise TnkitError(f"chosen_layer={chosen} is not measured; measured are {measured[0]} to {measured[-1]}")
        return values

    how: dict[str, Any] = {"controls": controls, "seeds": seeds, "name": name, "model": model, "progress": progress}
    results = each_condition(run, neurons, **how)
    shape = results[NONE][0].shape
    if any(values.shape != shape for draws in results.values() for values in draws):
        raise TnkitError(f"{name} returned different numbers of layers or sentences for different neurons")
    (untouched,), (ablated,) = results.pop(NONE), results.pop(SET)
    stacked = {control: np.stack(draws) for control, draws in results.items()}
    reported = (chosen, "" if chosen is None else chosen_on)
    return Comparison(name, given or tuple(range(len(untouched))), untouched, ablated, stacked, *reported)


def values_of(
    measure: Callable[[Any], "np.ndarray | Tensor"], off: Neurons, name: str
) -> Float64[np.ndarray, "layer sentence"]:
    """What a measurement returns with neurons off.

    Raises:
        TnkitError: where it is not finite.
    """
    values = np.atleast_2d(np.asarray(measure(off), dtype=np.float64))
    if not np.isfinite(values).all():
        raise TnkitError(f"{name} is not finite for every sentence with {len(off)} neurons off")
    return values


def each_condition(
    run: Callable[[Any], T],
    neurons: Neurons | Several,
    *,
    controls: Mapping[str, Control],
    seeds: SupportsIndex,
    name: str,
    progress: bool,
    model: Model | None = None,
) -> dict[str, list[T]]:
    """Run something with a neuron set off, with nothing off, and with every draw of each control off.

    Args:
        run: takes the neurons to switch off; the set comes first, and an empty one runs only once.
        neurons, controls, seeds, name, progress, model: as in `compare`.

    Returns:
        condition ("the set", "none", and each control) → what `run` returned for each draw.

    Raises:
        TnkitError: for no seeds, or a control with the name of another condition.

    >>> from tnkit.detection.neurons import NeuronSet
    >>> one = NeuronSet(((0, 5),), shape=(4, 48))
    >>> each_condition(len, one, controls={"a": one}, seeds=1, name="size", progress=False)
    {'the set': [1], 'none': [0], 'a': [1]}
    """
    seeds = whole_number("seeds", seeds, at_least=1)
    if model is not None:
        check_model(model)
    if reserved := {SET, NONE} & set(controls):
        raise TnkitError(f"a control is named {reserved.pop()!r}, which is a condition of its own; rename it")
    asked: Neurons = as_one(neurons)

    def steps() -> Iterator[Any]:
        """The conditions first, since drawing them reads weights too, then what each run returns."""
        drawn_sets = {name: drawn(control, seeds) for name, control in controls.items()}
        yield {SET: [asked], NONE: [nothing(asked)] if len(asked) else [], **drawn_sets}
        yield from (run(off) for sets in conditions.values() for off in sets)

    work = steps() if model is None else hashed_at_ends(model, steps())
    conditions: dict[str, list[Neurons]] = next(work)
    total = sum(map(len, conditions.values()))
    done = iter([*tqdm(work, total=total, desc=name, disable=not progress, leave=False)])
    results = {condition: [*islice(done, len(sets))] for condition, sets in conditions.items()}
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


def frame_of_conditions(result: Any) -> pd.DataFrame:
    """The `to_frame` of a result and of each draw of its controls, indexed (off, seed, ...)."""
    drawn = {SET: (result,), **result.controls}
    frames = {(off, seed): draw.to_frame() for off, draws in drawn.items() for seed, draw in enumerate(draws)}
    return pd.concat(frames, names=["off", "seed"])
