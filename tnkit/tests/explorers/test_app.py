"""The one explorer without a browser: its chunks against other routes, its scheduler, its states, its page."""

import asyncio
import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA

import tnkit as tn
from tnkit import plots
from tnkit.explorers.chunks import Chunks, unpacked_points
from tnkit.explorers.study import CONTROLS, Study
from tnkit.measures.behaviour import losses
from tnkit.measures.specificity.table import MEASUREMENTS
from tnkit.testing import tiny_corpus, tiny_model

LANGUAGES = ("en", "it", "ja")
OFF = f"off|ja|type1|9|zero|{CONTROLS[0]}"


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, request):
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("TNKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Chunks(Study(tiny_model(), tiny_corpus()), seeds=2)


@pytest.fixture
def explorer(tmp_path, monkeypatch, request):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    opened = tn.explore(tiny_model(), tiny_corpus(), seeds=2, folder=tmp_path)
    sent = []
    monkeypatch.setattr(opened, "send", lambda message: sent.append(message))
    opened.sent = sent
    request.addfinalizer(opened.close)
    return opened


def states_of(language):
    """The untouched states of the test sentences, (layer, sentence, hidden)."""
    return states(language).post


def states(language, neurons=()):
    with tn.Ablation(tiny_model(), neurons, tokens="last"):
        return tn.capture(tiny_model(), tiny_corpus()["test"][language], keep=["post"], progress=False)


def test_the_map_is_pca_turned_by_procrustes(chunks):
    """By another route: scikit-learn's components of each layer, and SciPy's rotation onto the layer before."""
    plane = chunks.now("plane")
    captured = [states(language).post.double().numpy() for language in LANGUAGES]
    shown = {language: unpacked_points(plane["points"][language]) for language in LANGUAGES}
    before = None
    for layer in range(4):
        stacked = np.concatenate([rows[layer] for rows in captured])
        fit = PCA(2).fit(stacked)
        expected = fit.transform(stacked)
        if before is not None:
            expected = expected @ orthogonal_procrustes(expected, before)[0]
        found = np.concatenate([shown[language][layer] for language in LANGUAGES])
        if before is None:
            expected = expected * np.sign((expected * found).sum(axis=0))
            assert (found[:15].mean(axis=0) <= 1e-6).all()
        before = expected
        assert np.allclose(found, expected, atol=2e-4 * np.abs(expected).max())
        assert plane["explained"][layer] == pytest.approx(fit.explained_variance_ratio_.sum(), abs=1e-4)


def test_states_with_neurons_off_lie_in_the_same_plane(chunks):
    """Two sums of coordinates fix the plane: what untouched states give by least squares projects the others."""
    chunk, plane = chunks.now(OFF), chunks.now("plane")
    neurons = chunks.study.neurons("ja", "type1")
    drawing = chunks.study.controls("ja", "type1")[CONTROLS[0]](0)
    for layer in range(4):
        fitted = np.concatenate([states(language).post[layer].double().numpy() for language in LANGUAGES])
        points = np.concatenate([unpacked_points(plane["points"][language])[layer] for language in LANGUAGES])
        map_to_plane = np.linalg.pinv(fitted - fitted.mean(axis=0)) @ points
        for role, off in (("set", neurons), ("control", drawing)):
            moved = states("ja", off).post[layer].double().numpy() - fitted.mean(axis=0)
            inside = moved @ np.linalg.pinv(fitted - fitted.mean(axis=0)) @ (fitted - fitted.mean(axis=0))
            found = unpacked_points(chunk[role]["points"])[layer]
            if np.allclose(inside, moved, atol=1e-6):  # what lies in the span of the untouched states is fixed by them
                assert np.allclose(found, moved @ map_to_plane, atol=2e-3 * np.abs(found).max())
            axes = chunks.planes.axes[layer]
            assert np.allclose(axes.T @ axes, np.eye(2), atol=1e-9)
            assert np.allclose(found, moved @ axes, atol=2e-4 * np.abs(found).max())
    assert not np.allclose(unpacked_points(chunk["set"]["points"]), unpacked_points(plane["points"]["ja"]), rtol=1e-2)


def test_retrieval_of_the_ribbon_and_the_sentences_is_that_of_geometry(chunks):
    row = chunks.now("ribbon")["ja"]
    ja, en = states("ja"), states("en")
    for name, centred in (("centred", True), ("raw", False)):
        expected = tn.geometry.retrieval(ja, en, centred=centred).columns
        assert np.allclose(row[name], next(iter(expected.values())), atol=1e-4)
    rows = np.unpackbits(np.frombuffer(base64.b64decode(row["hits"]), np.uint8).reshape(4, -1), axis=1)[:, :15]
    assert np.array_equal(rows, np.asarray(tn.geometry.hits(ja, en)))
    distances = tn.geometry.centroid_distances({"en": en, "ja": ja}).values[:, 0, 1]
    assert np.allclose(row["distance"], distances, atol=1e-5)


@pytest.mark.parametrize("value", ["zero", "mean of English"])
def test_evidence_is_what_ablate_measures(chunks, value):
    measures = chunks.now(f"evidence|ja|type1|9|{value}|last")["measures"]
    neurons = chunks.study.neurons("ja", "type1")
    rivals = {"same layers": tn.controls(neurons)["same layers"]}
    english = tn.capture(tiny_model(), tiny_corpus()["train"]["en"], progress=False)
    how = {} if value == "zero" else {"value": "mean", "of": {"en": english}}
    for measure in ("retrieval", "similarity"):
        options = {"language": "ja", "controls": rivals, "measure": measure, "seeds": 2, "progress": False}
        expected = tn.ablate(tiny_model(), tiny_corpus()["test"], neurons, **options, **how).to_frame()
        rows = {row["name"]: row for row in measures[measure]["conditions"]}
        for place, layer in enumerate(measures[measure]["layers"]):
            for name in ("none", "the set", "same layers"):
                for column in ("mean", "low", "high"):
                    assert rows[name][column][place] == pytest.approx(expected.loc[(layer, name), column], abs=2e-3)
    assert ("the set at its mean" in rows) == (value == "zero")


def test_layers_before_the_first_ablated_one_are_left_out(chunks):
    chunk = chunks.now("evidence|ja|type1|2:5,3:17|zero|last")
    assert chunk["first"] == 2 and chunk["size"] == 2
    assert all(measure["layers"] == [2, 3] for measure in chunk["measures"].values())
    assert all(measure["chosen"] in (2, 3) for measure in chunk["measures"].values())


def test_type2_has_nats_of_the_language_and_of_the_hub(chunks):
    measures = chunks.now("evidence|ja|type2|9|zero|last")["measures"]
    neurons = chunks.study.neurons("ja", "type2")
    assert list(measures)[:2] == ["nats|ja", "nats|en"]
    for language in ("ja", "en"):
        rows = {row["name"]: row["mean"][0] for row in measures[f"nats|{language}"]["conditions"]}
        texts = tiny_corpus()["test"][language]
        for name, off in (("none", ()), ("the set", neurons)):
            expected = tn.behaviour.perplexity(tiny_model(), texts, neurons=off, progress=False).nats
            assert rows[name] == pytest.approx(expected, abs=2e-4)


def test_nats_under_every_set_share_blocks_and_are_those_of_each_alone(chunks, monkeypatch):
    """By the way of one set at a time, which runs every block for each."""
    key, shared, skipped = "evidence|it|type2|9|zero|last", [], losses.skipped
    monkeypatch.setattr(losses, "skipped", lambda *given: shared.append(1) or skipped(*given))
    found = Chunks(chunks.study, seeds=2).now(key)
    assert len(shared) > 20  # of some 30 passes
    shared.clear()
    alone = "tnkit.explorers.evidence_rows.perplexity_of"
    monkeypatch.setattr(alone, lambda own, **how: tn.behaviour.perplexity(own.model, own.sentences, **how))
    assert Chunks(chunks.study, seeds=2).now(key) == found
    assert not shared


def test_neurons_have_their_values_at_every_token(chunks):
    chunk = chunks.now("neurons|ja|type1|9")
    captured = chunks.study.all_captured("train", progress=False)
    eta2 = MEASUREMENTS["η²"][1](captured)
    neurons = chunks.study.neurons("ja", "type1")
    assert [(row["layer"], row["neuron"]) for row in chunk["rows"]] == list(neurons)
    for row in chunk["rows"]:
        pair = (row["layer"], row["neuron"])
        assert row["values"][0] == pytest.approx(eta2[pair], abs=1e-4)
        values = {name: one.of_neurons(pair[0], [pair[1]])[:, 0] for name, one in captured.items()}
        assert row["means"] == pytest.approx([float(values[name].mean()) for name in LANGUAGES], abs=1e-3)
        middle = [float(np.median(values[name])) for name in LANGUAGES]
        assert [spread[2] for spread in row["spread"]] == pytest.approx(middle, abs=1e-3)
        language, sentence, value = row["top"][0]
        assert value == pytest.approx(max(float(one.abs().max()) for one in values.values()) * np.sign(value), abs=1e-3)
        assert value == pytest.approx(float(values[language][sentence]), abs=1e-3)
        assert row["strips"][0][-1] == pytest.approx(value, abs=6e-3)  # the last token is the one that is read
        assert len(row["strips"][0]) == len(chunk["tokens"][f"{language}|{sentence}"])
        assert language not in row["shared"] or language != "ja"


@pytest.mark.parametrize(("value", "scope"), [("zero", "all"), ("mean of English", "all"), ("0.5 × itself", "last")])
def test_evidence_at_every_token_is_what_ablate_measures(chunks, value, scope):
    chunks.study.detect(["ja"])
    neurons = chunks.study.neurons("ja", "type1")
    english = tn.capture(tiny_model(), tiny_corpus()["train"]["en"], progress=False)
    how = {"zero": {}, "mean of English": {"value": "mean", "of": {"en": english}}}.get(value, {"scale": 0.5})
    options = {"language": "ja", "tokens": scope, "measure": "similarity", "seeds": 1, "progress": False}
    expected = tn.ablate(tiny_model(), tiny_corpus()["test"], neurons, controls={}, **options, **how).to_frame()
    measure = chunks.now(f"evidence|ja|type1|9|{value}|{scope}")["measures"]["similarity"]
    rows = {row["name"]: row for row in measure["conditions"]}
    for place, layer in enumerate(measure["layers"]):
        for name in ("none", "the set"):
            assert rows[name]["mean"][place] == pytest.approx(expected.loc[(layer, name), "mean"], abs=2e-3)


@pytest.mark.parametrize("scope", ["last", "prompt", "all"])
def test_a_prompt_is_continued_as_behaviour_continues_it(chunks, scope):
    prompt = "Il | gatto"  # with the sign that parts the words of a key
    chunk = chunks.now(f"said|it|type1|9|zero|{scope}|lowest scores|{prompt}")
    neurons, model = chunks.study.neurons("it", "type1"), tiny_model()
    rival = tn.detect(model, tiny_corpus(), language="it", top=9, progress=False).scores.bottom(9)
    how = {"tokens": scope, "max_new_tokens": 25, "languages": LANGUAGES, "progress": False}
    said = tn.behaviour.continuations(model, [prompt], neurons=neurons, controls={"it": rival}, seeds=1, **how)
    expected = [(said.before, said.before_languages), (said.after, said.after_languages)]
    expected.append((said.controls["it"][0].after, said.controls["it"][0].after_languages))
    assert [((row["text"],), (row["language"],)) for row in chunk["rows"]] == expected
    assert [row["role"] for row in chunk["rows"]] == ["untouched", "set", "control"]
    assert chunk["rows"][1]["count"] == said.count > 0 and chunk["prompt"] == prompt
    assert chunk["settings"]["scope"] == scope and chunk["settings"]["control"] == "lowest scores"


def test_one_language_is_taken_away_and_another_added(chunks):
    model, texts = tiny_model(), tiny_corpus()["train"]
    means = {name: tn.capture(model, texts[name], position="mean", progress=False) for name in ("it", "ja")}
    italian, japanese = (chunks.study.neurons(name, "type2") for name in ("it", "ja"))
    put = tn.Intervention(italian, add=2.0, of=means["it"], minus=means["ja"])
    how = {"tokens": "all", "max_new_tokens": 25, "languages": LANGUAGES, "progress": False}
    said = tn.behaviour.continuations(model, ["Hello"], neurons=[tn.Intervention(japanese - italian), put], **how)
    rows = chunks.now("steered|ja|it|2|Hello")["rows"]
    assert [row["role"] for row in rows] == ["untouched", "set", "control", "control"]
    assert (rows[0]["text"], rows[1]["text"]) == (said.before[0], said.after[0])
    assert rows[0]["text"] != rows[1]["text"]
    assert len({row["text"] for row in chunks.now("steered|ja|it|0|Hello")["rows"]}) == 1  # of strength 0 nothing comes


@pytest.mark.parametrize("key", ["steered|ja|ja|1|Hi", "steered|en|it|9|Hi", "said|it|type1|9|zero|last|uniform| "])
def test_a_prompt_or_steering_that_cannot_be_is_refused(chunks, key):
    with pytest.raises(tn.TnkitError, match=r"both taken away|from 0 to 4|prompt is empty"):
        chunks.now(key)


def test_the_tokens_of_ones_own_text_have_the_activations_of_a_forward_pass(chunks, monkeypatch):
    text, model = "Ciao | mondo", tiny_model()
    chunk = chunks.now(f"own|it|type1|9|{text}")
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    assert len(chunk["tokens"]) == ids.shape[1]
    held = {}
    layers = model.module.model.layers
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, at=at: held.__setitem__(at, args[0][0]))
        for at, layer in enumerate(layers)
    ]
    with torch.inference_mode():
        model.module(ids)
    for hook in hooks:
        hook.remove()
    for layer, neuron in chunks.study.neurons("it", "type1"):
        expected = held[layer][:, neuron].numpy()
        assert np.allclose(chunk["values"][f"{layer}:{neuron}"], expected, atol=6e-3)
    monkeypatch.setattr("tnkit.explorers.neuron_rows._OWN", 9)
    with pytest.raises(tn.TnkitError, match="the text has 12 tokens; write one of at most 9"):
        chunks.now("own|it|type1|9|Ciao, mondo")


