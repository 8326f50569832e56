"""What a model writes while it is steered towards languages, by selection and strength: `Steering`.

steered = tn.steer(model, openings["en"], {"ja": type2_ja, "it": type2_it}, train)
steered.to_frame()                       # share in the language, pass rates, relevance, perplexity, score
steered.plot("ja"), steered.compared("ja", 2).at()
steered.outputs                          # every text
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import pandas as pd
from jaxtyping import Float

from tnkit import plots, storage
from tnkit.errors import TnkitError, one_of
from tnkit.interventions.comparison import NONE, SET, Comparison
from tnkit.provenance import stated
from tnkit.statistics import interval, resamples

INDEX = ("language", "selection", "strength", "draw", "prompt")
# measure → its column of `outputs`, and that of the weights of its mean
_MEANS = {
    "share": ("in language", None),
    "lines": ("lines pass", None),
    "words": ("words pass", None),
    "relevance": ("relevance", None),
    "distinct": ("distinct", None),
    "nats": ("nats", "tokens"),
}
MEASURES = {
    "share": "share of outputs in the language",
    "lines": "line pass rate",
    "words": "word pass rate",
    "relevance": "relevance (0.5 is chance)",
    "distinct": "distinct tokens, share",
    "perplexity": "perplexity of the output, untouched model",
    "score": "harmonic mean of share and relevance",
}
_KIND = "steering"


@dataclass(frozen=True, eq=False)
class Steering:
    """What a model writes while it is steered.

    Attributes:
        prompts: what it was given.
        outputs: one row for each output, indexed (language, selection, strength, draw, prompt): `text`, its language
            (`spoken`), `in language` (1 or 0), `lines pass` and `words pass` (1 or 0; NaN where the text does not
            count), `relevance`, `distinct` (distinct tokens / tokens), `nats` per token under the untouched model, and
            `tokens` that these are the mean of. The selection "none" is the
            untouched model, at strength 0; "the set" are the neurons that were asked for.
        provenance: model, prompts, sets, texts, parameters, versions.
    """

    prompts: tuple[str, ...]
    outputs: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the model was steered towards."""
        return tuple(dict.fromkeys(self.outputs.index.get_level_values("language")))

    def to_frame(self) -> pd.DataFrame:
        """Means with 95 % bootstrap intervals over prompts and draws, indexed (language, selection, strength).

        - `share`: of all outputs, how many are in the language.
        - `lines`, `words`: line- and word-level pass rates, as `tn.behaviour.pass_rates` defines them; `words` is NaN
          for languages in Latin script.
        - `relevance`: as in `tn.behaviour.relevance`; 0.5 is chance.
        - `distinct`: distinct tokens / tokens of an output. A model that repeats itself has a low perplexity.
        - `perplexity`: of the outputs, each read by itself, under the untouched model: exp(nats per token).
        - `score`: 2 s r / (s + r), the harmonic mean of the share s and of r = max(0, 2 · relevance - 1), so that
          chance is 0. CLaS-Bench (arXiv 2601.08331) takes the same mean, with a relevance that a language model judges.
        - `outputs` and `draws`: how many.
        """
        rows = {}
        for key, cell in self.outputs.groupby(level=list(INDEX[:3]), sort=False):
            columns: dict[str, Any] = {}
            for measure, (mean, resampled) in _measured(cell).items():
                bounds = interval(resampled) if np.isfinite(resampled).all() else (math.nan, math.nan)
                columns[measure], columns[f"{measure} low"], columns[f"{measure} high"] = mean, *map(float, bounds)
            draws = cell.index.get_level_values("draw").nunique()
            rows[key] = {**columns, "outputs": len(cell), "draws": draws}
        index = pd.MultiIndex.from_tuples(rows, names=INDEX[:3])
        return pd.DataFrame([*rows.values()], index=index)

    def at(self, language: str, strength: SupportsFloat | None = None) -> pd.DataFrame:
        """The rows of a language, indexed (selection, strength), or of one strength and the untouched model.

        Raises:
            TnkitError: for a language or strength that was not tried.
        """
        one_of("language", language, self.languages)
        rows = self.to_frame().loc[[language]].droplevel("language")
        if strength is None:
            return rows
        level = rows.index.get_level_values("strength")
        if strength not in level:
            raise TnkitError(f"strength={strength} was not tried; tried are {', '.join(map(str, sorted({*level})))}")
        here = (level == strength) | (rows.index.get_level_values("selection") == NONE)
        return rows[here].droplevel("strength")

    def best(self, measure: str = "score") -> pd.DataFrame:
        """The strength at which each selection does best, indexed (language, selection).

        The strength is chosen on the outputs that it is reported on, so these numbers flatter every selection alike;
        choose it on other prompts for a claim.

        Raises:
            TnkitError: for a measure other than "share", "lines", "relevance" and "score".
        """
        one_of("measure", measure, ("share", "lines", "relevance", "score"))
        frame = self.to_frame().reset_index("strength")
        best = frame[measure].fillna(-1).groupby(level=["language", "selection"], sort=False)
        return frame[best.rank(method="first", ascending=False) == 1]

    def compared(self, language: str, strength: SupportsFloat) -> Comparison:
        """How many outputs are in a language, with the set and each control, at one strength.

        Raises:
            TnkitError: for a language or a strength that was not tried.
        """
        self.at(language, strength)
        spoken = self.outputs["in language"].loc[language]
        names = dict.fromkeys(spoken.index.get_level_values("selection"))
        tables = {name: spoken.loc[name].unstack("prompt") for name in names}
        untouched, level = tables.pop(NONE).to_numpy(float), float(strength)
        draws = {name: rows.loc[level].to_numpy(float) for name, rows in tables.items() if level in rows.index}
        own = draws.pop(SET)
        controls = {name: values[:, None] for name, values in draws.items()}
        return Comparison(f"outputs in {language}, strength {float(strength):g}", (0,), untouched, own, controls)

    def plot(
        self, language: str | None = None, measure: str = "share", *, ax: "plots.Axes | None" = None
    ) -> "plots.Axes":
        """Draw one measure of each selection by strength, with its interval as a band and the untouched model dashed.

        Args:
            language: which (default: the first).
            measure: a column of `to_frame`.
            ax: where to draw (default: a new figure).

        Raises:
            TnkitError: for a language that was not tried, or another measure.
        """
        language = self.languages[0] if language is None else language
        one_of("measure", measure, tuple(MEASURES))
        rows = self.at(language)
        frame = rows[[measure, f"{measure} low", f"{measure} high"]].set_axis(["mean", "low", "high"], axis=1)
        frame = frame.swaplevel().rename_axis(index=["dose", "condition"])
        title = f"towards {plots.language_name(language)}"
        how = {"xlabel": self.provenance.get("amount", "strength"), "ylabel": MEASURES[measure], "title": title}
        return plots.conditions_by_dose(frame, **how, ax=ax)

    def save(self, path: str | Path) -> Path:
        """Write a .json file.

        >>> import tempfile
        >>> from tnkit.testing import steered
        >>> loaded = Steering.load(steered().save(tempfile.mkdtemp() + "/steering.json"))
        >>> loaded.outputs.equals(steered().outputs), loaded.prompts == steered().prompts
        (True, True)
        """
        table = self.outputs.reset_index().astype(object)
        columns = {name: column.where(column.notna(), None).tolist() for name, column in table.items()}
        content = {"prompts": list(self.prompts), "outputs": columns, "provenance": self.provenance}
        return storage.save_json(path, _KIND, content)

    @classmethod
    def load(cls, path: str | Path) -> "Steering":
        """Read what `save` wrote.

        Raises:
            TnkitError: for a missing or damaged file, or one of another kind.
        """
        content = storage.load_json(path, _KIND)
        try:
            table = pd.DataFrame(content["outputs"])
            spoken = table["spoken"].astype(object)
            numbers = set(table) - {"language", "selection", "draw", "prompt", "text", "spoken"}
            table = table.astype(dict.fromkeys(numbers, float) | {"draw": int, "prompt": int}).set_index([*INDEX])
            prompts = tuple(content["prompts"])
        except (KeyError, TypeError, ValueError) as error:
            raise TnkitError(f"{path} holds no outputs laid out as tnkit writes them; make it again") from error
        return cls(prompts, table.assign(spoken=spoken.where(spoken.notna(), None).array), stated(path, content))

    def _repr_html_(self) -> str:
        rows: dict[str, Any] = {"prompts": len(self.prompts)}
        best = self.best("share")
        for language, untouched in best["share"].xs(NONE, level="selection").items():
            share = best["share"].get((language, SET), math.nan)
            rows[f"outputs in {language}"] = f"{untouched:.0%} untouched, at most {share:.0%} with the set"
        return storage.html_card("Steering", rows)


