"""The site in build/docs: the pages of this folder and the notebooks by Sphinx, the reference of every module by pdoc.

A warning is an error, and so is a link within the site that leads nowhere.

python -m docs.build              # or make docs
python -m docs.build reference    # the reference alone, which needs nothing of the extra docs
"""

import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "docs"
_HOME = '<!doctype html><title>tnkit</title><meta http-equiv="refresh" content="0; url=docs/index.html">'


def modules() -> list[str]:
    """Every module of the package but its tests."""
    files = [path for path in ROOT.glob("tnkit/**/[a-z]*.py") if "tests" not in path.parts]
    return sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)


def reference(out: Path = OUT / "reference") -> int:
    """Write the reference from the docstrings, one page per module, and return how many."""
    import pdoc

    import tnkit

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The module specification")  # the package brings some of its modules itself
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(?!tnkit)")
    pdoc.render.configure(docformat="google", footer_text=f"tnkit {tnkit.__version__}")
    pdoc.pdoc("tnkit", "tnkit.explorers", *modules(), output_directory=out)
    return len([*out.rglob("*.html")])


def site(out: Path = OUT) -> int:
    """Write the pages and the notebooks, and return how many pages there are.

    Raises:
        subprocess.CalledProcessError: where Sphinx warns.
    """
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    doctrees = out.parent / "doctrees"
    subprocess.run([*command, "-d", doctrees, "-c", ROOT / "docs", ROOT, out], check=True)
    (out / "index.html").write_text(_HOME)
    for page in out.glob("notebooks/*.html"):  # the links in what a cell has shown lead to notebooks
        page.write_text(re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page.read_text()))
    return len([*out.glob("docs/**/*.html"), *out.glob("notebooks/*.html")])


class _Links(HTMLParser):
    """The addresses that a page leads to, and the places in it that links can name."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in {("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")} and value:
                self.links.append(value)
            if name in ("id", "name") and value:
                self.places.add(value)


def broken(out: Path = OUT) -> list[str]:
    """Links of the site's own pages that lead nowhere in it, as "page: link"."""
    pages = {path.resolve(): _Links(path.read_text()) for path in out.rglob("*.html")}
    found = []
    for page, parsed in pages.items():
        ours = not {"reference", "_static"} & {*page.relative_to(out.resolve()).parts}
        for link in parsed.links if ours else ():
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            known = pages[target].places if target in pages else {unquote(address.fragment)}
            if not target.exists() or unquote(address.fragment) not in known:
                found.append(f"{page.relative_to(out.resolve())}: {link}")
    return found


if __name__ == "__main__":
    written = reference()
    if sys.argv[1:] != ["reference"]:
        written += site()
        if wrong := broken():
            sys.exit("\n".join(["links that lead nowhere:", *wrong]))
    print(f"{written} pages in {OUT}")
