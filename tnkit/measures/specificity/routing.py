"""Which experts the sentences of each language are sent to: `routing`, and how few of them a neuron set sits in.

sent = tn.specificity.routing({name: tn.capture(model, train[name], keep=["experts"]) for name in corpus.languages})
sent.to_frame(), sent.apart(), sent.plot()
sent.concentration(type1_ja, language="ja")
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, whole_number
from tnkit.provenance import check_alike


@dataclass(frozen=True, eq=False)
class Routing:
    """How often the sentences of each language are sent to each expert, at the captured token.

    Attributes:
        shares: language → (layer, expert), float64, between 0 and 1; they sum to the number of slots.
        layers: those with experts that were captured, of the first axis.
        provenance: of the first capture.
    """

    shares: dict[str, Float64[np.ndarray, "layer expert"]]
    layers: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """The shares, a column for each language, indexed (layer, expert)."""
        experts = next(iter(self.shares.values())).shape[1]
        index = pd.MultiIndex.from_product([self.layers, range(experts)], names=["layer", "expert"])
        return pd.DataFrame({name: shares.ravel() for name, shares in self.shares.items()}, index=index).dropna()

    def apart(self) -> pd.DataFrame:
        """By layer, how far a language's routing is from the mean of the others: total variation distance, 0 to 1.

        Half the sum of |p − q| over experts, where p and q are shares divided by their sum: 0 where both use every
        expert alike, 1 where no expert serves both.
        """
        parts = {name: shares / np.nansum(shares, axis=1, keepdims=True) for name, shares in self.shares.items()}
        if len(parts) < 2:
            raise TnkitError(f"the routing of {', '.join(parts)} alone is compared with nothing; give another language")
        columns = {}
        for name, own in parts.items():
            others = np.mean([part for other, part in parts.items() if other != name], axis=0)
            columns[name] = np.nansum(np.abs(own - others), axis=1) / 2
        return pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))

    def concentration(
        self, neurons: NeuronSet, *, language: str, seeds: SupportsIndex = 200, seed: SupportsIndex = 0
    ) -> pd.DataFrame:
        """In how many experts a set sits, beside random neurons of experts that are run as often.

        The effective number of experts is 1 / Σ p² over all experts of all layers, where p is the share of the set's
        neurons in each (Hill's number of order 2, 1973; Simpson, 1949). A control has as many neurons of each layer,
        drawn with probability in proportion to how often their expert serves the language. Shared experts and layers
        without experts are left out.

        Args:
            neurons: the set.
            language: whose routing the draws follow.
            seeds: how many draws.
            seed: of the first draw.

        Returns:
            One row: how many neurons of the set are in experts, their effective number of experts, the mean and central
            95 % of the draws, and the share of draws with as few experts, (1 + such draws) / (1 + draws).

        Raises:
            TnkitError: for a language or layer that was not captured, or a set without neurons in experts.
        """
        if language not in self.shares:
            raise TnkitError(f"there is no capture of {language!r}; there are {', '.join(self.shares)}")
        layout, counts = neurons.layout, {layer: len(members) for layer, members in self._experts(neurons).items()}
        if not counts:
            raise TnkitError("none of these neurons is in an expert that is not shared; give a set of such a model")
        if missing := sorted(set(counts) - set(self.layers)):
            raise TnkitError(f"layers {missing} were not captured; captured are {list(self.layers)}")
        random, draws = np.random.default_rng(whole_number("seed", seed)), []
        for _ in range(whole_number("seeds", seeds, at_least=1)):
            drawn = {}
            for layer, count in counts.items():
                _, experts, width = layout[layer]
                weights = np.repeat(self.shares[language][self.layers.index(layer), :experts], width)
                picked = random.choice(
                    experts * width, min(count, int((weights > 0).sum())), False, weights / weights.sum()
                )
                drawn[layer] = (picked // width).tolist()
            draws.append(_effective(drawn))
        own = _effective(self._experts(neurons))
        low, high = np.quantile(draws, [0.025, 0.975])
        as_few = (1 + sum(draw <= own for draw in draws)) / (1 + len(draws))
        row = [sum(counts.values()), own, float(np.mean(draws)), float(low), float(high), as_few]
        columns = ["neurons", "experts", "expected", "low", "high", "p"]
        return pd.DataFrame([row], columns=columns, index=pd.Index([language], name="language"))

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw `apart` by layer."""
        return plots.lines_by_layer(self.apart(), ylabel="routing, distance from other languages", ax=ax)

    def _experts(self, neurons: NeuronSet) -> dict[int, list[int]]:
        """The expert of each neuron, by layer; those in shared experts or none are left out."""
        inside: dict[int, list[int]] = {}
        for layer, neuron in neurons:
            _, experts, width = (*neurons.layout[layer], 0, 0)[:3] if neurons.layout else (0, 0, 0)
            if neuron < experts * width:
                inside.setdefault(layer, []).append(neuron // width)
        return inside

    def _repr_html_(self) -> str:
        furthest = {f"{name}, furthest from the others": f"layer {at}" for name, at in self.apart().idxmax().items()}
        return storage.html_card("Routing", {"languages": list(self.shares), "layers": len(self.layers), **furthest})


def routing(languages: Mapping[str, Activations]) -> Routing:
    """How often the sentences of each language are sent to each expert of a model.

    Args:
        languages: a capture of each language with `experts`, which `activations` bring with them.

    Raises:
        TnkitError: for no captures, captures without experts, or made in different ways.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> texts = tiny_corpus()["train"]
    >>> captured = {name: tn.capture(tiny_model("mixtral"), texts[name], keep=["experts"]) for name in ("en", "ja")}
    >>> sent = routing(captured)
    >>> sent.to_frame().groupby("layer").sum().round(6).to_numpy().tolist()[0]
    [2.0, 2.0]
    """
    if not languages:
        raise TnkitError("no languages were captured; give a capture of at least one")
    check_alike(
        {name: {**capture.provenance, "layers": capture.layers} for name, capture in languages.items()},
        ("layers", "model", "position", "suffix", "ablations"),
    )
    first = next(iter(languages.values())).require("experts")
    layout = first.provenance["model"]["layout"]
    layers = tuple(layer for layer in first.layers if len(layout[layer]) > 1)
    count = max(layout[layer][1] for layer in layers)
    shares = {}
    for name, capture in languages.items():
        rows = []
        for layer in layers:
            sent = capture.require("experts").tensors()["experts"][capture.layers.index(layer)]
            of_each = torch.bincount(sent[sent >= 0].long(), minlength=count).double() / len(capture)
            of_each[layout[layer][1] :] = torch.nan
            rows.append(of_each.numpy())
        shares[name] = np.stack(rows)
    return Routing(shares, layers, first.provenance)


def _effective(experts: Mapping[int, list[int]]) -> float:
    """The effective number of (layer, expert) cells that neurons are in."""
    cells = [(layer, expert) for layer, inside in experts.items() for expert in inside]
    _, counts = np.unique(np.array(cells), axis=0, return_counts=True)
    return float(counts.sum() ** 2 / np.square(counts).sum())
