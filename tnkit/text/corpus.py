"""Sentences aligned across languages, in fixed splits: `Corpus`, and `load_corpus`, which reads every source.

corpus = tn.load_corpus("everyday", ["en", "ja"])           # packaged, CC0, written for this project
corpus = tn.load_corpus("tatoeba", ["en", "ja"])            # packaged, CC BY 2.0 FR, written by people
corpus = tn.load_corpus("pairs.tsv", ["en", "ja"])          # a file, folder or archive, in many layouts
corpus = tn.load_corpus({"en": "x.en", "ja": "x.ja"})       # two files, or lists in memory
corpus = tn.load_corpus("tatoeba-hub", ["en", "ja"], limit=2000)  # from the Hugging Face Hub; see sources.RECIPES
corpus["train"]["ja"]                                       # a sequence of str
"""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any, Literal, SupportsIndex, overload

import pandas as pd

from tnkit import storage
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.text import rows as row_rules
from tnkit.text import sources
from tnkit.text.languages import code_of, foreign_script, matching, name_of

_log = logging.getLogger("tnkit")
_MANY = 20  # cells for each value of a tag
_FAR = 0.1  # the test split may miss its share by this share of the rows without a warning


@dataclass(frozen=True)
class Sentences(Sequence[str]):
    """The sentences of one language and split; a sequence of str that records its source.

    Attributes:
        texts: the sentences.
        language, corpus, split: names, for messages and results.
        ids: the number of each sentence's row in its source, if known; slices keep it.
        source: a fingerprint of the source.
        matched: "in order" if only their order says which sentences are translations of each other.

    >>> Sentences(("Hi!", "Bye!"), language="en")[1]
    'Bye!'
    """

    texts: tuple[str, ...]
    language: str = ""
    corpus: str = ""
    split: str = ""
    ids: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    source: str = field(default="", repr=False, compare=False)
    matched: str = field(default="", repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Sentences": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "str | Sentences":
        """A sentence, or the sentences of a slice."""
        if isinstance(index, slice):
            return replace(self, texts=self.texts[index], ids=None if self.ids is None else self.ids[index])
        return self.texts[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    @property
    def rows(self) -> str:
        """A fingerprint of the rows, the same for parallel languages; "" if the rows are not known."""
        return "" if self.ids is None else row_rules.fingerprint(self.ids)


class Split(dict[str, Sentences]):
    """Language → `Sentences`, aligned by index; other names of a language work too."""

    def __missing__(self, language: str) -> Sentences:
        names = matching(language, self) if isinstance(language, str) else []
        if len(names) == 1:
            return self[names[0]]
        raise TnkitError(f"the corpus has no sentences in {language!r}; it has {', '.join(self) or 'none'}")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Aligned sentences by language, in a train and a test split that share no sentence.

    Attributes:
        name: of the source.
        frame: a pandas frame with a column `split` ("train" or "test") and one for each language.
        dropped: how many rows were dropped, by reason.
        ids: the number of each row in its source, if known.
        source: a fingerprint of the source's sentences.
        matched: as in `Sentences`.

    >>> corpus = load_corpus("everyday", ["en", "ja"])
    >>> len(corpus["train"]["en"]), corpus.languages
    (256, ('en', 'ja'))
    >>> corpus["train"]["Japanese"] is not None
    True
    """

    name: str
    frame: pd.DataFrame = field(repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)
    ids: tuple[int, ...] | None = field(default=None, repr=False)
    source: str = field(default="", repr=False)
    matched: str = field(default="", repr=False)

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
        of_split = (self.frame["split"] == split).to_numpy()
        rows = self.frame[of_split]
        ids = None if self.ids is None else tuple(compress(self.ids, of_split))
        provenance = (self.name, split, ids, self.source, self.matched)
        return Split({name: Sentences(tuple(rows[name]), name, *provenance) for name in self.languages})

    def __len__(self) -> int:
        return len(self.frame)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the frame."""
        return self.frame.copy()

    def save(self, path: str | Path) -> Path:
        """Write a TSV file that `load_corpus` reads back, with the splits."""
        rows = [list(self.frame.columns), *self.frame.itertuples(index=False)]
        special = any(re.search('["\t\r\n]', cell) for row in rows for cell in row)
        text = io.StringIO(newline="")
        quoting: Any = csv.QUOTE_ALL if special else csv.QUOTE_NONE  # quoted names show that every cell is quoted
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
    limit: SupportsIndex | None = None,
    leaks: str = "refuse",
) -> Corpus:
    """Load sentences, normalise them, and split them.

    Text is stripped and put into Unicode NFC; a placeholder such as "-" or "N/A" counts as empty. Rows with an empty
    sentence and exact duplicates in the requested languages are dropped and counted. Without a column `split`, rows are
    split by a hash of their text in all languages of the source: rows that share a sentence stay together, the test
    split has its exact share of the distinct rows, and a row's split does not depend on the requested languages. (It
    does for Tatoeba's exports and for data sets on the Hub with a file for each language, of which only the requested
    languages are read.)

    A column `split` is respected. It holds train and test, in upper or lower case; devtest is test. Rows of dev,
    validation or valid become the test split if there is none, or else the training split if there is none. If both
    exist, those rows are dropped and counted; if neither does, they are split by hash.

    Args:
        source: one of these.

            - a name: "everyday", "tatoeba" or "openings" (packaged: sentences in five languages, sentences that people
              wrote in English with translations into Japanese or Italian, and prompts that leave the language of what
              follows open), or "tatoeba-hub", "mkqa", "flores+", "ntrex-128", "belebele" or "opus-100"
              (from the Hugging Face Hub; `sources.RECIPES` has licences, sizes and citations), another data set on
              the Hub as "OWNER/NAME", or a file of one as "hf://datasets/OWNER/NAME/FILE".
            - a file with a column for each language, a column of translations by language, or a row for each sentence
              and language: .tsv .csv .jsonl .ndjson .json .parquet .arrow .feather .xlsx, or a .tmx translation memory.
            - a .txt with one sentence per line, or a .pkl of the published code (a list of sentences, or of tuples).
            - two files of OPUS: {"en": "x.en", "ja": "x.ja"}, a list of them, or "x", the beginning of their names.
            - a folder, .zip or .tar of FLORES-200, FLORES+, NTREX-128, Belebele, SIB-200, MASSIVE, OPUS, Tatoeba's
              exports of sentences and links, `datasets.Dataset.save_to_disk`, or a file for each language.
            - a pandas frame, a `datasets.Dataset` or `DatasetDict`, a dict of lists, a list of dicts or of tuples.

            Text may be packed as .gz, .bz2, .xz or .zip. It is in UTF-8, or in UTF-16 with a byte-order mark.
        languages: column names or other names of the languages (ja finds jpn_Jpan and Japanese); for files without
            column names, the name of each column in order. Default: every column of text that is named after a
            language, such as ja, ja-JP, jpn_Jpan or Japanese, but not src, url or id.
        header: None for a table without column names; `languages` then names its columns in order.
        quoting: of a .tsv file, "csv" if quotes enclose cells and inner quotes are doubled, or "none" if quotes are
            text; detected by default, and a file that can be either is refused.
        test: the share of rows in the test split.
        limit: the most rows to keep, those of each split with the lowest hash: the splits keep their shares, and no
            row changes its split.
        leaks: if training rows of a column `split` hold sentences of the test split, "refuse" them or "drop" the rows.

    Raises:
        TnkitError: for a file that is missing, empty, damaged or not what its ending says, for missing languages, and
            for a column `split` that leaks.

    >>> import pandas as pd
    >>> corpus = load_corpus(pd.DataFrame({"en": ["Hi!", "Hi!", "Bye!"], "it": ["Ciao!", "Ciao!", "A dopo!"]}))
    >>> dict(corpus.dropped), len(corpus)
    ({'duplicates': 1}, 2)
    """
    languages = _checked(languages, test, limit, leaks)
    name, frame = sources.read(source, languages, header=header, quoting=quoting)
    dropped, matched = dict(frame.attrs.get("dropped", {})), frame.attrs.get("matched", "")  # by the layout
    key = frame.attrs.get("key", "")
    frame, wanted = _columns(name, frame, languages)
    untranslated = row_rules.untranslated(name, frame[wanted], key)
    frame = row_rules.normalised(name, frame)
    texts = frame[[column for column in frame.columns if column != "split"]]
    hashes = row_rules.row_hashes(texts)
    roles = row_rules.roles(name, frame["split"]) if "split" in frame else []
    is_split = not {*roles} <= {"dev"}  # dev alone is no split
    frame["split"] = roles if is_split else row_rules.by_hash(texts, hashes, test)
    rows = frame[(frame[wanted] != "").all(axis=1)]
    dropped["without a translation"] = dropped.get("without a translation", 0) + int((untranslated == 1).sum())
    dropped["empty"] = len(frame) - len(rows) - int((untranslated > 0).sum())
    if is_split:
        rows = row_rules.without_leaks(name, rows, wanted, leaks, dropped)
    distinct = rows.drop_duplicates(wanted)
    dropped["duplicates"] = len(rows) - len(distinct)
    if limit is not None and len(distinct) > int(limit):
        dropped["beyond the limit"] = len(distinct) - int(limit)
        distinct = distinct.iloc[row_rules.lowest(list(distinct["split"]), hashes[distinct.index], int(limit))]
    dropped = {reason: count for reason, count in dropped.items() if count}
    if distinct.empty:
        raise TnkitError(f"{name} has no sentences{f' left after dropping {dropped}' if dropped else ''}")
    _warn(name, distinct, wanted, dropped, None if is_split else test, matched)
    fingerprint = storage.text_hash(row_rules.FIELD.join(texts[column]) for column in texts.columns)
    columns = pd.DataFrame({column: distinct[column].tolist() for column in [*wanted, "split"]})
    return Corpus(name, columns, dropped, tuple(distinct.index), fingerprint, matched)


def _checked(languages: Any, test: Any, limit: Any, leaks: str) -> list[str] | None:
    """Validate the options; return the languages as a list."""
    if isinstance(languages, str):
        languages = [languages]
    if languages is not None:
        languages = list(languages) if isinstance(languages, Iterable) else [languages]
        for language in languages:
            if not isinstance(language, str):
                raise TnkitError(f"languages holds {language!r}; give names of languages, such as ['en', 'ja']")
    codes = Counter(filter(None, map(code_of, languages or ())))
    if again := [code for code, count in codes.items() if count > 1]:
        raise TnkitError(f"the column {again[0]} exists or was requested twice; name each column once")
    if isinstance(test, bool) or not isinstance(test, int | float) or not 0 <= test <= 1:
        raise TnkitError(f"test={test!r} must be a share between 0 and 1")
    if limit is not None:
        whole_number("limit", limit, at_least=1)
    one_of("leaks", leaks, ("refuse", "drop"))
    return languages or None


def _columns(name: str, frame: pd.DataFrame, languages: list[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """The columns of all languages and the split, and the wanted languages, whose columns get their requested names."""
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    twice = {column for column, count in Counter(columns).items() if count > 1}
    named = [column for column in columns if column not in twice and _is_language(column, frame[column].tolist())]
    if languages:  # a column that was not requested decides the split only if it holds sentences
        requested = {*languages, *chain(*(matching(language, named) for language in languages))}
        named = [column for column in named if column in requested or not _is_tag(frame[column].tolist())]
    wanted = languages or [*named, *filter(code_of, twice)]
    column_of = {language: _column(name, language, frame, named) for language in wanted}
    missing = [language for language, column in column_of.items() if column is None]
    if missing or not column_of:
        raise TnkitError(
            f"{name} has no column for {', '.join(missing) or 'any language'}; it has {', '.join(columns) or 'none'}: "
            "name each column by its language code, such as en or ja"
        )
    used = [*(str(column_of[language]) for language in wanted), "split"]
    again = [column for column in used if used.count(column) > 1 or column in twice]
    if again:
        raise TnkitError(f"{name}: the column {again[0]} exists or was requested twice; name each column once")
    chosen = dict.fromkeys([*named, *used[:-1], *(["split"] if "split" in columns else [])])
    return frame[[*chosen]].rename(columns={column: language for language, column in column_of.items()}), [*column_of]


def _is_language(name: str, cells: Sequence[object]) -> bool:
    """Whether a column is named after a language and holds text, or nothing at all."""
    return code_of(name) is not None and (not cells or any(isinstance(cell, str) for cell in cells))


def _is_tag(cells: Sequence[object]) -> bool:
    """Whether many cells hold few values, as years and sources do and sentences never."""
    filled = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    return len(filled) >= _MANY and len(set(filled)) <= len(filled) / _MANY


def _column(name: str, language: str, frame: pd.DataFrame, named: list[str]) -> str | None:
    """The column of a requested language; id is Indonesian only if it holds words, not row numbers."""
    matches = matching(language, named)
    if language in frame.columns and not (language == "id" and matches):
        cells = frame[language].tolist() if language == "id" else ["a"]
        has_words = any(isinstance(cell, str) and any(map(str.isalpha, cell)) for cell in cells)
        return language if has_words else None
    if len(matches) > 1:
        raise TnkitError(f"{name} has more than one column for {language}: {', '.join(matches)}; name one of them")
    return matches[0] if matches else None


def _warn(
    name: str, rows: pd.DataFrame, languages: list[str], dropped: Mapping[str, int], test: float | None, matched: str
) -> None:
    """Warn of dropped rows, a test split far from its share, rows matched in order, and text in an unusual script."""
    if dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        _log.warning("%s: kept %d rows, dropped %s", name, len(rows), counts)
    in_test = int((rows["split"] == "test").sum())
    if test is not None and abs(in_test - test * len(rows)) > max(1, _FAR * len(rows)):
        _log.warning(
            "%s: %d of %d rows are in the test split, far from test=%s, because rows sharing sentences stay together",
            *(name, in_test, len(rows), test),
        )
    if matched:
        _log.warning(
            "%s: only their order says which rows are translations of each other, so they were matched %s; check them "
            "with tnkit.measures.geometry.alignment",
            *(name, matched),
        )
    for language in languages:
        if script := foreign_script(list(rows[language]), language):
            _log.warning(
                "%s: most letters of %s are in %s script, which is not how %s is written; check the columns",
                *(name, language, script, name_of(language)),
            )
