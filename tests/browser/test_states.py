"""What becomes of an explorer in JupyterLab: its kernel restarts, it breaks, it is shown twice, it is saved."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.lab import CHROMIUM, SETUP, Seen, opened

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")

# Evidence of all languages but Japanese.
STALE = """
explorer = tn.explore_ablation(model, corpus, seeds=2)
evidence = explorer.chunks._evidence
def broken(language, *words):
    if language == "ja":
        raise tn.TnkitError("it is broken")
    return (yield from evidence(language, *words))
explorer.chunks._evidence = broken
explorer
"""


def test_a_restarted_kernel_is_told(lab, page):
    seen = opened(lab, page, "spaces")
    page.evaluate("void window.jupyterapp.commands.execute('notebook:restart-kernel')")  # it ends with the dialog
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    expect(seen.status()).to_contain_text("run this cell again", timeout=30_000)
    seen.slider("Layer").press("Home")
    expect(seen.canvas).to_have_attribute("data-layer", "0")  # what was computed can still be looked at


def test_what_still_shows_the_previous_choice_says_so(lab, page):
    seen = Seen(lab.open(page, "stale", [SETUP, STALE]), page)
    seen.check()
    seen.box("Language").select_option("ja")
    expect(seen.status().get_by_role("alert")).to_have_text("it is broken. Still showing the previous choice.")
    expect(seen.root.locator(".tn-stale .tn-headline")).to_contain_text("9 Type-1 neurons of Italian")
    seen.box("Language").select_option("it")
    seen.check()


def test_a_broken_explorer_is_caught(lab, page):
    broken = "explorer = tn.explore(model, corpus)\nexplorer.chunks._ribbon = lambda: 1 / 0\nexplorer"
    seen = Seen(lab.open(page, "broken", [SETUP, broken]), page)
    expect(seen.status().get_by_role("alert")).to_contain_text("unexpected ZeroDivisionError")
    expect(seen.canvas).to_have_attribute("data-drawn", "untouched")  # which does not wait for the ribbon
    expect(seen.root.locator(".tn-ribbon-legend b").first).to_have_text("…")
    with pytest.raises(AssertionError):
        seen.check(patience=2000)


def test_two_displays_and_two_explorers(lab, page):
    cells = [
        SETUP,
        "one = tn.explore(model, corpus, seeds=2)\none",
        "one",
        "tn.explore_ablation(model, corpus, seeds=2)",
    ]
    book = lab.open(page, "two", cells)
    apps = book.locator(".tn-app")
    expect(apps).to_have_count(3)
    apps.nth(0).get_by_role("tab", name="Neurons").click()
    expect(apps.nth(1).get_by_role("tab", name="Neurons")).to_have_attribute("aria-selected", "true")
    expect(apps.nth(2).get_by_role("tab", name="Evidence")).to_have_attribute("aria-selected", "true")
    for at in range(3):
        apps.nth(at).scroll_into_view_if_needed()
        expect(apps.nth(at)).to_have_attribute("data-state", "idle")
    expect(apps.nth(1).locator("tbody tr")).to_have_count(9)
    expect(apps.nth(2).locator(".tn-forest tbody tr")).to_have_count(9)
    apps.nth(0).get_by_role("slider", name="Layer").press("Home")  # a display that goes at once still tells the others
    page.evaluate(
        """() => {
            const { content } = window.jupyterapp.shell.currentWidget;
            content.activeCellIndex = 1;
            return window.jupyterapp.commands.execute('notebook:clear-cell-output');
        }"""
    )
    expect(apps).to_have_count(2)
    expect(apps.nth(0).get_by_role("slider", name="Layer")).to_have_attribute("aria-valuenow", "0")


def test_a_saved_notebook_shows_the_last_picture(lab, page):
    seen = opened(lab, page, "spaces", layer=1)
    expect(seen.book.locator(".jp-OutputArea-child img:visible")).to_have_count(0)  # it is for a saved notebook
    seen.slider("Layer").press("End")
    page.wait_for_timeout(2500)
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1500)
    (path,) = [path for path in lab.root.glob("spaces-*.ipynb") if path.name in page.url]
    outputs = json.loads(path.read_text())["cells"][1]["outputs"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    address = f"{lab.url}/lab/workspaces/again/tree/{path.name}?token={lab.token}&reset"
    page.goto(address)  # the kernel still runs, and the explorer comes back to life
    expect(Seen(page.locator(".jp-Notebook"), page).canvas).to_have_attribute("data-layer", "3")
    expect(page.locator(".jp-OutputArea-child img:visible")).to_have_count(0)
    lab.stop_kernels()
    page.goto(address)
    page.get_by_text("| Idle").first.wait_for()
    expect(page.locator(".jp-OutputArea-child img:visible")).to_have_count(1)
    expect(page.locator(".tn-app")).to_have_count(0)
    expect(page.get_by_text("Error displaying widget")).to_be_hidden()
