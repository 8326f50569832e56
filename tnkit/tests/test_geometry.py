"""Geometry against numpy's own decompositions."""

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.tests.tiny import SENTENCES, tiny_model


@pytest.fixture(scope="module")
def captured():
    model = tiny_model("llama")
    return {
        "en": tn.capture(model, SENTENCES[:3], progress=False),
        "it": tn.capture(model, SENTENCES[3:], progress=False),
    }


def test_components_are_those_of_the_singular_value_decomposition(captured):
    found = tn.geometry.pca(captured, layers=[2], components=3)
    states = torch.cat([part.post[2] for part in captured.values()]).double().numpy()
    left, sizes, _ = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
    together = np.concatenate([points[0] for points in found.coordinates.values()])
    assert np.allclose(np.abs(together), np.abs(left[:, :3] * sizes[:3]), atol=1e-4)
    assert np.allclose(found.explained[0], (sizes**2 / (sizes**2).sum())[:3], atol=1e-5)


def test_the_frame_names_layer_language_and_sentence(captured):
    found = tn.geometry.pca(captured)
    frame = found.to_frame()
    assert frame.loc[(3, "it", 1), "PC2"] == found.coordinates["it"][3, 1, 1]
    assert len(frame) == 4 * 6


def test_the_plot_has_a_panel_a_layer_and_every_language_by_name(captured):
    figure = tn.geometry.pca(captured).plot([0, 3])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["layer 0", "layer 3"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["English", "Italian"]


def test_what_cannot_be_decomposed_is_refused(captured):
    with pytest.raises(tn.TnkitError, match=r"layers \[7\] were not captured"):
        tn.geometry.pca(captured, layers=[7])
    with pytest.raises(tn.TnkitError, match="2 components need at least 2 sentences"):
        tn.geometry.pca({"en": tn.capture(tiny_model(), SENTENCES[:1], progress=False)})
