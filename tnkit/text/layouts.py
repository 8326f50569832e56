"""Tables as data sets lay them out, as one column for each language: a layout is one entry of a table here.

wide("pairs.jsonl", frame, ["en", "ja"])     # a frame with the columns en, ja and, where there is one, split
"""

import ast
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError
from tnkit.text import records
from tnkit.text.languages import code_of, matching

if TYPE_CHECKING:
    import pandas as pd

_LANGUAGES = 500  # columns that a table may spread to
_CELL = 1_000_000  # letters of a cell that is read as a dict


@dataclass(frozen=True)
class Long:
    """A table with a row for each sentence of each language.

    Attributes:
        language: the columns that together name the language.
        text: the column of sentences.
        keys: the columns that tell which rows are translations of each other; rows are matched in order without them.
    """

    language: tuple[str, ...]
    text: str
    keys: tuple[str, ...]

    def fits(self, columns: Sequence[str]) -> bool:
        """Whether a table has these columns."""
        return {*self.language, self.text} <= {*columns}


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


def wide(name: str, source: Any, languages: Sequence[str] | None = None) -> "pd.DataFrame":
    """A table with a column for each language, from a table in any known layout, or from lists or dicts.

    Args:
        name: of the source, for errors.
        source: a pandas frame, a `datasets.Dataset` or `DatasetDict`, a dict of lists, a list of dicts or of pairs.
        languages: those that are asked for.

    Returns:
        the frame, with all languages of the source. `attrs["key"]` names the key that joined its rows, some of which a
        language can lack; `attrs["matched"]` is "in order" where nothing says which rows are translations.

    Raises:
        TnkitError: for a source of another kind, and for cells of a language that are not text.

    >>> import pandas as pd
    >>> long = pd.DataFrame({"lang": ["en", "it"], "id": [1, 1], "text": ["Hi!", "Ciao!"]})
    >>> wide("pairs", long).to_dict("list")
    {'en': ['Hi!'], 'it': ['Ciao!']}
    """
    frame = _frame(name, source, languages)
    frame = frame.set_axis([str(column) for column in frame.columns], axis=1)
    columns = list(frame.columns)
    layout = next((read for fits, read in LAYOUTS if fits(columns)), None)
    long = next((layout for layout in LONG if layout.fits(columns)), None)
    keys = {*long.language, long.text, *long.keys} if long else {"id"} if layout else set()  # where "id" numbers rows
    plain = [column for column in columns if column not in keys]
    if not languages or not all(matching(language, plain) for language in languages):
        if layout is not None:
            frame = layout(name, frame, languages)
        elif long is not None:
            frame = _from_long(name, frame, long, languages)
    _check_text(name, frame, languages)
    return frame


def _from_long(name: str, frame: "pd.DataFrame", layout: Long, languages: Sequence[str] | None) -> "pd.DataFrame":
    tags = frame[layout.language[0]].astype(str)
    for column in layout.language[1:]:
        tags = tags + "_" + frame[column].astype(str)
    columns = columns_of(name, list(dict.fromkeys(tags)), languages)
    keys = [key for key in layout.keys if key in frame.columns]
    keys = [key for key in keys if frame[key].duplicated().any()] or keys  # others number the rows of the table
    split = next((column for column in _SPLITS if column in frame.columns), None)
    kept = frame[[layout.text, *keys, *([split] if split else [])]]
    kept = kept.rename(columns={layout.text: "text"} | ({split: "split"} if split else {}))
    sentences = {columns[str(tag)]: rows for tag, rows in kept.groupby(tags, sort=False) if str(tag) in columns}
    return joined(name, sentences, keys, languages or sentences)


def columns_of(name: str, present: Sequence[str], languages: Sequence[str] | None) -> dict[str, str]:
    """The name of the column for each language that is present: as it was asked for, otherwise its own.

    Args:
        name: of the source, for errors.
        present: names of languages in the source. Names of nothing are left out unless they are asked for.
        languages: those that are asked for; all others are read too, since they decide the split of a row.

    Raises:
        TnkitError: where one is missing, or names several that are present.

    >>> columns_of("x", ["eng", "jpn", "id", "url"], ["ja"])
    {'eng': 'eng', 'jpn': 'ja', 'id': 'ind'}
    """
    asked = {only(name, language, present): language for language in languages or ()}
    if languages and len(asked) < len(languages):
        raise TnkitError(f"{name}: one of the languages {', '.join(languages)} is asked for twice; name each once")
    if len(present) > _LANGUAGES:
        if not languages:
            raise TnkitError(f"{name} has {len(present):,} languages; name those to read")
        present = [tag for tag in present if tag in asked]
    own = {tag: "ind" if tag == "id" else tag for tag in present if tag == "id" or code_of(tag)}  # id names row numbers
    return {tag: asked.get(tag) or own[tag] for tag in present if tag in asked or tag in own}


