"""Whether a model can still do what it could: perplexity and simple questions, with neurons on and off.

tn.behaviour.abilities(model, test["en"][:64], type2_ja, controls=tn.controls(type2_ja))
"""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import pandas as pd

from tnkit.interventions.comparison import compare
from tnkit.interventions.controls import Control
from tnkit.interventions.together import Neurons, Several
from tnkit.measures.behaviour.likelihood import nats_of
from tnkit.measures.behaviour.losses import Losses
from tnkit.measures.behaviour.questions import answer_questions
from tnkit.models.model import Model

_EXAMPLES = (("What is the capital of Germany?", "Berlin"), ("What is the opposite of big?", "small"))
_CAPITALS = "France: Paris, Italy: Rome, Spain: Madrid, Japan: Tokyo, England: London, Russia: Moscow, Egypt: Cairo"
_CAPITALS += ", China: Beijing, Greece: Athens, Portugal: Lisbon, Austria: Vienna, South Korea: Seoul"
_OPPOSITES = "hot: cold, up: down, day: night, black: white, old: young/new, left: right, open: closed/close/shut"
_OPPOSITES += ", fast: slow, high: low, good: bad, rich: poor, hard: soft/easy"


def _read(pairs: str, question: str) -> dict[str, list[str]]:
    """Questions and their accepted answers."""
    named = (pair.split(": ") for pair in pairs.split(", "))
    return {question.format(subject): answers.split("/") for subject, answers in named}


QUESTIONS = _read(_CAPITALS, "What is the capital of {}?") | _read(_OPPOSITES, "What is the opposite of {}?")


def abilities(
    model: Model,
    sentences: Sequence[str],
    neurons: Neurons | Several,
    *,
    controls: Mapping[str, Control],
    questions: Mapping[str, Sequence[str]] = QUESTIONS,
    examples: Sequence[tuple[str, str]] = _EXAMPLES,
    language: str = "en",
    seeds: SupportsIndex = 10,
    tokens: str = "all",
    max_new_tokens: SupportsIndex = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Perplexity and answers to questions in a language that neurons should leave alone, beside controls.

    Args:
        model: from `load_model`.
        sentences: in that language.
        neurons: the set, or an `Intervention`, a `Direction`, or a list of them.
        controls, seeds: as in `tn.compare`.
        questions: question → accepted answers (default: 24 English ones, of capitals and opposites).
        examples: (question, answer) pairs to show first.
        language: of the answers, as in `answer_questions`.
        tokens: where the neurons are changed: "all", "prompt" or "last_word".
        max_new_tokens: the most tokens of an answer.
        progress: show bars.

    Returns:
        A frame indexed (ability, condition), with the columns of `Comparison.at`: the abilities are "nats per token"
        (lower is better) and "answers, F1" (between 0 and 1).

    Raises:
        TnkitError: as `perplexity`, `answer_questions` and `tn.compare` do.

    >>> from tnkit.detection.neurons import NeuronSet
    >>> from tnkit.testing import tiny_model
    >>> some, asked = NeuronSet(((0, 5),), (4, 48)), {"Who?": ["I"]}
    >>> table = abilities(tiny_model(), ["Hello", "Hi"], some, controls={}, questions=asked, progress=False)
    >>> table.index.tolist()[:3]
    [('nats per token', 'none'), ('nats per token', 'the set'), ('answers, F1', 'none')]
    """
    beside: dict[str, Any] = {"controls": controls, "seeds": seeds, "progress": progress}
    nats = nats_of(Losses(model, sentences), tokens)
    read = compare(nats, neurons, name="nats per token", model=model, **beside)
    answers = [list(accepted) for accepted in questions.values()]
    how: dict[str, Any] = {"examples": examples, "tokens": tokens, "max_new_tokens": max_new_tokens}
    answered = answer_questions(
        model, list(questions), answers, language=language, neurons=neurons, **how, **beside
    ).compared("F1")
    return pd.concat({"nats per token": read.at(), "answers, F1": answered.at()}, names=["ability"])
