"""Sentences aligned across languages, with fixed splits: `Corpus`, and `load_corpus` for every place they come from.

corpus = tn.load_corpus("everyday", ["en", "ja"])           # packaged, CC0
corpus = tn.load_corpus("pairs.tsv", ["en", "ja"])          # a file, a folder or an archive in many layouts
corpus = tn.load_corpus({"en": "x.en", "ja": "x.ja"})       # two files, or lists in memory
corpus = tn.load_corpus("tatoeba", ["en", "ja"], limit=2000)  # from the Hugging Face Hub; see tnkit.text.hub.RECIPES
corpus["train"]["ja"]                                       # a sequence of str
"""

import csv
import io
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import numpy as np

from tnkit import storage
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.text import languages as languages_module
from tnkit.text import sources, splits
from tnkit.text.rows import fingerprint

if TYPE_CHECKING:
    import pandas as pd

_FIELD = "\0"  # between cells; no text may hold it
_GAPS = {"-", "--", "---", "–", "—", "_", "N/A", "n/a", "#N/A", "NaN", "NULL", "null", "<NA>"}  # no sentences
_SURROGATE = re.compile("[\ud800-\udfff]")
_log = logging.getLogger("tnkit")
_MANY = 20  # cells of which one value is a tag
_FAR = 0.1  # of the rows, by which the test split may miss its share without a word


