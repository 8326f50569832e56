"""How long the explorer takes to show what was asked, in a real browser, and the memory of its kernel."""

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import CHROMIUM, Lab, Seen, browser, lab

SETUP = """
import os, time
from pathlib import Path
import tnkit as tn
model, corpus = tn.load_model("gemma-3-270m"), tn.load_corpus("everyday")
"""
# The kernel's process, once the model is loaded; 5 makes its largest size so far that of now.
PROCESS = 'Path("/proc/self/clear_refs").write_text("5")\nprint(os.getpid())'
OPEN = "print(time.time())\nexplorer = tn.explore(model, corpus)\nexplorer"
FOUR = [f"tn.explore_{name}(model, corpus)" for name in ("spaces", "neurons", "ablation", "detection")]
DRAWN = ("canvas[data-drawn]", "tbody tr", ".tn-forest tbody tr", ".tn-tile")  # what each of them shows in the end
# From a press of the mouse to the first frame that shows the layer pressed on, in milliseconds.
CLOCK = """() => {
  window.took = [];
  let asked = null;
  document.addEventListener("pointerdown", () => { asked = performance.now(); }, true);
  new MutationObserver(() => {
    if (asked === null) return;
    const began = asked;
    asked = null;
    requestAnimationFrame(() => window.took.push(performance.now() - began));
  }).observe(document.querySelector(".tn-layer"), { childList: true });
}"""
# The time at which the first layer was drawn, in milliseconds since 1970.
FIRST = """new MutationObserver(() => {
  if (!window.firstDrawn && document.querySelector(".tn-app canvas[data-drawn]")) window.firstDrawn = Date.now();
}).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-drawn"] })"""
_Row = tuple[str, str, str]


def rows() -> list[_Row]:
    """Rows of the table: layers, the first picture, clicks while something computes, and memory."""
    if CHROMIUM is None:
        return [("the explorer in a browser", "not measured: there is no chromium here", "")]
    with _opened() as (running, page):
        Seen(running.open(page, "warm", [SETUP, OPEN]), page).check()  # captures are kept on disk
        running.stop_kernels()
        rows_of_times = times(running, page)
        running.stop_kernels()
        return [*rows_of_times, *sizes(running, page)]


@contextmanager
def _opened() -> Iterator[tuple[Lab, Page]]:
    """JupyterLab, and a page that waits ten minutes."""
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as running, browser() as seeing:
        seeing.page.set_default_timeout(600_000)
        expect.set_options(timeout=600_000)
        yield running, seeing.page


def times(running: Lab, page: Page) -> list[_Row]:
    """The first picture, a layer's drawing, and a press on the layers while the evidence is measured."""
    page.add_init_script(FIRST)
    book = running.open(page, "explore", [SETUP, OPEN])
    seen = Seen(book, page)
    expect(seen.canvas).to_have_attribute("data-drawn", "untouched")
    first = page.evaluate("window.firstDrawn") / 1000 - float(_printed(book)[0])
    ribbon = seen.slider("Layer")
    for key in ["Home"] + ["ArrowRight"] * 17 + ["ArrowLeft"] * 17:
        ribbon.press(key)
        page.wait_for_timeout(260)
    step = float(seen.canvas.get_attribute("data-step") or "nan")
    seen.view("Evidence")
    expect(seen.root).to_have_attribute("data-state", "computing")
    page.evaluate(CLOCK)
    box = ribbon.bounding_box()
    assert box is not None
    for number in range(24):
        page.mouse.click(box["x"] + box["width"] * (0.1 if number % 2 else 0.9), box["y"] + 60)
        page.wait_for_timeout(120)
    expect(seen.root).to_have_attribute("data-state", "computing")
    clicks = page.evaluate("window.took")
    assert len(clicks) == 24
    return [
        ("drawing a layer of the map (1,280 points)", f"{step:.1f} ms median", "≤ 16 ms"),
        ("first picture, captures on disk", f"{first:.1f} s", "≤ 3 s"),
        (
            "from a click to the frame that shows it, while the evidence is measured",
            f"{statistics.median(clicks):.0f} ms median, {max(clicks):.0f} ms at most (24 times)",
            "≤ 100 ms median",
        ),
    ]


def sizes(running: Lab, page: Page) -> list[_Row]:
    """What the kernel holds beside the model when all four explorers have shown their view, and its peak."""
    book = running.open(page, "four", [SETUP, PROCESS, *FOUR])
    process = _printed(book)[0]
    loaded, apps = memory(process, "VmRSS"), book.locator(".tn-app")
    expect(apps).to_have_count(4)
    for number, drawn in enumerate(DRAWN):
        apps.nth(number).scroll_into_view_if_needed()
        expect(apps.nth(number).locator(drawn)).not_to_have_count(0)
        expect(apps.nth(number)).to_have_attribute("data-state", "idle")
    held, most = (memory(process, name) - loaded for name in ("VmRSS", "VmHWM"))
    return [
        (
            "memory of the kernel above the model, all four explorers open",
            f"{held:.1f} GB held, {most:.1f} GB at most",
            "≤ 2.5 GB",
        )
    ]


def _printed(book: Locator) -> list[str]:
    """The words of the first output."""
    return book.locator(".jp-OutputArea-output pre").first.inner_text().split()


def memory(process: str, name: str) -> float:
    """A figure of a process's memory, in GB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e6