def test_neurons_towards_circled_sentences_are_those_of_the_highest_scores(chunks):
    """By another route: scores from the captured states, towards the mean of these sentences as a centroid."""
    chosen = chunks.chosen("ja", "type1", "7@en.0.3;it.2")
    states = [states_of(language)[:, numbers] for language, numbers in (("en", [0, 3]), ("it", [2]))]
    target = tn.Centroids(torch.cat(states, dim=1).mean(dim=1), (0, 1, 2, 3))
    captured = tn.capture(tiny_model(), tiny_corpus()["train"]["ja"], progress=False)
    scores = tn.score_neurons(tiny_model(), captured, target, layers=chunks.study.found["ja", "type1"].scores.layers)
    assert chosen.pairs == scores.top(7).pairs
    assert chosen.scores == pytest.approx(scores.top(7).scores, abs=1e-6)
    assert chosen.pairs != chunks.study.neurons("ja", "type1", 7).pairs
    rows = chunks.now("neurons|ja|type1|7@en.0.3;it.2")["rows"]
    assert [(row["layer"], row["neuron"]) for row in rows] == list(chosen.pairs)


@pytest.mark.parametrize("size", ["x", "3:17:2", "9:9999", "3@zz.1", "3@ja.999", "9999", ""])
def test_a_size_that_names_no_neurons_is_refused(chunks, size):
    chunks.now("sets")
    with pytest.raises(tn.TnkitError):
        chunks.chosen("ja", "type1", size)