@dataclass(frozen=True)
class Sentences(Sequence[str]):
    """The sentences of one language and split; a sequence of str that remembers where it is from.

    Attributes:
        texts: the sentences.
        language, corpus, split: names, for messages and results.
        ids: the number of each sentence's row in its source, where it is known; slices keep it.
        source: a fingerprint of the source.
        matched: "in order" where nothing but their order says which sentences are translations of each other.

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
    def __getitem__(self, place: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "Sentences": ...

    def __getitem__(self, place: SupportsIndex | slice) -> "str | Sentences":
        """A sentence, or of a slice the sentences in it."""
        if isinstance(place, slice):
            return replace(self, texts=self.texts[place], ids=None if self.ids is None else self.ids[place])
        return self.texts[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    @property
    def rows(self) -> str:
        """A fingerprint of the rows; languages with another one are not parallel. Empty where rows are not known."""
        return "" if self.ids is None else fingerprint(self.ids)


class Split(dict[str, Sentences]):
    """Language → `Sentences`, aligned by place; a language is found by its other names too."""

    def __missing__(self, language: str) -> Sentences:
        names = languages_module.matching(language, self) if isinstance(language, str) else []
        if len(names) == 1:
            return self[names[0]]
        raise TnkitError(f"the corpus has no sentences in {language!r}; it has {', '.join(self) or 'none'}")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Aligned sentences by language, in a train and a test split that share no sentence.

    Attributes:
        name: where it comes from.
        frame: a pandas frame with a column `split` ("train" or "test") and one a language.
        dropped: how many rows were left out, by reason.
        ids: the number of each row in its source, where it is known.
        source: a fingerprint of the source's sentences.
        matched: as in `Sentences`.

    >>> corpus = load_corpus("everyday", ["en", "ja"])
    >>> len(corpus["train"]["en"]), corpus.languages
    (256, ('en', 'ja'))
    >>> corpus["train"]["Japanese"] is not None
    True
    """

    name: str
    frame: "pd.DataFrame" = field(repr=False)
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
        rows, where = self.frame[of_split], (self.name, split)
        ids = None if self.ids is None else tuple(compress(self.ids, of_split))
        about = (*where, ids, self.source, self.matched)
        return Split({name: Sentences(tuple(rows[name]), name, *about) for name in self.languages})

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
    limit: SupportsIndex | None = None,
    leaks: str = "refuse",
) -> Corpus:
    """Load sentences, normalise them, and split them.

    Text is put into Unicode NFC and stripped, and a placeholder such as "-" or "N/A" is empty; rows with an empty
    sentence and exact duplicates in the languages asked for are dropped and counted. Without a column `split`, all rows
    that are read are split by a hash of their text in all their languages. So rows that share a sentence stay together,
    the test split has its exact share of the different rows, and a sentence of a table with a column for each language
    falls the same way whichever languages are asked for. (Of other layouts, folders and recipes only those languages
    are read.)

    A column `split` is respected. It holds train and test, whatever the case; devtest is test. Rows of dev, validation
    or valid become the test split where there is none, else the training split where there is none; beside both they
    are dropped and counted, and alone they are split by hash.

    Args:
        source: one of these.

            - a name: "everyday" (packaged), or "tatoeba", "mkqa", "flores+", "ntrex-128", "belebele" or "opus-100"
              (from the Hugging Face Hub; `hub.RECIPES` has licences, sizes and citations), another data set of
              the Hub as "OWNER/NAME", or a file of one as "hf://datasets/OWNER/NAME/FILE".
            - a file with a column for each language, a column of translations by language, or a row for each sentence
              and language: .tsv .csv .jsonl .ndjson .json .parquet .arrow .xlsx, or a .tmx translation memory.
            - a .txt with one sentence a line, or a .pkl of the published code (a list of sentences, or of tuples).
            - two files of OPUS: {"en": "x.en", "ja": "x.ja"}, a list of them, or "x", with which their names begin.
            - a folder, .zip or .tar of FLORES-200, FLORES+, NTREX-128, Belebele, SIB-200, MASSIVE, OPUS, Tatoeba's
              exports of sentences and links, `datasets.Dataset.save_to_disk`, or a file for each language.
            - a pandas frame, a `datasets.Dataset` or `DatasetDict`, a dict of lists, a list of dicts or of tuples.

            Text may be packed as .gz, .bz2, .xz or .zip, in UTF-8, or in UTF-16 with a byte-order mark.
        languages: which languages, by the name of the column or another name of the language (ja finds jpn_Jpan and
            Japanese); for files without column names, the name of each column in order. Default: every column of text
            whose name is a language's, such as ja, ja-JP, jpn_Jpan or Japanese, but not src, url or id.
        header: None for a table without names of columns; `languages` then names them in their order.
        quoting: of a .tsv file, "csv" where a cell in quotes is a cell and inner quotes are doubled, "none" where
            quotes are text; found out by default, and a file that can be either is refused.
        test: the share of rows in the test split.
        limit: keep at most so many rows, of each split those with the lowest hash, so that the splits keep their
            shares and no row changes its split.
        leaks: what to do where the given training split holds sentences of the test split: "refuse", or "drop" those
            training rows.

    Raises:
        TnkitError: for a file that is missing, empty, damaged or not what its ending says, for missing languages, and
            for a given split that leaks.

    >>> import pandas as pd
    >>> corpus = load_corpus(pd.DataFrame({"en": ["Hi!", "Hi!", "Bye!"], "it": ["Ciao!", "Ciao!", "A dopo!"]}))
    >>> dict(corpus.dropped), len(corpus)
    ({'duplicates': 1}, 2)
    """
    import pandas as pd

    languages = _checked(languages, test, limit, leaks)
    name, frame = sources.read(source, languages, header=header, quoting=quoting)
    dropped, matched = dict(frame.attrs.get("dropped", {})), frame.attrs.get("matched", "")  # by the layout
    frame, wanted = _columns(name, frame, languages)
    frame = _normalised(name, frame)
    texts = frame[[column for column in frame.columns if column != "split"]]
    hashes = splits.row_hashes(texts)
    roles = splits.roles(name, frame["split"]) if "split" in frame else []
    given = not {*roles} <= {"dev"}  # which alone is no split
    frame["split"] = roles if given else splits.by_hash(texts, hashes, test)
    whole = frame[(frame[wanted] != "").all(axis=1)]
    dropped["empty"] = len(frame) - len(whole)
    if given:
        whole = _without_leaks(name, whole, wanted, leaks, dropped)
    kept = whole.drop_duplicates(wanted)
    dropped["duplicates"] = len(whole) - len(kept)
    if limit is not None and len(kept) > int(limit):
        dropped["beyond the limit"] = len(kept) - int(limit)
        kept = kept.iloc[splits.lowest(list(kept["split"]), hashes[kept.index], int(limit))]
    dropped = {reason: count for reason, count in dropped.items() if count}
    if kept.empty:
        raise TnkitError(f"{name} has no sentences{f' left after dropping {dropped}' if dropped else ''}")
    if dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        _log.warning("%s: kept %d rows, dropped %s", name, len(kept), counts)
    tests = int((kept["split"] == "test").sum())
    if not given and abs(tests - test * len(kept)) > max(1, _FAR * len(kept)):
        _log.warning(
            "%s: %d of %d rows are in the test split, far from test=%s, because rows sharing sentences stay together",
            *(name, tests, len(kept), test),
        )
    if matched:
        _log.warning(
            "%s: nothing says which rows are translations of each other, so they were matched %s; check them with "
            "tnkit.measures.geometry.alignment",
            *(name, matched),
        )
    _tell_scripts(name, kept, wanted)
    origin = storage.text_hash(_FIELD.join(texts[column]) for column in texts.columns)
    plain = pd.DataFrame({column: kept[column].tolist() for column in [*wanted, "split"]})
    return Corpus(name, plain, dropped, tuple(kept.index), origin, matched)


