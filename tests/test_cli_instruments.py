"""`tnkit patch` and `tnkit lens` as a user meets them."""

import shlex
from pathlib import Path

import pandas as pd
import pytest

import tnkit as tn
from tests.test_cli_ablate import ENGLISH, ITALIAN, folder  # noqa: F401 - the fixture of its files
from tnkit.cli import main as cli

PATCH = "patch --model_id model --lang_for_TN it --source_language en --sentence_path pairs.tsv"
LENS = "lens --model_id model --neurons set.json"


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ("", {}),
        ("--site contributions --neurons set.json --measure margin --layer 3", {"measure": "margin", "layer": 3}),
        ("--site pre --layers 1:3 --tokens last_word", {"site": "pre", "layers": [1, 2], "tokens": "last_word"}),
    ],
)
def test_the_patched_table_is_the_librarys(capsys, flags, how):
    assert cli.main(shlex.split(f"{PATCH} {flags} --figure f.png")) == 0
    table = pd.read_csv("it-patched.csv", index_col=["layer", "condition"])
    if "--neurons" in flags:
        how = how | {"site": "contributions", "neurons": tn.NeuronSet.load("set.json")}
    texts = {"en": ENGLISH, "it": ITALIAN}
    found = tn.patching.by_layer(tn.load_model("model"), texts, source="en", into="it", progress=False, **how)
    pd.testing.assert_frame_equal(table, found.to_frame(), rtol=1e-5, atol=1e-6)
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
    assert "patched into it" in capsys.readouterr().out


def test_the_promoted_items_are_the_librarys(capsys):
    assert cli.main(shlex.split(f"{LENS} --top_n 3 --k 4 --out items.csv")) == 0
    table = pd.read_csv("items.csv", index_col=["layer", "neuron", "rank"])
    expected = tn.lens.promoted(tn.load_model("model"), tn.NeuronSet.load("set.json")[:3], k=4).to_frame()
    assert table.index.tolist() == expected.index.tolist()
    pd.testing.assert_series_equal(table["promoted logit"], expected["promoted logit"], rtol=1e-5, check_dtype=False)
    assert "logit lens; the first of 3 neurons" in capsys.readouterr().out