def test_a_detection_makes_a_study_that_all_views_show(explorer):
    explorer.state = {**explorer.state, "view": "detection", "language": "ja", "layer": 3, "prompt": "Hi"}
    before = explorer.about
    options = {"score": "centred", "top": 7, "hub": "it", "languages": ["ja", "en"], "distance": "cosine"}
    explorer._hear(None, {"ask": "found", "options": {**options, "model": before["model"], "layers": [1, 3]}}, [])
    assert explorer.errors == [] and explorer.sent[-1] == {"done": True}
    texts = tiny_corpus()["train"]
    how = {"hub": "it", "top": 7, "score": "centred", "layers": [1, 2, 3], "progress": False}
    expected = tn.detect_all(tiny_model(), {name: texts[name] for name in ("it", "ja", "en")}, **how)
    assert {key: one.neurons.pairs for key, one in explorer.result.items()} == {
        key: one.neurons.pairs for key, one in expected.items()
    }
    state, about = explorer.state, explorer.about
    assert (state["language"], state["layer"], state["size"], state["prompt"]) == ("ja", 3, 7, "Hi")
    assert about["hub"] == "it" and about["form"]["score"] == "centred" and about["form"]["layers"] == [1, 3]
    written = f"tn.explore(tiny_model(), tiny_corpus(), {', '.join(about['options'])})"  # by "Copy as code"
    again = eval(written)
    assert again.study.options() == explorer.study.options()
    assert explorer.chunks.now("sets")["en|type1"]["searched"] == [1, 3]


