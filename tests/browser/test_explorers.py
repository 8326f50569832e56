"""Every control of every explorer, used as a person would: the picture changes, the right thing is said, files come."""

import json
import re
from contextlib import contextmanager

import pytest
from PIL import Image
from playwright.sync_api import expect

import tnkit as tn
from tests.browser.lab import CHROMIUM, Seen
from tnkit import plots
from tnkit.testing import tiny_corpus

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")

SETUP = """
import tnkit as tn
from tnkit.testing import tiny_corpus, tiny_model
model, corpus = tiny_model(), tiny_corpus()
"""
# What the kernel says of the first picture, for the test to compare with what the browser shows.
POINTS = """
import json, pathlib, numpy
picture = explorer.picture
told = {"points": numpy.frombuffer(picture.points, "<f4").reshape(-1, 2).tolist(), "labels": picture.labels,
        "ids": numpy.frombuffer(picture.ids, "<i4").tolist()}
_ = pathlib.Path("told.json").write_text(json.dumps(told))
"""


def opened(lab, page, name, *more):
    """An explorer of the tiny model, just opened."""
    call = f"explorer = tn.explore_{name}(model, corpus)\nexplorer"
    seen = Seen(lab.open(page, name, [SETUP, call, *more]), page)
    seen.check()
    return seen


@contextmanager
def saved(lab, seen):
    """Pictures that "Save picture" writes, with what their metadata say."""
    before = set((lab.root / "figures").glob("*"))
    seen.button("Save picture").click()
    expect(seen.status()).to_contain_text("saved figures/")
    new = sorted(set((lab.root / "figures").glob("*")) - before)
    assert [path.suffix for path in new] == [".png", ".svg"]
    with Image.open(new[0]) as image:
        about = json.loads(image.text["Description"])
    assert json.dumps(about["controls"], ensure_ascii=False)[1:-1] in new[1].read_text().replace("&quot;", '"')
    yield about["controls"]


def drag(page, handle, by):
    """Pull a slider's handle sideways with the mouse."""
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=6)
    page.mouse.up()


def test_spaces(lab, page):
    seen = opened(lab, page, "spaces", POINTS)
    layer = seen.slider("Layer")
    told = json.loads((lab.root / "told.json").read_text())
    hovers_over_the_right_points(seen, page, told)
    goes_from_point_to_point_by_keyboard(seen, page, told)

    with seen.redrawn():
        layer.press("ArrowRight")
    with seen.redrawn():
        layer.press("Home")
    with seen.redrawn():
        drag(page, layer, 80)
    with seen.redrawn():
        layer.press("Home")
    with seen.redrawn():
        seen.button("Play or pause").click()
    expect(layer).to_have_attribute("aria-valuenow", "3.0")
    for off in ("Type-1", "Type-2", "Type-1 control: uniform", "Type-2 control: same layers and norms"):
        with seen.redrawn():
            seen.box("Neurons off").select_option(off)
    with seen.redrawn():
        seen.box("Components").select_option("2 and 3")
    with seen.redrawn():
        seen.root.get_by_label("Lines between translations").check()
    with seen.redrawn():
        seen.root.get_by_label("Italian").uncheck()
    seen.root.get_by_label("Japanese").press("Space")
    expect(seen.root.get_by_role("alert")).to_contain_text("select at least two languages")
    seen.root.get_by_label("Japanese").press("Space")
    expect(seen.root.get_by_role("alert")).to_have_count(0)
    seen.check()
    with saved(lab, seen) as about:
        assert about["languages"] == ["en", "ja"]
        assert about["layer"] == 3
        assert about["neurons off"] == "Type-2 control: same layers and norms"
        assert about["lines between translations"]


