"""Corpora: cleaning, splits that share no sentence, and the round trip through a file."""

import hashlib
import json
import logging
import time
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tnkit as tn
from tnkit.text import corpus as corpora
from tnkit.text.corpus import Corpus, Sentences


def frame_of(rows, columns=("en", "ja")):
    return pd.DataFrame(rows, columns=list(columns))


def numbered(count):
    return frame_of([(f"{number}.", f"{number}。") for number in range(count)])


def by_row(corpus):
    """Row → split."""
    return {tuple(row[name] for name in corpus.languages): row["split"] for row in corpus.frame.to_dict("records")}


def test_text_is_normalised_and_empty_and_equal_rows_are_dropped_and_counted(caplog, tmp_path):
    rows = [
        ("cafe\u0301", "\u304b\u3099"),  # decomposed
        ("café", "が"),  # the same, composed
        ("  café\t", "\u3000が\n"),  # and with space around
        ("café", "カ"),  # not the same in ja
        ("", "x"),
        ("y", " \u3000"),
        ("z", None),
        (float("nan"), "z"),
        ("z", float("nan")),
    ]
    with caplog.at_level(logging.WARNING, logger="tnkit"):
        corpus = tn.load_corpus(frame_of(rows), ["en", "ja"])
    assert sorted(by_row(corpus)) == [("café", "が"), ("café", "カ")]
    assert corpus.dropped == {"empty": 5, "duplicates": 2}
    assert caplog.messages == ["frame: kept 2 rows, dropped 5 empty, 2 duplicates"]
    caplog.clear()
    again = tn.load_corpus(corpus.save(tmp_path / "x.tsv"))
    assert (again.dropped, caplog.messages) == ({}, [])


def test_rows_are_compared_in_the_chosen_languages_only():
    frame = frame_of([("a", "b", "c"), ("a", "b", "d"), ("e", "f", "")], ["en", "ja", "ko"])
    assert tn.load_corpus(frame, ["en", "ja"]).dropped == {"duplicates": 1}
    assert tn.load_corpus(frame, ["en", "ko"]).dropped == {"empty": 1}
    assert tn.load_corpus(frame, "ko").frame["ko"].tolist() == ["c", "d"]


def test_the_frame_that_was_given_is_left_alone():
    frame = frame_of([(" a ", "b"), ("c", "")])
    before = frame.copy()
    corpus = tn.load_corpus(frame)
    taken = corpus.to_frame()
    taken.loc[0, "en"] = "changed"
    assert frame.equals(before)
    assert corpus.frame["en"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (frame_of([]), {}, "frame has no sentences$"),
        (frame_of([("", "a")]), {}, "frame has no sentences left after dropping {'empty': 1}"),
        (frame_of([("a", "b")], ["id", "topic"]), {}, "no column for any language; it has id, topic: name each"),
        (numbered(2), {"languages": ["en", "xx", "yy"]}, "frame has no column for xx, yy; it has en, ja: name each"),
        (numbered(2), {"languages": ["en", "en"]}, "the column en exists or was requested twice; name each"),
        (frame_of([("a", "b")], ["en", "en"]), {}, "the column en exists or was requested twice"),
        (numbered(2), {"test": 1.5}, "test=1.5 must be a share between 0 and 1"),
        (numbered(2), {"limit": -1}, "limit=-1 must be at least 1"),
        (frame_of([("a", None)], ["en", "split"]), {}, "the column split holds .*; expected train and test"),
        (
            pd.DataFrame({"en": ["a", "b"], "ja": ["c", "\udc80"]}, dtype=object),
            {},
            "frame, ja in row 2: an unpaired surrogate; fix the text",
        ),
    ],
)
def test_what_cannot_be_a_corpus_says_why(frame, options, message):
    with pytest.raises(tn.TnkitError, match=message):
        tn.load_corpus(frame, **options)


def groups_of(rows):
    """Rows that share a sentence of one language, directly or through others, by growing each group."""
    left, groups = set(rows), []
    while left:
        group, edge = set(), {left.pop()}
        while edge:
            group |= edge
            edge = {row for row in left if any(a == b for other in edge for a, b in zip(row, other, strict=True))}
            left -= edge
        groups.append(group)
    return groups


some_rows = st.lists(st.tuples(*[st.integers(0, 25).map(str)] * 3), min_size=1, max_size=40, unique=True)


