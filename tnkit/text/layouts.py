"""Tables as data sets lay them out, as one column for each language: a layout is one entry of a table here.

wide("pairs.jsonl", frame, ["en", "ja"])     # a frame with the columns en, ja and, where there is one, split
"""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
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
    """A table with a column for each language, of a table in any layout that is known, or of lists or dicts.

    Args:
        name: what errors call it.
        source: a pandas frame, a `datasets.Dataset` or `DatasetDict`, a dict of lists, a list of dicts or of pairs.
        languages: those that are asked for.

    Returns:
        the frame, with the names of its source; `attrs["dropped"]` counts what has no translation, and
        `attrs["matched"]` is "in order" where nothing says which rows are translations of each other.

    Raises:
        TnkitError: for a source of another kind, and for cells of a language that are no text.

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
            frame = from_long(name, frame, long, languages)
    _check_text(name, frame, languages)
    return frame


def from_long(name: str, frame: "pd.DataFrame", layout: Long, languages: Sequence[str] | None) -> "pd.DataFrame":
    """A table with a column for each language, of one with a row for each sentence of each language."""
    tags = frame[layout.language[0]].astype(str)
    for column in layout.language[1:]:
        tags = tags + "_" + frame[column].astype(str)
    present = list(dict.fromkeys(tags))
    chosen = {language: only(name, language, present) for language in languages or present}
    if len(chosen) > _LANGUAGES:
        raise TnkitError(f"{name} has {len(chosen):,} languages; name those to read")
    keys = [key for key in layout.keys if key in frame.columns]
    keys = [key for key in keys if frame[key].duplicated().any()] or keys  # others number the rows of the table
    split = next((column for column in _SPLITS if column in frame.columns), None)
    kept = frame[[layout.text, *keys, *([split] if split else [])]]
    kept = kept.rename(columns={layout.text: "text"} | ({split: "split"} if split else {}))
    return joined(name, {language: kept[tags == tag] for language, tag in chosen.items()}, keys)


def joined(name: str, parts: Mapping[str, "pd.DataFrame"], keys: Sequence[str]) -> "pd.DataFrame":
    """One table of each language's sentences, matched by their keys, or row by row where there are none.

    Args:
        name: what errors call it.
        parts: of each language, a frame with the columns text, the keys, and perhaps split.
        keys: the columns that tell which rows are translations of each other.

    Raises:
        TnkitError: where nothing matches, or without keys where the languages have different numbers of rows.
    """
    import pandas as pd

    splits = all("split" in part for part in parts.values())
    keys = [*keys, *(["split"] if splits and keys else [])]
    sizes = {language: len(part) for language, part in parts.items()}
    if not keys:
        if len({*sizes.values()}) > 1:
            counts = ", ".join(f"{size:,} in {language}" for language, size in sizes.items())
            raise TnkitError(f"{name}: its languages have different numbers of rows ({counts}); they are not parallel")
        frame = pd.DataFrame({language: part["text"].to_list() for language, part in parts.items()}, dtype=object)
        if splits:
            first, *others = (part["split"].to_list() for part in parts.values())
            if any(other != first for other in others):
                raise TnkitError(f"{name}: its languages have different splits in the same rows; they are not parallel")
            frame["split"] = first
        frame.attrs["matched"] = "in order" if len(parts) > 1 else ""
        return frame
    texts = {}
    for language, part in parts.items():
        rows = part.drop_duplicates([*keys, "text"])
        if rows.duplicated(keys).any():
            again = rows.loc[rows.duplicated(keys), keys[0]].iloc[0]
            raise TnkitError(f"{name}: {keys[0]} {again!s:.40} has two sentences in {language}; keep one of them")
        texts[language] = rows.set_index(keys)["text"]
    common = every = next(iter(texts.values())).index
    for text in texts.values():
        common, every = common[common.isin(text.index)], every.union(text.index, sort=False)
    if not len(common):
        shown = ", ".join(f"{size:,} in {language}" for language, size in sizes.items())
        raise TnkitError(f"{name}: no {keys[0]} is in every language ({shown}); its sentences are not translations")
    frame = pd.DataFrame({language: text.loc[common].to_list() for language, text in texts.items()}, dtype=object)
    if splits:
        frame["split"] = common.get_level_values("split")
    if len(common) < len(every):
        frame.attrs["dropped"] = {"without a translation": len(every) - len(common)}
    return frame


def only(name: str, language: str, present: Sequence[str]) -> str:
    """The one name that is present for a language; of eng and eng-GB, eng is en.

    Raises:
        TnkitError: for none, or several.
    """
    names = matching(language, present)
    names = [other for other in names if code_of(other) == code_of(language)] or names if len(names) > 1 else names
    if len(names) != 1:
        shown = ", ".join(map(str, names or present))
        what = f"{len(names)} languages that {language} could be" if names else f"no sentences in {language}"
        raise TnkitError(f"{name} has {what}; it has {shown:.200}: name one of them")
    return names[0]


def _nested(name: str, frame: "pd.DataFrame", languages: Sequence[str] | None) -> "pd.DataFrame":
    """A column of dicts from language to text, also as JSON or as Python writes it."""
    import pandas as pd

    column = next(column for column in NESTED if column in frame.columns)
    cells = [_dict(name, column, row, cell) for row, cell in enumerate(frame[column], 1)]
    present = list(dict.fromkeys(key for cell in cells for key in cell))
    if languages:
        named = [matching(language, present) for language in languages]
        present = [key for names in named for key in names] if all(named) else present[:_LANGUAGES]
    elif len(present) > _LANGUAGES:
        raise TnkitError(f"{name} has {len(present):,} keys in its column {column}; name the languages to read")
    spread = pd.DataFrame({key: [cell.get(key) for cell in cells] for key in dict.fromkeys(present)}, dtype=object)
    if "split" in frame.columns:
        spread["split"] = frame["split"].to_list()
    return spread


def _dict(name: str, column: str, row: int, cell: Any) -> Mapping[str, Any]:
    if isinstance(cell, str) and len(cell) <= _CELL:
        for read in (json.loads, ast.literal_eval):  # the latter for what str() made of a dict
            try:
                cell = read(cell)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if isinstance(cell, Mapping) and {"language", "translation"} == {*cell}:  # of datasets' variable languages
        cell = dict(zip(cell["language"], cell["translation"], strict=False))
    if cell is None or isinstance(cell, float):
        return {}
    if not isinstance(cell, Mapping):
        raise TnkitError(f"{name}, {column} in row {row}: expected a dict such as {{'en': 'Hi!', 'ja': 'やあ！'}}")
    return {str(key): value for key, value in cell.items()}


def _english(name: str, frame: "pd.DataFrame", languages: Sequence[str] | None) -> "pd.DataFrame":
    """Pairs of sentence-transformers, whose other language the file's name tells, if anything."""
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

    splits = [*source.values()] if isinstance(source, Mapping) else [source]
    if not splits or any("Iterable" in type(split).__name__ or not hasattr(split, "to_pandas") for split in splits):
        raise TnkitError(
            f"{name} is a {type(source).__name__}, which streams; give a datasets.Dataset, such as "
            "Dataset.from_list(list(stream.take(1000)))"
        )
    frames = [split.to_pandas() for split in splits]
    if len(frames) == 1:
        return frames[0]
    named = zip(source, frames, strict=True)
    return pd.concat([frame.assign(split=split) for split, frame in named], ignore_index=True)


def _check_text(name: str, frame: "pd.DataFrame", languages: Sequence[str] | None) -> None:
    """Refuse cells of a language that hold something, and no text."""
    columns = list(frame.columns)
    if len({*columns}) != len(columns):
        return  # refused by who asks for one of them
    if languages:
        checked = [column for language in languages for column in matching(language, columns)]
    else:
        checked = [column for column in columns if code_of(column)]
    for column in dict.fromkeys(checked):
        cells = frame[column]
        if not languages and not any(isinstance(cell, str) for cell in cells):
            continue  # a column of numbers that looks like a language
        for row, cell in enumerate(cells, 1):
            if not isinstance(cell, str) and not _is_missing(cell):
                raise TnkitError(
                    f"{name}, {column} in row {row}: expected text, not {type(cell).__name__} ({cell!s:.40})"
                )


def _is_missing(cell: Any) -> bool:
    import pandas as pd

    return cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and cell != cell)
