"""The library stays easy to see through: no long file or function, and a short path from sentences to neurons."""

import ast
import re
from pathlib import Path

import pytest

import tnkit as tn

FOLDER = Path(tn.__file__).parent
FILES = [path for path in sorted(FOLDER.rglob("*.py")) if "tests" not in path.relative_to(FOLDER).parts]


def functions(path):
    """Each function of a file, with its number of lines, those of its docstring aside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            yield node.name, node.end_lineno - node.lineno + 1 - (first.lineno - node.body[0].lineno)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 350
    assert [(name, lines) for name, lines in functions(path) if lines > 60] == []


def test_pytest_takes_no_library_file_for_a_test():
    """As `pytest --pyargs tnkit` would, by its default names; it then imports too early what tests prepare."""
    assert [path.name for path in FILES if path.match("test_*.py") or path.match("*_test.py")] == []


def test_the_path_from_sentences_to_neurons_is_an_hours_reading():
    text = (FOLDER.parent / "CONTRIBUTING.md").read_text()
    path = re.findall(r"\(tnkit/(\S+\.py)\)", text.split("## The path from sentences to neurons")[1].split("\n## ")[0])
    assert len(path) > 10 and {"text/corpus.py", "models/trace.py", "detection/closed_form.py"} <= {*path}
    assert sum(len((FOLDER / name).read_text().splitlines()) for name in path) < 3500
