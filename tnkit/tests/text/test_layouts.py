"""Layouts: a data set as people have it gives its pairs, whichever way it lies on disk or in memory."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import datasets
import numpy as np
import pandas as pd
import pytest

import tnkit as tn
from tnkit.testing import tiny_model
from tnkit.text import files, layouts, sources, tables

# Each number twice, so that no single changed byte makes one sentence of another.
EN = [f"I can see {n} houses and {n} cats." for n in range(12)]
JA = [f"家が{n}軒、猫が{n}匹見える。" for n in range(12)]
PAIRS = list(zip(EN, JA, strict=True))
LANGUAGES = ["en", "ja"]
TSV = "en\tja\n" + "".join(f"{en}\t{ja}\n" for en, ja in PAIRS)
FRAME = pd.DataFrame({"en": EN, "ja": JA})


def put(folder, **texts):
    """Files by their path, with _ for / in the keyword `place`."""
    for name, data in texts.items():
        put_at(folder / name, data)


def put_at(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(rows):
    return "".join(row + "\n" for row in rows)


def json_lines(rows):
    return lines(json.dumps(row, ensure_ascii=False) for row in rows)


def in_bytes(write):
    data = io.BytesIO()
    write(data)
    return data.getvalue()


def zipped(members):
    def write(data):
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in members.items():
                archive.writestr(name, text)

    return in_bytes(write)


def tarred(members):
    def write(data):
        with tarfile.open(fileobj=data, mode="w:bz2") as archive:
            for name, text in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))

    return in_bytes(write)


def arrow_bytes(frame):
    import pyarrow

    table = pyarrow.Table.from_pandas(frame)

    def write(data):
        with pyarrow.ipc.new_stream(data, table.schema) as stream:
            stream.write_table(table)

    return in_bytes(write)


NESTED = [{"translation": {"en": en, "ja": ja, "xx": None}} for en, ja in PAIRS]
LONG = [
    {"lang": lang, "id": n, "text": text}
    for lang, texts in zip(LANGUAGES, (EN, JA), strict=True)
    for n, text in enumerate(texts)
]
TMX = (
    '<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4"><header/><body>\n'
    + lines(
        f'<tu><tuv xml:lang="en"><seg>{en.replace("houses", "<bpt>x</bpt>houses")}</seg></tuv>'
        f'<tuv xml:lang="{"JA"}"><seg>{ja}</seg></tuv></tu>'
        for n, (en, ja) in enumerate(PAIRS)
    )
    + "</body></tmx>"
)
ANKI = lines(f"{en}\t{ja}\tCC-BY 2.0 (France) Attribution: tatoeba.org #{n}" for n, (en, ja) in enumerate(PAIRS))
TABLES = {
    "a.tsv.gz": gzip.compress(TSV.encode()),
    "a.tsv.bz2": bz2.compress(TSV.encode()),
    "a.tsv.xz": lzma.compress(TSV.encode()),
    "a.zip": zipped({"in/a.tsv": TSV, "__MACOSX/a.tsv": "x"}),
    "a.tar.bz2": tarred({"a.tsv": TSV}),
    "little.tsv": b"\xff\xfe" + TSV.encode("utf-16-le"),
    "big.tsv": b"\xfe\xff" + TSV.encode("utf-16-be"),
    "mac.tsv": TSV.replace("\n", "\r").encode(),
    "windows.tsv": TSV.replace("\n", "\r\n").encode(),
    "semi.json": json.dumps([dict(zip(LANGUAGES, pair, strict=True)) for pair in PAIRS]).encode(),
    "columns.json": json.dumps({"en": EN, "ja": JA}).encode(),
    "wrapped.json": json.dumps({"data": [dict(zip(LANGUAGES, pair, strict=True)) for pair in PAIRS]}).encode(),
    "pairs.json": json.dumps(PAIRS).encode(),
    "a.ndjson": json_lines(dict(zip(LANGUAGES, pair, strict=True)) for pair in PAIRS).encode(),
    "nested.jsonl": json_lines(NESTED).encode(),
    "nested.parquet": in_bytes(pd.DataFrame(NESTED).to_parquet),
    "nested-json.csv": pd.DataFrame({"translation": [json.dumps(row["translation"]) for row in NESTED]})
    .to_csv(index=False)
    .encode(),
    "nested-python.csv": pd.DataFrame({"translation": [str(row["translation"]) for row in NESTED]})
    .to_csv(index=False)
    .encode(),
    "variable.jsonl": json_lines(
        {"translation": {"language": LANGUAGES, "translation": pair}, "id": n} for n, pair in enumerate(PAIRS)
    ).encode(),
    "long.jsonl": json_lines(reversed(LONG)).encode(),
    "long.csv": pd.DataFrame(LONG).to_csv(index=False).encode(),
    "long-in-order.csv": pd.DataFrame(LONG)[["lang", "text"]].to_csv(index=False).encode(),
    "flores.parquet": in_bytes(
        pd.DataFrame(
            [
                {"id": n, "iso_639_3": code, "iso_15924": script, "glottocode": "x", "text": text}
                for code, script, texts in (("eng", "Latn", EN), ("jpn", "Jpan", JA))
                for n, text in enumerate(texts)
            ]
        ).to_parquet
    ),
    "english.tsv": lines(["english\tnon_english", *TSV.splitlines()[1:]]).encode(),
    "a.tmx": TMX.encode(),
    "anki.txt": ANKI.encode(),
    "anki.tsv": ANKI.encode(),
    "tatoeba-pairs.tsv": lines(f"{n}\t{en}\t{n + 100}\t{ja}" for n, (en, ja) in enumerate(PAIRS)).encode(),
    "sheet.xlsx": in_bytes(lambda data: FRAME.to_excel(data, index=False)),
    "table.arrow": arrow_bytes(FRAME),
    "table.feather": in_bytes(FRAME.to_feather),
}


def rows_of(corpus):
    assert set(corpus.languages) == {"en", "ja"}
    return sorted(corpus.frame[LANGUAGES].itertuples(index=False, name=None))


@pytest.mark.parametrize("name", TABLES)
def test_a_file_in_any_layout_gives_its_pairs(tmp_path, name):
    corpus = tn.load_corpus(put_at(tmp_path / name, TABLES[name]), LANGUAGES)
    assert rows_of(corpus) == sorted(PAIRS)
    assert corpus.dropped == {}


def by_language(name, rows):
    return {
        name.format(*tags): rows(texts)
        for tags, texts in ((("en", "eng", "Latn", "US"), EN), (("ja", "jpn", "Jpan", "JP"), JA))
    }


def tsv_of(columns):
    return lines("\t".join(map(str, row)) for row in columns)


FOLDERS = {
    "FLORES-200": by_language("dev/{1}_{2}.dev", lines) | by_language("devtest/{1}_{2}.devtest", lines),
    "FLORES, older": by_language("dev/dev.{1}_{2}", lines),
    "FLORES+": by_language(
        "dev/{1}_{2}.jsonl", lambda texts: json_lines({"id": n, "text": t} for n, t in enumerate(texts))
    ),
    "NTREX-128": {
        "newstest2019-src.eng.txt": lines(EN),
        "newstest2019-ref.eng-GB.txt": lines(["Other."] * 12),
        "newstest2019-ref.jpn.txt": lines(JA),
        "LANGUAGES.tsv": "x\ty\n",
    },
    "Belebele": by_language(
        "data/{1}_{2}.jsonl",
        lambda texts: json_lines(
            {"link": f"l{n // 2}", "question_number": n % 2, "flores_passage": t, "question": "?"}
            for n, t in reversed(list(enumerate(texts)))
        ),
    ),
    "SIB-200": by_language(
        "{1}_{2}/train.tsv",
        lambda texts: tsv_of([("index_id", "category", "text"), *((n, "geography", t) for n, t in enumerate(texts))]),
    ),
    "MASSIVE": by_language(
        "data/{0}-{3}.jsonl",
        lambda texts: json_lines(
            {"id": str(n), "locale": "x", "partition": "train", "utt": t} for n, t in enumerate(texts)
        ),
    ),
    "OPUS": by_language("OpenSubtitles.en-ja.{0}", lines) | {"README": "x", "LICENSE": "y"},
    "a file a language": by_language("{0}.txt", lines),
    "a folder a language": by_language("{0}/train.txt", lines),
    "a folder a pair": {
        "en-ja/train.jsonl": json_lines(NESTED),
        "en-de/train.jsonl": json_lines([{"translation": {}}]),
    },
    "Tatoeba": {
        "sentences.csv": lines(
            [f"{n}\teng\t{t}" for n, t in enumerate(EN)]
            + [f"{n + 100}\tjpn\t{t}" for n, t in enumerate(JA)]
            + ["999\tfra\tOui."]
        ),
        "links.csv": lines([*(f"{n + 100}\t{n}" for n in range(12)), "0\t111", "1\t999"]),
    },
    "Tatoeba, by language": {
        "eng_sentences.tsv": lines(f"{n}\teng\t{t}" for n, t in enumerate(EN)),
        "jpn_sentences.tsv": lines(f"{n + 100}\tjpn\t{t}" for n, t in enumerate(JA)),
        "eng-jpn_links.tsv": lines(f"{n}\t{n + 100}" for n in range(12)),
    },
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_or_archive_of_a_data_set_gives_its_pairs(tmp_path, name, packed):
    members = dict(FOLDERS[name])
    if name == "FLORES-200":  # its parts differ
        members = {
            file: text.replace("houses", "cats").replace("家", "猫") if "test" in file else text
            for file, text in members.items()
        }
    if packed:
        source = put_at(tmp_path / "x.zip", zipped(members))
    else:
        source = tmp_path
        for file, text in members.items():
            put_at(tmp_path / file, text)
    name_of, frame = sources.read(source, LANGUAGES)
    rows = list(frame[LANGUAGES].itertuples(index=False, name=None))
    if name == "FLORES-200":
        assert frame["split"].tolist() == ["dev"] * 12 + ["devtest"] * 12
        rows = rows[:12]
    assert sorted(rows) == sorted(PAIRS)
    assert str(source).endswith(name_of)


def pairs_in_memory():
    dataset = datasets.Dataset.from_list([{"en": en, "ja": ja} for en, ja in PAIRS])
    return {
        "a frame": FRAME,
        "a dict of lists": {"en": EN, "ja": JA},
        "a dict of arrays": {"en": np.array(EN), "ja": pd.Series(JA)},
        "a list of pairs": PAIRS,
        "a list of dicts": [{"en": en, "ja": ja} for en, ja in PAIRS],
        "a data set": dataset,
        "a shuffled data set": dataset.shuffle(seed=0),
        "a data set with a translation": datasets.Dataset.from_list(NESTED),
        "data sets": datasets.DatasetDict(train=dataset.select(range(8)), test=dataset.select(range(8, 12))),
    }


@pytest.mark.parametrize("name", pairs_in_memory())
def test_an_object_in_memory_gives_its_pairs(name):
    corpus = tn.load_corpus(pairs_in_memory()[name], LANGUAGES)
    assert rows_of(corpus) == sorted(PAIRS)
    if name == "data sets":
        assert len(corpus["test"]) and set(corpus["test"]["en"]) == set(EN[8:])


def test_what_streams_says_what_to_do():
    stream = datasets.Dataset.from_list(NESTED).to_iterable_dataset()
    with pytest.raises(tn.TnkitError, match=r"IterableDataset, which streams; give a datasets.Dataset"):
        tn.load_corpus(stream, LANGUAGES)
    with pytest.raises(tn.TnkitError, match=r"the int is int, expected a file, a pandas frame"):
        tn.load_corpus(3, LANGUAGES)


@pytest.mark.parametrize("splits", [False, True])
def test_what_datasets_saved_is_read(tmp_path, splits):
    dataset = datasets.Dataset.from_list(NESTED)
    whole = datasets.DatasetDict(train=dataset.select(range(8)), test=dataset.select(range(8, 12)))
    (whole if splits else dataset).save_to_disk(tmp_path / "saved")
    frame = sources.read(tmp_path / "saved", LANGUAGES)[1]
    assert sorted(frame[LANGUAGES].itertuples(index=False, name=None)) == sorted(PAIRS)
    assert ("split" in frame) == splits


def test_two_files_are_a_corpus_by_a_dict_a_list_or_how_their_names_begin(tmp_path, monkeypatch):
    put(tmp_path, **{"x.en": lines(EN), "x.ja.gz": gzip.compress(lines(JA).encode())})
    one, other = tmp_path / "x.en", tmp_path / "x.ja.gz"
    monkeypatch.setenv("HOME", str(tmp_path))
    for source, languages in [
        ({"en": one, "ja": str(other)}, None),
        ([one, other], None),
        ([str(other), str(one)], LANGUAGES),
        (tmp_path / "x", LANGUAGES),
        ("~/x", None),
    ]:
        assert rows_of(tn.load_corpus(source, languages)) == sorted(PAIRS)
    put_at(other, gzip.compress(lines(JA[:-1]).encode()))
    with pytest.raises(tn.TnkitError, match=r"different numbers of rows \(12 in en, 11 in ja\); they are not parallel"):
        tn.load_corpus([one, other])


def test_rows_are_matched_by_their_ids_and_the_rest_is_counted():
    frame = pd.DataFrame(LONG).drop(index=[0, 14])  # id 0 in en, id 2 in ja
    matched = PAIRS[1:2] + PAIRS[3:]
    for rows in (frame, frame.sample(frac=1, random_state=0)):
        corpus = tn.load_corpus(rows, LANGUAGES)
        assert pairs_of(corpus) == sorted(matched)
        assert corpus.dropped == {"without a translation": 2} and len(corpus) == 10
    with pytest.raises(tn.TnkitError, match=r"no id is in every language \(12 in en, 12 in ja\)"):
        tn.load_corpus(pd.DataFrame([row | {"id": n} for n, row in enumerate(LONG)]), LANGUAGES)
    with pytest.raises(tn.TnkitError, match=r"x has no sentences in ko; it has en, ja"):
        layouts.wide("x", frame, ["en", "ko"])


def test_tables_of_a_folder_without_a_header(tmp_path):
    for split, rows in {"train": PAIRS, "test": PAIRS[:1]}.items():
        (tmp_path / f"{split}.tsv").write_text("".join(f"{one}\t{two}\n" for one, two in rows))
    corpus = tn.load_corpus(tmp_path, LANGUAGES, header=None, leaks="drop")
    assert len(corpus.frame) == len(PAIRS)  # the first pair is in both splits
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{}")
    with pytest.raises(tn.TnkitError, match="whose columns have names; leave header=None out"):
        tn.load_corpus(saved, LANGUAGES, header=None)


def test_tables_without_a_header(tmp_path):
    two = put_at(tmp_path / "two.tsv", lines(TSV.splitlines()[1:]))
    packed = put_at(tmp_path / "two.tsv.gz", gzip.compress(two.read_bytes()))
    for path in two, packed:
        assert rows_of(tn.load_corpus(path, LANGUAGES, header=None)) == sorted(PAIRS)
        with pytest.raises(
            tn.TnkitError, match=r"line 1: no names of columns.* a file without a header, give header=None"
        ):
            tn.load_corpus(path, LANGUAGES)
    with pytest.raises(tn.TnkitError, match=r"has 2 columns and no header .requested: en.; name one language for"):
        tn.load_corpus(two, ["en"], header=None)
    with pytest.raises(tn.TnkitError, match=r"header=3 must be 0"):
        tn.load_corpus(two, ["en"], header=3)
    anki = put_at(tmp_path / "jpn.txt", ANKI)
    with pytest.raises(tn.TnkitError, match=r"looks like Anki's pairs, which have no header .requested: ja.; name 2"):
        tn.load_corpus(anki, ["ja"])
    export = put_at(tmp_path / "sentences.csv", lines(f"{n}\tjpn\t{text}" for n, text in enumerate(JA)))
    assert set(tn.load_corpus(export, ["ja"]).frame["ja"]) == set(JA)


def test_fields_that_are_missing_more_or_no_text(tmp_path):
    rows = [{"en": "a", "ja": "b", "more": [1, {"x": 2}]}, {"en": "c"}, {"en": None, "ja": "d"}, {"ja": "f", "en": "e"}]
    corpus = tn.load_corpus(put_at(tmp_path / "x.jsonl", json_lines(rows)), LANGUAGES)
    assert rows_of(corpus) == [("a", "b"), ("e", "f")] and corpus.dropped == {"empty": 2}
    for wrong in (3, ["x"], {"a": "b"}, True, 2.5):
        path = put_at(tmp_path / "x.jsonl", json_lines([*rows, {"en": "x", "ja": wrong}]))
        with pytest.raises(tn.TnkitError, match=r"x.jsonl, ja in row 5: expected text, not (int|list|dict|bool|float)"):
            tn.load_corpus(path, LANGUAGES)
        assert tn.load_corpus(path, ["en"]).dropped["empty"] == 1  # of no matter there


WRONG = {
    "entity.tmx": (TMX.replace('SYSTEM "tmx14.dtd"', '[<!ENTITY a "b">]'), r"declares its own document type"),
    "cut.tmx": (TMX[:-40], r"is not a readable TMX file \(.*line \d+"),
    "none.tmx": ("<tmx><body/></tmx>", r"has no translation units"),
    "cut.tsv.gz": (gzip.compress(TSV.encode())[:-20], r"is not a readable .gz file"),
    "no.zip": (TSV, r"is not a readable archive"),
    "uneven.json": (json.dumps({"en": EN, "ja": JA[1:]}), r"its lists differ in length \(12 in en, 11 in ja\)"),
    "odd.json": (json.dumps({"en": "a"}), r"holds dict, expected a list of sentences for each language"),
    "number.json": ("3", r"holds int, expected a list"),
    "nested.csv": ('translation\n"not a dict"\n', r"translation in row 1: expected a dict such as"),
    "more.xlsx": (
        in_bytes(lambda data: pd.DataFrame([[1, 2]]).to_excel(data, index=False, header=False)),
        r"has no col|row 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_told_in_a_sentence(tmp_path, name):
    data, message = WRONG[name]
    with pytest.raises(tn.TnkitError, match=message) as caught:
        tn.load_corpus(put_at(tmp_path / name, data), LANGUAGES)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_folders_that_are_no_corpus(tmp_path):
    for members, message in [
        ({"a.tsv": TSV, "b.tsv": TSV}, r"is a folder in no layout that tnkit knows for en, ja"),
        ({"x.en": "a\n", "x.ja": "b\nc\n"}, r"different numbers of rows \(1 in en, 2 in ja\)"),
        ({"x.en": "a\n", "y.ja": "b\n"}, r"the files of its languages differ in name .en: x; ja: y."),
        (by_language("x.{0}", lines) | by_language("y.{0}", lines), r"holds several corpora \(x, y\)"),
        ({"sentences.csv": "1\teng\tHi.\n2\tjpn\tや。\n", "links.csv": "5\t6\n"}, r"no link joins en to ja"),
        ({"sentences.csv": "1\teng\tHi.\n", "links.csv": "5\t6\n"}, r"has no Tatoeba sentences in ja"),
        ({"state.json": "{}"}, r"state.json does not name the files"),
        ({"state.json": '{"_data_files": [{"filename": "../x.arrow"}]}'}, r"has no file ../x.arrow"),
    ]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in members.items():
            put_at(folder / name, text)
        with pytest.raises(tn.TnkitError, match=message):
            tn.load_corpus(folder, LANGUAGES)


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FREE", 1 << 20)
    text = TSV + "a\tb\n" * 2_000_000
    for name, data in {
        "bomb.tsv.gz": gzip.compress(text.encode()),
        "bomb.tsv.bz2": bz2.compress(text.encode()),
        "bomb.tsv.xz": lzma.compress(text.encode()),
        "bomb.zip": zipped({"a.tsv": text}),
        "bomb.tar.bz2": tarred({"a.tsv": text}),
    }.items():
        assert len(data) < 20_000
        with pytest.raises(tn.TnkitError, match=r"holds more than \d+ MiB of text; load a part of it"):
            tn.load_corpus(put_at(tmp_path / name, data), LANGUAGES)


def test_rows_with_ever_new_names_are_refused(tmp_path):
    """300 kB that would be a table of 400 million cells."""
    path = put_at(tmp_path / "x.jsonl", json_lines([*({f"k{n}": 1} for n in range(20_000))]))
    assert path.stat().st_size < 400_000
    with pytest.raises(tn.TnkitError, match=r"x.jsonl holds 20,000 rows of 20,000 columns; load a part of them"):
        tn.load_corpus(path, LANGUAGES)


@pytest.mark.parametrize("text", ['"\t"', '"\t"\n"\t"\n'])
def test_a_separator_between_two_quotes_is_a_cell_or_two(tmp_path, text):
    with pytest.raises(tn.TnkitError, match="its quotes can be read in two ways"):
        tn.load_corpus(put_at(tmp_path / "x.tsv", text), LANGUAGES, header=None)


@pytest.mark.parametrize("quoting", ["csv", "none"])
def test_a_file_that_can_be_read_in_two_ways_is_refused_and_the_option_settles_it(tmp_path, quoting):
    path = put_at(tmp_path / "x.tsv", 'en\tja\n"a ""b"" c"\tx\n"d"\ty\n')
    with pytest.raises(tn.TnkitError, match=r"its quotes can be read in two ways; give quoting='csv'"):
        tn.load_corpus(path, LANGUAGES)
    expected = {"csv": ['a "b" c', "d"], "none": ['"a ""b"" c"', '"d"']}[quoting]
    assert sorted(tn.load_corpus(path, LANGUAGES, quoting=quoting).frame["en"]) == sorted(expected)


def test_every_export_and_layout_has_a_test():
    assert len(tables.EXPORTS) == 5 and len(layouts.LONG) == 13 and len(layouts.LAYOUTS) == 2


@pytest.mark.parametrize(
    "source", ["sentences and links of Tatoeba", "two files of OPUS", "a data set"], ids=lambda name: name
)
def test_neurons_come_from_what_people_have_in_one_call(tmp_path, source):
    """From the file to the neurons, equal to those of the same pairs in a frame."""
    if source == "a data set":
        given = datasets.Dataset.from_list(NESTED)
    elif source == "two files of OPUS":
        given = {"en": put_at(tmp_path / "x.en", lines(EN)), "ja": put_at(tmp_path / "x.ja", lines(JA))}
    else:
        given = tmp_path
        for name, text in FOLDERS["Tatoeba"].items():
            put_at(tmp_path / name, text)
    model = tiny_model()
    found, expected = (
        tn.detect(model, tn.load_corpus(one, LANGUAGES), language="ja", top=10, progress=False).neurons
        for one in (given, FRAME)
    )
    assert set(found) == set(expected) and len(found) == 10


def pairs_of(corpus):
    """The pairs of a corpus, whatever their split."""
    return sorted(zip(*(corpus.frame[language] for language in LANGUAGES), strict=True))


def test_what_is_matched_in_order_alone_is_told_once_and_recorded(tmp_path, caplog):
    for language, rows in (("en", EN), ("ja", JA)):
        put_at(tmp_path / "folder" / language / "dev.txt", lines(rows))
        put_at(tmp_path / language / f"some.{language}", lines(rows))
        put_at(tmp_path / "pair" / f"x.{language}", lines(rows))
    long = pd.DataFrame({"lang": ["en"] * 12 + ["ja"] * 12, "text": EN + JA})
    files_of_two = {language: tmp_path / language / f"some.{language}" for language in LANGUAGES}
    for source in (long, tmp_path / "folder", files_of_two):
        caplog.clear()
        corpus = tn.load_corpus(source, LANGUAGES)
        assert [
            "matched in order; check them with tnkit.measures.geometry.alignment" in text for text in caplog.messages
        ] == [True]
        captured = tn.capture(tiny_model(), corpus["train"]["ja"], progress=False)
        assert captured.provenance["sentences"]["matched"] == "in order"
    caplog.clear()
    for source in (long.assign(id=[*range(12)] * 2), tmp_path / "pair" / "x"):
        assert pairs_of(tn.load_corpus(source, LANGUAGES)) == sorted(PAIRS)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["Sentence pairs in English-Japanese - 2026-11-01.tsv", "pairs.tsv"])
def test_exports_in_the_other_order_are_refused(tmp_path, name):
    rows = (f"{n}\t{en}\t{n}\t{ja}" for n, (en, ja) in enumerate(PAIRS))
    path = put_at(tmp_path / name, lines(rows))
    assert pairs_of(tn.load_corpus(path, LANGUAGES)) == sorted(PAIRS)
    with pytest.raises(tn.TnkitError, match=r"in the other order; give languages=\['en', 'ja'\]"):
        tn.load_corpus(path, ["ja", "en"])


def test_the_order_is_told_by_names_where_scripts_do_not(tmp_path):
    path = put_at(tmp_path / "Sentence pairs in English-Italian.tsv", "1\tHi!\t2\tCiao!\n3\tBye!\t4\tA dopo!\n")
    anki = put_at(tmp_path / "ita.txt", "Hi!\tCiao!\tCC-BY 2.0\nBye!\tA dopo!\tCC-BY 2.0\n")
    for file in (path, anki):
        assert sorted(tn.load_corpus(file, ["en", "it"]).frame["it"]) == ["A dopo!", "Ciao!"]
        with pytest.raises(tn.TnkitError, match=r"give languages=\['en', 'it'\]"):
            tn.load_corpus(file, ["it", "en"])


def test_cells_between_semicolons_are_told(tmp_path):
    path = put_at(tmp_path / "pairs.csv", "en;ja\n" + lines(f'"{en}, ""so""";{ja}' for en, ja in PAIRS))
    assert pairs_of(tn.load_corpus(path, LANGUAGES)) == sorted((f'{en}, "so"', ja) for en, ja in PAIRS)


