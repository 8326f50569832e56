"""The API reference from the docstrings, one page per module, and the pages of this folder, in build/docs.

A warning is an error.

python -m docs.build        # or make docs
"""

import warnings
from pathlib import Path

import pdoc

import tnkit

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "docs"


def modules() -> list[str]:
    """Every module of the package but its tests."""
    files = [path for path in ROOT.glob("tnkit/**/[a-z]*.py") if "tests" not in path.parts]
    return sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)


def build(out: Path = OUT) -> int:
    """Write the pages, and return how many."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The module specification")  # the package brings some of its modules itself
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(?!tnkit)")
    pdoc.render.configure(docformat="google", footer_text=f"tnkit {tnkit.__version__}")
    pdoc.pdoc("tnkit", "tnkit.explorers", *modules(), output_directory=out)
    for page in sorted((ROOT / "docs").glob("*.md")):
        head, text = f"<!doctype html><meta charset=utf-8><title>{page.stem.capitalize()}</title>", page.read_text()
        (out / f"{page.stem}.html").write_text(head + pdoc.render_helpers.to_html(text))
    return len([*out.rglob("*.html")])


if __name__ == "__main__":
    print(f"{build()} pages in {OUT}")