def _checked(languages: Any, test: Any, limit: Any, leaks: str) -> list[str] | None:
    """The languages as a list, once every option is what it must be."""
    if isinstance(languages, str):
        languages = [languages]
    if languages is not None:
        languages = list(languages) if isinstance(languages, Iterable) else [languages]
        wrong = next((one for one in languages if not isinstance(one, str)), None)
        if wrong is not None:
            raise TnkitError(f"languages holds {wrong!r}; give names of languages, such as ['en', 'ja']")
    codes = Counter(filter(None, map(languages_module.code_of, languages or ())))
    if again := [code for code, count in codes.items() if count > 1]:
        raise TnkitError(f"the column {again[0]} is there or asked for twice; name each column once")
    if isinstance(test, bool) or not isinstance(test, int | float) or not 0 <= test <= 1:
        raise TnkitError(f"test={test!r} must be a share between 0 and 1")
    if limit is not None:
        whole_number("limit", limit, at_least=1)
    one_of("leaks", leaks, ("refuse", "drop"))
    return languages or None


def _columns(name: str, frame: "pd.DataFrame", languages: list[str] | None) -> tuple["pd.DataFrame", list[str]]:
    """All language columns and the split, and which languages are wanted; those are named as they were asked for."""
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    twice = {column for column, count in Counter(columns).items() if count > 1}
    named = [column for column in columns if column not in twice and _is_language(column, frame[column].tolist())]
    if languages:  # a column that was not asked for decides the split only where it holds sentences
        wanted = {*languages, *chain(*(languages_module.matching(language, named) for language in languages))}
        named = [column for column in named if column in wanted or not _is_tag(frame[column].tolist())]
    asked = languages or [*named, *(column for column in twice if languages_module.code_of(column))]
    found = {language: _column(name, language, frame, named) for language in asked}
    missing = [language for language, column in found.items() if column is None]
    if missing or not found:
        raise TnkitError(
            f"{name} has no column for {', '.join(missing) or 'any language'}; it has {', '.join(columns) or 'none'}: "
            "name each column by its language code, such as en or ja"
        )
    used = [*(str(found[language]) for language in asked), "split"]
    again = [column for column in used if used.count(column) > 1 or column in twice]
    if again:
        raise TnkitError(f"{name}: the column {again[0]} is there or asked for twice; name each column once")
    kept = dict.fromkeys([*named, *used[:-1], *(["split"] if "split" in columns else [])])
    return frame[[*kept]].rename(columns={column: language for language, column in found.items()}), [*found]


