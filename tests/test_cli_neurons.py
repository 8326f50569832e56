"""`tnkit neurons` and `tnkit card` as a user meets them."""

import shlex
from pathlib import Path

import pandas as pd
import pytest

import tnkit as tn
from tests.test_cli_ablate import ENGLISH, ITALIAN, folder  # noqa: F401 - the fixture of its files
from tnkit.cli import main as cli

NEURONS = "neurons --model_id model --neurons set.json --lang_for_TN it --sentence_path pairs.tsv"


def test_the_table_is_the_librarys(capsys):
    assert cli.main(shlex.split(f"{NEURONS} --figure f.png")) == 0
    table = pd.read_csv("set-table.csv", index_col=["layer", "neuron"])
    model, neurons = tn.load_model("model"), tn.NeuronSet.load("set.json")
    captured = {name: tn.capture(model, texts) for name, texts in {"it": ITALIAN, "en": ENGLISH}.items()}
    expected = tn.specificity.table(neurons, captured).to_frame()
    pd.testing.assert_frame_equal(table, expected, rtol=1e-5)
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
    assert "the first of 12 neurons" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--beside ko", "no column for ko"),
        ("--beside it", "compare at least 2"),
        ("--out set.csv/x.csv", "not a folder"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(flags, message, capsys):
    Path("set.csv").write_text("")
    assert cli.main(shlex.split(f"{NEURONS} {flags}")) == 1
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


def test_the_card_is_the_librarys(capsys):
    Path("e.csv").write_text("condition,mean\nnone,0.5\n")
    assert cli.main(shlex.split("card --neurons set.json --licence cc0-1.0 --evidence e.csv")) == 0
    card = capsys.readouterr().out
    expected = tn.NeuronSet.load("set.json").card(licence="cc0-1.0", evidence=pd.read_csv("e.csv"))
    assert card == expected and "| none | 0.5 |" in card
    assert cli.main(shlex.split("card --neurons set.json --out README.md")) == 0
    assert Path("README.md").read_text() == tn.NeuronSet.load("set.json").card()
