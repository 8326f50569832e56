"""Corpora in every layout: whole, cut, with changed bytes, uneven, in other encodings, and as bombs.

A pair whose two sentences are both in the corpus and not translations of each other is wrong; so is a whole file that
does not give all of its pairs.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import tnkit as tn
from tests.reliability.damage import LONG, damaged
from tnkit.tests.text.test_layouts import EN, FOLDERS, JA, LANGUAGES, PAIRS, TABLES, put_at, zipped
from tnkit.text import sources

_LINKED = ("Tatoeba",)  # a changed byte in their links makes other pairs, which no reader can tell
_SECOND = (0, 11)  # which they also name: a second translation, read where the first is gone
_NUMBER = {text: number for texts in (EN, JA) for number, text in enumerate(texts)}


def tried(folder: Path, cuts: int, flips: int, seed: int = 0) -> dict[str, Counter]:
    """Of each kind of trial, over all layouts, how many were right, refused, wrong, or took long."""
    draw = random.Random(seed)
    kinds: dict[str, Callable[[], Iterator[tuple[Path, str]]]] = {
        "whole": lambda: _whole(folder),
        "cut": lambda: _damaged(folder, cuts, 0, draw),
        "changed bytes": lambda: _damaged(folder, 0, flips, draw),
        "uneven rows": lambda: _uneven(folder, draw),
        "other encodings": lambda: _encoded(folder),
        "bombs": lambda: _bombs(folder),
    }
    outcomes = {}
    for kind, trials in kinds.items():
        outcomes[kind] = outcome = Counter()
        for path, name in trials():
            outcome["tried"] += 1
            started = time.process_time()  # of this process, whatever else the machine does
            outcome[_outcome(path, kind, name)] += 1
            outcome["hung"] += time.process_time() - started > LONG
    return outcomes


def _outcome(path: Path, kind: str, name: str) -> str:
    try:
        frame = sources.read(path, LANGUAGES)[1]
        corpus = tn.load_corpus(frame.drop(columns="split", errors="ignore"), LANGUAGES)
    except tn.TnkitError as error:
        return "refused" if "\n" not in str(error) and kind != "whole" else f"wrong: {error}"
    except Exception as error:
        return f"wrong: {name}: {type(error).__name__} {error!s:.60}"
    pairs = list(corpus.frame[LANGUAGES].itertuples(index=False, name=None))
    numbers = [(_NUMBER[en], _NUMBER[ja]) for en, ja in pairs if en in _NUMBER and ja in _NUMBER]
    linked = name.startswith(_LINKED)
    crossed = [pair for pair in numbers if pair[0] != pair[1] and not (linked and pair == _SECOND)]
    if crossed:
        return "changed links" if linked and kind == "changed bytes" else f"wrong: {name} {crossed[:2]}"
    if kind == "bombs":
        return f"wrong: {name} was read"
    if {*pairs} == {*PAIRS}:
        return "right"
    damaged_so = kind in ("cut", "changed bytes", "uneven rows")
    return "fewer or changed rows" if damaged_so else f"wrong: {name}: {len(pairs)}"


def _members() -> dict[str, dict[str, str]]:
    return {name: members for name, members in FOLDERS.items() if name != "FLORES-200"}


def _write(folder: Path, members: dict[str, str | bytes]) -> Path:
    root = folder / "corpus"
    shutil.rmtree(root, ignore_errors=True)
    for name, data in members.items():
        put_at(root / name, data)
    return root


def _whole(folder: Path) -> Iterator[tuple[Path, str]]:
    for name, data in TABLES.items():
        yield put_at(folder / name, data), name
    for name, members in _members().items():
        yield _write(folder, members), name
        yield put_at(folder / "corpus.zip", zipped(members)), f"{name}, packed"


def _damaged(folder: Path, cuts: int, flips: int, draw: random.Random) -> Iterator[tuple[Path, str]]:
    for name, data in TABLES.items():
        for _, changed in damaged(data, cuts, flips, draw):
            yield put_at(folder / name, changed), name
    for name, members in _members().items():
        for file, text in members.items():
            for _, changed in damaged(text.encode(), cuts // 4, flips // 4, draw):
                yield _write(folder, members | {file: changed}), name
        for _, changed in damaged(zipped(members), cuts // 4, flips // 4, draw):
            yield put_at(folder / "corpus.zip", changed), name


def _uneven(folder: Path, draw: random.Random) -> Iterator[tuple[Path, str]]:
    """One row of one language left out, or doubled."""
    for name, members in _members().items():
        for file, text in members.items():
            rows = text.splitlines(keepends=True)
            place = draw.randrange(len(rows))
            for changed in (rows[:place] + rows[place + 1 :], rows[:place] + rows[place : place + 1] + rows[place:]):
                yield _write(folder, members | {file: "".join(changed)}), f"{name}, {file}"


def _encoded(folder: Path) -> Iterator[tuple[Path, str]]:
    """One file of several, or a table, in another encoding."""
    texts = {name: data.decode() for name, data in TABLES.items() if _is_text(data)}
    for name, text in texts.items():
        for encoding in ("utf-16", "utf-32", "utf-8-sig", "cp932", "utf-16-le"):
            if not (name.endswith(".tmx") and encoding.startswith("utf-32")):
                yield put_at(folder / name, text.encode(encoding)), f"{name} in {encoding}"
    for name, members in _members().items():
        for file, text in members.items():
            for encoding in ("utf-16", "utf-8-sig", "cp932"):
                yield _write(folder, members | {file: text.encode(encoding)}), f"{name} in {encoding}"


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _bombs(folder: Path) -> Iterator[tuple[Path, str]]:
    """Small files that would be gigabytes."""
    text = b"en\tja\n" + b"a\tb\n" * 24_000_000
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", text)
    entity = '<!DOCTYPE tmx [<!ENTITY a "' + "b" * 1000 + '"><!ENTITY c "' + "&a;" * 1000 + '">]><tmx>&c;</tmx>'
    encode = b"\x80\x02c_codecs\nencode\nq\0"
    string = b"X" + (300_000).to_bytes(4, "little") + b"a" * 300_000
    for name, data in {
        "bomb.tsv.gz": gzip.compress(text, 1),
        "bomb.tsv.bz2": bz2.compress(text, 1),
        "bomb.tsv.xz": lzma.compress(text, preset=0),
        "bomb.zip": zipped({"a.tsv": text}),
        "bomb.xlsx": zeros.getvalue(),
        "bomb.tmx": entity.encode(),
        "keys.jsonl": b"".join(json.dumps({f"k{n}": 1}).encode() + b"\n" for n in range(20_000)),
        "wide.jsonl": json.dumps({f"k{n}": 1 for n in range(20_000)}).encode() + b"\n" + b"{}\n" * 50_000,
        "deep.json": b"[" * 1_000_000,
        "shared.pkl": b"\x80\x02" + string + b"q\0](" + b"h\0" * 450_000 + b"e.",
        "copied.pkl": encode + string + b"q\1X\6\0\0\0latin1q\2](" + b"h\0h\1h\2\x86R" * 99_999 + b"e.",
        "tuples.pkl": b"\x80\x02(" + b"K\1" * 99_999 + b"tq\0](" + b"h\0" * 400_000 + b"e.",
        "numbers.pkl": pickle.dumps({("a",) * 1000: 1}),
    }.items():
        yield put_at(folder / name, data), name
