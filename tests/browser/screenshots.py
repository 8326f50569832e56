"""Pictures of the explorer in JupyterLab, as the README shows it: `make screenshots`."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.lab import Seen, browser, lab

SETUP = """
import logging
import tnkit as tn
logging.getLogger("tnkit").setLevel(logging.ERROR)  # warnings, such as that of targets, are printed below the cell
model, corpus = tn.load_model("gemma-3-270m"), tn.load_corpus("everyday")
"""
OPEN = """
explorer = tn.explore(model, corpus, language="ja", layer=12, shown=["untouched", "set", "control"])
explorer
"""
FIGURES = Path(__file__).parents[2] / "figures"


def main() -> None:
    """Open the explorer, wait until it shows everything, and take its picture."""
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as running, browser(width=1700) as used:
        used.page.set_default_timeout(600_000)
        expect.set_options(timeout=600_000)
        seen = Seen(running.open(used.page, "explore", [SETUP, OPEN]), used.page)
        expect(seen.canvas).to_have_attribute("data-drawn", "untouched set control")
        seen.check()
        used.page.wait_for_timeout(500)
        target = FIGURES / "explore.png"
        seen.root.screenshot(path=target)
        print(target.relative_to(FIGURES.parent), flush=True)


if __name__ == "__main__":
    sys.exit(main())
