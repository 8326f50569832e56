"""Imports run one way, and nothing heavy is imported before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tnkit as tn

FOLDER = Path(tn.__file__).parent
# Each module may import those before it.
ORDER = """
process errors sessions storage rows provenance pickles tokens parallel architecture checkpoints packaged remote
fingerprints trace scopes checks models batches shards activations passes centroids closed_form neurons scoring
languages files records tables tmx columnar readers layouts folders hub sources splits corpora variants sums
detection
interventions last_token export comparison answers generation behaviour task_files harness
agreement language_neurons specificity lens cards spaces geometry
experiments style heatmaps plots
explorers.parts explorers.study explorers.explorer
explorers.spaces explorers.neurons explorers.ablation explorers.detection explorers
demo doctor commands cli
""".split()
HEAVY = ("torch", "transformers", "nnsight", "matplotlib", "pandas", "sklearn", "scipy", "ipywidgets")


def file_of(module):
    """A module's file, of a package its `__init__`."""
    path = FOLDER.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(module):
    """The tnkit modules that a module's top level and functions import, types aside."""
    tree = ast.parse(file_of(module).read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in guarded and node.module:
            if node.module == "tnkit":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("tnkit."):
                yield node.module.removeprefix("tnkit.")


def test_the_order_names_every_module():
    files = {path for path in FOLDER.rglob("*.py") if path.parent.name != "tests"}
    outside = {FOLDER / "__init__.py", FOLDER / "__main__.py"}
    assert sorted(map(file_of, ORDER)) == sorted(files - outside)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_comes_before_it(module):
    allowed = set(ORDER[: ORDER.index(module)]) | {"__version__"}
    # A result's plot() draws through plots, which reads results but never computes them.
    allowed |= {"heatmaps", "plots", "style"} if module not in ("errors", "storage") else set()
    assert set(imported(module)) <= allowed


@pytest.mark.parametrize("statement", ["import tnkit", "import tnkit.cli; tnkit.cli._parser()"])
def test_nothing_heavy_is_imported_first(statement):
    code = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_nnsight_is_touched_in_four_modules_only():
    users = {path.stem for path in FOLDER.glob("*.py") if "nnsight" in _modules(path)}
    assert users == {"checkpoints", "models", "remote", "trace"}


def _modules(path):
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_every_public_name_is_there_under_its_own_module():
    """`tn.capture` stays a function whatever is imported first."""
    code = "import tnkit.detection, tnkit as tn; print(callable(tn.capture), all(hasattr(tn, n) for n in tn.__all__))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["True"] * 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tn.nothing
