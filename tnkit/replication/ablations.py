"""The sections on what changes when neurons are switched off: `SIMILARITY`, `PERPLEXITY`, `QUESTIONS`."""

from pathlib import Path
from typing import Any

import pandas as pd

import tnkit as tn
from tnkit.errors import listed
from tnkit.replication.findings import Findings, Section
from tnkit.replication.study import LAST, MATCHED, Study, Work
from tnkit.replication.tasks import mkqa
from tnkit.replication.words import name, number, overall, percent, verdict, within

_SHOWN = ["mean", "low", "high", "effect", "effect low", "effect high", "p sentences", "p sets", "seeds"]
_FEW, _DRAWS = ("same layers and norms", "random direction"), 2  # controls of what takes long, and their draws at most


def similarity(study: Study) -> Findings:
    """Cosine with the translation, and retrieval of it, with Type-1 neurons off beside controls.

    >>> from tnkit.testing import studied
    >>> studied(similarity).tables["retrieval"].loc["it"].index.tolist()[:3]
    ['none', 'the set', 'uniform']
    """
    at_layer: dict[str, dict[str, pd.DataFrame]] = {"similarity": {}, "retrieval": {}}
    by_layer: dict[str, dict[str, pd.DataFrame]] = {"similarity": {}, "retrieval": {}}
    figures, said = {}, []
    for language in study.languages:
        how: dict[str, Any] = {"language": language, "hub": study.hub, "seeds": study.sizes.draws, **study.bar}
        how |= {"controls": study.controls(language, "type1"), "chosen_layer": study.layer(language)}
        for measure, rows in at_layer.items():
            neurons = study.found[language, "type1"].neurons
            effect = tn.ablate(
                study.model, study.corpus["test"], neurons, measure=measure, chosen_on="training sentences", **how
            )
            rows[language] = effect.at()[_SHOWN].assign(layer=how["chosen_layer"])
            by_layer[measure][language] = effect.to_frame()
            axes = effect.plot()
            tn.plots.titled(axes, name(language)).set_ylabel(effect.measure.partition(",")[0])
            figures[f"{language} {measure}"] = axes.figure
        said.append(_told_of_translations(language, at_layer["retrieval"][language], percent, "retrieval"))
        said.append(_told_of_translations(language, at_layer["similarity"][language], number, "cosine"))
    tables = {measure: pd.concat(rows, names=["language"]) for measure, rows in at_layer.items()}
    tables |= {f"{measure} by layer": pd.concat(rows, names=["language"]) for measure, rows in by_layer.items()}
    return Findings(
        f"The {study.top} Type-1 neurons of a language at zero, at the last token of "
        f"{len(study.corpus['test'][study.hub])} test sentences in that language; {name(study.hub)} is left as it is. "
        "The paper's measure is the cosine of translations; mean-centred retrieval@1 (is the nearest sentence the "
        "translation?) is stricter. The layer is the one where the untouched model retrieves most training sentences. "
        f"Controls: {listed(MATCHED)} ({study.sizes.draws} draws each); the last are chosen as the set is, but towards "
        "a direction that knows nothing of languages. Intervals are 95 % bootstrap intervals over sentences and draws.",
        (overall("retrieval", at_layer["retrieval"], worse=-1), *said),
        tables,
        figures,
        shown=("similarity", "retrieval"),
    )


def _told_of_translations(language: str, rows: pd.DataFrame, shown: Any, measure: str) -> str:
    return (
        f"{name(language)}, layer {rows['layer'].iloc[0]}, {measure}: {within(rows.loc['none'], shown)} untouched, "
        f"{within(rows.loc['the set'], shown)} with Type-1 off, {within(rows.loc['random direction'], shown)} with "
        f"sets towards a random direction off. {verdict(rows, worse=-1)}"
    )


def perplexity(study: Study) -> Findings:
    """Perplexity of every language with every language's Type-2 neurons off, and of its own beside controls.

    >>> from tnkit.testing import studied
    >>> bool(studied(perplexity).tables["matrix"].loc[("it", "it"), "own"])
    True
    """
    texts = {language: sentences[: study.sizes.read] for language, sentences in study.corpus["test"].items()}
    matrix = tn.behaviour.perplexity_matrix(study.model, texts, study.sets("type2"), **study.bar)
    figures, rows, draws = {"matrix": matrix.plot().figure}, {}, min(study.sizes.draws, _DRAWS)
    for language, neurons in study.sets("type2").items():
        how: dict[str, Any] = {"measure": "perplexity", "tokens": "all", "seeds": draws, **study.bar}
        how |= {"controls": study.controls(language, "type2", _FEW), "language": language}
        effect = tn.ablate(study.model, texts, neurons, **how)
        rows[language] = effect.at()[_SHOWN]
        axes = effect.plot_at()
        tn.plots.titled(axes, name(language)).set_xlabel("nats per token")
        figures[f"{language} controls"] = axes.figure
    table = matrix.to_frame()
    return Findings(
        f"The {study.top} Type-2 neurons of a language at zero, at every token of {len(texts[study.hub])} test "
        "sentences of each language: nats per token over all tokens, and its relative change. A set that serves its "
        f"language alone changes the diagonal. Controls: {listed(_FEW)} ({draws} draws each). Intervals are 95 % "
        "bootstrap intervals over sentences and draws.",
        (
            overall("nats per token", rows, worse=1),
            *(_told_of_nats(language, table.loc[language]["change"], rows[language]) for language in study.languages),
        ),
        {"matrix": table, "controls": pd.concat(rows, names=["language"])},
        figures,
        shown=("controls",),
    )


