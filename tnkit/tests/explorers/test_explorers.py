"""Explorers without a browser: what they show, that only what is wanted is drawn, and that nothing is lost."""

import asyncio
import base64
import copy
import gc
import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import tnkit as tn
from tnkit.explorers.study import OFFS, Study
from tnkit.measures.specificity.table import MEASUREMENTS
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_corpus, tiny_model, tiny_module
from tnkit.tests.oracle import assert_near

ALL = ("spaces", "neurons", "ablation", "detection")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def explore(cache):  # noqa: ARG001
    """A function that opens an explorer of the tiny model."""
    return lambda name, **options: getattr(tn, f"explore_{name}")(tiny_model(), tiny_corpus(), **options)


def moved(explorer):
    """The control of each explorer that a slider or a row turns."""
    if explorer.name == "neurons":
        explorer.table.chosen = 3
    elif explorer.name == "detection":
        explorer.view.index = 1
    else:
        slider = explorer.layer if explorer.name == "spaces" else explorer.count
        slider.index = (slider.index + 1) % len(slider.options)


@pytest.mark.parametrize("name", ALL)
def test_it_opens_with_a_picture_and_redraws_when_a_control_moves(explore, name):
    explorer = explore(name)
    assert explorer.picture.png.startswith(b"\x89PNG")
    assert explorer.picture.drawn == 1
    assert explorer.picture.alt
    before = explorer.picture.png
    moved(explorer)
    assert explorer.picture.drawn == 2
    assert explorer.picture.png != before
    assert explorer.errors == []


@pytest.mark.parametrize("name", ALL)
def test_what_is_shown_is_saved_with_its_parameters(explore, name, tmp_path):
    explorer = explore(name, folder="here")
    png, svg = explorer.save()
    assert png.parent.name == svg.parent.name == "here"
    with Image.open(png) as image:
        about = json.loads(image.text["Description"])
    assert about["explorer"] == name
    assert about["controls"] == json.loads(json.dumps(explorer.parameters()["controls"]))
    assert "weights" in json.dumps(about["provenance"])
    assert about["versions"]["tnkit"] == tn.__version__
    assert '"explorer"' in svg.read_text().replace("&quot;", '"')
    assert explorer.save(tmp_path / "there")[0].read_bytes() == png.read_bytes()


@pytest.mark.parametrize("name", ALL)
def test_a_still_picture_stands_beside_the_widget(explore, name):
    explorer = explore(name)
    bundle = explorer._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(bundle["image/png"]) == explorer.picture.png
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_points_are_where_matplotlib_draws_them(explore):
    explorer = explore("spaces")
    figure = explorer.figure()
    figure.draw_without_rendering()
    plane = figure.axes[0]
    drawn = np.concatenate([part.get_offsets() for part in plane.collections])
    pixels = plane.transData.transform(drawn) / figure.bbox.size
    points = np.frombuffer(explorer.picture.points, "<f4").reshape(-1, 2)
    assert np.allclose(points, np.column_stack([pixels[:, 0], 1 - pixels[:, 1]]), atol=1e-5)
    ids = np.frombuffer(explorer.picture.ids, "<i4")
    assert ids.tolist() == list(range(45))
    texts = tiny_corpus()["test"]
    assert explorer.picture.labels[ids[20]] == f"Italian: {texts['it'][5]}"
    explorer.shown["en"].value = False
    ids = np.frombuffer(explorer.picture.ids, "<i4")
    assert explorer.picture.labels[ids[0]] == f"Italian: {texts['it'][0]}"
    assert {int(one) % explorer.picture.aligned for one in ids} == set(range(15))


@pytest.mark.parametrize("off", OFFS[1:])
def test_spaces_with_neurons_off_are_those_that_an_ablation_gives(explore, off):
    explorer = explore("spaces")
    explorer.off.value = off
    assert explorer.errors == []
    name, _, control = off.partition(" control: ")
    found = tn.detect(
        tiny_model(), tiny_corpus(), language="it", kind="type" + name[-1], top=explorer.study.top, progress=False
    )
    neurons = found.neurons
    if control:
        drawn = explorer.study.controls("it", found.kind)[control]
        neurons = drawn if isinstance(drawn, tn.NeuronSet) else drawn(0)
        assert len(neurons) == len(found.neurons)
    with tn.Ablation(tiny_model(), neurons, tokens="last"):
        expected = tn.capture(tiny_model(), tiny_corpus()["test"]["it"], keep=["post"], progress=False)
    states = explorer._states(explorer._key())
    assert_near(states["it"].post, expected.post)
    untouched = tn.capture(tiny_model(), tiny_corpus()["test"]["en"], keep=["post"], progress=False)
    assert np.array_equal(states["en"].post, untouched.post)  # the hub is read untouched


