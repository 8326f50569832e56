"""Correlation ratios and their tests against scipy, statsmodels and planted effects."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

import tnkit as tn
from tnkit.measures import specificity
from tnkit.measures.specificity import FAMILIES, PUBLISHED_FAMILIES, correlation_ratio, top_sentences
from tnkit.testing import SENTENCES, tiny_model

SIZES = {"en": 40, "ja": 23, "ko": 31}


def made(values, **about):
    """A capture of those activations, (layer, sentence, neuron)."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    layers, n, _ = values.shape
    return tn.Activations(tuple(range(layers)), torch.arange(n), activations=values, provenance=about)


@pytest.fixture(scope="module")
def captured():
    """Three languages with means and spreads of their own, and a large mean to be subtracted, (2, sentence, 12)."""
    draw = np.random.default_rng(0)
    values = {
        name: 300 + draw.normal(0.3 * place, 1 + place, (2, n, 12)) for place, (name, n) in enumerate(SIZES.items())
    }
    return {name: made(part) for name, part in values.items()}


def each_neuron(captured):
    """Of each neuron its activations by language, float64."""
    parts = [part.activations.double().numpy() for part in captured.values()]
    return [[[part[layer, :, neuron] for part in parts] for neuron in range(12)] for layer in range(2)]


def test_f_and_p_are_scipys_and_eta2_is_the_share_of_variance_explained(captured):
    found = correlation_ratio(captured)
    for layer, neurons in enumerate(each_neuron(captured)):
        for neuron, groups in enumerate(neurons):
            expected = stats.f_oneway(*groups)
            assert found.F[layer, neuron] == pytest.approx(expected.statistic, rel=1e-9)
            assert found.p[layer, neuron] == pytest.approx(expected.pvalue, rel=1e-8)
            whole = np.concatenate(groups)
            left = sum(((group - group.mean()) ** 2).sum() for group in groups) / ((whole - whole.mean()) ** 2).sum()
            assert found.eta2[layer, neuron] == pytest.approx(1 - left, rel=1e-8)


def test_welch_is_that_of_statsmodels_and_epsilon2_the_adjusted_r2_of_a_regression(captured):
    oneway = pytest.importorskip("statsmodels.stats.oneway")
    from statsmodels.api import OLS

    found = correlation_ratio(captured)
    names = np.repeat(list(SIZES), list(SIZES.values()))
    dummies = np.stack([np.ones(len(names)), names == "ja", names == "ko"], axis=1).astype(float)
    for layer, neurons in enumerate(each_neuron(captured)):
        for neuron, groups in enumerate(neurons):
            expected = oneway.anova_oneway(groups, use_var="unequal")
            assert found.p_welch[layer, neuron] == pytest.approx(expected.pvalue, rel=1e-8)
            assert found.epsilon2[layer, neuron] == pytest.approx(
                OLS(np.concatenate(groups), dummies).fit().rsquared_adj, rel=1e-7
            )


def test_against_the_rest_it_is_the_squared_correlation_and_welchs_t_test(captured):
    found = correlation_ratio(captured, language="ko")
    assert found.groups == {"ko": ("ko",), "rest": ("en", "ja")}
    assert found.counts == {"ko": 31, "rest": 63}
    label = np.repeat([0.0, 1.0], [63, 31])
    for layer, neurons in enumerate(each_neuron(captured)):
        for neuron, groups in enumerate(neurons):
            whole = np.concatenate(groups)
            assert found.eta2[layer, neuron] == pytest.approx(stats.pearsonr(label, whole)[0] ** 2, rel=1e-8)
            expected = stats.ttest_ind(whole[:63], whole[63:], equal_var=False).pvalue
            assert found.p_welch[layer, neuron] == pytest.approx(expected, rel=1e-8)


