"""Each dose is the ablation of its neurons by its amount, beside controls of its size."""

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.testing import SENTENCES, tiny_model

TEXTS = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
SOME = tn.NeuronSet(tuple((layer, neuron) for layer in range(2) for neuron in range(20)), (4, 48))
LAST = tn.NeuronSet(tuple((2, neuron) for neuron in range(40)), (4, 48))
HOW = {"language": "it", "measure": "margin", "progress": False}


def margins(neurons, **how):
    """The retrieval margin by layer and sentence, with plain tensors."""
    model = tiny_model()
    with tn.Ablation(model, neurons, tokens="last", **how):
        it = tn.capture(model, TEXTS["it"], progress=False).post.double()
    en = tn.capture(model, TEXTS["en"], progress=False).post.double()
    it, en = (states - states.mean(dim=1, keepdim=True) for states in (it, en))
    cosines = torch.nn.functional.normalize(it, dim=-1) @ torch.nn.functional.normalize(en, dim=-1).mT
    own = cosines.diagonal(dim1=1, dim2=2)
    return (own - (cosines - 9 * torch.eye(3)).amax(dim=2)).numpy()


def test_each_dose_is_its_first_neurons_by_its_amount_beside_controls_of_that_size():
    rivals = lambda some: {"last": LAST[: len(some)], **tn.controls(some)}  # noqa: E731
    curve = tn.doses(tiny_model(), TEXTS, SOME, sizes=[10, 25], scale=[0.5, 0], controls=rivals, seeds=2, **HOW)
    for (size, amount), compared in curve.comparisons.items():
        assert np.allclose(compared.ablated, margins(SOME[:size], scale=amount), atol=1e-5)
        assert np.allclose(compared.controls["last"][0], margins(LAST[:size], scale=amount), atol=1e-5)
        drawn = tn.controls(SOME[:size])["same layers"](1)
        assert np.allclose(compared.controls["same layers"][1], margins(drawn, scale=amount), atol=1e-5)
        assert np.allclose(compared.untouched, margins(()), atol=1e-5)
    table = curve.to_frame()
    assert table.loc[(25, 0.5, 3, "the set"), "mean"] == pytest.approx(
        margins(SOME[:25], scale=0.5)[3].mean(), abs=1e-5
    )
    assert curve.at(2).xs((10, 0.0)).equals(curve.comparisons[10, 0.0].at(2))


def test_amounts_can_be_added_and_none_of_them_changes_a_bit():
    captured = [tn.capture(tiny_model(), TEXTS[name], progress=False) for name in ("en", "it")]
    of, minus = captured
    curve = tn.doses(tiny_model(), TEXTS, SOME, add=[0, 1, 2], of=of, minus=minus, sizes=[40], seeds=1, **HOW)
    assert np.array_equal(curve.comparisons[40, 0.0].ablated, curve.comparisons[40, 0.0].untouched)
    assert np.allclose(curve.comparisons[40, 2.0].ablated, margins(SOME, add=2.0, of=of, minus=minus), atol=1e-5)
    assert curve.plot(1).get_xlabel() == "times the difference of means"


def test_it_is_drawn_over_what_varies():
    curve = tn.doses(tiny_model(), TEXTS, SOME, scale=[1, 0], seeds=1, chosen_layer=1, **HOW)
    assert [size for size, _ in curve.comparisons] == [10, 10, 30, 30, 40, 40]
    axes = curve.plot()
    (line,) = [line for line in axes.get_lines() if line.get_label() == "the set"]
    assert np.allclose(line.get_xdata(), [10, 30, 40])
    assert np.allclose(line.get_ydata(), [margins(SOME[:size])[1].mean() for size in (10, 30, 40)], atol=1e-5)
    (line,) = [line for line in curve.plot(over="scale").get_lines() if line.get_label() == "the set"]
    assert np.allclose(line.get_ydata(), [margins(())[1].mean(), margins(SOME)[1].mean()], atol=1e-5)


def test_an_interrupt_leaves_the_doses_until_then(caplog):
    def rivals(some):
        def draw(_):
            if len(some) == 30:
                raise KeyboardInterrupt
            return some

        return {"draw": draw}

    curve = tn.doses(tiny_model(), TEXTS, SOME, controls=rivals, seeds=1, **HOW)
    assert [*curve.comparisons] == [(10, 0.0)]
    assert "1 of 3 doses" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": [41]}, "numbers from 1 to 40"),
        ({"sizes": []}, "numbers from 1 to 40"),
        ({"scale": []}, "no amount"),
        ({"scale": [0], "add": [1]}, "exclude each other"),
        ({"add": [1]}, "needs of= and minus="),
        ({"measure": "luck"}, "margin, centred_similarity, perplexity"),
    ],
)
def test_what_is_no_dose_is_refused(wrong, message):
    with pytest.raises(tn.TnkitError, match=message):
        tn.doses(tiny_model(), TEXTS, SOME, **{**HOW, **wrong})
