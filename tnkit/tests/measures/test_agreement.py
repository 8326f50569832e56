"""Overlaps against enumeration and Fisher's exact test."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

import tnkit as tn
from tnkit.measures.specificity import overlaps

SHAPE = (2, 4)
NEURONS = list(product(range(2), range(4)))
A, B = ((0, 0), (0, 1), (1, 2)), ((0, 1), (1, 2), (1, 3))


@pytest.fixture(scope="module")
def row():
    return overlaps({"a": tn.NeuronSet(A, SHAPE), "b": tn.NeuronSet(B, SHAPE)}).table.loc[("a", "b")]


def test_counts_and_jaccard_are_those_of_sets(row):
    assert row[["first size", "second size", "both"]].tolist() == [3, 3, 2]
    assert row["jaccard"] == 2 / 4


def test_chance_is_that_of_all_sets_of_the_size(row):
    shared = [len(set(A) & set(other)) for other in combinations(NEURONS, 3)]
    assert row["expected"] == pytest.approx(np.mean(shared))
    assert row["p"] == pytest.approx(np.mean(np.array(shared) >= 2))
    table = [[2, 1], [1, 4]]
    assert row["p"] == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)


def test_chance_in_layers_is_that_of_all_sets_with_as_many_in_each_layer(row):
    alike = [other for other in combinations(NEURONS, 3) if sum(layer == 0 for layer, _ in other) == 1]
    shared = [len(set(A) & set(other)) for other in alike]
    assert row["expected in layers"] == pytest.approx(np.mean(shared))
    assert row["p in layers"] == pytest.approx(np.mean(np.array(shared) >= 2))


def test_sets_that_only_share_their_layers_are_no_more_alike_than_chance():
    draw = np.random.default_rng(0)
    picked = [tn.NeuronSet(tuple((3, int(n)) for n in draw.choice(500, 100, replace=False)), (10, 500)) for _ in "ab"]
    row = overlaps(dict(zip("ab", picked, strict=True))).table.iloc[0]
    assert row["p"] < 1e-6
    assert row["p in layers"] > 0.01
    restricted = overlaps(dict(zip("ab", picked, strict=True)), layers=[3]).table.iloc[0]
    assert restricted["p"] == pytest.approx(restricted["p in layers"])
    assert restricted["expected"] == restricted["expected in layers"] == 20
    interval = stats.hypergeom.ppf([0.025, 0.975], 500, 100, 100)
    assert restricted[["low in layers", "high in layers"]].tolist() == interval.tolist() == [13, 27]


def test_every_two_of_several_are_there_and_drawn():
    sets = {"a": tn.NeuronSet(A, SHAPE), "b": tn.NeuronSet(B, SHAPE), "none": tn.NeuronSet((), SHAPE)}
    found = overlaps(sets)
    assert found.table.index.tolist() == [("a", "b"), ("a", "none"), ("b", "none")]
    assert found.table.loc[("a", "none"), ["both", "jaccard", "p", "p in layers"]].tolist() == [0, 0, 1, 1]
    assert found.by_layer("a", "b").loc[1, "both"] == 1
    texts = [text.get_text() for text in found.plot().texts]
    assert texts == ["3", "2", "0", "2", "3", "0", "0", "0", "0"]
    assert "a and b" in found._repr_html_()
    frame = found.to_frame()
    frame["both"] = 9
    assert found.table["both"].tolist() == [2, 0, 0]


@pytest.mark.filterwarnings("error")
def test_two_empty_sets_have_no_jaccard_index_and_can_be_drawn():
    found = overlaps({"a": tn.NeuronSet((), SHAPE), "b": tn.NeuronSet((), SHAPE)})
    assert np.isnan(found.table["jaccard"].iloc[0])
    assert found.plot().texts


def test_nulls_show_what_the_way_of_choosing_gives():
    """Every draw for "a" shares one neuron more than the one before; "b" has no null, "c" and "b" therefore none."""
    sets = {name: tn.NeuronSet(pairs, SHAPE) for name, pairs in {"a": A, "b": B, "c": B[:1]}.items()}
    draws = [sets["b"][:number] for number in range(4)]
    plain, found = overlaps(sets).table, overlaps(sets, nulls={"a": lambda seed: draws[seed]}, seeds=4).table
    assert found[plain.columns].equals(plain)
    assert found.loc[("a", "b"), ["both", "expected of nulls", "p of nulls"]].tolist() == [2, 1.5, (1 + 2) / (1 + 4)]
    assert found.loc[("a", "c"), ["expected of nulls", "p of nulls"]].tolist() == [0.75, (1 + 3) / (1 + 4)]
    assert np.isnan(found.loc[("b", "c"), "p of nulls"])
    both = overlaps(sets, nulls={"a": lambda seed: draws[seed], "b": lambda _: sets["a"]}, seeds=4).table
    assert both.loc[("a", "b"), "expected of nulls"] == (0 + 1 + 2 + 3 + 4 * 3) / 8
    with pytest.raises(tn.TnkitError, match="nulls names d, which is not among the sets a, b, c"):
        overlaps(sets, nulls={"d": lambda _: sets["a"]})


def test_what_does_not_compare_is_refused():
    a = tn.NeuronSet(A, SHAPE)
    with pytest.raises(tn.TnkitError, match="give at least 2"):
        overlaps({"a": a})
    with pytest.raises(tn.TnkitError, match="different models"):
        overlaps({"a": a, "b": tn.NeuronSet((), (2, 5))})
    with pytest.raises(tn.TnkitError, match=r"a has neurons outside the layers \[1\]"):
        overlaps({"a": a, "b": a}, layers=[1])
