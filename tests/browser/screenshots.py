"""Pictures of the explorers in JupyterLab, as the README shows them: `make screenshots`, or some by name."""

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
FIGURES = Path(__file__).parents[2] / "figures"


def spaces(seen: Seen) -> None:
    """A middle layer, with one sentence and its translations."""
    with seen.redrawn():
        seen.slider("Layer").press("Home")
    for _ in range(5):
        with seen.redrawn():
            seen.slider("Layer").press("ArrowRight")
    seen.root.locator(".tn-picture").focus()
    for key in ["ArrowRight"] * 8 + ["Enter"]:
        seen.page.keyboard.press(key)


def neurons(seen: Seen) -> None:
    """A Type-2 neuron."""
    with seen.redrawn():
        seen.box("Type").select_option("Type-2")


def ablation(seen: Seen) -> None:
    """Type-1 neurons, and a prompt that is continued with Type-2 neurons off."""
    seen.button("Continue").click()
    expect(seen.root.locator(".tn-words p")).to_have_count(2)


def detection(seen: Seen) -> None:
    """Two languages."""
    seen.root.get_by_label("Korean").check()
    seen.button("Run").click()
    expect(seen.status()).to_contain_text("done")


def main() -> None:
    """Open each explorer, use it, and take its picture."""
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as running, browser(height=1700) as used:
        used.page.set_default_timeout(600_000)
        expect.set_options(timeout=600_000)
        for use in (spaces, neurons, ablation, detection):
            if sys.argv[1:] and use.__name__ not in sys.argv[1:]:
                continue
            call = f"explorer = tn.explore_{use.__name__}(model, corpus)\nexplorer"
            seen = Seen(running.open(used.page, use.__name__, [SETUP, call]), used.page)
            use(seen)
            seen.check()
            used.page.wait_for_timeout(500)
            target = FIGURES / f"explore_{use.__name__}.png"
            seen.root.screenshot(path=target)
            print(target.relative_to(FIGURES.parent), flush=True)


if __name__ == "__main__":
    sys.exit(main())
