"""Where sentences come from: a name, a path, a folder, a data set on the Hugging Face Hub, or an object in memory."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tnkit.errors import TnkitError, first_line
from tnkit.text import files, folders, layouts, readers
from tnkit.text.languages import code_of, matching

_HUB = re.compile(r"hf://datasets/([^/]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.+))?")
_OWNER_NAME = re.compile(r"[A-Za-z0-9][\w-]*/[\w.-]+")
_PACKAGED = ("everyday", "openings", "tatoeba")
_CONVERTED = "refs/convert/parquet"  # the Hub's own copies


def read(
    source: Any, languages: Sequence[str] | None = None, *, header: int | None = 0, quoting: files.Quoting | None = None
) -> tuple[str, pd.DataFrame]:
    """The name of a source, and its table with a column for each language and, if there is one, split.

    Args:
        source, languages, header, quoting: as in `load_corpus`.

    >>> read({"en": ["Hi!"], "it": ["Ciao!"]})[1].to_dict("list")
    {'en': ['Hi!'], 'it': ['Ciao!']}
    """
    options = {"header": header, "quoting": quoting}
    if isinstance(source, str) and not source.strip():
        raise TnkitError("the name of the corpus is empty; give a file, a folder or the name of a data set")
    if isinstance(source, str | Path):
        name = Path(source).name if Path(source).suffix else str(source)
        return name, layouts.wide(name, _of_path(source, languages, options), languages)
    if isinstance(source, Mapping) and source and all(isinstance(path, str | Path) for path in source.values()):
        columns = {language: language for language in source}
        return " + ".join(Path(path).name for path in source.values()), _parallel(source, columns, [*source], options)
    if isinstance(source, list | tuple) and source and all(map(_is_file, source)):
        return " + ".join(Path(path).name for path in source[:4]), _of_files(source, languages, options)
    name = "frame" if hasattr(source, "columns") else f"the {type(source).__name__}"
    if header is None:
        raise TnkitError(f"header=None is for files of text between tabs or commas, and {name} is in memory; leave it")
    return name, layouts.wide(name, source, languages)


def _of_path(source: str | Path, languages: Sequence[str] | None, options: dict[str, Any]) -> pd.DataFrame:
    text, path = str(source), _expanded(source)
    if text in _PACKAGED:
        return _packaged(text, languages)
    if text in RECIPES:
        return RECIPES[text].read(RECIPES[text].repository, languages)
    if text.startswith("hf://"):
        return _of_hub(text, languages, options)
    if _is_folder(path) or (files.is_archive(path) and _is_file(path) and len(files.listing(path)) > 1):
        return folders.read(str(path), files.listing(path), languages, **options)
    if not _is_file(path):
        paths = _with_languages(path)
        if len(paths) > 1:
            return _of_ends(paths, languages, options)
        if _OWNER_NAME.fullmatch(text) and path.suffix.lower() not in readers.READERS and not _is_folder(path.parent):
            return _dataset(text, languages)
        if not path.suffix and "/" not in text:
            known = ", ".join([*_PACKAGED, *RECIPES])
            raise TnkitError(f"there is no file {path}; check its name and folder (data sets by name: {known})")
    return readers.read_table(path, languages, **options)


def _packaged(name: str, languages: Sequence[str] | None) -> pd.DataFrame:
    """A table of the package; in tatoeba, a sentence without a translation has an empty cell."""
    frame = readers.read_table(Path(__file__).parent / "data" / f"{name}.tsv", languages)
    if name != "tatoeba":
        return frame
    held = [column for column in frame.columns if column != "split"]
    if absent := [language for language in languages or () if not matching(language, held)]:
        raise TnkitError(
            f"the packaged tatoeba has no sentences in {', '.join(absent)}; it has {', '.join(held)}: load other "
            'languages from the Hugging Face Hub with load_corpus("tatoeba-hub", ["en", …])'
        )
    frame = frame.replace("", None)
    frame.attrs["key"] = "English sentence"
    return frame


def _of_files(paths: Sequence[str | Path], languages: Sequence[str] | None, options: dict[str, Any]) -> pd.DataFrame:
    """A table of a file for each language, by the ends of their names, or of files with the same columns."""
    ends = {_language_of(path): path for path in paths}
    if len(ends) == len(paths) and "" not in ends:
        return _of_ends(ends, languages, options)
    tables = [readers.read_table(_expanded(path), languages, **options) for path in paths]
    frames = [layouts.wide(Path(path).name, table, languages) for path, table in zip(paths, tables, strict=True)]
    if any(set(frame) != set(frames[0]) for frame in frames):
        raise TnkitError(f"{paths[0]} and the other files differ in their columns; give files with the same columns")
    splits = [folders.SPLIT.search(str(path)) for path in paths]
    if all(splits) and "split" not in frames[0]:
        frames = [frame.assign(split=match[1]) for frame, match in zip(frames, splits, strict=True) if match]
    return pd.concat(frames, ignore_index=True)


def _of_ends(paths: Mapping[str, str | Path], languages: Sequence[str] | None, options: dict[str, Any]) -> pd.DataFrame:
    """A table of files by the language at the end of their names."""
    columns = layouts.columns_of("the list of files", [*paths], languages)
    return _parallel(paths, columns, languages or [*columns.values()], options)


def _parallel(
    paths: Mapping[str, str | Path], columns: Mapping[str, str], wanted: Sequence[str], options: dict[str, Any]
) -> pd.DataFrame:
    """A table of one file for each language, whose lines or rows are translations of each other."""
    sentences = {}
    for tag, language in columns.items():
        with layouts.tolerant(language, wanted):
            file = files.opened(_expanded(paths[tag]))
            if file.ending in readers.READERS:
                frame = layouts.wide(file.path, readers.read_table(file, [language], **options), [language])
                frame = frame.rename(columns={layouts.only(file.path, language, list(frame.columns)): "text"})
                sentences[language] = frame[["text", *(["split"] if "split" in frame else [])]]
            else:
                sentences[language] = pd.DataFrame({"text": file.lines()}, dtype=object)
    used = [paths[tag] for tag, language in columns.items() if language in wanted]
    frame = layouts.joined(" + ".join(Path(path).name for path in used), sentences, (), wanted)
    names = {path: files.unpacked_name(str(path)).removesuffix(".txt") for path in used}
    if len({name.removesuffix(f".{_language_of(path)}") for path, name in names.items()}) == 1:  # x.en and x.ja
        frame.attrs["matched"] = ""
    return frame


def _language_of(path: str | Path) -> str:
    """The language at the end of a file's name: en of x.en, x.en.gz and x.en.txt; id of x.id is Indonesian."""
    end = Path(files.unpacked_name(str(path))).name.removesuffix(".txt").split(".")[-1]
    return end if code_of(end) or end == "id" else ""


