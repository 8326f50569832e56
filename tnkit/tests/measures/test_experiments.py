"""The experiments equal their steps, and a planted neuron that carries the translation is found to."""

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.statistics import interval, resamples
from tnkit.testing import SENTENCES, tiny_model

TEXTS = {"en": SENTENCES[:3], "it": SENTENCES[3:], "ja": [text[::-1] for text in SENTENCES[:3]]}
SOME = tn.NeuronSet(tuple((layer, neuron) for layer in range(2) for neuron in range(20)), (4, 48))
OTHER = tn.NeuronSet(tuple((1, neuron) for neuron in range(40)), (4, 48))
QUIET = {"progress": False}


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_retrieval_and_similarity_equal_their_steps(tokens):
    model = tiny_model("qwen3")
    english = tn.capture(model, TEXTS["en"], keep=["post"], **QUIET)
    with tn.Ablation(model, SOME, tokens=tokens):
        italian = tn.capture(model, TEXTS["it"], keep=["post"], **QUIET)
    options = {"language": "it", "controls": {"other": OTHER}, "tokens": tokens, **QUIET}
    found = tn.ablate(model, TEXTS, SOME, **options)
    assert np.array_equal(found.ablated, tn.geometry.hits(italian, english))
    near = tn.ablate(model, TEXTS, SOME, measure="similarity", **options)
    expected = torch.nn.functional.cosine_similarity(italian.post, english.post, dim=-1)
    assert np.allclose(near.ablated, expected, atol=1e-5)
    assert not np.allclose(near.ablated, near.untouched, atol=1e-3)
    assert near.measure == "cosine similarity, it and en"


def test_options_and_values_reach_the_set_and_its_plain_controls():
    model = tiny_model("gemma3")
    options = {"position": "last", "keep": ["post"], "last_layer": "normed", **QUIET}
    english, means = tn.capture(model, TEXTS["en"], **options), tn.capture(model, TEXTS["ja"], **QUIET)
    how = {"value": "mean", "of": means}
    off = []
    for neurons, way in ((SOME, how), (OTHER, how), (OTHER, {"scale": 0.5})):
        with tn.Ablation(model, neurons, tokens="last", **way):
            off.append(tn.capture(model, TEXTS["it"], **options))
    controls = {"other": OTHER, "halved": tn.Intervention(OTHER, scale=0.5)}
    asked = {"language": "it", "controls": controls, "last_layer": "normed", **QUIET}
    found = tn.ablate(model, TEXTS, SOME, centred=False, **asked, **how)
    drawn = (found.ablated, found.controls["other"][0], found.controls["halved"][0])
    for values, states in zip(drawn, off, strict=True):
        assert np.array_equal(values, tn.geometry.hits(states, english, centred=False))
    assert found.measure == "raw retrieval@1, it and en"
    near = tn.ablate(model, TEXTS, tn.Intervention(SOME, **how), measure="mutual_knn", k=2, **asked)
    shared = tn.geometry.mutual_knn(off[0], english, k=2).columns["mutual 2-NN"]
    assert np.allclose(near.ablated.mean(axis=1), shared)
    with pytest.raises(tn.TnkitError, match="an Intervention says what is done; leave out scale"):
        tn.ablate(model, TEXTS, tn.Intervention(SOME), scale=0.5, **asked)


def test_shared_neighbours_equal_their_mean():
    model = tiny_model("llama")
    texts = {name: [f"{name} {number * number}" for number in range(12)] for name in ("en", "it")}
    with tn.Ablation(model, SOME):
        italian = tn.capture(model, texts["it"], keep=["post"], **QUIET)
    english = tn.capture(model, texts["en"], keep=["post"], **QUIET)
    options = {"language": "it", "controls": {"other": OTHER}, "tokens": "all", **QUIET}
    found = tn.ablate(model, texts, SOME, measure="mutual_knn", **options)
    expected = tn.geometry.mutual_knn(italian, english).columns["mutual 10-NN"]
    assert np.allclose(found.ablated.mean(axis=1), expected)
    assert found.measure == "mutual 10-NN, it and en"


def test_the_matrix_holds_each_set_off_in_each_language():
    model = tiny_model("llama")
    found = tn.retrieval_matrix(model, TEXTS, {"it": SOME, "ja": OTHER}, layer=2, **QUIET)
    english = tn.capture(model, TEXTS["en"], keep=["post"], **QUIET)
    for row, off in enumerate(((), SOME, OTHER)):
        for column, language in enumerate(("it", "ja")):
            with tn.Ablation(model, off, tokens="last"):
                read = tn.capture(model, TEXTS[language], keep=["post"], **QUIET)
            assert found.values[row, column] == tn.geometry.retrieval(read, english).to_frame().loc[2].item()
            translated = tn.geometry.hits(read, english)[2]
            expected = interval(resamples(len(translated)) @ translated / len(translated))
            assert found.intervals[:, row, column] == pytest.approx(expected)
    assert found.to_frame().loc["none"].index.tolist() == ["it", "ja"]
    labels = [text.get_text() for text in found.plot().get_yticklabels()]
    assert labels == ["none", "Italian", "Japanese"]


