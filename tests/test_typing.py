"""Type checkers know the public names: a user's script is checked, right and wrong."""

import os
import subprocess
import sys
from pathlib import Path

import tnkit as tn

RIGHT = """
from pathlib import Path

import tnkit as tn
from typing_extensions import assert_type

model = tn.load_model("gemma-3-270m")
corpus = tn.load_corpus("everyday", ["en", "ja"])
ja = tn.capture(model, corpus["train"]["ja"])
assert_type(model, tn.Model)
assert_type(ja, tn.Activations)
shared = tn.estimate_centroids([ja])
scores = tn.score_neurons(model, ja, shared, distance="cosine")
assert_type(scores.top(10), tn.NeuronSet)
assert_type(tn.attraction(model, ja).scores(shared), tn.NeuronScores)
assert_type(tn.detect(model, corpus, language="ja", kind="type1").neurons, tn.NeuronSet)
with tn.Ablation(model, scores.top(10)):
    tn.geometry.similarity(ja, ja).to_frame().to_csv("similarity.csv")
tn.variants.romanised(corpus)
tn.plots.use_style()
"""

WRONG = {  # a line, and what is said of it
    "tn.captur(model, ['Hi'])": 'Module has no attribute "captur"',
    "tn.capture(model, 3)": 'incompatible type "int"',
    "tn.geometry.similarty": 'has no attribute "similarty"',
    "tn.Ablation(model, 3)": 'incompatible type "int"',
    "tn.score_neurons(model, model, tn.Centroids.load('c'))": 'expected "Activations"',
    "tn.load_corpus('everyday').tran": '"Corpus" has no attribute "tran"',
}


def checked(tmp_path, script):
    """What mypy prints for a script; errors inside the kit are not its user's."""
    (tmp_path / "script.py").write_text(script)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        tmp_path.parent / "mypy",
    ]
    path = os.environ | {"MYPYPATH": str(Path(tn.__file__).parents[1])}
    done = subprocess.run([*command, "script.py"], cwd=tmp_path, env=path, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode


def test_mypy_knows_what_the_public_names_return(tmp_path):
    report, status = checked(tmp_path, RIGHT)
    assert status == 0, report


def test_mypy_refuses_wrong_lines(tmp_path):
    script = 'import tnkit as tn\nmodel = tn.load_model("gemma-3-270m")\n'
    report, status = checked(tmp_path, script + "\n".join(WRONG))
    assert status == 1, report
    for number, (line, reason) in enumerate(WRONG.items(), start=3):
        said = [error for error in report.splitlines() if error.startswith(f"script.py:{number}: error")]
        assert len(said) == 1 and reason in said[0], (line, report)
