"""Data sets on the Hugging Face Hub, and recipes for some, by name, with licence, size and citation."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tnkit.errors import TnkitError, first_line
from tnkit.text import files, folders, layouts, readers
from tnkit.text.languages import code_of, matching

if TYPE_CHECKING:
    import pandas as pd

_CONVERTED = "refs/convert/parquet"  # the Hub's own copies


@dataclass(frozen=True)
class Recipe:
    """A data set by name.

    Attributes:
        repository: on the Hugging Face Hub.
        read: its table, with a column for each of the languages asked for.
        licence: of its sentences.
        citation: whom to cite.
        size: what is downloaded, about.

    >>> RECIPES["flores+"].licence
    'CC BY-SA 4.0'
    """

    repository: str
    read: "Callable[[Recipe, Sequence[str] | None], pd.DataFrame]"
    licence: str
    citation: str
    size: str


def download(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of a data set on the Hugging Face Hub, downloaded once.

    Raises:
        TnkitError: where it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except Exception as error:
        raise TnkitError(
            f"{file} of the data set {repository} could not be downloaded from the Hugging Face Hub "
            f"({first_line(error)}); check its name, your network, and whether you must log in and accept its terms"
        ) from error


def listing(repository: str, revision: str | None = None) -> list[str]:
    """The files of a data set on the Hugging Face Hub; without a connection, those that were downloaded.

    Raises:
        TnkitError: where neither is known.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return sorted(list_repo_files(repository, repo_type="dataset", revision=revision))
    except Exception as error:
        try:
            folder = snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
        except Exception:
            raise TnkitError(
                f"the data set {repository} could not be downloaded from the Hugging Face Hub ({first_line(error)}); "
                "check its name, your network, and whether you must log in and accept its terms"
            ) from error
        return sorted(
            Path(place, name).relative_to(folder).as_posix() for place, _, names in os.walk(folder) for name in names
        )


def dataset(repository: str, languages: Sequence[str] | None, revision: str | None = None) -> "pd.DataFrame":
    """The table of a data set on the Hugging Face Hub, of which the files that are needed are downloaded.

    Raises:
        TnkitError: where it cannot be downloaded, or is in no layout that is known.
    """
    names = listing(repository, revision)
    if revision is None and not any(map(folders.is_table, names)):  # a data set of pictures, or made by a script
        names, revision = listing(repository, _CONVERTED), _CONVERTED
    members = {name: _reading(repository, name, revision) for name in names}
    return folders.of_members(repository, members, languages)


def _reading(repository: str, name: str, revision: str | None) -> Callable[[], bytes]:
    return lambda: files.opened(download(repository, name, revision)).data


def _whole(recipe: Recipe, languages: Sequence[str] | None) -> "pd.DataFrame":
    """A data set whose files are in a known layout, a file for each language or pair."""
    if not languages:
        raise TnkitError(f'name the languages to read of {recipe.repository}, such as ["en", "ja"]')
    return dataset(recipe.repository, languages)


def _tatoeba(recipe: Recipe, languages: Sequence[str] | None) -> "pd.DataFrame":
    """English sentences and their first translation into each language."""
    wanted = [language for language in languages or () if not matching("en", [language])]
    if not wanted:
        raise TnkitError('name the languages: load_corpus("tatoeba", ["en", "ja"])')
    frames = []
    for language in wanted:
        code = (code_of(language) or language).partition("-")[0]
        file = download(recipe.repository, f"en-{code}/train/0000.parquet", _CONVERTED)
        pairs = readers.read_table(file)[["english", "non_english"]]
        frames.append(pairs.set_axis(["en", language], axis=1).drop_duplicates("en"))
    merged = frames[0]
    for frame in frames[1:]:
        merged = merged.merge(frame, on="en")
    return merged


def _mkqa(recipe: Recipe, languages: Sequence[str] | None) -> "pd.DataFrame":
    """MKQA's questions."""
    file = download(recipe.repository, "mkqa/train/0000.parquet", _CONVERTED)
    return layouts.wide("mkqa", readers.read_table(file)[["queries"]], languages)


def _ntrex(recipe: Recipe, languages: Sequence[str] | None) -> "pd.DataFrame":
    """NTREX-128, one column for each language."""
    return readers.read_table(download(recipe.repository, "default/test/0000.parquet", _CONVERTED), languages)


RECIPES: Mapping[str, Recipe] = {
    "tatoeba": Recipe(
        "sentence-transformers/parallel-sentences-tatoeba",
        _tatoeba,
        "CC BY 2.0 FR",
        "Tatoeba (tatoeba.org)",
        "up to 20 MB a language",
    ),
    "mkqa": Recipe("apple/mkqa", _mkqa, "CC BY-SA 3.0", "Longpre, Lu & Daiber (2021), MKQA", "15 MB"),
    "flores+": Recipe(
        "openlanguagedata/flores_plus",
        _whole,
        "CC BY-SA 4.0",
        "NLLB Team (2024), Scaling neural machine translation to 200 languages",
        "0.5 MB a language",
    ),
    "ntrex-128": Recipe(
        "mteb/NTREX",
        _ntrex,
        "CC BY-SA 4.0",
        "Federmann, Kocmi & Xin (2022), NTREX-128",
        "30 MB",
    ),
    "belebele": Recipe(
        "facebook/belebele",
        _whole,
        "CC BY-SA 4.0",
        "Bandarkar et al. (2024), The Belebele benchmark",
        "1 MB a language",
    ),
    "opus-100": Recipe(
        "Helsinki-NLP/opus-100",
        _whole,
        "that of each of its sources at OPUS",
        "Zhang et al. (2020), Improving massively multilingual neural machine translation",
        "up to 200 MB a pair",
    ),
}
