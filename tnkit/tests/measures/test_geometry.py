"""Geometry against plain loops, scipy and scikit-learn, and against spaces whose answer is known."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, cosine
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import tnkit as tn
from tnkit.measures import geometry
from tnkit.testing import cloud, held


def rotation(width, seed=0):
    return torch.linalg.qr(cloud(width, width, seed=seed, offset=0.0).double())[0].float()


@pytest.fixture(scope="module")
def pair():
    """Two noisy views of the same 30 sentences in 3 layers: from hardly to closely alike."""
    base = cloud(3, 30, 12, seed=1)
    noise = torch.tensor([2.0, 0.7, 0.2])[:, None, None]
    return held(base), held(base + noise * cloud(3, 30, 12, seed=2, offset=0.0) + 1)


# One number a layer


def test_a_result_by_layer_is_a_frame_and_a_line_a_column():
    found = geometry.ByLayer("share", {"a": np.array([0.1, 0.4]), "b": np.array([3, 2])}, (4, 7))
    frame = found.to_frame()
    assert frame.index.tolist() == [4, 7] and frame.index.name == "layer"
    assert frame.loc[7].tolist() == [0.4, 2]
    ax = found.plot()
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[4, 0.1], [7, 0.4]], [[4, 3], [7, 2]]]
    assert ax.get_ylabel() == "share"
    assert "0.4 at layer 7" in found._repr_html_()


def test_the_best_layer_is_the_first_of_the_largest_and_passes_over_nan():
    found = geometry.ByLayer(
        "share", {"a": np.array([np.nan, 2.0, 5.0, 5.0]), "none": np.full(4, np.nan)}, (3, 4, 5, 6)
    )
    assert found.best() == found.best("a") == (5, 5.0)
    assert "—" in found._repr_html_()
    with pytest.raises(tn.TnkitError, match="none has no values"):
        found.best("none")
    with pytest.raises(tn.TnkitError, match="no column 'c'; there are a, none"):
        found.best("c")


def test_columns_have_one_value_a_layer():
    with pytest.raises(tn.TnkitError, match=r"columns \['a'\] do not have one value"):
        geometry.ByLayer("share", {"a": np.zeros(3)}, (0, 1))


def test_results_of_one_measure_stand_side_by_side():
    one = geometry.ByLayer("share", {"x": np.array([1.0, 2.0])}, (0, 1))
    two = geometry.ByLayer("share", {"x": np.array([3.0, 4.0]), "y": np.array([5.0, 6.0])}, (0, 1))
    found = geometry.beside({"ablated": one, "control": two})
    assert {name: column.tolist() for name, column in found.columns.items()} == {
        "ablated": [1, 2],
        "control, x": [3, 4],
        "control, y": [5, 6],
    }
    assert found.chance is None
    with pytest.raises(tn.TnkitError, match="must be one measure over the same layers"):
        geometry.beside({"a": one, "b": geometry.ByLayer("share", {"x": np.zeros(2)}, (0, 2))})


def test_chance_comes_with_the_measures_that_have_it_and_is_drawn(pair):
    assert geometry.similarity(*pair).chance is None
    assert geometry.retrieval(*pair).chance == 1 / 30
    found = geometry.mutual_knn(*pair, k=5)
    assert found.chance == 5 / 29
    drawn = geometry.beside({"one": found, "same": found}).plot()
    assert drawn.lines[-1].get_ydata()[0] == 5 / 29
    assert (
        geometry.beside({"one": found, "other": geometry.ByLayer("mutual k-NN", found.columns, found.layers)}).chance
        is None
    )


# Similarity


def test_parallel_similarity_is_the_mean_of_scipys_cosines(pair):
    left, right = pair
    found = geometry.similarity(left, right).columns["parallel"]
    for layer in range(3):
        rows = zip(left.post[layer].double(), right.post[layer].double(), strict=True)
        assert found[layer] == pytest.approx(np.mean([1 - cosine(a, b) for a, b in rows]), abs=1e-12)


@pytest.mark.parametrize("sentences", [2, 3, 4, 7])
def test_no_sentence_meets_its_own_translation(sentences):
    same = held(torch.eye(sentences)[None])
    for seed in range(20):
        found = geometry.similarity(same, same, seed=seed)
        assert found.columns["parallel"][0] == 1
        assert found.columns["non-parallel"][0] == 0


def test_every_translation_is_met_once_and_the_seed_says_by_whom(pair):
    angles = torch.linspace(0, 1.5, 9)
    fan = held(torch.stack([angles.cos(), angles.sin()], 1)[None])
    east = held(torch.tensor([1.0, 0.0]).expand(1, 9, 2))
    found = geometry.similarity(east, fan, seed=3).columns["non-parallel"]
    assert found[0] == pytest.approx(angles.cos().mean().item(), abs=1e-6)
    values = [geometry.similarity(*pair, seed=seed).columns["non-parallel"][0] for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_activation_patterns_are_compared_at_their_own_site(pair):
    left, right = (held(torch.zeros(3, 30, 2), activations=part.post) for part in pair)
    found = geometry.similarity(left, right, site="activations")
    assert np.array_equal(found.columns["parallel"], geometry.similarity(*pair).columns["parallel"])
    assert found.measure == "mean cosine of activation patterns"


def test_a_zero_vector_has_cosine_zero():
    left, right = held([[[0.0, 0.0], [1.0, 0.0]]]), held([[[1.0, 0.0], [1.0, 0.0]]])
    assert geometry.similarity(left, right).columns["parallel"][0] == 0.5


# Retrieval


@pytest.mark.parametrize("centred", [True, False])
def test_hits_are_those_of_a_plain_search(pair, centred):
    queries, targets = pair
    found = geometry.hits(queries, targets, centred=centred)
    for layer in range(3):
        a, b = (part.post[layer].double().numpy() for part in pair)
        if centred:
            a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        nearest = cdist(a, b, "cosine").argmin(axis=1)
        assert found[layer].tolist() == (nearest == np.arange(30)).tolist()
    assert 0 < found[0].sum() < found[2].sum()  # the pair is neither hopeless nor trivial
    shares = geometry.retrieval(queries, targets, centred=centred).columns["retrieval@1"]
    assert shares.tolist() == found.mean(axis=1).tolist()


def test_queries_seek_among_targets_and_not_the_other_way():
    queries = held([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])
    targets = held([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]])  # the second query lies nearest to the first target
    assert geometry.hits(queries, targets, centred=False).tolist() == [[True, False, True]]
    assert geometry.hits(targets, queries, centred=False).tolist() == [[True, True, True]]


def test_centred_retrieval_knows_no_mean_shift_and_the_uncentred_does(pair):
    queries, targets = pair
    shift = 30 * cloud(3, 1, 12, seed=5, offset=0.0)
    moved = held(targets.post + shift)
    assert np.array_equal(geometry.hits(queries, moved), geometry.hits(queries, targets))
    before, after = (geometry.hits(queries, part, centred=False)[2].mean() for part in (targets, moved))
    assert after < before


def test_identical_spaces_retrieve_everything_and_misplaced_ones_nothing():
    same, other = held(cloud(2, 20, 8)), held(cloud(2, 20, 8).roll(1, dims=1))
    assert geometry.hits(same, same).all()
    assert not geometry.hits(same, other).any()
    assert geometry.mexa(same, same).columns["MEXA"].tolist() == [1, 1]
    assert geometry.mexa(same, other).columns["MEXA"].tolist() == [0, 0]


def test_unrelated_spaces_give_chance():
    left, right = held(cloud(200, 25, 10, seed=1, offset=0.0)), held(cloud(200, 25, 10, seed=2, offset=0.0))
    assert geometry.retrieval(left, right).columns["retrieval@1"].mean() == pytest.approx(1 / 25, abs=0.01)
    shares = geometry.mutual_knn(left, right, k=6).columns["mutual 6-NN"]
    assert shares.mean() == pytest.approx(6 / 24, abs=0.01)


def test_a_tie_is_a_miss():
    twice = cloud(1, 6, 5)
    twice[0, 4] = twice[0, 1]
    expected = [[True, False, True, True, False, True]]
    assert geometry.hits(held(twice), held(twice)).tolist() == expected
    assert geometry.mexa(held(twice), held(twice)).columns["MEXA"][0] == 4 / 6
    for scale in (0.3, 3.0, 7.0):  # the same direction, but for rounding
        twice[0, 4] = scale * twice[0, 1]
        assert geometry.hits(held(twice), held(twice), centred=False).tolist() == expected
    for value in (0.0, 0.1, 1e6):
        constant = held(torch.full((1, 7, 5), value))
        assert not geometry.hits(constant, constant).any()
        assert geometry.mexa(constant, constant).columns["MEXA"][0] == 0


def test_small_differences_on_a_large_common_direction_are_seen():
    """In float32 all these cosines round to the same number."""
    alike = held(torch.cat([torch.full((1, 9, 1), 1e4), torch.eye(9)[None]], dim=2))
    assert geometry.mexa(alike, alike).columns["MEXA"][0] == 1
    points = cloud(1, 40, 6, offset=0.0)
    near, far = (held(torch.cat([torch.full((1, 40, 1), size), points], dim=2)) for size in (1e3, 1e4))
    assert geometry.mutual_knn(near, far, k=5).columns["mutual 5-NN"][0] == 1


# MEXA


def test_mexa_counts_diagonals_above_their_row_and_column(pair):
    left, right = pair
    found = geometry.mexa(left, right).columns["MEXA"]
    for layer in range(3):
        cosines = 1 - cdist(left.post[layer].double(), right.post[layer].double(), "cosine")
        count = 0
        for n in range(30):
            rivals = [cosines[n, m] for m in range(30) if m != n] + [cosines[m, n] for m in range(30) if m != n]
            count += cosines[n, n] > max(rivals)
        assert found[layer] == count / 30
    assert 0 < found[1] < found[2]
    assert np.array_equal(found, geometry.mexa(right, left).columns["MEXA"])


def test_to_lead_a_row_alone_or_a_column_alone_is_not_enough():
    left, right = held([[[1.0, 0.0], [0.9, 0.1]]]), held([[[1.0, 0.0], [0.5, 0.5]]])
    # cosines: (1, .71), (.99, .78): the second sentence leads its column, the first target leads its row.
    assert geometry.mexa(left, right).columns["MEXA"][0] == 0.5
    assert geometry.mexa(right, left).columns["MEXA"][0] == 0.5


# Mutual nearest neighbours


@pytest.mark.parametrize("k", [1, 5, 10, 29])
def test_neighbours_are_those_of_scikit_learn(pair, k):
    found = geometry.mutual_knn(*pair, k=k).columns[f"mutual {k}-NN"]
    for layer in range(3):
        sets = []
        for part in pair:
            search = NearestNeighbors(n_neighbors=k, metric="cosine").fit(part.post[layer].double().numpy())
            sets.append([set(row) for row in search.kneighbors(return_distance=False)])
        shares = [len(a & b) / k for a, b in zip(*sets, strict=True)]
        assert found[layer] == pytest.approx(np.mean(shares))


def test_clamped_neighbours_are_those_of_the_published_code():
    """A plain version of platonic-rep's `remove_outliers` and `mutual_knn`, on states with one massive coordinate."""
    pair = [cloud(3, 20, 8, seed=seed) for seed in (1, 2)]
    for states in pair:
        states[..., 5] *= 300
    masks = []
    for states in pair:
        features = states.transpose(0, 1)  # sentence, layer, width
        bound = torch.quantile(features.abs().flatten(start_dim=1), 0.95, dim=1).mean()
        features = torch.nn.functional.normalize(features.clamp(-bound, bound).double(), dim=-1)
        mask = torch.zeros(3, 20, 20)
        for layer in range(3):
            cosines = (features[:, layer] @ features[:, layer].T).fill_diagonal_(-1e8)
            for n, nearest in enumerate(cosines.argsort(dim=1, descending=True)[:, :4]):
                mask[layer, n, nearest] = 1
        masks.append(mask)
    expected = (masks[0] * masks[1]).sum(dim=2).mean(dim=1) / 4
    left, right = map(held, pair)
    found = geometry.mutual_knn(left, right, k=4, clamp=0.95)
    assert found.columns["mutual 4-NN"] == pytest.approx(expected.numpy())
    assert found.provenance["parameters"] == {"site": "post", "k": 4, "clamp": 0.95}
    assert not np.allclose(found.columns["mutual 4-NN"], geometry.mutual_knn(left, right, k=4).columns["mutual 4-NN"])
    with pytest.raises(tn.TnkitError, match=r"clamp=1\.5 must be a quantile"):
        geometry.mutual_knn(left, right, clamp=1.5)