def test_captures_alone_can_be_explored():
    captured = {name: tn.capture(tiny_model(), SENTENCES, progress=False) for name in ("en", "it")}
    explorer = tn.explore_spaces(captured)
    assert explorer.off.disabled
    assert explorer.picture.labels[7] == "Italian: sentence 1"
    with pytest.raises(tn.TnkitError, match="at least two languages"):
        tn.explore_spaces({"en": captured["en"]})


def test_the_ablation_shown_is_what_ablate_measures(explore):
    explorer = explore("ablation", seeds=2)
    explorer.language.value, explorer.control.value = "ja", "same layers"
    neurons = explorer.neurons
    found = tn.detect(tiny_model(), tiny_corpus(), language="ja", top=explorer.study.top, progress=False)
    assert neurons.pairs == found.neurons.pairs
    controls = {"same layers": tn.controls(neurons)["same layers"]}
    for measure, compared in explorer.result.items():
        options = {"language": "ja", "controls": controls, "measure": measure, "seeds": 2, "progress": False}
        expected = tn.ablate(tiny_model(), tiny_corpus()["test"], neurons, **options)
        assert np.allclose(compared.ablated, expected.ablated, atol=1e-4)
        assert np.allclose(compared.controls["same layers"], expected.controls["same layers"], atol=1e-4)
        mean = compared.to_frame().loc[(compared.chosen_layer, "the set"), "mean"]
        assert f"{mean:.3f}" in explorer.summary.value


@pytest.mark.parametrize("value", ["mean of Japanese", "mean of English", "mean of all languages", "0.5 × itself"])
@pytest.mark.parametrize("scope", ["last token", "all tokens"])
def test_what_neurons_are_set_to_is_what_ablate_sets(explore, value, scope):
    explorer = explore("ablation", seeds=1)
    explorer.language.value, explorer.control.value = "ja", "same layers"
    before = explorer.result["similarity"].ablated
    explorer.scope.value, explorer.value.value = scope, value
    captured, names = explorer.study.all_captured("train"), {"Japanese": ["ja"], "English": ["en"]}
    chosen = names.get(value.removeprefix("mean of "), ["en", "it", "ja"])
    how = (
        {"scale": 0.5}
        if value == "0.5 × itself"
        else {"value": "mean", "of": {name: captured[name] for name in chosen}}
    )
    rivals = {"same layers": tn.controls(explorer.neurons)["same layers"]}
    options = {"language": "ja", "controls": rivals, "measure": "similarity", "seeds": 1, "progress": False}
    tokens = scope.split()[0]
    expected = tn.ablate(tiny_model(), tiny_corpus()["test"], explorer.neurons, tokens=tokens, **options, **how)
    shown = explorer.result["similarity"]
    assert np.allclose(shown.ablated, expected.ablated, atol=1e-4)
    assert np.allclose(shown.controls["same layers"], expected.controls["same layers"], atol=1e-4)
    assert not np.allclose(shown.ablated, before, atol=1e-4)
    assert f"Neurons set to {value}" in explorer.summary.value
    assert explorer.parameters()["controls"]["set to"] == value
    assert explorer.parameters()["provenance"]["intervention"]
    explorer.go_on.click()
    assert explorer.errors == []
    assert f"set to {value}" in explorer._status.value


def test_one_language_is_taken_away_and_another_added(explore):
    explorer = explore("ablation", seeds=1)
    panel, model, texts = explorer.steering, tiny_model(), tiny_corpus()["train"]
    assert panel.shown.value == ""
    panel.strength.value = 2.0
    assert panel.shown.value == "" and explorer.errors == []  # nothing runs before it is asked for
    panel.away.value, panel.added.value = "ja", "it"
    panel.go.click()
    assert explorer.errors == [] and "Italian Type-2" in panel.shown.value and "DiffMean" in panel.shown.value
    means = {name: tn.capture(model, texts[name], position="mean", progress=False) for name in ("it", "ja")}
    italian, japanese = (explorer.study.neurons(name, "type2") for name in ("it", "ja"))
    put = tn.Intervention(italian, add=2.0, of=means["it"], minus=means["ja"])
    how = {"tokens": "all", "max_new_tokens": 25, "languages": ["en", "it", "ja"], "progress": False}
    asked = [tn.Intervention(japanese - italian), put]
    said = tn.behaviour.continuations(model, [explorer.prompt.value], neurons=asked, **how)
    assert panel.steered().after == said.after
    before = panel.shown.value
    panel.strength.value = 0.0
    assert panel.shown.value != before and panel.steered().after == said.before
    panel.away.value = "it"
    panel.go.click()
    assert "the same language is taken away and added" in explorer.errors[-1]