def test_a_missing_header_is_refused_where_it_cannot_be(tmp_path):
    FRAME.to_excel(tmp_path / "pairs.xlsx", index=False)
    for source, words in ((FRAME, "frame is in memory"), (tmp_path / "pairs.xlsx", r"pairs.xlsx is .xlsx")):
        with pytest.raises(tn.TnkitError, match=f"header=None is for .*{words}"):
            tn.load_corpus(source, LANGUAGES, header=None)


def test_a_folder_of_dev_alone_is_split(tmp_path):
    for tag, rows in (("eng_Latn", EN), ("jpn_Jpan", JA)):
        put_at(tmp_path / "dev" / f"{tag}.dev", lines(rows))
    corpus = tn.load_corpus(tmp_path, LANGUAGES)
    assert pairs_of(corpus) == sorted(PAIRS)
    assert len(corpus["train"]["en"]) == len(corpus["test"]["en"]) == 6


def test_a_placeholder_is_no_sentence_that_rows_share(caplog):
    gaps = FRAME.assign(ko=[f"집 {n}" if n < 2 else "-" for n in range(12)])
    frames = [tn.load_corpus(frame, LANGUAGES).frame for frame in (gaps, gaps.assign(ko=[*gaps["ko"][:2], *[""] * 10]))]
    assert frames[0].equals(frames[1])
    assert (frames[0]["split"] == "test").sum() == 6 and caplog.messages == []
    korean = tn.load_corpus(gaps, ["en", "ko"])
    assert len(korean) == 2 and korean.dropped == {"empty": 10}
    whole = dict(frames[0][["en", "split"]].itertuples(index=False))
    assert all(whole[row.en] == row.split for row in korean.frame.itertuples())


