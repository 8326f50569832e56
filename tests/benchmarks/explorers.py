"""How long an explorer takes to show what was asked, in a real browser, from the key to the picture."""

import statistics
import tempfile
from pathlib import Path

from tests.browser.lab import CHROMIUM, Seen, browser, lab

SETUP = 'import tnkit as tn\nmodel, corpus = tn.load_model("gemma-3-270m"), tn.load_corpus("everyday")'
DRAWN_AHEAD = "import asyncio\nwhile not explorer._task.done():\n    await asyncio.sleep(0.1)"
# From a key or a mouse move to the change of what it changes, in milliseconds.
CLOCK = """([event, what, how]) => {
  window.took = [];
  let asked = null;
  document.addEventListener(event, () => { asked = performance.now(); }, true);
  new MutationObserver(() => {
    if (asked !== null) { window.took.push(performance.now() - asked); asked = null; }
  }).observe(document.querySelector(what), how);
}"""
MOVES = 30


def rows():
    """A row of the table for each explorer's slider, for a picture that was not drawn ahead, and for hovering."""
    if CHROMIUM is None:
        return [("explorers in a browser", "not measured: there is no chromium here", "")]
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as running, browser() as seen:
        page = seen.page
        spaces = opened(running, page, "spaces")
        keyed = keys(page, spaces.slider("Layer"), ["ArrowLeft"] * 8 + ["ArrowRight"] * 16 + ["ArrowLeft"] * 6)
        found = [
            _row("redraw after a slider move, spaces (layer; 1,280 points)", keyed),
            _row("hover, spaces: from the mouse to the sentence", hovers(page, spaces)),
            _row("redraw that was not drawn ahead, spaces (components)", components(page, spaces), "for comparison"),
        ]
        ablation = opened(running, page, "ablation")
        keyed = keys(page, ablation.slider("Neurons off"), ["ArrowLeft"] * 4 + ["ArrowRight"] * 6 + ["ArrowLeft"] * 4)
        found.append(_row("redraw after a slider move, ablation (how many neurons)", keyed))
        neurons = opened(running, page, "neurons")
        neurons.root.locator("tbody tr").first.click()
        keyed = keys(page, page.locator("tbody tr[aria-selected=true]"), ["ArrowDown"] * 6 + ["ArrowUp"] * 6)
        found.append(_row("redraw after the next row, neurons", keyed))
    return found


def opened(running, page, name):
    """An explorer of the packaged model whose frames have been drawn ahead."""
    call = f"explorer = tn.explore_{name}(model, corpus)\nexplorer"
    page.set_default_timeout(600_000)
    return Seen(running.open(page, name, [SETUP, call, DRAWN_AHEAD]), page)


def keys(page, control, pressed):
    """Milliseconds from each key to the new picture."""
    page.evaluate(CLOCK, ["keydown", ".tn-picture img", {"attributes": True, "attributeFilter": ["data-drawn"]}])
    control.focus()
    for number, key in enumerate(pressed, 1):
        page.keyboard.press(key)
        page.wait_for_function(f"window.took.length >= {number}")
        page.wait_for_timeout(60)
    return page.evaluate("window.took")


def components(page, seen):
    """Milliseconds from each choice of components to the new picture."""
    page.evaluate(CLOCK, ["input", ".tn-picture img", {"attributes": True, "attributeFilter": ["data-drawn"]}])
    for number, label in enumerate(["1 and 3", "2 and 3", "1 and 2", "1 and 3"], 1):
        seen.box("Components").select_option(label)
        page.wait_for_function(f"window.took.length >= {number}")
    return page.evaluate("window.took")


def hovers(page, seen):
    """Milliseconds from each mouse move that reaches another point to what is said of it."""
    page.evaluate(CLOCK, ["mousemove", ".tn-tip", {"childList": True, "subtree": True}])
    box = seen.picture.bounding_box()
    for place in range(MOVES):
        page.mouse.move(box["x"] + box["width"] * (0.2 + 0.5 * place / MOVES), box["y"] + box["height"] * 0.25)
    return page.evaluate("window.took")


def _row(what, took, bound="< 100 ms median"):
    ninth = f", {sorted(took)[int(0.9 * len(took))]:.0f} ms nine in ten" if len(took) >= 10 else ""
    return what, f"{statistics.median(took):.0f} ms median{ninth} ({len(took)} times)", bound