def test_nothing_is_said_of_layers_before_the_first_ablated_one(explore):
    explorer = explore("ablation", seeds=2)
    explorer.kind.value, explorer.scope.value = "type2", "all tokens"
    first = min(layer for layer, _ in explorer.neurons)
    assert first > 0
    result = explorer.result
    assert all(result[name].layers == tuple(range(first, 4)) for name in ("retrieval", "similarity", "mutual_knn"))
    assert result["retrieval"].chosen_layer >= first
    texts = tiny_corpus()["test"]["it"]
    off = tn.behaviour.perplexity(tiny_model(), texts, neurons=explorer.neurons, progress=False)
    assert result["perplexity"].ablated.mean() == pytest.approx(off.nats, abs=1e-4)
    assert f"{off.nats:.3f}" in explorer.summary.value and "nats per token" in explorer.summary.value


def test_another_sentences_value_is_drawn(explore):
    explorer = explore("ablation", seeds=1)
    explorer.value.value = "another sentence's value"
    prefix = tn.LastToken(tiny_model(), tiny_corpus()["test"]["it"], keep=["post"], progress=False)
    states = tn.capture(tiny_model(), tiny_corpus()["train"]["it"], progress=False)
    off = prefix.capture(explorer.neurons, value="resampled", of=states)
    english = tn.capture(tiny_model(), tiny_corpus()["test"]["en"], progress=False)
    assert np.array_equal(explorer.result["retrieval"].ablated, tn.geometry.hits(off, english))


def test_neurons_say_what_their_card_says_and_escape_it(explore):
    explorer = explore("neurons")
    explorer.layer.value, explorer.number.value = 3, 17
    assert "Layer 3, neuron 17" in explorer.card.value
    captured = explorer.study.all_captured("train")
    eta2 = tn.specificity.correlation_ratio(captured).eta2
    assert explorer.table.rows[0][4] == eta2[explorer.neurons[0]]
    assert [row[3] for row in explorer.table.rows] == list(explorer.neurons.scores)


def test_a_new_measurement_is_one_entry(explore, monkeypatch):
    """A column that is looked up by layer and neuron, and is empty without a model."""
    monkeypatch.setitem(MEASUREMENTS, "place", (0, lambda _: np.arange(4 * 48).reshape(4, 48)))
    explorer = explore("neurons")
    assert explorer.table.columns == ["rank", "layer", "neuron", "score", *MEASUREMENTS]
    assert [row[-1] for row in explorer.table.rows] == [48 * layer + number for layer, number in explorer.neurons]
    assert [row[-1] for row in tn.explore_neurons(explorer.found).table.rows] == [None] * len(explorer.neurons)


@pytest.mark.usefixtures("cache")
def test_detections_alone_can_be_explored():
    found = tn.detect(tiny_model(), tiny_corpus(), language="it", top=9, progress=False)
    explorer = tn.explore_neurons(found)
    assert explorer.neurons.pairs == found.neurons.pairs
    assert explorer.table.rows[0][4] is None
    assert explorer.card.value == ""


def test_a_detection_equals_detect_all_and_is_handed_on(explore):
    explorer = explore("detection")
    explorer.chosen["ja"].value = True
    explorer.start.click()
    expected = tn.detect_all(tiny_model(), tiny_corpus(), top=9, progress=False)
    assert {key: one.neurons.pairs for key, one in explorer.result.items()} == {
        key: one.neurons.pairs for key, one in expected.items()
    }
    assert tn.explore_neurons(explorer.result).neurons.pairs == expected["it", "type1"].neurons.pairs
    explorer.save_results.click()
    assert tn.Detection.load("detections/ja-type2").neurons.pairs == expected["ja", "type2"].neurons.pairs
    explorer.score.value = "centred"
    explorer.start.click()
    centred = tn.detect_all(tiny_model(), tiny_corpus(), top=9, score="centred", progress=False)
    assert explorer.result["ja", "type1"].neurons.pairs == centred["ja", "type1"].neurons.pairs
    assert (
        centred["ja", "type1"].neurons != expected["ja", "type1"].neurons and "centred cosine" in explorer.listed.value
    )


