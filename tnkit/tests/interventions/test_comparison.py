"""Controls match what they say; effects, intervals and p-values against scipy and planted effects."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats

import tnkit as tn
from tnkit.detection.scoring import contribution_norms
from tnkit.models import model as models
from tnkit.models import weights
from tnkit.testing import SENTENCES, tiny_model, tiny_module
from tnkit.tests import oracle

SHAPE = (6, 200)
MEMBERS = tn.NeuronSet(tuple((layer, neuron) for layer in (1, 2, 4) for neuron in range(0, 40, 4)), SHAPE)


def test_every_control_is_as_large_disjoint_and_seeded():
    norms = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    scores = tn.NeuronScores(torch.rand(SHAPE).double(), "cosine")
    drawn = tn.controls(MEMBERS, layers=range(1, 5), norms=norms, scores=scores)
    assert list(drawn) == ["uniform", "same layers", "same layers and norms", "lowest scores"]
    for name in ("uniform", "same layers", "same layers and norms"):
        one, again, other = drawn[name](0), drawn[name](0), drawn[name](1)
        assert one.pairs == again.pairs != other.pairs
        assert len(one) == len(MEMBERS)
        assert not set(one) & set(MEMBERS)


def test_matching_by_layer_keeps_the_count_of_every_layer():
    for norms in (None, torch.rand(SHAPE)):
        counts = {layer: len(members) for layer, members in MEMBERS.matched(seed=3, norms=norms).by_layer().items()}
        assert counts == {1: 10, 2: 10, 4: 10}


def test_matching_by_norm_brings_the_norms_together():
    norms = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) ** 4
    members = tn.NeuronSet(tuple((1, int(n)) for n in norms[1].argsort()[100:160]), SHAPE)
    size = lambda neurons: np.log([float(norms[pair]) for pair in neurons])  # noqa: E731
    matched, by_layer = members.matched(seed=0, norms=norms), members.matched(seed=0)
    assert abs(size(matched).mean() - size(members).mean()) < 0.25
    assert abs(size(by_layer).mean() - size(members).mean()) > 1


def test_uniform_reaches_every_layer_of_its_range_and_no_other():
    seen = {layer for seed in range(40) for layer, _ in MEMBERS.uniform(seed=seed, layers=range(2, 5))}
    assert seen == {2, 3, 4}
    assert {layer for layer, _ in MEMBERS.uniform(seed=0)} <= {1, 2, 3, 4}


def test_a_layer_that_is_too_full_is_named():
    full = tn.NeuronSet(tuple((3, neuron) for neuron in range(150)), SHAPE)
    with pytest.raises(tn.TnkitError, match="layer 3 has 50 other neurons, too few for a control of 150"):
        full.matched(seed=0)
    with pytest.raises(tn.TnkitError, match="50 other neurons in these layers are too few"):
        full.uniform(seed=0)


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_contribution_norms_are_those_of_the_oracle(name):
    model = tiny_model(name)
    expected = 0
    for sentence in SENTENCES:
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        _, added = oracle.contributions(tiny_module(name), model.blocks_path, model.sites, ids)
        expected = expected + torch.stack([moves.norm(dim=-1) for moves in added]) / len(SENTENCES)
    found = contribution_norms(model, tn.capture(model, SENTENCES, progress=False))
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-7)


def planted(neurons, effect=0.5):
    """Noise that depends on the neurons, and a drop of `effect` in layer 1 where the members themselves are off."""
    random = np.random.default_rng(abs(hash(neurons.pairs)) % 2**32)
    values = np.linspace(0, 1, 80)[None] * [[1], [1.2]] + random.normal(0, 0.1, (2, 80))
    values[1] -= effect * (neurons.pairs == MEMBERS.pairs)
    return values


def test_a_planted_effect_is_found_where_it_is_and_nowhere_else():
    found = tn.compare(planted, MEMBERS, controls=tn.controls(MEMBERS), seeds=5, progress=False)
    table = found.to_frame()
    for name in ("none", "uniform", "same layers"):
        hit, miss = table.loc[(1, name)], table.loc[(0, name)]
        assert hit["effect"] == pytest.approx(-0.5, abs=0.06)
        assert hit["effect low"] < -0.5 < hit["effect high"]
        assert hit["ratio"] == pytest.approx(0.1 / 0.6, abs=0.08)
        assert hit["ratio low"] < hit["ratio"] < hit["ratio high"] < 0.5 < miss["ratio low"]
        assert hit["p sentences"] < 0.001
        assert abs(miss["effect"]) < 0.06
        assert miss["p sentences"] > 0.001
    assert table.loc[(1, "the set"), ["effect", "ratio", "p sentences"]].tolist() == [0, 1, 1]
    assert found.at().loc["uniform", "seeds"] == 5
    assert found.at(0).drop(columns="p adjusted").equals(table.loc[0].drop(columns="p adjusted"))


def test_intervals_and_p_values_are_those_of_scipy():
    found = tn.compare(planted, MEMBERS, controls={"other": MEMBERS.matched(seed=1)}, progress=False)
    row = found.to_frame().loc[(0, "other")]
    difference = found.ablated[0] - found.controls["other"][0, 0]
    boot = stats.bootstrap((found.controls["other"][0, 0],), np.mean, method="percentile", rng=0).confidence_interval
    assert (row["low"], row["high"]) == pytest.approx((boot.low, boot.high), abs=0.02)
    boot = stats.bootstrap((difference,), np.mean, method="percentile", rng=0).confidence_interval
    assert (row["effect low"], row["effect high"]) == pytest.approx((boot.low, boot.high), abs=0.005)
    test = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=9999, rng=0)
    assert row["p sentences"] == pytest.approx(test.pvalue, abs=0.03)


def noise(random, seeds, sentences, between=0.3):
    """A set that is as its controls: each sentence adds the same for every set, and each set the same everywhere."""
    sentence, sets = random.normal(0, 1, sentences), random.normal(0, between, (1 + seeds, 1, 1))
    values = sentence + sets + random.normal(0, 0.5, (1 + seeds, 1, sentences))
    return tn.Comparison("noise", (0,), sentence[None], values[0], {"random": values[1:]}), float(sets[0, 0, 0])


@pytest.mark.parametrize("seeds", [1, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    random, inside = np.random.default_rng(seeds), 0
    for _ in range(80):
        found, effect = noise(random, seeds, 40, between=0.3 if seeds > 1 else 0)
        row = found.to_frame().loc[(0, "random")]
        inside += row["effect low"] <= effect <= row["effect high"]
    assert stats.binom.cdf(inside, 80, 0.95) > 1e-3


def test_a_random_set_among_random_sets_is_no_finding_though_its_sentences_differ():
    random = np.random.default_rng(0)
    rows = [noise(random, 39, 40)[0].to_frame().loc[(0, "random")] for _ in range(80)]
    below = {name: sum(row[name] < 0.05 for row in rows) for name in ("p sentences", "p sets")}
    assert stats.binom.sf(below["p sets"] - 1, 80, 0.05) > 1e-3
    assert below["p sentences"] > 30  # of these sets, which do differ


def test_p_of_sets_is_the_exact_permutation_test_of_one_set_among_its_draws():
    found, _ = noise(np.random.default_rng(1), 24, 30)
    means = np.append(found.ablated.mean(), found.controls["random"].mean(axis=(1, 2)))
    apart = [abs(means[chosen] - np.delete(means, chosen).mean()) for chosen in range(25)]  # each is the set once
    expected = np.mean([distance >= apart[0] for distance in apart])
    row = found.to_frame().loc[(0, "random")]
    assert row["p sets"] == pytest.approx(expected) and 1 / 25 < row["p sets"] < 1
    alone = tn.Comparison("one", (0,), found.untouched, found.ablated, {"one": found.controls["random"][:1]})
    assert alone.to_frame()["p sets"].isna().all()


def test_what_is_detectable_is_detected_four_times_in_five():
    random, rows = np.random.default_rng(0), []
    effect = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.sqrt(2 * 0.5**2 / 30)  # of the spread that is known
    for _ in range(100):
        sentence, (control, ablated) = random.normal(0, 1, 30), random.normal(0, 0.5, (2, 1, 30))
        control, ablated = sentence + control, sentence + ablated + effect
        found = tn.Comparison("planted", (0,), sentence[None], ablated, {"one": control[None]})
        rows.append(found.to_frame().loc[(0, "one")])
    assert np.mean([row["detectable"] for row in rows]) == pytest.approx(effect, rel=0.1)
    detected = sum(row["p sentences"] < 0.05 for row in rows)
    assert stats.binomtest(detected, 100, 0.8).pvalue > 1e-3


def test_p_values_are_corrected_over_what_was_looked_at():
    found = tn.compare(planted, MEMBERS, controls=tn.controls(MEMBERS), seeds=5, progress=False)
    table, chosen, picked = found.to_frame(), found.at(1), found.at()
    others = table[table.index.get_level_values("condition") != "the set"]
    for rows, family in ((chosen, others.loc[1]), (picked, others)):
        raw, adjusted = family["p sets"].fillna(family["p sentences"]).tolist(), []
        for p in raw:  # the first step that would not reject it, at every level
            steps = [(len(raw) - rank) * other for rank, other in enumerate(sorted(raw)) if other <= p]
            adjusted.append(min(1, max(steps)))
        assert rows["p adjusted"].drop("the set").tolist() == pytest.approx(adjusted[-3:])
        assert np.isnan(rows.loc["the set", "p adjusted"])
    assert chosen.attrs == {
        "layer": 1,
        "layer chosen on": "",
        "p adjusted": "Holm over conditions at this layer (3 tests)",
    }
    assert picked.attrs == {
        "layer": 1,
        "layer chosen on": "these sentences",
        "p adjusted": "Holm over all layers and conditions (6 tests)",
    }


def test_a_layer_chosen_on_other_sentences_is_the_one_reported():
    options = {"controls": tn.controls(MEMBERS), "seeds": 2, "progress": False}
    found = tn.compare(planted, MEMBERS, **options, chosen_layer=np.int64(0), chosen_on="training sentences")
    assert found.best_layer == 1
    assert found.at().equals(found.at(0)) and not found.at().equals(found.at(1))
    assert found.at().attrs["layer chosen on"] == "training sentences"
    assert found.plot_at().get_title(loc="left") == "layer 0, chosen on training sentences"
    assert found.plot_at(1).get_title(loc="left") == "layer 1"
    runs = []
    with pytest.raises(tn.TnkitError, match="chosen_layer=2 is not measured; measured are 0 to 1"):
        tn.compare(lambda n: runs.append(n) or planted(n), MEMBERS, **options, chosen_layer=2)
    assert len(runs) == 1  # and not after all of the controls


def test_ratios_with_zero_are_documented():
    nothing, one = np.zeros((1, 5)), np.ones((1, 5))
    found = tn.Comparison("zero", (0,), nothing, one, {"zero": nothing[None], "one": one[None]})
    assert found.to_frame()["ratio"].tolist() == [np.inf, 1, np.inf, 1]
    assert tn.Comparison("zero", (0,), nothing, nothing, {}).to_frame()["ratio"].tolist() == [1, 1]


def test_what_cannot_be_compared_is_refused():
    for wrong, words in ((lambda _: [np.nan], "not finite"), (lambda n: np.ones(1 + len(n)), "different numbers")):
        with pytest.raises(tn.TnkitError, match=words):
            tn.compare(wrong, MEMBERS, controls={}, progress=False)
    with pytest.raises(tn.TnkitError, match="seeds=0 must be at least 1"):
        tn.compare(planted, MEMBERS, controls={}, seeds=0, progress=False)


def test_the_plot_names_every_condition():
    found = tn.compare(planted, MEMBERS, controls=tn.controls(MEMBERS), seeds=2, name="planted", progress=False)
    ax = found.plot()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "none",
        "the set",
        "uniform",
        "same layers",
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "planted")
    points = found.plot_at(1)
    assert [text.get_text() for text in points.get_yticklabels()] == [
        "none",
        "the set",
        "uniform (2 seeds)",
        "same layers (2 seeds)",
    ]
    assert [text.get_text() for text in points.texts] == [f"{mean:.3f}" for mean in found.at(1)["mean"]]
    assert points.get_title(loc="left") == "layer 1"
    assert found.plot_at().get_title(loc="left") == f"layer {found.best_layer}, chosen on these sentences"
    one = tn.compare(lambda n: planted(n)[1], MEMBERS, controls={}, progress=False)
    assert [text.get_text() for text in one.plot().get_xticklabels()] == ["none", "the set"]


def test_a_comparison_that_is_given_its_model_reads_the_weights_before_and_after_it(monkeypatch):
    model, read = copy.deepcopy(tiny_model("llama")), []
    monkeypatch.setattr(models, "hash_now", lambda module: read.append(1) or weights.hash_of(module))
    some = tn.NeuronSet(((0, 5), (1, 2)), (4, 48))
    prefix, how = tn.LastToken(model, SENTENCES, keep=["post"], progress=False), {"seeds": 2, "progress": False}

    def measure(off):
        return prefix.capture(off).post.mean(dim=2)

    read.clear()
    apart, often = tn.compare(measure, some, controls=tn.controls(some), **how), len(read)
    read.clear()
    once = tn.compare(measure, some, controls=tn.controls(some), model=model, **how)
    assert len(read) == 2 < often
    assert once.to_frame().equals(apart.to_frame())

    def edits(off):
        model.module.model.layers[0].mlp.up_proj.weight.data.add_(1)
        return np.arange(3.0) + len(off)

    with pytest.raises(tn.TnkitError, match=r"weights .* changed"):
        tn.compare(edits, some, controls={}, model=model, **how)


def test_experiments_read_the_weights_a_few_times_whatever_they_compare(monkeypatch):
    model, read, counts = tiny_model("llama"), [], []
    monkeypatch.setattr(models, "hash_now", lambda module: read.append(1) or weights.hash_of(module))
    texts, how = {"en": SENTENCES[:3], "it": SENTENCES[3:]}, {"language": "it", "progress": False}
    some = tn.NeuronSet(((0, 5), (1, 2)), (4, 48))
    for seeds in (1, 6):
        for measure, tokens in (("retrieval", "last"), ("retrieval", "all"), ("perplexity", "all")):
            more = {"controls": tn.controls(some), "seeds": seeds, "measure": measure, "tokens": tokens}
            tn.ablate(model, texts, some, **more, **how)
        sets = dict.fromkeys("abcdef"[:seeds], some)
        tn.behaviour.perplexity_matrix(model, texts, sets, progress=False)
        counts.append(len(read))
        read.clear()
    assert counts[0] == counts[1]
