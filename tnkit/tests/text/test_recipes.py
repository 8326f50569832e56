"""Recipes of data sets by name, on stand-ins that are laid out as the data sets are."""

from pathlib import Path

import pandas as pd
import pytest

import tnkit as tn
from tnkit.tests.text.test_layouts import (
    EN,
    FOLDERS,
    JA,
    LANGUAGES,
    NESTED,
    PAIRS,
    in_bytes,
    json_lines,
    put_at,
    rows_of,
)
from tnkit.text import sources


def stand_ins():
    """The files of each recipe's repository."""
    return {
        "tatoeba-hub": {
            "en-ja/train/0000.parquet": in_bytes(pd.DataFrame({"english": EN, "non_english": JA}).to_parquet),
        },
        "mkqa": {
            "mkqa/train/0000.parquet": in_bytes(
                pd.DataFrame({"queries": [row["translation"] for row in NESTED], "example_id": range(12)}).to_parquet
            )
        },
        "flores+": FOLDERS["FLORES+"] | {"README.md": "x", "devtest/other.txt": "y"},
        "ntrex-128": {
            "default/test/0000.parquet": in_bytes(
                pd.DataFrame({"eng_Latn": EN, "jpn_Jpan": JA, "fra_Latn": "x"}).to_parquet
            )
        },
        "belebele": FOLDERS["Belebele"] | {"README.md": "x", "data/fra_Latn.jsonl": "not JSON"},
        "opus-100": {
            "en-ja/train-00000-of-00001.parquet": in_bytes(pd.DataFrame(NESTED[:8]).to_parquet),
            "en-ja/test-00000-of-00001.parquet": in_bytes(pd.DataFrame(NESTED[8:]).to_parquet),
            "de-en/train-00000-of-00001.parquet": b"not Parquet",
            ".gitattributes": "x",
        },
    }


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A Hub that is a folder, and which of its files were asked for."""
    asked = []

    def download(repository, file, *, repo_type, revision):
        assert repo_type == "dataset" and revision in (None, "refs/convert/parquet")
        asked.append(file)
        return str(tmp_path / repository / file)

    def listed(repository, *, repo_type, revision):
        assert (repo_type, revision) == ("dataset", None)
        root = tmp_path / repository
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", listed)
    return tmp_path, asked


def test_every_recipe_has_a_stand_in():
    assert stand_ins().keys() == sources.RECIPES.keys()


@pytest.mark.parametrize("name", sources.RECIPES)
def test_a_recipe_gives_its_pairs_and_downloads_what_it_needs(stored, name):
    folder, asked = stored
    recipe = sources.RECIPES[name]
    assert recipe.licence and recipe.citation and recipe.size
    for file, data in stand_ins()[name].items():
        put_at(folder / recipe.repository / file, data)
    corpus = tn.load_corpus(name, LANGUAGES)
    assert rows_of(corpus) == sorted(PAIRS) and corpus.name == name
    assert not [file for file in asked if any(other in file for other in ("fra", "de-en", "README"))]
    if name in ("tatoeba-hub", "flores+", "belebele"):
        by_other_names = tn.load_corpus(name, ["eng_Latn", "jpn_Jpan"])
        assert {*by_other_names.frame["jpn_Jpan"]} == {*JA}
    if name == "opus-100":
        assert set(corpus["test"]["en"]) == set(EN[8:])
        by_owner = tn.load_corpus(recipe.repository, LANGUAGES)
        assert rows_of(by_owner) == sorted(PAIRS)


def test_without_a_connection_or_a_name_it_says_so_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for source in "OWNER/NAME", "belebele", "flores+", "opus-100":
        with pytest.raises(
            tn.TnkitError, match=r"could not be downloaded from the Hugging Face Hub \(.+\); check"
        ) as caught:
            tn.load_corpus(source, LANGUAGES)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        tn.TnkitError,
        match=r"there is no file everydy; .* \(data sets by name: everyday, openings, tatoeba, tatoeba-hub, mkqa",
    ):
        tn.load_corpus("everydy", LANGUAGES)
    with pytest.raises(tn.TnkitError, match="name the languages to read of facebook/belebele"):
        tn.load_corpus("belebele")
    assert not list(Path().iterdir())


def test_more_lines_in_one_json_file_of_belebele_are_counted(stored):
    folder, _ = stored
    for file, data in stand_ins()["belebele"].items():
        put_at(folder / "facebook/belebele" / file, data)
    more = {"link": "l9", "question_number": 9, "flores_passage": "Only English.", "question": "?"}
    path = folder / "facebook/belebele/data/eng_Latn.jsonl"
    path.write_text(path.read_text() + json_lines([more]))
    corpus = tn.load_corpus("belebele", LANGUAGES)
    assert rows_of(corpus) == sorted(PAIRS) and corpus.dropped == {"without a translation": 1}