@pytest.mark.usefixtures("cache")
def test_a_stopped_detection_keeps_what_is_finished_and_can_be_run_again():
    async def use():
        texts = tiny_corpus()["train"]
        some = tn.detect_all(tiny_model(), {name: texts[name] for name in ("en", "it")}, top=9, progress=False)
        explorer = tn.explore_detection(tiny_model(), tiny_corpus(), found=some)
        explorer.chosen["ja"].value = True
        explorer.distance.value = "euclidean"
        explorer.start.click()
        assert explorer.start.disabled and not explorer.stop.disabled
        while explorer.result["it", "type2"].scores.distance != "euclidean":
            await asyncio.sleep(0.001)
        explorer.stop.click()
        while explorer._running:
            await asyncio.sleep(0.001)
        assert ("ja", "type1") not in explorer.result
        assert "stopped" in explorer._status.value
        explorer.start.click()
        while explorer._running or ("ja", "type1") not in explorer.result:
            await asyncio.sleep(0.001)
        assert explorer.errors == []

    asyncio.run(use())


def test_what_goes_wrong_is_a_sentence_in_the_explorer(explore, caplog):
    explorer = explore("spaces")
    for box in explorer.shown.values():
        box.value = False
    assert "select at least two languages" in explorer._status.value
    assert "tn-error" in explorer._status.value
    explorer.shown["en"].value = explorer.shown["it"].value = True
    assert "tn-error" not in explorer._status.value
    explorer._draw = lambda _: 1 / 0
    explorer.layer.value = 0
    assert "ZeroDivisionError" in explorer._status.value
    assert "Traceback" in caplog.text


def test_the_last_of_many_moves_is_shown_and_stale_ones_are_not_drawn(explore):
    """Ten moves before the kernel is free: one picture, that of the last."""

    async def use():
        explorer = explore("spaces")
        explorer._frames.clear()
        explorer._near = lambda _: ()
        asked, draw = [], explorer._draw
        explorer._draw = lambda key: asked.append(key.layer) or draw(key)
        for layer in [0, 1, 3] * 3:
            explorer.layer.value = layer
        await asyncio.wait_for(explorer._task, 60)
        assert asked == [3]
        assert explorer.picture.drawn == 2

    asyncio.run(use())


def test_a_move_while_the_last_picture_is_drawn_ahead_is_not_lost(explore):
    async def use():
        explorer = explore("spaces")
        make = explorer._make

        def make_and_move(key):
            if explorer._near is last and key.layer == 0:
                asyncio.get_running_loop().call_soon(setattr, explorer.layer, "value", 3)
            return make(key)

        def last(key):
            return [key._replace(layer=0)]

        explorer._near, explorer._make = last, make_and_move
        await asyncio.wait_for(explorer._task, 60)
        assert explorer._shown.layer == 3

    asyncio.run(use())


def test_an_error_goes_when_the_control_goes_back(explore):
    explorer = explore("spaces")
    explorer.shown["ja"].value = False
    explorer.shown["it"].value = False
    assert "tn-error" in explorer._status.value
    explorer.shown["it"].value = True  # what is shown still
    assert "tn-error" not in explorer._status.value


def test_what_a_slider_reaches_is_drawn_ahead_and_looked_up(explore):
    async def use():
        explorer = explore("spaces")
        await asyncio.wait_for(explorer._task, 60)
        explorer._draw = lambda key: pytest.fail(f"{key} was not drawn ahead")
        for layer in explorer.layer.options:
            explorer.layer.value = layer
        assert explorer.errors == []
        explorer.close()

    asyncio.run(use())


@pytest.mark.usefixtures("cache")
def test_explorers_of_one_model_and_corpus_share_what_they_computed():
    options = {"languages": None, "hub": "en", "sentences": 256}
    study = Study.of(tiny_model(), tiny_corpus(), **options)
    assert Study.of(tiny_model(), tiny_corpus(), **options) is study
    assert Study.of(tiny_model(), tiny_corpus(), **{**options, "sentences": 5}) is not study


@pytest.mark.parametrize("in_a_loop", [False, True])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("cache")
def test_a_closed_explorer_lets_go_of_its_model(name, in_a_loop):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=copy.deepcopy(byte_tokenizer()))
    alive = weakref.ref(model), weakref.ref(module)

    async def use():
        explorer = getattr(tn, f"explore_{name}")(model, tiny_corpus())
        moved(explorer)
        await asyncio.sleep(0.05)  # drawing ahead is under way
        explorer.close()
        await asyncio.sleep(0)
        return explorer

    if in_a_loop:
        explorer = asyncio.run(use())
    else:
        explorer = getattr(tn, f"explore_{name}")(model, tiny_corpus())
        moved(explorer)
        explorer.close()
    explorer.close()
    del model, module
    gc.collect()
    assert [one() for one in alive] == [None, None]  # although the explorer is still there
    assert repr(explorer) == f"{type(explorer).__name__}(closed)"
    if name != "detection":
        with pytest.raises(tn.TnkitError, match="this explorer is closed; open a new one"):
            explorer.figure()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("cache")