def _measured(cell: pd.DataFrame) -> dict[str, tuple[float, Float[np.ndarray, "resample"]]]:
    """Each measure of one selection at one strength: its value, and resampled over prompts and draws."""
    random = np.random.default_rng(0)
    draws, prompts = (cell.index.get_level_values(level).nunique() for level in ("draw", "prompt"))
    weights = resamples(prompts, random), resamples(draws, random)
    means = {name: _mean(cell, column, by, weights) for name, (column, by) in _MEANS.items()}
    nats, spread = means.pop("nats")
    means["perplexity"] = math.exp(min(nats, 700.0)), np.exp(spread.clip(max=700))
    share, relevance = means["share"], means["relevance"]
    scores = [_harmonic(*pair) for pair in zip(share, relevance, strict=True)]
    return means | {"score": (float(scores[0]), scores[1])}


def _mean(
    cell: pd.DataFrame, column: str, by: str | None, weights: tuple[np.ndarray, np.ndarray]
) -> tuple[float, Float[np.ndarray, "resample"]]:
    """The weighted mean of what counts, NaN where nothing does; in resamples without any, the mean itself."""
    values = cell[column].unstack("prompt").to_numpy(float)
    counted = np.isfinite(values) * (1.0 if by is None else cell[by].unstack("prompt").to_numpy(float))
    over_prompts, over_draws = weights

    def total(numbers: np.ndarray) -> Float[np.ndarray, "resample"]:
        return ((over_prompts @ numbers.T) * over_draws).sum(axis=1)

    amounts, sizes = np.nan_to_num(values) * counted, total(counted)
    mean = float(amounts.sum() / counted.sum()) if counted.any() else math.nan
    return mean, np.divide(total(amounts), sizes, out=np.full(len(sizes), mean), where=sizes > 0)


def _harmonic(share: Any, relevance: Any) -> Any:
    """2 s r / (s + r) with r = max(0, 2 · relevance - 1); 0 where both are 0, or nothing has a relevance."""
    beyond = np.maximum(0.0, 2 * np.nan_to_num(relevance, nan=0.5) - 1)
    both = share + beyond
    return np.divide(2 * share * beyond, both, out=np.zeros_like(both), where=both > 0)
