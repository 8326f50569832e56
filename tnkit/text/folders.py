"""Folders and archives of a data set, recognised by the names of their files: a layout is one entry of `FOLDERS`.

read("flores200", files.listing(path), ["en", "ja"])      # dev/eng_Latn.dev, dev/jpn_Jpan.dev, …
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tnkit.errors import TnkitError
from tnkit.text import files, layouts, readers, records
from tnkit.text.files import Members
from tnkit.text.languages import matching

_CODE = r"(?P<language>[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*)"
_TAG = r"(?P<language>[a-z]{3}_[A-Z][a-z]{3})"  # jpn_Jpan
_PACKED = r"(?:\.gz|\.bz2|\.xz)?"


@dataclass(frozen=True)
class Folder:
    """A data set with a file for each language.

    Attributes:
        name: of the data set.
        pattern: of a file's path in the folder, with the groups language and, if there is one, split.
        text: the column of sentences; "" for one sentence per line.
        keys: the columns that match translations; without them, rows are matched in order.
        options: for `readers.read_table`.
    """

    name: str
    pattern: str
    text: str = ""
    keys: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


FOLDERS = (
    Folder("FLORES-200", rf"(?P<split>dev|devtest)/{_TAG}\.(?:dev|devtest)"),
    Folder("FLORES-200", rf"(?P<split>dev|devtest)/(?:dev|devtest)\.{_TAG}"),
    Folder("FLORES+", rf"(?P<split>dev|devtest)/{_TAG}\.(?:parquet|jsonl)", "text", ("id",)),
    Folder("NTREX-128", rf"newstest2019-(?:src|ref)\.{_CODE}\.txt"),
    Folder("Belebele", rf"{_TAG}\.jsonl", "flores_passage", ("link", "question_number")),
    Folder("SIB-200", rf"{_TAG}/(?P<split>train|dev|test)\.tsv", "text", ("index_id",), {"quoting": "none"}),
    Folder("MASSIVE", r"(?P<language>[a-z]{2}-[A-Z]{2})\.jsonl", "utt", ("id",)),
    Folder("a file a language", rf"{_CODE}/(?P<split>[^/.]+)\.txt"),
    Folder("a file a language", rf"(?:(?P<split>[^/]+)\.)?{_CODE}\.txt"),
    Folder("OPUS", rf"(?:(?P<split>[^/]+)\.)?{_CODE}"),
)

_DESCRIPTIONS = re.compile(
    r"(?i)(^|/)_?(readme|license|licence|about|languages|labels|document_ids)[^/]*$|\.(ids|scores|xml)$"
)
SPLIT = re.compile(r"(?i)(?:^|[/._-])(train|validation|valid|val|dev|devtest|test)(?![a-z])(?:[^/]*|/[^/]+)$")
_SENTENCES = re.compile(r"(?:^|/)(?:[a-z]{3}_)?sentences(?:_detailed)?\.(?:csv|tsv)" + _PACKED + "$")
_LINKS = re.compile(r"(?:^|/)(?:[a-z]{3}-[a-z]{3}_)?links\.(?:csv|tsv)" + _PACKED + "$")


def read(
    path: str, members: Members, languages: Sequence[str] | None, *, others: bool = True, **options: Any
) -> pd.DataFrame:
    """The table of a folder or archive, with a column for each language and, if there is one, split.

    Args:
        path: of the folder, for errors.
        members: how to read each file, by its path in the folder.
        languages: the requested ones.
        others: also read the files of other languages, which decide the split of a row.
        **options: header and quoting of tables, as in `readers.read_table`; a layout with tables has its own.
    """
    members = _of_pair(members, languages)
    if "dataset_dict.json" in members or "state.json" in members:
        _check_header(path, "a saved data set", options)
        return _saved(path, members)
    if any(map(_SENTENCES.search, members)) and any(map(_LINKS.search, members)):
        return _tatoeba(path, members, languages)
    for layout in FOLDERS:
        files_by_language = _files_of(layout, members, languages)
        if files_by_language:
            if layout.text:
                _check_header(path, layout.name, options)
            wanted = [*(languages or files_by_language)]
            if not others:
                files_by_language = {language: files_by_language[language] for language in wanted}
            return _by_language(path, layout, files_by_language, members, wanted)
    tables = {name: SPLIT.search(name) for name in members if is_table(name)}
    if len(tables) == 1:
        [name] = tables
        return _table(members[name](), languages, options)
    if any(tables.values()):
        frames = []
        for name, match in tables.items():
            if match:
                frame = _table(members[name](), languages, options)
                frames.append(frame if "split" in frame else frame.assign(split=match[1]))
        return _stacked(frames)
    known = ", ".join(dict.fromkeys(layout.name for layout in FOLDERS))
    raise TnkitError(
        f"{path} is a folder in no layout that tnkit knows for {records.listed(languages)} ({known}, Tatoeba, "
        "datasets); name one file in it"
    )


def _check_header(path: str, name: str, options: Mapping[str, Any]) -> None:
    if options.get("header", 0) is None:
        raise TnkitError(f"{path} holds {name}, whose columns have names; leave header=None out")


def is_table(name: str) -> bool:
    """Whether a file's name is that of a table of sentences, and not of a description of the data set.

    >>> is_table("data/train.parquet"), is_table("README.txt")
    (True, False)
    """
    return files.ending_of(name) in readers.READERS and not _DESCRIPTIONS.search(name)


def _of_pair(members: Members, languages: Sequence[str] | None) -> Members:
    """The members in a folder or file of the requested pair (en-ja), in data sets with one for each pair."""
    if languages is None or len(languages) != 2:
        return members

    def fits(step: str) -> bool:
        source, dash, target = step.partition(".")[0].partition("-")
        ends = [matching(language, [source, target]) for language in languages]
        return bool(dash) and all(ends) and ends[0] != ends[1]

    return {name: read for name, read in members.items() if any(map(fits, name.split("/")))} or members


def _files_of(layout: Folder, members: Members, languages: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """Language → split → file; empty if the layout lacks a requested language."""
    pattern = re.compile(rf"(?:.*/)?{layout.pattern}{_PACKED}")
    matches = {name: match for name in members if (match := pattern.fullmatch(name))}
    tags = list(dict.fromkeys(match["language"] for match in matches.values()))
    if not all(matching(language, tags) for language in languages or ()):
        return {}
    columns = layouts.columns_of(layout.name, tags, languages)
    files_by_language: dict[str, dict[str, str]] = {}
    for name, match in matches.items():
        language, split = columns.get(match["language"], ""), match.groupdict().get("split") or ""
        first = files_by_language.setdefault(language, {}).setdefault(split, name)
        if first != name and language in (languages or columns.values()):
            raise TnkitError(f"{name} and {first} are both in {language}; name the folder of one of them")
    return {language: files_by_language[language] for language in columns.values()}


def _by_language(
    path: str,
    layout: Folder,
    files_by_language: Mapping[str, Mapping[str, str]],
    members: Members,
    wanted: Sequence[str],
) -> pd.DataFrame:
    of_wanted = [files_by_language[language] for language in wanted]
    common = [split for split in of_wanted[0] if all(split in names for names in of_wanted)]
    if not common:
        held = "; ".join(f"{language}: {', '.join(files_by_language[language])}" for language in wanted)
        raise TnkitError(f"{path}: the files of its languages differ in name ({held:.200}); name the files to read")
    roles = {split: match[1] for split in common if (match := SPLIT.search(split))}
    named = len(roles) == len(common)
    if len(common) > 1 and not named:
        raise TnkitError(f"{path} holds several corpora ({', '.join(common):.200}); name the files of one of them")
    frames = []
    for split in common:
        sentences = {}
        for language, names in files_by_language.items():
            with layouts.tolerant(language, wanted):
                sentences[language] = _sentences(layout, members[names[split]](), language)
        frame = layouts.joined(f"{path} ({split})" if split else path, sentences, layout.keys, wanted)
        frames.append(frame.assign(split=roles[split]) if named else frame)
    stacked = _stacked(frames)
    if layout.name != "a file a language":
        stacked.attrs["matched"] = ""
    return stacked


def _sentences(layout: Folder, file: files.File, language: str) -> pd.DataFrame:
    if not layout.text:
        return pd.DataFrame({"text": file.lines()}, dtype=object)
    frame = readers.read_table(file, [language], **layout.options)
    if lacking := [column for column in (layout.text, *layout.keys) if column not in frame]:
        held = ", ".join(map(str, frame))
        raise TnkitError(f"{file.path} has no column {lacking[0]}, which {layout.name} has; it has {held}")
    frame = frame.rename(columns={layout.text: "text", "partition": "split"})  # the latter in MASSIVE
    return frame[["text", *layout.keys, *(["split"] if "split" in frame else [])]]


def _table(file: files.File, languages: Sequence[str] | None, options: Mapping[str, Any]) -> pd.DataFrame:
    return layouts.wide(file.path, readers.read_table(file, languages, **options), languages)


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    stacked = pd.concat(frames, ignore_index=True)
    stacked.attrs = dict(frames[0].attrs)
    return stacked


def _saved(path: str, members: Members) -> pd.DataFrame:
    """A data set written by `save_to_disk` of the library datasets."""
    frames = []
    for name in (name for name in members if Path(name).name == "state.json"):
        folder = name.removesuffix("state.json")
        try:
            paths = [folder + str(file["filename"]) for file in json.loads(members[name]().data)["_data_files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TnkitError(f"{path}/{name} does not name the files of a data set; save it again") from error
        for file in paths:
            if file not in members:
                raise TnkitError(f"{path} has no file {file}, which its state.json names; save it again")
            frame = readers.READERS[".arrow"](members[file]())
            frames.append(frame.assign(split=folder.strip("/")) if folder and "split" not in frame else frame)
    if not frames:
        raise TnkitError(f"{path} holds no data of the library datasets; save it again")
    return _stacked(frames)


def _tatoeba(path: str, members: Members, languages: Sequence[str] | None) -> pd.DataFrame:
    """Tatoeba's exports of sentences and links: each sentence of the first language with its first translations."""
    if not languages:
        raise TnkitError(f"{path} holds Tatoeba's exports; name the languages to read")
    texts: dict[str, dict[str, str]] = {language: {} for language in languages}
    for name in filter(_SENTENCES.search, members):
        rows = [line.split("\t") for line in members[name]().lines()]
        rows = [row for row in rows if len(row) > 2]
        tags = list(dict.fromkeys(row[1] for row in rows))
        for language in languages:
            matches = matching(language, tags)
            texts[language] |= {row[0]: row[2] for row in rows if row[1] in matches}
    if empty := [language for language in languages if not texts[language]]:
        raise TnkitError(f"{path} has no Tatoeba sentences in {', '.join(empty)}; download those of each language")
    first, *others = languages
    columns = {first: texts[first], **{language: dict[str, str]() for language in others}}
    for name in filter(_LINKS.search, members):
        for line in members[name]().lines():
            left, _, right = line.partition("\t")
            for source, target in ((left, right), (right, left)):
                for language in others if source in texts[first] else ():
                    if target in texts[language]:
                        columns[language].setdefault(source, texts[language][target])
    translated = [number for number in texts[first] if all(number in column for column in columns.values())]
    if not translated:
        raise TnkitError(f"{path}: no link joins {first} to {', '.join(others)}; download the links of these languages")
    frame = pd.DataFrame(
        {language: [column[number] for number in translated] for language, column in columns.items()}, dtype=object
    )
    frame.attrs["dropped"] = {"without a translation": len(texts[first]) - len(translated)}
    return frame