def test_a_refused_explorer_releases_its_model(name, monkeypatch):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=copy.deepcopy(byte_tokenizer()))
    alive = weakref.ref(model), weakref.ref(module)

    def refuse(*_):
        raise tn.TnkitError("refused")

    monkeypatch.setattr(f"tnkit.explorers.{name}.{name.capitalize()}Explorer._draw", refuse)
    with pytest.raises(tn.TnkitError, match="refused"):
        getattr(tn, f"explore_{name}")(model, tiny_corpus())
    monkeypatch.setattr(f"tnkit.explorers.{name}.controls", refuse)  # before any widget is on the page
    with pytest.raises(tn.TnkitError, match="refused"):
        getattr(tn, f"explore_{name}")(model, tiny_corpus())
    del model, module
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


@pytest.mark.parametrize("name", ["spaces", "neurons", "ablation"])
@pytest.mark.usefixtures("cache")
def test_edited_weights_are_noticed_when_a_control_moves(name, monkeypatch):
    monkeypatch.setattr("tnkit.explorers.study._LOOK", -1.0)
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    explorer = getattr(tn, f"explore_{name}")(model, tiny_corpus())
    moved(explorer)
    frames = dict(explorer._frames)
    with torch.no_grad():
        module.get_input_embeddings().weight.mul_(1.5)
        module.model.layers[1].mlp.down_proj.weight.mul_(-3)
    for cached in ("weights_hash", "provenance", "output_gains"):
        vars(model).pop(cached, None)
    if name == "neurons":
        explorer.table.chosen = 4
    else:
        moved(explorer)
    shown = explorer._key()
    assert explorer.errors == []
    fresh = tn.load_model(copy.deepcopy(module), tokenizer=byte_tokenizer())
    expected = getattr(tn, f"explore_{name}")(fresh, tiny_corpus())
    assert explorer.picture.png == expected._make(expected._ready(shown)).png
    assert frames and not any(frame is explorer._frames.get(key) for key, frame in frames.items())


@pytest.mark.usefixtures("cache")
def test_results_are_saved_below_their_folder_whatever_a_language_is_called(tmp_path):
    texts = tiny_corpus()["train"]
    found = tn.detect(
        tiny_model(), {"en": texts["en"], "../../x": texts["it"]}, language="../../x", top=9, progress=False
    )
    explorer = tn.explore_detection(
        tiny_model(), tiny_corpus(), found={("../../x", "type1"): found}, results="deep/below/results"
    )
    explorer.save_results.click()
    (saved,) = tmp_path.glob("deep/below/results/*/neurons.json")
    assert tn.NeuronSet.load(saved) == found.neurons
    assert [path.parts[-5:-2] for path in tmp_path.rglob("neurons.json")] == [("deep", "below", "results")], saved


@pytest.mark.usefixtures("cache")
def test_pictures_keep_the_folder_of_a_model_to_themselves(tmp_path):
    tiny_module("llama").save_pretrained(tmp_path / "secret" / "own-model")
    byte_tokenizer().save_pretrained(tmp_path / "secret" / "own-model")
    explorer = tn.explore_ablation(tn.load_model(tmp_path / "secret" / "own-model"), tiny_corpus())
    for path in explorer.save(tmp_path / "pictures"):
        assert b"own-model" in path.read_bytes() and b"secret" not in path.read_bytes()


def test_what_cannot_be_explored_is_refused():
    with pytest.raises(tn.TnkitError, match="needs a corpus"):
        tn.explore_spaces(tiny_model())
    with pytest.raises(tn.TnkitError, match="needs a corpus"):
        tn.explore_neurons(tiny_model())
    with pytest.raises(tn.TnkitError, match="no detections"):
        tn.explore_neurons({})
    with pytest.raises(tn.TnkitError, match="add another language"):
        tn.explore_ablation(tiny_model(), tiny_corpus(), languages=["en"])
    with pytest.raises(tn.TnkitError, match="the hub 'fr'"):
        tn.explore_detection(tiny_model(), tiny_corpus(), hub="fr")
