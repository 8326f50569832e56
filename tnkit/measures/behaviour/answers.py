"""How well answers match: token F1 and exact match of question answering, as MKQA scores its languages.

# score(["the Eiffel tower"], [["Eiffel Tower", "tour Eiffel"]], "en"), from tnkit.measures.behaviour.answers
found.mean_f1, found.mean_exact                      # shares between 0 and 1; the literature prints them in percent

Strings in, numbers out: what the model says comes from elsewhere. Normalisation follows MKQA's own evaluation (Longpre,
Lu & Daiber 2021, mkqa_eval_util.py) to the letter, oddities included, so that figures compare with published ones:

- only ASCII punctuation is taken out, so 「。」 or ¿ stays;
- French and Italian articles are also cut off the front of longer words ("italia" becomes "talia"), and of Arabic words
  every "ال" goes; as answers are treated alike, a word still equals itself.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from tnkit import plots, storage
from tnkit.errors import TnkitError
from tnkit.statistics import interval, resamples

Answer = str | Mapping[str, Any] | None

_CHARACTERS = {"ja", "km", "th", "zh"}  # each character counts as a token
_ARTICLES = {  # whole words
    "da": "en et",
    "de": "der die das den dem des ein eine einer eines einem einen",
    "en": "a an the",
    "es": "el la los las un una unos unas",
    "fi": "se yks yksi",
    "hu": "a az egy",
    "nl": "de het een den der des",
    "no": "en et ei",
    "pt": "o a os as um uma uns umas",
    "sv": "en ett",
    "vi": "của là cái chiếc những",
}
_BEGINNINGS = {  # of words, the first that fits: "des" loses "de", "della" loses "del"
    "fr": "le la du de un",
    "it": "il lo la i gli le del dei degli uno una un",
}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, eq=False)
class QuestionScores:
    """How well the predictions of a list of questions match their accepted answers.

    Attributes:
        f1: token F1 with the best accepted answer, (question), float64, between 0 and 1.
        exact: whether a prediction equals an accepted answer, (question).
        answerable: whether a question has an answer, (question); where it has none, only an empty prediction is right.
        language: what the answers are in.
        provenance: number and fingerprint of the predictions.

    >>> score(["Paris", "in the south"], [["Paris"], ["the north"]], "en").to_frame()["f1"].tolist()
    [1.0, 0.0]
    """

    f1: Float[np.ndarray, "question"]
    exact: Bool[np.ndarray, "question"]
    answerable: Bool[np.ndarray, "question"]
    language: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.f1)

    def __repr__(self) -> str:
        return (
            f"QuestionScores({len(self)} questions in {self.language}: "
            f"F1 {self.mean_f1:.3f}, exact match {self.mean_exact:.3f})"
        )

    @property
    def mean_f1(self) -> float:
        """Mean F1 over questions, a share between 0 and 1."""
        return float(self.f1.mean())

    @property
    def mean_exact(self) -> float:
        """The share of questions whose prediction equals an accepted answer, between 0 and 1."""
        return float(self.exact.mean())

    def means(self) -> pd.DataFrame:
        """`mean` over questions of F1 and exact match, with its 95 % bootstrap interval `low` to `high`."""
        scores = np.stack([self.f1, self.exact.astype(np.float64)], axis=1)
        low, high = interval(resamples(len(self)) @ scores / len(self))
        columns = {"mean": scores.mean(axis=0), "low": low, "high": high}
        return pd.DataFrame(columns, index=pd.Index(["F1", "exact match"], name="measure"))

    def to_frame(self) -> pd.DataFrame:
        """One row a question: f1, exact, answerable."""
        columns = {"f1": self.f1, "exact": self.exact, "answerable": self.answerable}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self), name="question"))

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw how many questions reach which F1, exact matches apart, and the mean."""
        return plots.question_scores(self.f1, self.exact, language=self.language, ax=ax)

    def _repr_html_(self) -> str:
        rows = self.means().itertuples()
        shown = {str(row.Index): f"{row.mean:.3f} (95 % interval {row.low:.3f} to {row.high:.3f})" for row in rows}
        return storage.html_card("Answers", {"language": self.language, "questions": len(self), **shown})


def normalise(text: str, language: str) -> str:
    """Answer text without case, ASCII punctuation, articles and superfluous spaces; characters apart in ja, km, th, zh.

    Source: MKQA (Longpre, Lu & Daiber 2021), after SQuAD (Rajpurkar et al. 2016).

    Args:
        text: an answer.
        language: its code; "zh" and MKQA's "zh_cn" are the same here. A language that MKQA does not have keeps its
            articles.

    Returns:
        Tokens with one space between; empty where nothing is left.

    >>> normalise("The  Netherlands!", "en"), normalise("Het Rijksmuseum", "nl"), normalise("東京 タワー", "ja")
    ('netherlands', 'rijksmuseum', '東 京 タ ワ ー')
    """
    base = _base(language)
    text = text.lower().translate(_NO_PUNCTUATION)
    articles = _articles(base)
    if articles:
        text = articles.sub(" ", text)
    return " ".join("".join(text.split()) if base in _CHARACTERS else text.split())


