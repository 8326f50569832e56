"""Neuron sets: algebra against Python's sets, overlap, order, files."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tnkit as tn
from tnkit.detection.neurons import pairs_of

SHAPE = (4, 6)
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), unique=True).map(tuple)


@given(left=pairs, right=pairs)
def test_algebra_is_that_of_sets_and_keeps_the_order_of_the_left(left, right):
    a, b = tn.NeuronSet(left, SHAPE), tn.NeuronSet(right, SHAPE)
    assert set(a & b) == set(left) & set(right)
    assert set(a | b) == set(left) | set(right)
    assert set(a - b) == set(left) - set(right)
    assert set(a ^ b) == set(left) ^ set(right)
    assert [pair for pair in left if pair in right] == list(a & b)
    table = a.overlap(b)
    assert table.loc["all", "both"] == len(set(left) & set(right))
    union = len(set(left) | set(right))
    assert union == 0 or table.loc["all", "jaccard"] == len(set(left) & set(right)) / union
    for layer in range(4):
        assert table.loc[layer, "this"] == sum(pair[0] == layer for pair in left)


def test_scores_stay_with_their_neurons():
    a = tn.NeuronSet(((0, 1), (2, 3), (1, 1)), SHAPE, (3.0, 2.0, 1.0))
    assert (a - tn.NeuronSet(((2, 3),), SHAPE)).scores == (3.0, 1.0)
    assert a[:2].scores == (3.0, 2.0)
    assert a.to_frame().loc[(2, 3)].tolist() == [2, 2.0]
    assert a[0] == (0, 1)


def test_json_gives_back_what_was_saved_and_says_where_it_is_from(tmp_path):
    about = {"model": {"name": "m"}, "selection": {"top": 2}}
    found = tn.NeuronSet(((0, 1), (2, 3)), SHAPE, (0.5, 0.25), about)
    path = found.save(tmp_path / "set.json")
    again = tn.NeuronSet.load(path)
    assert again == found
    assert again.provenance == about
    assert json.loads(path.read_text())["kind"] == "neurons"


def test_the_published_pickle_is_a_list_of_pairs(tmp_path):
    found = tn.NeuronSet(((0, 1), (2, 3)), SHAPE)
    path = found.save(tmp_path / "set.pkl", format="reference")
    assert pickle.loads(path.read_bytes()) == [(0, 1), (2, 3)]
    assert tn.NeuronSet.load(path, shape=SHAPE).pairs == found.pairs
    with pytest.raises(tn.TnkitError, match=r"give shape="):
        tn.NeuronSet.load(path)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (((0, 1), (0, 1)), r"neuron \(0, 1\) is in the set twice"),
        (((4, 0),), r"neuron \(4, 0\) is outside a model of 4 layers of 6 neurons"),
        (((0, -1),), r"neuron \(0, -1\) is outside"),
    ],
)
def test_what_is_not_a_set_of_the_models_neurons_is_refused(pairs, words):
    with pytest.raises(tn.TnkitError, match=words):
        tn.NeuronSet(pairs, SHAPE)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"shape": SHAPE},
        {"shape": SHAPE, "pairs": [[0, 1.5]]},
        {"shape": SHAPE, "pairs": [["a", "b"]]},
        {"shape": SHAPE, "pairs": [[0, 1, 2]]},
        {"shape": SHAPE, "pairs": [[0, True]]},
        {"shape": SHAPE, "pairs": [[0, 9]]},
        {"shape": [4], "pairs": [[0, 1]]},
        {"shape": SHAPE, "pairs": [[0, 1]], "scores": [1, 2]},
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, about):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"kind": "neurons", "schema": 1, "about": about}))
    with pytest.raises(tn.TnkitError, match=r"set\.json"):
        tn.NeuronSet.load(path)


def test_sets_of_different_models_do_not_mix():
    with pytest.raises(tn.TnkitError, match="different models"):
        tn.NeuronSet((), SHAPE) | tn.NeuronSet((), (4, 7))


def test_an_empty_set_has_frames_and_plots():
    empty = tn.NeuronSet((), SHAPE)
    assert empty.to_frame().empty
    assert len(empty.plot().patches) == 4
    assert "0" in empty._repr_html_()


def test_the_plot_counts_neurons_by_layer():
    found = tn.NeuronSet(((0, 1), (2, 3), (2, 4)), SHAPE)
    assert [bar.get_height() for bar in found.plot().patches] == [1, 0, 2, 0]


@pytest.mark.parametrize("hold", [np.array, torch.tensor, list, lambda pairs: [list(pair) for pair in pairs]])
def test_neurons_are_pairs_of_int_however_they_are_held(hold, tmp_path):
    chosen = tn.NeuronSet(pairs_of(hold([(1, 7), (0, 3)])), (4, 48))
    assert chosen.pairs == ((1, 7), (0, 3)) and all(type(one) is int for pair in chosen.pairs for one in pair)
    assert tn.NeuronSet.load(chosen.save(tmp_path / "n.json")) == chosen


@pytest.mark.parametrize("neurons", [(1, 7), [(1, 7, 2)], [("a", 1)], [(1.5, 2)], 3])
def test_what_is_no_pair_is_refused_in_a_sentence(neurons):
    with pytest.raises(tn.TnkitError, match="must be pairs of whole numbers"):
        pairs_of.__wrapped__(neurons) if hasattr(pairs_of, "__wrapped__") else pairs_of(neurons)
