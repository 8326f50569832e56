"""A disk that fills up while something is saved: one sentence, the old files as they were, and nothing half-written."""

import os
import re
import resource
import shlex
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch

import tnkit as tn
from tnkit import plots
from tnkit.captures import shards
from tnkit.cli import main as cli
from tnkit.measures import harness
from tnkit.testing import tiny_corpus, tiny_model

LANGUAGES = ("it", "ja")  # of the first and of the second version of whatever is saved
QUIET = {"progress": False}


@contextmanager
def full_disk(files, monkeypatch):
    """A context in which the disk is full once so many files were written; None: no file can grow beyond 60 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = []

    def flush(file):
        written.append(file)
        if len(written) > files:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        try:
            if files is None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
            else:
                patch.setattr(os, "fsync", flush)
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@cache
def captured(version):
    return tn.capture(tiny_model(), tiny_corpus()["train"][LANGUAGES[version]], **QUIET)


@cache
def detected(version):
    return tn.detect(tiny_model(), tiny_corpus(), language=LANGUAGES[version], top=20, **QUIET)


def corpus(version):
    return tn.load_corpus(tiny_corpus().frame, ["en", LANGUAGES[version]])


def draw(version):
    axes = detected(version).plot()
    axes.set_title(LANGUAGES[version])
    plots.save_figure(axes.figure, "x.png")


def opened(version):
    """An explorer with two detections."""
    found = {("it", "type1"): detected(version), ("ja", "type2"): detected(version)}
    return tn.explore_detection(tiny_model(), tiny_corpus(), found=found, layer=version, results="results")


def keep(version):
    """Write a shard of the cache, which warns where it cannot."""
    shards.Shards({"job": 1}, "a job").write("0", {"a": torch.full((90,), float(version))})


def run(version, line):
    """Run a command; `V` stands for the version."""
    if code := cli.main(shlex.split(line.replace("V", str(version + 1)))):
        raise SystemExit(code)


COMMON = "--model_id model --lang_for_TN ja --sentence_path pairs.tsv"
CENTROIDS = f"centroids {COMMON} --TN_Type typeV --out c"
DETECT = f"detect {COMMON} --TN_Type type1 --top_n 2V --out n.json --quiet --centroids_path cV.safetensors"
ABLATE = f"ablate {COMMON} --neurons kept.json --seeds 2V --out t.csv"
TEXTS = ABLATE.replace("pairs", "pairsV")
SAVES = {  # how a version is saved, and in how many files
    "captures": (lambda version: captured(version).save("x"), 1),
    "centroids": (lambda version: tn.estimate_centroids([captured(version)]).save("x"), 1),
    "centroids, pickle": (lambda version: tn.estimate_centroids([captured(version)]).save("x", format="reference"), 1),
    "scores": (lambda version: detected(version).scores.save("x"), 1),
    "neurons": (lambda version: detected(version).neurons.save("x"), 1),
    "neurons, pickle": (lambda version: detected(version).neurons.save("x", format="reference"), 1),
    "a detection": (lambda version: detected(version).save("folder"), 3),
    "a corpus": (lambda version: corpus(version).save("x.tsv"), 1),
    "a figure": (draw, 1),
    "a shard": (keep, 1),
    "the explorer's picture": (lambda version: opened(version).save("x.png"), 1),
    "the explorer's results": (lambda version: opened(version).save_results(), 6),
    "tnkit centroids": (lambda version: run(version, f"{CENTROIDS}.safetensors"), 1),
    "tnkit centroids, pickle": (lambda version: run(version, f"{CENTROIDS}.pkl --format reference"), 1),
    "tnkit detect": (lambda version: run(version, f"{DETECT} --scores s.safetensors"), 2),
    "tnkit ablate": (lambda version: run(version, f"{ABLATE} --figure f.png"), 2),
    "tnkit ablate, texts": (lambda version: run(version, f"{TEXTS} --measure generation"), 1),
    "tnkit evaluate": (lambda version: run(version, "evaluate --model_id model --neurons kept.json --tasks V"), 1),
}


@pytest.fixture(scope="module")
def prepared(saved_models, tmp_path_factory):
    """A folder with a model, sentences, two files of centroids, and neurons."""
    folder = tmp_path_factory.mktemp("full-disk")
    (folder / "model").symlink_to(saved_models / "model")
    tn.load_corpus(tiny_corpus().frame.drop(columns="split"), ["en", "ja"], test=0.0).save(folder / "pairs.tsv")
    model = tn.load_model(folder / "model")
    for version in (1, 2):
        rows = tiny_corpus().frame.drop(columns="split").head(10 * version)
        tn.load_corpus(rows, ["en", "ja"], test=0.0).save(folder / f"pairs{version}.tsv")
        texts = {language: tiny_corpus()["train"][language][: 7 * version] for language in ("en", "ja")}
        found = tn.detect(model, texts, language="ja", top=9, **QUIET)
        found.centroids.save(folder / f"c{version}.safetensors")
    found.neurons.save(folder / "kept.json")
    return folder


@pytest.fixture(autouse=True)
def folder(prepared, tmp_path, monkeypatch):
    """The working folder of each test, with what was prepared and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(harness, "evaluate", lambda _, tasks, **__: pd.DataFrame({"task": tasks * 20}, dtype="string"))
    monkeypatch.setattr(pd.DataFrame, "to_frame", lambda self: self, raising=False)
    for path in prepared.iterdir():
        Path(path.name).symlink_to(path)


CASES = [
    (name, files)
    for name, (_, count) in SAVES.items()
    for files in ([count - 1 or None] if name.startswith("tnkit") else [*sorted({0, count - 1}), None])
]


@pytest.mark.parametrize(("name", "files"), CASES)
def test_a_full_disk_is_one_sentence_and_leaves_every_old_file(name, files, monkeypatch, capsys, caplog):
    save, count = SAVES[name]
    save(0)
    before = contents()
    capsys.readouterr()
    with full_disk(files, monkeypatch):
        said = failure(save, capsys, caplog)
    assert re.fullmatch(r".*cannot [^\n]+\n?", said)
    assert ("File too large" if files is None else "No space left on device") in said
    assert contents() == before
    save(1)
    after = contents()
    assert before.keys() == after.keys()
    assert len([path for path in after if before[path] != after[path]]) == count, "the versions differ in every file"


def failure(save, capsys, caplog):
    """What is said of the second version: by an error, a command that fails, or a warning."""
    try:
        save(1)
    except tn.TnkitError as error:
        return str(error)
    except SystemExit as stop:
        assert stop.code == 1
    out, err = capsys.readouterr()
    assert not re.search(r"\.\w+$", out, re.M), "the name of a file that was not written"
    return err or caplog.text


def contents():
    """What every file holds, hidden ones too."""
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
