"""Every control of every view in JupyterLab, by mouse and keyboard."""

import csv
import io
import re

import numpy as np
import pytest
from playwright.sync_api import expect

import tnkit as tn
from tests.browser.lab import CHROMIUM, SETUP, VIEWS, Seen, faults, opened
from tnkit.explorers.chunks import unpacked_points
from tnkit.testing import tiny_corpus, tiny_model

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")

# Many sentences, so that a detection or a set takes seconds.
LARGE = """
import os, pandas, tempfile, time
from tnkit.explorers.study import Study
os.environ["TNKIT_CACHE"] = tempfile.mkdtemp()  # nothing has been read before
usual = Study.detecting
def detecting(self, *given):  # a detection that a hand can cancel
    for step in usual(self, *given):
        time.sleep(0.2 if self.reading["position"] == "mean" else 0)
        yield step
Study.detecting = detecting
rows = {"en": [f"I see {n} cats." for n in range(8000)], "it": [f"Vedo {n} gatti." for n in range(8000)]}
corpus = tn.load_corpus(pandas.DataFrame({**rows, "split": ["train", "test"] * 4000}))
explorer = tn.explore_spaces(model, corpus, sentences=4000)
explorer
"""


def drag(page, box, *shares):
    """Pull the mouse through points of a box, given as shares of its width and height."""
    for number, (x, y) in enumerate(shares):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
        if not number:
            page.mouse.down()
    page.mouse.up()


def places(layer, box):
    """Where the points of a layer are drawn, (language, sentence) → pixel of the page; by another route."""
    plane = tn.explore(tiny_model(), tiny_corpus()).chunks.now("plane")
    points = {code: unpacked_points(xy)[layer] / plane["spread"][layer] for code, xy in plane["points"].items()}
    sizes = np.sort(np.concatenate([np.abs(xy).max(axis=1) for xy in points.values()]))
    radius = min(1.12 * sizes[int(0.993 * (len(sizes) - 1))], 6)
    unit = (min(box["width"], box["height"] - 30) / 2 - 8) / radius
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + 24 + (box["height"] - 24) / 2])
    return {(code, n): middle + unit * row * (1, -1) for code, xy in points.items() for n, row in enumerate(xy)}


def test_the_map(lab, page, monkeypatch, tmp_path):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    seen = opened(lab, page, "spaces", layer=2)
    card = seen.root.get_by_role("complementary", name="Sentence")
    at, texts = places(2, seen.canvas.bounding_box()), tiny_corpus()["test"]
    alone = [key for key, xy in at.items() if sum(np.hypot(*(xy - other)) < 6 for other in at.values()) == 1][:8]
    assert len(alone) > 4
    for language, number in alone:
        page.mouse.move(*at[language, number])
        expect(card.locator("p").first).to_have_text(texts[language][number])
    page.mouse.click(*at[alone[0]])
    expect(card).to_contain_text("kept")
    seen.canvas.focus()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    expect(card).to_contain_text(texts["en"][0])
    page.keyboard.press("ArrowDown")
    expect(card.locator("p").first).to_have_text(texts["it"][0])
    for key in ("+", "-", "0", "Escape"):
        page.keyboard.press(key)
    expect(card).to_contain_text("One plane for each layer")
    for label in ("Zoom in", "Zoom out", "Fit"):
        seen.button(label).click()
    seen.button("Fit").focus()
    for key in ("b", "x", "d", "d"):  # which add, cut and delete a cell where the notebook hears them
        page.keyboard.press(key)
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(2)
    for label, drawn in (("set off", "untouched set"), ("control off", "untouched set control")):
        seen.button(label).click()
        expect(seen.canvas).to_have_attribute("data-drawn", drawn)
    seen.button("untouched").press("Enter")
    expect(seen.canvas).to_have_attribute("data-drawn", "set control")
    seen.button("morph").click()
    seen.slider("From untouched to the set off").press("Home")
    for colour in ("last token", "length", "language"):
        seen.box("Colour").select_option(colour)
    seen.root.get_by_role("button", name="Japanese", exact=True).click()
    seen.check()
    rows = list(csv.DictReader(io.StringIO(seen.saved("CSV").decode("utf-8-sig"))))
    assert {row["language"] for row in rows} == {"en", "it"} and {row["condition"] for row in rows} == {"set off"}
    assert seen.saved("Save picture").startswith(b"\x89PNG")


