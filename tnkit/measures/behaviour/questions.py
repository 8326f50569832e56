"""Questions that a model answers, untouched and with neurons switched off, and how right the answers are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, SupportsIndex

from tnkit import storage
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.interventions.comparison import NONE, SET, Comparison, compared, frame_of_conditions
from tnkit.interventions.controls import Control
from tnkit.measures.behaviour import generation
from tnkit.measures.behaviour.answers import Answer, QuestionScores, score
from tnkit.models.model import Model

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

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
        name = _MEASURES[measure]
        scores = lambda result: [getattr(side, name) for side in (result.before_scores, result.after_scores)]  # noqa: E731
        return compared(self, measure, scores)

    def by_condition(self) -> "pd.DataFrame":
        """`to_frame` for the set and each draw of each control, indexed (off, seed, question)."""
        return frame_of_conditions(self)

    def to_frame(self) -> "pd.DataFrame":
        """One row a question: question, answers and F1 before and after."""
        import pandas as pd

        columns = {"question": self.questions, "before": self.before, "after": self.after}
        scores = {"before F1": self.before_scores.f1, "after F1": self.after_scores.f1}
        return pd.DataFrame(columns | scores, index=pd.RangeIndex(len(self.questions), name="question"))

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw mean F1 and the share of exact matches, before and after."""
        from tnkit import plots

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
    neurons: Iterable[tuple[int, int]] = (),
    controls: Mapping[str, Control] = MappingProxyType({}),
    seeds: SupportsIndex = 10,
    tokens: str = "prompt",
    max_new_tokens: SupportsIndex = 20,
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> Answered:
    """Ask a model questions, untouched and with neurons switched off, and score what it says up to the line's end.

    The prompt is each example through the template, an empty line between, and the question through the template with
    nothing for its answer. Answers are greedy.

    Args:
        model: from `load_model`.
        questions: any sequence of str.
        answers: the accepted answers of each question, as in `tn.behaviour.answers.score`.
        language: of the answers, which decides how they are compared.
        examples: (question, answer) pairs to show first; one or a few tell a base model what is asked of it.
        template: with {question} and, at its end, {answer}.
        neurons: a `NeuronSet` or (layer, neuron) pairs to switch off.
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
        raise TnkitError(f"{len(questions)} questions do not go with the answers of {len(answers)}; give one list each")
    fill = lambda question, answer: template.replace("{answer}", answer).replace("{question}", question)  # noqa: E731
    shown = "".join(fill(*example) + "\n\n" for example in examples)
    prompts = [shown + fill(question, "").rstrip() for question in questions]
    how: dict[str, Any] = {
        "max_new_tokens": whole_number("max_new_tokens", max_new_tokens, at_least=1),
        "temperature": None,
        "seed": 0,
    }
    reading: dict[str, Any] = {"controls": controls, "seeds": seeds, "tokens": tokens, "batch_tokens": batch_tokens}
    results = generation.texts_of(model, prompts, neurons, **reading, **how, progress=progress)
    (untouched,) = results.pop(NONE)
    before = _first_lines(untouched.texts)
    before_scores = score(before, answers, language)

    def beside(spoken: generation.Texts, **drawn: Any) -> Answered:
        after = _first_lines(spoken.texts)
        scores = before_scores, score(after, answers, language)
        return Answered(tuple(questions), before, after, *scores, spoken.values_set, spoken.provenance | how, **drawn)

    (ablated,) = results.pop(SET)
    return beside(ablated, controls={name: tuple(map(beside, draws)) for name, draws in results.items()})


def _first_lines(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text.strip().partition("\n")[0].strip() for text in texts)