def test_ids_that_number_rows_are_no_key():
    long = pd.DataFrame({"id": range(24), "sentence_id": [*range(12)] * 2, "lang": ["en"] * 12 + ["ja"] * 12})
    long = long.assign(text=EN + JA).sample(frac=1, random_state=0)
    assert pairs_of(tn.load_corpus(long, LANGUAGES)) == sorted(PAIRS)


def test_the_index_of_a_frame_is_no_language(tmp_path):
    FRAME.to_excel(tmp_path / "pairs.xlsx")
    assert pairs_of(tn.load_corpus(tmp_path / "pairs.xlsx", LANGUAGES)) == sorted(PAIRS)


def test_a_blank_line_of_one_column_is_an_empty_cell(tmp_path):
    for language, rows in (("en", [*EN[:3], "", *EN[4:]]), ("ja", JA)):
        put_at(tmp_path / f"{language}.csv", f"{language}\n" + lines(rows))
    corpus = tn.load_corpus({language: tmp_path / f"{language}.csv" for language in LANGUAGES})
    assert pairs_of(corpus) == sorted(PAIRS[:3] + PAIRS[4:]) and corpus.dropped == {"empty": 1}


def test_a_test_split_far_from_its_share_is_told(caplog):
    one = tn.load_corpus(pd.DataFrame({"en": ["Hi!"] * 12, "ja": JA}), LANGUAGES)
    assert len(one["test"]["en"]) == 0
    assert "0 of 12 rows are in the test split, far from test=0.5" in caplog.text