def test_identical_spaces_share_all_neighbours_and_so_does_one_turned_or_of_another_width():
    points = cloud(2, 20, 8)
    wider = torch.cat([points @ rotation(8) * 5, torch.zeros(2, 20, 3)], dim=2)
    for other in (points, points @ rotation(8, seed=4), wider):
        assert geometry.mutual_knn(held(points), held(other), k=5).columns["mutual 5-NN"] == pytest.approx([1, 1])


def test_neighbours_that_tie_share_their_places():
    left = [[1, 0], [1, 0], [1, 0], [0, 1], [1, 1]]
    right = [[1, 0], [0, 1], [1, 1], [0, 1], [1, 1]]

    def choices(points, n, k):
        """Every set of k nearest neighbours that some order of the tied ones gives."""
        near = np.round(1 - cdist(points, points, "cosine"), 9)[n]
        others = [m for m in range(5) if m != n]
        best = max(sum(near[list(some)]) for some in itertools.combinations(others, k))
        return [set(some) for some in itertools.combinations(others, k) if np.isclose(sum(near[list(some)]), best)]

    for k in (1, 2, 3):
        expected = [
            np.mean([len(a & b) / k for a in choices(left, n, k) for b in choices(right, n, k)]) for n in range(5)
        ]
        found = geometry.mutual_knn(held([left]), held([right]), k=k).columns[f"mutual {k}-NN"]
        assert found[0] == pytest.approx(np.mean(expected))


