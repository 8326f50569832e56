"""A set of neurons that knows where it came from: `NeuronSet`.

type1 = scores.top(1000, layers=model.early_layers)
type1.overlap(other), type1 & other, type1 - other
type1.save("ja-type1.json"); tn.NeuronSet.load("ja-type1.json")
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tnkit import pickles, storage
from tnkit.errors import TnkitError, whole_number, whole_numbers
from tnkit.provenance import stated

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

Pair = tuple[int, int]


def pairs_of(neurons: Iterable[Iterable[SupportsIndex]]) -> tuple[tuple[int, int], ...]:
    """(layer, neuron) pairs of int, of pairs as numpy, PyTorch or JSON hold them.

    Raises:
        TnkitError: for anything else.

    >>> pairs_of(np.array([[1, 7]])), pairs_of([[3, 17]])
    (((1, 7),), ((3, 17),))
    """
    try:
        return tuple((index(layer), index(neuron)) for layer, neuron in neurons)
    except (TypeError, ValueError) as error:
        raise TnkitError("neurons must be pairs of whole numbers, (layer, neuron), such as [(3, 17)]") from error


@dataclass(frozen=True)
class NeuronSet(Sequence[Pair]):
    """An ordered set of (layer, neuron) pairs.

    Attributes:
        pairs: the neurons, best first where they come from scores.
        shape: the model's numbers of layers and of neurons in a layer.
        scores: each neuron's score, or an empty tuple where they have none.
        provenance: model, sentences, centroid, selection.

    >>> a = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> b = NeuronSet(((1, 2), (3, 0)), shape=(4, 48))
    >>> (a & b).pairs, (a | b).pairs, (a - b).pairs, (1, 2) in a
    (((1, 2),), ((0, 5), (1, 2), (3, 0)), ((0, 5),), True)
    """

    pairs: tuple[Pair, ...]
    shape: tuple[int, int]
    scores: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        layers, width = self.shape
        object.__setattr__(self, "pairs", pairs_of(self.pairs))
        seen = set(self.pairs)
        if len(seen) != len(self.pairs):
            twice = next(pair for pair, count in Counter(self.pairs).items() if count > 1)
            raise TnkitError(f"neuron {twice} is in the set twice; keep it once")
        for pair in self.pairs:
            if not (0 <= pair[0] < layers and 0 <= pair[1] < width):
                raise TnkitError(f"neuron {pair} is outside a model of {layers} layers of {width} neurons")
        if self.scores and len(self.scores) != len(self.pairs):
            raise TnkitError(f"{len(self.scores)} scores do not go with {len(self.pairs)} neurons")

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __contains__(self, pair: object) -> bool:
        return pair in self.pairs

    @overload
    def __getitem__(self, place: SupportsIndex) -> Pair: ...

    @overload
    def __getitem__(self, place: slice) -> "NeuronSet": ...

    def __getitem__(self, place: SupportsIndex | slice) -> "Pair | NeuronSet":
        """A pair, or of a slice the set of those neurons."""
        if not isinstance(place, slice):
            return self.pairs[place]
        return NeuronSet(self.pairs[place], self.shape, self.scores[place], self.provenance)

    def __repr__(self) -> str:
        by_layer = self.by_layer()
        where = f", layers {min(by_layer)} to {max(by_layer)}" if by_layer else ""
        return f"NeuronSet({len(self)} neurons{where})"

    def __and__(self, other: "NeuronSet") -> "NeuronSet":
        return self._keep(set(self._beside(other)), "and", other)

    def __sub__(self, other: "NeuronSet") -> "NeuronSet":
        return self._keep(set(self) - set(self._beside(other)), "minus", other)

    def __or__(self, other: "NeuronSet") -> "NeuronSet":
        more = other - self
        about = {"or": [self.provenance, other.provenance]}
        return NeuronSet(self.pairs + more.pairs, self.shape, provenance=about)

    def __xor__(self, other: "NeuronSet") -> "NeuronSet":
        return (self - other) | (other - self)

    def by_layer(self) -> dict[int, list[int]]:
        """The neurons of each layer that has some, both ascending.

        >>> NeuronSet(((3, 1), (0, 5), (0, 2)), shape=(4, 48)).by_layer()
        {0: [2, 5], 3: [1]}
        """
        found: dict[int, list[int]] = {}
        for layer, neuron in sorted(self.pairs):
            found.setdefault(layer, []).append(neuron)
        return found

    def overlap(self, other: "NeuronSet") -> "pd.DataFrame":
        """How much two sets share, by layer and in total ("all").

        Returns:
            A frame with the sizes of both, of their intersection, and their Jaccard index (NaN where both are empty).

        Raises:
            TnkitError: for sets of models of different shape.

        >>> a = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
        >>> a.overlap(NeuronSet(((1, 2), (3, 0)), shape=(4, 48))).loc["all"].tolist()
        [2.0, 2.0, 1.0, 0.3333333333333333]
        """
        import pandas as pd

        left, right = Counter(layer for layer, _ in self), Counter(layer for layer, _ in self._beside(other))
        both = Counter(layer for layer, _ in set(self) & set(other))
        layers = range(self.shape[0])
        frame = pd.DataFrame(
            {
                "this": [left[n] for n in layers],
                "other": [right[n] for n in layers],
                "both": [both[n] for n in layers],
            },
            index=pd.Index([*layers], name="layer", dtype=object),
        )
        frame.loc["all"] = frame.sum()
        frame["jaccard"] = frame["both"] / (frame["this"] + frame["other"] - frame["both"])
        return frame

    def uniform(self, *, seed: SupportsIndex, layers: Iterable[SupportsIndex] | None = None) -> "NeuronSet":
        """A control: as many other neurons, drawn uniformly from a layer range (the control of Tezuka & Inoue, 2025).

        Args:
            seed: of the draw.
            layers: where to draw from (default: from the set's first layer to its last).

        Raises:
            TnkitError: where the range holds too few other neurons.

        >>> control = NeuronSet(((0, 5), (1, 2)), shape=(4, 48)).uniform(seed=0)
        >>> len(control), control == NeuronSet(((0, 5), (1, 2)), shape=(4, 48)).uniform(seed=0)
        (2, True)
        """
        by_layer, seed = self.by_layer(), whole_number("seed", seed)
        layers = range(min(by_layer, default=0), max(by_layer, default=-1) + 1) if layers is None else layers
        layers = tuple(dict.fromkeys(whole_numbers("layers", layers)))
        members = set(self)
        others = [
            (layer, neuron) for layer in layers for neuron in range(self.shape[1]) if (layer, neuron) not in members
        ]
        if len(others) < len(self):
            raise TnkitError(f"{len(others)} other neurons in these layers are too few for a control of {len(self)}")
        drawn = np.random.default_rng(seed).choice(len(others), len(self), replace=False)
        return self._control("uniform", seed, [others[place] for place in drawn])

    def matched(self, *, seed: SupportsIndex, norms: Tensor | None = None) -> "NeuronSet":
        """A control: as many other neurons from each layer, if asked also of like contribution norm.

        Args:
            seed: of the draw.
            norms: (layer, neuron), from `tn.scoring.contribution_norms`; each neuron is then replaced by one drawn
                from the ten of its layer whose norm is nearest and which are still free.

        Raises:
            TnkitError: where a layer holds too few other neurons.

        >>> NeuronSet(((0, 5), (1, 2), (1, 3)), shape=(4, 48)).matched(seed=0).by_layer().keys()
        dict_keys([0, 1])
        """
        seed = whole_number("seed", seed)
        random, drawn = np.random.default_rng(seed), []
        for layer, members in self.by_layer().items():
            free = np.setdiff1d(np.arange(self.shape[1]), members)
            if len(free) < len(members):
                raise TnkitError(
                    f"layer {layer} has {len(free)} other neurons, too few for a control of {len(members)}"
                )
            if norms is None:
                drawn += [(layer, int(neuron)) for neuron in random.choice(free, len(members), replace=False)]
                continue
            sizes = np.log(norms[layer].double().numpy() + 1e-30)
            for member in random.permutation(members):
                near = np.argsort(np.abs(sizes[free] - sizes[member]), kind="stable")[:10]
                place = random.choice(near)
                drawn.append((layer, int(free[place])))
                free = np.delete(free, place)
        return self._control("matched by layer" + (" and norm" if norms is not None else ""), seed, drawn)

    def _control(self, how: str, seed: int, pairs: Sequence[Pair]) -> "NeuronSet":
        about = {"control": {"how": how, "seed": seed}, "of": self.provenance}
        return NeuronSet(tuple(sorted(pairs)), self.shape, provenance=about)

    def to_frame(self) -> "pd.DataFrame":
        """One row a neuron, in order, indexed (layer, neuron), with its rank and score."""
        import pandas as pd

        index = pd.MultiIndex.from_tuples(self.pairs, names=["layer", "neuron"])
        return pd.DataFrame(
            {"rank": range(1, len(self) + 1), **({"score": self.scores} if self.scores else {})}, index=index
        )

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw how many of the neurons sit in each layer."""
        from tnkit import plots

        return plots.neurons_by_layer({"neurons": self}, n_layers=self.shape[0], ax=ax)

    def save(self, path: str | Path, *, format: str = "tnkit") -> Path:
        """Write JSON, or with format="reference" the published code's pickle (a list of pairs)."""
        if format == "reference":
            return pickles.write(path, list(self.pairs))
        content = {
            "shape": self.shape,
            "pairs": self.pairs,
            "scores": self.scores,
            "provenance": self.provenance,
        }
        return storage.save_json(path, "neurons", content)

    @classmethod
    def load(cls, path: str | Path, *, shape: tuple[int, int] | None = None) -> "NeuronSet":
        """Read what `save` wrote, in either format.

        Args:
            path: the file.
            shape: the model's layers and neurons a layer, which the published code's pickles do not record.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        reference = Path(path).suffix in (".pkl", ".pickle")
        if reference and shape is None:
            raise TnkitError(f"{path} does not say what model it is of: give shape=(model.n_layers, model.n_neurons)")
        about = {"pairs": pickles.read(path), "shape": shape} if reference else storage.load_json(path, "neurons")
        try:
            pairs = tuple((_whole(layer), _whole(neuron)) for layer, neuron in about["pairs"])
            layers, width = (_whole(size) for size in about["shape"])
            scores = tuple(float(score) for score in about.get("scores", ()))
            if not np.isfinite(scores).all():
                raise ValueError("a score is not finite")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise TnkitError(f"{path} does not hold a list of (layer, neuron) pairs of whole numbers") from error
        try:
            return cls(pairs, (layers, width), scores, stated(path, about) or {"file": Path(path).name})
        except TnkitError as error:
            raise TnkitError(f"{path}: {error}") from error

    def _keep(self, wanted: set[Pair], how: str, other: "NeuronSet") -> "NeuronSet":
        places = [place for place, pair in enumerate(self.pairs) if pair in wanted]
        scores = tuple(self.scores[place] for place in places) if self.scores else ()
        about = {**self.provenance, how: other.provenance}
        return NeuronSet(tuple(self.pairs[place] for place in places), self.shape, scores, about)

    def _beside(self, other: "NeuronSet") -> "NeuronSet":
        if self.shape != other.shape:
            raise TnkitError(
                f"sets of different models do not compare: {self.shape} and {other.shape} layers × neurons"
            )
        return other

    def _repr_html_(self) -> str:
        counts = [f"{layer}: {len(neurons)}" for layer, neurons in self.by_layer().items()]
        about = {
            "model": self.provenance.get("model", {}).get("name"),
            "selection": self.provenance.get("selection"),
        }
        shown = {name: value for name, value in about.items() if value}
        return storage.html_card("Neuron set", {"neurons": len(self), "by layer": counts, **shown})


def _whole(number: Any) -> int:
    if isinstance(number, bool) or int(number) != number:
        raise ValueError(f"{number!r} is not a whole number")
    return int(number)


def ranked(
    values: Float[Tensor, "layer neuron"],
    n: int,
    layers: Sequence[int],
    n_layers: int,
    provenance: dict[str, Any],
    *,
    lowest: bool = False,
) -> NeuronSet:
    """The n neurons of highest (or lowest) value, best first; equal ones keep the order (layer, neuron).

    Args:
        values: a row for each of `layers`.
        n_layers: how many the model has.

    >>> ranked(torch.tensor([[0.1, 0.3], [0.2, 0.3]]), 3, [2, 5], 6, {}).pairs
    ((2, 1), (5, 1), (5, 0))
    """
    flat = -values.reshape(-1) if lowest else values.reshape(-1)
    least = flat.topk(n).values[-1] if n else torch.inf
    places = (flat >= least).nonzero()[:, 0]
    places = places[flat[places].sort(descending=True, stable=True).indices[:n]]
    width = values.shape[1]
    pairs = tuple((layers[place // width], place % width) for place in places.tolist())
    return NeuronSet(pairs, (n_layers, width), tuple(values.reshape(-1)[places].tolist()), provenance)
