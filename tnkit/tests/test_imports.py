"""Nothing heavy is imported before it is used, and the public names are there; import-linter checks the direction."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tnkit as tn

FOLDER = Path(tn.__file__).parent
HEAVY = ("torch", "transformers", "nnsight", "matplotlib", "pandas", "sklearn", "scipy", "ipywidgets")


@pytest.mark.parametrize("statement", ["import tnkit", "import tnkit.cli.main; tnkit.cli.main._parser()"])
def test_nothing_heavy_is_imported_first(statement):
    code = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_nnsight_is_touched_in_three_modules_only():
    paths = [path for path in FOLDER.rglob("*.py") if "tests" not in path.parts]
    users = {path.relative_to(FOLDER).as_posix() for path in paths if "nnsight" in _modules(path)}
    assert users == {"models/remote.py", "models/trace.py", "models/wrapper.py"}


def test_only_the_remote_model_is_asked_where_it_runs():
    """Everything else asks a Model, which answers here or on its server; the trace hands the address to nnsight."""
    asking = set()
    for path in FOLDER.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        if "tests" not in path.parts and any(
            isinstance(node, ast.Attribute) and node.attr == "remote" for node in nodes
        ):
            asking.add(path.relative_to(FOLDER).as_posix())
    assert asking == {"models/remote.py", "models/trace.py"}


def _modules(path):
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_every_public_name_is_there():
    assert all(hasattr(tn, name) for name in tn.__all__)
    with pytest.raises(AttributeError, match="No tnkit attribute nothing"):
        _ = tn.nothing


MOVED = {
    "spaces": "CentroidDistances PrincipalComponents centroid_distances pca",
    "generation": "Answered Continuations answer_questions continuations languages_of",
    "answers": "QuestionScores exact_match f1 normalise score",
}


@pytest.mark.parametrize("name", MOVED)
def test_a_moved_module_warns_and_works(name):
    with pytest.warns(DeprecationWarning, match=f"tnkit.{name} is deprecated"):
        module = getattr(tn, name)
    assert module.__name__.startswith("tnkit.measures")
    assert all(callable(getattr(module, public)) for public in MOVED[name].split())
