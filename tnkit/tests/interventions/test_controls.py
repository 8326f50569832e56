"""The controls by name: what is there, what each is chosen by, and that nothing is made before it is asked for."""

import pytest
import torch

import tnkit as tn
from tnkit.detection import selection
from tnkit.detection.scoring import contribution_norms
from tnkit.interventions.controls import drawn
from tnkit.testing import tiny_corpus, tiny_model

BY_TARGET = ["random direction", "shuffled labels", "towards en", "towards it", "towards ja", "towards all"]
BY_SIZE = ["largest norm", "largest norm, not in the set", "equal displacement", "equal displacement, more neurons"]


@pytest.fixture(scope="module")
def captured():
    return {name: tn.capture(tiny_model(), texts, progress=False) for name, texts in tiny_corpus()["train"].items()}


@pytest.fixture(scope="module")
def type1():
    return tn.detect(tiny_model(), tiny_corpus(), language="ja", top=12, progress=False)


@pytest.fixture(scope="module")
def rivals(type1, captured):
    return tn.controls(type1.neurons, layers=[0, 1], scores=type1.scores, model=tiny_model(), captured=captured)


def test_every_control_has_a_name(rivals):
    first = ["uniform", "same layers", "same layers and norms", "lowest scores"]
    assert list(rivals) == [*first, *BY_TARGET, "towards the difference", "wrong layers", "hub placebo", *BY_SIZE]
    assert len(rivals) == 17 and repr(rivals).startswith("Controls(uniform, same layers,")


def test_what_equals_the_own_target_is_left_out(captured):
    type2 = tn.detect(tiny_model(), tiny_corpus(), language="ja", kind="type2", top=12, progress=False).neurons
    names = list(tn.controls(type2, layers=[2, 3], model=tiny_model(), captured=captured))
    assert "towards ja" not in names and "hub placebo" not in names and {"towards en", "towards all"} <= {*names}
    both = {name: captured[name] for name in ("en", "ja")}
    some = tn.NeuronSet(((0, 5),), (4, 48))
    names = list(tn.controls(some, model=tiny_model(), captured=both, language="ja", target=["ja", "en"]))
    assert "towards all" not in names and {"towards ja", "towards en"} <= {*names}


def test_nothing_is_scored_before_it_is_asked_for_and_then_once(type1, captured, monkeypatch):
    scored = []

    def score(*given, **options):
        scored.append(given)
        return tn.score_neurons(*given, **options)

    monkeypatch.setattr(selection, "score_neurons", score)
    rivals = tn.controls(type1.neurons, layers=[0, 1], model=tiny_model(), captured=captured)
    assert list(rivals) and "towards en" in rivals and not scored
    assert rivals["towards en"] is rivals["towards en"] and len(scored) == 1
    rivals["random direction"](0), rivals["random direction"](1)
    assert len(scored) == 3


def test_the_default_controls_draw_as_the_sets_do(type1):
    neurons, norms = type1.neurons, torch.rand(4, 48, generator=torch.Generator().manual_seed(0))
    found = tn.controls(neurons, layers=[0, 1], norms=norms, scores=type1.scores, others={"other": neurons[:3]})
    assert list(found) == ["uniform", "same layers", "same layers and norms", "lowest scores", "other"]
    for seed in range(3):
        assert found["uniform"](seed) == neurons.uniform(seed=seed, layers=[0, 1])
        assert found["same layers"](seed) == neurons.matched(seed=seed)
        assert found["same layers and norms"](seed) == neurons.matched(seed=seed, norms=norms)
    assert found["lowest scores"] == type1.scores.bottom(12, layers=[0, 1])
    assert found["other"] == neurons[:3]


def test_sets_towards_other_targets_are_those_of_scores_towards_them(rivals, type1, captured):
    model, targets = tiny_model(), {"all": captured.values(), **{name: [part] for name, part in captured.items()}}
    for name, parts in targets.items():
        scores = tn.score_neurons(model, captured["ja"], tn.estimate_centroids([*parts]))
        assert rivals[f"towards {name}"] == scores.top(12, layers=[0, 1])
    assert type1.neurons == tn.score_neurons(model, captured["ja"], type1.centroids).top(12, layers=[0, 1])
    english = tn.score_neurons(model, captured["en"], tn.estimate_centroids([captured["en"]]))
    assert rivals["hub placebo"] == english.top(12, layers=[0, 1])


def test_random_targets_are_functions_of_the_seed(rivals):
    for name in ("random direction", "shuffled labels"):
        one, again, other = (rivals[name](seed) for seed in (0, 0, 1))
        assert one == again and len(one) == 12 and {*one.by_layer()} <= {0, 1}
        assert one.provenance["centroid"] != other.provenance["centroid"]
    assert len({rivals["random direction"](seed).pairs for seed in range(5)}) == 5


def test_wrong_layers_are_outside_the_range_with_the_same_numbers(rivals, type1):
    counts = sorted(len(members) for members in type1.neurons.by_layer().values())
    elsewhere = rivals["wrong layers"].by_layer()
    assert {*elsewhere} <= {2, 3}
    assert sorted(len(members) for members in elsewhere.values()) == counts


def test_largest_norms_are_those_of_a_sort(rivals, type1, captured):
    norms = contribution_norms(tiny_model(), captured["ja"])
    pairs = sorted(((layer, neuron) for layer in (0, 1) for neuron in range(48)), key=lambda pair: -norms[pair])
    assert rivals["largest norm"].pairs == tuple(pairs[:12])
    rest = [pair for pair in pairs if pair not in type1.neurons]
    assert rivals["largest norm, not in the set"].pairs == tuple(rest[:12])
    full = tn.NeuronSet(tuple(pairs[:60]), (4, 48))
    named = {"language": "ja", "target": ["en", "ja"]}
    found = tn.controls(full, layers=[0, 1], model=tiny_model(), captured=captured, **named)
    with pytest.raises(tn.TnkitError, match="layers 0 to 1 hold too few other neurons for a control of 60"):
        found["largest norm, not in the set"]


def test_all_controls_can_be_compared(rivals, type1):
    made = {name: rivals[name] for name in ("uniform", "random direction", "towards all", "equal displacement")}
    options = {"language": "ja", "controls": made, "seeds": 2, "progress": False}
    found = tn.ablate(tiny_model(), tiny_corpus()["test"], type1.neurons, **options)
    assert {name: len(draws) for name, draws in found.controls.items()} == {
        "uniform": 2, "random direction": 2, "towards all": 1, "equal displacement": 2}  # fmt: skip


def test_half_of_what_is_needed_is_refused(type1, captured):
    with pytest.raises(tn.TnkitError, match="give both model and captured, or neither"):
        tn.controls(type1.neurons, model=tiny_model())
    with pytest.raises(tn.TnkitError, match="there is no capture of ja"):
        tn.controls(type1.neurons, model=tiny_model(), captured={"en": captured["en"]})


def test_draws_are_of_each_seed():
    some = tn.NeuronSet(((0, 5), (1, 2)), (4, 48))
    assert drawn(some, 3) == [some]
    assert drawn(lambda seed: some.matched(seed=seed), 3) == [some.matched(seed=seed) for seed in range(3)]
