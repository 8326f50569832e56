"""Centroids: means, streaming, both file formats, and incompatible captures."""

import pickle

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

import tnkit as tn
from tnkit.detection.centroids import CentroidAccumulator
from tnkit.testing import SENTENCES, tiny_model
from tnkit.tests.oracle import assert_near

ENGLISH, OTHER = SENTENCES[:2], SENTENCES[2:]


def captured(sentences, name="llama", **options):
    return tn.capture(tiny_model(name), sentences, keep=["post"], progress=False, **options)


def test_a_language_centroid_is_the_mean_over_its_sentences():
    part = captured(SENTENCES)
    expected = part.post.double().mean(dim=1)
    assert torch.allclose(tn.estimate_centroids([part]).values.double(), expected, atol=1e-6)


def test_the_shared_centroid_weighs_languages_not_sentences():
    english, other = captured(ENGLISH), captured(OTHER)
    expected = (english.post.double().mean(dim=1) + other.post.double().mean(dim=1)) / 2
    assert torch.allclose(tn.estimate_centroids([english, other]).values.double(), expected, atol=1e-6)
    assert torch.allclose(
        tn.estimate_centroids([tn.estimate_centroids([english]), other]).values.double(), expected, atol=1e-6
    )


def test_batches_in_any_order_add_up_to_the_stored_centroid():
    running, options = CentroidAccumulator(), {"keep": ["post"], "batch_tokens": 60, "progress": False}
    for batch in reversed([*tn.stream(tiny_model(), SENTENCES, **options)]):
        running.add(batch)
    assert running.count == len(SENTENCES)
    expected = tn.estimate_centroids([captured(SENTENCES)]).values
    assert_near(running.result().values, expected)


def test_both_formats_give_back_the_values(tmp_path):
    found = tn.estimate_centroids([captured(SENTENCES)])
    own = tn.Centroids.load(found.save(tmp_path / "c.safetensors"))
    assert torch.equal(own.values, found.values)
    assert (own.layers, own.provenance) == (found.layers, found.provenance)
    path = found.save(tmp_path / "c.pkl", format="reference")
    published = pickle.loads(path.read_bytes())
    assert isinstance(published, list)
    assert all(isinstance(row, np.ndarray) and row.shape == (32,) for row in published)
    assert torch.equal(tn.Centroids.load(path).values, found.values)


def test_what_does_not_go_together_is_refused():
    cases = {
        "model": (captured(ENGLISH), captured(OTHER, "qwen2")),
        "position": (captured(ENGLISH), captured(OTHER, position="mean")),
        "last_layer": (captured(ENGLISH), captured(OTHER, last_layer="normed")),
        "layers": (captured(ENGLISH), captured(OTHER, layers=[0])),
    }
    for word, parts in cases.items():
        with pytest.raises(tn.TnkitError, match=f"of (different )?{word}"):
            tn.estimate_centroids(parts)
    with pytest.raises(tn.TnkitError, match="no languages"):
        tn.estimate_centroids([])
    with pytest.raises(tn.TnkitError, match="no sentences"):
        CentroidAccumulator().result()


def test_a_layer_that_was_not_estimated_is_named():
    with pytest.raises(tn.TnkitError, match="have layers 1 to 2, not 3"):
        tn.estimate_centroids([captured(SENTENCES, layers=[1, 2])]).at(3)


def test_one_sentence_is_its_own_centroid():
    part = captured(ENGLISH[:1])
    assert torch.allclose(tn.estimate_centroids([part]).values, part.post[:, 0])


def test_languages_are_remembered():
    corpus = tn.load_corpus("everyday", ["en", "ja"])
    parts = [captured(corpus["train"][language][:2]) for language in ("en", "ja")]
    assert tn.estimate_centroids(parts).languages == ["en", "ja"]
    assert "en" in tn.estimate_centroids(parts)._repr_html_()


def test_shares_and_cosines_are_those_of_numpy_and_scipy():
    values = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    others = torch.randn(3, 7, generator=torch.Generator().manual_seed(2))
    one, other = tn.Centroids(values, (1, 2, 5)), tn.Centroids(others.flip(0), (5, 2, 1))
    squares = values.double().numpy() ** 2
    np.testing.assert_allclose(one.largest_share, squares.max(axis=1) / squares.sum(axis=1), rtol=1e-5)
    expected = [1 - cosine(*rows) for rows in zip(values.double().numpy(), others.double().numpy(), strict=True)]
    np.testing.assert_allclose(one.cosines(other), expected, rtol=1e-5)
    assert torch.equal(one.seen_from(other).values, values - others)
    huge = tn.Centroids(values * 1e30, (1, 2, 5))
    np.testing.assert_allclose(huge.largest_share, one.largest_share, rtol=1e-5)
    with pytest.raises(tn.TnkitError, match="not 5; estimate it"):
        one.cosines(tn.Centroids(values[:2], (1, 2)))
