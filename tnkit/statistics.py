"""The intervals and tests of every measurement: bootstrap, sign flips, Welch's analysis of variance.

weights = resamples(len(values))                     # how often each item comes in each resample
low, high = interval(weights @ values / len(values))
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

RESAMPLES = 2000
FLIPS = 10_000
_FLOOR = 1e-12  # of the total variance: what Welch's test takes for the variance of a group that has none


def resamples(items: int, random: np.random.Generator | None = None) -> Int[np.ndarray, "resample item"]:
    """How often each item is drawn in each of 2,000 bootstrap resamples of all items.

    >>> resamples(5).shape, set(resamples(5).sum(axis=1).tolist())
    ((2000, 5), {5})
    """
    random = np.random.default_rng(0) if random is None else random
    return random.multinomial(items, np.full(items, 1 / items), RESAMPLES)


def interval(
    resampled: Float[np.ndarray, "resample *values"], *, method: Any = "linear"
) -> Float[np.ndarray, "2 *values"]:
    """The lower and the upper bound of the 95 % percentile interval of resampled statistics.

    Args:
        resampled: one resample per row.
        method: how `numpy.quantile` interpolates; "nearest" for values that may be infinite.

    >>> interval(np.arange(1001.0)).tolist()
    [25.0, 975.0]
    """
    return np.quantile(resampled, (0.025, 0.975), axis=0, method=method)


def flips(items: int, random: np.random.Generator) -> Float[np.ndarray, "flip item"]:
    """10,000 random signs for each item, +1 or -1."""
    return random.choice(np.array([-1.0, 1.0]), (FLIPS, items))


def sign_flip_test(
    differences: Float[np.ndarray, "layer item"], signs: Float[np.ndarray, "flip item"]
) -> Float64[np.ndarray, "layer"]:
    """The two-sided p-value of the mean difference, under random signs of the paired differences.

    p = (1 + flips with a mean at least as far from 0) / (1 + flips), so p is never 0.

    >>> sign_flip_test(np.zeros((1, 4)), flips(4, np.random.default_rng(0))).tolist()
    [1.0]
    """
    flipped = np.abs(signs @ differences.T / differences.shape[1])
    as_far = flipped >= np.abs(differences.mean(axis=1)) - 1e-12
    return (1 + as_far.sum(axis=0)) / (1 + len(signs))


def welch(
    means: Float64[np.ndarray, "group *values"],
    squares: Float64[np.ndarray, "group *values"],
    sizes: Float64[np.ndarray, "group *ones"],
) -> Float64[np.ndarray, "*values"]:
    """The p-value of Welch's (1951) analysis of variance, from the moments of each group.

    `scipy.stats.f_oneway(equal_var=False)` needs all observations at once and gives NaN for a group of no variance;
    here such a group counts with 10⁻¹² of the total variance, practically the limit of none.

    Args:
        means: of each group.
        squares: sums of squared deviations from the group's mean.
        sizes: observations in each group.

    >>> p = welch(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]]), np.array([[3.0], [3.0]]))
    >>> from scipy import stats
    >>> bool(np.isclose(p[0], stats.ttest_ind([0, 1, 2], [2, 3, 4], equal_var=False).pvalue))
    True
    """
    from scipy import stats

    k, n = len(means), int(sizes.sum())
    total = (sizes * (means - (sizes * means).sum(axis=0) / n) ** 2).sum(axis=0) + squares.sum(axis=0)
    variances = np.maximum(squares / (sizes - 1), _FLOOR * total / (n - 1))
    weights = np.divide(sizes, variances, out=np.ones_like(variances), where=variances > 0)
    shares = weights / weights.sum(axis=0)
    between = (weights * (means - (shares * means).sum(axis=0)) ** 2).sum(axis=0) / (k - 1)
    spread = ((1 - shares) ** 2 / (sizes - 1)).sum(axis=0)
    return stats.f.sf(between / (1 + 2 * (k - 2) / (k**2 - 1) * spread), k - 1, (k**2 - 1) / (3 * spread))
