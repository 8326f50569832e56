"""Whose neurons move whose sentences towards which language: `moves`.

attractions = {name: tn.attraction(model, train[name], origin=mean) for name in train}
tn.specificity.moves({name: found[name, "type1"].neurons for name in train}, attractions, centroids).plot()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from tnkit import plots, storage
from tnkit.detection.attraction import Attraction
from tnkit.detection.centroids import Centroids
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.provenance import check_alike


@dataclass(frozen=True, eq=False)
class Moves:
    """How much nearer the neurons of each set bring the sentences of each language to each target.

    Attributes:
        table: indexed (neurons, sentences, target): `score`, the mean score of the set's neurons in these sentences
            towards this target, and `layers`, that of all neurons of the set's layers, weighted as the set is spread
            over them.
        score: "raw" or "centred".
    """

    table: pd.DataFrame
    score: str

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def plot(self) -> plots.Figure:
        """Draw score - layers, in thousandths of a cosine, as a heat map for the sentences of each language.

        The largest numbers of a row say what its neurons move these sentences to. At 0 they do so no more than the
        other neurons of their layers.
        """
        above = 1000 * (self.table["score"] - self.table["layers"])
        order = [self.table.index.unique(level) for level in ("neurons", "target")]
        maps = {
            f"{plots.language_label(str(name))} sentences": rows.droplevel("sentences")
            .unstack("target")
            .loc[order[0], order[1]]
            for name, rows in above.groupby(level="sentences", sort=False)
        }
        value = f"{self.score} score - layers' mean, x 1000"
        return plots.signed_maps(maps, xlabel="towards", ylabel="neurons of", value=value)

    def _repr_html_(self) -> str:
        levels = {str(level): self.table.index.unique(level).tolist() for level in self.table.index.names}
        return storage.html_card("Moves", {"score": self.score, **levels})


def moves(
    sets: Mapping[str, NeuronSet], attractions: Mapping[str, Attraction], targets: Mapping[str, Centroids]
) -> Moves:
    """The mean score of each set's neurons, in the sentences of each language, towards each target.

    The centroids of all languages are nearly parallel, so attractions without an origin hardly tell targets apart.

    Args:
        sets: neurons by name, such as the language that they were detected for.
        attractions: from `tn.attraction`, by the language of their sentences; all raw, or all of one origin.
        targets: centroids by name.

    Raises:
        TnkitError: for no sets, attractions or targets; an empty set, or one of another model; a layer of a set that an
            attraction or target lacks; attractions made in different ways; and as `Attraction.scores` does.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> texts, model = tiny_corpus()["train"], tiny_model()
    >>> sums = {name: tn.attraction(model, texts[name], progress=False) for name in ("en", "ja")}
    >>> found = tn.detect_all(model, texts, ["ja"], ["type2"], top=10, progress=False)["ja", "type2"]
    >>> frame = moves({"ja": found.neurons}, sums, {"ja": found.centroids}).to_frame()
    >>> bool(abs(frame.loc[("ja", "ja", "ja"), "score"] - sum(found.neurons.scores) / 10) < 1e-6)
    True
    """
    if not sets or not attractions or not targets:
        raise TnkitError("give at least one set of neurons, one attraction and one target")
    if empty := [name for name, neurons in sets.items() if not len(neurons)]:
        raise TnkitError(f"the neuron set of {', '.join(empty)} is empty; give sets of at least one neuron")
    check_alike({name: one.provenance for name, one in attractions.items()})
    if len({str(one.provenance.get("origin")) for one in attractions.values()}) > 1:
        raise TnkitError("these attractions have different origins, so their scores differ in more than the sentences")
    check_alike({f"the neurons of {name}": one.provenance for name, one in sets.items()}, ("model",))
    rows: dict[tuple[str, str, str], tuple[float, float]] = {}
    for sentences, one in attractions.items():
        about, shape = {f"the sentences of {sentences}": one.provenance}, (len(one.widths), max(one.widths))
        for name, neurons in sets.items():
            check_alike({**about, f"the neurons of {name}": neurons.provenance}, ("model",))
            if neurons.shape != shape:
                raise TnkitError(f"the neurons of {name} are of a model of shape {neurons.shape}, not {shape}")
        found = _moved(one, [neurons.by_layer() for neurons in sets.values()], list(targets.values()))
        for name, of_set in zip(sets, found.tolist(), strict=True):
            rows |= {(name, sentences, target): pair for target, pair in zip(targets, of_set, strict=True)}
    names = ["neurons", "sentences", "target"]
    table = pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=names), ["score", "layers"])
    order = [(name, sentences, target) for name in sets for sentences in attractions for target in targets]
    return Moves(table.loc[order], next(iter(attractions.values())).score)


def _moved(
    attraction: Attraction, sets: list[dict[int, list[int]]], targets: list[Centroids]
) -> Float64[Tensor, "set target two"]:
    """The mean scores of each set, and of all neurons of its layers, towards each target."""
    layers: Iterable[int] = sorted({layer for by_layer in sets for layer in by_layer})
    goals = torch.stack([attraction.directions(target, layers=layers)[1] for target in targets], dim=1)
    found = torch.zeros(len(sets), len(targets), 2, dtype=torch.float64)
    for layer, towards in zip(layers, goals, strict=True):
        scores = (attraction.turns(layer) @ towards.to(attraction.sums.device).T).cpu()  # (neuron, target)
        for row, by_layer in enumerate(sets):
            members = by_layer.get(layer, [])
            found[row, :, 0] += scores[members].sum(dim=0)
            found[row, :, 1] += len(members) * scores.mean(dim=0)
    return found / torch.tensor([sum(map(len, by_layer.values())) for by_layer in sets])[:, None, None]
