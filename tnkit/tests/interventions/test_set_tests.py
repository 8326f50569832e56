"""A set among many random sets: against scipy, a planted set, simulated nulls, and what Ctrl-C leaves."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

import tnkit as tn
from tnkit.testing import SENTENCES, tiny_model

MEMBERS = tn.NeuronSet(tuple((layer, neuron) for layer in (1, 2) for neuron in range(5)), (4, 200))
SENTENCE = np.random.default_rng(0).normal(0, 1, (3, 40))


def measured(neurons, effect=1.0):
    """Sets differ, and the members differ more, in layer 1 alone."""
    random = np.random.default_rng(abs(hash(neurons.pairs)) % 2**32)
    values = SENTENCE + random.normal(0, 0.1, (3, 1)) + random.normal(0, 0.2, (3, 40))
    values[1] -= effect * (neurons.pairs == MEMBERS.pairs)
    return values


def draw(seed):
    return MEMBERS.matched(seed=seed)


def test_the_rows_are_those_of_a_comparison_with_the_same_draws():
    tested = tn.set_test(measured, MEMBERS, draw, draws=30, progress=False)
    compared = tn.compare(measured, MEMBERS, controls={"random": draw}, seeds=30, progress=False)
    rows, others = tested.to_frame(), compared.to_frame().xs("random", level="condition")
    assert rows["effect"].to_numpy() == pytest.approx(others["effect"].to_numpy())
    assert rows["p sets"].tolist() == others["p sets"].tolist()
    for column in ("effect low", "effect high", "detectable"):
        assert rows[column].to_numpy() == pytest.approx(others[column].to_numpy(), abs=0.03)
    assert np.allclose(tested.draws, compared.controls["random"].mean(axis=2))
    assert np.allclose(tested.control, compared.controls["random"].mean(axis=0))


def test_a_planted_set_is_found_where_it_is_and_nowhere_else():
    rows = tn.set_test(measured, MEMBERS, draw, draws=199, progress=False).to_frame()
    assert rows.loc[1, ["p sets", "p low", "p adjusted"]].tolist() == [1 / 200, 0, 1 / 200]
    assert (rows.loc[[0, 2], "p sets"] > 0.01).all() and (rows["p adjusted"] >= rows["p sets"]).all()
    assert rows.loc[1, "effect low"] < -1 + 0.25 and rows.loc[1, "effect high"] > -1 - 0.25
    assert rows.loc[1, "p high"] == pytest.approx(stats.binomtest(0, 199).proportion_ci().high)
    assert rows.attrs["draws"] == 199


def test_the_interval_of_p_is_clopper_and_pearsons():
    rows = tn.set_test(lambda n: measured(n, effect=0.1), MEMBERS, draw, draws=60, progress=False).to_frame()
    for _, row in rows.iterrows():
        expected = stats.binomtest(round(row["p sets"] * 61) - 1, 60).proportion_ci()
        assert (row["p low"], row["p high"]) == pytest.approx((expected.low, expected.high))


def test_memory_stays_flat():
    large = lambda _: np.zeros((10, 20_000))  # noqa: E731
    peaks = []
    for draws in (4, 40):
        tracemalloc.start()
        tn.set_test(large, MEMBERS, draw, draws=draws, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_an_interrupted_drawing_keeps_what_was_drawn(caplog):
    def until(last):
        def drawn(seed):
            if seed == last:
                raise KeyboardInterrupt
            return draw(seed)

        return drawn

    tested = tn.set_test(measured, MEMBERS, until(7), name="hits", draws=50, progress=False)
    whole = tn.set_test(measured, MEMBERS, draw, draws=7, progress=False)
    assert tested.to_frame().equals(whole.to_frame())
    assert "interrupted: hits is of 7 draws, not 50" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        tn.set_test(measured, MEMBERS, until(1), draws=50, progress=False)


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(tn.TnkitError, match="one set, which has no draws"):
        tn.set_test(measured, MEMBERS, MEMBERS, progress=False)
    with pytest.raises(tn.TnkitError, match="draws=1 must be at least 2"):
        tn.set_test(measured, MEMBERS, draw, draws=1, progress=False)
    for wrong, words in ((lambda _: [np.nan], "not finite"), (lambda n: np.ones(1 + len(n)), "different numbers")):
        with pytest.raises(tn.TnkitError, match=words):
            tn.set_test(wrong, MEMBERS, draw, draws=2, progress=False)


def test_the_plot_shows_every_draw_and_the_set():
    tested = tn.set_test(measured, MEMBERS, draw, draws=99, name="hits", layers=(4, 5, 6), progress=False)
    ax = tested.plot(5)
    assert sum(bar.get_height() for bar in ax.patches) == 99
    assert [line.get_xdata()[0] for line in ax.lines] == [tested.untouched[1].mean(), tested.ablated[1].mean()]
    assert (ax.get_xlabel(), ax.get_title(loc="left")) == ("hits", "layer 5")
    assert "p sets = 0.01, the smallest possible" in ax.get_legend().get_texts()[2].get_text()
    for layer in (None, 1):
        with pytest.raises(tn.TnkitError, match=f"layer={layer} was not measured; name one of 4 to 6"):
            tested.plot(layer)


def test_random_sets_of_a_model_through_the_cached_prefix():
    model, some = tiny_model(), tn.NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    off = tn.LastToken(model, SENTENCES[:3], keep=["post"], progress=False)
    english = tn.capture(model, SENTENCES[3:], keep=["post"], progress=False)
    how = {"control": tn.controls(some)["same layers"], "draws": 3, "progress": False}
    found = tn.set_test(lambda neurons: tn.geometry.hits(off.capture(neurons), english), some, **how)
    with tn.Ablation(model, some.matched(seed=2), tokens="last"):
        expected = tn.geometry.hits(tn.capture(model, SENTENCES[:3], keep=["post"], progress=False), english)
    assert found.draws[2].tolist() == expected.mean(axis=1).tolist()