def test_a_group_of_languages_is_one_sample_of_all_their_sentences(captured):
    merged = {
        "ja": made(torch.cat([captured["ja"].activations, captured["ko"].activations], dim=1)),
        "en": captured["en"],
    }
    expected = correlation_ratio(merged)
    for found in (
        correlation_ratio(captured, groups=PUBLISHED_FAMILIES),
        correlation_ratio(captured, groups=PUBLISHED_FAMILIES, language="ko"),
    ):
        assert sorted(found.counts.values()) == [40, 54]
        for name in ("eta2", "epsilon2", "F", "p", "p_welch", "q", "q_welch"):
            assert np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-9)


def test_families_are_named_by_language():
    assert FAMILIES["en"] == FAMILIES["nl"] != FAMILIES["it"]
    assert len({FAMILIES[name] for name in ("ja", "ko", "zh", "it")}) == 4


def test_q_is_benjamini_and_hochbergs_over_all_neurons(captured):
    found = correlation_ratio(captured)
    p = np.sort(found.p.ravel())
    steps = p * len(p) / np.arange(1, len(p) + 1)
    expected = [min(steps[place:].min(), 1) for place in range(len(p))]
    assert np.allclose(np.sort(found.q.ravel()), expected)


def test_without_an_effect_p_is_uniform_and_epsilon2_is_zero_on_average():
    draw = np.random.default_rng(1)
    found = correlation_ratio({name: made(draw.normal(size=(2, 30, 1000))) for name in "abc"})
    assert (found.p < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (found.p_welch < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (found.q < 0.05).mean() < 0.005
    assert found.eta2.mean() == pytest.approx(2 / 89, rel=0.1)
    assert abs(found.epsilon2.mean()) < 0.002


@pytest.mark.filterwarnings("error")
def test_what_does_not_vary_has_the_documented_values():
    draw = np.random.default_rng(2)
    noise = draw.normal(size=(2, 1, 20, 1))
    constant, apart = np.full((2, 1, 20, 1), 0.1), np.stack([np.full((1, 20, 1), 1.0), np.full((1, 20, 1), 3.0)])
    dead = np.stack([np.zeros((1, 20, 1)), 1 + noise[1]])
    left, right = np.concatenate([noise, constant, apart, dead], axis=3)
    found = correlation_ratio({"en": made(left), "ja": made(right)})
    named = {name: getattr(found, name)[0] for name in ("eta2", "epsilon2", "F", "p", "p_welch", "q", "q_welch")}
    assert [values[1] for values in named.values()] == [0, 0, 0, 1, 1, 1, 1]
    assert [named[name][2] for name in ("eta2", "epsilon2", "F", "p", "q")] == [1, 1, np.inf, 0, 0]
    assert named["p_welch"][2] < 1e-100
    # A language in which a neuron is dead counts as the limit of a small variance: a t test against its constant.
    limit = stats.ttest_1samp(right[0, :, 3].astype(np.float32).astype(float), 0.0).pvalue
    assert named["p_welch"][3] == pytest.approx(limit, rel=1e-5)


def test_sums_run_a_layer_at_a_time():
    parts = {name: made(np.random.default_rng(3).normal(size=(12, 60, 300))) for name in ("en", "ja")}
    correlation_ratio(parts)
    tracemalloc.start()
    correlation_ratio(parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * sum(part.activations.nbytes for part in parts.values())


def test_shares_count_the_set_its_layers_and_what_random_sets_have():
    draw = np.random.default_rng(4)
    base, other = draw.normal(size=(2, 4, 25, 40))
    other[:, :, :10] += 3  # ten neurons of each layer know the language
    other[3, :, :30] += 3
    about = {"model": {"layers": 6}}
    found = correlation_ratio({"en": made(base, **about), "ja": made(other, **about)})
    chosen = tn.NeuronSet(((3, 39), (0, 2), (3, 1), (3, 2)), (6, 40))
    frame = found.shares(chosen, [0.3], alpha=0.01)
    knows = (found.eta2 > 0.3) & (found.p < 0.01)
    assert knows[:3, :10].all()
    assert not knows[:3, 10:].any()
    assert frame.loc[(0.3, "p < 0.01")].tolist() == pytest.approx([3 / 4, (0.25 + 0.75) / 2, (0.25 + 3 * 0.75) / 4])
    assert frame.index.get_level_values("test").tolist() == ["p < 0.01", "q < 0.01", "Welch q < 0.01"]
    assert frame.loc[(0.3, "Welch q < 0.01"), "set"] == 3 / 4
    assert found.shares(chosen).index.get_level_values("eta2 above").unique().tolist() == [0.1, 0.25]
    with pytest.raises(tn.TnkitError, match="the set is empty"):
        found.shares(tn.NeuronSet((), (6, 40)))
    with pytest.raises(tn.TnkitError, match=r"layers \[5\] were not captured"):
        found.shares(tn.NeuronSet(((5, 0),), (6, 40)))
    with pytest.raises(tn.TnkitError, match=r"the set's model has \(4, 40\)"):
        found.shares(tn.NeuronSet(((1, 0),), (4, 40)))


def test_a_share_counts_neurons_at_the_threshold_as_the_published_code_does(captured):
    found = correlation_ratio(captured)
    neurons = tn.NeuronSet(((0, 3), (1, 7)), (2, 12))
    threshold = float(found.eta2[0, 3])
    published = np.mean([found.eta2[pair] >= threshold and found.p[pair] < 1 for pair in neurons])
    assert found.shares(neurons, [threshold], alpha=1.0).loc[(threshold, "p < 1"), "set"] == published > 0


def test_a_planted_neuron_is_on_top_and_the_frame_and_the_curve_say_so(captured):
    values = {name: part.activations.clone() for name, part in captured.items()}
    values["ja"][1, :, 7] += 50
    found = correlation_ratio({name: made(part) for name, part in values.items()}, language="ja")
    top = found.top(3)
    assert top[0] == (1, 7)
    assert top.scores[0] == found.to_frame()["eta2"].max() == found.to_frame().loc[(1, 7), "eta2"]
    assert found.top(1, layers=[0])[0][0] == 0
    ax = found.plot(None, top)
    (chosen, others), marks = ax.lines[:2], ax.lines[2:]
    assert [float(mark.get_xdata()[0]) for mark in marks] == [0.1, 0.25]
    assert len(others.get_xdata()) == 1 + 24 - 3
    x, y = chosen.get_data()
    at = y[np.searchsorted(x, top.scores[1], side="right") - 1]
    assert at == pytest.approx(1 / 3)  # one of three is above the second
    with pytest.raises(tn.TnkitError, match="top 25 was asked for"):
        found.top(25)
    with pytest.raises(tn.TnkitError, match=r"layers \[9\] were not captured; captured are"):
        found.top(1, layers=[9])


def test_layers_keep_their_numbers():
    model = tiny_model()
    parts = {
        "en": tn.capture(model, SENTENCES[:3], keep=["activations"], layers=[1, 3], progress=False),
        "ja": tn.capture(model, SENTENCES[3:], keep=["activations"], layers=[1, 3], progress=False),
    }
    found = correlation_ratio(parts)
    whole = correlation_ratio(
        {
            "en": tn.capture(model, SENTENCES[:3], progress=False),
            "ja": tn.capture(model, SENTENCES[3:], progress=False),
        }
    )
    assert found.top(5, layers=[3]).shape == (4, 48)
    assert {layer for layer, _ in found.top(96)} == {1, 3}
    assert np.allclose(found.eta2, whole.eta2[[1, 3]], atol=1e-5)
    assert [(entry["language"], entry["n"]) for entry in found.provenance["sentences"]] == [("en", 3), ("ja", 3)]
    assert found.shares(tn.NeuronSet(((3, 4),), (4, 48)), [0.0]).iloc[0, 0] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: {"en": parts["en"]}, "are all in one group, en; compare at least 2"),
        (lambda _: {}, r"cannot compare 0 language\(s\)"),
        (lambda parts: parts | {"it": made(np.ones((2, 1, 12)))}, "the group it has 1 sentence"),
        (lambda parts: parts | {"it": made(np.ones((2, 4, 9)))}, r"en and it .* different width \(12 and 9\)"),
        (lambda parts: parts | {"it": made(np.ones((3, 4, 12)))}, r"different layers \(\(0, 1\) and \(0, 1, 2\)\)"),
        (lambda parts: parts | {"it": made(np.full((2, 4, 12), np.inf))}, "of it in layer 0 hold NaN or Inf"),
        (lambda parts: parts | {"it": made(np.full((2, 4, 12), np.nan))}, "of it in layer 0 hold NaN or Inf"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_captures_that_do_not_compare_are_refused(captured, change, words):
    with pytest.raises(tn.TnkitError, match=words):
        correlation_ratio(change(captured))


def test_groups_and_languages_that_are_not_there_are_refused(captured):
    with pytest.raises(tn.TnkitError, match="there is no capture of 'it'; there are en, ja, ko"):
        correlation_ratio(captured, language="it")
    with pytest.raises(tn.TnkitError, match="no group for ko"):
        correlation_ratio(captured, groups={"en": "a", "ja": "b"})
    with pytest.raises(tn.TnkitError, match="all in one group, a"):
        correlation_ratio(captured, groups=dict.fromkeys(SIZES, "a"), language="ja")


def test_top_sentences_are_those_of_the_largest_activation():
    texts = {"en": ["a", "b", "c"], "ja": ["d", "e"]}
    values = {"en": np.zeros((2, 3, 4)), "ja": np.zeros((2, 2, 4))}
    values["en"][1, :, 2] = [0.5, -3.0, 2.0]
    values["ja"][1, :, 2] = [2.0, 9.0]
    parts = {name: made(part) for name, part in values.items()}
    frame = top_sentences(parts, texts, (1, 2), n=3)
    assert frame.values.tolist() == [["ja", 1, 9.0, "e"], ["en", 2, 2.0, "c"], ["ja", 0, 2.0, "d"]]
    assert frame.index.tolist() == [1, 2, 3]
    assert top_sentences(parts, texts, (1, 2), n=1, lowest=True)["text"].tolist() == ["b"]
    assert len(top_sentences(parts, texts, (0, 0), n=99)) == 5
    for neuron in ((2, 0), (0, 4), (0, -1)):
        with pytest.raises(tn.TnkitError, match="was not captured"):
            top_sentences(parts, texts, neuron)
    with pytest.raises(tn.TnkitError, match="the sentences of ja are missing"):
        top_sentences(parts, {"en": texts["en"]}, (1, 2))
    with pytest.raises(tn.TnkitError, match="not the 3 sentences of en"):
        top_sentences(parts, texts | {"en": ["a", "b"]}, (1, 2))


def test_top_sentences_know_what_was_captured():
    model = tiny_model()
    whole = tn.capture(model, SENTENCES, keep=["activations"], progress=False)
    frame = top_sentences(whole, SENTENCES, (2, 7), n=6)
    assert frame["text"].tolist() == [SENTENCES[place] for place in frame["sentence"]]
    assert frame["activation"].tolist() == sorted(whole.activations[2, :, 7].tolist(), reverse=True)
    batch = next(tn.stream(model, SENTENCES, keep=["activations"], batch_tokens=64, progress=False))
    first = top_sentences(batch, SENTENCES, (2, 7), n=1).iloc[0]
    assert batch.index.tolist() != list(range(len(batch)))
    assert first["text"] == SENTENCES[first["sentence"]]
    assert first["activation"] == pytest.approx(float(whole.activations[2, first["sentence"], 7]), rel=1e-4)
    with pytest.raises(tn.TnkitError, match="not the 6 sentences"):
        top_sentences(whole, SENTENCES[::-1], (2, 7))


def test_every_measure_has_its_place_here():
    assert all(callable(getattr(specificity, name)) for name in ("lape", "average_precision", "overlaps"))
