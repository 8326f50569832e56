"""Folders and archives of a data set, recognised by the names of their files: a layout is one entry of `FOLDERS`.

read("flores200", files.listing(path), ["en", "ja"])      # dev/eng_Latn.dev, dev/jpn_Jpan.dev, …
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError
from tnkit.text import files, layouts, readers, records
from tnkit.text.files import Members
from tnkit.text.languages import matching

if TYPE_CHECKING:
    import pandas as pd

_CODE = r"(?P<language>[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*)"
_TAG = r"(?P<language>[a-z]{3}_[A-Z][a-z]{3})"  # jpn_Jpan
_PACKED = r"(?:\.gz|\.bz2|\.xz)?"


@dataclass(frozen=True)
class Folder:
    """A data set with a file for each language.

    Attributes:
        name: of the data set.
        pattern: of a file's path from the folder, with the groups language and, where there is one, split.
        text: the column of sentences; "" for a sentence a line.
        keys: the columns that tell which rows are translations of each other; rows are matched in order without them.
        options: how its tables are read.
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

_ABOUT = re.compile(
    r"(?i)(^|/)_?(readme|license|licence|about|languages|labels|document_ids)[^/]*$|\.(ids|scores|xml)$"
)
SPLIT = re.compile(r"(?i)(?:^|[/._-])(train|validation|valid|val|dev|devtest|test)(?![a-z])(?:[^/]*|/[^/]+)$")
_SENTENCES = re.compile(r"(?:^|/)(?:[a-z]{3}_)?sentences(?:_detailed)?\.(?:csv|tsv)" + _PACKED + "$")
_LINKS = re.compile(r"(?:^|/)(?:[a-z]{3}-[a-z]{3}_)?links\.(?:csv|tsv)" + _PACKED + "$")


def read(
    path: str, members: Members, languages: Sequence[str] | None, *, others: bool = True, **how: Any
) -> "pd.DataFrame":
    """The table of a folder or archive, with a column for each language and, where there is one, split.

    Args:
        path: of the folder, for errors.
        members: how to read each file, by its path within the folder.
        languages: those that are asked for.
        others: whether the files of other languages, which decide the split of a row, are read too.
        **how: header and quoting of tables, as in `readers.read_table`; a layout with tables has its own.

    Raises:
        TnkitError: for a folder in no layout that is known, and for what a layout's own reader refuses.
    """
    members = _of_pair(members, languages)
    if "dataset_dict.json" in members or "state.json" in members:
        _check_names_columns(path, "a data set that was saved", how)
        return _saved(path, members)
    if any(_SENTENCES.search(name) for name in members) and any(_LINKS.search(name) for name in members):
        return _tatoeba(path, members, languages)
    for layout in FOLDERS:
        chosen = _chosen(layout, members, languages)
        if chosen:
            if layout.text:
                _check_names_columns(path, layout.name, how)
            wanted = [*(languages or chosen)]
            chosen = chosen if others else {language: chosen[language] for language in wanted}
            return _by_language(path, layout, chosen, members, wanted)
    tables = {name: SPLIT.search(name) for name in members if is_table(name)}
    if len(tables) == 1:
        return _table(path, next(iter(tables)), members, languages, how)
    if any(tables.values()):
        frames = []
        for name, match in tables.items():
            if match:
                frame = _table(path, name, members, languages, how)
                frames.append(frame if "split" in frame else frame.assign(split=match[1]))
        return _stacked(frames)
    known = ", ".join(dict.fromkeys(layout.name for layout in FOLDERS))
    raise TnkitError(
        f"{path} is a folder in no layout that tnkit knows for {records.listed(languages)} ({known}, Tatoeba, "
        "datasets); name one file in it"
    )


def _check_names_columns(path: str, name: str, how: Mapping[str, Any]) -> None:
    if how.get("header", 0) is None:
        raise TnkitError(f"{path} holds {name}, whose columns have names; leave header=None out")


def is_table(name: str) -> bool:
    """Whether a file's name says that it is a table of sentences, and not a description of the data set.

    >>> is_table("data/train.parquet"), is_table("README.txt")
    (True, False)
    """
    return files.ending_of(name) in readers.READERS and not _ABOUT.search(name)


def _of_pair(members: Members, languages: Sequence[str] | None) -> Members:
    """The members in a folder or file of the pair that is asked for (en-ja), in data sets with one for each pair."""
    if languages is None or len(languages) != 2:
        return members

    def fits(piece: str) -> bool:
        source, dash, target = piece.partition(".")[0].partition("-")
        ends = [matching(language, [source, target]) for language in languages]
        return bool(dash) and all(ends) and ends[0] != ends[1]

    return {name: read for name, read in members.items() if any(map(fits, name.split("/")))} or members


