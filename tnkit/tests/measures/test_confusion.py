"""Language confusion against a plain version of the published procedure, on responses whose languages are known."""

import numpy as np
import pytest

from tnkit.measures.behaviour import Continuations, fallbacks, pass_rates

JAPANESE, ENGLISH, KOREAN = "今日は雨が降っています。", "The weather is bad today.", "오늘은 날씨가 좋네요, 그렇죠?"
MIXED = "今日はweatherが悪いです。"
NAMES = "NHKの番組を5 km先で見ました。"
RESPONSES = {  # languages of the lines that are long enough, whether a word is of another script
    JAPANESE: (["ja"], False),
    f"{JAPANESE}\n{JAPANESE}": (["ja", "ja"], False),
    f"{JAPANESE}\n{ENGLISH}": (["ja", "en"], True),
    f"{ENGLISH}\n{ENGLISH}\n{KOREAN}": (["en", "en", "ko"], True),
    ENGLISH: (["en"], True),
    KOREAN: (["ko"], True),
    MIXED: (["ja"], True),
    NAMES: (["ja"], False),
    "…": ([], False),
    f"A\n\n{JAPANESE}": (["ja"], False),
}
CANDIDATES = ["en", "ja", "ko"]


def said(after, controls=()):
    """Continuations that were all Japanese before."""
    texts = (JAPANESE,) * len(after)
    drawn = {"random": tuple(said(texts) for texts in controls)} if controls else {}
    return Continuations(texts, texts, tuple(after), ("ja",) * len(after), (None,) * len(after), 0, controls=drawn)


def published(texts):
    """Line and word pass rate of Marchisio et al.'s `compute_metrics`, from what is known of each response."""
    line_errors = word_errors = counted = 0
    for text in texts:
        lines, foreign_word = RESPONSES[text]
        if lines:
            counted += 1
            if any(language != "ja" for language in lines):
                line_errors += 1
            elif foreign_word:
                word_errors += 1
    return 1 - line_errors / counted, 1 - word_errors / (counted - line_errors), counted


def test_pass_rates_are_those_of_the_published_procedure():
    texts = list(RESPONSES)
    table = pass_rates(said(texts), "ja", candidates=CANDIDATES)
    assert table.loc["the set", ["line", "word", "responses"]].tolist() == pytest.approx(published(texts))
    assert table.loc["none", ["line", "word", "responses"]].tolist() == [1, 1, len(texts)]
    assert (table["line low"] <= table["line"]).all() and (table["line"] <= table["line high"]).all()
    assert table.loc["the set", "line low"] < table.loc["the set", "line"] < table.loc["the set", "line high"]


def test_draws_of_a_control_are_pooled():
    draws = [[JAPANESE, ENGLISH, KOREAN, "…"], [JAPANESE, MIXED, ENGLISH, ENGLISH]]
    table = pass_rates(said([ENGLISH] * 4, draws), "ja", candidates=CANDIDATES)
    expected = published([text for draw in draws for text in draw])
    assert table.loc["random", ["line", "word", "responses"]].tolist() == pytest.approx(expected)
    assert table.loc["the set", "line"] == 0 and np.isnan(table.loc["the set", "word"])


def test_latin_scripts_have_no_word_pass_rate_and_other_scripts_count_by_the_word():
    table = pass_rates(said([ENGLISH, f"{ENGLISH}\n{KOREAN}"]), "en", candidates=CANDIDATES)
    assert table.loc["the set", "line"] == 0.5 and table["word"].isna().all()
    table = pass_rates(said([KOREAN, f"{KOREAN} привет"]), "ko", candidates=CANDIDATES)
    assert table.loc["the set", ["line", "word"]].tolist() == [1, 0.5]


def test_responses_fall_back_to_the_commonest_other_language_of_their_lines():
    texts = list(RESPONSES)
    table = fallbacks(said(texts), "ja", candidates=CANDIDATES)
    counted = published(texts)[2]
    assert table["the set"].to_dict() == pytest.approx({"en": 3 / counted, "ko": 1 / counted})
    rates = pass_rates(said(texts), "ja", candidates=CANDIDATES)["line"]
    assert (1 - table.sum()).to_dict() == pytest.approx(rates.to_dict())
    nothing = said(["…"] * 3)
    assert pass_rates(nothing, "ja", candidates=CANDIDATES).loc["the set", "responses"] == 0
    assert fallbacks(nothing, "ja", candidates=CANDIDATES).empty
