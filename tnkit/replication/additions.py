"""The sections that the paper does not have: `EVIDENCE`, `STEERING`."""

from typing import Any

import pandas as pd

import tnkit as tn
from tnkit.errors import listed
from tnkit.replication.findings import Findings, Section
from tnkit.replication.study import KINDS, LAST, Study, Work
from tnkit.replication.words import name, number, overall, percent, verdict, within

_OWN = "This section is an addition to the paper, which has no values for it."
_ALWAYS = ("same layers and norms", "random direction", "towards the difference", "largest norm")
_OF_TYPE1 = ("uniform", "shuffled labels")  # these too; Type-2 takes long
_SETS, _DRAWS = 10, 2  # sets that are tried, about, and draws of each random selection
_STRENGTHS = (1.0, 2.0)
_RIVALS = ("same layers and norms", "DiffMean")
_OTHERS = ("de", "fr", "es", "pt", "zh")  # languages that an output may be in beside those of the study


def evidence(study: Study) -> Findings:
    """One set of each type beside rival selections, at zero and at the mean.

    >>> from tnkit.testing import studied
    >>> studied(evidence).tables["effects"].index.names
    FrozenList(['language', 'type', 'read', 'value', 'condition'])
    """
    frames, shared, figures, said = {}, {}, {}, []
    for language in study.languages[: study.sizes.studied]:
        for kind in KINDS:
            shown = tn.evidence(
                study.model, study.corpus, language=language, kind=kind, hub=study.hub, top=study.top,
                draws=min(study.sizes.draws, _DRAWS), read=study.sizes.read if kind == "type2" else None,
                selections=_selections(study, language, kind), **study.bar,
            )  # fmt: skip
            frames[language, kind] = shown.to_frame()
            shared[language, kind] = _table(shown)
            axes = shown.plot()
            tn.plots.titled(axes, f"{name(language)} {name(kind)}")
            figures[f"{language} {kind}"] = axes.figure
            said += _told_of_evidence(shown, study.hub)
    effects = pd.concat(frames, names=["language", "type"])
    return Findings(
        f"A set of {study.top} neurons and as many neurons chosen in other ways, each at zero and at its mean over the "
        "training sentences of the language. Type-1: mean-centred retrieval@1 of the test sentences at the layer where "
        f"the untouched model retrieves most training sentences; Type-2: nats per token of {study.sizes.read} test "
        "sentences, at every token. Intervals are 95 % bootstrap intervals over sentences and draws "
        f"({min(study.sizes.draws, _DRAWS)} of each random selection). `shared` counts the set's neurons in the "
        "selection.",
        tuple(said),
        {"effects": effects, "means": pd.concat(shared, names=["language", "type"])},
        figures,
        shown=("means",),
        published=_OWN,
    )


def _selections(study: Study, language: str, kind: str) -> list[str]:
    """The selections that these captures allow."""
    how: dict[str, Any] = {"language": language, "layers": study.candidates[kind]}
    rivals = tn.specificity.rivals_found(study.train, study.found[language, kind].neurons, **how)
    centred = ["centred score"] if len(study.train) > 2 else []
    return [*_ALWAYS, *(_OF_TYPE1 if kind == "type1" else ()), *centred, *rivals]


def _table(shown: tn.Evidence) -> pd.DataFrame:
    """Means and intervals of every selection at zero, and its mean at the language's mean."""
    zero = shown.at("zero")[["mean", "low", "high", "p sets"]]
    named = {"mean": "at zero", "low": "at zero low", "high": "at zero high"}
    columns = zero.rename(columns=named)
    if (shown.language, "own mean") in shown.comparisons:
        columns.insert(3, "at own mean", shown.at("own mean")["mean"])
    return columns.assign(shared=shown.balance.at()["shared"])


def _told_of_evidence(shown: tn.Evidence, hub: str) -> list[str]:
    of_type1 = shown.kind == "type1"
    form = percent if of_type1 else number
    zero = shown.at("zero")
    worse = -1 if of_type1 else 1
    lines = [
        f"{name(shown.language)} {name(shown.kind)}, {shown.measure}: {within(zero.loc['none'], form)} untouched, "
        f"{within(zero.loc['the set'], form)} with the set at zero. {verdict(zero, worse=worse)}"
    ]
    if (shown.language, "own mean") in shown.comparisons:
        own = shown.at("own mean")
        line = f"At its own mean the set leaves {within(own.loc['the set'], form)}. {verdict(own, worse=worse)}"
        if not of_type1:
            there = [f"{shown.comparisons[hub, value].at()['mean']['the set']:.2f} at {label}"
                     for value, label in (("zero", "zero"), ("own mean", "that mean"))]  # fmt: skip
            before = shown.comparisons[hub, "zero"].at()["mean"]["none"]
            line += f" On {name(hub)} sentences it leaves {listed(there)} ({before:.2f} untouched)."
        lines.append(line)
    return lines


