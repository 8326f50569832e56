"""The constant share against its definition for one neuron at a time, and with planted neurons."""

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.measures.specificity import constant_share


def made(values):
    """A capture of those activations, (sentence, neuron), in one layer."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)[None]
    return tn.Activations((0,), torch.arange(values.shape[1]), activations=values)


def test_it_is_one_less_the_variance_over_the_mean_square():
    draw = np.random.default_rng(0)
    languages = {"en": draw.normal(1, 1, (30, 5)), "ja": draw.normal(-2, 3, (50, 5))}
    pooled = np.concatenate([*languages.values()]).astype(np.float32).astype(np.float64)
    expected = [1 - values.var() / (values**2).mean() for values in pooled.T]
    measured = constant_share({name: made(values) for name, values in languages.items()})
    assert measured == pytest.approx(np.array([expected]), rel=1e-9)


def test_a_constant_is_all_constant_and_a_silent_neuron_has_no_share():
    values = np.tile([[300.0, 0.0]], (40, 1))
    assert constant_share({"ja": made(values)}).tolist() == [[1.0, 0.0]]


def test_a_neuron_that_only_tells_languages_apart_is_not_constant():
    languages = {"en": made(np.full((20, 1), 3.0)), "ja": made(np.full((20, 1), -3.0))}
    assert constant_share(languages).item() == pytest.approx(0, abs=1e-12)
    assert constant_share({"ja": languages["ja"]}).item() == pytest.approx(1)
