"""Perplexity of several languages with each of several neuron sets off."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import SupportsIndex

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.errors import TnkitError
from tnkit.interventions.comparison import NONE
from tnkit.interventions.together import Given, Neurons, neurons_of
from tnkit.measures.behaviour.likelihood import Perplexity, perplexity_of
from tnkit.measures.behaviour.losses import Head, Losses
from tnkit.models.model import Model, hashed_at_ends
from tnkit.statistics import interval, resamples


@dataclass(frozen=True, eq=False)
class PerplexityMatrix:
    """Perplexity by which neurons are off (rows) and which language is read (columns).

    The diagonal shows whether a language's neurons serve that language alone.

    Attributes:
        values: each (set, language); the sets begin with "none".
        sets: what was switched off.
    """

    values: dict[tuple[str, str], Perplexity]
    sets: dict[str, Neurons]

    @property
    def languages(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(dict.fromkeys(language for _, language in self.values))

    def to_frame(self) -> pd.DataFrame:
        """Indexed (off, read): perplexity, nats per token over all tokens, and their change.

        `change` = (nats per token with the set off) / (with none off) - 1, positive is worse; `low` and `high` are its
        95 % bootstrap interval over sentences, resampled together with and without (NaN for one sentence). All three
        are NaN where the untouched model is certain of every token. `own` marks a set of the language's name.
        """
        rows = []
        for (off, language), result in self.values.items():
            change, low, high = _change(self.values[NONE, language], result)
            numbers = {
                "perplexity": result.value,
                "nats per token": result.nats,
                "change": change,
                "low": low,
                "high": high,
            }
            rows.append(numbers | {"own": off == language, "tokens": int(result.tokens.sum())})
        return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(self.values, names=["off", "read"]))

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw perplexities as a heat map, coloured by change, with cells of a language's own set framed."""
        return plots.perplexities(self.to_frame(), ax=ax)

    def _repr_html_(self) -> str:
        rows: dict[str, list[str]] = {}
        for (off, language), result in self.values.items():
            rows.setdefault(f"{off} off", []).append(f"{language} {result.value:.4g}")
        return storage.html_card("Perplexity", rows)


def perplexity_matrix(
    model: Model,
    sentences: Mapping[str, Sequence[str]],
    sets: Mapping[str, Given],
    *,
    tokens: str = "all",
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> PerplexityMatrix:
    """The perplexity of several languages with nothing off and with each of several neuron sets off.

    Neurons that serve one language alone raise its perplexity and no other's: name each set by its language, and the
    diagonal shows it. Add controls as sets of their own.

    Args:
        model: from `load_model`.
        sentences: language → sentences, such as `corpus["test"]`; they need not be parallel.
        sets: name → neurons, or an `Intervention`.
        tokens, batch_tokens, progress: as in `perplexity`.

    Raises:
        TnkitError: as `perplexity` does, and for no languages, no sets, or a set named "none".

    >>> from tnkit.testing import tiny_model
    >>> found = perplexity_matrix(tiny_model(), {"en": ["Hi!"], "it": ["Ciao!"]}, {"it": [(1, 7)]}, progress=False)
    >>> found.to_frame()["own"].tolist()
    [False, False, False, True]
    """
    if not sentences or not sets or NONE in sets:
        raise TnkitError(f'expected languages ({list(sentences)}) and sets ({list(sets)}), none of them named "{NONE}"')
    named = {name: neurons_of(model, off) for name, off in sets.items()}
    cells = [(off, language) for off in (NONE, *named) for language in sentences]
    head = Head(model)
    losses = {name: Losses(model, texts, batch_tokens=batch_tokens, head=head) for name, texts in sentences.items()}

    def cell(off: str, language: str) -> Perplexity:
        return perplexity_of(losses[language], neurons=named.get(off, ()), tokens=tokens, progress=False)

    work = hashed_at_ends(model, starmap(cell, cells))
    bar = tqdm(work, total=len(cells), unit=" cells", desc="perplexity", disable=not progress, leave=False)
    return PerplexityMatrix(dict(zip(cells, [*bar], strict=True)), named)


def _change(before: Perplexity, after: Perplexity) -> tuple[float, float, float]:
    """The relative change of nats per token, and its bootstrap interval over sentences."""
    totals = np.stack([before.nll * before.tokens, after.nll * after.tokens])
    sentences = len(before.nll)
    if not totals[0].all():
        return (math.nan,) * 3
    change = float(totals[1].sum() / totals[0].sum() - 1)
    if sentences == 1:
        return change, math.nan, math.nan
    resampled = totals @ resamples(sentences).T
    low, high = interval(resampled[1] / resampled[0] - 1)
    return change, float(low), float(high)