def test_a_detection_that_fails_or_is_cancelled_keeps_the_old_one(explorer):
    explorer._hear(None, {"ask": "found", "options": {"top": 10**6}}, [])
    assert "top 1000000 was asked for" in explorer.errors[0]
    study = explorer.study

    async def use():
        explorer._hear(None, {"ask": "found", "options": {"distance": "euclidean"}}, [])
        while not any("sentences" in message.get("status", "") for message in explorer.sent):
            await asyncio.sleep(0.001)
        explorer._hear(None, {"ask": "cancel"}, [])
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(use())
    assert explorer.study is study and explorer.about["form"]["distance"] == "cosine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 0}, "top=0 must be at least 1"),
        ({"top": 99999}, "top 99999 was asked for; 2 layers of 48 neurons hold 96 neurons"),
        ({"sentences": 0}, "sentences=0 must be at least 1"),
        ({"sentences": -3}, "sentences=-3 must be at least 1"),
    ],
)
def test_a_number_in_the_form_is_used_as_it_is_or_refused(explorer, options, said):
    study = explorer.study
    explorer._hear(None, {"ask": "found", "options": options}, [])
    assert said in explorer.errors[0] and "unexpected" not in explorer.errors[0]
    assert explorer.study is study


def test_a_size_is_used_as_it_is_or_refused(explorer):
    explorer.state = {**explorer.state, "view": "evidence", "size": 99999}
    with pytest.raises(tn.TnkitError, match="99999"):
        explorer.figure()