def test_a_macrolanguage_is_its_one_language_in_the_data_or_refused():
    for asked, tag in (("no", "nob_Latn"), ("no", "nno_Latn"), ("ar", "arz_Arab"), ("Norwegian", "nb")):
        corpus = tn.load_corpus(pd.DataFrame({"eng_Latn": EN, tag: JA}), ["en", asked])
        assert sorted(corpus.frame[asked]) == sorted(JA)
        long = pd.DataFrame({"lang": ["eng_Latn"] * 12 + [tag] * 12, "id": [*range(12)] * 2, "text": EN + JA})
        assert sorted(tn.load_corpus(long, ["en", asked]).frame[asked]) == sorted(JA)
    two = pd.DataFrame({"eng_Latn": EN, "nob_Latn": JA, "nno_Latn": JA})
    with pytest.raises(tn.TnkitError, match="more than one column for no: nob_Latn, nno_Latn; name one of them"):
        tn.load_corpus(two, ["en", "no"])
    with pytest.raises(tn.TnkitError, match="no column for ms"):
        tn.load_corpus(pd.DataFrame({"eng_Latn": EN, "ind_Latn": JA}), ["en", "ms"])


@pytest.mark.parametrize("shape", ["Train.tsv Test.tsv", "train_1.tsv Test-1.tsv", "train.clean.{0} test.clean.{0}"])
def test_splits_are_told_by_the_names_of_files(tmp_path, shape):
    names = shape.split()
    for name, rows in zip(names, (PAIRS[:8], PAIRS[8:]), strict=True):
        if "{0}" in name:
            for place, language in enumerate(LANGUAGES):
                put_at(tmp_path / name.format(language), lines(row[place] for row in rows))
        else:
            put_at(tmp_path / name, "en\tja\n" + lines(map("\t".join, rows)))
    corpus = tn.load_corpus(tmp_path, LANGUAGES)
    assert list(corpus["train"]["en"]) == EN[:8] and list(corpus["test"]["ja"]) == JA[8:]