def hovers_over_the_right_points(seen, page, told):
    """Ten points that stand alone: the tip says what the kernel says of that point, which is its own sentence."""
    frame = seen.picture.bounding_box()
    at = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in told["points"]]
    alone = [n for n, (x, y) in enumerate(at) if sum(abs(x - u) + abs(y - v) < 24 for u, v in at) == 1][:10]
    assert len(alone) == 10
    tip = seen.root.get_by_role("tooltip")
    for place in alone:
        page.mouse.move(*at[place])
        expect(tip).to_have_text(told["labels"][told["ids"][place]])
    texts = tiny_corpus()["test"]
    assert told["labels"] == [
        f"{plots.language_name(language)}: {text}" for language in ("en", "it", "ja") for text in texts[language]
    ]
    page.mouse.click(*at[alone[0]])
    expect(seen.root.locator(".tn-picture line")).to_have_count(2)  # to its translations
    expect(tip.locator("div")).to_have_count(3)
    page.mouse.click(*at[alone[0]])
    expect(seen.root.locator(".tn-picture line")).to_have_count(0)
    page.mouse.move(frame["x"] + 2, frame["y"] + 2)
    expect(tip).to_be_hidden()


def goes_from_point_to_point_by_keyboard(seen, page, told):
    """Tab to the picture, arrow keys, Enter, Escape."""
    points, tip = seen.root.locator(".tn-picture"), seen.root.get_by_role("tooltip")
    seen.root.get_by_label("Japanese").focus()
    page.keyboard.press("Tab")
    expect(points).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(tip).to_have_text(told["labels"][told["ids"][0]])
    page.keyboard.press("ArrowDown")
    expect(tip).to_have_text(told["labels"][told["ids"][1]])
    page.keyboard.press("Enter")
    expect(seen.root.locator(".tn-picture line")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_neurons(lab, page):
    seen = opened(lab, page, "neurons")
    rows, card = seen.root.locator("tbody tr"), seen.root.locator(".tn-sentences")
    table = seen.root.get_by_role("grid")
    expect(table).to_have_accessible_name("Type-1 neurons of Italian")
    with seen.redrawn():
        rows.nth(2).click()
    layer, neuron = (rows.nth(2).locator("td").nth(n).inner_text() for n in (1, 2))
    expect(card).to_contain_text(f"Layer {layer}, neuron {neuron}")
    expect(card.locator("mark").first).to_be_visible()
    with seen.redrawn():
        page.keyboard.press("ArrowDown")
    expect(rows.nth(3)).to_have_attribute("aria-selected", "true")
    with seen.redrawn():
        page.keyboard.press("End")
    ranks = rows.locator("td:first-child")
    table.get_by_role("button", name="score").click()
    expect(ranks.first).to_have_text("9")
    table.get_by_role("button", name="score").press("Enter")
    expect(ranks.first).to_have_text("1")
    with seen.redrawn():
        seen.root.get_by_label("Neuron", exact=True).fill("17")
        page.keyboard.press("Enter")
    expect(card).to_contain_text("neuron 17")
    with seen.redrawn():
        seen.root.get_by_label("Layer", exact=True).fill("3")
        page.keyboard.press("Enter")
    with seen.redrawn():
        seen.box("Language").select_option("Japanese")
    expect(table).to_have_accessible_name("Type-1 neurons of Japanese")
    with seen.redrawn():
        seen.box("Compare with").select_option("Italian")
    with seen.redrawn():
        seen.box("Type").select_option("Type-2")
    with saved(lab, seen) as about:
        assert (about["language"], about["beside"], about["type"]) == ("ja", "it", "Type-2")


def test_ablation(lab, page):
    seen = opened(lab, page, "ablation")
    summary = seen.root.locator(".tn-numbers")
    expect(summary).to_contain_text("retrieval@1")
    with seen.redrawn():
        seen.slider("Neurons off").press("End")
    with seen.redrawn():
        drag(page, seen.slider("Neurons off"), -60)
    with seen.redrawn():
        seen.box("Type").select_option("Type-2")
    with seen.redrawn():
        seen.box("Language").select_option("Japanese")
    with seen.redrawn():
        seen.box("Control").select_option("Italian Type-2")
    expect(summary).to_contain_text("control off: Italian Type-2")
    with seen.redrawn():
        seen.box("Ablate at").select_option("all tokens")
    seen.root.get_by_label("Prompt").fill("")
    seen.button("Continue").press("Enter")
    expect(seen.root.get_by_role("alert")).to_contain_text("the prompt is empty")
    seen.root.get_by_label("Prompt").fill("猫が<b>")
    seen.button("Continue").click()
    expect(seen.root.locator(".tn-words p")).to_have_count(2)
    for text in seen.root.locator(".tn-words p").all_inner_texts():
        assert text.startswith("猫が<b>")
    expect(seen.root.locator(".tn-words h4").first).to_contain_text("before")
    seen.check()
    with saved(lab, seen) as about:
        assert about["control"] == "Italian Type-2"
        assert about["off at"] == "all tokens"


LARGE = """
import pandas
rows = {"en": [f"I see {n} cats." for n in range(1500)], "it": [f"Vedo {n} gatti." for n in range(1500)]}
corpus = tn.load_corpus(pandas.DataFrame({**rows, "split": ["train", "test"] + ["train"] * 1498}))
some = tn.detect_all(model, {name: texts[:20] for name, texts in corpus["train"].items()}, top=9, progress=False)
explorer = tn.explore_detection(model, corpus, found=some)
explorer
"""


def test_detection(lab, page):
    seen = opened(lab, page, "detection")
    run, stop = seen.button("Run"), seen.button("Stop")
    with seen.redrawn():
        seen.box("Show").select_option("Italian Type-2")
    seen.root.get_by_label("Japanese").check()
    seen.box("Distance").select_option("euclidean")
    seen.root.get_by_label("Top").fill("12")
    page.keyboard.press("Enter")
    with seen.redrawn():
        run.click()
    listed = seen.root.locator(".tn-sentences")
    expect(listed).to_contain_text("Japanese Type-2")
    expect(listed).not_to_contain_text("cosine")
    expect(seen.status()).to_contain_text("done")
    expect(stop).to_be_disabled()
    seen.box("Type").select_option("Type-1")
    seen.root.get_by_label("Each type's default layers").uncheck()
    readout = seen.root.locator(".widget-hslider .widget-readout")
    expect(seen.root.locator(".widget-hslider .noUi-target[disabled]")).to_have_count(0)
    seen.slider("Layers, to").press("ArrowLeft")
    expect(readout).to_have_text(re.compile("^0.*2$"))
    drag(page, seen.slider("Layers, from"), 70)
    expect(readout).to_have_text(re.compile("^1.*2$"))
    run.press("Enter")
    expect(listed).to_contain_text(re.compile("Italian Type-1.*1 to 2"))
    with seen.redrawn():
        seen.box("Show").select_option("Japanese Type-1")
    seen.button("Save results").click()
    expect(seen.status()).to_contain_text("saved detections/it-type1")
    found = tn.Detection.load(lab.root / "detections" / "ja-type1")
    assert (len(found.neurons), found.scores.distance, found.scores.layers) == (12, "euclidean", [1, 2])
    with saved(lab, seen) as about:
        assert about == {
            "language": "ja",
            "type": "Type-1",
            "distance": "euclidean",
            "score": "raw",
            "position": "last",
            "top": 12,
        }
    seen.box("Model").fill("nobody/nothing")
    page.keyboard.press("Enter")
    run.click()
    expect(seen.root.get_by_role("alert")).to_contain_text("unknown model 'nobody/nothing'")
    expect(run).to_be_enabled()


def test_a_detection_is_stopped(lab, page):
    seen = Seen(lab.open(page, "stopping", [SETUP, LARGE]), page)
    seen.button("Run").click()
    expect(seen.status()).to_contain_text("of 2998 sentences")
    seen.button("Stop").click()
    expect(seen.status()).to_contain_text("stopped; finished results are kept")
    expect(seen.button("Run")).to_be_enabled()
    seen.check()


BROKEN = """
explorer = tn.explore_spaces(model, corpus)
explorer._frames.clear()
explorer._draw = None
explorer
"""


def test_a_broken_explorer_is_caught(lab, page):
    seen = Seen(lab.open(page, "broken", [SETUP, BROKEN]), page)
    seen.slider("Layer").press("Home")
    expect(seen.root.get_by_role("alert")).to_contain_text("unexpected TypeError")
    with pytest.raises(AssertionError):
        seen.check(patience=2000)


def test_a_request_to_another_host_is_caught(lab, browser):
    lab.open(
        browser.page, "foreign", ["from IPython.display import HTML\nHTML('<img src=\"https://example.com/x.png\">')"]
    )
    expect(browser.page.locator("img[src='https://example.com/x.png']")).to_have_count(1)
    assert browser.foreign == ["https://example.com/x.png"]
