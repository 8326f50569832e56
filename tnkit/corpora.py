"""Sentences aligned across languages, with fixed splits: `Corpus`, and `load_corpus` for every place they come from.

corpus = tn.load_corpus("everyday", ["en", "ja"])           # packaged, CC0
corpus = tn.load_corpus("pairs.tsv", ["en", "ja"])          # TSV, CSV, JSONL, Parquet, plain text, pickles
corpus = tn.load_corpus("tatoeba", ["en", "ja"], limit=2000)  # from the Hugging Face Hub; "mkqa" too
corpus["train"]["ja"]                                       # a sequence of str
"""

import csv
import hashlib
import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from tnkit import sources, storage
from tnkit.errors import TnkitError

if TYPE_CHECKING:
    import pandas as pd

_LANGUAGE = re.compile(r"(?!id$)[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_log = logging.getLogger("tnkit")


@dataclass(frozen=True)
class Sentences(Sequence[str]):
    """The sentences of one language and split; a sequence of str that remembers where it is from.

    >>> Sentences(("Hi!", "Bye!"), language="en")[1]
    'Bye!'
    """

    texts: tuple[str, ...]
    language: str = ""
    corpus: str = ""
    split: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, place: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "Sentences": ...

    def __getitem__(self, place: SupportsIndex | slice) -> "str | Sentences":
        """A sentence, or of a slice the sentences in it."""
        if isinstance(place, slice):
            return Sentences(self.texts[place], self.language, self.corpus, self.split)
        return self.texts[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


class Split(dict[str, Sentences]):
    """Language → `Sentences`, aligned by place."""

    def __missing__(self, language: str) -> Sentences:
        raise TnkitError(f"the corpus has no sentences in {language!r}; it has {', '.join(self) or 'none'}")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Aligned sentences by language, in a train and a test split that share no sentence.

    Attributes:
        name: where it comes from.
        frame: a pandas frame with a column `split` ("train" or "test") and one a language.
        dropped: how many rows were left out, by reason.

    >>> corpus = load_corpus("everyday", ["en", "ja"])
    >>> len(corpus["train"]["en"]), corpus.languages
    (256, ('en', 'ja'))
    """

    name: str
    frame: "pd.DataFrame" = field(repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in the order of the columns."""
        return tuple(column for column in self.frame.columns if column != "split")

    @property
    def hash(self) -> str:
        """A fingerprint of all its sentences and splits."""
        return storage.text_hash([*self.frame.columns, *self.frame.to_numpy().ravel()])

    def __getitem__(self, split: str) -> Split:
        if split not in ("train", "test"):
            raise TnkitError(f"a corpus has the splits 'train' and 'test', not {split!r}: corpus['train']['ja']")
        rows = self.frame[self.frame["split"] == split]
        return Split({name: Sentences(tuple(rows[name]), name, self.name, split) for name in self.languages})

    def __len__(self) -> int:
        return len(self.frame)

    def to_frame(self) -> "pd.DataFrame":
        """The sentences, a row each, with their split."""
        return self.frame.copy()

    def save(self, path: str | Path) -> Path:
        """Write a TSV file that `load_corpus` reads back, splits included."""
        rows = [list(self.frame.columns), *self.frame.itertuples(index=False)]
        special = any(re.search('["\t\r\n]', cell) for row in rows for cell in row)
        text = io.StringIO(newline="")
        quoting: Any = csv.QUOTE_ALL if special else csv.QUOTE_NONE  # names in quotes say that every cell is
        csv.writer(text, delimiter="\t", lineterminator="\n", quoting=quoting, quotechar='"').writerows(rows)
        return storage.write_text(path, text.getvalue())

    def _repr_html_(self) -> str:
        sizes = {str(split): count for split, count in self.frame["split"].value_counts().items()}
        return storage.html_card("Corpus", {"name": self.name, "languages": self.languages, **sizes, **self.dropped})


def load_corpus(
    source: Any,
    languages: Sequence[str] | None = None,
    *,
    header: int | None = 0,
    quoting: Literal["csv", "none"] | None = None,
    test: float = 0.5,
    limit: int | None = None,
) -> Corpus:
    """Load sentences, normalise them, and split them.

    Text is put into Unicode NFC and stripped; rows with an empty sentence and exact duplicates are dropped and counted.
    A column `split` is respected; otherwise rows are split by a hash of their text in all languages of the source, so
    that a sentence falls the same way whichever languages are asked for, and rows that share a sentence stay together.

    Args:
        source: one of these.

            - a name: "everyday" (packaged), or "tatoeba", "mkqa", "flores+", "ntrex-128", "belebele" or "opus-100"
              (from the Hugging Face Hub; `tnkit.hub.RECIPES` has licences, sizes and citations), another data set of
              the Hub as "OWNER/NAME", or a file of one as "hf://datasets/OWNER/NAME/FILE".
            - a file with a column for each language, a column of translations by language, or a row for each sentence
              and language: .tsv .csv .jsonl .ndjson .json .parquet .arrow .xlsx, or a .tmx translation memory.
            - a .txt with one sentence a line, or a .pkl of the published code (a list of sentences, or of tuples).
            - two files of OPUS: {"en": "x.en", "ja": "x.ja"}, a list of them, or "x", with which their names begin.
            - a folder, .zip or .tar of FLORES-200, FLORES+, NTREX-128, Belebele, SIB-200, MASSIVE, OPUS, Tatoeba's
              exports of sentences and links, `datasets.Dataset.save_to_disk`, or a file for each language.
            - a pandas frame, a `datasets.Dataset` or `DatasetDict`, a dict of lists, a list of dicts or of tuples.

            Text may be packed as .gz, .bz2, .xz or .zip, in UTF-8, or in UTF-16 with a byte-order mark.
        languages: which languages, by column name; for files without column names, the name of each column in order.
        header: None for a table without names of columns; `languages` then names them in their order.
        quoting: of a .tsv file, "csv" where a cell in quotes is a cell and inner quotes are doubled, "none" where
            quotes are text; found out by default, and a file that can be either is refused.
        test: the share of rows in the test split.
        limit: keep at most so many rows, chosen by the same hash.

    Raises:
        TnkitError: for a file that is missing, empty, damaged or not what its ending says, and for missing languages.

    >>> import pandas as pd
    >>> corpus = load_corpus(pd.DataFrame({"en": ["Hi!", "Hi!", "Bye!"], "it": ["Ciao!", "Ciao!", "A dopo!"]}))
    >>> dict(corpus.dropped), len(corpus)
    ({'duplicates': 1}, 2)
    """
    if isinstance(languages, str):
        languages = [languages]
    if not 0 <= test <= 1:
        raise TnkitError(f"test={test} must be a share between 0 and 1")
    if limit is not None and limit < 1:
        raise TnkitError(f"limit={limit} must be a number of rows to keep, at least 1")
    name, frame = sources.read(source, languages, header=header, quoting=quoting)
    unmatched = frame.attrs.get("dropped", {})
    frame, wanted = _columns(name, frame, languages)
    frame, dropped = _clean(name, _normalised(name, frame), wanted)
    dropped = {**unmatched, **dropped}
    if limit is not None and len(frame) > limit:
        order = sorted(range(len(frame)), key=lambda row: _row_hash(frame.iloc[row]))
        dropped["beyond the limit"] = len(frame) - limit
        frame = frame.iloc[sorted(order[:limit])].reset_index(drop=True)
    if frame.empty:
        raise TnkitError(f"{name} has no sentences{f' left after dropping {dropped}' if dropped else ''}")
    if "split" not in frame:
        frame["split"] = _split(frame, test)
    if dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        _log.warning("%s: kept %d rows, dropped %s", name, len(frame), counts)
    return Corpus(name, frame[[*wanted, "split"]], dropped)


def _columns(name: str, frame: "pd.DataFrame", languages: Sequence[str] | None) -> tuple["pd.DataFrame", list[str]]:
    """All language columns and the split, and which languages are wanted."""
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    named = [column for column in columns if _LANGUAGE.fullmatch(column)]
    wanted = list(languages) if languages else named
    missing = [language for language in wanted if language not in columns]
    if missing or not wanted:
        raise TnkitError(
            f"{name} has no column for {', '.join(missing) or 'any language'}; it has {', '.join(columns) or 'none'}: "
            "name each column by its language code, such as en or ja"
        )
    twice = [column for column in [*wanted, "split"] if wanted.count(column) > 1 or columns.count(column) > 1]
    if twice:
        raise TnkitError(f"{name}: the column {twice[0]} is there or asked for twice; name each column once")
    kept = dict.fromkeys([*(column for column in named if columns.count(column) == 1), *wanted])
    return frame[[*kept, *(["split"] if "split" in columns else [])]], wanted


def _normalised(name: str, frame: "pd.DataFrame") -> "pd.DataFrame":
    """Text in Unicode NFC, stripped, and empty where there is none."""
    frame = frame.copy()
    for language in (column for column in frame.columns if column != "split"):
        cells = [
            unicodedata.normalize("NFC", cell).strip() if isinstance(cell, str) else "" for cell in frame[language]
        ]
        for row, cell in enumerate(cells, 1):
            if found := re.search("[\0\ud800-\udfff]", cell):
                what = "the character NUL" if found[0] == "\0" else "half a character (a lone surrogate)"
                raise TnkitError(f"{name}, {language} in row {row}: {what}; mend the text")
        frame[language] = cells
    return frame


def _clean(name: str, frame: "pd.DataFrame", wanted: list[str]) -> tuple["pd.DataFrame", dict[str, int]]:
    """Drop rows with an empty sentence and exact duplicates in the wanted languages, and count them."""
    if "split" in frame:
        frame["split"] = [str(cell) for cell in frame["split"]]
        unknown = sorted({*frame["split"]} - {"train", "test"})
        if unknown:
            raise TnkitError(f"{name}: the column split holds {', '.join(unknown[:3])!r}; expected train and test")
    whole = frame[(frame[wanted] != "").all(axis=1)]
    unique = whole.drop_duplicates(wanted)
    dropped = {"empty": len(frame) - len(whole), "duplicates": len(whole) - len(unique)}
    return unique.reset_index(drop=True), {reason: count for reason, count in dropped.items() if count}


def _split(frame: "pd.DataFrame", test: float) -> list[str]:
    """Group rows that share a sentence, order the groups by hash, and fill the test split with the first."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, ends, nodes, offset = np.arange(len(frame)), [], [], len(frame)
    for language in frame.columns:
        there = (frame[language] != "").to_numpy()
        codes = frame[language].astype("category").cat.codes.to_numpy(dtype=np.int64)
        ends.append(rows[there])
        nodes.append(codes[there] + offset)
        offset += len(frame)
    where = np.concatenate(ends), np.concatenate(nodes)
    links = coo_matrix((np.ones(len(where[0])), where), shape=(offset, offset))
    group = connected_components(links, directed=False)[1][: len(frame)]
    members: dict[int, list[int]] = {}
    for row in range(len(frame)):
        members.setdefault(int(group[row]), []).append(row)
    keys = {number: min(_row_hash(frame.iloc[row]) for row in places) for number, places in members.items()}
    split, wanted = ["train"] * len(frame), round(test * len(frame))
    for number in sorted(members, key=keys.__getitem__):
        places = members[number]
        if len(places) <= wanted:
            wanted -= len(places)
            for row in places:
                split[row] = "test"
    return split


def _row_hash(row: Any) -> str:
    return hashlib.sha256(json.dumps([str(cell) for cell in row], ensure_ascii=False).encode()).hexdigest()