def test_splits_are_told_inside_the_names_of_opus(tmp_path):
    for split, rows in (("train", PAIRS[:8]), ("test", PAIRS[8:])):
        for place, language in enumerate(LANGUAGES):
            put_at(tmp_path / f"opus.en-ja-{split}.{language}", lines(row[place] for row in rows))
    corpus = tn.load_corpus(tmp_path, LANGUAGES)
    assert list(corpus["train"]["en"]) == EN[:8] and list(corpus["test"]["ja"]) == JA[8:]


def test_the_names_of_indonesian_files_are_languages(tmp_path):
    paths = [put_at(tmp_path / f"x.en-id.{end}", lines(rows)) for end, rows in (("en", EN), ("id", JA))]
    for source, languages in ((paths, None), (paths, ["en", "id"]), (tmp_path / "x.en-id", ["en", "Indonesian"])):
        corpus = tn.load_corpus(source, languages)
        assert sorted(corpus.frame[corpus.languages[1]]) == sorted(JA)


KO = [f"집 {n}채와 고양이 {n}마리가 보여." for n in range(12)]
FR = ["Une phrase."] * 6 + [f"Je vois {n} maisons." for n in range(6)]  # rows that share a sentence stay together
THREE = {"en": EN, "ja": JA, "ko": KO, "fr": FR}