def joined(
    name: str, sentences: Mapping[str, "pd.DataFrame"], keys: Sequence[str], wanted: Collection[str]
) -> "pd.DataFrame":
    """One table of each language's sentences, matched by their keys, or row by row where there are none.

    Args:
        name: of the source, for errors.
        sentences: for each language, a frame with the columns text, the keys, and perhaps split.
        keys: the columns that tell which rows are translations of each other.
        wanted: languages that must be parallel; others are left out if they are not.

    Raises:
        TnkitError: for languages with different numbers of rows, or with two sentences for one key.
    """
    import pandas as pd

    splits = all("split" in sentences[language] for language in wanted)
    parallel = {language: rows for language, rows in sentences.items() if language in wanted}
    first = next(iter(parallel))
    if not keys:
        _check_order(name, parallel, splits)
    texts = {}
    for language, rows in sentences.items():
        with suppress(*(() if language in wanted else (TnkitError, KeyError))):
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


def _by_key(name: str, language: str, rows: "pd.DataFrame", keys: list[str]) -> "pd.Series[Any]":
    """The sentences of a language under their keys; "" where one is missing, unlike a key that the language lacks."""
    rows = rows.drop_duplicates([*keys, "text"])
    if rows.duplicated(keys).any():
        again = rows.loc[rows.duplicated(keys), keys[0]].iloc[0]
        raise TnkitError(f"{name}: {keys[0]} {again!s:.40} has two sentences in {language}; keep one of them")
    texts = rows.set_index(keys)["text"].astype(object)
    return texts.where(texts.notna(), "")


def _check_order(name: str, sentences: Mapping[str, "pd.DataFrame"], splits: bool) -> None:
    sizes = {language: len(rows) for language, rows in sentences.items()}
    if len({*sizes.values()}) > 1:
        counts = ", ".join(f"{size:,} in {language}" for language, size in sizes.items())
        raise TnkitError(f"{name}: its languages have different numbers of rows ({counts}); they are not parallel")
    if splits:
        first, *others = (rows["split"].to_list() for rows in sentences.values())
        if any(other != first for other in others):
            raise TnkitError(f"{name}: its languages have different splits in the same rows; they are not parallel")


def only(name: str, language: str, present: Sequence[str]) -> str:
    """The one name that is present for a language; of eng and eng-GB, eng is en.

    Raises:
        TnkitError: for none, or several.
    """
    names = matching(language, present)
    names = [other for other in names if code_of(other) == code_of(language)] or names if len(names) > 1 else names
    if len(names) != 1:
        shown = ", ".join(map(str, names or present))
        problem = f"{len(names)} languages that {language} could be" if names else f"no sentences in {language}"
        raise TnkitError(f"{name} has {problem}; it has {shown:.200}: name one of them")
    return names[0]


def _nested(name: str, frame: "pd.DataFrame", languages: Sequence[str] | None) -> "pd.DataFrame":
    """A column of dicts from language to text, also as JSON or as Python writes it."""
    import pandas as pd

    column = next(column for column in NESTED if column in frame.columns)
    cells = [_dict(name, column, row, cell) for row, cell in enumerate(frame[column], 1)]
    present = list(dict.fromkeys(key for cell in cells for key in cell))
    if len(present) > _LANGUAGES:
        if not languages:
            raise TnkitError(f"{name} has {len(present):,} keys in its column {column}; name the languages to read")
        named = [key for language in languages for key in matching(language, present)]
        present = list(dict.fromkeys(named)) or present[:_LANGUAGES]
    spread = pd.DataFrame({key: [cell.get(key) for cell in cells] for key in present}, dtype=object)
    if "split" in frame.columns:
        spread["split"] = frame["split"].to_list()
    return spread


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


def _english(name: str, frame: "pd.DataFrame", languages: Sequence[str] | None) -> "pd.DataFrame":
    """Pairs of sentence-transformers, which do not name their other language."""
    others = [language for language in languages or () if not matching("en", [language])]
    if len(others) != 1:
        raise TnkitError(
            f"{name} has the columns english and non_english, and was asked for {records.listed(languages)}; name "
            "English and the one other language that it is in"
        )
    english = next((language for language in languages or () if matching("en", [language])), "en")
    return frame.rename(columns={"english": english, "non_english": others[0]})


_Fits = Callable[[Sequence[str]], bool]
_Read = Callable[[str, "pd.DataFrame", Sequence[str] | None], "pd.DataFrame"]
LAYOUTS: tuple[tuple[_Fits, _Read], ...] = (
    (lambda columns: any(column in NESTED for column in columns), _nested),
    (lambda columns: {"english", "non_english"} <= {*columns}, _english),
)


def _frame(name: str, source: Any, languages: Sequence[str] | None) -> "pd.DataFrame":
    import pandas as pd

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


def _of_datasets(name: str, source: Any) -> "pd.DataFrame":
    import pandas as pd

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


def _check_text(name: str, frame: "pd.DataFrame", languages: Sequence[str] | None) -> None:
    """Refuse cells of a language that hold something other than text."""
    import pandas as pd

    columns = list(frame.columns)
    if len({*columns}) != len(columns):
        return  # the caller refuses them where one is asked for
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
