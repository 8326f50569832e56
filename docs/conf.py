"""How Sphinx builds the site from the pages of this folder, the notebooks and the changelog, for `docs.build`.

The notebooks are shown with the outputs that they hold. Nothing is fetched: mathematics is
MathML, which browsers draw themselves, and pages are searched by an index that lies beside them.
"""

import ast
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
STATIONS = ("text", "models", "captures", "detection", "interventions", "measures", "plots", "explorers", "replication")
STATIONS += ("cli",)
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

project = "tnkit"
author = "The tnkit developers"
version = release = _PROJECT["tool"]["setuptools_scm"]["fallback_version"]
language = "en"
extensions = ["myst_nb", "sphinx_design"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/*.ipynb", "CHANGELOG.md"]
exclude_patterns = [".venv*", ".git", ".*_cache", "build", "dist", "tnkit", "tests", "**/.ipynb_checkpoints"]
suppress_warnings = ["myst.header"]  # a notebook may begin below the first level
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "substitution", "colon_fence"]
myst_heading_anchors = 3
nitpicky = True
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "tnkit"
html_static_path = ["static"]
html_css_files = ["tnkit.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {f"docs/{page}": [] for page in ("index", "start", "method", "api")}
copyright = author


def _modules(station: str) -> str:
    """A table of a station's modules: what each is for, and where its reference is."""
    rows = []
    for path in sorted((ROOT / "tnkit" / station).rglob("*.py")):
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        if "tests" in path.parts or path.stem.startswith("__") or not summary:
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        page = f"../reference/{name.replace('.', '/')}.html"
        shown = summary.replace("|", "\\|").replace("`", "")
        rows.append(f"| <a href='{page}'><code>{name.removeprefix('tnkit.')}</code></a> | {shown} |")
    return "\n".join(["| module | what it is for |", "|---|---|", *rows])


myst_substitutions = {station: _modules(station) for station in STATIONS}


def _inline(writer, node) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer, node) -> None:
    writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