def three(shape, folder):
    """Four languages, of which Korean lacks two rows and French says one sentence six times."""
    rows = [
        {"lang": language, "id": n, "text": text}
        for language, texts in THREE.items()
        for n, text in enumerate(texts)
        if language != "ko" or n not in (3, 7)
    ]
    if shape == "long":
        return pd.DataFrame(rows)
    if shape == "nested":
        return [{"queries": {row["lang"]: row["text"] for row in rows if row["id"] == n}} for n in range(12)]
    if shape == "Belebele":
        tags = dict(zip(THREE, ("eng_Latn", "jpn_Jpan", "kor_Hang", "fra_Latn"), strict=True))
        for language, tag in tags.items():
            own = [row for row in rows if row["lang"] == language]
            put_at(
                folder / f"{tag}.jsonl",
                json_lines(
                    {"link": f"l{row['id']}", "question_number": 1, "flores_passage": row["text"]} for row in own
                ),
            )
        return folder
    for language, texts in THREE.items():
        put_at(folder / f"x.{language}", lines(texts))
    put_at(folder / "x.de", b"\xff")
    put_at(folder / "x.it", "Another number of rows.\n")
    return {"folder": folder, "stem": folder / "x", "list": [folder / f"x.{language}" for language in THREE]}[shape]


