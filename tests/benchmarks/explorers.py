"""How long the explorer takes to show what was asked, in a real browser, and the memory of its kernel."""

import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.lab import CHROMIUM, Seen, browser, lab

SETUP = """
import os, time
import tnkit as tn
model, corpus = tn.load_model("gemma-3-270m"), tn.load_corpus("everyday")
"""
OPEN = "explorer = tn.explore(model, corpus)\nexplorer"
TOLD = "print(os.getpid(), time.time())\n"
# From a click to the change of what it changes, in milliseconds.
CLOCK = """([event, what, how]) => {
  window.took = [];
  let asked = null;
  document.addEventListener(event, () => { asked = performance.now(); }, true);
  new MutationObserver(() => {
    if (asked !== null) { window.took.push(performance.now() - asked); asked = null; }
  }).observe(document.querySelector(what), how);
}"""


def rows():
    """Rows of the table: layers, the first picture, clicks while something computes, and memory."""
    if CHROMIUM is None:
        return [("the explorer in a browser", "not measured: there is no chromium here", "")]
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as running, browser() as seeing:
        page = seeing.page
        page.set_default_timeout(600_000)
        expect.set_options(timeout=600_000)
        Seen(running.open(page, "warm", [SETUP, OPEN]), page).check()  # captures are kept on disk
        book = running.open(page, "explore", [SETUP, TOLD + OPEN])
        seen = Seen(book, page)
        kernel, began = book.locator(".jp-OutputArea-output pre").first.inner_text().split()
        loaded = memory(kernel, "VmRSS")
        expect(seen.canvas).to_have_attribute("data-drawn", "untouched")
        first = time.time() - float(began)
        ribbon = seen.slider("Layer")
        for key in ["Home"] + ["ArrowRight"] * 17 + ["ArrowLeft"] * 17:
            ribbon.press(key)
            page.wait_for_timeout(260)
        step = float(seen.canvas.get_attribute("data-step"))
        seen.view("Evidence")
        expect(seen.root).to_have_attribute("data-state", "computing")
        page.evaluate(CLOCK, ["click", ".tn-tabs", {"childList": True, "subtree": True}])
        for name in ["Map", "Neurons", "Detection", "Evidence"] * 3:
            seen.view(name)
        clicks = page.evaluate("window.took")
        seen.check()
        used = memory(kernel, "VmHWM") - loaded
        return [
            ("drawing a layer of the map (1,280 points)", f"{step:.1f} ms median", "≤ 16 ms"),
            ("first picture, captures on disk", f"{first:.1f} s", "≤ 3 s"),
            ("a click while something computes", f"{statistics.median(clicks):.0f} ms median", "≤ 100 ms"),
            ("memory of the kernel above the model, at most", f"{used:.1f} GB", "≤ 2.5 GB"),
        ]


def memory(process, name):
    """A figure of a process's memory, in GB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e6
