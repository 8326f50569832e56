"""In what a set and its controls are alike: `Balance`, `balance`.

rivals = tn.controls(type1, layers=model.early_layers, model=model, captured=captured)
balanced = tn.balance(model, captured, {"the set": type1, **rivals})
balanced.to_frame(), balanced.matched(), balanced.plot()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scoring import contribution_norms
from tnkit.detection.selection import language_of, target_frame, target_of
from tnkit.errors import TnkitError
from tnkit.interventions.controls import Control, drawn
from tnkit.interventions.displacement import displacement
from tnkit.models.model import Model

_WITHIN = 0.1  # what counts as matched, as a share of the set's


@dataclass(frozen=True, eq=False)
class Balance:
    """What a neuron set and its controls have in common beside their effects.

    Attributes:
        table: indexed (condition, layer), where the layer "all" is all of them together. `size`: how many neurons;
            `norm`: the mean length of one neuron's contribution (NaN for no neurons); `displacement`: the length of
            what they add together, averaged over sentences, under "all" of the sum over layers; `cosine` of that with
            the set's; `shared`: how many neurons are in the set. Of a random control each is the mean over draws.
        target: by layer, the share of the largest coordinate in the squared length of the set's target, and the
            target's cosine with each language's own centroid; None where the target is not known or not captured.
    """

    table: pd.DataFrame
    target: pd.DataFrame | None = None

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def at(self, layer: int | str = "all") -> pd.DataFrame:
        """The rows of one layer (default: of all layers together), indexed by condition."""
        return self.table[self.table.index.get_level_values("layer") == layer].droplevel("layer")

    def matched(self) -> pd.DataFrame:
        """What each condition is matched to the set in, indexed by condition.

        `size` and `layers`: as many neurons, and as many in each layer; `norm`: a mean length within 10 % of the set's;
        `displacement`: a joint one within 10 % in every layer of the set.
        """
        whole, sizes = self.at(), self.table["size"].drop("all", level="layer").unstack("layer")
        lengths = self.table["displacement"].drop("all", level="layer").unstack("layer")
        reference = whole.index[0]
        theirs = lengths.loc[reference]
        columns = {
            "size": whole["size"] == whole.loc[reference, "size"],
            "layers": (sizes == sizes.loc[reference]).all(axis=1),
            "norm": (whole["norm"] / whole.loc[reference, "norm"] - 1).abs() <= _WITHIN,
            "displacement": ((lengths - theirs).abs() <= _WITHIN * theirs).all(axis=1),
        }
        return pd.DataFrame(columns).loc[whole.index]

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw how far each condition moves the residual stream in the set's layers, as a share of the set."""
        lengths = self.table["displacement"].unstack("layer").loc[self.at().index]
        shares = (lengths / lengths.iloc[0]).loc[:, lengths.iloc[0] > 0]
        value = "joint displacement, share of the set's"
        return plots.matrix(shares.rename(columns=str), xlabel="layer", ylabel="", value=value, ax=ax)

    def _repr_html_(self) -> str:
        lines, matches = {}, self.matched().to_dict("index")
        for number, (name, row) in enumerate(self.at().to_dict("index").items()):
            both = [[column for column, same in matches[name].items() if same == wanted] for wanted in (True, False)]
            matched, unmatched = (", ".join(map(str, columns)) or "nothing" for columns in both)
            lines[str(name)] = f"mean norm {row['norm']:.4g}, displacement {row['displacement']:.4g}"
            lines[str(name)] += f"; matched in {matched}, not in {unmatched}" if number else ""
        return storage.html_card("Balance", lines)


