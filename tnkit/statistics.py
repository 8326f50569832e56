"""The intervals and tests of every measurement: bootstrap, sign flips, ranks among draws, Holm, Welch.

weights = resamples(len(values))                     # how often each item comes in each resample
low, high = interval(weights @ values / len(values))
p = rank_test(the_set, draws)                        # is the set's value unusual among random sets?

`docs/statistics.md` says what each p-value tests, and how often it is below .05 under the null hypothesis.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

RESAMPLES = 2000
FLIPS = 10_000
_ROUNDING = 1e-12  # values this close count as equal
_POWER = 2.801585  # z(.975) + z(.8): how many standard errors a test at 5 % finds with a power of 80 %
_FLOOR = 1e-12  # of the total variance: the variance that Welch's test assumes for a group without any


def resamples(items: int, random: np.random.Generator | None = None) -> Int[np.ndarray, "resample item"]:
    """How often each item is drawn in each of 2,000 bootstrap resamples.

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
    as_far = flipped >= np.abs(differences.mean(axis=1)) - _ROUNDING
    return (1 + as_far.sum(axis=0)) / (1 + len(signs))


def mean_interval(values: Float[np.ndarray, "*cells item"]) -> Float[np.ndarray, "2 *cells"]:
    """The 95 % percentile bootstrap interval of each cell's mean over items, which are resampled together.

    >>> mean_interval(np.ones((3, 2, 10))).shape
    (2, 3, 2)
    """
    items = values.shape[-1]
    return interval(np.moveaxis(values @ resamples(items).T / items, -1, 0))


def spearman(
    values: Float[np.ndarray, "item 2"], strata: Sequence[Any], random: np.random.Generator
) -> tuple[float, float, float]:
    """Spearman's rank correlation of two columns, and its 95 % percentile bootstrap interval.

    Items are resampled within their strata, 2,000 times. NaN where a column does not vary.

    >>> value, low, high = spearman(np.arange(20.0).reshape(10, 2), ["all"] * 10, np.random.default_rng(0))
    >>> round(value, 6), round(low, 6), round(high, 6)
    (1.0, 1.0, 1.0)
    """
    from scipy import stats

    places, labels = np.arange(len(values)), np.array(list(map(str, strata)))
    members = [places[labels == label] for label in dict.fromkeys(labels)]
    drawn = np.hstack([random.choice(own, (RESAMPLES, len(own))) for own in members])
    ranks = stats.rankdata(values[np.vstack([places, drawn])], axis=1)  # first as they are, then resampled
    left, right = (ranks[..., side] - ranks[..., side].mean(axis=1, keepdims=True) for side in (0, 1))
    norm = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    found = np.divide((left * right).sum(axis=1), norm, out=np.full(len(norm), np.nan), where=norm > 0)
    known = found[1:][~np.isnan(found[1:])]
    low, high = interval(known) if len(known) else (np.nan, np.nan)
    return float(found[0]), float(low), float(high)


def rank_test(
    value: Float[np.ndarray, "layer"], draws: Float[np.ndarray, "draw layer"]
) -> Float64[np.ndarray, "layer"]:
    """The two-sided p-value of a value among random draws: could it be one of them?

    p = (1 + draws at least as far from the centre) / (1 + draws), where the centre is the mean of the value and all
    draws. The value thus plays the same role as each draw, and P(p ≤ α) ≤ α for every distribution if it is one of them
    (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585). The smallest possible p is 1 / (1 + draws); NaN for one draw.

    >>> rank_test(np.array([9.0]), np.arange(4.0)[:, None]).tolist()
    [0.2]
    """
    far = _from_centre(value, draws)
    if len(draws) == 1:
        return np.full(far.shape[1:], np.nan)
    return (1 + (far[1:] >= far[0] - _ROUNDING).sum(axis=0)) / len(far)