def test_the_ribbon_and_the_header(lab, page):
    seen = opened(lab, page, "spaces", layer=2)
    ribbon = seen.slider("Layer")
    for key, layer in (("Home", 0), ("ArrowRight", 1), ("End", 3), ("PageDown", 0)):
        ribbon.press(key)
        expect(seen.canvas).to_have_attribute("data-layer", str(layer))
    drag(page, ribbon.bounding_box(), (0.1, 0.5), (0.6, 0.5))
    expect(ribbon).to_have_attribute("aria-valuenow", "2")
    seen.button("Undo").click()
    expect(ribbon).to_have_attribute("aria-valuenow", "0")
    seen.root.get_by_role("button", name="Play through the layers").click()
    expect(ribbon).to_have_attribute("aria-valuenow", "3")
    seen.view("Evidence")
    for label, value in (("Language", "ja"), ("Type", "type2"), ("Neurons", "10"), ("Control", "uniform")):
        seen.box(label).select_option(value)
    seen.box("Set to").select_option("mean of Japanese")
    seen.check()
    seen.button("Copy as code").click()
    expect(seen.root).to_have_attribute("data-code", re.compile("tn.explore"))
    code = seen.root.get_attribute("data-code").splitlines()[-1]
    assert 'view="evidence"' in code and 'value="mean of Japanese"' in code and "size=10" in code
    explorer = eval(code.replace("model, corpus", "tiny_model(), tiny_corpus()"))
    assert explorer.state["kind"] == "type2" and explorer.state["control"] == "uniform"
    seen.button("Reset").click()
    expect(seen.box("Type")).to_have_value("type1")
    expect(ribbon).to_have_attribute("aria-valuenow", "2")


