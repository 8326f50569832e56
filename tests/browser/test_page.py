"""The exported page by file:// with the network off."""

import pytest
from playwright.sync_api import expect

import tnkit as tn
from tests.browser.lab import CHROMIUM, VIEWS, faults
from tnkit.testing import tiny_corpus, tiny_model

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of the tiny model."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNKIT_CACHE", str(folder / "cache"))
        return tn.explore(tiny_model(), tiny_corpus(), seeds=2).export(folder / "page.html", progress=False)


@pytest.fixture
def offline(browser, written):
    """The page, opened without a network; nothing went wrong in its console."""
    context = browser.page.context.browser.new_context(viewport={"width": 1360, "height": 1000})
    context.set_offline(True)
    page = context.new_page()
    said = []
    page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(written.as_uri())
    expect(page.locator("canvas[data-drawn]")).to_have_count(1)
    yield page
    assert said == []
    context.close()


def tab(page, name):
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def test_layers_by_mouse_and_keyboard(offline):
    ribbon, canvas = offline.get_by_role("slider", name="Layer"), offline.locator("canvas")
    ribbon.focus()
    offline.keyboard.press("Home")
    expect(canvas).to_have_attribute("data-layer", "0")
    offline.keyboard.press("ArrowRight")
    expect(ribbon).to_have_attribute(
        "aria-valuetext", "layer 1: 7 % of Italian translations found, mean-centred; 0 % raw"
    )
    box = ribbon.bounding_box()
    offline.mouse.move(box["x"] + 60, box["y"] + 60)
    offline.mouse.down()
    offline.mouse.move(box["x"] + box["width"] - 30, box["y"] + 60, steps=8)
    offline.mouse.up()
    expect(canvas).to_have_attribute("data-layer", "3")
    offline.get_by_role("button", name="Undo").click()
    expect(canvas).to_have_attribute("data-layer", "1")
    assert float(canvas.get_attribute("data-step")) < 16


def test_the_map(offline):
    card, canvas = offline.get_by_role("complementary", name="Sentence"), offline.locator("canvas")
    offline.get_by_role("button", name="control off").click()
    expect(canvas).to_have_attribute("data-drawn", "untouched set control")
    texts = tiny_corpus()["test"]
    offline.get_by_placeholder("Search").fill(texts["it"][3].upper())
    expect(offline.get_by_text("1 of 15 sentences")).to_be_visible()
    offline.get_by_placeholder("Search").fill("")
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown"):
        offline.keyboard.press(key)
    for language in ("en", "it", "ja"):
        expect(card).to_contain_text(texts[language][0])
    offline.keyboard.press("Escape")
    box = canvas.bounding_box()
    offline.get_by_role("button", name="Lasso").click()
    for at, (x, y) in enumerate([(0.02, 0.1), (0.3, 0.1), (0.3, 0.95), (0.02, 0.95)]):
        offline.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if not at:
            offline.mouse.down()
    offline.mouse.up()
    expect(card).to_contain_text("In the lasso")
    offline.get_by_role("button", name="morph").click()
    offline.get_by_role("slider", name="From untouched").press("Home")
    offline.get_by_label("Colour").select_option("last token")
    offline.get_by_role("button", name="Japanese", exact=True).click()
    assert offline.evaluate("document.querySelector('.tn-app').scrollWidth <= innerWidth")


def test_neurons_evidence_and_detection(offline):
    tab(offline, "Neurons")
    rows, card = offline.locator("tbody tr"), offline.get_by_role("complementary", name="Neuron")
    expect(rows).to_have_count(9)
    offline.get_by_role("button", name="layer", exact=True).click()
    rows.nth(0).click()
    offline.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_have_attribute("aria-selected", "true")
    expect(card).to_contain_text(f"neuron {rows.nth(1).locator('td').nth(3).inner_text()}")
    expect(card.locator(".tn-token").first).to_be_visible()
    offline.keyboard.press("Space")
    expect(offline.get_by_role("button", name="Switch these 1 off")).to_be_disabled()
    tab(offline, "Evidence")
    expect(offline.locator(".tn-forest tbody tr")).to_have_count(9)
    expect(offline.locator(".tn-note")).to_contain_text("n = 15")
    offline.get_by_label("Type").select_option("Type-2")
    expect(offline.locator(".tn-forest h3")).to_contain_text("nats per token, Italian")
    with offline.expect_download() as download:
        offline.get_by_role("button", name="CSV").click()
    assert "the set" in download.value.path().read_text(encoding="utf-8-sig")
    tab(offline, "Detection")
    offline.get_by_role("button", name="Japanese").first.press("Enter")
    expect(offline.get_by_role("complementary", name="Detection")).to_contain_text("Type-1 neurons of Japanese")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 600, 1360, 1600])
def test_no_view_is_cut_or_violates_accessibility(offline, width, scheme):
    offline.set_viewport_size({"width": width, "height": 900})
    offline.emulate_media(color_scheme=scheme)
    expect(offline.locator(".tn-app")).to_have_attribute("data-theme", scheme)
    for name in VIEWS:
        tab(offline, name)
        offline.wait_for_timeout(100)
        assert offline.evaluate("document.documentElement.scrollWidth") <= width
        assert faults(offline, None) == [], name


def test_a_violation_and_a_cut_column_are_noticed(offline):
    offline.add_style_tag(content=".tn-app .tn-soft { color: #dddddd } .tn-ribbon { width: 2000px }")
    said = faults(offline, None)
    assert any(one.startswith("color-contrast") for one in said) and any("tn-ribbon" in one for one in said)
