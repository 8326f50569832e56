"""Language confusion: how often continuations stay in one language, line by line and word by word.

said = continuations(model, prompts["ja"], neurons=type2, tokens="all", max_new_tokens=100)
pass_rates(said, "ja")                                  # by condition: untouched, the set, each control
fallbacks(said, "ja")                                   # the languages that failing responses are in
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from jaxtyping import Bool

from tnkit.interventions.comparison import NONE, SET
from tnkit.measures.behaviour.generation import Continuations
from tnkit.measures.behaviour.languages import languages_of
from tnkit.statistics import interval, resamples
from tnkit.text.languages import scripts_of

_WITHOUT_SCRIPT = {"Zyyy", "Zinh", "Zzzz"}  # common, inherited, unknown
_LETTERS = 3  # words of so few letters are units, symbols and abbreviations, as in the paper's list of English words


def pass_rates(result: Continuations, language: str, *, candidates: Iterable[str] | None = None) -> pd.DataFrame:
    """Line- and word-level pass rates of continuations (Marchisio et al., EMNLP 2024).

    The line pass rate is the share of responses all of whose lines are in the language; responses without a line of
    which `languages_of` names the language are left out. The word pass rate is the share, of the responses that pass by
    line, without a word in a script that is not the language's. The paper counts words from a list of English ones, of
    more than three letters and in lower case; here any foreign script counts, and the same rule holds where it has
    case. It is NaN for languages in Latin script, as in the paper.

    Args:
        result: from `continuations`.
        language: the ISO 639-1 code of the language that is expected.
        candidates: which languages a line may be in, as in `languages_of`.

    Returns:
        A frame indexed by condition ("none", "the set", each control), with `line` and `word`, shares between 0 and 1,
        their 95 % bootstrap intervals over prompts (`line low` and so on), and the number of `responses` that count.

    Raises:
        TnkitError: as `languages_of` does.

    >>> texts = ("今日は雨が降っています。", "今日は weather が悪いです。", "The weather is bad.", "")
    >>> said = Continuations(texts, texts, texts, ("ja",) * 4, ("ja",) * 4, 0)
    >>> pass_rates(said, "ja", candidates=["en", "ja"]).loc["none", ["line", "word", "responses"]].round(2).tolist()
    [0.67, 0.5, 3.0]
    """
    rows = {}
    for condition, draws in _responses(result).items():
        others = [other_languages(texts, language, candidates) for texts in draws]
        counted = np.array([[wrong is not None for wrong in draw] for draw in others])
        passed = np.array([[wrong == [] for wrong in draw] for draw in others])
        free = np.array([[not foreign_words(text, language) for text in texts] for texts in draws])
        line = _rate(passed, counted)
        word = (math.nan,) * 3 if scripts_of(language) == {"Latn"} else _rate(passed & free, passed)
        rows[condition] = (*line, *word, int(counted.sum()))
    columns = [f"{level}{bound}" for level in ("line", "word") for bound in ("", " low", " high")]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*columns, "responses"]).rename_axis("off")


def fallbacks(result: Continuations, language: str, *, candidates: Iterable[str] | None = None) -> pd.DataFrame:
    """The languages that continuations fall back to: of each, the share of responses with most wrong lines in it.

    Args:
        result, language, candidates: as in `pass_rates`.

    Returns:
        A frame with a row for each language and a column for each condition; a column's sum is 1 - its line pass rate.

    >>> texts = ("今日は雨が降っています。", "The weather is bad.")
    >>> said = Continuations(texts, texts, texts[::-1], ("ja", "en"), ("en", "ja"), 0)
    >>> fallbacks(said, "ja", candidates=["en", "ja"]).loc["en"].to_dict()
    {'none': 0.5, 'the set': 0.5}
    """
    columns = {}
    for condition, draws in _responses(result).items():
        others = [wrong for texts in draws for wrong in other_languages(texts, language, candidates)]
        counted = sum(wrong is not None for wrong in others)
        commonest = Counter(Counter(wrong).most_common(1)[0][0] for wrong in others if wrong)
        columns[condition] = {name: count / counted for name, count in commonest.items()}
    frame = pd.DataFrame(columns, columns=list(columns)).fillna(0.0).rename_axis("language")
    return frame.sort_values(list(columns)[:2], ascending=False, kind="stable")


def _responses(result: Continuations) -> dict[str, list[tuple[str, ...]]]:
    """The responses of each condition, of each draw."""
    controls = {name: [draw.after for draw in draws] for name, draws in result.controls.items()}
    return {NONE: [result.before], SET: [result.after], **controls}


def other_languages(texts: Sequence[str], language: str, candidates: Iterable[str] | None) -> list[list[str] | None]:
    """The languages of each text's lines that are not in the language; None for a text without a line of known one.

    >>> other_languages(["今日は雨が降っています。", "The weather is bad.", ""], "ja", ["en", "ja"])
    [[], ['en'], None]
    """
    candidates = None if candidates is None else tuple(candidates)
    lines = [(number, line) for number, text in enumerate(texts) for line in text.split("\n")]
    told = languages_of([line for _, line in lines], candidates=candidates)
    others: list[list[str] | None] = [None] * len(texts)
    for (number, _), spoken in zip(lines, told, strict=True):
        if spoken is not None:
            others[number] = [*(others[number] or []), *([spoken] if spoken != language else [])]
    return others


def foreign_words(text: str, language: str) -> list[str]:
    """The words of a text in scripts that are not the language's.

    >>> foreign_words("これはNHKのprogramです。5 km先、привет", "ja"), foreign_words("한국 漢字", "ko")
    (['program', 'привет'], [])
    """
    from fontTools import unicodedata as scripts

    known = scripts_of(language) | _WITHOUT_SCRIPT
    words = []
    for foreign, letters in groupby(text, lambda letter: letter.isalpha() and scripts.script(letter) not in known):
        word = "".join(letters)
        if foreign and (word.lower() == word.upper() or (word.islower() and len(word) > _LETTERS)):
            words.append(word)
    return words


def _rate(passed: Bool[np.ndarray, "draw prompt"], counted: Bool[np.ndarray, "draw prompt"]) -> tuple[float, ...]:
    """The share of the counted responses that pass, with its interval; prompts are resampled with all their draws."""
    if not counted.any():
        return (math.nan,) * 3
    weights = resamples(counted.shape[1])
    totals = weights @ counted.sum(axis=0)
    low, high = interval((weights @ passed.sum(axis=0))[totals > 0] / totals[totals > 0])
    return float(passed.sum() / counted.sum()), float(low), float(high)