def steering(study: Study) -> Findings:
    """What the model writes when it gets what Type-2 neurons add in a language.

    >>> from tnkit.testing import studied
    >>> studied(steering).tables["outputs by strength"].index.names
    FrozenList(['language', 'selection', 'strength'])
    """
    openings = tn.load_corpus("openings", [study.hub])["test"][study.hub][: study.sizes.prompts]
    texts = {language: study.corpus["train"][language] for language in (study.hub, *study.languages)}
    how: dict[str, Any] = {"strengths": _STRENGTHS, "selections": _RIVALS, "draws": 1, "cache": study.cache}
    how |= {"away": study.hub, "max_new_tokens": study.sizes.new_tokens, **study.bar}
    candidates = tuple(dict.fromkeys((study.hub, *study.languages, *_OTHERS)))
    steered = tn.steer(study.model, openings, study.sets("type2"), texts, candidates=candidates, **how)
    table = steered.to_frame()
    if len(table) < len(study.languages) * (1 + len(_STRENGTHS) * (1 + len(_RIVALS))):
        raise KeyboardInterrupt  # `steer` returns what it has when it is interrupted
    figures = {}
    effects = {language: steered.compared(language, _STRENGTHS[0]).at() for language in study.languages}
    for language in study.languages:
        axes = steered.plot(language)
        tn.plots.titled(axes, name(language))
        figures[f"{language} share"] = axes.figure
    columns = ["share", "share low", "share high", "relevance", "distinct", "perplexity", "score"]
    return Findings(
        f"{len(openings)} packaged prompts in {name(study.hub)} that leave the language of what follows open; "
        f"{study.sizes.new_tokens} new tokens, greedy. The {study.top} Type-2 neurons get strength × (their mean in "
        f"the language − their mean in {name(study.hub)}) at all tokens; beside them as many random neurons of the "
        "same layers and norms, and DiffMean, the difference of means of the state in the middle of the model. "
        "Measures: the share of outputs in the language (lingua), their relevance to the prompt (0.5 is chance), "
        "distinct tokens, perplexity under the untouched model, and the harmonic mean of share and relevance; 95 % "
        "bootstrap intervals over prompts. Strengths were fixed beforehand.",
        (
            overall("the share of outputs in the language", effects, worse=1),
            *(_told_of_steering(steered, language, effects[language]) for language in study.languages),
        ),
        {"outputs by strength": table, "means": table[columns], "outputs": steered.outputs},
        figures,
        shown=("means",),
        published=_OWN,
    )


def _told_of_steering(steered: tn.Steering, language: str, effects: pd.DataFrame) -> str:
    rows = steered.at(language, _STRENGTHS[0])
    shares = {selection: percent(row["share"]) for selection, row in rows.iterrows()}
    return (
        f"{name(language)} at strength {_STRENGTHS[0]:g}: the set brings it in {shares['the set']} of outputs "
        f"({shares['none']} untouched, relevance {number(rows.loc['the set', 'relevance'])}); "
        + listed(f"{rival} in {shares[rival]}" for rival in _RIVALS)
        + f". {verdict(effects, worse=1)}"
    )


def _comparing(study: Study) -> Work:
    languages, sizes = len(study.languages) + 1, study.sizes
    runs = 2 + _SETS
    type1 = sizes.sentences * (languages + 2 + 3 * runs * LAST)
    return Work(states=sizes.studied * (type1 + 2 * languages * sizes.sentences),
                predicted=sizes.studied * 2 * 3 * runs * sizes.read)  # fmt: skip


def _steering(study: Study) -> Work:
    sizes, settings = study.sizes, 1 + len(study.languages) * len(_STRENGTHS) * (1 + len(_RIVALS))
    outputs = settings * sizes.prompts
    return Work(2 * (len(study.languages) + 1) * sizes.sentences, outputs, outputs * sizes.new_tokens)


EVIDENCE = Section(
    "evidence",
    "The same sets beside every rival",
    "Does the effect belong to this set, and to its values?",
    evidence,
    _comparing,
    ("sentences", "top", "draws", "read", "studied"),
)
STEERING = Section(
    "steering",
    "Steering: from off to on",
    "Does putting in what Type-2 neurons add bring the language?",
    steering,
    _steering,
    ("sentences", "top", "prompts", "new_tokens"),
)
