"""The same procedure towards other targets: neurons planted towards each are found, and chance finds what it should."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import tnkit as tn
from tnkit.detection.scores import DISTANCES
from tnkit.detection.selection import Selection
from tnkit.testing import byte_tokenizer, tiny_corpus, tiny_model, tiny_module

every_distance = pytest.mark.parametrize("distance", DISTANCES)
HIDDEN, WIDTH, LAYERS = 32, 48, range(4)
PLANTED = {"shared": (1, 7), "difference": (1, 8), "ja": (2, 11), "ko": (2, 9), "late": (3, 5)}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(vector):
    return vector / vector.norm()


@pytest.fixture(scope="module")
def planted():
    """States around random directions of each language; every neuron writes a unit vector, the planted at a target."""
    points = {name: 10 * unit(random(HIDDEN, seed=seed)) for seed, name in enumerate(("en", "ja", "ko"))}
    module = copy.deepcopy(tiny_module("llama"))
    towards = {
        "shared": points["en"] + points["ja"],
        "difference": points["en"] - points["ja"],
        "ja": points["ja"],
        "ko": points["ko"],
        "late": points["en"] + points["ja"],
    }
    with torch.no_grad():
        for layer in LAYERS:
            vectors = torch.nn.functional.normalize(random(WIDTH, HIDDEN, seed=10 + layer), dim=1)
            for name, (where, neuron) in PLANTED.items():
                if where == layer:
                    vectors[neuron] = unit(towards[name])
            module.model.layers[layer].mlp.down_proj.weight.copy_(vectors.T)
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = {
        name: tn.Activations(
            tuple(LAYERS),
            torch.arange(20),
            mid=0.2 * random(4, 20, HIDDEN, seed=20 + seed),
            post=point + 0.1 * random(4, 20, HIDDEN, seed=30 + seed),
            activations=torch.ones(4, 20, WIDTH),
            scale=torch.ones(4, 20),
        )
        for seed, (name, point) in enumerate(points.items())
    }
    return Selection(model, captured, "ja", ("en", "ja"), 6, (0, 1, 2))


@every_distance
def test_what_writes_towards_a_target_is_chosen_first(planted, distance):
    chosen = replace(planted, distance=distance)
    targets = {"shared": chosen.centroid("en", "ja"), "difference": chosen.difference()}
    targets |= {name: chosen.centroid(name) for name in ("ja", "ko")}
    for name, target in targets.items():
        assert chosen.towards(target)[0] == PLANTED[name]
        assert len(chosen.towards(target)) == 6


def test_the_difference_of_type2_is_between_the_own_and_the_other_centroids(planted):
    type2 = replace(planted, target=("ja",))
    own, others = (np.stack([part.post.numpy().mean(axis=1) for part in parts]).mean(axis=0) for parts in (
        [planted.captured["ja"]], [planted.captured["en"], planted.captured["ko"]]))  # fmt: skip
    target = tn.Centroids(torch.from_numpy(own - others), tuple(LAYERS))
    expected = tn.score_neurons(type2.model, type2.captured["ja"], target, layers=[0, 1, 2]).top(6)
    assert type2.towards(type2.difference()).pairs == expected.pairs
    assert PLANTED["difference"] not in expected


@every_distance
def test_a_random_direction_finds_a_planted_neuron_no_more_often_than_chance(planted, distance):
    chosen = replace(planted, distance=distance)
    draws = [chosen.towards(chosen.random_direction(seed)) for seed in range(60)]
    assert len({draw.pairs for draw in draws}) == 60
    assert draws[3].pairs == chosen.towards(chosen.random_direction(np.int64(3))).pairs
    chance = stats.binom(60, 6 / (3 * WIDTH))
    for name in ("shared", "difference", "ja", "ko"):
        times = sum(PLANTED[name] in draw.pairs for draw in draws)
        assert times <= chance.ppf(0.9999)
    assert {len(draw) for draw in draws} == {6}
    assert draws[3].provenance["centroid"] == [{"target": "random direction", "seed": 3}]


def test_a_random_direction_is_as_far_off_as_the_target_where_distance_counts(planted):
    drawn = replace(planted, distance="euclidean").random_direction(0)
    mid = planted.captured["ja"].mid.double().mean(dim=1)
    own = torch.stack([planted.captured[name].post.double().mean(dim=1) for name in ("en", "ja")]).mean(dim=0)
    moved = torch.nn.functional.normalize(drawn.values.double() - mid, dim=1)
    assert torch.allclose(moved, moved[:1].expand(4, -1), atol=1e-5)
    assert torch.allclose((drawn.values.double() - mid).norm(dim=1), (own - mid).norm(dim=1), rtol=1e-5)
    other = replace(planted, distance="euclidean").random_direction(1).values.double()
    cosines = torch.nn.functional.cosine_similarity(drawn.values.double() - mid, other - mid, dim=1)
    assert cosines.abs().max() < 0.6  # of random directions in 32 dimensions


def test_shuffled_labels_keep_the_sizes_of_the_languages(planted):
    """Every sentence is another coordinate, so that the centroid tells which were drawn."""
    coordinates, start, captured = torch.eye(HIDDEN), 0, {}
    for name, size in {"en": 8, "ja": 4, "ko": 12}.items():
        post = coordinates[start : start + size].expand(4, size, HIDDEN).contiguous()
        captured[name] = tn.Activations(tuple(LAYERS), torch.arange(size), post=post)
        start += size
    chosen, seen = replace(planted, captured=captured), set()
    for seed in range(20):
        target = chosen.shuffled_labels(seed)
        weights = target.values[0]
        assert torch.equal(target.values, weights.expand(4, HIDDEN))
        counts = {float(weight): int(count) for weight, count in zip(*weights.unique(return_counts=True), strict=True)}
        assert counts == {0.0: HIDDEN - 12, 1 / 16: 8, 1 / 8: 4}
        assert [drawn["n"] for drawn in target.provenance["sentences"]] == [8, 4]
        seen |= set(weights.nonzero()[:, 0].tolist())
    assert seen == set(range(24))
    assert torch.equal(chosen.shuffled_labels(5).values, chosen.shuffled_labels(5).values)


def test_other_layers_keep_the_target_and_the_number_of_each_layer(planted):
    elsewhere = planted.in_layers([3], {0: 2, 1: 1, 2: 3})
    assert {*elsewhere.by_layer()} == {3} and len(elsewhere) == 6
    assert elsewhere[0] == PLANTED["late"]
    target = tn.estimate_centroids([planted.captured["en"], planted.captured["ja"]])
    scores = tn.score_neurons(planted.model, planted.captured["ja"], target)
    assert elsewhere.pairs == scores.top(6, layers=[3]).pairs
    spread = planted.in_layers([1, 3], {0: 2, 1: 1, 2: 3})
    assert {layer: len(members) for layer, members in spread.by_layer().items()} == {1: 5, 3: 1}


def test_the_hub_placebo_is_of_the_hubs_sentences_and_centroid(planted):
    target = tn.estimate_centroids([planted.captured["en"]])
    scores = tn.score_neurons(planted.model, planted.captured["en"], target)
    assert planted.of_language("en").pairs == scores.top(6, layers=[0, 1, 2]).pairs


def test_a_detected_set_tells_how_it_was_chosen():
    model, corpus = tiny_model(), tiny_corpus()
    captured = {name: tn.capture(model, texts, progress=False) for name, texts in corpus["train"].items()}
    for kind, target in {"type1": ("en", "ja"), "type2": ("ja",)}.items():
        for distance in DISTANCES:
            options = {"language": "ja", "kind": kind, "top": 20, "distance": distance, "progress": False}
            neurons = tn.detect(model, corpus, **options).neurons
            layers = model.early_layers if kind == "type1" else model.late_layers
            chosen = Selection.of(neurons, model, captured, layers=layers)
            assert (chosen.language, chosen.target, chosen.distance) == ("ja", target, distance)
            assert chosen.towards(chosen.centroid(*target)).pairs == neurons.pairs


def test_a_centred_set_has_rivals_that_are_seen_from_its_origin():
    model, corpus = tiny_model(), tiny_corpus()
    captured = {name: tn.capture(model, texts, progress=False) for name, texts in corpus["train"].items()}
    neurons = tn.detect(model, corpus, language="ja", top=20, score="centred", progress=False).neurons
    chosen = Selection.of(neurons, model, captured, layers=model.early_layers)
    assert (chosen.target, {*chosen.origin}) == (("en",), {"en", "it", "ja"})
    assert chosen.towards(chosen.centroid("en")).pairs == neurons.pairs
    origin = tn.estimate_centroids([*captured.values()])
    rivals = {
        "towards ja": tn.score_neurons(model, captured["ja"], chosen.centroid("ja"), origin=origin),
        "hub placebo": tn.score_neurons(model, captured["en"], chosen.centroid("en"), origin=origin),
    }
    offered = tn.controls(neurons, layers=model.early_layers, model=model, captured=captured)
    assert "towards all" not in offered and "towards en" not in offered
    for name, scores in rivals.items():
        assert offered[name].pairs == scores.top(20, layers=model.early_layers).pairs
    drawn, other = (chosen.random_direction(seed).values.double() - origin.values.double() for seed in (0, 1))
    own = chosen.centroid("en").values.double() - origin.values.double()
    assert torch.allclose(drawn.norm(dim=1), own.norm(dim=1), rtol=1e-4)
    straight = torch.nn.functional.normalize(drawn, dim=1)
    assert torch.allclose(straight, straight[:1].expand_as(straight), atol=1e-3)
    assert torch.nn.functional.cosine_similarity(drawn, other, dim=1).abs().max() < 0.6
    assert chosen.towards(chosen.random_direction(0)).provenance["origin"] == neurons.provenance["origin"]
    assert {*offered["wrong layers"].by_layer()} <= {2, 3}


def test_what_a_set_does_not_tell_is_asked_for():
    model, some = tiny_model(), tn.NeuronSet(((0, 5), (1, 2)), (4, 48))
    with pytest.raises(tn.TnkitError, match="name both, as in language='ja'"):
        Selection.of(some, model, {})
    with pytest.raises(tn.TnkitError, match="there is no capture of en"):
        captured = {"ja": tn.capture(model, ["Hi!"], progress=False)}
        Selection.of(some, model, captured, language="ja", target=["en", "ja"])
    with pytest.raises(tn.TnkitError, match="only ja was captured"):
        Selection.of(some, model, captured, language="ja", target=["ja"]).difference()
