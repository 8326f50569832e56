"""A set of neurons that knows where it came from: `NeuronSet`.

type1 = scores.top(1000, layers=model.early_layers)
type1.overlap(other), type1 & other, type1 - other
type1.save("ja-type1.json"); tn.NeuronSet.load("ja-type1.json")
type1.push_to_hub("me/ja-type1"); tn.NeuronSet.from_hub("me/ja-type1")
"""

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import pandas as pd
from torch import Tensor

from tnkit import pickles, plots, storage
from tnkit.detection import neuron_files
from tnkit.detection.sharing import Shareable
from tnkit.errors import TnkitError, whole_number, whole_numbers
from tnkit.provenance import stated
from tnkit.widths import expert_column, widths_of

Pair = tuple[int, int]


def pairs_of(neurons: Iterable[Iterable[SupportsIndex]]) -> tuple[tuple[int, int], ...]:
    """Pairs of whole numbers of Python, NumPy or PyTorch as (layer, neuron) tuples of int.

    Raises:
        TnkitError: for anything else.

    >>> pairs_of(np.array([[1, 7]])), pairs_of([[3, 17]])
    (((1, 7),), ((3, 17),))
    """
    try:
        return tuple((operator.index(layer), operator.index(neuron)) for layer, neuron in neurons)
    except (TypeError, ValueError) as error:
        raise TnkitError("neurons must be pairs of whole numbers, (layer, neuron), such as [(3, 17)]") from error