@settings(max_examples=150, deadline=None)
@given(rows=some_rows, test=st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]), order=st.randoms())
def test_splits_share_no_sentence_and_do_not_depend_on_the_order_of_rows(rows, test, order):
    languages = ["en", "ja", "ko"]
    corpus = tn.load_corpus(frame_of(rows, languages), test=test)
    for language in languages:
        assert set(corpus["train"][language]).isdisjoint(corpus["test"][language])
    short = round(test * len(rows)) - len(corpus["test"]["en"])
    split = by_row(corpus)
    train = [len(group) for group in groups_of(rows) if split[min(group)] == "train"]
    assert 0 <= short < min(train, default=1)  # no group that was left out would still have fitted
    order.shuffle(rows)
    assert by_row(tn.load_corpus(frame_of(rows, languages), test=test)) == split


def test_the_split_is_the_same_whichever_languages_are_asked_for():
    frame = numbered(60).assign(fr=[f"phrase {number}" for number in range(60)])
    whole = tn.load_corpus(frame).frame
    for languages in (["en"], ["fr", "en"], ["fr"]):
        some = tn.load_corpus(frame, languages).frame
        assert list(some["split"]) == list(whole["split"])
        assert list(some.columns) == [*languages, "split"]


def test_rows_that_share_nothing_are_split_as_asked_and_by_the_hash_of_their_text():
    rows = [tuple(row) for row in numbered(101).to_numpy()]
    order = sorted(rows, key=lambda row: hashlib.sha256(json.dumps(row, ensure_ascii=False).encode()).hexdigest())
    for test, count in {0.0: 0, 0.25: 25, 0.5: 50, 1.0: 101}.items():
        split = by_row(tn.load_corpus(numbered(101), test=test))
        assert {row for row in split if split[row] == "test"} == set(order[:count])
    kept = tn.load_corpus(numbered(101), limit=10)
    of_split = {"test": order[:50], "train": order[50:]}
    assert list(by_row(kept)) == [row for row in rows if row in of_split["test"][:5] + of_split["train"][:5]]
    assert kept.dropped == {"beyond the limit": 91}
    assert Counter(by_row(kept).values()) == {"train": 5, "test": 5}
    assert tn.load_corpus(numbered(10), limit=10).dropped == {}


def test_sentences_said_twice_with_another_translation_stay_together():
    rows = [(f"{number // 4}.", f"{number}。") for number in range(200)]
    split = by_row(tn.load_corpus(frame_of(rows), test=0.5))
    assert all(len({split[row] for row in rows[start : start + 4]}) == 1 for start in range(0, 200, 4))
    assert Counter(split.values()) == {"train": 100, "test": 100}


def test_a_split_that_is_there_is_respected():
    frame = numbered(20).assign(split=["test"] * 3 + ["train"] * 17)
    corpus = tn.load_corpus(frame, test=0.9)
    assert corpus["test"]["ja"].texts == ("0。", "1。", "2。")
    assert len(corpus["train"]["en"]) == 17
    assert set(tn.load_corpus(frame, limit=5).dropped) == {"beyond the limit"}
    assert by_row(tn.load_corpus(frame, limit=5)).items() <= by_row(corpus).items()


def test_sentences_know_where_they_are_from():
    corpus = tn.load_corpus(numbered(8).assign(split="train"))
    sentences = corpus["train"]["ja"]
    assert sentences == Sentences(tuple(f"{n}。" for n in range(8)), "ja", "frame", "train")
    assert sentences[2:4] == Sentences(("2。", "3。"), "ja", "frame", "train")
    assert (sentences[-1], len(sentences), list(sentences)[:1], len(corpus)) == ("7。", 8, ["0。"], 8)
    assert list(corpus["test"]["ja"]) == []
    assert sum(len(part["en"]) for part in (corpus["train"], corpus["test"])) == len(corpus)


def test_splits_and_languages_that_are_not_there():
    corpus = tn.load_corpus("everyday", ["en", "ja"])
    with pytest.raises(tn.TnkitError, match=r"no sentences in 'de'; it has en, ja"):
        corpus["train"]["de"]
    with pytest.raises(tn.TnkitError, match=r"splits 'train' and 'test', not 'dev': corpus\['train'\]"):
        corpus["dev"]


