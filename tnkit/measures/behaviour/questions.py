"""Questions that a model answers, untouched and with neurons switched off, and how many answers are correct."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd

from tnkit import plots, storage
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.interventions.comparison import NONE, SET, Comparison, compared, frame_of_conditions
from tnkit.interventions.controls import Control
from tnkit.interventions.together import Given
from tnkit.measures.behaviour import generation
from tnkit.measures.behaviour.answers import Answer, QuestionScores, score
from tnkit.models.model import Model

_MEASURES = {"F1": "f1", "exact match": "exact"}  # of `QuestionScores`


@dataclass(frozen=True, eq=False)
class Answered:
    """What a model answers to questions and how right that is, untouched and with neurons switched off.

    Attributes:
        questions: what it was asked.
        before, after: its answers, untouched and ablated.
        before_scores, after_scores: from `tn.behaviour.answers.score`.
        count: (token, neuron) values that were set.
        provenance: model, prompts, ablations, parameters, versions.
        controls: for each control, the answers with each draw of it switched off.
    """

    questions: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_scores: QuestionScores
    after_scores: QuestionScores
    count: int
    provenance: dict[str, Any] = field(default_factory=dict)
    controls: dict[str, tuple["Answered", ...]] = field(default_factory=dict)

    def compared(self, measure: str = "F1") -> Comparison:
        """F1 or the share of exact matches, untouched, with the set off and with each control off.

        Args:
            measure: "F1" or "exact match".

        Returns:
            `Comparison` with a number between 0 and 1 for every question: means with intervals, effects and p-values.

        Raises:
            TnkitError: for another measure.
        """
        one_of("measure", measure, tuple(_MEASURES))

        def scores(result: Answered) -> list[np.ndarray]:
            return [getattr(side, _MEASURES[measure]) for side in (result.before_scores, result.after_scores)]

        return compared(self, measure, scores)

    def by_condition(self) -> pd.DataFrame:
        """`to_frame` for the set and each draw of each control, indexed (off, seed, question)."""
        return frame_of_conditions(self)

    def to_frame(self) -> pd.DataFrame:
        """One row a question: question, answers and F1 before and after."""
        columns = {"question": self.questions, "before": self.before, "after": self.after}
        scores = {"before F1": self.before_scores.f1, "after F1": self.after_scores.f1}
        return pd.DataFrame(columns | scores, index=pd.RangeIndex(len(self.questions), name="question"))

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw mean F1 and the share of exact matches, before and after."""
        return plots.before_and_after(self._means(), ylabel="mean over questions", ax=ax)

    def _means(self) -> dict[str, tuple[float, float]]:
        before, after = self.before_scores, self.after_scores
        return {"F1": (before.mean_f1, after.mean_f1), "exact match": (before.mean_exact, after.mean_exact)}

    def _repr_html_(self) -> str:
        means = {name: [f"{value:.3f}" for value in pair] for name, pair in self._means().items()}
        return storage.html_card("Answers, before and after", {"questions": len(self.questions), **means})


def answer_questions(
    model: Model,
    questions: Sequence[str],
    answers: Sequence[Sequence[Answer]],
    *,
    language: str,
    examples: Sequence[tuple[str, str]] = (),
    template: str = "Q: {question}\nA: {answer}",
    keep_space: bool = False,
    stop: str | None = "\n",
    neurons: Given = (),
    controls: Mapping[str, Control] = MappingProxyType({}),
    seeds: SupportsIndex = 10,
    tokens: str = "prompt",
    max_new_tokens: SupportsIndex = 20,
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> Answered:
    """Ask a model questions, untouched and with neurons switched off, and score its answers.

    The prompt is each example through the template, an empty line between, and the question through the template with
    an empty answer. Answers are greedy, without white space at their ends. By default the prompt loses its trailing
    white space and an answer ends with its line, which suits base models, whose tokens often begin with a space and
    who go on with questions of their own. Code that scores whatever is generated corresponds to keep_space=True and
    stop=None.

    Args:
        model: from `load_model`.
        questions: any sequence of str.
        answers: the accepted answers of each question, as in `tn.behaviour.answers.score`.
        language: of the answers, which decides how they are compared.
        examples: (question, answer) pairs to show first; one or a few tell a base model what is asked of it.
        template: with {question} and, at its end, {answer}.
        keep_space: keep white space at the end of the prompt.
        stop: text at which an answer ends, white space before the answer apart; None keeps all that is generated.
        neurons: a `NeuronSet` or (layer, neuron) pairs to switch off, or interventions as in `Ablation`.
        controls, seeds: as in `continuations`.
        tokens: as in `Ablation`; Tezuka & Inoue (EMNLP 2025) act on the prompt only, at its last token or at all.
        max_new_tokens, batch_tokens, progress: as in `continuations`.

    Raises:
        TnkitError: as `continuations` and `answers.score` do, and for a template without its places.

    >>> from tnkit.testing import tiny_model
    >>> asked = {"answers": [["Roma"]], "language": "it", "examples": [("La capitale del Giappone?", "Tokyo")]}
    >>> answer_questions(tiny_model(), ["Dove?"], **asked, max_new_tokens=4, progress=False).before_scores.mean_f1
    0.0
    """
    if "{question}" not in template or not template.endswith("{answer}"):
        raise TnkitError(f"the template {template!r} must hold {{question}} and end in {{answer}}")
    if isinstance(questions, str) or len(questions) != len(answers):
        raise TnkitError(
            f"{len(questions)} questions have the answers of {len(answers)}; give a list of questions, and a list of "
            "answers for each"
        )
    if stop == "":
        raise TnkitError("stop='' ends every answer before it begins; give a text such as '\\n', or None")
    prompts = _prompts(questions, examples, template)
    prompts = prompts if keep_space else [prompt.rstrip() for prompt in prompts]
    how: dict[str, Any] = {
        "max_new_tokens": whole_number("max_new_tokens", max_new_tokens, at_least=1),
        "temperature": None,
        "seed": 0,
    }
    reading: dict[str, Any] = {"controls": controls, "seeds": seeds, "tokens": tokens, "batch_tokens": batch_tokens}
    results = generation.texts_of(model, prompts, neurons, **reading, **how, progress=progress)
    (untouched,) = results.pop(NONE)
    before = _answers(untouched.texts, stop)
    before_scores = score(before, answers, language)

    def beside(spoken: generation.Texts, **drawn: Any) -> Answered:
        after = _answers(spoken.texts, stop)
        scores = before_scores, score(after, answers, language)
        provenance = spoken.provenance | how | {"stop": stop}
        return Answered(tuple(questions), before, after, *scores, spoken.values_set, provenance, **drawn)

    (ablated,) = results.pop(SET)
    return beside(ablated, controls={name: tuple(map(beside, draws)) for name, draws in results.items()})


def _prompts(questions: Sequence[str], examples: Sequence[tuple[str, str]], template: str) -> list[str]:
    """Each question through the template, after the examples."""

    def filled(question: str, answer: str) -> str:
        return template.replace("{answer}", answer).replace("{question}", question)

    shown = "".join(filled(*example) + "\n\n" for example in examples)
    return [shown + filled(question, "") for question in questions]


def _answers(texts: Sequence[str], stop: str | None) -> tuple[str, ...]:
    """The generated texts up to `stop`, without white space at their ends."""
    return tuple((text.strip() if stop is None else text.strip().partition(stop)[0].strip()) for text in texts)
