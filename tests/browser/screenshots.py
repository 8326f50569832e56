"""The moving picture of the explorer in JupyterLab that the README shows: `make screenshots`."""

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
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
WIDTH, FRAME = 1000, 450  # of the moving picture: pixels, and milliseconds of a layer


def main() -> None:
    """Open the explorer, wait until it shows everything, and take its picture at every layer."""
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as running, browser(width=1700) as used:
        used.page.set_default_timeout(600_000)
        expect.set_options(timeout=600_000)
        seen = Seen(running.open(used.page, "explore", [SETUP, OPEN]), used.page)
        expect(seen.canvas).to_have_attribute("data-drawn", "untouched set control")
        seen.check()
        used.page.wait_for_timeout(500)
        moving(seen, FIGURES / "explore.gif")


def layers(seen: Seen) -> Iterator[Image.Image]:
    """The explorer at every layer, small, the first to the last."""
    ribbon = seen.slider("Layer")
    ribbon.press("Home")
    for layer in range(int(ribbon.get_attribute("aria-valuemax") or 0) + 1):
        expect(seen.canvas).to_have_attribute("data-layer", str(layer))
        seen.page.wait_for_timeout(200)
        picture = Image.open(io.BytesIO(seen.root.screenshot())).convert("RGB")
        yield picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)
        ribbon.press("ArrowRight")


def moving(seen: Seen, path: Path) -> None:
    """Write a picture that goes through the layers again and again."""
    frames = list(layers(seen))
    palette = frames[len(frames) // 2].quantize(256)  # one for all, so that no colour changes on the way
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=FRAME, loop=0, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
