"""The map and the evidence in Notebook 7 and in Voila, whose pages JupyterLab's server gives out too."""

import pytest
from playwright.sync_api import expect

from tests.browser.lab import CHROMIUM, VIEWS, Seen, faults

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")

CELLS = [
    "import tnkit as tn\nfrom tnkit.testing import tiny_corpus, tiny_model",
    "explorer = tn.explore_spaces(tiny_model(), tiny_corpus(), seeds=2, layer=2)\nexplorer",
]
# What Voila's page asks for, whatever a notebook shows.
OF_VOILA = ("fontawesome-free", "mathjax")


@pytest.mark.parametrize("place", ["notebook7", "voila"])
def test_the_map_and_the_evidence(lab, browser, place):
    page = browser.page
    browser.foreign.clear()
    errors = []
    page.on("pageerror", lambda error: "reading 'schema'" in str(error) or errors.append(str(error)))  # Notebook's own
    seen = Seen(getattr(lab, place)(page, place, CELLS), page)
    seen.check()
    expect(seen.canvas).to_have_attribute("data-layer", "2")
    ribbon = seen.slider("Layer")
    for key, layer in (("End", 3), ("ArrowLeft", 2), ("Home", 0)):
        ribbon.press(key)
        expect(seen.canvas).to_have_attribute("data-layer", str(layer))
    seen.button("set off").click()
    expect(seen.canvas).to_have_attribute("data-drawn", "untouched set")
    seen.view("Evidence")
    seen.check()
    expect(seen.root.locator(".tn-forest tbody tr")).to_have_count(9)
    expect(seen.root.locator(".tn-headline")).to_contain_text("9 Type-1 neurons of Italian")
    expect(seen.book.locator("img:visible")).to_have_count(0)
    assert errors == []
    assert [url for url in browser.foreign if place == "notebook7" or not any(name in url for name in OF_VOILA)] == []


def test_no_view_is_cut_or_violates_accessibility_with_a_kernel(lab, browser):
    """In Voila, whose page is as narrow as the window."""
    page = browser.page
    seen = Seen(lab.voila(page, "narrow", [CELLS[0], CELLS[1].replace("seeds=2", "seeds=2, prompt='I see'")]), page)
    for width in (390, 600):
        page.set_viewport_size({"width": width, "height": 900})
        for name in VIEWS:
            seen.view(name)
            seen.check()
            assert faults(page) == [], f"{name}, {width} pixels"