def test_states_that_do_not_vary_share_neighbours_by_chance():
    for value in (0.0, 0.3):
        constant = held(torch.full((1, 21, 4), value))
        found = geometry.mutual_knn(constant, constant, k=5).columns["mutual 5-NN"]
        assert found[0] == pytest.approx(5 / 20)


@pytest.mark.parametrize(
    "measure", [geometry.similarity, geometry.retrieval, geometry.mexa, geometry.mutual_knn], ids=lambda f: f.__name__
)
def test_a_rotation_and_a_scale_of_both_languages_change_nothing(pair, measure):
    turn = 7 * rotation(12)
    turned = [held(part.post @ turn) for part in pair]
    for name, column in measure(*pair).columns.items():
        assert measure(*turned).columns[name] == pytest.approx(column, abs=1e-6)


def test_a_rotation_of_one_language_undoes_what_rests_on_directions(pair):
    left, right = pair
    turned = held(right.post @ rotation(12, seed=3))
    assert geometry.retrieval(left, turned).columns["retrieval@1"][2] < 0.3
    assert geometry.retrieval(left, right).columns["retrieval@1"][2] > 0.9
    knn = [geometry.mutual_knn(left, part).columns["mutual 10-NN"] for part in (right, turned)]
    assert knn[0] == pytest.approx(knn[1])