def test_a_saved_corpus_comes_back(tmp_path):
    texts = ['"a" b', "c\u2028d\x85e", "全角\u3000空白", "two  spaces", "a\u00a0b", "\ufeffmark", "'", "\\t", "\x1cx"]
    for corpus in tn.load_corpus(frame_of([(text, text) for text in texts])), tn.load_corpus("everyday", limit=100):
        again = tn.load_corpus(corpus.save(tmp_path / "x.tsv"))
        assert by_row(again) == by_row(corpus)
        assert again.to_frame().equals(corpus.to_frame())
        assert (again.hash, again.languages, again.name) == (corpus.hash, corpus.languages, "x.tsv")
    rows = [("a\tb\r\nc", "d"), ('"a"', '"a""b"'), ("e", '"'), ("\r", "f")]
    kept = tn.load_corpus(tn.load_corpus(frame_of(rows)).save(tmp_path / "x.tsv"))
    assert sorted(by_row(kept)) == sorted(rows[:3])


def test_the_fingerprint_follows_sentences_languages_and_splits():
    frames = [
        frame_of([("a", "b"), ("c", "d")]).assign(split="train"),
        frame_of([("a", "d"), ("c", "b")]).assign(split="train"),
        frame_of([("a", "b"), ("c", "d")]).assign(split=["train", "test"]),
        frame_of([("a", "b"), ("c", "d")], ["en", "ko"]).assign(split="train"),
        frame_of([("a\tb", "c"), ("c", "d")]).assign(split="train"),
        frame_of([("a", "b\tc"), ("c", "d")]).assign(split="train"),
    ]
    assert len({Corpus("x", frame).hash for frame in frames}) == len(frames)
    assert Corpus("y", frames[0].copy()).hash == Corpus("x", frames[0]).hash


def test_the_card_of_a_corpus_is_escaped():
    card = Corpus("<script>", tn.load_corpus(numbered(5), test=0.4).frame, {"empty": 7})._repr_html_()
    assert "<script>" not in card
    for cell in "&lt;script&gt;", "en, ja", ">3<", ">2<", ">7<":
        assert cell in card


# Which columns are languages


def test_metadata_decides_nothing_when_languages_are_named():
    frame = numbered(40).assign(src=["ted"] * 20 + ["wiki"] * 20, lp="en-ja", tag="x", row_id=range(40))
    plain = by_row(tn.load_corpus(numbered(40), ["en", "ja"]))
    assert by_row(tn.load_corpus(frame, ["en", "ja"])) == plain
    assert Counter(plain.values()) == {"train": 20, "test": 20}


def test_metadata_is_no_language_and_empties_nothing():
    metadata = {"url": "x", "row_id": range(40), "len": 7, "ds": "a", "iso_15924": "Latn", "utt": "u", "no": 1.5}
    corpus = tn.load_corpus(numbered(40).assign(**metadata))
    assert corpus.languages == ("en", "ja")
    assert (len(corpus), corpus.dropped) == (40, {})
    assert tn.load_corpus(numbered(40).assign(**metadata), ["en", "url"], test=1.0).languages == ("en", "url")


@pytest.mark.parametrize(
    "columns",
    [("eng_Latn", "jpn_Jpan"), ("eng", "jpn"), ("English", "Japanese"), ("EN", "ja-JP"), ("en", "日本語")],
)
def test_a_language_is_found_by_its_other_names(columns):
    frame = numbered(20).set_axis(list(columns), axis=1)
    corpus = tn.load_corpus(frame, ["ja", "en"])
    assert corpus.languages == ("ja", "en")
    assert by_row(corpus).keys() == {(b, a) for a, b in numbered(20).itertuples(index=False)}
    assert tn.load_corpus(frame).languages == columns
    assert tn.load_corpus(frame).to_frame()["split"].tolist() == corpus.to_frame()["split"].tolist()
    assert corpus["test"]["jpn_Jpan"] == corpus["test"]["ja"]
    assert tn.load_corpus(frame)["train"]["ja"].texts == corpus["train"]["ja"].texts


def test_two_columns_of_one_language_must_be_told_apart():
    frame = numbered(4).set_axis(["zho_Hans", "zho_Hant"], axis=1)
    with pytest.raises(tn.TnkitError, match="more than one column for zh: zho_Hans, zho_Hant; name one of them"):
        tn.load_corpus(frame, ["zh"])
    assert tn.load_corpus(frame, ["zh_TW"]).frame["zh_TW"].tolist() == frame["zho_Hant"].tolist()
    with pytest.raises(tn.TnkitError, match="the column ja exists or was requested twice"):
        tn.load_corpus(numbered(4), ["ja", "jpn"])


def test_texts_of_another_language_are_told_once(caplog):
    frame = numbered(20).assign(ja=[f"jpn {number}" for number in range(20)])
    tn.load_corpus(frame, ["en", "ja"])
    assert caplog.messages == [
        "frame: most letters of ja are in Latin script, which is not how Japanese is written; check the columns"
    ]


