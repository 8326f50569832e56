"""What each neuron does on its own, beside its score: is the score causal? `effects`, `sampled`.

found = tn.effects(model, test, scores, language="ja", layer=15)       # each of 150 neurons off, one after another
found.correlation()                                                     # Spearman of score and effect, with interval
found.plot()
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float64
from tqdm.auto import tqdm

from tnkit import plots, signals, storage
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.ranking import chosen_layers
from tnkit.detection.scores import NeuronScores
from tnkit.errors import TnkitError, check_model, whole_number
from tnkit.interventions.comparison import values_of
from tnkit.interventions.intervention import Intervention
from tnkit.measures.measurement import Texts, layer_named, measurement
from tnkit.models.model import Model
from tnkit.statistics import mean_interval, spearman

ALL = "all"  # strata together


@dataclass(frozen=True, eq=False)
class Effects:
    """How much a measure falls when single neurons are changed, beside their scores.

    Attributes:
        measure: what was measured.
        layer: where; 0 for a measure without layers.
        sample: the neurons of each stratum, with their scores.
        drops: stratum → (neuron, sentence), the untouched measure - the measure with that neuron changed: positive
            where the measure falls without it.
    """

    measure: str
    layer: int
    sample: dict[str, NeuronSet]
    drops: dict[str, Float64[np.ndarray, "neuron sentence"]]

    def to_frame(self) -> pd.DataFrame:
        """Each neuron's stratum, score, and drop with its 95 % interval over sentences, indexed (layer, neuron)."""
        frames = []
        for stratum, neurons in self.sample.items():
            drops = self.drops[stratum]
            low, high = mean_interval(drops)
            columns = {"score": neurons.scores, "drop": drops.mean(axis=1), "low": low, "high": high}
            index = pd.MultiIndex.from_tuples(neurons.pairs, names=["layer", "neuron"])
            frames.append(pd.DataFrame({"stratum": stratum, **columns}, index=index))
        return pd.concat(frames)

    def correlation(self) -> pd.DataFrame:
        """Spearman's rank correlation of score and drop, in all strata together and in each.

        Positive: the measure depends more on neurons of higher score. A sample with many extreme scores shows a
        correlation more readily than all neurons would.

        Returns:
            A frame indexed by stratum, "all" first: `spearman`, its 95 % percentile bootstrap interval `low` to `high`
            over neurons, resampled within their strata (2,000 times), and the number of `neurons`. NaN where all
            scores or all drops are equal.
        """
        frame, rows = self.to_frame(), {}
        random = np.random.default_rng(0)
        for name in (ALL, *self.sample):
            part = frame if name == ALL else frame[frame["stratum"] == name]
            value, low, high = spearman(part[["score", "drop"]].to_numpy(), part["stratum"].tolist(), random)
            rows[name] = {"spearman": value, "low": low, "high": high, "neurons": len(part)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stratum")

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw each neuron's drop against its score, a colour for each stratum, with the correlation in the title."""
        frame, row = self.to_frame(), self.correlation().loc[ALL]
        points = {name: frame.loc[frame["stratum"] == name, ["score", "drop"]].to_numpy() for name in self.sample}
        title = f"Spearman {row['spearman']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        return plots.strata(points, xlabel="score", ylabel=f"drop in {self._label()}", title=title, ax=ax)

    def _label(self) -> str:
        return self.measure + (f", layer {self.layer}" if self.layer else "")

    def _repr_html_(self) -> str:
        rows = {
            str(name): f"Spearman {row['spearman']:.2f} ({row['low']:.2f} to {row['high']:.2f}), "
            f"{row['neurons']:.0f} neurons"
            for name, row in self.correlation().iterrows()
        }
        return storage.html_card(f"Single neurons: drop in {self._label()}", rows)


def effects(
    model: Model,
    texts: Texts,
    scores: NeuronScores,
    *,
    language: str,
    layer: SupportsIndex | None = None,
    measure: str = "margin",
    sample: Mapping[str, NeuronSet] | None = None,
    each: SupportsIndex = 50,
    seed: SupportsIndex = 0,
    progress: bool = True,
    value: Any = None,
    of: Any = None,
    **reading: Any,
) -> Effects:
    """Switch off one neuron at a time, and set how much a measure falls beside the neuron's score.

    A set can do much though none of its neurons does on its own, and the other way round. Ctrl-C ends it: the result is
    of the neurons until then, which are run in random order, and a warning says how many.

    Args:
        model: from `load_model`.
        texts: language → aligned sentences, which were not used to score the neurons.
        scores: of the neurons.
        language: the language to ablate.
        layer: where to measure, chosen on other sentences; only of measures by layer.
        measure: as in `tn.ablate`; "margin" and "centred_similarity" vary with every neuron, "retrieval" hardly does.
        sample: stratum → neurons with scores (default: `sampled`).
        each: how many neurons in each stratum of the default sample.
        seed: of the default sample.
        progress: show a bar.
        value, of: what each neuron is set to, as in `Intervention` (default: 0).
        **reading: hub, tokens, position, suffix, last_layer, k and centred, as in `tn.ablate`.

    Returns:
        `Effects`.

    Raises:
        TnkitError: for a measure by layer without a layer, a neuron that cannot reach that layer or has no score, and
            as `tn.ablate` does.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> scores = tn.detect(tiny_model(), texts, language="it", top=5, progress=False).scores
    >>> found = effects(tiny_model(), texts, scores, language="it", layer=3, each=4, progress=False)
    >>> found.correlation()["neurons"].to_dict()
    {'all': 12, 'top': 4, 'middle': 4, 'random': 4}
    """
    check_model(model)
    by_layer = measure != "perplexity"
    last = layer_named(model, layer) if by_layer or layer is not None else model.n_layers - 1
    reach = [scored for scored in scores.layers if scored <= last]
    strata = dict(sampled(scores, each, seed=seed, layers=reach) if sample is None else sample)
    deepest = max((pair[0] for neurons in strata.values() for pair in neurons), default=0)
    if by_layer and deepest > last:
        raise TnkitError(f"a neuron of layer {deepest} cannot change layer {last}; measure at layer {deepest} or later")
    reading |= {"measure": measure, "layers": (last,) if by_layer else None}
    if unscored := [name for name, neurons in strata.items() if not neurons.scores]:
        raise TnkitError(f"the neurons of {', '.join(unscored)} have no scores; take them from scores, as top() does")
    measured = measurement(model, texts, language=language, progress=progress, **reading)

    def run(*pairs: tuple[int, int]) -> Float64[np.ndarray, "sentence"]:
        return values_of(measured.run, Intervention(pairs, value=value, of=of), measured.name)[0]

    untouched, drops = run(), dict[tuple[str, int], np.ndarray]()
    places = [(name, place) for name, neurons in strata.items() for place in range(len(neurons))]
    order = np.random.default_rng(whole_number("seed", seed)).permutation(len(places))
    with signals.interruptible(lambda: f"{len(drops)} of {len(places)} neurons were run" if len(drops) > 2 else ""):
        for number in tqdm(order, desc="effects", unit=" neurons", disable=not progress, leave=False):
            name, place = places[number]
            drops[name, place] = untouched - run(strata[name][place])
    return _gathered(measured.name, measured.layers[0], strata, drops)


def sampled(
    scores: NeuronScores,
    each: SupportsIndex = 50,
    *,
    seed: SupportsIndex = 0,
    layers: Iterable[SupportsIndex] | None = None,
) -> dict[str, NeuronSet]:
    """Neurons in three strata of equal size: of highest score, around the middle of the ranking, and at random.

    Args:
        scores: of the neurons.
        each: how many in each stratum.
        seed: of the draw.
        layers: where to look (default: all scored layers).

    Returns:
        "top", "middle" and "random", disjoint; the latter is drawn from all that are in neither of the others.

    Raises:
        TnkitError: for more neurons than were scored.

    >>> import torch
    >>> values = torch.arange(12.0, dtype=torch.float64).reshape(1, 12)
    >>> strata = sampled(NeuronScores(values, "cosine"), 2)
    >>> strata["top"].scores, strata["middle"].scores, len(strata["random"])
    ((11.0, 10.0), (6.0, 5.0), 2)
    """
    each, seed = whole_number("each", each, at_least=1), whole_number("seed", seed)
    chosen = chosen_layers(layers, scores.layers)
    total = int((~scores.values[list(chosen)].isnan()).sum())
    if 3 * each > total:
        raise TnkitError(f"each={each} takes {3 * each} neurons, and {total} were scored; ask for fewer")
    ranked, middle = scores.top(total, layers=chosen), (total - each) // 2
    rest = [*range(each, middle), *range(middle + each, total)]
    drawn = sorted(np.random.default_rng(seed).choice(rest, each, replace=False).tolist())
    strata = {"top": range(each), "middle": range(middle, middle + each), "random": drawn}
    return {name: ranked.take(places) for name, places in strata.items()}


def _gathered(
    measure: str, layer: int, strata: Mapping[str, NeuronSet], drops: Mapping[tuple[str, int], np.ndarray]
) -> Effects:
    """The neurons that were run, stratum by stratum."""
    run = {name: sorted(place for stratum, place in drops if stratum == name) for name in strata}
    run = {name: places for name, places in run.items() if places}
    sample = {name: strata[name].take(places) for name, places in run.items()}
    return Effects(
        measure, layer, sample, {name: np.stack([drops[name, at] for at in places]) for name, places in run.items()}
    )