# Effective dimension


@pytest.mark.parametrize(("sentences", "width"), [(30, 12), (12, 30)])
def test_the_dimension_is_the_number_of_components_that_scikit_learn_keeps(sentences, width):
    points = cloud(3, sentences, width) @ torch.diag(0.7 ** torch.arange(width))
    found = geometry.effective_dimension(held(points), shares=(0.5, 0.9, 0.99)).columns
    for share in (0.5, 0.9, 0.99):
        kept = [PCA(share, svd_solver="full").fit(layer.double().numpy()).n_components_ for layer in points]
        assert found[f"{100 * share:g}%"].tolist() == kept


def test_the_uncentred_dimension_is_that_of_the_raw_singular_values():
    points = cloud(3, 30, 12, offset=1.0)
    found = geometry.effective_dimension(held(points), centred=False).columns
    for place, layer in enumerate(points.double().numpy()):
        sizes = np.linalg.svd(layer, compute_uv=False)
        held_by = np.cumsum(sizes**2) / (sizes**2).sum()
        for share in (0.9, 0.95, 0.99):
            assert found[f"{100 * share:g}%"][place] == np.searchsorted(held_by, share) + 1
    far = geometry.effective_dimension(held(points + 1000), centred=False).columns["99%"]
    assert far.tolist() == [1, 1, 1]  # the mean is all


def test_a_planted_subspace_has_its_dimension_wherever_it_lies():
    flat = cloud(1, 40, 3, offset=0.0).double() @ cloud(3, 20, seed=6, offset=0.0).double()
    for shift in (0, 100):
        found = geometry.effective_dimension(held(flat + shift), shares=(0.9999999,))
        assert found.columns["100%"].tolist() == [3]


