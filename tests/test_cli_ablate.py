"""`tnkit ablate` and `tnkit evaluate` as a user meets them."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tnkit as tn
from tnkit.cli import main as cli

ENGLISH = ["Good morning.", "See you later, then.", "I like tea.", "It rains.", "Where is it?", "We walk home."]
ITALIAN = ["Buongiorno.", "A dopo, allora.", "Mi piace il tè.", "Piove.", "Dov'è?", "Andiamo a casa a piedi."]
ABLATE = "ablate --model_id model --neurons set.json --lang_for_TN it --sentence_path pairs.tsv --seeds 2"


@pytest.fixture(autouse=True)
def folder(saved_models, tmp_path, monkeypatch):
    """The working folder of each test: the tiny models, pairs, and a neuron set of the first model."""
    monkeypatch.chdir(tmp_path)
    for path in saved_models.iterdir():
        Path(path.name).symlink_to(path)
    rows = [f"{a}\t{b}\n" for a, b in zip(["en", *ENGLISH], ["it", *ITALIAN], strict=True)]
    Path("pairs.tsv").write_text("".join(rows))
    model = tn.load_model("model")
    found = tn.detect(model, {"en": ENGLISH, "it": ITALIAN}, language="it", top=12, progress=False)
    found.neurons.save("set.json")
    found.scores.save("scores.safetensors")
    tn.NeuronSet(tuple((3, n) for n in range(12)), (4, 48)).save("other.json")


@pytest.mark.parametrize("measure", ["retrieval", "similarity", "perplexity"])
def test_a_set_is_measured_beside_its_controls_as_in_the_library(measure, capsys):
    tokens = "all" if measure == "perplexity" else "last"  # nothing follows the last token of a sentence
    extra = f"--measure {measure} --tokens {tokens} --scores_path scores.safetensors --other other.json"
    extra += " --figure f.png --out t.csv"
    assert cli.main(shlex.split(f"{ABLATE} {extra}")) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv("t.csv", index_col=["layer", "condition"])
    rows = ["none", "the set", "uniform", "same layers", "same layers and norms", "lowest scores", "other"]
    assert list(dict.fromkeys(table.index.get_level_values("condition"))) == rows
    assert all(row in printed for row in rows)
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
    model, texts = tn.load_model("model"), {"en": ENGLISH, "it": ITALIAN}
    neurons = tn.NeuronSet.load("set.json")
    others = {"other": tn.NeuronSet.load("other.json")}
    how = {"controls": others, "measure": measure, "tokens": tokens, "progress": False}
    expected = tn.ablate(model, texts, neurons, language="it", **how)
    for condition in ("none", "the set", "other"):
        found = table.xs(condition, level="condition")["mean"]
        assert np.allclose(found, expected.to_frame().xs(condition, level="condition")["mean"], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--value mean --of_language en", "set to the mean of"),
        ("--scale 0.5", "multiplied by 0.5"),
        ("--add 2 --minus_language en", "moved by 2.0"),
    ],
)
def test_what_neurons_are_set_to_is_as_in_the_library(flags, words, capsys):
    assert cli.main(shlex.split(f"{ABLATE} --measure similarity --other other.json --out t.csv {flags}")) == 0
    table = pd.read_csv("t.csv", index_col=["layer", "condition"])
    model, texts = tn.load_model("model"), {"en": ENGLISH, "it": ITALIAN}
    en, it = (tn.capture(model, texts[name], keep=["activations"], progress=False) for name in ("en", "it"))
    how = {"--v": {"value": "mean", "of": en}, "--s": {"scale": 0.5}, "--a": {"add": 2.0, "of": it, "minus": en}}[
        flags[:3]
    ]
    options = {"controls": {"other": tn.NeuronSet.load("other.json")}, "measure": "similarity", "progress": False}
    expected = tn.ablate(model, texts, tn.NeuronSet.load("set.json"), language="it", **options, **how).to_frame()
    for condition in ("none", "the set", "other"):
        found = table.xs(condition, level="condition")["mean"]
        assert np.allclose(found, expected.xs(condition, level="condition")["mean"], atol=1e-6)
    assert words in capsys.readouterr().out


def test_generation_is_shown_beside_a_control(capsys):
    assert cli.main(shlex.split(f"{ABLATE} --measure generation --tokens all --out g.csv")) == 0
    table = pd.read_csv("g.csv")
    assert table["off"].value_counts().to_dict() == {"the set": 6, "same layers": 6}
    assert "same layers" in capsys.readouterr().out


def test_a_task_is_evaluated_before_and_after(capsys):
    rows = [{"question": f"{n}?", "options": ["a", "b"], "right": n % 2} for n in range(4)]
    Path("toy").mkdir()
    Path("toy/toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("toy/toy.yaml").write_text(
        f"task: toy\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {Path('toy/toy.jsonl').resolve()}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{right}}'\n"
        "doc_to_choice: '{{options}}'\nmetric_list:\n  - metric: acc\n"
    )
    arguments = "evaluate --model_id model --neurons set.json --tasks toy --include_path toy --out e.csv"
    assert cli.main(shlex.split(arguments)) == 0
    table = pd.read_csv("e.csv")
    accuracy = table[table["metric"] == "acc"].iloc[0]
    assert 0 <= accuracy["before"] <= 1
    assert 0 <= accuracy["after"] <= 1
    assert "toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("--neurons missing.json", "there is no file missing.json"),
        ("--model_id other", "were made with"),
        ("--lang_for_TN fr", "no column for fr"),
        ("--value median", "must be zero, mean, resampled or a number"),
        ("--of_language en", "--of_language is only for --value mean"),
        ("--out t.txt", "name a file that ends in .csv"),
        ("--figure pairs.tsv", "name a file that ends in .png"),
        ("--sentence_path set.json", "set.json holds dict, expected a list of sentences for each language"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(extra, words, capsys):
    before = sorted(Path().iterdir())
    assert cli.main(shlex.split(f"{ABLATE} {extra}")) == 1
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(Path().iterdir()) == before
