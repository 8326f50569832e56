"""Tables as data sets lay them out, as one column for each language: a layout is one entry of a table here.

wide("pairs.jsonl", frame, ["en", "ja"])     # a frame with the columns en, ja and, if the source has one, split
"""

import ast
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tnkit.errors import TnkitError
from tnkit.text import records
from tnkit.text.languages import code_of, matching

_LANGUAGES = 500  # the most columns that a table spreads to
_CELL = 1_000_000  # the most letters of a cell that is read as a dict


@dataclass(frozen=True)
class Long:
    """A table with a row for each sentence and language.

    Attributes:
        language: the columns that together name the language.
        text: the column of sentences.
        keys: the columns that match translations; without them, rows are matched in order.
    """

    language: tuple[str, ...]
    text: str
    keys: tuple[str, ...]


LONG = (
    Long(("iso_639_3", "iso_15924"), "text", ("id",)),  # FLORES+
    Long(("dialect",), "flores_passage", ("link", "question_number")),  # Belebele
    Long(("locale",), "utt", ("id",)),  # MASSIVE
    *(
        Long((language,), text, ("id", "sentence_id", "index_id", "example_id", "pair_id"))
        for language in ("lang", "language", "language_code", "locale", "iso_639_3")
        for text in ("text", "sentence")
    ),
)
NESTED = ("translation", "translations", "queries")  # columns of dicts, by language
_SPLITS = ("split", "partition")  # the latter in MASSIVE


def wide(name: str, source: Any, languages: Sequence[str] | None = None) -> pd.DataFrame:
    """A table with a column for each language of the source, requested or not.

    Args:
        name: of the source, for errors.
        source: a pandas frame, a `datasets.Dataset` or `DatasetDict`, a dict of lists, a list of dicts or of pairs.
        languages: the requested ones.

    Returns:
        The frame. `attrs["key"]` names the key that joined its rows, some of which a language can lack;
        `attrs["matched"]` is "in order" if only their order says which rows are translations.

    >>> import pandas as pd
    >>> long = pd.DataFrame({"lang": ["en", "it"], "id": [1, 1], "text": ["Hi!", "Ciao!"]})
    >>> wide("pairs", long).to_dict("list")
    {'en': ['Hi!'], 'it': ['Ciao!']}
    """
    frame = _frame(name, source, languages)
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    layout = next((read for fits, read in LAYOUTS if fits(columns)), None)
    long = next((layout for layout in LONG if {*layout.language, layout.text} <= {*columns}), None)
    keys = {*long.language, long.text, *long.keys} if long else {"id"} if layout else set()  # "id" numbers rows here
    plain = [column for column in columns if column not in keys]
    if not languages or not all(matching(language, plain) for language in languages):
        if layout is not None:
            frame = layout(name, frame, languages)
        elif long is not None:
            frame = _from_long(name, frame, long, languages)
    _check_text(name, frame, languages)
    return frame


def _from_long(name: str, frame: pd.DataFrame, layout: Long, languages: Sequence[str] | None) -> pd.DataFrame:
    language = frame[[*layout.language]]
    named = language.notna().all(axis=1)
    frame, language = frame[named], language[named].astype(str)
    tags = language.iloc[:, 0].str.cat(language.iloc[:, 1:], sep="_")
    columns = columns_of(name, list(dict.fromkeys(tags)), languages)
    keys = [key for key in layout.keys if key in frame.columns]
    keys = [key for key in keys if frame[key].duplicated().any()] or keys  # the others number the rows of the table
    if not keys and not named.all():
        raise TnkitError(
            f"{name} has {(~named).sum()} rows without a language ({', '.join(layout.language)}), and only the order "
            "of rows says which are translations; name their languages, or add a column id that translations share"
        )
    split = next((column for column in _SPLITS if column in frame.columns), None)
    names = {layout.text: "text", **({split: "split"} if split else {})}
    rows = frame[[*names, *keys]].rename(columns=names)
    sentences = {columns[str(tag)]: group for tag, group in rows.groupby(tags, sort=False) if str(tag) in columns}
    return joined(name, sentences, keys, languages or sentences)


