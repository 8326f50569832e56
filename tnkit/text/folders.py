"""Folders and archives of a data set, recognised by the names of their files: a layout is one entry of `FOLDERS`.

read(Path("flores200_dataset"), ["en", "ja"])      # dev/eng_Latn.dev, dev/jpn_Jpan.dev, …
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnkit.errors import TnkitError
from tnkit.text import columnar, files, layouts, readers, records
from tnkit.text.languages import code_of, matching

if TYPE_CHECKING:
    import pandas as pd

Members = Mapping[str, Callable[[], bytes]]
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


def read(path: Path, languages: Sequence[str] | None) -> "pd.DataFrame":
    """The table of a folder or archive, with a column for each language and, where there is one, split.

    Raises:
        TnkitError: for a folder in no layout that is known, and for what a layout's own reading refuses.
    """
    return of_members(str(path), files.listing(path), languages)


def of_members(path: str, members: Members, languages: Sequence[str] | None) -> "pd.DataFrame":
    """`read` of files that are listed with how to read each.

    Args:
        path: what errors call the folder.
        members: of each file's path within the folder, how to read it.
        languages: those that are asked for.

    Raises:
        TnkitError: as `read` does.
    """
    members = _of_pair(members, languages)
    if "dataset_dict.json" in members or "state.json" in members:
        return _saved(path, members)
    if any(_SENTENCES.search(name) for name in members) and any(_LINKS.search(name) for name in members):
        return _tatoeba(path, members, languages)
    for layout in FOLDERS:
        chosen = _chosen(layout, members, languages)
        if chosen:
            return _by_language(path, layout, chosen, members)
    readable = [name for name in members if is_table(name)]
    splits = {name: match[1] for name in readable if (match := SPLIT.search(name))}
    if len(readable) == 1:
        return layouts.wide(f"{path}/{readable[0]}", _table(path, readable[0], members, languages), languages)
    if splits:
        return _by_split(path, splits, members, languages)
    known = ", ".join(dict.fromkeys(layout.name for layout in FOLDERS))
    raise TnkitError(
        f"{path} is a folder in no layout that tnkit knows for {records.listed(languages)} ({known}, Tatoeba, "
        "datasets); name one file in it"
    )


def is_table(name: str) -> bool:
    """Whether a file's name says that it is a table of sentences, and not a description of the data set.

    >>> is_table("data/train.parquet"), is_table("README.txt")
    (True, False)
    """
    return Path(files.unpacked_name(name)).suffix.lower() in readers.READERS and not _ABOUT.search(name)


def _of_pair(members: Members, languages: Sequence[str] | None) -> Members:
    """Of a data set with a folder or file for each pair of languages (en-ja), those of the pair that is asked for."""
    if languages is None or len(languages) != 2:
        return members

    def fits(part: str) -> bool:
        one, dash, other = part.partition(".")[0].partition("-")
        ends = [one, other]
        return (
            bool(dash)
            and all(matching(language, ends) for language in languages)
            and (matching(languages[0], ends) != matching(languages[1], ends))
        )

    return {name: read for name, read in members.items() if any(map(fits, name.split("/")))} or members


def _chosen(layout: Folder, members: Members, languages: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """Of each language the file of each split, or nothing where the layout has not all languages."""
    pattern = re.compile(rf"(?:.*/)?{layout.pattern}{_PACKED}")
    matches = {name: match for name in members if (match := pattern.fullmatch(name))}
    tags = list(dict.fromkeys(match["language"] for match in matches.values()))
    if languages:
        if not all(matching(language, tags) for language in languages):
            return {}
        named = {language: layouts.only(layout.name, language, tags) for language in languages}
    else:
        named = {tag: tag for tag in tags if code_of(tag)}
    chosen: dict[str, dict[str, str]] = {}
    for language, tag in named.items():
        for name, match in matches.items():
            if match["language"] == tag:
                split = match.groupdict().get("split") or ""
                if split in chosen.setdefault(language, {}):
                    raise TnkitError(
                        f"{name} and {chosen[language][split]} are both in {language}; name one folder of them"
                    )
                chosen[language][split] = name
    return chosen


def _by_language(
    path: str, layout: Folder, chosen: Mapping[str, Mapping[str, str]], members: Members
) -> "pd.DataFrame":
    import pandas as pd

    common = [split for split in next(iter(chosen.values())) if all(split in ones for ones in chosen.values())]
    if not common:
        raise TnkitError(f"{path}: no part is there in every language; it has {_said(chosen)}")
    roles = {split: match[1] for split in common if (match := SPLIT.search(split))}
    named = len(roles) == len(common)
    if len(common) > 1 and not named:
        raise TnkitError(f"{path} holds several corpora ({', '.join(common):.200}); name the files of one of them")
    frames = []
    for split in common:
        parts = {
            language: _sentences(path, layout, ones[split], language, members) for language, ones in chosen.items()
        }
        frame = layouts.joined(f"{path} ({split})" if split else path, parts, layout.keys)
        frames.append(frame.assign(split=roles[split]) if named else frame)
        frames[-1].attrs = frame.attrs | ({} if layout.name == "a file a language" else {"matched": ""})
    return _stacked(pd.concat(frames, ignore_index=True), frames)


def _sentences(path: str, layout: Folder, name: str, language: str, members: Members) -> "pd.DataFrame":
    import pandas as pd

    file = _file(path, name, members)
    if not layout.text:
        return pd.DataFrame({"text": file.lines()}, dtype=object)
    frame = readers.read_table(file, [language], **layout.options)
    lacking = [column for column in (layout.text, *layout.keys) if column not in frame]
    if lacking:
        raise TnkitError(
            f"{file.path} has no column {lacking[0]}, which {layout.name} has; it has {', '.join(map(str, frame))}"
        )
    if "partition" in frame:  # of MASSIVE
        frame = frame.rename(columns={"partition": "split"})
    kept = [layout.text, *layout.keys, *(["split"] if "split" in frame else [])]
    return frame[kept].rename(columns={layout.text: "text"})


def _file(path: str, name: str, members: Members) -> files.File:
    return files.File(f"{path}/{name}", Path(files.unpacked_name(name)).suffix.lower(), members[name]())


def _table(path: str, name: str, members: Members, languages: Sequence[str] | None) -> "pd.DataFrame":
    return readers.read_table(_file(path, name, members), languages)


def _by_split(
    path: str, splits: Mapping[str, str], members: Members, languages: Sequence[str] | None
) -> "pd.DataFrame":
    import pandas as pd

    frames = []
    for name, split in splits.items():
        frame = layouts.wide(f"{path}/{name}", _table(path, name, members, languages), languages)
        frames.append(frame if "split" in frame else frame.assign(split=split))
    return pd.concat(frames, ignore_index=True)


def _stacked(whole: "pd.DataFrame", frames: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    """The whole, with what its parts dropped."""
    dropped: dict[str, int] = {}
    for frame in frames:
        for reason, count in frame.attrs.get("dropped", {}).items():
            dropped[reason] = dropped.get(reason, 0) + count
    whole.attrs = {"dropped": dropped, "matched": next((frame.attrs.get("matched", "") for frame in frames), "")}
    return whole


def _saved(path: str, members: Members) -> "pd.DataFrame":
    """What `save_to_disk` of the library datasets wrote."""
    import pandas as pd

    frames = []
    for name in (name for name in members if Path(name).name == "state.json"):
        folder = name.removesuffix("state.json")
        try:
            parts = [folder + str(part["filename"]) for part in json.loads(members[name]())["_data_files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TnkitError(f"{path}/{name} does not name the files of a data set; save it again") from error
        for part in parts:
            if part not in members:
                raise TnkitError(f"{path} has no file {part}, which its state.json names; save it again")
            frame = columnar.arrow(_file(path, part, members))
            frames.append(frame.assign(split=folder.strip("/")) if folder and "split" not in frame else frame)
    if not frames:
        raise TnkitError(f"{path} holds no data of the library datasets; save it again")
    return pd.concat(frames, ignore_index=True)


def _tatoeba(path: str, members: Members, languages: Sequence[str] | None) -> "pd.DataFrame":
    """Tatoeba's exports of sentences and links; each sentence of the first language with its first translations."""
    if not languages:
        raise TnkitError(f"{path} holds Tatoeba's exports; name the languages to read")
    texts: dict[str, dict[str, str]] = {language: {} for language in languages}
    for name in filter(_SENTENCES.search, members):
        cells = [line.split("\t") for line in _file(path, name, members).lines()]
        tags = list(dict.fromkeys(row[1] for row in cells if len(row) > 2))
        for language in languages:
            found = matching(language, tags)
            texts[language] |= {row[0]: row[2] for row in cells if len(row) > 2 and row[1] in found}
    empty = [language for language in languages if not texts[language]]
    if empty:
        raise TnkitError(
            f"{path}: Tatoeba's sentences there are not in {', '.join(empty)}; download those of each language"
        )
    first, *others = languages
    translations: dict[str, dict[str, str]] = {language: {} for language in others}
    for name in filter(_LINKS.search, members):
        for line in _file(path, name, members).lines():
            one, _, other = line.partition("\t")
            for source, target in ((one, other), (other, one)):
                if source in texts[first]:
                    for language in others:
                        if target in texts[language]:
                            translations[language].setdefault(source, texts[language][target])
    return _linked(path, texts[first], first, translations)


def _linked(
    path: str, texts: Mapping[str, str], first: str, translations: Mapping[str, Mapping[str, str]]
) -> "pd.DataFrame":
    import pandas as pd

    kept = [number for number in texts if all(number in ones for ones in translations.values())]
    if not kept:
        raise TnkitError(
            f"{path}: no link joins {first} to {', '.join(translations)}; download the links of these languages"
        )
    columns = {first: [texts[number] for number in kept]}
    columns |= {language: [ones[number] for number in kept] for language, ones in translations.items()}
    frame = pd.DataFrame(columns, dtype=object)
    if len(kept) < len(texts):
        frame.attrs["dropped"] = {"without a translation": len(texts) - len(kept)}
    return frame


def _said(chosen: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(f"{language}: {', '.join(ones)}" for language, ones in chosen.items())[:200]