def balance(
    model: Model,
    captured: Mapping[str, Activations],
    conditions: Mapping[str, Control],
    *,
    language: str | None = None,
    target: Sequence[str] | None = None,
    seeds: SupportsIndex = 3,
) -> Balance:
    """Compare a neuron set with its controls in everything that is not an effect.

    A control that is matched neuron by neuron in norm can still move the residual stream far less than the set, whose
    members push the same way.

    Args:
        model: the model that was captured.
        captured: language → capture; that of the set's language with `activations`, those with `post` are compared
            with the target.
        conditions: name → set, or function of the seed; first the set, then its controls from `tnkit.controls`.
        language, target: whose sentences were scored, and the languages of the target (default: what the set's
            provenance says).
        seeds: how many draws of each random control.

    Raises:
        TnkitError: where the first condition is no set, its language is not known or not captured, or the capture is of
            another model.

    >>> from tnkit.testing import captured, tiny_model
    >>> some = NeuronSet(((0, 5), (1, 2)), (4, 48))
    >>> found = balance(tiny_model(), {"it": captured()}, {"the set": some, "half": some[:1]}, language="it")
    >>> found.at()[["size", "shared"]].to_numpy().tolist(), found.table.loc[("half", 1), "displacement"].tolist()
    ([[2.0, 2.0], [1.0, 1.0]], 0.0)
    """
    reference = next(iter(conditions.values()), None)
    if not isinstance(reference, NeuronSet):
        raise TnkitError("the first condition must be the neuron set that the others are compared with")
    language = language or language_of(reference)
    if language is None or language not in captured:
        raise TnkitError(
            f"there is no capture of {language or 'the language of these neurons, which they do not name'}; there are "
            f"{', '.join(captured)}: name one of them with language="
        )
    states = captured[language]
    sets = {
        name: [NeuronSet(tuple(draw), draw.shape) for draw in drawn(control, seeds)]
        for name, control in conditions.items()
    }
    norms, moved = contribution_norms(model, states).double(), displacement(model, states, reference)
    layers = sorted({layer for draws in sets.values() for neurons in draws for layer, _ in neurons})
    described = {
        name: np.mean(
            [_described(draw, reference, norms, (displacement(model, states, draw), moved), layers) for draw in draws],
            axis=0,
        )
        for name, draws in sets.items()
    }
    return Balance(_table(described, layers), _target(captured, reference, target))


_COLUMNS = ("size", "norm", "displacement", "cosine", "shared")


def _described(
    neurons: NeuronSet,
    reference: NeuronSet,
    norms: Float64[Tensor, "layer neuron"],
    moved: tuple[Tensor, Tensor],
    layers: Sequence[int],
) -> Float64[np.ndarray, "row column"]:
    """A set's row of numbers for each layer, and for all together at the end."""
    rows = []
    for layer in (*layers, None):
        mine, theirs = ({pair for pair in some if layer is None or pair[0] == layer} for some in (neurons, reference))
        one, two = (vectors.sum(dim=0) if layer is None else vectors[layer] for vectors in moved)
        length = float(one.norm())
        cosine = float(torch.nn.functional.cosine_similarity(one, two, dim=0)) if length and two.any() else np.nan
        size = np.mean([float(norms[pair]) for pair in mine]) if mine else np.nan
        rows.append([len(mine), size, length, cosine, len(mine & theirs)])
    return np.array(rows)


def _table(described: Mapping[str, np.ndarray], layers: Sequence[int]) -> pd.DataFrame:
    index = pd.Index([*layers, "all"], name="layer", dtype=object)
    frames = {name: pd.DataFrame(rows, index=index, columns=list(_COLUMNS)) for name, rows in described.items()}
    return pd.concat(frames, names=["condition"])


def _target(
    captured: Mapping[str, Activations], neurons: NeuronSet, target: Sequence[str] | None
) -> pd.DataFrame | None:
    """`target_frame` in the layers of the set."""
    target = target_of(neurons) if target is None else tuple(target)
    states = {name: part for name, part in captured.items() if part.post is not None}
    if not target or not set(target) <= set(states):
        return None
    return target_frame(states, target).loc[list(neurons.by_layer())]
