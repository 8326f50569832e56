"""The second packaged corpus: what people wrote, aligned through English, with no near-duplicates across its splits."""

import difflib
import re
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest

import tnkit as tn
from tnkit.tests.text import tatoeba
from tnkit.tests.text.test_everyday import SCRIPTS, plain

every_language = pytest.mark.parametrize("language", tatoeba.LANGUAGES)
FULL_WIDTH = {"LATIN", "FULLWIDTH"}  # Japanese has words such as TV and Ｔシャツ


@pytest.fixture(scope="module")
def rows():
    """The cells of the file, read by hand."""
    header, *lines = (line.split("\t") for line in tatoeba.FILE.read_bytes().decode().removesuffix("\n").split("\n"))
    assert header == ["split", *tatoeba.LANGUAGES]
    return [dict(zip(header, line, strict=True)) for line in lines]


@pytest.mark.parametrize(
    ("languages", "sizes"),
    [(["en", "ja"], [415, 414]), (["en", "it"], [298, 298]), (["it", "ja"], [114, 114]), (None, [114, 114])],
)
def test_a_pair_has_every_row_with_both_languages(rows, languages, sizes, caplog):
    corpus, wanted = tn.load_corpus("tatoeba", languages), languages or [*tatoeba.LANGUAGES]
    assert (corpus.name, corpus.languages) == ("tatoeba", tuple(wanted))
    assert [len(corpus[split][wanted[0]]) for split in ("train", "test")] == sizes
    for split in "train", "test":
        expected = [row for row in rows if row["split"] == split and all(row[language] for language in wanted)]
        for language in wanted:
            assert list(corpus[split][language]) == [row[language] for row in expected]
    assert corpus.dropped == {"without a translation": len(rows) - sum(sizes)}
    assert "tatoeba: kept" in caplog.text


def test_a_language_that_it_lacks_is_named_with_the_data_set_that_has_it():
    with pytest.raises(tn.TnkitError, match=r'tatoeba has no sentences in ko; it has en, ja, it: .*"tatoeba-hub"'):
        tn.load_corpus("tatoeba", ["en", "ko"])
    assert tn.load_corpus("tatoeba", ["English", "jpn_Jpan"]).languages == ("English", "jpn_Jpan")


def test_every_row_has_english_and_a_translation(rows):
    assert all(cell == cell.strip() for row in rows for cell in row.values())
    assert all(row["en"] and (row["ja"] or row["it"]) for row in rows)
    assert Counter(row["split"] for row in rows) == {"train": 599, "test": 598}


@every_language
def test_no_sentence_is_there_twice(rows, language):
    counts = Counter(plain(row[language]) for row in rows if row[language])
    assert [text for text, count in counts.items() if count > 1] == []


@every_language
def test_sentences_are_one_line_of_composed_text_in_their_script(rows, language):
    allowed = SCRIPTS[language] | (FULL_WIDTH if language == "ja" else set())
    for row in rows:
        text = row[language]
        assert text == unicodedata.normalize("NFC", text) and text.isprintable()
        assert {unicodedata.name(letter).split()[0].split("-")[0] for letter in text if letter.isalpha()} <= allowed, (
            text
        )


@every_language
def test_no_near_duplicates_are_in_different_splits(rows, language):
    """By another route than the splits were made: the edits between the words of sentences that share rare words."""
    texts = [(row["split"], plain(row[language])) for row in rows if row[language]]
    pieces = [set(text.split()) if language != "ja" else set(pairwise(text)) for _, text in texts]
    usual = {piece for piece, count in Counter(piece for held in pieces for piece in held).items() if count > 60}
    holders: dict = {}
    for number, held in enumerate(pieces):
        for piece in held - usual:
            holders.setdefault(piece, []).append(number)
    near = {(one, two) for numbers in holders.values() for one in numbers for two in numbers if one < two}
    across = [(texts[one][1], texts[two][1]) for one, two in near if texts[one][0] != texts[two][0]]
    assert len(across) > 1000
    ratios = [(difflib.SequenceMatcher(None, *pair).quick_ratio(), pair) for pair in across]
    close = [pair for ratio, pair in ratios if ratio > 0.9 and difflib.SequenceMatcher(None, *pair).ratio() > 0.9]
    assert close == []


def test_building_it_from_its_own_pairs_gives_the_same_file(rows):
    pairs = {
        language: [(row["en"], row[language]) for row in rows if row[language]] for language in tatoeba.LANGUAGES[1:]
    }
    built = tatoeba.build(pairs)
    order = sorted(rows, key=lambda row: row["en"])
    assert built.sort_values("en").to_dict("records") == order


def test_a_planted_duplicate_is_dropped_and_a_near_duplicate_is_kept_in_the_split():
    texts = ["I saw a whale.", "Who paid?", "Bring two umbrellas.", "It never snows here.", "My shoes hurt."]
    planted = [*texts, "I saw a whale!", "I saw a whale too."]
    built = tatoeba.build({"it": [(text, f"{number} {text[::-1]}") for number, text in enumerate(planted)]})
    assert list(built["en"]) == [*texts, planted[-1]]
    splits = dict(zip(built["en"], built["split"], strict=True))
    assert splits[texts[0]] == splits[planted[-1]]
    assert sorted(splits.values()) == ["test"] * 3 + ["train"] * 3


def test_the_licence_names_the_source_and_its_counts(rows):
    text = (tatoeba.FILE.parent / "LICENSE").read_text(encoding="utf-8")
    assert "https://tatoeba.org" in text and "https://creativecommons.org/licenses/by/2.0/fr/" in text
    counts = [
        int(number)
        for number in re.findall(
            r"tatoeba.tsv: (\d+) English .* Japanese \((\d+)\), Italian \((\d+)\)\D+\((\d+)\)", text
        )[0]
    ]
    filled = {language: sum(bool(row[language]) for row in rows) for language in tatoeba.LANGUAGES}
    assert counts == [len(rows), filled["ja"], filled["it"], sum(bool(row["ja"] and row["it"]) for row in rows)]
