"""How an effect grows with how many neurons are changed, and how much: `doses`.

rivals = lambda some: tn.controls(some, layers=model.early_layers)          # of each size, its own controls
curve = tn.doses(model, test, top_1000, language="ja", controls=rivals)     # 10, 30, 100, 300, 1000 off
curve = tn.doses(model, test, type1, language="ja", sizes=[300], scale=[1, 0.75, 0.5, 0.25, 0])
curve.at(15), curve.plot()
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, SupportsFloat, SupportsIndex

import pandas as pd
from tqdm.auto import tqdm

from tnkit import plots, signals, storage
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.interventions.comparison import SET, Comparison, compare
from tnkit.interventions.controls import Control, controls
from tnkit.interventions.intervention import Captures, Intervention
from tnkit.interventions.together import Neurons
from tnkit.measures.measurement import Texts, measurement
from tnkit.models.model import Model

_SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)


@dataclass(frozen=True, eq=False)
class Doses:
    """What a neuron set and its controls do, by how many neurons are changed and how much.

    Attributes:
        comparisons: (number of neurons, amount) → its `Comparison`.
        amount: what the second is: "scale", which activations are multiplied by, or "add", how often a difference of
            means is added to them.
    """

    comparisons: dict[tuple[int, float], Comparison]
    amount: str

    @property
    def measure(self) -> str:
        """What was measured."""
        return self._first.measure

    @property
    def _first(self) -> Comparison:
        return next(iter(self.comparisons.values()))

    def to_frame(self) -> pd.DataFrame:
        """The rows of each dose as `Comparison.to_frame`, indexed (neurons, scale or add, layer, condition).

        `p adjusted` is corrected within a dose, not over doses.
        """
        return self._joined(lambda compared: compared.to_frame())

    def at(self, layer: int | None = None) -> pd.DataFrame:
        """The rows of one layer, indexed (neurons, scale or add, condition); the layer as in `Comparison.at`.

        Raises:
            TnkitError: for a layer that was not measured.
        """
        frame = self._joined(lambda compared: compared.at(layer))
        frame.attrs = {"layer": self._first.at(layer).attrs["layer"]}
        return frame

    def plot(
        self, layer: int | None = None, *, over: str | None = None, ax: "plots.Axes | None" = None
    ) -> "plots.Axes":
        """Draw each condition's mean at one layer by dose, with its interval as a band.

        Args:
            layer: as in `Comparison.at`.
            over: "neurons", at the last amount, or the name of the amount, with most neurons (default: what varies).
            ax: where to draw (default: a new figure).

        Raises:
            TnkitError: for another `over`.
        """
        sizes, amounts = (dict.fromkeys(dose) for dose in zip(*self.comparisons, strict=True))
        over = ("neurons" if len(sizes) > 1 else self.amount) if over is None else over
        one_of("over", over, ("neurons", self.amount))
        other, fixed = (self.amount, [*amounts][-1]) if over == "neurons" else ("neurons", max(sizes))
        rows = self.at(layer)
        frame = rows[rows.index.get_level_values(other) == fixed].droplevel(other)
        labels = {"neurons": "neurons", "scale": "activations multiplied by", "add": "times the difference of means"}
        title = self._first.layer_name(layer) if self._first.layers != (0,) else ""
        how: dict[str, Any] = {"xlabel": labels[over], "ylabel": self.measure, "title": title}
        return plots.conditions_by_dose(frame, logarithmic=over == "neurons", **how, ax=ax)

    def _joined(self, frame_of: Callable[[Comparison], pd.DataFrame]) -> pd.DataFrame:
        frames = {dose: frame_of(compared) for dose, compared in self.comparisons.items()}
        return pd.concat(frames, names=["neurons", self.amount])

    def _repr_html_(self) -> str:
        means = self.at()["mean"].xs(SET, level="condition")
        named = (f"{size} neurons, {self.amount} {amount:g}" for size, amount in self.comparisons)
        rows = {name: f"{mean:.3f}" for name, mean in zip(named, means, strict=True)}
        return storage.html_card(f"Doses: {self.measure}, {self._first.layer_name()}", rows)


def doses(
    model: Model,
    texts: Texts,
    neurons: NeuronSet,
    *,
    language: str,
    sizes: Iterable[SupportsIndex] | None = None,
    scale: Iterable[SupportsFloat] | None = None,
    add: Iterable[SupportsFloat] | None = None,
    of: Captures | None = None,
    minus: Captures | None = None,
    controls: Callable[[NeuronSet], Mapping[str, Control]] = controls,
    seeds: SupportsIndex = 10,
    chosen_layer: SupportsIndex | None = None,
    chosen_on: str = "other sentences",
    progress: bool = True,
    **reading: Any,
) -> Doses:
    """Change more and more neurons of a set, more and more, and compare each dose with controls of that size.

    Ctrl-C ends it: the result is of the doses until then, and a warning says how many.

    Args:
        model: from `load_model`.
        texts: language → aligned sentences, which were not used to find the neurons.
        neurons: the set, best first; a dose of n neurons changes its first n.
        language: the language to ablate.
        sizes: how many neurons (default: 10, 30, 100, 300, 1000 and so on, as far as the set has them).
        scale: what activations are multiplied by (default: 0, which switches them off); 1 is no change.
        add: how often mean of `of` - mean of `minus` is added to them instead, as in `Intervention`; 0 is no change.
        of, minus: captures with activations, for `add`.
        controls: takes the neurons of a dose and returns its controls, each changed as much, by name.
        seeds: the number of draws of each random control.
        chosen_layer, chosen_on: the layer to report and the sentences it was chosen on, as in `compare`.
        progress: show a bar.
        **reading: measure, hub, tokens, position, suffix, layers, last_layer, k and centred, as in `tn.ablate`.

    Returns:
        `Doses`, with a `Comparison` for each dose.

    Raises:
        TnkitError: for no doses, more neurons than the set has, both scale and add, and as `tn.ablate` does.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> some = NeuronSet(tuple((0, neuron) for neuron in range(30)), shape=(4, 48))
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> curve = doses(tiny_model(), texts, some[:20], language="it", scale=[0.5, 0], seeds=1, progress=False)
    >>> [*curve.comparisons]
    [(10, 0.5), (10, 0.0), (20, 0.5), (20, 0.0)]
    """
    chosen = _sizes(neurons, sizes)
    amount, amounts = _amounts(scale, add)
    how: list[dict[str, Any]] = [{amount: level, "of": of, "minus": minus} for level in amounts]
    ways = {level: Intervention(neurons, **way) for level, way in zip(amounts, how, strict=True)}
    measured = measurement(model, texts, language=language, progress=progress, **reading)
    untouched = measured.run(Intervention(neurons[:0]))

    def at(level: float) -> Callable[[Neurons], Any]:
        def run(off: Neurons) -> Any:
            if not len(off):
                return untouched
            return measured.run(replace(ways[level], neurons=off) if isinstance(off, NeuronSet) else off)

        return run

    comparisons: dict[tuple[int, float], Comparison] = {}
    asked = [*product(chosen, amounts)]
    rivals = {size: controls(neurons[:size]) for size in chosen}
    options: dict[str, Any] = {"name": measured.name, "layers": measured.layers, "chosen_layer": chosen_layer}
    with signals.interruptible(
        lambda: f"{len(comparisons)} of {len(asked)} doses were measured" if comparisons else ""
    ):
        for size, level in tqdm(asked, desc="doses", disable=not progress, leave=False):
            comparisons[size, level] = compare(
                at(level),
                neurons[:size],
                controls=rivals[size],
                seeds=seeds,
                chosen_on=chosen_on,
                model=model,
                progress=False,
                **options,
            )
    return Doses(comparisons, amount)


def _sizes(neurons: NeuronSet, sizes: Iterable[SupportsIndex] | None) -> list[int]:
    """How many neurons the doses have."""
    if sizes is None:
        chosen = [*(size for size in _SIZES if size < len(neurons)), len(neurons)]
    else:
        chosen = [whole_number("sizes", size, at_least=1) for size in sizes]
    if not chosen or not all(0 < size <= len(neurons) for size in chosen):
        raise TnkitError(
            f"sizes={chosen} must be one or more numbers from 1 to {len(neurons)}, the neurons of the set; take more "
            "from its scores with top()"
        )
    return [*dict.fromkeys(chosen)]


def _amounts(scale: Iterable[SupportsFloat] | None, add: Iterable[SupportsFloat] | None) -> tuple[str, list[float]]:
    """What the amounts are, and each once."""
    if scale is not None and add is not None:
        raise TnkitError("scale and add exclude each other; give one of them")
    given = add if add is not None else [0.0] if scale is None else scale
    amounts = [*dict.fromkeys(map(float, given))]
    if not amounts:
        raise TnkitError("there is no amount; give one or more numbers")
    return "scale" if add is None else "add", amounts
