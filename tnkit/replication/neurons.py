"""The sections on the neurons that are found: `DETECTION`, `SPECIFICITY`, `OVERLAP`."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

import tnkit as tn
from tnkit.errors import TnkitError, listed
from tnkit.replication import published
from tnkit.replication.findings import Findings, Section
from tnkit.replication.study import KINDS, Study, Work
from tnkit.replication.words import name, percent
from tnkit.statistics import mean_interval

_ABOVE, _P = (0.1, 0.25), 0.05  # correlation ratios and level, as in the paper
_LAPE = "{} LAPE"


def detection(study: Study) -> Findings:
    """Both types of every language: where they are, how they score, how stable they are.

    >>> from tnkit.testing import studied
    >>> studied(detection).tables["sets"].index.tolist()
    [('type1', 'it'), ('type1', 'ja'), ('type2', 'it'), ('type2', 'ja')]
    """
    keys = [(kind, language) for kind in KINDS for language in study.languages]
    found = {(kind, language): study.found[language, kind] for kind, language in keys}
    table = pd.DataFrame({key: _described(each) for key, each in found.items()}).T.rename_axis(["type", "language"])
    first = study.languages[0]
    figures: dict[str, Any] = {
        "scores": tn.Detection.plot_all([found[kind, first] for kind in KINDS], title=name(first))
    }
    for language in study.languages:
        sets = {kind: found[kind, language].neurons for kind in KINDS}
        axes = tn.plots.neurons_by_layer(sets, n_layers=study.model.n_layers, title=name(language))
        figures[f"{language} layers"] = axes.figure
    layers = [f"{name(kind)}, layers {min(each)} to {max(each)}" for kind, each in study.candidates.items()]
    near = table["cosine with the rival"]
    return Findings(
        "The score of the paper: how much nearer a neuron's contribution brings the state at the last token to the "
        f"shared centroid ({layers[0]}) or to the language's own ({layers[1]}), by cosine, mean over "
        f"{len(study.corpus['train'][study.hub])} training sentences; the {study.top} highest of each type. `shared`: "
        "how many neurons the sets of two random halves of the sentences share (95 % of the splits: `low` to `high`), "
        "and `chance`: as many as random sets do. The rival is the target of the other type, in the same layers.",
        (
            f"Two halves of the sentences share {table['shared'].min():.0f} to {table['shared'].max():.0f} of "
            f"{study.top} neurons, and random sets {table['chance'].max():.0f} at most.",
            f"The target and its rival have a cosine of {near.min():.3f} to {near.max():.3f} (mean over layers): where "
            "it is near 1, a score towards the rival chooses nearly the same neurons.",
        ),
        {
            "sets": table,
            "neurons": pd.concat({key: each.to_frame() for key, each in found.items()}, names=["type", "language"]),
        },
        figures,
        shown=("sets",),
    )


def _described(found: tn.Detection) -> dict[str, Any]:
    halves = found.stability().to_frame().iloc[0][["shared", "low", "high", "chance"]]
    scores = {"highest score": found.neurons.scores[0], "lowest score": found.neurons.scores[-1]}
    about = {"neurons": len(found.neurons), "median layer": float(np.median([layer for layer, _ in found.neurons]))}
    return {**about, **scores, **halves, "cosine with the rival": found.target()["cosine with the rival"].mean()}


def specificity(study: Study) -> Findings:
    """Correlation ratios of both types with the language, and shares above 0.1 and 0.25.

    >>> from tnkit.testing import studied
    >>> bool(studied(specificity).tables["shares"].loc[("type1", 0.1, "it"), "set"] <= 1)
    True
    """
    states = study.captured("test")
    rows, figures = {}, {}
    for language in study.languages:
        ratio = tn.specificity.correlation_ratio(states, language=language)
        figure, grid = tn.plots.panels(len(KINDS), width=5.2, height=3.4, title=name(language))
        for kind, axes in zip(KINDS, grid, strict=True):
            neurons = study.found[language, kind].neurons
            tn.plots.titled(ratio.plot(axes, neurons), name(kind))
            at = tuple(np.array(neurons.pairs).T)
            shares: Any = ratio.shares(neurons, _ABOVE, alpha=_P)
            for above in _ABOVE:
                passed = (ratio.eta2[at] >= above) & (ratio.p[at] < _P)
                low, high = mean_interval(passed.astype(np.float64))
                of_test = shares.loc[(above, f"p < {_P:g}")][["set", "layer-matched"]]
                rows[kind, above, language] = {**of_test, "low": low, "high": high}
        figures[f"{language} ratios"] = figure
    order = [(kind, above, language) for kind in KINDS for above in _ABOVE for language in study.languages]
    frame = pd.DataFrame({key: rows[key] for key in order}).T[["set", "low", "high", "layer-matched"]]
    table = published.beside(frame.rename_axis(["type", "eta2 above", "language"]))
    return Findings(
        "η² of each neuron's activation with the language of the sentence (one language against the rest), at the last "
        f"token of {len(states[study.hub])} test sentences of each of {len(states)} languages: the share of the set "
        f"with η² at or above the threshold and p < {_P:g}. Intervals are 95 % bootstrap intervals over the neurons of "
        "the set. The control is a random set with as many neurons in each layer (its expected share).",
        (*_told_of_shares(table), _told_of_types(table)),
        {"shares": table},
        figures,
        shown=("shares",),
        published=published.SOURCE,
    )


def _told_of_shares(table: Any) -> list[str]:
    lines = []
    for kind in KINDS:
        rows = table.loc[(kind, _ABOVE[0])]
        shares = [f"{percent(row['set'])} in {name(str(language))} (control {percent(row['layer-matched'])})"
                  for language, row in rows.iterrows()]  # fmt: skip
        above = [name(str(language)) for language, row in rows.iterrows() if row["low"] > row["layer-matched"]]
        told = f"{name(kind)} neurons with η² of at least {_ABOVE[0]:g}: {listed(shares)}."
        lines.append(f"{told} The share is above the control's, beyond its interval, in {listed(above)}.")
    return lines


def _told_of_types(table: Any) -> str:
    type1, type2 = (table.loc[(kind, _ABOVE[0])]["set"] for kind in KINDS)
    more = [name(str(language)) for language in type1.index if type2[language] > type1[language]]
    return (
        "In the paper, more Type-2 than Type-1 neurons follow the language in every language and model, but for the "
        f"value of Italian that is printed as 0.69; here in {listed(more)}."
    )


def overlap(study: Study) -> Findings:
    """How many neurons the sets of two languages share, and the sets of each language with LAPE.

    >>> from tnkit.testing import studied
    >>> float(studied(overlap).tables["pairs"].loc[("type1", "it", "ja"), "first size"])
    9.0
    """
    specific, missing = _of_lape(study)
    pairs = [*combinations(study.languages, 2), *((language, _LAPE.format(language)) for language in study.languages)]
    tables, figures, said = {}, {}, []
    for kind, layers in study.candidates.items():
        named = study.sets(kind) | {_LAPE.format(key): _inside(neurons, layers) for key, neurons in specific.items()}
        named = {key: neurons for key, neurons in named.items() if len(neurons)}
        if len(named) < 2:
            raise TnkitError("one language has nothing that its neurons could overlap with; study two or more")
        nulls = {language: study.controls(language, kind)["random direction"] for language in study.languages}
        overlaps = tn.specificity.overlaps(named, layers=layers, nulls=nulls, seeds=study.sizes.draws)
        tables[kind], figures[name(kind)] = overlaps.to_frame().astype(float), overlaps.plot().figure
        said += _told_of_pairs(
            kind, tables[kind].loc[[pair for pair in pairs if pair in tables[kind].index]], study.top
        )
    table: Any = pd.concat(tables, names=["type"])
    shown = [(kind, *pair) for kind in KINDS for pair in pairs if (kind, *pair) in table.index]
    columns = ["first size", "second size", "both", "expected in layers", "expected of nulls", "p of nulls"]
    return Findings(
        "How many neurons two sets have in common (`both`). `expected in layers`: as many as random sets with the same "
        "number in each layer. `expected of nulls`: as many as with sets that the same score chose towards a random "
        f"direction ({study.sizes.draws} draws), which is the overlap that the method makes by itself. LAPE: neurons "
        "of lowest entropy over languages (Tang et al., 2024), over all tokens of the training sentences.",
        (*said, *missing),
        {"pairs": table, "compared": table.loc[shown, columns]},
        figures,
        shown=("compared",),
    )


def _of_lape(study: Study) -> tuple[dict[str, tn.NeuronSet], list[str]]:
    """The language-specific neurons of each language, or why there are none."""
    try:
        neurons = tn.specificity.lape_of_tokens(study.model, study.corpus["train"], **study.bar).neurons
    except TnkitError as error:
        return {}, [f"LAPE is left out: {error}"]
    return {language: neurons[language] for language in study.languages}, []


def _inside(neurons: tn.NeuronSet, layers: Sequence[int]) -> tn.NeuronSet:
    """The neurons of a set that are in some layers."""
    pairs = tuple((layer, neuron) for layer, neuron in neurons if layer in layers)
    return tn.NeuronSet(pairs, neurons.shape, provenance=neurons.provenance)


def _told_of_pairs(kind: str, rows: pd.DataFrame, top: int) -> list[str]:
    specific = rows.index.get_level_values("second").str.endswith(_LAPE.format(""))
    lines = []
    for of_lape, between in ((False, "two languages"), (True, "a language and its LAPE neurons")):
        these = rows[specific == of_lape]
        if len(these):
            both, chance, nulls = (these[column] for column in ("both", "expected in layers", "expected of nulls"))
            above = int((both > nulls).sum())
            lines.append(
                f"{name(kind)} sets of {top}, {between}: {both.min():.0f} to {both.max():.0f} neurons in common, "
                f"{chance.mean():.0f} by chance, {nulls.mean():.0f} with sets towards a random direction; more than "
                f"with these in {above} of {len(these)} pairs."
            )
    return lines


DETECTION = Section(
    "detection",
    "Transfer neurons of both types",
    "Which neurons move a language's states towards the shared space, and which towards its own?",
    detection,
    lambda study: Work(states=study.each),
    ("sentences", "top"),
)
SPECIFICITY = Section(
    "specificity",
    "What the neurons answer to",
    "Does a transfer neuron's activation tell the language of the sentence?",
    specificity,
    lambda _: Work(),  # everything was captured before
    ("sentences", "top"),
)
OVERLAP = Section(
    "overlap",
    "Overlap between languages, and with LAPE",
    "Does each language have neurons of its own, and are they the language-specific ones of other methods?",
    overlap,
    lambda study: Work(states=study.each),
    ("sentences", "top", "draws"),
)
