"""Splits of rows for training and testing: their names, and a split by hash that shares no sentence."""

import hashlib
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int, UInt64

from tnkit.errors import TnkitError

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "devtest"),
    "dev": ("dev", "val", "valid", "validation"),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}


def roles(name: str, column: Iterable[object]) -> list[str]:
    """The cells of a column of splits as "train", "test" or "dev".

    Upper case does not matter, and devtest is test. Rows of dev, validation or valid become the test split where there
    is none, else the training split where there is none; beside both, or alone, they stay "dev".

    Raises:
        TnkitError: for another name of a split.

    >>> import pandas as pd
    >>> roles("x", pd.Series(["Train", "valid"])), roles("x", pd.Series(["dev", "devtest"]))
    (['train', 'test'], ['train', 'test'])
    """
    cells = [str(cell).strip() for cell in column]
    unknown = sorted({cell for cell in {*cells} if cell.casefold() not in _ROLES})
    if unknown:
        raise TnkitError(
            f"{name}: the column split holds {', '.join(unknown[:3])!r}; expected train and test, dev or validation"
        )
    found = [_ROLES[cell.casefold()] for cell in cells]
    missing = next((role for role in ("test", "train") if role not in found and {*found} != {"dev"}), "dev")
    return [missing if role == "dev" else role for role in found]


def by_hash(frame: "pd.DataFrame", hashes: UInt64[np.ndarray, "row"], test: float) -> list[str]:
    """Group rows that share a sentence, order the groups by hash, and fill the test split with the first.

    Args:
        frame: one column a language; an empty cell is no sentence.
        hashes: of the rows, from `row_hashes`.
        test: the share of the test split, among the different rows that are not empty.

    Returns:
        "train" or "test" for each row.

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
    left, chosen = round(test * int(counted.sum())), np.zeros(len(sizes), bool)
    for number in np.argsort(keys, kind="stable"):
        if sizes[number] <= left:
            left -= sizes[number]
            chosen[number] = True
    return [("train", "test")[is_test] for is_test in chosen[group].tolist()]


def row_hashes(frame: "pd.DataFrame") -> UInt64[np.ndarray, "row"]:
    """The first 8 bytes of the SHA-256 of each row as JSON, the same on every machine.

    >>> import pandas as pd
    >>> hex(row_hashes(pd.DataFrame({"en": ["Hi!"]}))[0])  # of ["Hi!"]
    '0xe664632007a83261'
    """
    columns = [map(encode_basestring, frame[name]) for name in frame.columns]
    rows = (hashlib.sha256(f"[{', '.join(row)}]".encode()).digest()[:8] for row in zip(*columns, strict=True))
    return np.frombuffer(b"".join(rows), dtype=">u8").astype(np.uint64)


def lowest(split: Sequence[str], hashes: UInt64[np.ndarray, "row"], limit: int) -> Int[np.ndarray, "kept"]:
    """The rows to keep of each split, by the lowest hashes, so that the splits keep their shares.

    >>> lowest(["train", "test", "train", "test"], np.array([3, 2, 1, 0], np.uint64), 2).tolist()
    [2, 3]
    """
    is_test = np.array(split) == "test"
    tests = min(round(limit * int(is_test.sum()) / len(is_test)), int(is_test.sum()))
    order = np.argsort(hashes, kind="stable")
    kept = [order[is_test[order]][:tests], order[~is_test[order]][: limit - tests]]
    return np.sort(np.concatenate(kept))


def leaking(frame: "pd.DataFrame", language: str) -> Bool[np.ndarray, "row"]:
    """Which training rows have a sentence that a test row has too.

    >>> import pandas as pd
    >>> leaking(pd.DataFrame({"en": ["a", "b", "a"], "split": ["train", "train", "test"]}), "en").tolist()
    [True, False, False]
    """
    is_test = (frame["split"] == "test").to_numpy()
    return frame[language].isin(set(frame[language][is_test])).to_numpy() & ~is_test


def _groups(frame: "pd.DataFrame") -> Int[np.ndarray, "row"]:
    """A number for each row, the same where rows share a sentence, directly or through others."""
    import pandas as pd
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, ends, nodes, offset = np.arange(len(frame)), [], [], len(frame)
    for language in frame.columns:
        filled = (frame[language] != "").to_numpy()
        codes = pd.factorize(frame[language])[0].astype(np.int64)
        ends.append(rows[filled])
        nodes.append(codes[filled] + offset)
        offset += len(frame)
    links = np.concatenate(ends), np.concatenate(nodes)
    matrix = coo_matrix((np.ones(len(links[0]), np.int8), links), shape=(offset, offset))
    return connected_components(matrix, directed=False)[1][: len(frame)].astype(np.int64)