def largest_rank_test(
    value: Float[np.ndarray, "layer"], draws: Float[np.ndarray, "draw layer"]
) -> Float64[np.ndarray, "layer"]:
    """The p-values of `rank_test`, corrected over layers: the chance that a draw is as unusual at *any* layer.

    Distances from the centre are divided by their root mean square in each layer; the value's distance at each layer is
    ranked among the largest distances of the draws (the single-step method of Westfall & Young 1993).

    >>> largest_rank_test(np.array([9.0, 1.0]), np.array([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])).tolist()
    [0.2, 1.0]
    """
    far = _from_centre(value, draws)
    if len(draws) == 1:
        return np.full(far.shape[1:], np.nan)
    scale = np.sqrt((far**2).mean(axis=0))
    far = np.divide(far, scale, out=np.zeros_like(far), where=scale > _ROUNDING)
    return (1 + (far[1:].max(axis=1, keepdims=True) >= far[0] - _ROUNDING).sum(axis=0)) / len(far)


def _from_centre(value: np.ndarray, draws: np.ndarray) -> np.ndarray:
    value_and_draws = np.concatenate([value[None], draws]).astype(np.float64)
    return np.abs(value_and_draws - value_and_draws.mean(axis=0))


def holm(p: Float64[np.ndarray, "test"]) -> Float64[np.ndarray, "test"]:
    """p-values corrected over a family of tests: any is below α by chance with a probability of at most α (Holm 1979).

    NaN is not a test: it stays NaN and does not count in the family.

    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    tests = int((~np.isnan(p)).sum())
    order = np.argsort(p)[:tests]  # NaN sorts last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(tests, 0, -1)))
    return adjusted


def effect_interval(
    effects: Float[np.ndarray, "resample layer"],
    differences: Float[np.ndarray, "layer item"],
    draws: Float[np.ndarray, "draw layer"],
) -> tuple[Float64[np.ndarray, "layer"], Float64[np.ndarray, "layer"], Float64[np.ndarray, "layer"]]:
    """The 95 % interval of a mean difference over items and draws, and the smallest detectable effect.

    The percentile interval of the resampled effects, widened around the effect to account for few items or draws: by
    t(.975, df) / z(.975), with Welch and Satterthwaite's degrees of freedom, and by the ratio of the unbiased standard
    error to that of the resamples (at least 1 together). A single draw counts as the only possible one.

    Args:
        effects: of resampled items and draws.
        differences: of each item, minus the mean of the draws; their mean is the effect.
        draws: the mean of each draw over items.

    Returns:
        The lower and the upper bound, and the effect that a two-sided test at 5 % finds with a power of 80 %:
        (z(.975) + z(.8)) × the standard error, widened in the same way. NaN for a single item.

    >>> differences = np.random.default_rng(0).normal(1, 1, (1, 10))
    >>> low, high, detectable = effect_interval(resamples(10) @ differences.T / 10, differences, np.zeros((1, 1)))
    >>> bool(low < differences.mean() < high)
    True
    """
    from scipy import stats

    layers, items = differences.shape
    if items == 1:
        return (np.full(layers, np.nan),) * 3
    units = [differences.T] if len(draws) == 1 else [differences.T, draws]
    freedoms = np.array([[len(unit) - 1] for unit in units])
    squares = np.stack([unit.var(axis=0, ddof=1) / len(unit) for unit in units])  # squared standard errors
    total, error = squares.sum(axis=0), effects.std(axis=0)
    varies = error > _ROUNDING
    freedom = np.divide(total**2, (squares**2 / freedoms).sum(axis=0), out=np.full(layers, np.inf), where=varies)
    unbiased = np.divide(np.sqrt(total), error, out=np.ones(layers), where=varies)
    widening = np.maximum(1, unbiased * stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))
    effect = differences.mean(axis=1)
    low, high = effect + widening * (interval(effects) - effect)
    return low, high, _POWER * widening * error


def welch(
    means: Float64[np.ndarray, "group *values"],
    squares: Float64[np.ndarray, "group *values"],
    sizes: Float64[np.ndarray, "group *ones"],
) -> Float64[np.ndarray, "*values"]:
    """The p-value of Welch's (1951) analysis of variance, from the moments of each group.

    `scipy.stats.f_oneway(equal_var=False)` needs all observations at once and returns NaN for a group without variance;
    here such a group has 10⁻¹² of the total variance, which is practically the limit of zero.

    Args:
        means: of each group.
        squares: each group's sum of squared deviations from its mean.
        sizes: the number of observations in each group.

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
