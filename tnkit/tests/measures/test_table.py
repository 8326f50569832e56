"""The table of a neuron set: each column is the measurement itself, looked up by layer and neuron."""

import numpy as np
import pytest

import tnkit as tn
from tnkit.measures.specificity.table import MEASUREMENTS
from tnkit.testing import SENTENCES, tiny_model

NEURONS = tn.NeuronSet(((3, 17), (1, 5), (3, 2)), shape=(4, 48))


@pytest.fixture(scope="module")
def captured():
    halves = {"en": SENTENCES[:3], "ja": SENTENCES[3:]}
    return {name: tn.capture(tiny_model(), texts, layers=[1, 3], progress=False) for name, texts in halves.items()}


def test_a_column_is_the_measurement_of_each_neuron(captured):
    frame = tn.specificity.table(NEURONS, captured).to_frame()
    eta2 = tn.specificity.correlation_ratio(captured).to_frame()["eta2"]
    assert frame["η²"].tolist() == [eta2[neuron] for neuron in NEURONS]
    assert list(frame) == ["rank", *MEASUREMENTS]


def test_a_new_measurement_is_one_entry(captured, monkeypatch):
    monkeypatch.setitem(MEASUREMENTS, "place", (0, lambda _: np.arange(2 * 48).reshape(2, 48) / 96))
    measured = tn.specificity.table(NEURONS, captured)
    assert (measured.to_frame()["place"] * 96).tolist() == [48 + 17, 5, 48 + 2]
    assert [axes.get_xlabel() for axes in measured.plot().axes] == [*MEASUREMENTS]


def test_the_figure_sets_the_neurons_beside_the_others_of_their_layers(captured):
    for axes in tn.specificity.table(NEURONS[:1], captured).plot().axes:
        assert [line.get_label() for line in axes.lines] == ["the set (1)", "all others of its layers (47)"]


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        (tn.NeuronSet((), (4, 48)), "set is empty"),
        (tn.NeuronSet(((0, 1),), (4, 48)), r"layers \[0\] were not captured; captured are \[1, 3\]"),
        (tn.NeuronSet(((1, 1),), (4, 64)), "64 neurons in a layer, the captured model 48"),
    ],
)
def test_sets_that_were_not_captured_are_refused(captured, neurons, message):
    with pytest.raises(tn.TnkitError, match=message):
        tn.specificity.table(neurons, captured)
