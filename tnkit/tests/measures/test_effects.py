"""Single-neuron effects against ablations by hand and scipy; a score that is causal is found to be, noise is not."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats

import tnkit as tn
from tnkit.measures.effects import Effects, sampled
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module

TEXTS = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
QUIET = {"progress": False}


def scores_of(values):
    return tn.NeuronScores(torch.as_tensor(values, dtype=torch.float64), "cosine")


@pytest.fixture(scope="module")
def scores():
    return tn.detect(tiny_model(), TEXTS, language="it", top=5, **QUIET).scores


def test_each_drop_is_the_ablation_of_one_neuron(scores):
    model = tiny_model()
    found = tn.effects(model, TEXTS, scores, language="it", layer=3, each=3, measure="centred_similarity", **QUIET)
    english = tn.capture(model, TEXTS["en"], **QUIET).post[3].double()

    def cosines(*off):
        with tn.Ablation(model, off, tokens="last"):
            italian = tn.capture(model, TEXTS["it"], **QUIET).post[3].double()
        return torch.nn.functional.cosine_similarity(italian - italian.mean(0), english - english.mean(0), dim=1)

    frame = found.to_frame()
    assert frame["stratum"].tolist() == ["top"] * 3 + ["middle"] * 3 + ["random"] * 3
    for number, (pair, row) in enumerate(frame.iterrows()):
        assert row["score"] == scores.values[pair].item()
        drops = found.drops[row["stratum"]][number % 3]
        assert np.allclose(drops, (cosines() - cosines(pair)).numpy(), atol=1e-6)
        assert row["drop"] == pytest.approx(drops.mean())
    assert np.abs(frame["drop"]).max() > 1e-4


def test_strata_are_disjoint_and_follow_ranks_and_seed():
    values = np.random.default_rng(0).normal(size=(4, 48))
    strata = sampled(scores_of(values), 20, seed=1)
    ranks = stats.rankdata(-values).reshape(values.shape)
    assert [ranks[pair] for pair in strata["top"]] == [*range(1, 21)]
    assert [ranks[pair] for pair in strata["middle"]] == [*range(87, 107)]
    assert len({*strata["top"], *strata["middle"], *strata["random"]}) == 60
    assert strata["random"] == sampled(scores_of(values), 20, seed=1)["random"]
    assert strata["random"] != sampled(scores_of(values), 20, seed=2)["random"]


def test_the_correlation_is_scipys_with_its_interval():
    random = np.random.default_rng(3)
    scores = random.normal(size=60)
    drops = (0.6 * scores + random.normal(size=60))[:, None] + 0.1 * random.normal(size=(60, 8))
    one = tn.NeuronSet(tuple((0, neuron) for neuron in range(60)), (4, 60), tuple(scores))
    row = Effects("margin", 3, {"given": one}, {"given": drops}).correlation().loc["given"]
    both = (scores, drops.mean(axis=1))
    assert row["spearman"] == pytest.approx(stats.spearmanr(*both).statistic)
    expected = stats.bootstrap(
        both, lambda x, y: stats.spearmanr(x, y).statistic, paired=True, vectorized=False, method="percentile", rng=0
    ).confidence_interval
    assert row["low"] == pytest.approx(expected.low, abs=0.04)
    assert row["high"] == pytest.approx(expected.high, abs=0.04)
    flat = Effects("margin", 3, {"given": one}, {"given": 0 * drops}).correlation().loc["given"]
    assert flat[["spearman", "low", "high"]].isna().all()


def test_intervals_of_unrelated_scores_hold_zero():
    random, missed = np.random.default_rng(0), 0
    for _ in range(100):
        sets, drops = {}, {}
        for layer, name in enumerate(("top", "middle", "random")):
            pairs = tuple((layer, neuron) for neuron in range(20))
            sets[name] = tn.NeuronSet(pairs, (4, 60), tuple(random.normal(-layer, 0.2, 20)))
            drops[name] = random.normal(size=(20, 2))
        row = Effects("margin", 3, sets, drops).correlation().loc["all"]
        missed += not row["low"] <= 0 <= row["high"]
    assert missed <= 12  # 5 expected; P(more than 12) is .001


def test_a_planted_causal_score_is_found():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    with torch.no_grad():  # the higher a neuron's number, the more it writes
        model.value_vectors(0).mul_(torch.linspace(0.01, 3, 48)[:, None])
    written = tn.scoring.contribution_norms(model, tn.capture(model, TEXTS["it"], **QUIET))[0]
    values = torch.full((4, 48), torch.nan, dtype=torch.float64)
    values[0] = written.double()
    found = tn.effects(model, TEXTS, scores_of(values), language="it", layer=0, each=16, measure="similarity", **QUIET)
    sizes = Effects(found.measure, 0, found.sample, {name: np.abs(drops) for name, drops in found.drops.items()})
    assert sizes.correlation().loc["all", "low"] > 0.3
    shuffled = {
        name: tn.NeuronSet(some.pairs, some.shape, tuple(np.random.default_rng(0).permutation(some.scores)))
        for name, some in found.sample.items()
    }
    within = Effects(found.measure, 0, shuffled, sizes.drops).correlation().loc["middle"]
    assert within["low"] < 0 < within["high"]


def test_it_is_drawn_and_an_interrupt_leaves_what_was_run(scores, monkeypatch, caplog):
    from tnkit.measures import effects

    class Bar(list):
        def __iter__(self):
            yield from self[:7]
            raise KeyboardInterrupt

    monkeypatch.setattr(effects, "tqdm", lambda order, **_: Bar(order))
    found = tn.effects(tiny_model(), TEXTS, scores, language="it", layer=2, each=5, **QUIET)
    assert sum(map(len, found.sample.values())) == 7
    assert "7 of 15 neurons" in caplog.text
    axes = found.plot()
    assert axes.get_ylabel() == "drop in retrieval margin, it and en, layer 2"
    assert sum(len(points.get_offsets()) for points in axes.collections) == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": None, "each": 3}, "name the layer to measure"),
        ({"each": 100}, "were scored; ask for fewer"),
        ({"sample": {"mine": tn.NeuronSet(((3, 1),), (4, 48), (0.1,))}, "layer": 2}, "layer 3 cannot change layer 2"),
        ({"sample": {"mine": tn.NeuronSet(((0, 1),), (4, 48))}}, "mine have no scores"),
    ],
)
def test_what_has_no_effect_or_score_is_refused(scores, wrong, message):
    with pytest.raises(tn.TnkitError, match=message):
        tn.effects(tiny_model(), TEXTS, scores, **{"language": "it", "layer": 3, **QUIET, **wrong})