# Splits that are given


def test_a_given_split_that_leaks_is_refused_or_repaired():
    rows = [("a", "い"), ("b", "ろ"), ("c", "は"), ("a", "に"), ("e", "ろ"), ("f", "")]
    frame = frame_of(rows).assign(split=["train", "train", "train", "test", "test", "test"])
    with pytest.raises(tn.TnkitError, match=r"2 of 3 training rows hold a sentence of the test split, such as 'a'"):
        tn.load_corpus(frame, ["en", "ja"])
    with pytest.raises(tn.TnkitError, match=r"1 of 3 .* such as 'ろ'; drop them with leaks='drop'"):
        tn.load_corpus(frame, ["ja"])
    corpus = tn.load_corpus(frame, ["en", "ja"], leaks="drop")
    assert corpus.dropped == {"empty": 1, "leaking": 2}
    assert by_row(corpus) == {("c", "は"): "train", ("a", "に"): "test", ("e", "ろ"): "test"}
    with pytest.raises(tn.TnkitError, match="leaks='keep' must be one of refuse, drop"):
        tn.load_corpus(frame, leaks="keep")


@pytest.mark.parametrize(
    ("names", "expected", "dropped"),
    [
        (["Train", "TEST", " training ", "Testing"], ["train", "test", "train", "test"], 0),
        (["train", "dev", "test", "train"], ["train", "test", "train"], 1),
        (["train", "validation", "valid", "train"], ["train", "test", "test", "train"], 0),
        (["dev", "devtest", "dev", "devtest"], ["train", "test", "train", "test"], 0),
        (["test"] * 4, ["test"] * 4, 0),
    ],
)
def test_splits_have_several_names(names, expected, dropped):
    corpus = tn.load_corpus(numbered(4).assign(split=names))
    assert corpus.frame["split"].tolist() == expected
    assert corpus.dropped.get("of the split dev", 0) == dropped


# What a limit and the languages leave as it was


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(-8, 25)] * 3), min_size=3, max_size=60),
    limits=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    test=st.sampled_from([0.2, 0.5, 0.9]),
)
def test_no_row_changes_its_split_with_the_limit_or_the_languages(rows, limits, test):
    """Negative numbers are gaps."""
    texts = [[f"{n}." if n >= 0 else "" for n in row] for row in rows]
    frame, whole = frame_of(texts, ["en", "ja", "ko"]), {}
    for languages in (["en"], ["ja", "en"], ["en", "ko", "ja"]):
        try:
            full = tn.load_corpus(frame, languages, test=test)
        except tn.TnkitError:
            continue
        for language in languages:
            for split in ("train", "test"):
                for text in full[split][language]:
                    assert whole.setdefault((language, text), split) == split
        kept = []
        for limit in sorted(limits):
            part = tn.load_corpus(frame, languages, test=test, limit=limit)
            assert by_row(part).items() <= by_row(full).items()
            assert len(part) == min(limit, len(full))
            share = len(full["test"][languages[0]]) / len(full)
            assert abs(len(part["test"][languages[0]]) - share * len(part)) <= 0.5 + 1e-9
            kept.append(set(by_row(part)))
        assert kept[0] <= kept[1]


def test_a_limit_takes_of_both_splits_of_the_whole():
    whole = by_row(tn.load_corpus(numbered(2000)))
    part = by_row(tn.load_corpus(numbered(2000), limit=200))
    assert part.items() <= whole.items()
    assert Counter(part.values()) == {"train": 100, "test": 100}


def test_a_large_frame_loads_in_seconds():
    started = time.process_time()
    corpus = tn.load_corpus(numbered(100_000))
    assert time.process_time() - started < 6  # it took 12 when each row was hashed on its own
    assert Counter(corpus.frame["split"]) == {"train": 50_000, "test": 50_000}


# Rows


def test_sentences_know_their_rows_through_slices_and_dropping():
    frame = frame_of([("a", "あ"), ("", "い"), ("c", "う"), ("d", "え")]).assign(split="train")
    both, ja = tn.load_corpus(frame)["train"], tn.load_corpus(frame, "ja")["train"]["ja"]
    assert both["en"].ids == both["ja"].ids == (0, 2, 3)
    assert (ja.ids, ja[1:3].ids, ja[::2].ids) == ((0, 1, 2, 3), (1, 2), (0, 2))
    assert both["en"].rows == both["ja"].rows != ja.rows
    assert both["en"].source == both["ja"].source == ja.source
    assert both["ja"][:1].rows == ja[:1].rows
    assert Sentences(("a",)).rows == ""


