"""The packaged concepts: every cell filled, no word twice, no answer given away, each in its script."""

import re
import unicodedata
from pathlib import Path

import pytest

import tnkit as tn

LANGUAGES = ("en", "ja", "ko", "nl", "it")
SCRIPTS = {
    "ja": {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "IDEOGRAPHIC"},
    "ko": {"HANGUL"},
    **{language: {"LATIN"} for language in ("en", "nl", "it")},
}


@pytest.fixture(scope="module")
def rows():
    """The cells of the file, read by hand."""
    text = (Path(tn.__file__).parent / "text" / "data" / "concepts.tsv").read_bytes().decode()
    header, *lines = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    assert header == [*LANGUAGES, *(f"{language} cloze" for language in LANGUAGES)]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_the_concepts_are_those_of_the_file(rows):
    concepts = tn.load_concepts()
    assert concepts.languages == LANGUAGES and len(concepts) == len(rows) >= 50
    for language in LANGUAGES:
        assert list(concepts.words[language]) == [row[language] for row in rows]
        assert list(concepts.sentences[language]) == [row[f"{language} cloze"] for row in rows]
    licence = (Path(tn.__file__).parent / "text" / "data" / "LICENSE").read_text()
    assert f"concepts.tsv: {len(rows)} nouns" in licence and "CC0" in licence


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_and_sentences_are_composed_text_of_the_language_and_do_not_give_the_answer(rows, language):
    assert len({row[language] for row in rows}) == len(rows)
    for row in rows:
        word, sentence = row[language], row[f"{language} cloze"]
        for text in (word, sentence):
            assert text == unicodedata.normalize("NFC", text) == text.strip() != ""
            assert {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()} <= SCRIPTS[language]
        assert sentence.count("___") == 1 and sentence[-1] in ".。"
        if language in ("en", "nl", "it"):
            assert not re.search(rf"\b{word}\b", sentence, re.IGNORECASE), sentence
        elif len(word) > 1:
            assert word not in sentence, sentence


def test_every_prompt_ends_before_an_answer_of_its_own(rows):
    concepts = tn.load_concepts()
    for source, target in (("it", "ja"), ("ja", "en")):
        for number, prompt in enumerate(concepts.translations(source, target)):
            *examples, last = prompt.splitlines()
            assert len(examples) == 4 and rows[number][source] in last and last.endswith(': "')
            assert all(f'"{rows[number][target]}"' not in example for example in examples)
    with pytest.raises(tn.TnkitError, match="no concepts in 'xx'"):
        concepts.clozes("xx")