def f1(prediction: str | None, answers: Sequence[Answer], language: str) -> float:
    """Token F1 of a prediction with the accepted answer that it fits best.

        F1 = 2 · common / (predicted tokens + accepted tokens),

    where common counts each token as often as both have it; the harmonic mean of precision and recall (Rajpurkar et al.
    2016; MKQA, Longpre, Lu & Daiber 2021).

    Args:
        prediction: what was said; "" or None for no answer.
        answers: all that is accepted: texts, or MKQA's records with `text` and `aliases`; "" or None for no answer.
        language: its code.

    Returns:
        Between 0 and 1. Where either side has no tokens after `normalise`: 1 if neither has, else 0.

    Raises:
        TnkitError: for no accepted answer at all, or one str instead of a list.

    >>> f1("the old town", ["Old Town Square", "the square"], "en")
    0.8
    >>> f1("", [None], "en"), f1("", ["yes"], "en")
    (1.0, 0.0)
    """
    predicted = normalise(prediction or "", language).split()
    return max(_f1(predicted, normalise(text, language).split()) for text in _accepted(answers))


def exact_match(prediction: str | None, answers: Sequence[Answer], language: str) -> bool:
    """Whether a prediction equals an accepted answer, both normalised; arguments and errors as for `f1`.

    >>> exact_match("la torre eiffel", ["Torre Eiffel"], "es"), exact_match("Torre", ["Torre Eiffel"], "es")
    (True, False)
    """
    predicted = normalise(prediction or "", language)
    return any(predicted == normalise(text, language) for text in _accepted(answers))


def score(predictions: Sequence[str | None], answers: Sequence[Sequence[Answer]], language: str) -> QuestionScores:
    """F1 and exact match of many questions.

    Args:
        predictions: one a question; "" or None for no answer.
        answers: the accepted answers of each question, as for `f1`.
        language: the code of all of them.

    Returns:
        `QuestionScores`, in the order of the questions; shares between 0 and 1, not percent.

    Raises:
        TnkitError: for no questions, lists of different length, or a question without a list of accepted answers.

    >>> found = score(["1889", "Parijs", ""], [["in 1889"], ["Parijs", "Paris"], [None]], "nl")
    >>> found
    QuestionScores(3 questions in nl: F1 0.889, exact match 0.667)
    """
    if isinstance(predictions, str) or len(predictions) != len(answers) or not len(predictions):
        given = "one str" if isinstance(predictions, str) else f"{len(predictions)} predictions"
        raise TnkitError(
            f"there are {given} for {len(answers)} questions; give two lists of the same length, one item a question"
        )
    values, exact, answerable = [], [], []
    for number, (prediction, accepted) in enumerate(zip(predictions, answers, strict=True)):
        try:
            values.append(f1(prediction, accepted, language))
            exact.append(exact_match(prediction, accepted, language))
            answerable.append(any(_accepted(accepted)))
        except TnkitError as error:
            raise TnkitError(f"question {number}: {error}") from error
    made_of = {"n": len(predictions), "hash": storage.text_hash(prediction or "" for prediction in predictions)}
    return QuestionScores(np.array(values), np.array(exact), np.array(answerable), language, made_of)


def _base(language: str) -> str:
    base = re.split("[-_]", language.lower())[0]
    return "no" if base in ("nb", "nn") else base


@cache
def _articles(base: str) -> re.Pattern[str] | None:
    if base == "ar":
        return re.compile("ال")
    if base in _BEGINNINGS:
        return re.compile(rf"\b({_BEGINNINGS[base].replace(' ', '|')})")
    return re.compile(rf"\b({_ARTICLES[base].replace(' ', '|')})\b") if base in _ARTICLES else None


def _accepted(answers: Sequence[Answer]) -> list[str]:
    if isinstance(answers, str | Mapping):
        raise TnkitError("accepted answers must be a list, not a single one; put it in brackets")
    texts: list[str] = []
    for answer in answers:
        if isinstance(answer, Mapping):
            texts += [answer.get("text") or "", *(answer.get("aliases") or ())]
        else:
            texts.append(answer or "")
    if not texts:
        raise TnkitError("there is no accepted answer; write [None] where the right answer is none")
    return texts


def _f1(predicted: list[str], accepted: list[str]) -> float:
    if not predicted or not accepted:
        return float(predicted == accepted)
    return 2 * sum((Counter(predicted) & Counter(accepted)).values()) / (len(predicted) + len(accepted))
