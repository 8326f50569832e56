"""The API reference builds without a warning, and every page has an example that the tests run."""

import html
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_module_has_a_page_with_an_example(tmp_path):
    script = "import sys; sys.path.insert(0, 'docs'); import build; build.reference(build.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page for page in tmp_path.rglob("*.html") if page != tmp_path / "index.html"}
    modules = [path for path in ROOT.glob("tnkit/**/[a-z]*.py") if "tests" not in path.parts]
    assert len(pages) == len(modules) + 3  # tnkit, tnkit.explorers and tnkit.plots
    for page in pages:
        if page.parent.name == "cli":
            continue  # a command's example is a command line
        text = html.unescape(re.sub("<[^>]+>", "", page.read_text()))
        assert ">>> " in text, page
    text = html.unescape(re.sub("<[^>]+>", "", (tmp_path / "tnkit.html").read_text()))
    for name in ("load_model", "detect_all", "NeuronSet", "explore_spaces"):
        assert name in text
