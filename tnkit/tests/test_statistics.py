"""Intervals and tests against scipy, which computes them from the observations."""

import numpy as np
import pytest
from scipy import stats

from tnkit.statistics import (
    effect_interval,
    flips,
    holm,
    interval,
    largest_rank_test,
    mean_interval,
    rank_test,
    resamples,
    sign_flip_test,
    welch,
)


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).normal(2, 1, 40)
    low, high = interval(resamples(40) @ values / 40)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_the_sign_flip_test_is_exact_where_all_signs_can_be_counted():
    differences = np.array([[0.5, 1.0, -0.25, 2.0, 0.75], [1.0, -1.0, 1.0, -1.0, 0.0]])
    signs = flips(5, np.random.default_rng(0))
    for p, row in zip(sign_flip_test(differences, signs), differences, strict=True):
        exact = stats.permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(exact.pvalue, abs=0.02)


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_welch_is_that_of_scipy_where_every_group_varies(groups):
    random = np.random.default_rng(groups)
    samples = [random.normal(g / 3, 1 + g, (8 + g, 6)) for g in range(groups)]
    means = np.stack([sample.mean(axis=0) for sample in samples])
    squares = np.stack([((sample - sample.mean(axis=0)) ** 2).sum(axis=0) for sample in samples])
    sizes = np.array([[float(len(sample))] for sample in samples])
    expected = stats.f_oneway(*samples, equal_var=False).pvalue
    assert welch(means, squares, sizes) == pytest.approx(expected, rel=1e-9)


def test_welch_has_a_value_where_scipy_has_none():
    constant, varying = np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0])
    p = welch(np.array([[1.0], [1.5]]), np.array([[0.0], [2.0]]), np.array([[3.0], [3.0]]))[0]
    limit = stats.ttest_1samp(varying + 0.5, 1.0).pvalue
    assert p == pytest.approx(limit, rel=1e-3)
    assert np.ptp(constant) == 0


def test_holm_is_that_of_the_textbook():
    p = np.array([0.01, 0.02, 0.03, 0.005, np.nan])
    assert holm(p)[:4] == pytest.approx([0.03, 0.04, 0.04, 0.02]) and np.isnan(holm(p)[4])
    assert (holm(p)[:4] >= stats.false_discovery_control(p[:4])).all()


def test_holm_finds_something_in_nothing_at_most_one_time_in_twenty():
    random = np.random.default_rng(0)
    families = random.uniform(size=(4000, 12))
    families[:, 6:] = families[:, [0]]  # whatever their dependence
    found = sum((holm(family) < 0.05).any() for family in families)
    assert stats.binom.sf(found - 1, 4000, 0.05) > 1e-3


def test_the_rank_is_that_of_a_monte_carlo_test():
    random = np.random.default_rng(3)
    value, draws = np.array([1.9, -0.4]), random.normal(0, 1, (499, 2))
    for number, p in enumerate(rank_test(value, draws)):
        drawn, together = iter([draws[:, number]]), np.append(draws[:, number], value[number])
        far = lambda values, axis, all=together: np.abs(values - all.mean()).mean(axis=axis)  # noqa: E731
        rvs = lambda size, drawn=drawn: next(drawn).reshape(size)  # noqa: E731
        how = {"n_resamples": 499, "alternative": "greater", "vectorized": True}
        assert p == pytest.approx(stats.monte_carlo_test(value[[number]], rvs, far, **how).pvalue)


def test_the_largest_rank_is_corrected_over_layers():
    random, found = np.random.default_rng(0), 0
    for _ in range(1000):
        values = random.standard_t(3, (40, 6)) * np.arange(1, 7) + random.normal(0, 1, (40, 1))
        p = largest_rank_test(values[0], values[1:])
        found += (p <= 0.05).any()
        assert (p >= rank_test(values[0], values[1:])).all()
    assert found / 1000 > 0.03 and stats.binom.sf(found - 1, 1000, 0.05) > 1e-3
    values = np.linspace(0, 1, 39)[:, None]
    alone = np.array([1.02])
    assert largest_rank_test(alone, values) == pytest.approx(rank_test(alone, values))


def test_the_interval_of_an_effect_is_widened_as_that_of_welch():
    random = np.random.default_rng(0)
    differences, draws = random.normal(0, 1, (2, 12)), random.normal(0, 0.5, (6, 2))
    differences[1] *= 0.1
    by_item = resamples(12, random) @ differences.T / 12
    by_draw = resamples(6, random) @ (draws - draws.mean(axis=0)) / 6
    low, high, detectable = effect_interval(by_item - by_draw, differences, draws)
    for layer in range(2):
        t = stats.ttest_ind(differences[layer], draws[:, layer], equal_var=False)
        expected = t.confidence_interval().high - t.confidence_interval().low
        assert high[layer] - low[layer] == pytest.approx(expected, rel=0.08)
        assert detectable[layer] == pytest.approx(expected / 2 * 2.801585 / 1.959964, rel=0.05)


def test_the_intervals_of_many_means_are_those_of_each():
    values = np.random.default_rng(1).random((2, 3, 20))
    low, high = mean_interval(values)
    expected = stats.bootstrap((values,), np.mean, axis=-1, method="percentile", rng=0).confidence_interval
    assert np.allclose(low, expected.low, atol=0.02) and np.allclose(high, expected.high, atol=0.02)