def test_neurons(lab, page):
    seen = opened(lab, page, "neurons")
    rows, card = seen.root.locator("tbody tr"), seen.root.get_by_role("complementary", name="Neuron")
    table = seen.root.get_by_role("grid")
    expect(table).to_have_accessible_name("Type-1 neurons of Italian")
    rows.nth(2).click()
    layer, neuron = (rows.nth(2).locator("td").nth(at).inner_text() for at in (2, 3))
    expect(card).to_contain_text(f"Layer {layer}, neuron {neuron}")
    page.keyboard.press("ArrowDown")
    expect(rows.nth(3)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    expect(rows.last).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Space")
    expect(rows.last.get_by_role("checkbox")).to_be_checked()
    ranks = rows.locator("td:nth-child(2)")
    table.get_by_role("button", name="score").click()
    expect(ranks.first).to_have_text("1")
    table.get_by_role("button", name="score").press("Enter")
    expect(ranks.first).to_have_text("9")
    for label in ("not shared", "constant", "constant", "last character", "last character", "massive", "massive"):
        seen.button(label).click()
    seen.button("not shared").press("Enter")
    seen.root.get_by_role("button", name=re.compile("layer . only")).click()
    seen.root.get_by_role("button", name=re.compile("layer . only")).click()
    seen.root.get_by_placeholder("Filter").fill(f"{layer}:{neuron}")
    expect(rows).to_have_count(1)
    seen.root.get_by_placeholder("Filter").fill("")
    reads_its_own_text(seen, page, table, card)
    seen.box("Language").select_option("ja")
    expect(table).to_have_accessible_name("Type-1 neurons of Japanese")
    seen.button("Clear").click()
    for at in (1, 4):
        rows.nth(at).get_by_role("checkbox").check()
    named = [":".join(rows.nth(at).locator("td").nth(cell).inner_text() for cell in (2, 3)) for at in (1, 4)]
    seen.button("Switch these 2 off").click()
    expect(seen.root.locator(".tn-headline")).to_contain_text("2 Type-1 neurons of Japanese")
    seen.check()
    expect(seen.box("Neurons")).to_have_value(",".join(named))


def reads_its_own_text(seen, page, table, card):
    """The text is read by a button or by Control and Enter, sorts the table, and is cleared."""
    area = seen.root.get_by_label("Your own text")
    area.fill("Il gatto <b>dorme</b>")
    seen.button("Read").click()
    expect(card.locator(".tn-own-strip")).to_have_text(re.compile(r"Il gatto <b>dorme</b>$"))
    table.get_by_role("button", name="your text").click()
    values = [
        abs(float(text.replace("−", "-"))) for text in seen.root.locator("tbody td:nth-child(6)").all_inner_texts()
    ]
    assert len(values) == 9 and values == sorted(values, reverse=True) and values[0] > 0
    area.fill("猫")
    page.keyboard.press("Control+Enter")
    expect(card.locator(".tn-own-strip")).to_have_text(re.compile("猫$|\ufffd"))
    seen.button("Clear text").click()
    expect(card.locator(".tn-own-strip")).to_have_count(0)
    table.get_by_role("button", name="#").click()
    seen.check()


def test_a_circle_on_the_map_is_scored_against(lab, page):
    seen = opened(lab, page, "spaces", language="ja")
    seen.button("Lasso").click()
    drag(page, seen.canvas.bounding_box(), (0.1, 0.1), (0.9, 0.1), (0.9, 0.95), (0.1, 0.95))
    seen.button("Which neurons move Japanese here?").click()
    group = seen.root.locator(".tn-group")
    expect(group).to_contain_text("Neurons that move Japanese most towards the mean of the circled test sentences")
    expect(seen.root.locator("tbody tr")).to_have_count(9)
    seen.check()
    seen.button("Switch all of them off").click()
    expect(seen.root.locator(".tn-headline")).to_contain_text("9 Type-1 neurons of Japanese")
    seen.check()
    seen.view("Map")
    seen.button("set off").click()
    expect(seen.canvas).to_have_attribute("data-drawn", "untouched set")
    seen.view("Neurons")
    seen.button("Back to the Type-1 set").press("Enter")
    expect(group).to_be_hidden()
    seen.check()


def test_evidence_and_continuations(lab, page):
    seen = opened(lab, page, "ablation", language="ja")
    head, forest = seen.root.locator(".tn-headline"), seen.root.locator(".tn-forest")
    expect(head).to_contain_text("9 Type-1 neurons of Japanese")
    seen.root.get_by_role("button", name="mutual").click()
    expect(forest.locator("h3")).to_contain_text("mutual")
    seen.root.get_by_role("button", name="of the ribbon").press("Enter")
    expect(seen.root.locator(".tn-note")).to_contain_text("chosen by looking")
    seen.box("Changed at").select_option("every token")
    expect(seen.root.locator(".tn-note")).to_contain_text("every token is changed")
    prompt, said = seen.root.get_by_label("Prompt", exact=True), seen.root.locator(".tn-said")
    expect(prompt).to_have_value(re.compile("."))
    prompt.fill("")
    seen.button("Continue").click()
    expect(said.get_by_role("alert")).to_contain_text("The prompt is empty")
    prompt.fill("猫が<b>")
    page.keyboard.press("Control+Enter")
    texts = said.locator(".tn-text")
    expect(texts).to_have_count(3)
    assert all(text.startswith("猫が<b>") for text in texts.all_inner_texts())
    expect(said).to_contain_text("9 Type-1 neurons of Japanese off at every token; control: same layers and norms")
    seen.box("Set to").select_option("mean of Japanese")
    expect(said).to_contain_text("at mean of Japanese at every token")
    seen.box("Control").select_option("uniform")
    expect(said.locator("tr").last).to_contain_text("uniform")
    seen.button("with a language added").click()
    expect(texts).to_have_count(4)
    seen.box("Take away").select_option("Japanese")
    seen.box("Add").select_option("Japanese")
    expect(seen.status().get_by_role("alert")).to_contain_text("Japanese is both taken away and added")
    seen.box("Add").select_option("Italian")
    expect(said).to_contain_text("those of Japanese × 0.00")
    seen.slider("Strength").press("End")
    expect(said).to_contain_text("+ 4.00 ×")
    seen.slider("Strength").press("Home")
    expect(said).to_contain_text("+ 0.00 ×")
    drag(page, seen.slider("Strength").bounding_box(), (0.02, 0.5), (0.5, 0.5))
    expect(said).to_contain_text(re.compile(r"\+ (1\.75|2\.00|2\.25) ×"))
    seen.check()
    seen.box("Type").select_option("Type-2")
    seen.root.get_by_role("button", name="nats per token, Japanese").click()
    expect(forest.locator("h3")).to_contain_text("nats per token, Japanese")
    seen.check()
    assert b"nats per token, English" in seen.saved("CSV")


def test_detection(lab, page):
    seen = opened(lab, page, "detection")
    form, card = seen.root.get_by_label("Find neurons"), seen.root.get_by_role("complementary", name="Detection")
    expect(card).to_contain_text("raw, cosine distance")
    form.get_by_label("Score").select_option("centred")
    form.get_by_label("Hub").select_option("Italian")
    for size, said in (("99999", "top 99999 was asked for"), ("", "top=0 must be at least 1")):
        form.get_by_label("Top").fill(size)
        seen.button("Run").click()
        expect(seen.status().get_by_role("alert")).to_contain_text(said)
        expect(form.get_by_label("Top")).to_have_value(size)
    form.get_by_label("Top").fill("12")
    form.get_by_label("Token").select_option("last word")
    form.get_by_label("Layers").select_option("from … to …")
    seen.box("from").select_option("1")
    seen.box("to").select_option("2")
    form.get_by_role("button", name="English").click()
    seen.button("Run").press("Enter")
    seen.check()
    expect(card).to_contain_text("centred, cosine distance")
    expect(card).to_contain_text("layers 1 to 2")
    expect(seen.root.locator(".tn-tile")).to_have_count(2)
    expect(seen.root.locator(".tn-brand")).to_contain_text("Italian as hub  ·  last word  ·  centred cosine scores")
    seen.check()
    seen.button("Save results").click()
    expect(seen.status()).to_contain_text("saved detections/ja-type1")
    found = tn.Detection.load(lab.root / "detections" / "ja-type1")
    assert (len(found.neurons), found.scores.score, found.scores.layers) == (12, "centred", [1, 2])
    form.get_by_label("Distance").select_option("euclidean")
    seen.button("Run").click()
    expect(seen.status().get_by_role("alert")).to_contain_text("euclidean")
    form.get_by_label("Score").select_option("raw")
    seen.button("Run").click()
    expect(card).to_contain_text("raw, euclidean distance")
    seen.root.locator(".tn-tile").last.press("Enter")
    expect(card).to_contain_text("Type-2 neurons of Japanese")
    form.get_by_label("Model").fill("nobody/nothing")
    page.keyboard.press("Tab")
    seen.button("Run").click()
    expect(seen.status().get_by_role("alert")).to_contain_text("unknown model 'nobody/nothing'")
    expect(seen.button("Run")).to_be_enabled()


def test_work_is_cancelled_and_begun_again(lab, page):
    seen = Seen(lab.open(page, "cancelling", [SETUP, LARGE]), page)
    seen.check()
    seen.view("Detection")
    seen.box("Token").select_option("mean")
    seen.button("Run").click()
    expect(seen.root.get_by_role("progressbar")).to_be_visible()
    expect(seen.status()).to_contain_text("of 8000 sentences")
    seen.button("Cancel").hover()
    page.mouse.down()
    page.wait_for_timeout(300)  # as a hand does: messages come meanwhile, and must not replace the button
    page.mouse.up()
    expect(seen.button("Run")).to_be_enabled()
    expect(seen.root.locator(".tn-brand")).to_contain_text("last token")
    seen.check()
    seen.view("Evidence")
    expect(seen.root).to_have_attribute("data-state", "computing")
    seen.button("Cancel").click()
    expect(seen.status()).to_contain_text("Cancelled.")
    seen.slider("Layer").press("Home")
    expect(seen.root).to_have_attribute("data-state", "error")  # it is not begun again by itself
    seen.button("Try again").click()
    expect(seen.root).to_have_attribute("data-state", "computing")
    seen.view("Map")
    seen.check()


def test_it_follows_the_theme_and_violates_no_accessibility(lab, page):
    seen = opened(lab, page, "spaces", prompt="I see")
    for theme in ("Dark", "Light"):
        page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        expect(seen.root).to_have_attribute("data-theme", theme.lower())
        for name in VIEWS:
            seen.view(name)
            seen.check()
            assert faults(page) == [], f"{name}, {theme}"


def test_a_request_to_another_host_is_caught(lab, browser):
    lab.open(
        browser.page, "foreign", ["from IPython.display import HTML\nHTML('<img src=\"https://example.com/x.png\">')"]
    )
    expect(browser.page.locator("img[src='https://example.com/x.png']")).to_have_count(1)
    assert set(browser.foreign) == {"https://example.com/x.png"}  # JupyterLab may draw an output twice