@pytest.mark.parametrize("position", ["last", "last_word"])
def test_sentences_whose_prefix_was_run_before_give_the_same(position):
    model, how = tiny_model("gemma3"), {"language": "it", "controls": {"other": OTHER}, "position": position, **QUIET}
    how["tokens"] = position
    reading = {"keep": ["post"], "position": position, **QUIET}
    ready = TEXTS | {name: tn.LastToken(model, TEXTS[name], **reading) for name in ("en", "it")}
    for measure in ("similarity", "margin"):
        again, anew = (tn.ablate(model, texts, SOME, measure=measure, **how) for texts in (ready, TEXTS))
        assert np.allclose(again.ablated, anew.ablated, atol=1e-5) and again.layers == anew.layers
        assert not np.allclose(again.ablated, again.untouched, atol=1e-3)
    again, anew = (tn.ablate(model, texts, SOME, measure="margin", layers=[1, 3], **how) for texts in (ready, TEXTS))
    assert np.allclose(again.ablated, anew.ablated, atol=1e-5) and again.ablated.shape == (2, 3)
    everywhere = how | {"tokens": "all", "measure": "perplexity"}
    again, anew = (tn.ablate(model, texts, SOME, **everywhere) for texts in (ready, TEXTS))
    assert np.array_equal(again.ablated, anew.ablated)
    asked = {"layer": 2, "position": position, **QUIET}
    matrices = [tn.retrieval_matrix(model, texts, {"it": SOME, "ja": OTHER}, **asked) for texts in (ready, TEXTS)]
    assert np.array_equal(matrices[0].values, matrices[1].values)


def test_a_prefix_is_run_once_for_all_that_is_asked_of_it(monkeypatch):
    model = tiny_model("llama")
    ready = TEXTS | {name: tn.LastToken(model, TEXTS[name], keep=["post"], **QUIET) for name in ("en", "it")}
    run = []
    monkeypatch.setattr(tn.LastToken, "_cache", lambda *_: run.append(1))
    tn.retrieval_matrix(model, {"en": ready["en"], "it": ready["it"]}, {"it": SOME}, layer=2, **QUIET)
    tn.ablate(model, ready, SOME, language="it", controls={"other": OTHER}, **QUIET)
    assert not run


def test_a_prefix_of_something_else_is_refused():
    model, how = tiny_model("llama"), {"language": "it", "controls": {"other": OTHER}, **QUIET}
    short = {**TEXTS, "it": tn.LastToken(model, TEXTS["it"], keep=["post"], layers=[0, 1], **QUIET)}
    with pytest.raises(tn.TnkitError, match=r"this LastToken has layers=\(0, 1\), and \(0, 1, 2, 3\) is asked for"):
        tn.ablate(model, short, SOME, **how)
    with pytest.raises(tn.TnkitError, match="has position='last', and 'last_word' is asked for"):
        tn.ablate(model, short, SOME, position="last_word", tokens="last_word", **how)
    with pytest.raises(tn.TnkitError, match="was made with another model than this"):
        tn.ablate(tiny_model("qwen3"), short, SOME, **how)
    states = {**TEXTS, "it": tn.LastToken(model, TEXTS["it"], keep=["mid"], **QUIET)}
    with pytest.raises(tn.TnkitError, match=r"has keep=\('mid',\), and \('post',\) is asked for"):
        tn.ablate(model, states, SOME, **how)


def test_the_layer_that_was_chosen_elsewhere_is_reported():
    options = {"language": "it", "controls": {"other": OTHER}, "chosen_layer": 1, "chosen_on": "training sentences"}
    found = tn.ablate(tiny_model("llama"), TEXTS, SOME, **options, **QUIET)
    assert found.layer_name() == "layer 1, chosen on training sentences"
    assert found.at()["mean"].tolist() == found.at(1)["mean"].tolist()


def test_what_cannot_be_run_is_refused():
    with pytest.raises(tn.TnkitError, match="measure='luck' must be one of retrieval, similarity, mutual_knn"):
        tn.ablate(tiny_model(), TEXTS, SOME, language="it", controls={}, measure="luck")
    with pytest.raises(tn.TnkitError, match="no sentences in 'fr'; there are en, it, ja"):
        tn.ablate(tiny_model(), TEXTS, SOME, language="fr", controls={})
    with pytest.raises(tn.TnkitError, match="no sentences in fr"):
        tn.retrieval_matrix(tiny_model(), TEXTS, {"fr": SOME})