@pytest.mark.parametrize("source", [None, 7, 2.5, object(), b"x.tsv", {1, 2}, len])
def test_what_is_no_source_ends_in_a_sentence(source):
    with pytest.raises(tn.TnkitError):
        tn.load_corpus(source, ["en", "ja"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (([1, 2], 0.5, None), "languages holds 1"),
        ((5, 0.5, None), "languages holds 5"),
        ((None, "half", None), "test='half'"),
        ((None, None, None), "test=None"),
        ((None, 0.5, 2.5), "limit=2.5"),
        ((None, 0.5, True), "limit=True"),
    ],
)
def test_options_of_another_kind_end_in_a_sentence(options, message):
    with pytest.raises(tn.TnkitError, match=message):
        corpora._checked(*options, "refuse")


EN = [f"I can see {number} houses from the hill." for number in range(40)]
ID = [f"Aku melihat {number} rumah dari bukit." for number in range(40)]


@pytest.mark.parametrize(
    "source",
    [
        pd.DataFrame({"id": [*map(str, range(80))], "lang": ["id"] * 40 + ["en"] * 40, "text": [*ID, *EN]}).drop(
            columns="id"
        ),
        pd.DataFrame({"id": [*range(40)] * 2, "lang": ["ind"] * 40 + ["eng"] * 40, "text": [*ID, *EN]}),
        [
            {"id": str(row), "translation": {"en": en, "id": text}}
            for row, (en, text) in enumerate(zip(EN, ID, strict=True))
        ],
        pd.DataFrame({"id": [*map(str, range(40))], "en": EN, "ind_Latn": ID}),
        pd.DataFrame({"en": EN, "id": ID}),
    ],
    ids=["long", "long with numbers", "nested", "beside numbers", "wide"],
)
def test_indonesian_is_never_the_number_of_the_row(source):
    corpus = tn.load_corpus(source, ["en", "id"], test=0.0)
    assert [*corpus["train"]["id"]] == ID and [*corpus["train"]["en"]] == EN


def test_numbers_of_rows_are_no_indonesian():
    with pytest.raises(tn.TnkitError, match="no column for id"):
        tn.load_corpus([{"id": str(row), "url": "u", "text": text} for row, text in enumerate(ID)], ["id"])


@pytest.mark.parametrize("tags", [["2020"] * 40, ["OPUS", "TED"] * 20], ids=["year", "source"])
@pytest.mark.parametrize("column", ["ts", "co"])
def test_tags_under_the_code_of_a_language_do_not_decide_the_split(column, tags):
    corpus = tn.load_corpus(pd.DataFrame({"en": EN, "id": ID, column: tags}), ["en", "id"])
    assert len(corpus["test"]["en"]) == 20


def test_splits_of_files_are_kept(tmp_path):
    split = ["train"] * 25 + ["test"] * 15
    for language, texts in {"en": EN, "id": ID}.items():
        pd.DataFrame({language: texts, "split": split}).to_csv(tmp_path / f"x.{language}.csv", index=False)
    for start, stop, name in ((0, 25, "train"), (25, 40, "test")):
        pd.DataFrame({"en": EN[start:stop], "id": ID[start:stop]}).to_csv(
            tmp_path / f"{name}.tsv", sep="\t", index=False
        )
    for source in (
        {"en": tmp_path / "x.en.csv", "id": tmp_path / "x.id.csv"},
        [tmp_path / "train.tsv", tmp_path / "test.tsv"],
    ):
        corpus = tn.load_corpus(source, ["en", "id"])
        assert [*corpus["train"]["id"]] == ID[:25] and [*corpus["test"]["en"]] == EN[25:]


def test_one_language_under_two_names_and_an_empty_name_are_refused():
    with pytest.raises(tn.TnkitError, match="column en exists or was requested twice"):
        tn.load_corpus(pd.DataFrame({"en": EN, "English": ID}), ["en", "English"])
    with pytest.raises(tn.TnkitError, match="name of the corpus is empty"):
        tn.load_corpus("")


def test_a_first_line_of_words_is_no_header(tmp_path):
    (tmp_path / "x.tsv").write_text("No\tnee\nHi.\tHoi.\n")
    with pytest.raises(tn.TnkitError, match="header"):
        tn.load_corpus(tmp_path / "x.tsv")
