"""Score, attribution and exact effect of the same neurons, side by side: `beside`.

exact = tn.effects(model, test, scores, language="ja", layer=15, measure="centred_similarity")
tn.beside(exact, {"attribution": tn.attribution(model, test, language="ja", layer=15)}).correlation()
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.measures.attribution import Attribution
from tnkit.measures.effects import ALL, Effects
from tnkit.statistics import spearman


@dataclass(frozen=True, eq=False)
class Beside:
    """Scores, attributions and exact effects of the same neurons.

    Attributes:
        frame: `stratum`, `score`, each attribution and `drop`, indexed (layer, neuron).
    """

    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A copy of the frame."""
        return self.frame.copy()

    def correlation(self) -> pd.DataFrame:
        """Spearman's rank correlation of each pair of columns, in all strata together and in each.

        Returns:
            A frame indexed (stratum, pair): `spearman`, its 95 % percentile bootstrap interval over neurons, resampled
            within their strata, and the number of `neurons`.
        """
        columns, rows = [name for name in self.frame if name != "stratum"], {}
        for stratum in (ALL, *dict.fromkeys(self.frame["stratum"])):
            part = self.frame if stratum == ALL else self.frame[self.frame["stratum"] == stratum]
            for left, right in combinations(columns, 2):
                random = np.random.default_rng(0)
                value, low, high = spearman(part[[left, right]].to_numpy(), part["stratum"].tolist(), random)
                cells = {"spearman": value, "low": low, "high": high, "neurons": len(part)}
                rows[stratum, f"{left} and {right}"] = cells
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["stratum", "pair"])

    def _repr_html_(self) -> str:
        frame = self.correlation().loc[ALL]
        rows = {
            str(pair): f"{row['spearman']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            for pair, row in frame.iterrows()
        }
        return storage.html_card("Rank correlations", rows)


def beside(found: Effects, attributions: Mapping[str, Attribution]) -> Beside:
    """Set attributions beside the scores and exact effects of a sample of neurons.

    Args:
        found: from `tn.effects`.
        attributions: name → attribution of the same measure.

    Raises:
        TnkitError: for a neuron that an attribution lacks.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts, how = {"en": SENTENCES[:3], "it": SENTENCES[3:]}, {"language": "it", "layer": 3, "progress": False}
    >>> scores = tn.detect(tiny_model(), texts, language="it", top=5, progress=False).scores
    >>> exact = tn.effects(tiny_model(), texts, scores, measure="centred_similarity", each=4, **how)
    >>> both = beside(exact, {"gradient": tn.attribution(tiny_model(), texts, **how)})
    >>> list(both.to_frame())
    ['stratum', 'score', 'gradient', 'drop']
    """
    frame = found.to_frame()
    columns: dict[str, Any] = {"stratum": frame["stratum"], "score": frame["score"]}
    for name, one in attributions.items():
        values = [float(one.values[pair]) for pair in frame.index]
        if np.isnan(values).any():
            missing = frame.index[int(np.isnan(values).argmax())]
            raise TnkitError(f"{name} has no value for neuron {missing}; attribute its layer too")
        columns[name] = values
    return Beside(pd.DataFrame({**columns, "drop": frame["drop"]}, index=frame.index))