def columns_of(name: str, present: Sequence[str], languages: Sequence[str] | None) -> dict[str, str]:
    """The column name of each language in a source: as it was requested, otherwise its own.

    Languages that were not requested are included, because they decide the split of a row.

    >>> columns_of("x", ["eng", "jpn", "id", "url"], ["ja"])
    {'eng': 'eng', 'jpn': 'ja', 'id': 'ind'}
    """
    requested = {only(name, language, present): language for language in languages or ()}
    if languages and len(requested) < len(languages):
        raise TnkitError(f"{name}: one of the languages {', '.join(languages)} is requested twice; name each once")
    if len(present) > _LANGUAGES:
        if not languages:
            raise TnkitError(f"{name} has {len(present):,} languages; name the languages to read")
        present = [tag for tag in present if tag in requested]
    own = {tag: "ind" if tag == "id" else tag for tag in present if tag == "id" or code_of(tag)}  # id names row numbers
    return {tag: requested.get(tag) or own[tag] for tag in present if tag in requested or tag in own}


def tolerant(language: str, wanted: Collection[str]) -> suppress:
    """A context that leaves out a language that cannot be read, unless it is wanted."""
    return suppress(*(() if language in wanted else (TnkitError, KeyError)))


def joined(
    name: str, sentences: Mapping[str, pd.DataFrame], keys: Sequence[str], wanted: Collection[str]
) -> pd.DataFrame:
    """One table from the sentences of each language, matched by keys, or row by row without keys.

    Args:
        name: of the source, for errors.
        sentences: by language, a frame with the column text, the keys, and possibly split.
        keys: the columns that match translations.
        wanted: the languages that must be parallel; others are left out if they are not.
    """
    splits = all("split" in sentences[language] for language in wanted)
    parallel = {language: rows for language, rows in sentences.items() if language in wanted}
    first = next(iter(parallel))
    if not keys:
        _check_order(name, parallel, splits)
    texts = {}
    for language, rows in sentences.items():
        with tolerant(language, wanted):
            if keys:
                texts[language] = _by_key(name, language, rows, [*keys, *(["split"] if splits else [])])
            else:
                _check_order(name, {first: parallel[first], language: rows}, splits)
                texts[language] = rows["text"].astype(object).reset_index(drop=True)
    frame = pd.concat(texts, axis=1, sort=False)
    if splits:
        frame["split"] = frame.index.get_level_values("split") if keys else parallel[first]["split"].to_list()
    frame = frame.reset_index(drop=True)
    frame.attrs = {"key": keys[0]} if keys else {"matched": "in order" if len(wanted) > 1 else ""}
    return frame


def _by_key(name: str, language: str, rows: pd.DataFrame, keys: list[str]) -> pd.Series:
    """The sentences of a language by key; a missing sentence is "", a missing key is NaN in the joined table."""
    rows = rows.drop_duplicates([*keys, "text"])
    if rows.duplicated(keys).any():
        again = rows.loc[rows.duplicated(keys), keys[0]].iloc[0]
        raise TnkitError(f"{name}: {keys[0]} {again!s:.40} has two sentences in {language}; keep one of them")
    texts = rows.set_index(keys)["text"].astype(object)
    return texts.where(texts.notna(), "")


def _check_order(name: str, sentences: Mapping[str, pd.DataFrame], splits: bool) -> None:
    sizes = {language: len(rows) for language, rows in sentences.items()}
    if len({*sizes.values()}) > 1:
        counts = ", ".join(f"{size:,} in {language}" for language, size in sizes.items())
        raise TnkitError(f"{name}: its languages have different numbers of rows ({counts}); they are not parallel")
    roles = [rows["split"].to_list() for rows in sentences.values()] if splits else []
    if any(other != roles[0] for other in roles):
        raise TnkitError(f"{name}: its languages have different splits in the same rows; they are not parallel")


def only(name: str, language: str, present: Sequence[str]) -> str:
    """The one name in a source for a language; of eng and eng-GB, eng is en."""
    names = matching(language, present)
    names = [other for other in names if code_of(other) == code_of(language)] or names if len(names) > 1 else names
    if len(names) != 1:
        listed = ", ".join(map(str, names or present))
        problem = f"{len(names)} languages that {language} could be" if names else f"no sentences in {language}"
        raise TnkitError(f"{name} has {problem}; it has {listed:.200}: name one of them")
    return names[0]