def _is_language(name: str, cells: Sequence[object]) -> bool:
    """Whether a column is named for a language and holds text, or nothing at all."""
    named = languages_module.code_of(name) is not None
    return named and (not cells or any(isinstance(cell, str) for cell in cells))


def _is_tag(cells: Sequence[object]) -> bool:
    """Whether few of many cells differ, as years and sources do and sentences never."""
    filled = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    return len(filled) >= _MANY and len(set(filled)) <= len(filled) / _MANY


def _column(name: str, language: str, frame: "pd.DataFrame", named: list[str]) -> str | None:
    """The column that a language was asked for; id is Indonesian only where it holds words, not the rows' numbers."""
    found = languages_module.matching(language, named)
    if language in frame.columns and not (language == "id" and found):
        cells = frame[language].tolist() if language == "id" else ["a"]
        worded = any(isinstance(cell, str) and any(map(str.isalpha, cell)) for cell in cells)
        return language if worded else None
    if len(found) > 1:
        raise TnkitError(f"{name} has more than one column for {language}: {', '.join(found)}; name one of them")
    return found[0] if found else None


def _normalised(name: str, frame: "pd.DataFrame") -> "pd.DataFrame":
    """Text in Unicode NFC, stripped, and empty where there is none; the rows numbered from 0."""
    import pandas as pd

    frame = frame.reset_index(drop=True)
    for language in (column for column in frame.columns if column != "split"):
        cells = [cell if isinstance(cell, str) else "" for cell in frame[language].tolist()]
        joined = _FIELD.join(cells)  # the checks run once over all of the text, not once a cell
        if joined.count(_FIELD) > max(0, len(cells) - 1) or _SURROGATE.search(joined):
            row, cell = next((row, cell) for row, cell in enumerate(cells, 1) if re.search("[\0\ud800-\udfff]", cell))
            what = "the character NUL" if _FIELD in cell else "an unpaired surrogate"
            raise TnkitError(f"{name}, {language} in row {row}: {what}; fix the text")
        normal = unicodedata.normalize("NFC", joined).split(_FIELD) if cells else []
        # Python's own strings: those of Arrow are decoded anew at every look.
        cells = ["" if (stripped := cell.strip()) in _GAPS else stripped for cell in normal]
        frame[language] = pd.Series(cells, dtype=object)
    return frame


def _without_leaks(
    name: str, frame: "pd.DataFrame", wanted: list[str], leaks: str, dropped: dict[str, int]
) -> "pd.DataFrame":
    """Of a given split the training and test rows, once it is sure or made sure that they share no sentence."""
    used = frame[frame["split"] != "dev"]
    by_language = {language: splits.leaking(used, language) for language in wanted}
    leaking = np.logical_or.reduce(list(by_language.values()))
    if leaking.any() and leaks == "refuse":
        language, rows = next((language, rows) for language, rows in by_language.items() if rows.any())
        raise TnkitError(
            f"{name}: {leaking.sum()} of {(used['split'] == 'train').sum()} training rows hold a sentence of the test "
            f"split, such as {used[language].iloc[rows.argmax()]!r:.60}; drop them with leaks='drop', or drop the "
            "column split"
        )
    dropped |= {"of the split dev": len(frame) - len(used), "leaking": int(leaking.sum())}
    return used[~leaking]


def _tell_scripts(name: str, frame: "pd.DataFrame", languages: list[str]) -> None:
    """Warn of columns that are plainly not in their language."""
    for language in languages:
        script = languages_module.foreign_script(list(frame[language]), language)
        if script:
            _log.warning(
                "%s: most letters of %s are in %s script, which is not how %s is written; check the columns",
                *(name, language, script, languages_module.name_of(language)),
            )
