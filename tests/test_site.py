"""The site: its code runs, its links lead somewhere, and every page is in its contents."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tnkit as tn
from tnkit.testing import tiny_model

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "AGENTS.md", ROOT / "llms.txt"]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("docs/howto/*.md")])
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n```python\n.*?```", re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_CODE = [page for page in PAGES if "import tnkit" in "".join(CODE.findall(NOT_RUN.sub("", page.read_text())))]


def test_the_pages_with_code_are_found():
    assert {page.stem for page in WITH_CODE} >= {"start", "data", "model", "control", "share"}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    """On a tiny random model and twelve sentences of the corpus in place of those that a page names."""
    monkeypatch.chdir(tmp_path)
    load, model = tn.load_corpus, tiny_model("bloom")  # reads texts of any length
    monkeypatch.setattr(tn, "load_model", lambda *_, **__: model, raising=False)
    monkeypatch.setattr(tn, "load_corpus", lambda *args, **how: load(*args, **{"limit": 24, **how}), raising=False)
    names = {}
    for block in CODE.findall(NOT_RUN.sub("", page.read_text())):
        exec(compile(block.replace("top=300", "top=20").replace("top=50", "top=20"), page.name, "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=[*NAMES, "AGENTS.md", "llms.txt"])
def test_links_between_pages_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    links += re.findall(r"^:link: (\S+)\n:link-type: doc", text, flags=re.MULTILINE)
    missing = [link for link in links if not any((page.parent / f"{link}{end}").exists() for end in ("", ".md"))]
    assert not missing


def test_every_page_is_in_the_contents():
    listed = set()
    for page in PAGES:
        for tree in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            listed |= {(page.parent / line).resolve() for line in tree.split() if not line.startswith(":")}
    home = ROOT / "docs" / "index.md"
    assert {page.with_suffix("") for page in PAGES if page != home} <= listed
    assert {path.with_suffix("") for path in ROOT.glob("notebooks/*.ipynb")} <= listed


def test_every_station_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text()
    folders = {path.parent.name for path in ROOT.glob("tnkit/*/__init__.py")} - {"tests"}
    assert folders == set(re.findall(r"^{{ (\w+) }}$", text, flags=re.MULTILINE))


@pytest.mark.skipif(not importlib.util.find_spec("myst_nb"), reason="the site needs the extra docs")
def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    code = "import sys; from docs import build as b; out = b.Path(sys.argv[1]); b.site(out); print(b.broken(out))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    broken = [link for link in eval(done.stdout.splitlines()[-1]) if "/reference/" not in link]
    assert broken == []
    for page in tmp_path.rglob("docs/*.html"):
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', page.read_text()), page
