"""Whose neurons move whom towards where: means of scores, by another route, and a planted mover."""

import copy

import pytest
import torch

import tnkit as tn
from tnkit.testing import byte_tokenizer, tiny_corpus, tiny_model, tiny_module
from tnkit.tests import test_hybrid

QUIET = {"progress": False}
TEXTS = tiny_corpus()["train"]


@pytest.fixture(scope="module")
def measured():
    """Captures, centroids, raw and centred attractions, and neurons of each language."""
    model = tiny_model("gemma3")
    captured = {name: tn.capture(model, TEXTS[name], **QUIET) for name in ("en", "ja", "it")}
    means = {name: tn.estimate_centroids([one]) for name, one in captured.items()}
    mean = tn.estimate_centroids([*means.values()])
    sums = {
        score: {name: tn.attraction(model, one, origin=origin) for name, one in captured.items()}
        for score, origin in (("raw", None), ("centred", mean))
    }
    sets = {name: tn.score_neurons(model, captured[name], means[name]).top(11) for name in ("ja", "it")}
    return model, captured, means, mean, sums, sets


@pytest.mark.parametrize("centred", [False, True])
def test_each_cell_is_the_mean_score_of_the_set_and_of_its_layers(measured, centred):
    model, captured, means, mean, sums, sets = measured
    origin = mean if centred else None
    found = tn.specificity.moves(sets, sums["centred" if centred else "raw"], means)
    frame = found.to_frame()
    assert found.score == ("centred" if centred else "raw") and len(frame) == 2 * 3 * 3
    for (name, sentences, target), row in frame.iterrows():
        values = tn.score_neurons(model, captured[sentences], means[target], origin=origin).values
        members = torch.stack([values[pair] for pair in sets[name]])
        layers = torch.stack([values[layer].mean() for layer, _ in sets[name]])
        assert row["score"] == pytest.approx(float(members.mean()), rel=1e-4, abs=1e-7)
        assert row["layers"] == pytest.approx(float(layers.mean()), rel=1e-4, abs=1e-7)


def test_a_planted_neuron_moves_all_languages_to_the_one_it_writes():
    """Neuron 7 of layer 1 writes the Italian direction, seen from the mean, where its gate is its up map."""
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    points = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(2))
    targets = {name: tn.Centroids(point, (0, 1, 2, 3)) for name, point in zip(("en", "ja", "it"), points, strict=True)}
    mlp = module.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[7] = mlp.up_proj.weight[7]
        mlp.down_proj.weight[:, 7] = 3 * points[2, 1]
    sums = {name: tn.attraction(model, TEXTS[name], **QUIET) for name in ("en", "ja")}
    found = tn.specificity.moves({"it": tn.NeuronSet(((1, 7),), (4, 48))}, sums, targets)
    above = (found.to_frame()["score"] - found.to_frame()["layers"]).unstack("target")
    assert (above.idxmax(axis=1) == "it").all() and above["it"].min() > 0.05
    figure = found.plot()
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["English sentences", "Japanese sentences"]
    assert figure.axes[0].texts[2].get_text() == f"{1000 * above.loc[('it', 'en'), 'it']:+.1f}"
    assert "centred" not in found._repr_html_()


def test_layers_of_several_widths():
    model, ja = test_hybrid.model(), test_hybrid.captured()
    target, chosen = tn.estimate_centroids([ja]), tn.NeuronSet(((0, 3), (1, 31)), (4, 48))
    frame = tn.specificity.moves({"a": chosen}, {"ja": tn.attraction(model, ja)}, {"ja": target}).to_frame()
    values = tn.score_neurons(model, ja, target).values
    assert frame.iloc[0]["score"] == pytest.approx(float(values[[0, 1], [3, 31]].mean()), rel=1e-4, abs=1e-8)
    assert frame.iloc[0]["layers"] == pytest.approx(float((values[0].mean() + values[1, :32].mean()) / 2), rel=1e-4)


def test_what_cannot_be_compared_is_refused(measured):
    model, captured, means, _, sums, sets = measured
    raw, centred = sums["raw"], sums["centred"]
    other = tn.attraction(tiny_model("qwen2"), TEXTS["ja"], **QUIET)
    early = tn.attraction(model, captured["ja"], layers=[0])
    for arguments, words in (
        (({}, raw, means), "at least one set"),
        ((sets, {}, means), "at least one set"),
        ((sets, raw, {}), "at least one set"),
        (({"none": tn.NeuronSet((), (4, 48))}, raw, means), "the neuron set of none is empty"),
        (({"a": tn.NeuronSet(((0, 1),), (4, 40))}, raw, means), r"of a model of shape \(4, 40\), not \(4, 48\)"),
        ((sets, {"ja": other}, means), "of different model"),
        ((sets, {"en": raw["en"], "ja": centred["ja"]}, means), "have different origins"),
        ((sets, {"ja": early}, means), "were not summed up"),
        ((sets, raw, {"ja": tn.Centroids(torch.ones(4, 31), (0, 1, 2, 3))}), "states of width 31"),
    ):
        with pytest.raises(tn.TnkitError, match=words):
            tn.specificity.moves(*arguments)
