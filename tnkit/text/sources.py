"""Wherever sentences come from: a name, a path, a folder, a data set on the Hub, or an object in memory."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError
from tnkit.text import files, folders, hub, layouts, readers
from tnkit.text.languages import code_of

if TYPE_CHECKING:
    import pandas as pd

_HUB = re.compile(r"hf://datasets/([^/]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.+))?")
_OWNER_NAME = re.compile(r"[A-Za-z0-9][\w-]*/[\w.-]+")


def read(
    source: Any,
    languages: Sequence[str] | None = None,
    *,
    header: int | None = 0,
    quoting: files.Quoting | None = None,
) -> tuple[str, "pd.DataFrame"]:
    """The name of a source and its table, with a column for each language and, where there is one, split.

    Args:
        source: see `load_corpus`.
        languages: those that are asked for; names of the columns where the source has none.
        header: None for tables whose first line is a row.
        quoting: of tables between tabs, "csv" or "none"; found out otherwise.

    Raises:
        TnkitError: for what cannot be read.

    >>> read({"en": ["Hi!"], "it": ["Ciao!"]})[1].to_dict("list")
    {'en': ['Hi!'], 'it': ['Ciao!']}
    """
    how = {"header": header, "quoting": quoting}
    if isinstance(source, str) and not source.strip():
        raise TnkitError("the name of the corpus is empty; give a file, a folder or the name of a data set")
    if isinstance(source, str | Path):
        name = Path(source).name if Path(source).suffix else str(source)
        return name, _of_path(name, source, languages, how)
    if isinstance(source, Mapping) and source and all(isinstance(one, str | Path) for one in source.values()):
        return " + ".join(Path(one).name for one in source.values()), _parallel(source, how)
    if isinstance(source, list | tuple) and source and all(map(_is_file, source)):
        return " + ".join(Path(one).name for one in source[:4]), _of_files(source, languages, how)
    name = "frame" if hasattr(source, "columns") else f"the {type(source).__name__}"
    if header is None:
        raise TnkitError(f"header=None is for files of text between tabs or commas, and {name} is in memory; leave it")
    return name, layouts.wide(name, source, languages)


def _of_path(name: str, source: str | Path, languages: Sequence[str] | None, how: dict[str, Any]) -> "pd.DataFrame":
    text = str(source)
    if text == "everyday":
        return readers.read_table(Path(__file__).parent / "data" / "everyday.tsv", languages)
    if text in hub.RECIPES:
        recipe = hub.RECIPES[text]
        return layouts.wide(name, recipe.read(recipe, languages), languages)
    if text.startswith("hf://"):
        return _of_hub(name, text, languages, how)
    path = _expanded(source)
    if _is_folder(path) or (files.is_archive(path) and path.exists() and len(files.listing(path)) > 1):
        return layouts.wide(name, folders.read(path, languages), languages)
    if not _is_file(path):
        ends = _with_languages(path)
        if len(ends) > 1:
            wanted = {language: _end_of(language, ends) for language in languages or _codes(ends)}
            return _parallel({language: ends[end] for language, end in wanted.items()}, how)
        if _OWNER_NAME.fullmatch(text) and path.suffix.lower() not in readers.READERS and not _is_folder(path.parent):
            return layouts.wide(name, hub.dataset(text, languages), languages)
        if not path.suffix and "/" not in text:
            known = ", ".join(["everyday", *hub.RECIPES])
            raise TnkitError(f"there is no file {path}; check its name and folder (data sets by name: {known})")
    return _table(name, path, languages, how)


def _table(name: str, path: str | Path, languages: Sequence[str] | None, how: dict[str, Any]) -> "pd.DataFrame":
    return layouts.wide(name, readers.read_table(path, languages, **how), languages)


def _of_hub(name: str, source: str, languages: Sequence[str] | None, how: dict[str, Any]) -> "pd.DataFrame":
    match = _HUB.fullmatch(source)
    if not match or (match[3] is None and match[2] is None and source.count("/") < 4):
        raise TnkitError(f"{source} is not of the form hf://datasets/OWNER/NAME/FILE or …/NAME@REVISION/FILE")
    repository, revision, file = match.groups()
    if file is None:
        return layouts.wide(name, hub.dataset(repository, languages, revision), languages)
    return _table(name, hub.download(repository, file, revision), languages, how)


def _parallel(paths: Mapping[str, str | Path], how: dict[str, Any]) -> "pd.DataFrame":
    """A table of one file for each language, whose lines or rows are translations of each other."""
    import pandas as pd

    parts = {}
    for language, path in paths.items():
        file = files.opened(_expanded(path))
        if file.ending in readers.READERS:
            frame = layouts.wide(file.path, readers.read_table(file, [language], **how), [language])
            texts = frame[layouts.only(file.path, language, list(frame.columns))].to_list()
            split = {"split": frame["split"].to_list()} if "split" in frame else {}
        else:
            texts, split = file.lines(), {}
        parts[language] = pd.DataFrame({"text": texts, **split}, dtype=object)
    frame = layouts.joined(" + ".join(Path(path).name for path in paths.values()), parts, ())
    if len({_without_language(path) for path in paths.values()}) == 1:  # a pair by its name: x.en and x.ja
        frame.attrs["matched"] = ""
    return frame


def _of_files(paths: Sequence[str | Path], languages: Sequence[str] | None, how: dict[str, Any]) -> "pd.DataFrame":
    """A table of a file for each language, by the ends of their names, or of files with the same columns."""
    import pandas as pd

    ends = {_language_of(path): path for path in paths}
    if len(ends) == len(paths) and "" not in ends:
        wanted = {language: _end_of(language, ends) for language in languages or _codes(ends)}
        return _parallel({language: ends[end] for language, end in wanted.items()}, how)
    frames = [_table(Path(path).name, _expanded(path), languages, how) for path in paths]
    if any(set(frame) != set(frames[0]) for frame in frames):
        raise TnkitError(
            f"{paths[0]} and the other files have other columns; give files of the same, or one for each language"
        )
    splits = [folders.SPLIT.search(str(path)) for path in paths]
    if all(splits) and "split" not in frames[0]:
        frames = [frame.assign(split=match[1]) for frame, match in zip(frames, splits, strict=True) if match]
    return pd.concat(frames, ignore_index=True)


def _end_of(language: str, ends: Mapping[str, Any]) -> str:
    return layouts.only("the list of files", language, list(ends))


def _codes(ends: Iterable[str]) -> list[str]:
    """The languages that ends of names say, with one for Indonesian that is no column of identifiers."""
    return ["ind" if end == "id" else end for end in ends]


def _language_of(path: str | Path) -> str:
    """The language that the end of a file's name says: en of x.en, x.en.gz and x.en.txt; id of x.id is Indonesian."""
    pieces = Path(files.unpacked_name(str(path))).name.removesuffix(".txt").split(".")
    return pieces[-1] if code_of(pieces[-1]) or pieces[-1] == "id" else ""


def _without_language(path: str | Path) -> str:
    return files.unpacked_name(str(path)).removesuffix(".txt").removesuffix("." + _language_of(path))


def _with_languages(path: Path) -> dict[str, Path]:
    """The files whose names are the path's, and a language."""
    try:
        siblings = sorted(path.parent.iterdir())
    except (OSError, ValueError):
        return {}
    named = [one for one in siblings if one.name.startswith(path.name + ".")]
    return {
        language: one
        for one in named
        if (language := _language_of(one)) and files.unpacked_name(one.name) == f"{path.name}.{language}"
    }


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise TnkitError(f"there is no file {path}; check the user's name after ~") from error


def _is_file(path: Any) -> bool:
    try:
        return isinstance(path, str | Path) and Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