@dataclass(frozen=True)
class NeuronSet(Shareable, Sequence[Pair]):
    """An ordered set of (layer, neuron) pairs.

    Attributes:
        pairs: the neurons, best first where they come from scores.
        shape: the model's numbers of layers and of neurons in the widest layer.
        scores: each neuron's score, or an empty tuple where they have none.
        provenance: model, sentences, centroid, selection.
        layout: the number of neurons of each layer, and of its experts and the neurons of one, where layers differ or
            have experts (default: what the provenance says).

    >>> a = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> b = NeuronSet(((1, 2), (3, 0)), shape=(4, 48))
    >>> (a & b).pairs, (a | b).pairs, (a - b).pairs, (1, 2) in a
    (((1, 2),), ((0, 5), (1, 2), (3, 0)), ((0, 5),), True)
    """

    pairs: tuple[Pair, ...]
    shape: tuple[int, int]
    scores: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)
    layout: tuple[tuple[int, ...], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        layers, width = self.shape
        object.__setattr__(self, "pairs", pairs_of(self.pairs))
        model = self.provenance.get("model")
        layout = self.layout or (model.get("layout") if isinstance(model, dict) else ()) or ()
        object.__setattr__(self, "layout", tuple(map(tuple, layout)))
        widths = self.widths
        seen = set(self.pairs)
        if len(seen) != len(self.pairs):
            twice = next(pair for pair, count in Counter(self.pairs).items() if count > 1)
            raise TnkitError(f"neuron {twice} is in the set twice; keep it once")
        for pair in self.pairs:
            if not (0 <= pair[0] < layers and 0 <= pair[1] < width):
                raise TnkitError(f"neuron {pair} is outside a model of {layers} layers of {width} neurons")
            if pair[1] >= widths[pair[0]]:
                raise TnkitError(f"neuron {pair} is outside layer {pair[0]}, which has {widths[pair[0]]} neurons")
        if self.scores and len(self.scores) != len(self.pairs):
            raise TnkitError(f"{len(self.scores)} scores do not go with {len(self.pairs)} neurons")

    @property
    def widths(self) -> tuple[int, ...]:
        """How many neurons each layer of the model has."""
        return widths_of({"model": {"layout": self.layout}}, self.shape)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __contains__(self, pair: object) -> bool:
        return pair in self.pairs

    @overload
    def __getitem__(self, index: SupportsIndex) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> "NeuronSet": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "Pair | NeuronSet":
        """A pair, or the set of the neurons in a slice."""
        if not isinstance(index, slice):
            return self.pairs[index]
        return replace(self, pairs=self.pairs[index], scores=self.scores[index])

    def take(self, places: Sequence[int]) -> "NeuronSet":
        """The neurons at these places of the set, with their scores.

        >>> NeuronSet(((0, 5), (1, 2), (3, 0)), shape=(4, 48), scores=(3.0, 2.0, 1.0)).take([2, 0]).scores
        (1.0, 3.0)
        """
        scores = tuple(self.scores[place] for place in places) if self.scores else ()
        return replace(self, pairs=tuple(self.pairs[place] for place in places), scores=scores)

    def __repr__(self) -> str:
        by_layer = self.by_layer()
        where = f", layers {min(by_layer)} to {max(by_layer)}" if by_layer else ""
        return f"NeuronSet({len(self)} neurons{where})"

    def __and__(self, other: "NeuronSet") -> "NeuronSet":
        return self._keep(set(self.comparable(other)), "and", other)

    def __sub__(self, other: "NeuronSet") -> "NeuronSet":
        return self._keep(set(self) - set(self.comparable(other)), "minus", other)

    def __or__(self, other: "NeuronSet") -> "NeuronSet":
        more = other - self
        provenance = {"or": [self.provenance, other.provenance]}
        return replace(self, pairs=self.pairs + more.pairs, scores=(), provenance=provenance)

    def __xor__(self, other: "NeuronSet") -> "NeuronSet":
        return (self - other) | (other - self)

    def by_layer(self) -> dict[int, list[int]]:
        """The neurons by layer, both ascending, without empty layers.

        >>> NeuronSet(((3, 1), (0, 5), (0, 2)), shape=(4, 48)).by_layer()
        {0: [2, 5], 3: [1]}
        """
        neurons: dict[int, list[int]] = {}
        for layer, neuron in sorted(self.pairs):
            neurons.setdefault(layer, []).append(neuron)
        return neurons

    def overlap(self, other: "NeuronSet") -> pd.DataFrame:
        """The overlap of two sets, by layer and in total ("all").

        Returns:
            A frame with the sizes of both and of their intersection, and their Jaccard index (NaN for two empty sets).

        Raises:
            TnkitError: for sets of models of different shape.

        >>> a = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
        >>> a.overlap(NeuronSet(((1, 2), (3, 0)), shape=(4, 48))).loc["all"].tolist()
        [2.0, 2.0, 1.0, 0.3333333333333333]
        """
        left, right = Counter(layer for layer, _ in self), Counter(layer for layer, _ in self.comparable(other))
        both = Counter(layer for layer, _ in set(self) & set(other))
        layers = range(self.shape[0])
        sizes = {"this": left, "other": right, "both": both}
        frame = pd.DataFrame(
            {name: [counts[layer] for layer in layers] for name, counts in sizes.items()},
            index=pd.Index([*layers], name="layer", dtype=object),
        )
        frame.loc["all"] = frame.sum()
        frame["jaccard"] = frame["both"] / (frame["this"] + frame["other"] - frame["both"])
        return frame

    def uniform(self, *, seed: SupportsIndex, layers: Iterable[SupportsIndex] | None = None) -> "NeuronSet":
        """A control: as many other neurons, drawn uniformly from a range of layers (Tezuka & Inoue, 2025).

        Args:
            seed: of the draw.
            layers: to draw from (default: from the set's first layer to its last).

        Raises:
            TnkitError: where the layers have too few other neurons.

        >>> control = NeuronSet(((0, 5), (1, 2)), shape=(4, 48)).uniform(seed=0)
        >>> len(control), control == NeuronSet(((0, 5), (1, 2)), shape=(4, 48)).uniform(seed=0)
        (2, True)
        """
        by_layer, seed = self.by_layer(), whole_number("seed", seed)
        layers = range(min(by_layer, default=0), max(by_layer, default=-1) + 1) if layers is None else layers
        layers = tuple(dict.fromkeys(whole_numbers("layers", layers)))
        members, widths = set(self), self.widths
        others = [
            (layer, neuron) for layer in layers for neuron in range(widths[layer]) if (layer, neuron) not in members
        ]
        if len(others) < len(self):
            raise TnkitError(f"{len(others)} other neurons in these layers are too few for a control of {len(self)}")
        drawn = np.random.default_rng(seed).choice(len(others), len(self), replace=False)
        return self._control("uniform", seed, [others[number] for number in drawn])

    def matched(self, *, seed: SupportsIndex, norms: Tensor | None = None, routed: Tensor | None = None) -> "NeuronSet":
        """A control: as many other neurons from each layer, of similar contribution norm if `norms` is given.

        Args:
            seed: of the draw.
            norms: (layer, neuron), from `tn.scoring.contribution_norms`; the control of each neuron is then drawn from
                the ten of its layer that are nearest in norm and not drawn yet.
            routed: (layer, neuron), the share of sentences in which each runs, from `NeuronScores.shares`; the ten are
                then nearest in |Δ log norm| + |Δ log share|. Most neurons of a model with experts hardly ever run, so a
                control without it is nearly inert.

        Raises:
            TnkitError: where a layer has too few other neurons.

        >>> NeuronSet(((0, 5), (1, 2), (1, 3)), shape=(4, 48)).matched(seed=0).by_layer().keys()
        dict_keys([0, 1])
        """
        seed = whole_number("seed", seed)
        random, drawn = np.random.default_rng(seed), []
        for layer, members in self.by_layer().items():
            free = np.setdiff1d(np.arange(self.widths[layer]), members)
            if len(free) < len(members):
                raise TnkitError(
                    f"layer {layer} has {len(free)} other neurons, too few for a control of {len(members)}"
                )
            if norms is None:
                drawn += [(layer, int(neuron)) for neuron in random.choice(free, len(members), replace=False)]
                continue
            sizes = np.log(norms[layer].double().numpy() + 1e-30)
            shares = 0 * sizes if routed is None else np.log(routed[layer].double().numpy() + 1e-30)
            for member in random.permutation(members):
                far = np.abs(sizes[free] - sizes[member]) + np.abs(shares[free] - shares[member])
                nearest = np.argsort(far, kind="stable")[:10]
                choice = random.choice(nearest)
                drawn.append((layer, int(free[choice])))
                free = np.delete(free, choice)
        how = " and norm" * (norms is not None) + " and routing" * (norms is not None and routed is not None)
        return self._control(f"matched by layer{how}", seed, drawn)

    def _control(self, how: str, seed: int, pairs: Sequence[Pair]) -> "NeuronSet":
        provenance = {"control": {"how": how, "seed": seed}, "of": self.provenance}
        return replace(self, pairs=tuple(sorted(pairs)), scores=(), provenance=provenance)

    def to_frame(self) -> pd.DataFrame:
        """The rank, score and, where the model has them, expert of each neuron, in order, indexed (layer, neuron)."""
        index = pd.MultiIndex.from_tuples(self.pairs, names=["layer", "neuron"])
        scores = {"score": self.scores} if self.scores else {}
        experts = {"expert": expert_column(self.layout, index)} if any(len(row) > 1 for row in self.layout) else {}
        return pd.DataFrame({"rank": range(1, len(self) + 1), **scores, **experts}, index=index)

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw how many of the neurons sit in each layer."""
        return plots.neurons_by_layer({"neurons": self}, n_layers=self.shape[0], ax=ax)

    def save(self, path: str | Path, *, format: str = "tnkit") -> Path:
        """Write JSON, or with format="reference" the published code's pickle (a list of pairs)."""
        if format == "reference":
            return pickles.write(path, list(self.pairs))
        names = ("shape", "pairs", "scores", "provenance", *(["layout"] if self.layout else []))
        return storage.save_json(path, "neurons", {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, path: str | Path, *, shape: tuple[int, int] | None = None) -> "NeuronSet":
        """Read what `save` wrote, in either format.

        Args:
            path: the file.
            shape: the model's layers and neurons in a layer, which the published code's pickles do not record.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        content = neuron_files.read(path, shape=shape)
        pairs, scores = tuple(map(tuple, content["pairs"])), tuple(map(float, content.get("scores", ())))
        try:
            provenance = stated(path, content) or {"file": Path(path).name}
            return cls(pairs, tuple(content["shape"]), scores, provenance, tuple(map(tuple, content.get("layout", ()))))
        except TnkitError as error:
            raise TnkitError(f"{path}: {error}") from error

    def _keep(self, wanted: set[Pair], how: str, other: "NeuronSet") -> "NeuronSet":
        kept = [pair in wanted for pair in self.pairs]
        pairs, scores = tuple(compress(self.pairs, kept)), tuple(compress(self.scores, kept))
        return replace(self, pairs=pairs, scores=scores, provenance={**self.provenance, how: other.provenance})

    def comparable(self, other: "NeuronSet") -> "NeuronSet":
        """The other set, if both are of models of one shape.

        Raises:
            TnkitError: where they are not.
        """
        if self.shape != other.shape:
            raise TnkitError(
                f"sets of different models do not compare: {self.shape} and {other.shape} layers × neurons"
            )
        return other

    def _repr_html_(self) -> str:
        counts = [f"{layer}: {len(neurons)}" for layer, neurons in self.by_layer().items()]
        origin = {"model": self.provenance.get("model", {}).get("name"), "selection": self.provenance.get("selection")}
        shown = {name: value for name, value in origin.items() if value}
        return storage.html_card("Neuron set", {"neurons": len(self), "by layer": counts, **shown})