def _told_of_nats(language: str, changes: "pd.Series", rows: pd.DataFrame) -> str:
    others = [f"{change:+.0%} in {name(str(other))}" for other, change in changes.items() if other != language]
    return (
        f"{name(language)}: with its Type-2 neurons off, nats per token change by {changes[language]:+.0%} in "
        f"{name(language)}, {listed(others)}. On {name(language)}: {number(rows.loc['none', 'mean'])} nats untouched, "
        f"{number(rows.loc['the set', 'mean'])} with the set off, {number(rows.loc['random direction', 'mean'])} with "
        f"sets towards a random direction off. {verdict(rows, worse=1)}"
    )


def questions(study: Study) -> Findings:
    """Answers to questions in each language with Type-2 and with Type-1 neurons off, beside controls.

    >>> from tnkit.testing import studied
    >>> studied(questions, "bloom").tables["F1"].loc["it"].index.tolist()
    ['none', 'the set', 'Type-1', 'same layers and norms', 'random direction']
    """
    rows, answers, figures, said = {}, {}, {}, []
    count = study.sizes.questions
    for language, neurons in study.sets("type2").items():
        asked, accepted, form = _asked(study, language)
        controls = {"Type-1": study.found[language, "type1"].neurons, **study.controls(language, "type2", _FEW)}
        how: dict[str, Any] = {"language": language, "seeds": 1, "tokens": "prompt", **form, **study.bar}
        answered = tn.behaviour.answer_questions(
            study.model, asked[:count], accepted[:count], neurons=neurons, controls=controls, **how
        )
        effect = answered.compared("F1")
        rows[language], answers[language] = (
            effect.at()[_SHOWN],
            answered.by_condition().rename_axis(["off", "seed", "number"]),
        )
        axes = effect.plot_at()
        tn.plots.titled(axes, name(language)).set_xlabel("F1, mean over questions")
        figures[f"{language} F1"] = axes.figure
        none, type2, type1 = (within(rows[language].loc[key]) for key in ("none", "the set", "Type-1"))
        told = f"{name(language)}: F1 is {none} untouched, {type2} with Type-2 off and {type1} with Type-1 off."
        said.append(f"{told} Of Type-2: {verdict(rows[language], worse=-1)}")
    source = (
        f"the first of {Path(study.mkqa).name}"
        if study.mkqa
        else "packaged: which word completes a sentence that describes a thing (MKQA's file was not given)"
    )
    return Findings(
        f"{count} questions in each language at most, {source}. Greedy answers, scored by token F1 as in MKQA; neurons "
        "are at zero at all tokens of the prompt and not at those of the answer, as in the paper. Controls of Type-2: "
        f"{listed(_FEW)} (one draw each). Intervals are 95 % bootstrap intervals over questions.",
        (overall("F1", rows, worse=-1), *said),
        {"F1": pd.concat(rows, names=["language"]), "answers": pd.concat(answers, names=["language"])},
        figures,
        shown=("F1",),
    )


def _asked(study: Study, language: str) -> tuple[list[str], list[list[Any]], dict[str, Any]]:
    """Questions, accepted answers, and how they are asked."""
    if study.mkqa is not None:
        return *mkqa(study.mkqa, language, study.sizes.questions), {}
    concepts = tn.load_concepts()
    form = {"template": "{question}{answer}", "keep_space": True, "stop": '"', "max_new_tokens": 8}
    return concepts.clozes(language), [[word] for word in concepts.words[language]], form


def _switching(study: Study) -> Work:
    sets = 2 + len(MATCHED) * study.sizes.draws
    return Work(states=2 * len(study.languages) * study.sizes.sentences * (2 + sets * LAST))


def _predicting(study: Study) -> Work:
    sets, draws = len(study.languages), min(study.sizes.draws, _DRAWS)
    return Work(predicted=study.sizes.read * ((sets + 1) ** 2 + sets * (2 + 2 * draws)))


def _answering(study: Study) -> Work:
    prompts = len(study.languages) * study.sizes.questions * (3 + len(_FEW))
    return Work(states=5 * prompts, written=8 * prompts)


SIMILARITY = Section(
    "similarity",
    "Translations with Type-1 neurons off",
    "Do Type-1 neurons carry a sentence to its translation, and do other neurons not?",
    similarity,
    _switching,
    ("sentences", "top", "draws"),
)
PERPLEXITY = Section(
    "perplexity",
    "Perplexity with Type-2 neurons off",
    "Does a language need its Type-2 neurons, and do other languages not?",
    perplexity,
    _predicting,
    ("sentences", "top", "draws", "read"),
)
QUESTIONS = Section(
    "questions",
    "Questions with Type-2 neurons off",
    "Does the model still answer questions in the language?",
    questions,
    _answering,
    ("sentences", "top", "questions", "mkqa"),
)