def _nested(name: str, frame: pd.DataFrame, languages: Sequence[str] | None) -> pd.DataFrame:
    """A column of dicts from language to text, also as JSON or as Python writes it."""
    column = next(column for column in NESTED if column in frame.columns)
    cells = [_dict(name, column, row, cell) for row, cell in enumerate(frame[column], 1)]
    present = list(dict.fromkeys(key for cell in cells for key in cell))
    if len(present) > _LANGUAGES:
        matches = [key for language in languages or () for key in matching(language, present)]
        if not matches:
            raise TnkitError(f"{name} has {len(present):,} keys in its column {column}; name the languages to read")
        present = list(dict.fromkeys(matches))
    spread = pd.DataFrame({key: [cell.get(key) for cell in cells] for key in present}, dtype=object)
    return spread.assign(split=frame["split"].to_list()) if "split" in frame.columns else spread


def _dict(name: str, column: str, row: int, cell: Any) -> Mapping[str, Any]:
    if isinstance(cell, str) and len(cell) <= _CELL:
        for read in (json.loads, ast.literal_eval):  # the latter for what str() made of a dict
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                cell = read(cell)
                break
    if isinstance(cell, Mapping) and {"language", "translation"} == {*cell}:  # of datasets' variable languages
        cell = dict(zip(cell["language"], cell["translation"], strict=False))
    if cell is None or isinstance(cell, float):
        return {}
    if not isinstance(cell, Mapping):
        raise TnkitError(f"{name}, {column} in row {row}: expected a dict such as {{'en': 'Hi!', 'ja': 'やあ！'}}")
    return {str(key): value for key, value in cell.items()}


def _english(name: str, frame: pd.DataFrame, languages: Sequence[str] | None) -> pd.DataFrame:
    """Pairs of sentence-transformers, which do not name their other language."""
    english = [language for language in languages or () if matching("en", [language])]
    others = [language for language in languages or () if language not in english]
    if len(others) != 1:
        raise TnkitError(
            f"{name} has the columns english and non_english (requested: {records.listed(languages)}); name en and "
            "its other language"
        )
    return frame.rename(columns={"english": english[0] if english else "en", "non_english": others[0]})


_Fits = Callable[[Sequence[str]], bool]
_Read = Callable[[str, pd.DataFrame, Sequence[str] | None], pd.DataFrame]
LAYOUTS: tuple[tuple[_Fits, _Read], ...] = (
    (lambda columns: any(column in NESTED for column in columns), _nested),
    (lambda columns: {"english", "non_english"} <= {*columns}, _english),
)


def _frame(name: str, source: Any, languages: Sequence[str] | None) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        return source
    if type(source).__module__.partition(".")[0] == "datasets":
        return _of_datasets(name, source)
    if isinstance(source, Mapping | list | tuple):
        return records.table(name, source, languages)
    raise TnkitError(
        f"{name} is {type(source).__name__}, expected a file, a pandas frame, a datasets.Dataset, a dict of lists, or "
        "a list"
    )


def _of_datasets(name: str, source: Any) -> pd.DataFrame:
    splits = source if isinstance(source, Mapping) else {"": source}
    streams = any("Iterable" in type(split).__name__ or not hasattr(split, "to_pandas") for split in splits.values())
    if not splits or streams:
        raise TnkitError(
            f"{name} is a {type(source).__name__}, which streams; give a datasets.Dataset, such as "
            "Dataset.from_list(list(stream.take(1000)))"
        )
    frames = {split: rows.to_pandas() for split, rows in splits.items()}
    if len(frames) == 1:
        return next(iter(frames.values()))
    return pd.concat([frame.assign(split=split) for split, frame in frames.items()], ignore_index=True)


def _check_text(name: str, frame: pd.DataFrame, languages: Sequence[str] | None) -> None:
    """Refuse cells of a language that hold something other than text."""
    columns = list(frame.columns)
    if len({*columns}) != len(columns):
        return  # the caller refuses a column that is requested and there twice
    if languages:
        checked = [column for language in languages for column in matching(language, columns)]
    else:  # without columns of numbers that look like a language
        texts = [column for column in columns if code_of(column)]
        checked = [column for column in texts if any(isinstance(cell, str) for cell in frame[column])]
    for column in dict.fromkeys(checked):
        for row, cell in enumerate(frame[column], 1):
            if not isinstance(cell, str) and not (pd.api.types.is_scalar(cell) and pd.isna(cell)):
                raise TnkitError(
                    f"{name}, {column} in row {row}: expected text, not {type(cell).__name__} ({cell!s:.40})"
                )
