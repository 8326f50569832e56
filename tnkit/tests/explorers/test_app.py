"""The one explorer without a browser: its chunks against other routes, its scheduler, its states, its page."""

import asyncio
import base64
import json
import re

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA

import tnkit as tn
from tnkit.explorers.chunks import Chunks, unpacked_points
from tnkit.explorers.study import CONTROLS, Study
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
    plane = chunks.now("plane")
    ja, en = states("ja"), states("en")
    for name, centred in (("centred", True), ("raw", False)):
        expected = tn.geometry.retrieval(ja, en, centred=centred).columns
        assert np.allclose(plane["ribbon"]["ja"][name], next(iter(expected.values())), atol=1e-4)
    rows = np.unpackbits(np.frombuffer(base64.b64decode(plane["hits"]["ja"]), np.uint8).reshape(4, -1), axis=1)[:, :15]
    assert np.array_equal(rows, np.asarray(tn.geometry.hits(ja, en)))
    distances = tn.geometry.centroid_distances({"en": en, "ja": ja}).values[:, 0, 1]
    assert np.allclose(plane["ribbon"]["ja"]["distance"], distances, atol=1e-5)


@pytest.mark.parametrize("value", ["zero", "mean of English"])
def test_evidence_is_what_ablate_measures(chunks, value):
    measures = chunks.now(f"evidence|ja|type1|9|{value}")["measures"]
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
    chunk = chunks.now("evidence|ja|type1|2:5,3:17|zero")
    assert chunk["first"] == 2 and chunk["size"] == 2
    assert all(measure["layers"] == [2, 3] for measure in chunk["measures"].values())
    assert all(measure["chosen"] in (2, 3) for measure in chunk["measures"].values())


def test_type2_has_nats_of_the_language_and_of_the_hub(chunks):
    measures = chunks.now("evidence|ja|type2|9|zero")["measures"]
    neurons = chunks.study.neurons("ja", "type2")
    assert list(measures)[:2] == ["nats|ja", "nats|en"]
    for language in ("ja", "en"):
        rows = {row["name"]: row["mean"][0] for row in measures[f"nats|{language}"]["conditions"]}
        texts = tiny_corpus()["test"][language]
        for name, off in (("none", ()), ("the set", neurons)):
            expected = tn.behaviour.perplexity(tiny_model(), texts, neurons=off, progress=False).nats
            assert rows[name] == pytest.approx(expected, abs=2e-4)


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
        language, sentence, value = row["top"][0]
        assert value == pytest.approx(max(float(one.abs().max()) for one in values.values()) * np.sign(value), abs=1e-3)
        assert value == pytest.approx(float(values[language][sentence]), abs=1e-3)
        assert row["strips"][0][-1] == pytest.approx(value, abs=6e-3)  # the last token is the one that is read
        assert len(row["strips"][0]) == len(chunk["tokens"][f"{language}|{sentence}"])
        assert language not in row["shared"] or language != "ja"


def test_what_is_asked_for_last_is_computed_and_the_rest_is_dropped(explorer):
    async def use():
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "evidence|ja|type1|9|zero"]}, [])
        await asyncio.sleep(0.01)
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "sets"]}, [])
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(use())
    assert [message["key"] for message in explorer.sent if "key" in message] == ["plane", "sets"]
    assert explorer.sent[-1] == {"done": True}
    json.dumps(explorer.sent)


def test_cancelling_keeps_what_is_done(explorer):
    async def use():
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "evidence|ja|type1|9|zero"]}, [])
        while not explorer.chunks.kept("plane"):
            await asyncio.sleep(0.001)
        explorer._hear(None, {"ask": "cancel"}, [])
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(use())
    assert explorer.chunks.kept("evidence|ja|type1|9|zero") is None
    assert any("cancelled" in message.get("failed", "") for message in explorer.sent)


def test_an_error_is_a_sentence_and_the_next_chunk_comes(explorer):
    explorer._hear(None, {"ask": "chunks", "keys": ["neurons|zz|type1|9", "plane"]}, [])
    assert "there is nothing called 'neurons|zz|type1|9'" in explorer.errors[0]
    assert [message["key"] for message in explorer.sent if "key" in message] == ["plane"]


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


def test_the_map_shows_what_is_computed(explorer):
    explorer.state = {**explorer.state, "shown": ["untouched", "set"], "hidden": ["ja"]}
    assert len(explorer.figure().axes) == 1
    explorer.chunks.now(f"off|it|type1|9|zero|{CONTROLS[0]}")
    assert len(explorer.figure().axes) == 2


def test_a_page_holds_every_chunk_and_asks_for_nothing(explorer, tmp_path):
    page = explorer.export(tmp_path / "page.html", progress=False).read_text()
    payload = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)[1])
    assert {key.split("|")[0] for key in payload["chunks"]} == {"plane", "sets", "off", "neurons", "evidence"}
    assert len(payload["chunks"]) == 2 + 3 * 2 * 2
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
    assert shown[-1].data.startswith(b"\x89PNG")
