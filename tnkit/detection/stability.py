"""How far a neuron set depends on its sentences: `stability`.

found.stability()                    # sets from halves of the sentences, at the same size, beside chance
found.stability(100)                 # of the 100 best
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from tnkit import statistics, storage
from tnkit.detection.ranking import check_size
from tnkit.detection.scores import NeuronScores
from tnkit.errors import TnkitError


@dataclass(frozen=True, eq=False)
class Stability:
    """How many neurons two sets share that were chosen from halves of the sentences.

    Attributes:
        n: neurons in each set.
        candidates: neurons in the layers that the sets are chosen from.
        shared: by both sets of each split into halves, int64.

    >>> print(Stability(300, 22528, np.array([288, 289, 290])))
    289 of 300 (288 to 290; by chance 4, 1 to 8)
    """

    n: int
    candidates: int
    shared: Int[np.ndarray, "split"]

    @property
    def mean(self) -> float:
        """The mean over the splits."""
        return float(self.shared.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The central 95 % of the splits; halves are smaller than the whole, so the set itself is more stable."""
        low, high = statistics.interval(self.shared.astype(float))
        return float(low), float(high)

    @property
    def chance(self) -> tuple[float, float, float]:
        """How many sets share that are drawn from the candidates at random: mean and central 95 % (hypergeometric).

        Where some neurons write far more than others, noise alone favours them, and its sets share more than this.
        """
        from scipy import stats

        drawn = stats.hypergeom(self.candidates, self.n, self.n)
        return float(drawn.mean()), float(drawn.ppf(0.025)), float(drawn.ppf(0.975))

    def to_frame(self) -> pd.DataFrame:
        """One row: size, candidates, mean and interval of the shared neurons, and the same by chance."""
        names = ["n", "candidates", "shared", "low", "high", "chance", "chance low", "chance high"]
        return pd.DataFrame([[self.n, self.candidates, self.mean, *self.interval, *self.chance]], columns=names)

    def __str__(self) -> str:
        shared, low, high, chance, least, most = (f"{value:.0f}" for value in (self.mean, *self.interval, *self.chance))
        return f"{shared} of {self.n} ({low} to {high}; by chance {chance}, {least} to {most})"

    def _repr_html_(self) -> str:
        return storage.html_card("Neurons that halves of the sentences share", dict(self.to_frame().iloc[0]))


def stability(scores: NeuronScores, n: SupportsIndex) -> Stability:
    """How many neurons the n best of one half of the sentences share with the n best of the other half.

    The scores keep sums over eight folds of the sentences (every eighth sentence is in the same). Each of the 35 splits
    of the folds into two halves gives two sets. The target is that of all sentences in both.

    Args:
        scores: of any sentences.
        n: neurons in a set, from all scored layers.

    Returns:
        `Stability`.

    Raises:
        TnkitError: for scores without folds, of one sentence, or for more neurons than were scored.

    >>> folds = torch.eye(2).repeat(4, 1).reshape(8, 1, 2)  # the neurons score in turn
    >>> bool(stability(NeuronScores(folds.sum(0).double(), "cosine", folds=folds), 1).mean < 1)
    True
    """
    if scores.folds is None:
        raise TnkitError(
            "these scores keep no sums over folds of the sentences, as those of a remote model, of stability=False or "
            "of an older tnkit; "
            "score two halves of the sentences and compare their sets"
        )
    layers = scores.layers
    there = ~scores.values[layers].isnan()
    n = check_size("n", n, layers, there.sum(dim=1).tolist())
    folds = scores.folds[:, there].double()
    folds = folds[folds.any(dim=1)]
    if len(folds) < 2:
        raise TnkitError("the scores of one sentence have no halves; score more sentences")
    splits = [*combinations(range(len(folds)), len(folds) // 2)]
    if len(folds) % 2 == 0:
        splits = splits[: len(splits) // 2]  # the others are the same with the halves swapped
    total, shared = folds.sum(dim=0), []
    for half in splits:
        first = folds[list(half)].sum(dim=0)
        chosen = torch.zeros(folds.shape[1], dtype=torch.bool)
        chosen[first.topk(n).indices] = True
        shared.append(int(chosen[(total - first).topk(n).indices].sum()))
    return Stability(n, int(there.sum()), np.array(shared))
