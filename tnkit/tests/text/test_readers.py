"""Readers: every format gives the same corpus; every complaint names the file, the line, and what to do."""

import csv
import io
import json
import pickle
import re

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pyarrow.parquet import write_table

import tnkit as tn
from tnkit.text import files, readers

EN = [
    'He said "hi", twice.',
    "Two lines\u2028in\u2029one\x85cell\x0b\x0c\x1c\x1d\x1e.",
    "It's 'fine'…",
    '"Quoted"',
    "One, two",
]
JA = ["彼は「やあ」と二度言った。", "全角\u3000の空白。", "いいよ…", "「引用」", "一、二"]
PAIRS = list(zip(EN, JA, strict=True))
LANGUAGES = ["en", "ja"]


def joined(rows, between="\t", end="\n"):
    return "".join(between.join(row) + end for row in rows).encode()


def comma_separated(rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def parquet(**columns):
    data = io.BytesIO()
    pd.DataFrame(columns).to_parquet(data)
    return data.getvalue()


TABLES = {
    "plain.tsv": joined([LANGUAGES, *PAIRS]),
    "byte-order-mark.tsv": b"\xef\xbb\xbf" + joined([LANGUAGES, *PAIRS]),
    "windows.TSV": joined([LANGUAGES, *PAIRS], end="\r\n"),
    "no-last-newline.tsv": joined([LANGUAGES, *PAIRS]).rstrip(b"\n"),
    "blank-lines.tsv": joined([LANGUAGES, *PAIRS], end="\n\n"),
    "swapped.tsv": joined([("ja", "note", "en"), *((ja, "x", en) for en, ja in PAIRS)]),
    "plain.csv": comma_separated([LANGUAGES, *PAIRS]),
    "byte-order-mark.csv": b"\xef\xbb\xbf" + comma_separated([LANGUAGES, *PAIRS]).replace(b"\n", b"\r\n"),
    "plain.jsonl": "".join(
        json.dumps(dict(zip(LANGUAGES, pair, strict=True)), ensure_ascii=False) + "\n\n" for pair in PAIRS
    ).encode(),
    "escaped.jsonl": "\r\n".join(json.dumps(dict(zip(LANGUAGES, pair, strict=True))) for pair in PAIRS).encode(),
    "table.parquet": parquet(number=list(range(len(EN))), ja=JA, en=EN),
    "tuples.pkl": pickle.dumps(PAIRS),
    "lists.pkl": pickle.dumps([list(pair) for pair in PAIRS], protocol=0),
}
SINGLES = {
    "plain.txt": "\n".join(EN).encode(),
    "byte-order-mark.txt": b"\xef\xbb\xbf" + "\r\n".join([*EN, ""]).encode(),
    "strings.pkl": pickle.dumps(EN),
    "tuples-of-one.pkl": pickle.dumps([(text,) for text in EN]),
    "column.tsv": joined([["en"], *([text] for text in EN)]),
}


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", TABLES)
def test_every_table_gives_the_same_corpus(tmp_path, name):
    expected = tn.load_corpus(pd.DataFrame(PAIRS, columns=LANGUAGES))
    assert sorted(expected.frame[LANGUAGES].itertuples(index=False, name=None)) == sorted(PAIRS)
    corpus = tn.load_corpus(written(tmp_path, name, TABLES[name]), LANGUAGES)
    assert corpus.to_frame().equals(expected.to_frame())
    assert (corpus.hash, corpus.languages, corpus.dropped, corpus.name) == (expected.hash, ("en", "ja"), {}, name)


@pytest.mark.parametrize("name", SINGLES)
def test_every_list_gives_the_same_corpus(tmp_path, name):
    corpus = tn.load_corpus(written(tmp_path, name, SINGLES[name]), "en")
    assert corpus.frame["en"].tolist() == EN
    assert corpus.hash == tn.load_corpus(pd.DataFrame({"en": EN})).hash
    assert corpus.dropped == {}


def test_a_cell_keeps_what_csv_and_json_can_say(tmp_path):
    texts = ["a\tb", "a\nb", 'a"b']
    for name, data in {
        "x.csv": comma_separated([["en"], *([text] for text in texts)]),
        "x.jsonl": "".join(json.dumps({"en": text}) + "\n" for text in texts).encode(),
    }.items():
        assert readers.read_table(written(tmp_path, name, data))["en"].tolist() == texts


def test_columns_named_by_language_are_found(tmp_path):
    data = joined([("id", "topic", "en", "zh-Hans", "pt_BR", "Score", "split"), ("1", "t", "a", "b", "c", "2", "test")])
    corpus = tn.load_corpus(written(tmp_path, "x.tsv", data))
    assert corpus.languages == ("en", "zh-Hans", "pt_BR")
    assert corpus["test"]["pt_BR"][0] == "c"


def test_a_blank_line_of_plain_text_is_an_empty_sentence(tmp_path):
    corpus = tn.load_corpus(written(tmp_path, "x.txt", b"a\n\nb\n \n"), "en")
    assert (corpus.frame["en"].tolist(), corpus.dropped) == (["a", "b"], {"empty": 2})


LATIN = "caffè".encode("latin-1")
WRONG = {
    "empty.tsv": (b"", r" is empty; was it saved"),
    "rows.tsv": (b"en\tja\na\tb\na\tb\tc\n", r", line 3: 3 columns, expected 2 as in line 1 \(en, ja\)"),
    "space.tsv": (b"en\tja\na\tb\n \n", r", line 3: 1 columns, expected 2"),
    "rows.csv": (b'en,ja\n"a\nb",c\nd\n', r", line 4: 1 columns, expected 2"),
    "open.csv": (b'en,ja\n"a,b\nc,d\n', r", line 3: .*check its quotes"),
    "torn.csv": (b'en,ja\n"a"b,c\n', r", line 2: .*check its quotes"),
    "long.csv": (b'en,ja\n"a",' + b"b" * 200_000, r", line 2: field larger"),
    "latin.tsv": (b"en\tit\na\tb\nc\t" + LATIN + b"\n", r", line 3: not UTF-8 text; save it as UTF-8"),
    "latin-first.tsv": (b"\xef\xbb\xbfit\n" + LATIN[-1:] + b"\n", r", line 2: not UTF-8 text; save it as UTF-8"),
    "latin.jsonl": (b'{"en": "a"}\n{"en": "' + LATIN + b'"}', r", line 2: not UTF-8"),
    "utf16.tsv": ("en\tja\n".encode("utf-16-le"), r", line 1: not text but binary data; is its ending right"),
    "half.tsv": ("en\tja\na\tb\n".encode("utf-16")[:-1], r", line \d+: not UTF-8 text; save it as UTF-8"),
    "binary.tsv": (b"en\tja\na\tb\nPK\0\0\n", r", line 3: not text but binary data; is its ending right\?"),
    "parquet.tsv": (TABLES["table.parquet"], r", line \d+: not .*; (save it as UTF-8|is its ending right\?)"),
    "twice.tsv": (b"en\tja\ten\na\tb\tc\n", r", line 1: a column is named twice .*name each column once"),
    "twice.csv": (b"en,en \na,b\n", r", line 1: a column is named twice"),
    "twice.parquet": (parquet(en=["a"], ja=["b"]).replace(b"ja", b"en"), r": a column is named twice in .'en', 'en'"),
    "nameless.tsv": (b"\n\na\tb\n", r", line 1: no names of columns; name each by its language code"),
    "header.tsv": (b"en\tja\n", r" has no sentences"),
    "broken.jsonl": (b'{"en": "a"}\n\n{"en": "a"\n', r", line 3: not JSON \(.*give one object a line"),
    "deep.jsonl": (b'{"en": "a"}\n' + b"[" * 100_000, r", line 2: not JSON \(.*give one object a line"),
    "list.jsonl": (b'{"en": "a"}\n["a", "b"]\n', r", line 2: expected an object such as \{.en"),
    "half.jsonl": (b'{"en": "a", "ja": "b"}\n{"en": "c", "ja": "\\ud83d"}\n', r", ja in row 2: an unpaired surrogate"),
    "blank.jsonl": (b"\n\n", r" has no column for en, ja; it has none: name each column by its language code"),
    "numbers.jsonl": (b'{"en": 1, "ja": 2}', r", en in row 1: expected text, not int \(1\)"),
    "text.parquet": (b"en\tja\na\tb\n", r" is not a readable Parquet file \(.*is its ending right\?"),
    "cut.parquet": (TABLES["table.parquet"][:-20], r" is not a readable Parquet file"),
    "text.pkl": (b"en\tja\na\tb\n", r" is not a .*pickle.*; save it as TSV or JSONL"),
    "cut.pkl": (TABLES["tuples.pkl"][:-20], r" is not a .*pickle.*; save it as TSV or JSONL"),
    "dict.pkl": (pickle.dumps({"en": "a"}), r" holds dict, expected a list"),
    "none.pkl": (pickle.dumps([]), r" holds nothing, expected a list of sentences"),
    "numbers.pkl": (pickle.dumps([1, 2]), r", item 0: expected a sentence"),
    "mixed.pkl": (pickle.dumps([("a", "b"), ("c", 1)]), r", item 1: expected 2 sentences"),
    "uneven.pkl": (pickle.dumps([("a", "b"), ("c", "d"), ("e",)]), r", item 2: expected 2 sentences"),
    "singles.pkl": (SINGLES["strings.pkl"], r" holds single sentences .*requested: en, ja.; name 1 language in"),
    "triples.pkl": (pickle.dumps([("a", "b", "c")]), r" holds tuples of 3 sentences .*name 3 languages in their order"),
    "aligned.txt": (b"a\nb\n", r" holds single sentences .requested: en, ja.; name one language, or give .*TSV"),
    "missing.tsv": (b"en\tko\na\tb\n", r" has no column for ja; it has en, ko: name each column by its language code"),
    "split.tsv": (
        b"en\tja\tsplit\na\tb\ttrain\nc\td\tgold\n",
        r": the column split holds 'gold'; expected train and test",
    ),
    "table.xlsx": (b"PK\3\4", r" is not a readable Excel file \(.*\); is its ending right\?"),
    "letter.docx": (b"PK\3\4", r" ends in \.docx; tnkit reads \.tsv \.csv \.jsonl .*\.parquet .*\.txt \.pkl"),
    "ending": (b"a\n", r" ends in nothing; tnkit reads \.tsv"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_says_where_and_what_to_do(tmp_path, name):
    data, message = WRONG[name]
    with pytest.raises(tn.TnkitError, match=rf"{name}{message}") as caught:
        tn.load_corpus(written(tmp_path, name, data), LANGUAGES)
    assert "\n" not in str(caught.value)


def test_pairs_where_one_language_is_named(tmp_path):
    path = written(tmp_path, "pairs.pkl", TABLES["tuples.pkl"])
    for languages, asked in (["en"], "en"), (None, "no language"):
        with pytest.raises(tn.TnkitError, match=rf"pairs.pkl holds tuples of 2 .*requested: {asked}.; name 2"):
            tn.load_corpus(path, languages)
    with pytest.raises(tn.TnkitError, match=r"x.txt holds single .*requested: no language.; name one language"):
        tn.load_corpus(written(tmp_path, "x.txt", b"a\n"))


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "folder.tsv").mkdir()
    for name, message in {
        "none.tsv": r"there is no file .*none.tsv; check its name",
        "folder.tsv": r"folder.tsv is a folder in no layout that tnkit knows for en, ja .*; name one file in it",
        "a" * 300: r"cannot read .*aaa: File name too long",
        "nul\0.tsv": r"there is no file ",
    }.items():
        with pytest.raises(tn.TnkitError, match=message):
            tn.load_corpus(tmp_path / name, LANGUAGES)


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("plain") or name.endswith(("et", "pkl"))])
def test_a_file_cut_anywhere_is_an_error_or_some_of_its_rows(tmp_path, name):
    data = TABLES[name]
    for length in range(0, len(data), 1 + len(data) // 100):
        try:
            frame = readers.read_table(written(tmp_path, name, data[:length]), LANGUAGES)
        except tn.TnkitError as error:
            assert name in str(error)
        else:
            rows = frame.reindex(columns=LANGUAGES).astype(object).to_numpy().tolist()
            assert [tuple(row) for row in rows[:-1]] == PAIRS[: max(len(rows) - 1, 0)]


def test_a_parquet_file_that_unfolds_into_more_than_memory_is_refused(tmp_path, monkeypatch):
    """A value that is stored once can stand in every row: 400 bytes here that would be 5 GB."""
    monkeypatch.setattr(files, "BYTES", 1 << 28)
    once = pyarrow.DictionaryArray.from_arrays(np.zeros(50_000, dtype="int32"), ["a" * 100_000])
    long = pyarrow.nulls(60_000_000)
    for name, columns, size, words in [
        ("bomb.parquet", {"en": once}, 400, "holds more than 256 MiB of text; load a part of it"),
        ("long.parquet", {"en": long, "ja": long}, 300_000, "holds 60,000,000 rows of 2 columns; load a part of them"),
    ]:
        table = pyarrow.table(columns)
        write_table(table, tmp_path / name, store_schema=False, compression="zstd", row_group_size=len(table))
        assert (tmp_path / name).stat().st_size < size
        with pytest.raises(tn.TnkitError, match=f"{name} {words}"):
            readers.read_table(tmp_path / name)


def test_a_return_that_csv_of_python_3_13_quotes_is_read(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b'en\tja\n\t\na\t"\r"\n')
    assert readers.read_table(tmp_path / "x.tsv", ["en", "ja"])["ja"].tolist() == ["", "\r"]


_TEXT = st.text(st.sampled_from('ab" \t\n\r日"'), max_size=8)
_ROWS = st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_ROWS, how=st.sampled_from(["pandas", "csv", "all quoted", "plain", "saved"]), width=st.integers(1, 2))
@example(rows=[("\r", ""), ("\r", ""), ("\n", ""), ("\n", "")], how="pandas", width=1)
def test_a_tsv_comes_back_exactly_or_is_refused(tmp_path, rows, how, width):
    """Whoever wrote it; but for a plain file whose cells all are, letter by letter, what csv writes of another text."""
    names = LANGUAGES[:width]
    rows = [row[:width] for row in rows]
    if how == "plain":
        rows = [tuple(cell.replace("\t", " ").replace("\n", " ").replace("\r", " ") for cell in row) for row in rows]
        text = "".join("\t".join(row) + "\n" for row in [names, *rows])
        quoted = [cell for row in rows for cell in row if '"' in cell]
        assume(not quoted or not all(re.fullmatch('"(?:[^"]|"")*""(?:[^"]|"")*"', cell) for cell in quoted))
    elif how == "pandas":
        text = pd.DataFrame(rows, columns=names).to_csv(sep="\t", index=False)
    elif how == "saved":
        wanted = [row for row in rows if all(cell.strip() for cell in row)]
        assume(wanted)
        text = tn.load_corpus(pd.DataFrame(wanted, columns=names)).save(tmp_path / "y.tsv").read_bytes().decode()
    else:
        file = io.StringIO(newline="")
        quoting = csv.QUOTE_ALL if how == "all quoted" else csv.QUOTE_MINIMAL
        csv.writer(file, delimiter="\t", lineterminator="\n", quoting=quoting).writerows([names, *rows])
        text = file.getvalue()
    (tmp_path / "x.tsv").write_bytes(text.encode())
    try:
        frame = readers.read_table(tmp_path / "x.tsv", names)
    except tn.TnkitError as error:
        assert how != "saved"
        assert re.search("two ways|columns, expected|has no sentences|quotes and separators", str(error))
        return
    found = [tuple(cell.strip() for cell in row) for row in frame[names].itertuples(index=False, name=None)]
    expected = [tuple(cell.strip() for cell in row) for row in (wanted if how == "saved" else rows)]
    expected = [*{*expected}] if how == "saved" else expected
    assert sorted(filter(any, found)) == sorted(filter(any, expected))
