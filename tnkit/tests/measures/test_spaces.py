"""Principal components and distances between centroids, against numpy, scipy and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

import tnkit as tn
from tnkit import plots
from tnkit.measures import geometry
from tnkit.testing import SENTENCES, cloud, held, tiny_model


@pytest.fixture(scope="module")
def captured():
    model = tiny_model("llama")
    return {
        "en": tn.capture(model, SENTENCES[:3], progress=False),
        "it": tn.capture(model, SENTENCES[3:], progress=False),
    }


# Principal components


def test_components_are_those_of_the_singular_value_decomposition(captured):
    found = geometry.pca(captured, layers=[2], components=3)
    together = torch.cat([part.post[2] for part in captured.values()]).double().numpy()
    left, sizes, _ = np.linalg.svd(together - together.mean(axis=0), full_matrices=False)
    placed = np.concatenate([points[0] for points in found.coordinates.values()])
    assert np.allclose(np.abs(placed), np.abs(left[:, :3] * sizes[:3]), atol=1e-4)
    assert np.allclose(found.explained[0], (sizes**2 / (sizes**2).sum())[:3], atol=1e-5)


@pytest.mark.parametrize(("sentences", "width"), [(40, 7), (9, 60), (2, 5)])
def test_planes_are_those_of_the_singular_value_decomposition(sentences, width):
    states = torch.randn(3, sentences, width, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 3, width)
    planes = geometry.aligned_planes({"en": held(post=states)})
    for layer, rows in enumerate(states.double().numpy()):
        _, sizes, axes = np.linalg.svd(rows - rows.mean(axis=0))
        near = planes.axes[layer] @ planes.axes[layer].T  # the plane, whichever axes it is given by
        count = min(2, sentences - 1)
        assert np.allclose(near @ axes[:count].T, axes[:count].T, atol=1e-9)
        assert np.allclose(planes.axes[layer].T @ planes.axes[layer], np.eye(2), atol=1e-12)
        assert planes.explained[layer] == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), rel=1e-12)


def test_states_that_are_all_equal_have_a_plane_that_explains_nothing():
    planes = geometry.aligned_planes({"en": held(post=torch.ones(2, 4, 3))})
    assert planes.explained.tolist() == [0, 0]
    assert np.allclose(planes.axes.transpose(0, 2, 1) @ planes.axes, np.eye(2))


def test_the_frame_names_layer_language_and_sentence(captured):
    found = geometry.pca(captured)
    frame = found.to_frame()
    assert frame.loc[(3, "it", 1), "PC2"] == found.coordinates["it"][3, 1, 1]
    assert len(frame) == 4 * 6


def test_the_plot_has_a_panel_a_layer_and_every_language_by_name(captured):
    figure = geometry.pca(captured).plot([0, 3])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["layer 0", "layer 3"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["English", "Italian"]


def test_the_plot_marks_centroids_and_the_mean_of_them(captured):
    found = geometry.pca(captured, layers=[2])
    _, _, *means, shared = (points.get_offsets()[0] for points in found.plot(centroids=True).axes[0].collections[-5:])
    expected = [points[0].mean(axis=0) for points in found.coordinates.values()]
    assert np.allclose(means, expected)
    assert np.allclose(shared, np.mean(expected, axis=0))


def test_one_layer_is_drawn_in_the_plane_of_any_two_components(captured):
    found = geometry.pca(captured, layers=[1, 2], components=3)
    ax = found.plot_at(2, pair=(0, 2), joined=True)
    assert ax.get_title(loc="left") == "layer 2"
    assert np.allclose(ax.collections[1].get_offsets(), found.coordinates["en"][1][:, [0, 2]])
    assert ax.get_ylabel() == f"PC 3 ({found.explained[1, 2]:.0%})"


def test_a_layer_without_components_is_refused(captured):
    with pytest.raises(tn.TnkitError, match="no principal components of layer 3; choose one of 1, 2"):
        geometry.pca(captured, layers=[1, 2]).plot([3])


def test_states_that_do_not_vary_have_no_components():
    found = geometry.pca({"en": held(torch.ones(1, 3, 4)), "it": held(torch.ones(1, 2, 4))})
    assert not found.explained.any()
    assert found.coordinates["it"].shape == (1, 2, 2)


def test_what_cannot_be_decomposed_is_refused(captured):
    with pytest.raises(tn.TnkitError, match=r"layers \[7\] were not captured"):
        geometry.pca(captured, layers=[7])
    with pytest.raises(tn.TnkitError, match="2 components need at least 2 sentences"):
        geometry.pca({"en": held(torch.ones(1, 1, 4))})
    with pytest.raises(tn.TnkitError, match="no captures"):
        geometry.pca({})
    with pytest.raises(tn.TnkitError, match="components=5 must be between 1 and 4"):
        geometry.pca({"en": held(cloud(1, 9, 4))}, components=5)


def test_states_of_different_positions_have_no_common_components(captured):
    mean = tn.capture(tiny_model("llama"), SENTENCES[3:], position="mean", progress=False)
    with pytest.raises(tn.TnkitError, match=r"en and it .* different position \('last' and 'mean'\)"):
        geometry.pca({"en": captured["en"], "it": mean})


# Distances between centroids


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_centroid_distances_are_those_of_scipy(distance):
    parts = {code: held(cloud(3, n, 6, seed=n), layers=(2, 5, 9)) for code, n in (("en", 4), ("ja", 7), ("xx", 1))}
    found = geometry.centroid_distances(parts, distance=distance)
    for place, layer in enumerate((2, 5, 9)):
        centroids = np.stack([part.post[place].double().numpy().mean(axis=0) for part in parts.values()])
        assert found.at(layer) == pytest.approx(cdist(centroids, centroids, distance), abs=1e-12)
    frame = found.to_frame()
    assert len(frame) == 3 * 3 * 3 and frame.index.names == ["layer", "language", "other"]
    assert frame.loc[(5, "ja", "xx"), f"{distance} distance"] == found.values[1, 1, 2]
    around = found.by_layer("ja")
    assert list(around.columns) == ["en", "xx"] and around.index.tolist() == [2, 5, 9]
    assert around["xx"].tolist() == found.values[:, 1, 2].tolist()
    with pytest.raises(tn.TnkitError, match="no language 'ko'; there are en, ja, xx"):
        found.by_layer("ko")


def test_a_zero_centroid_is_at_cosine_distance_one_from_others_and_none_from_itself():
    parts = {"en": held(torch.zeros(1, 2, 3)), "ja": held(torch.ones(1, 2, 3))}
    assert geometry.centroid_distances(parts).values[0].tolist() == [[0, 1], [1, 0]]


def test_heat_maps_write_every_distance_under_the_languages_names(captured):
    found = geometry.centroid_distances(captured, distance="euclidean")
    ax = found.plot(2)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["English", "Italian"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["English", "Italian"]
    assert [text.get_text() for text in ax.texts] == [f"{value:.2g}" for value in found.at(2).reshape(-1)]
    assert ax.figure.axes[1].get_ylabel() == "euclidean distance"
    figure = found.plot_all([0, 3])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["layer 0", "layer 3"]


def test_cosine_panels_share_one_scale(captured):
    found = geometry.centroid_distances(captured)
    figure = found.plot_all()
    limits = {ax.collections[0].get_clim() for ax in figure.axes[:4]}
    assert limits == {(0, found.values.max())}
    assert [len(ax.get_yticklabels()) > 0 and ax.get_yticklabels()[0].get_text() for ax in figure.axes[:2]] == [
        "English",
        "",
    ]
    same = geometry.centroid_distances({"en": captured["en"], "it": captured["en"]})
    assert [text.get_text() for text in same.plot(0).texts] == ["0"] * 4
    assert not same.values.any()


def test_rounding_errors_are_drawn_as_zero_on_the_panels_scale():
    def drawn(*values, **options):
        ax = plots.distance_map(np.array(values).reshape(2, 2), ["en", "it"], label="", **options)
        return [text.get_text() for text in ax.texts], ax.collections[0].get_clim()

    assert drawn(0, 2.2e-16, 2.2e-16, 0) == (["0"] * 4, (0, 1))
    assert drawn(0, 3e-8, 3e-8, 0.4) == (["0", "0", "0", "0.4"], (0, 0.4))
    assert drawn(0, 3e-8, 3e-8, 0) == (["0", "3e-08", "3e-08", "0"], (0, 3e-8))
    assert drawn(0, 3e-8, 3e-8, 0, highest=0.5) == (["0"] * 4, (0, 0.5))
    assert drawn(0, 1, 1, 2e7) == (["0", "0", "0", "20,000,000"], (0, 2e7))


def test_numbers_that_round_to_zero_have_no_sign():
    ax = plots.matrix(pd.DataFrame({"it": [-0.001]}, index=["ja"]), xlabel="", ylabel="", value="")
    assert [text.get_text() for text in ax.texts] == ["0.00"]


def test_small_cosine_distances_keep_their_digits():
    angle = 1e-9  # 1 - cosine is 5e-19, which a difference from 1 cannot hold
    post = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, angle]]])]
    found = geometry.centroid_distances({"en": held(post[0]), "it": held(post[1])})
    assert found.values[0, 0, 1] == pytest.approx(angle**2 / 2, rel=1e-6)
