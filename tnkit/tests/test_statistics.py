"""Intervals and tests against scipy, which computes them from the observations."""

import numpy as np
import pytest
from scipy import stats

from tnkit.statistics import flips, interval, resamples, sign_flip_test, welch


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
