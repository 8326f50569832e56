"""Rows of a corpus: normalised, split into train and test, and checked to be parallel."""

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt64

from tnkit.errors import TnkitError

_log = logging.getLogger("tnkit")
FIELD = "\0"  # between cells; no text may hold it
_GAPS = {"-", "--", "---", "–", "—", "_", "N/A", "n/a", "#N/A", "NaN", "NULL", "null", "<NA>"}  # placeholders
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing", "devtest"), "test")
_ROLES |= dict.fromkeys(("dev", "val", "valid", "validation"), "dev")
Origin = Mapping[str, Any]  # of one language's sentences, if known: corpus, split, language, source, rows, n


def normalised(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Text in Unicode NFC, stripped, and "" for missing sentences; the rows numbered from 0."""
    frame = frame.reset_index(drop=True)
    for language in (column for column in frame.columns if column != "split"):
        cells = [cell if isinstance(cell, str) else "" for cell in frame[language].tolist()]
        joined = FIELD.join(cells)  # checked and normalised at once, which is faster than cell by cell
        if joined.count(FIELD) > max(0, len(cells) - 1) or _SURROGATE.search(joined):
            row, cell = next((row, cell) for row, cell in enumerate(cells, 1) if re.search("[\0\ud800-\udfff]", cell))
            wrong = "the character NUL" if FIELD in cell else "an unpaired surrogate"
            raise TnkitError(f"{name}, {language} in row {row}: {wrong}; fix the text")
        normal = unicodedata.normalize("NFC", joined).split(FIELD) if cells else []
        cells = ["" if (stripped := cell.strip()) in _GAPS else stripped for cell in normal]
        frame[language] = pd.Series(cells, dtype=object)  # Arrow would decode its strings at every access
    return frame


def untranslated(name: str, texts: pd.DataFrame, key: str) -> Int[np.ndarray, "row"]:
    """For rows joined by a key: 1 if some wanted language lacks the row, 2 if all do, else 0."""
    if not key:
        return np.zeros(len(texts), int)
    absent = texts.isna().to_numpy()
    if absent.any(axis=1).all():
        counts = ", ".join(f"{count:,} in {language}" for language, count in texts.count().items())
        raise TnkitError(f"{name}: no {key} is in every language ({counts}); its sentences are not translations")
    return absent.any(axis=1).astype(int) + absent.all(axis=1)


def without_leaks(
    name: str, frame: pd.DataFrame, wanted: list[str], leaks: str, dropped: dict[str, int]
) -> pd.DataFrame:
    """Rows of the source's own split, without training rows that hold a sentence of the test split, and without dev."""
    used = frame[frame["split"] != "dev"]
    is_test = (used["split"] == "test").to_numpy()
    by_language = {column: used[column].isin({*used[column][is_test]}).to_numpy() & ~is_test for column in wanted}
    leaking = np.logical_or.reduce(list(by_language.values()))
    if leaking.any() and leaks == "refuse":
        language, rows = next((language, rows) for language, rows in by_language.items() if rows.any())
        raise TnkitError(
            f"{name}: {leaking.sum()} of {(~is_test).sum()} training rows hold a sentence of the test split, such as "
            f"{used[language].iloc[rows.argmax()]!r:.60}; drop them with leaks='drop', or drop the column split"
        )
    dropped |= {"of the split dev": len(frame) - len(used), "leaking": int(leaking.sum())}
    return used[~leaking]


def roles(name: str, column: Iterable[object]) -> list[str]:
    """The cells of a column of splits as "train", "test" or "dev".

    Rows of dev become the test split if there is none, or the training split if there is none; otherwise they stay
    "dev".

    >>> roles("x", ["Train", "valid"]), roles("x", ["dev", "devtest"])
    (['train', 'test'], ['train', 'test'])
    """
    cells = [str(cell).strip() for cell in column]
    unknown = sorted({cell for cell in {*cells} if cell.casefold() not in _ROLES})
    if unknown:
        raise TnkitError(
            f"{name}: the column split holds {', '.join(unknown[:3])!r}; expected train and test, dev or validation"
        )
    assigned = [_ROLES[cell.casefold()] for cell in cells]
    dev = next((role for role in ("test", "train") if role not in assigned and {*assigned} != {"dev"}), "dev")
    return [dev if role == "dev" else role for role in assigned]


def by_hash(frame: pd.DataFrame, hashes: UInt64[np.ndarray, "row"], test: float) -> list[str]:
    """Assign each row to "train" or "test"; rows that share a sentence stay together.

    Groups of such rows fill the test split in the order of their hashes, up to the share `test` of the distinct rows
    that are not empty. An empty cell is no sentence.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"en": ["Hi!", "Hi!", "Bye!", "So?"], "it": ["Ciao!", "Salve!", "A dopo!", "E allora?"]})
    >>> by_hash(frame, row_hashes(frame), 0.5)
    ['train', 'train', 'test', 'test']
    """
    group = _groups(frame)
    counted = ~frame.duplicated().to_numpy() & (frame != "").any(axis=1).to_numpy()
    sizes = np.bincount(group, weights=counted).astype(int) if len(group) else np.zeros(0, int)
    keys = np.full(len(sizes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(keys, group, hashes)
    free, is_test = round(test * int(counted.sum())), np.zeros(len(sizes), bool)
    for number in np.argsort(keys, kind="stable"):
        if sizes[number] <= free:
            free -= sizes[number]
            is_test[number] = True
    return np.where(is_test[group], "test", "train").tolist()


def row_hashes(frame: pd.DataFrame) -> UInt64[np.ndarray, "row"]:
    """The first 8 bytes of the SHA-256 of each row as JSON, the same on every machine.

    >>> import pandas as pd
    >>> hex(row_hashes(pd.DataFrame({"en": ["Hi!"]}))[0])  # of ["Hi!"]
    '0xe664632007a83261'
    """
    columns = [map(encode_basestring, frame[name]) for name in frame.columns]
    rows = (hashlib.sha256(f"[{', '.join(row)}]".encode()).digest()[:8] for row in zip(*columns, strict=True))
    return np.frombuffer(b"".join(rows), dtype=">u8").astype(np.uint64)


def lowest(split: Sequence[str], hashes: UInt64[np.ndarray, "row"], limit: int) -> Int[np.ndarray, "kept"]:
    """The rows of each split with the lowest hashes, so that the splits keep their shares.

    >>> lowest(["train", "test", "train", "test"], np.array([3, 2, 1, 0], np.uint64), 2).tolist()
    [2, 3]
    """
    is_test = np.array(split) == "test"
    tests = min(round(limit * int(is_test.sum()) / len(is_test)), int(is_test.sum()))
    order = np.argsort(hashes, kind="stable")
    return np.sort(np.concatenate([order[is_test[order]][:tests], order[~is_test[order]][: limit - tests]]))


def _groups(frame: pd.DataFrame) -> Int[np.ndarray, "row"]:
    """The group of each row; rows that share a sentence, directly or through other rows, are in one group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = len(frame)
    filled = [np.flatnonzero(frame[name] != "") for name in frame.columns]
    sentences = [
        pd.factorize(frame[name])[0][rows] + size * number
        for number, (name, rows) in enumerate(zip(frame.columns, filled, strict=True), 1)
    ]
    rows, nodes = np.concatenate(filled), np.concatenate(sentences)
    whole = size * (1 + len(filled))
    links = coo_matrix((np.ones(len(rows), np.int8), (rows, nodes)), shape=(whole, whole))
    return connected_components(links, directed=False)[1][:size].astype(np.int64)


def fingerprint(ids: Sequence[int]) -> str:
    """Row numbers in their order, as 16 hex digits.

    >>> fingerprint([0, 1]) == fingerprint((0, 1)), fingerprint([0, 1]) == fingerprint([1, 0])
    (True, False)
    """
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def check_parallel(origins: Mapping[str, Origin]) -> None:
    """Refuse sentences that cannot be translations of each other, row by row.

    Rows are compared if both sides state them, otherwise the names of corpus and split. The same rows of two sources
    may or may not be translations: that is a warning.

    Args:
        origins: by a name for the message.

    >>> check_parallel({"en": {"rows": "1f", "source": "a"}, "ja": {"rows": "1f", "source": "a"}})
    >>> check_parallel({"en": {"rows": "1f", "source": "a"}, "ja": {"rows": "2e", "source": "a"}})
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: en and ja hold different rows, so their sentences are not translations of each other; ...
    """
    for (name, left), (other_name, right) in combinations(origins.items(), 2):
        sides = f"{_described(name, left)} and {_described(other_name, right)}"
        if "n" in left and "n" in right and left["n"] != right["n"]:
            raise TnkitError(f"{sides} hold {left['n']} and {right['n']} sentences; give the same rows of one corpus")
        if left.get("rows") and right.get("rows"):
            if left["rows"] != right["rows"]:
                raise TnkitError(
                    f"{sides} hold different rows, so their sentences are not translations of each other; "
                    "load both languages as one corpus and take the same rows of one split"
                )
            if left.get("source") != right.get("source"):
                _warn_once(
                    f"{sides} come from two sources, so their rows may not be translations of each other; load them as "
                    "one corpus, or check them with tnkit.measures.geometry.alignment"
                )
            continue
        for key in ("corpus", "split"):
            if left.get(key) and right.get(key) and left[key] != right[key]:
                raise TnkitError(f"{sides} are of {key} {left[key]!r} and {right[key]!r}, so they are not parallel")


def check_texts(texts: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
    """Refuse languages (default: all) without sentences, or that are not parallel.

    Plain lists and captures state only their length.

    >>> check_texts({"en": ["Hi!"]}, ["en", "ja"])
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: there are no sentences in 'ja'; there are en
    """
    origins = {}
    for name in texts if names is None else names:
        if name not in texts:
            raise TnkitError(f"there are no sentences in {name!r}; there are {', '.join(texts)}")
        stated = {key: getattr(texts[name], key, None) for key in ("corpus", "split", "source", "rows")}
        origins[name] = {"n": len(texts[name]), **stated}
    check_parallel(origins)


def _described(name: str, origin: Origin) -> str:
    named = " ".join(str(origin[key]) for key in ("corpus", "split") if origin.get(key))
    return f"{name} ({named})" if named else name


@lru_cache(1024)
def _warn_once(text: str) -> None:
    _log.warning("%s", text)