def _chosen(layout: Folder, members: Members, languages: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """The file of each split of each language, or nothing where the layout lacks a language."""
    pattern = re.compile(rf"(?:.*/)?{layout.pattern}{_PACKED}")
    matches = {name: match for name in members if (match := pattern.fullmatch(name))}
    tags = list(dict.fromkeys(match["language"] for match in matches.values()))
    if not all(matching(language, tags) for language in languages or ()):
        return {}
    columns = layouts.columns_of(layout.name, tags, languages)
    chosen: dict[str, dict[str, str]] = {}
    for name, match in matches.items():
        language, split = columns.get(match["language"], ""), match.groupdict().get("split") or ""
        known = chosen.setdefault(language, {}).setdefault(split, name)
        if known != name and language in (languages or columns.values()):
            raise TnkitError(f"{name} and {known} are both in {language}; name one folder of them")
    return {language: chosen[language] for language in columns.values()}


def _by_language(
    path: str, layout: Folder, chosen: Mapping[str, Mapping[str, str]], members: Members, wanted: Sequence[str]
) -> "pd.DataFrame":
    common = [split for split in chosen[wanted[0]] if all(split in chosen[language] for language in wanted)]
    if not common:
        listed = "; ".join(f"{language}: {', '.join(chosen[language])}" for language in wanted)
        raise TnkitError(f"{path}: no part is there in every language; it has {listed:.200}")
    roles = {split: match[1] for split in common if (match := SPLIT.search(split))}
    named = len(roles) == len(common)
    if len(common) > 1 and not named:
        raise TnkitError(f"{path} holds several corpora ({', '.join(common):.200}); name the files of one of them")
    frames = []
    for split in common:
        sentences = {}
        for language, names in chosen.items():
            with suppress(*(() if language in wanted else (TnkitError, KeyError))):
                sentences[language] = _sentences(path, layout, names[split], language, members)
        frame = layouts.joined(f"{path} ({split})" if split else path, sentences, layout.keys, wanted)
        frames.append(frame.assign(split=roles[split]) if named else frame)
    stacked = _stacked(frames)
    if layout.name != "a file a language":
        stacked.attrs["matched"] = ""
    return stacked


def _sentences(path: str, layout: Folder, name: str, language: str, members: Members) -> "pd.DataFrame":
    import pandas as pd

    file = files.File(f"{path}/{name}", members[name]())
    if not layout.text:
        return pd.DataFrame({"text": file.lines()}, dtype=object)
    frame = readers.read_table(file, [language], **layout.options)
    lacking = [column for column in (layout.text, *layout.keys) if column not in frame]
    if lacking:
        raise TnkitError(
            f"{file.path} has no column {lacking[0]}, which {layout.name} has; it has {', '.join(map(str, frame))}"
        )
    frame = frame.rename(columns={layout.text: "text", "partition": "split"})  # the latter in MASSIVE
    return frame[["text", *layout.keys, *(["split"] if "split" in frame else [])]]


def _table(
    path: str, name: str, members: Members, languages: Sequence[str] | None, how: Mapping[str, Any]
) -> "pd.DataFrame":
    file = files.File(f"{path}/{name}", members[name]())
    return layouts.wide(file.path, readers.read_table(file, languages, **how), languages)


def _stacked(frames: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    import pandas as pd

    stacked = pd.concat(frames, ignore_index=True)
    stacked.attrs = dict(frames[0].attrs)
    return stacked


def _saved(path: str, members: Members) -> "pd.DataFrame":
    """A data set written by `save_to_disk` of the library datasets."""
    frames = []
    for name in (name for name in members if Path(name).name == "state.json"):
        folder = name.removesuffix("state.json")
        try:
            paths = [folder + str(file["filename"]) for file in json.loads(members[name]())["_data_files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TnkitError(f"{path}/{name} does not name the files of a data set; save it again") from error
        for file in paths:
            if file not in members:
                raise TnkitError(f"{path} has no file {file}, which its state.json names; save it again")
            frame = readers.READERS[".arrow"](files.File(f"{path}/{file}", members[file]()))
            frames.append(frame.assign(split=folder.strip("/")) if folder and "split" not in frame else frame)
    if not frames:
        raise TnkitError(f"{path} holds no data of the library datasets; save it again")
    return _stacked(frames)


def _tatoeba(path: str, members: Members, languages: Sequence[str] | None) -> "pd.DataFrame":
    """Tatoeba's exports of sentences and links; each sentence of the first language with its first translations."""
    if not languages:
        raise TnkitError(f"{path} holds Tatoeba's exports; name the languages to read")
    texts: dict[str, dict[str, str]] = {language: {} for language in languages}
    for name in filter(_SENTENCES.search, members):
        cells = [line.split("\t") for line in files.File(f"{path}/{name}", members[name]()).lines()]
        tags = list(dict.fromkeys(row[1] for row in cells if len(row) > 2))
        for language in languages:
            matches = matching(language, tags)
            texts[language] |= {row[0]: row[2] for row in cells if len(row) > 2 and row[1] in matches}
    empty = [language for language in languages if not texts[language]]
    if empty:
        raise TnkitError(
            f"{path}: Tatoeba's sentences there are not in {', '.join(empty)}; download those of each language"
        )
    first, *others = languages
    translations: dict[str, dict[str, str]] = {language: {} for language in others}
    for name in filter(_LINKS.search, members):
        for line in files.File(f"{path}/{name}", members[name]()).lines():
            left, _, right = line.partition("\t")
            for source, target in ((left, right), (right, left)):
                for language in others if source in texts[first] else ():
                    if target in texts[language]:
                        translations[language].setdefault(source, texts[language][target])
    return _linked(path, texts[first], first, translations)


def _linked(
    path: str, texts: Mapping[str, str], first: str, translations: Mapping[str, Mapping[str, str]]
) -> "pd.DataFrame":
    import pandas as pd

    kept = [number for number in texts if all(number in translated for translated in translations.values())]
    if not kept:
        raise TnkitError(
            f"{path}: no link joins {first} to {', '.join(translations)}; download the links of these languages"
        )
    columns = {first: texts, **translations}
    frame = pd.DataFrame({language: [of[number] for number in kept] for language, of in columns.items()}, dtype=object)
    frame.attrs["dropped"] = {"without a translation": len(texts) - len(kept)}
    return frame
