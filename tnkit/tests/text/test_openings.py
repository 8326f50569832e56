"""The packaged prompts: aligned, all different, in the right script, and open where they end."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

import tnkit as tn
from tnkit.tests.text.test_everyday import LANGUAGES, SCRIPTS, plain

QUOTES = {"en": "“", "ja": "「", "ko": "“", "nl": "“", "it": "«"}
ENDS = {"quotation mark": QUOTES, "colon": {"ja": "："}, "list": {}}
every_language = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture(scope="module")
def rows():
    """The cells of the file, read by hand."""
    text = (Path(tn.__file__).parent / "text" / "data" / "openings.tsv").read_bytes().decode()
    header, *lines = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    assert header == ["split", "name", "ending", *LANGUAGES]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_the_corpus_has_every_row_of_the_file(rows):
    corpus = tn.load_corpus("openings")
    assert (corpus.languages, corpus.dropped) == (LANGUAGES, {})
    for split in "train", "test":
        for language in LANGUAGES:
            assert list(corpus[split][language]) == [row[language] for row in rows if row["split"] == split]
    assert [len(corpus[split]["en"]) for split in ("train", "test")] == [12, 28]


def test_names_are_unique_and_both_splits_have_every_ending(rows):
    assert len({row["name"] for row in rows}) == len(rows) == 40
    counts = Counter((row["split"], row["ending"]) for row in rows)
    assert {ending for _, ending in counts} == set(ENDS)
    assert all(counts["train", ending] == 4 and counts["test", ending] >= 9 for ending in ENDS)


@every_language
def test_a_prompt_ends_open_and_nothing_in_it_says_a_language(rows, language):
    for row in rows:
        end = {"quotation mark": "", "colon": ":", "list": "1."} | {row["ending"]: ENDS[row["ending"]].get(language)}
        expected = end[row["ending"]] or {"colon": ":", "list": "1."}[row["ending"]]
        assert row[language].endswith(expected), row[language]
        assert row[language].count(expected) == 1 or row["ending"] == "colon"
    named = "english japan korea dutch ital 英語 日本 韓国 영어 일본 한국 engels nederland inglese"
    text = " ".join(row[language] for row in rows).lower()
    assert [name for name in named.split() if name in text] == []


@every_language
def test_prompts_are_one_line_of_composed_text_in_their_script(rows, language):
    texts = [row[language] for row in rows]
    assert [text for text, count in Counter(map(plain, texts)).items() if count > 1] == []
    for text in texts:
        assert text == unicodedata.normalize("NFC", text) == text.strip()
        assert text.isprintable() and re.search(r"\s\s", text) is None
        assert {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()} <= SCRIPTS[language], text


@every_language
def test_translations_are_about_as_long_as_the_english(rows, language):
    ratios = sorted((len(row[language]) / len(row["en"]), row[language]) for row in rows)
    usual = ratios[len(ratios) // 2][0]
    assert ratios[0][0] > usual / 3, ratios[0]
    assert ratios[-1][0] < usual * 3, ratios[-1]


@every_language
def test_a_language_identifier_agrees(rows, language):
    pytest.importorskip("lingua")
    told = tn.behaviour.languages_of([row[language] for row in rows], candidates=[*LANGUAGES, "de", "fr", "es"])
    assert sum(code != language for code in told) <= 2