async def begun(sent):
    """Wait for the first step of what was asked for."""
    while not any("status" in message for message in sent):
        await asyncio.sleep(0.001)


def test_views_are_looked_at_while_a_detection_runs(explorer):
    async def use():
        explorer._hear(None, {"ask": "found", "options": {"distance": "euclidean"}}, [])
        await begun(explorer.sent)
        explorer._hear(None, {"ask": "chunks", "keys": ["plane"]}, [])
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(use())
    assert [message["key"] for message in explorer.sent if "chunk" in message] == ["plane"]
    assert explorer.study.finding["distance"] == "euclidean" and len(explorer.result) == 4


def test_what_is_asked_for_last_is_computed_and_the_rest_is_dropped(explorer):
    async def use():
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "evidence|ja|type1|9|zero|last"]}, [])
        await begun(explorer.sent)
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "sets"]}, [])
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(use())
    assert [message["key"] for message in explorer.sent if "chunk" in message] == ["plane", "sets"]
    assert explorer.sent[-1] == {"done": True}
    json.dumps(explorer.sent)


def test_what_is_looked_at_goes_before_what_was_begun_and_this_goes_on(explorer):
    """A begun chunk waits while another is computed, and is not begun again."""
    computed = []
    computing = explorer._computing
    explorer._computing = lambda key: computed.append(key) or computing(key)

    async def use():
        explorer._hear(None, {"ask": "chunks", "keys": ["neurons|ja|type1|9"]}, [])
        await begun(explorer.sent)
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "neurons|ja|type1|9"]}, [])
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(use())
    assert [message["key"] for message in explorer.sent if "chunk" in message] == ["plane", "neurons|ja|type1|9"]
    assert computed == ["neurons|ja|type1|9", "plane"]


def test_the_explorer_that_was_used_last_goes_first(explorer, monkeypatch):
    other = tn.explore(tiny_model(), tiny_corpus(), seeds=2)
    sent = []
    monkeypatch.setattr(other, "send", sent.append)
    monkeypatch.setattr(explorer, "send", sent.append)

    async def use():
        explorer._hear(None, {"ask": "chunks", "keys": ["evidence|ja|type1|9|zero|last"]}, [])
        await begun(sent)
        other._hear(None, {"ask": "chunks", "keys": ["evidence|it|type1|9|zero|last"]}, [])
        await asyncio.wait_for(asyncio.gather(explorer._task, other._task), 60)

    asyncio.run(use())
    other.close()
    assert [message["key"][9:11] for message in sent if "chunk" in message] == ["it", "ja"]