def _with_languages(path: Path) -> dict[str, Path]:
    """The files whose names are the path's and a language."""
    try:
        siblings = sorted(path.parent.iterdir())
    except (OSError, ValueError):
        return {}
    return {
        language: file
        for file in siblings
        if (language := _language_of(file)) and files.unpacked_name(file.name) == f"{path.name}.{language}"
    }


def _expanded(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 - leaves ~ of an unknown user as it is


def _is_file(path: Any) -> bool:
    return isinstance(path, str | Path) and os.path.isfile(_expanded(path))  # noqa: PTH113 - never raises


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - never raises


# The Hugging Face Hub


def _of_hub(source: str, languages: Sequence[str] | None, options: dict[str, Any]) -> pd.DataFrame:
    match = _HUB.fullmatch(source)
    if not match or (match[3] is None and match[2] is None and source.count("/") < 4):
        raise TnkitError(f"{source} is not of the form hf://datasets/OWNER/NAME/FILE or …/NAME@REVISION/FILE")
    repository, revision, file = match.groups()
    if file is None:
        return _dataset(repository, languages, revision)
    return readers.read_table(_download(repository, file, revision), languages, **options)


def _download(repository: str, file: str, revision: str | None = None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except Exception as error:
        raise _unreachable(f"{file} of the data set {repository}", error) from error


def _unreachable(name: str, error: Exception) -> TnkitError:
    return TnkitError(
        f"{name} could not be downloaded from the Hugging Face Hub ({first_line(error)}); check its name, your "
        "network, and whether you must log in and accept its terms"
    )


def _listing(repository: str, revision: str | None) -> list[str]:
    """The files of a data set on the Hub; without a connection, those that were downloaded before."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return sorted(list_repo_files(repository, repo_type="dataset", revision=revision))
    except Exception as error:
        try:
            folder = snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
        except Exception:
            raise _unreachable(f"the data set {repository}", error) from error
        return sorted(os.path.relpath(file, folder) for file in Path(folder).rglob("*") if file.is_file())


def _dataset(repository: str, languages: Sequence[str] | None, revision: str | None = None) -> pd.DataFrame:
    """The table of a data set on the Hub; only the files that it needs are downloaded."""
    names = _listing(repository, revision)
    if revision is None and not any(map(folders.is_table, names)):  # a data set of pictures, or made by a script
        names, revision = _listing(repository, _CONVERTED), _CONVERTED
    members = {name: partial(_member, repository, name, revision) for name in names}
    return folders.read(repository, members, languages, others=False)


def _member(repository: str, name: str, revision: str | None) -> files.File:
    return replace(files.opened(_download(repository, name, revision)), path=f"{repository}/{name}")


@dataclass(frozen=True)
class Recipe:
    """A data set by name.

    Attributes:
        repository: on the Hugging Face Hub.
        read: the table of a repository, with a column for each requested language.
        licence: of its sentences.
        citation: whom to cite.
        size: of the download, approximately.

    >>> RECIPES["flores+"].licence
    'CC BY-SA 4.0'
    """

    repository: str
    read: "Callable[[str, Sequence[str] | None], pd.DataFrame]"
    licence: str
    citation: str
    size: str


def _in_files(repository: str, languages: Sequence[str] | None) -> pd.DataFrame:
    """A data set in a known layout, with a file for each language or pair."""
    if not languages:
        raise TnkitError(f'name the languages to read of {repository}, such as ["en", "ja"]')
    return _dataset(repository, languages)


def _converted(file: str, repository: str, languages: Sequence[str] | None) -> pd.DataFrame:
    return readers.read_table(_download(repository, file, _CONVERTED), languages)


def _tatoeba(repository: str, languages: Sequence[str] | None) -> pd.DataFrame:
    """English sentences and their first translation into each language."""
    wanted = [language for language in languages or () if not matching("en", [language])]
    if not wanted:
        raise TnkitError('name the languages: load_corpus("tatoeba-hub", ["en", "ja"])')
    merged: pd.DataFrame | None = None
    for language in wanted:
        code = (code_of(language) or language).partition("-")[0]
        pairs = _converted(f"en-{code}/train/0000.parquet", repository, None)[["english", "non_english"]]
        pairs = pairs.set_axis(["en", language], axis=1).drop_duplicates("en")
        merged = pairs if merged is None else merged.merge(pairs, on="en")
    assert merged is not None
    return merged


# fmt: off
RECIPES: Mapping[str, Recipe] = {
    "tatoeba-hub": Recipe("sentence-transformers/parallel-sentences-tatoeba", _tatoeba, "CC BY 2.0 FR",
                          "Tatoeba (tatoeba.org)", "up to 20 MB a language"),
    "mkqa": Recipe("apple/mkqa", partial(_converted, "mkqa/train/0000.parquet"), "CC BY-SA 3.0",
                   "Longpre, Lu & Daiber (2021), MKQA", "15 MB"),
    "flores+": Recipe("openlanguagedata/flores_plus", _in_files, "CC BY-SA 4.0",
                      "NLLB Team (2024), Scaling neural machine translation to 200 languages", "0.5 MB a language"),
    "ntrex-128": Recipe("mteb/NTREX", partial(_converted, "default/test/0000.parquet"), "CC BY-SA 4.0",
                        "Federmann, Kocmi & Xin (2022), NTREX-128", "30 MB"),
    "belebele": Recipe("facebook/belebele", _in_files, "CC BY-SA 4.0",
                       "Bandarkar et al. (2024), The Belebele benchmark", "1 MB a language"),
    "opus-100": Recipe("Helsinki-NLP/opus-100", _in_files, "that of each of its sources at OPUS",
                       "Zhang et al. (2020), Improving massively multilingual neural machine translation",
                       "up to 200 MB a pair"),
}
# fmt: on