def test_a_share_that_is_met_exactly_needs_no_further_component():
    even = held(torch.eye(100) * torch.tensor([1.0, 0.1, 0.3, 0.7])[:, None, None])
    shares = [hundredths / 100 for hundredths in range(1, 101)]
    found = geometry.effective_dimension(even, shares=shares, centred=False)
    assert [column.tolist() for column in found.columns.values()] == [[n] * 4 for n in range(1, 101)]
    assert list(found.columns) == [f"{n}%" for n in range(1, 101)]


def test_what_does_not_vary_has_dimension_zero():
    for states in (torch.full((1, 7, 5), 0.1), cloud(1, 1, 5), torch.zeros(1, 3, 5)):
        assert geometry.effective_dimension(held(states)).columns["90%"].tolist() == [0]
    assert geometry.effective_dimension(held(cloud(1, 1, 5)), centred=False).columns["90%"].tolist() == [1]


# What is refused


MEASURES = [geometry.similarity, geometry.hits, geometry.retrieval, geometry.mexa, geometry.mutual_knn]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_captures_that_do_not_go_together_are_refused(measure):
    left = held(cloud(2, 12, 4))
    for right, message in (
        (held(cloud(2, 11, 4)), "12 and 11 sentences"),
        (held(cloud(2, 12, 4), layers=(1, 2)), r"the first capture and the second .* layers \(\(0, 1\) and \(1, 2\)\)"),
        (
            held(cloud(2, 12, 4), provenance={"position": "mean"}),
            r"different position \(None and 'mean'\)",
        ),
        (tn.Activations((0, 1), torch.arange(12).flip(0), post=cloud(2, 12, 4)), "different orders"),
        (held(torch.full((2, 12, 4), torch.nan)), "post of layer 0 holds NaN"),
        (tn.Activations((0, 1), torch.arange(12), mid=cloud(2, 12, 4)), "hold mid but not post"),
    ):
        with pytest.raises(tn.TnkitError, match=message):
            measure(left, right)
    with pytest.raises(tn.TnkitError, match="site='hidden' must be one of"):
        measure(left, left, site="hidden")
    with pytest.raises(tn.TnkitError, match="1 sentences are too few; capture at least"):
        measure(held(cloud(2, 1, 4)), held(cloud(2, 1, 4)))


def test_sentences_of_different_splits_are_not_parallel():
    train, test = (
        held(cloud(1, 12, 4), provenance={"sentences": {"corpus": "everyday", "split": split}})
        for split in ("train", "test")
    )
    with pytest.raises(tn.TnkitError, match="of split 'train' and 'test'"):
        geometry.retrieval(train, test)


def test_each_result_says_what_it_was_made_of():
    left, right = (held(cloud(1, 12, 4), provenance={"sentences": {"language": code}}) for code in ("en", "ja"))
    about = geometry.mutual_knn(left, right, k=3).provenance
    assert about["sentences"] == [{"language": "en"}, {"language": "ja"}]
    assert about["parameters"] == {"site": "post", "k": 3}


def test_too_few_neighbours_widths_and_wrong_options_are_refused():
    one, wide = held(cloud(1, 10, 4)), held(cloud(1, 10, 5))
    with pytest.raises(tn.TnkitError, match="10 sentences are too few; capture at least 11"):
        geometry.mutual_knn(one, one, k=10)
    with pytest.raises(tn.TnkitError, match="k=0 must be at least 1"):
        geometry.mutual_knn(one, one, k=0)
    with pytest.raises(tn.TnkitError, match="4 and 5 wide"):
        geometry.mexa(one, wide)
    for shares in ((0.0,), (1.5,), ()):
        with pytest.raises(tn.TnkitError, match="above 0 and at most 1"):
            geometry.effective_dimension(one, shares=shares)
    with pytest.raises(tn.TnkitError, match="at least two languages, got en"):
        geometry.centroid_distances({"en": one})
    with pytest.raises(tn.TnkitError, match="4 and 5 wide"):
        geometry.centroid_distances({"en": one, "ja": wide})
    with pytest.raises(tn.TnkitError, match="distance='manhattan'"):
        geometry.centroid_distances({"en": one, "ja": one}, distance="manhattan")
    with pytest.raises(tn.TnkitError, match="layer 4 was not captured"):
        geometry.centroid_distances({"en": one, "ja": one}).at(4)
    with pytest.raises(tn.TnkitError, match="holds no sentences"):
        geometry.effective_dimension(held(torch.zeros(1, 0, 4)))
