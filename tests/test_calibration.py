"""The p-values and intervals of docs/statistics.md hold what that page says, in a small part of its simulations."""

import re

import numpy as np
import pytest
from scipy import stats

from docs import calibration
from tnkit.statistics import rank_test

COUNT = 300


def is_at_most(found, expected):
    """Whether so many would be found one time in a thousand or more often, at the rate that is expected."""
    return stats.binom.sf(int(found.sum()) - 1, len(found), expected) > 1e-3


@pytest.mark.parametrize("name", calibration.NULLS)
@pytest.mark.parametrize("draws", [39, 1000])
def test_a_set_like_its_controls_is_found_at_most_one_time_in_twenty(name, draws):
    random = np.random.default_rng(draws)
    found = calibration.one_set_among_draws(name, random, sentences=16, draws=draws, count=COUNT)
    assert is_at_most(found["p sets"] <= 0.05, 0.05) and (found["p sets"] <= 0.05).any()
    assert is_at_most(found["misses"], 0.07) and found["misses"].any()
    if draws == 39 and name == "sets do not differ":
        assert is_at_most(found["p sentences"] < 0.05, 0.055)


def test_p_of_sentences_is_no_test_of_sets():
    found = calibration.one_set_among_draws(
        "sets differ", np.random.default_rng(0), sentences=64, draws=19, count=COUNT
    )
    assert (found["p sentences"] < 0.05).mean() > 0.4


def test_a_set_that_is_not_like_its_controls_is_found():
    same = calibration.simulated("sets do not differ", np.random.default_rng(0), sentences=64, count=COUNT)
    ablated, draws = next(same)[0] + 0.3, np.stack([next(same)[0].mean(axis=1) for _ in range(39)])
    assert (rank_test(ablated.mean(axis=1), draws) <= 0.05).mean() > 0.9


def test_families_are_corrected():
    table = calibration.table_of_families(200)
    raw, holm, raw_sets, largest = (float(row.split()[0]) for row in table["anything ≤ .05"])
    assert raw > 0.25 and raw_sets > 0.1
    assert all(is_at_most(np.arange(200) < round(200 * share), 0.05) for share in (holm, largest))


def test_each_random_set_is_compared_with_others_of_its_kind():
    random = np.random.default_rng(0)
    values = random.standard_normal((1200, 64)) + 0.3 * random.standard_normal((1200, 1))
    table = calibration.same_kind(values, draws=19)
    assert len(table) == 60 and not table["effect"].duplicated().any()
    assert is_at_most(table["p sets"] <= 0.05, 0.05)
    assert (table["p sentences"] <= 0.05).mean() > 0.3  # sets differ, and that is all that this finds
    first = stats.ttest_rel(values[0], values[1:20].mean(axis=0))
    assert table["p sentences"][0] == pytest.approx(first.pvalue, abs=0.02)
    assert table["effect"][0] == pytest.approx(values[0].mean() - values[1:20].mean())


def test_the_tables_of_the_page_are_whole_and_hold_what_it_says(tmp_path):
    text = calibration.PAGE.read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| sets d")]
    assert len(rows) == len(calibration.NULLS) * len(calibration.SENTENCES) * len(calibration.DRAWS)
    for null, count, _, sets, sentences, interval in rows:
        low = lambda cell: float(re.search(r"\((.*)–", cell)[1])  # noqa: E731
        assert low(sets) <= 0.05 and low(interval) <= (0.08 if count == "8" else 0.05)
        assert null != "sets do not differ" or low(sentences) <= 0.05
    page = tmp_path / "statistics.md"
    page.write_text(text)
    calibration.write({"families": calibration.table_of_families(20)}, page)
    assert page.read_text().splitlines()[:60] == text.splitlines()[:60]
    assert page.read_text() != text