def test_cancelling_keeps_what_is_done(explorer):
    async def use():
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "evidence|ja|type1|9|zero|last"]}, [])
        while not explorer.chunks.kept("plane"):
            await asyncio.sleep(0.001)
        explorer._hear(None, {"ask": "cancel"}, [])
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(use())
    assert explorer.chunks.kept("evidence|ja|type1|9|zero|last") is None
    assert any("evidence|ja|type1|9|zero|last" in message.get("cancelled", ()) for message in explorer.sent)


def test_an_error_is_a_sentence_and_the_next_chunk_comes(explorer):
    explorer._hear(None, {"ask": "chunks", "keys": ["neurons|zz|type1|9", "plane"]}, [])
    assert "there is nothing called 'neurons|zz|type1|9'" in explorer.errors[0]
    assert [message["key"] for message in explorer.sent if "chunk" in message] == ["plane"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"view": "maps"}, "view"),
        ({"layer": 9}, "layer"),
        ({"language": "en"}, "language"),
        ({"colours": 1}, "colours"),
    ],
)
def test_a_state_that_the_study_does_not_have_is_refused(state, said):
    with pytest.raises(tn.TnkitError, match=said):
        tn.explore(tiny_model(), tiny_corpus(), **state)


@pytest.mark.parametrize("view", ["map", "neurons", "evidence", "detection"])
def test_each_view_has_a_picture_that_is_saved(explorer, view):
    explorer.state = {**explorer.state, "view": view, "layer": 1}
    assert explorer.figure().axes
    assert explorer.save().name == f"explore-{view}-layer-1-it-type1.png"


@pytest.mark.parametrize("title", ["Type-1 neurons of Italian", "W" * 70, "Type-1 neurons of " + "a language " * 5])
def test_nothing_in_a_picture_reaches_its_edge(explorer, monkeypatch, title):
    """Seen in the pixels: a margin of six is empty on each side, and a long title has another line."""
    drawn = plots.conditions
    monkeypatch.setattr(plots, "conditions", lambda frame, **how: drawn(frame, **(how | {"title": title})))
    explorer.state = {**explorer.state, "view": "evidence"}
    with Image.open(io.BytesIO(explorer._picture())) as image:
        ink = np.asarray(image.convert("L")) < 250
    inner = ink[6:-6, 6:-6]
    assert ink.sum() == inner.sum() > 0
    rows = np.flatnonzero(inner.any(axis=1))
    assert rows[0] < 20 and rows[-1] > len(inner) - 20  # and the picture is used up to that margin


def test_the_map_shows_what_is_computed(explorer):
    explorer.state = {**explorer.state, "shown": ["untouched", "set"], "hidden": ["ja"]}
    assert len(explorer.figure().axes) == 1
    explorer.chunks.now(f"off|it|type1|9|zero|{CONTROLS[0]}")
    assert len(explorer.figure().axes) == 2


def test_a_page_holds_every_chunk_and_asks_for_nothing(explorer, tmp_path):
    page = explorer.export(tmp_path / "page.html", progress=False).read_text()
    payload = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)[1])
    assert {key.split("|")[0] for key in payload["chunks"]} == {"plane", "ribbon", "sets", "off", "neurons", "evidence"}
    assert len(payload["chunks"]) == 3 + 3 * 2 * 2
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert payload["about"]["test"]["ja"] == list(tiny_corpus()["test"]["ja"])


def test_text_in_a_page_cannot_end_its_script(chunks):
    from tnkit.explorers.page import page_of

    about = {**chunks.about(), "model": "</script><b>"}
    page = page_of(about, {})
    assert page.count("</script>") == 2 and "<b>" not in page


def test_a_displayed_explorer_leaves_a_picture_beside(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: shown.append(things[0]))
    explorer._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert [message["key"] for message in explorer.sent] == ["plane"]  # sent before the picture is drawn
    assert shown[-1].data.startswith(b"\x89PNG")