@pytest.mark.parametrize("shape", ["long", "nested", "Belebele", "folder", "stem", "list"])
def test_the_split_of_a_row_does_not_depend_on_the_languages_asked_for(tmp_path, shape):
    source, of_text, ids = three(shape, tmp_path), {}, {}
    for languages in (["en"], ["ja", "en"], ["en", "ko"], ["ko"], ["fr", "en"], [*THREE]):
        corpus = tn.load_corpus(source, languages)
        for row, number in zip(corpus.frame.to_dict("records"), corpus.ids, strict=True):
            for language in languages:
                assert of_text.setdefault(row[language], row["split"]) == row["split"]
                if language == "en":
                    assert ids.setdefault(row["en"], number) == number
    assert {of_text[text] for text in EN} == {"train", "test"}
    assert len({of_text[text] for text in EN[:6]}) == 1  # which French joins, also where it is not asked for


@pytest.mark.parametrize("without", [{"lang": None}, {}], ids=["null", "absent"])
def test_a_row_without_a_language_is_left_out_and_never_shifts_others(tmp_path, without):
    rows = [dict(row) for row in LONG]
    gone = rows.pop(3)
    rows.insert(3, {key: value for key, value in gone.items() if key != "lang"} | without)
    corpus = tn.load_corpus(put_at(tmp_path / "long.jsonl", json_lines(rows).encode()), LANGUAGES)
    pairs = set(corpus.frame[LANGUAGES].itertuples(index=False, name=None))
    assert pairs < {*PAIRS} and len(pairs) == len(PAIRS) - 1
    in_order = [{key: value for key, value in row.items() if key in ("lang", "text")} for row in rows]
    with pytest.raises(tn.TnkitError, match=r"1 rows without a language \(lang\), and only the order of rows"):
        tn.load_corpus(put_at(tmp_path / "order.jsonl", json_lines(in_order).encode()), LANGUAGES)
