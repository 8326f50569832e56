"""The packaged sentences: enough, aligned, all different, in the right script and the right language."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

import tnkit as tn

LANGUAGES = ("en", "ja", "ko", "nl", "it")
SCRIPTS = {
    "ja": {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "IDEOGRAPHIC"},  # with ー and 々
    "ko": {"HANGUL"},
    **{language: {"LATIN"} for language in ("en", "nl", "it")},
}
END = {".": ".", "?": "?", "!": "!", "。": ".", "？": "?", "！": "!"}
every_language = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture(scope="module")
def rows():
    """The cells of the file, read by hand."""
    text = (Path(tn.__file__).parent / "text" / "data" / "everyday.tsv").read_bytes().decode()
    header, *lines = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    assert header == ["split", "topic", *LANGUAGES]
    return [dict(zip(header, line, strict=True)) for line in lines]


def plain(text):
    """The words alone, to find sentences that differ in marks or capitals only."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def test_there_are_enough_rows_and_every_cell_is_filled(rows):
    assert len(rows) >= 480
    sizes = Counter(row["split"] for row in rows)
    assert sizes.keys() == {"train", "test"}
    assert min(sizes.values()) >= 240
    assert all(cell == cell.strip() != "" for row in rows for cell in row.values())


def test_the_corpus_has_every_row_of_the_file(rows):
    corpus = tn.load_corpus("everyday")
    assert corpus.languages == LANGUAGES
    assert corpus.dropped == {}
    for split in "train", "test":
        for language in LANGUAGES:
            assert list(corpus[split][language]) == [row[language] for row in rows if row["split"] == split]
    assert [len(corpus[split]["en"]) for split in ("train", "test")] == [256, 256]


@every_language
def test_no_sentence_is_there_twice_or_in_both_splits(rows, language):
    assert [text for text, count in Counter(plain(row[language]) for row in rows).items() if count > 1] == []


@every_language
def test_sentences_are_one_line_of_composed_text_in_their_script(rows, language):
    for row in rows:
        text = row[language]
        assert text == unicodedata.normalize("NFC", text)
        assert re.sub(r"\s", " ", text).isprintable()
        assert re.search(r"\s\s|[\t\n\r\u00a0\u3000\ufeff]", text) is None
        assert {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()} <= SCRIPTS[language], text


def test_japanese_has_kana_and_no_sentence_stands_in_two_languages(rows):
    assert [row["ja"] for row in rows if not re.search("[ぁ-ヿ]", row["ja"])] == []
    for row in rows:
        assert len({plain(row[language]) for language in LANGUAGES}) == len(LANGUAGES), row


def test_a_sentence_ends_in_one_mark_the_same_in_every_language(rows):
    for row in rows:
        for language in LANGUAGES:
            marks = re.findall(r"[.?!…。？！]", row[language])
            assert marks == [row[language][-1]], row[language]
            assert marks[0].isascii() == (language != "ja")
        assert len({END[row[language][-1]] for language in LANGUAGES}) == 1, row


def test_sentences_are_varied(rows):
    topics = {split: {row["topic"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert topics["train"] == topics["test"]
    assert len(topics["train"]) >= 40
    assert max(Counter(row["topic"] for row in rows).values()) <= len(rows) / 20
    lengths = sorted(len(row["en"].split()) for row in rows)
    assert lengths[len(rows) // 10] <= 7
    assert lengths[-len(rows) // 10] >= 17
    assert Counter(END[row["en"][-1]] for row in rows).keys() == {".", "?", "!"}
    assert max(Counter(tuple(plain(row["en"]).split()[:2]) for row in rows).values()) <= len(rows) / 20


@every_language
def test_translations_are_about_as_long_as_the_english(rows, language):
    """A shifted row or a cut cell stands out against the usual ratio of lengths."""
    ratios = sorted((len(row[language]) / len(row["en"]), row[language]) for row in rows)
    usual = ratios[len(ratios) // 2][0]
    assert ratios[0][0] > usual / 3, ratios[0]
    assert ratios[-1][0] < usual * 3, ratios[-1]


@pytest.fixture(scope="module")
def detector():
    lingua = pytest.importorskip("lingua")
    known = [lingua.IsoCode639_1.from_str(code) for code in (*LANGUAGES, "de", "fr", "es", "zh")]
    return lingua.LanguageDetectorBuilder.from_iso_codes_639_1(*known).build()


@every_language
def test_a_language_identifier_agrees(rows, detector, language):
    found = detector.detect_languages_in_parallel_of([row[language] for row in rows])
    wrong = [
        (row[language], name)
        for row, name in zip(rows, found, strict=True)
        if name is None or name.iso_code_639_1.name.lower() != language
    ]
    assert len(wrong) <= 0.03 * len(rows), wrong
