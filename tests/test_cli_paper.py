"""`tnkit paper` as a user meets it."""

import shlex
from pathlib import Path

import pandas as pd
import pytest

import tnkit as tn
from tnkit.cli import main as cli
from tnkit.testing import letters, tiny_corpus

PAPER = "paper --model_id model --languages it ja --sentence_path sentences.tsv --quick"


@pytest.fixture(autouse=True)
def folder(saved_models, tmp_path, monkeypatch):
    """The working folder of each test: a tiny model and its sentences."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tnkit.measures.steering.study.encoded", letters)
    (tmp_path / "model").symlink_to(saved_models / "model")
    tiny_corpus().save("sentences.tsv")


def test_the_study_is_the_librarys_and_resumes(capsys, tmp_path):
    line = f"{PAPER} --sections spaces,detection,mmlu-prox --out study"
    assert cli.main(shlex.split(line)) == 0
    out = capsys.readouterr().out
    assert out.endswith("study/index.html\n") and "spaces: In " in out and "mmlu-prox did not run: MMLU-ProX" in out
    written = pd.read_csv("study/tables/detection-neurons.csv").query("type == 'type1' and language == 'ja'")
    corpus, languages = tn.load_corpus("sentences.tsv", ["en", "it", "ja"]), ["it", "ja"]
    how = {"sections": ["detection"], "quick": True, "progress": False}
    done = tn.paper(tn.load_model("model"), languages, corpus=corpus, out="other", **how)
    expected = done.table("detection", "neurons").loc[("type1", "ja")]
    assert written[["layer", "neuron"]].to_numpy().tolist() == [list(pair) for pair in expected.index]
    before = (tmp_path / "study/index.html").read_bytes()
    assert cli.main(shlex.split(line)) == 0
    assert (tmp_path / "study/index.html").read_bytes() == before


def test_an_estimate_is_printed_and_nothing_written(capsys, tmp_path):
    assert cli.main(shlex.split(f"{PAPER} --estimate --draws 2")) == 0
    out = capsys.readouterr().out
    assert "steering" in out and "8B on one GPU" in out and "Estimates:" in out
    assert not (tmp_path / "paper").exists()


def test_languages_may_be_separated_by_commas(capsys):
    line = PAPER.replace("it ja", "it,ja") + " --sections spaces"
    assert cli.main(shlex.split(line)) == 0
    assert capsys.readouterr().out.endswith("paper/index.html\n")
    assert "Italian and Japanese" in Path("paper/index.html").read_text()
