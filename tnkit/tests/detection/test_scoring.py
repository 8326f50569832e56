"""Scores: the closed form against the definition, streaming against storing, a planted neuron, ties and selection."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tnkit as tn
from tnkit.detection.closed_form import summed_scores
from tnkit.detection.routed import expert_total
from tnkit.detection.scores import DISTANCES
from tnkit.detection.scoring import ScoreAccumulator, contribution_norms
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle
from tnkit.tests.oracle import assert_near

TEXTS = SENTENCES[:3], SENTENCES[2:]
every_distance = pytest.mark.parametrize("distance", DISTANCES)


def written_out(mid, activations, vectors, centroid, distance):
    """The sum over sentences of each neuron's score, every m + c as a vector, float64."""
    moved = mid[:, None] + activations[:, :, None] * vectors
    if distance == "euclidean":
        return ((mid - centroid).norm(dim=-1)[:, None] - (moved - centroid).norm(dim=-1)).sum(dim=0)

    def cosine(states):
        sizes = states.norm(dim=-1) * centroid.norm()
        return torch.where(sizes > 0, states @ centroid / torch.where(sizes > 0, sizes, 1), 0)

    return (cosine(moved) - cosine(mid)[:, None]).sum(dim=0)


@st.composite
def problems(draw):
    """States, activations, value vectors and a centroid, of any size, with zeros and huge norms among them."""
    sentences, neurons, hidden = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tensor(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values * 10.0 ** draw(st.integers(-6, 8))

    parts = [tensor(sentences, hidden), tensor(sentences, neurons), tensor(neurons, hidden), tensor(hidden)]
    for part in parts:
        if draw(st.booleans()):
            part[tuple(draw(st.integers(0, size - 1)) for size in part.shape[:1])] = 0
    return parts


@every_distance
@settings(max_examples=300, deadline=None)
@given(problem=problems())
def test_the_closed_form_is_the_definition(distance, problem):
    found = summed_scores(*problem, distance=distance)[0]
    expected = written_out(*problem, distance)
    mid, activations, vectors, centroid = problem
    moves = (activations.abs() * vectors.norm(dim=-1)).sum(dim=0)
    size = 1.0 if distance == "cosine" else (mid - centroid).norm(dim=-1).sum() + moves
    assert ((found - expected).abs() <= 1e-9 * size).all()


@every_distance
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_float32_errors_are_a_hundred_thousandth_of_the_contribution(distance, problem):
    """Measured against the size of the contribution, not of the much larger states that it is added to."""
    mid, activations, vectors, centroid = (part.float() for part in problem)
    found = summed_scores(mid, activations, vectors, centroid, distance=distance)[0]
    expected = written_out(*(part.double() for part in (mid, activations, vectors, centroid)), distance)
    moves = activations.abs().double() * vectors.double().norm(dim=-1)
    origin = (mid if distance == "cosine" else mid - centroid).double().norm(dim=-1)
    assume(not bool((moves > 1e15 * torch.where(origin > 0, origin, torch.inf)[:, None]).any()))
    if distance == "cosine":
        stands = mid.double().norm(dim=-1)
        moved = (mid.double()[:, None] + activations.double()[:, :, None] * vectors.double()).norm(dim=-1)
        ill = (moved < 1e-2 * torch.maximum(stands[:, None], moves)).any(dim=0)  # m + c all but cancels
        allowed = 1e-6 * (moves / torch.maximum(stands[:, None], moves).clamp_min(1e-300)).sum(dim=0)
        found, expected, allowed = found[~ill], expected[~ill], 10 * allowed[~ill]
    else:
        allowed = 1e-6 * moves.sum(dim=0) + 1e-7 * (mid - centroid).double().norm(dim=-1).sum()
        allowed = allowed + 1e-6 * (mid.double().norm(dim=-1) + centroid.double().norm() - origin).clamp_min(0).sum()
    assert ((found - expected).abs() <= allowed + 1e-14).all()  # the definition itself is exact to about 1e-16


@st.composite
def massive_problems(draw):
    """Float32 states that share a coordinate of 5,000 beside others of 30, the mean of half of them and of all."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sentences, neurons, hidden = draw(st.integers(4, 8)), draw(st.integers(5, 9)), draw(st.integers(8, 40))
    mid = 30 * torch.randn(sentences, hidden, generator=generator)
    mid[:, 1] = 5000 + 50 * torch.randn(sentences, generator=generator)
    origin, target = mid.mean(dim=0), mid[: sentences // 2].mean(dim=0)
    activations = torch.randn(sentences, neurons, generator=generator)
    return mid, activations, 5 * torch.randn(neurons, hidden, generator=generator), target, origin


@settings(max_examples=200, deadline=None)
@given(problem=massive_problems())
def test_centred_scores_are_exact_beside_a_massive_coordinate(problem):
    mid, activations, vectors, target, origin = problem
    ones, none = torch.ones(vectors.shape[1]), torch.zeros(vectors.shape[1])
    states, shape = (mid, activations, torch.ones(len(mid))), ((len(vectors),), (len(vectors), 0))
    experts = torch.zeros(len(mid), 0, dtype=torch.int32)
    found = expert_total(vectors, ones, none, *states, target, origin, None, "cosine", experts, *shape)
    mid, activations, vectors, target, origin = (part.double() for part in problem)
    expected = written_out(mid - origin, activations, vectors, target - origin, "cosine")
    assert ((found - expected).abs() <= 1e-5 * len(mid)).all()
    assert expected.abs().max() > 1e-3


@every_distance
def test_special_cases_have_the_documented_values(distance):
    mid, vectors, centroid = (
        torch.tensor([[3.0, 4.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        torch.tensor([6.0, 8.0]),
    )
    zero = summed_scores(mid, torch.zeros(1, 2), vectors, centroid, distance=distance)[0]
    assert zero.tolist() == [0, 0]
    still = summed_scores(mid, torch.ones(1, 2), vectors, centroid, distance=distance)[0]
    assert still[1] == 0
    cancelled = summed_scores(mid, torch.tensor([[-1.0]]), mid, centroid, distance=distance)[0]
    assert cancelled.item() == pytest.approx(-1 if distance == "cosine" else -5, abs=1e-3)
    arrived = summed_scores(mid, torch.tensor([[1.0]]), mid, centroid, distance=distance)[0]
    assert arrived.item() == pytest.approx(0 if distance == "cosine" else 5, abs=1e-3)
    at_zero = summed_scores(torch.zeros(1, 2), torch.tensor([[2.0]]), mid, centroid, distance=distance)[0]
    assert at_zero.item() == pytest.approx(1 if distance == "cosine" else 10, abs=1e-3)


@every_distance
def test_streaming_batches_in_any_order_equals_storing(distance):
    model = tiny_model("gemma2")
    whole = tn.capture(model, SENTENCES, progress=False)
    target = tn.estimate_centroids([whole])
    expected = tn.score_neurons(model, whole, target, distance=distance).values
    running = ScoreAccumulator(model, target, distance=distance)
    for batch in reversed([*tn.stream(model, SENTENCES, batch_tokens=60, progress=False)]):
        running.add(batch)
    assert running.count == len(SENTENCES)
    assert_near(running.result().values, expected)


@every_distance
def test_a_planted_neuron_comes_out_first(distance):
    """Neuron 7 of layer 1 always fires (its gate equals its up map) and writes towards the centroid."""
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    direction = torch.randn(model.n_layers, model.hidden_size, generator=torch.Generator().manual_seed(3))
    target = tn.Centroids(20 * direction, tuple(range(model.n_layers)))
    before = tn.score_neurons(model, tn.capture(model, SENTENCES, progress=False), target, distance=distance)
    mlp = module.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[7] = mlp.up_proj.weight[7]
        mlp.down_proj.weight[:, 7] = 3 * direction[1]
    captured = tn.capture(model, SENTENCES, progress=False)
    scores = tn.score_neurons(model, captured, target, distance=distance)
    assert scores.top(1).pairs == ((1, 7),)
    assert before.top(1).pairs != ((1, 7),)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "cohere"])
def test_centred_scores_equal_the_oracle(name):
    """States and target are shifted by hand, in float64, at plain hooks; adding batch after batch gives the same."""
    model = tiny_model(name)
    captured = tn.capture(model, SENTENCES, progress=False)
    target, origin = (tn.estimate_centroids([tn.capture(model, text, progress=False)]) for text in (TEXTS[0], TEXTS[1]))
    expected = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.float64)
    for sentence in SENTENCES:
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        mids, added = oracle.contributions(tiny_module(name), model.blocks_path, model.sites, ids)
        mids = [mid - shift for mid, shift in zip(mids, origin.values.double(), strict=True)]
        expected += oracle.scores(mids, added, target.values.double() - origin.values.double(), "cosine")
    scores = tn.score_neurons(model, captured, target, origin=origin)
    assert_near(scores.values, expected / len(SENTENCES))
    raw = tn.score_neurons(model, captured, target)
    assert (raw.score, scores.score, scores.top(3).provenance["selection"]["score"]) == ("raw", "centred", "centred")
    assert scores.provenance["origin"] == origin.provenance["sentences"] and "origin" not in raw.provenance
    assert not torch.allclose(raw.values, scores.values, atol=1e-3)
    running = ScoreAccumulator(model, target, origin=origin)
    for batch in tn.stream(model, SENTENCES, batch_tokens=60, progress=False):
        running.add(batch)
    assert_near(running.result().values, scores.values)
    assert running.identity != ScoreAccumulator(model, target).identity


def test_an_origin_that_changes_nothing_or_leaves_no_direction_is_refused():
    model = tiny_model("llama")
    captured = tn.capture(model, SENTENCES, progress=False)
    own = tn.estimate_centroids([captured])
    with pytest.raises(tn.TnkitError, match="euclidean distances are the same from every origin"):
        tn.score_neurons(model, captured, own, origin=own, distance="euclidean")
    with pytest.raises(tn.TnkitError, match="the centroid of layer 0 is the origin itself"):
        tn.score_neurons(model, captured, own, origin=tn.Centroids(own.values * (1 + 1e-8), own.layers))
    elsewhere = tn.estimate_centroids([tn.capture(model, SENTENCES[:3], position="mean", progress=False)])
    with pytest.raises(tn.TnkitError, match="of different position"):
        tn.score_neurons(model, captured, own, origin=elsewhere)
    unnamed = tn.Centroids(own.values, own.layers)
    with pytest.raises(tn.TnkitError, match="position='mean', the sentences captured at position='last'"):
        tn.score_neurons(model, captured, unnamed, origin=elsewhere)


def test_layers_that_were_not_scored_are_nan_and_never_chosen():
    model = tiny_model("llama")
    captured = tn.capture(model, SENTENCES, progress=False)
    scores = tn.score_neurons(model, captured, tn.estimate_centroids([captured]), layers=[1, 2])
    assert scores.layers == [1, 2]
    assert scores.values[[0, 3]].isnan().all()
    assert set(scores.top(2 * model.n_neurons).by_layer()) == {1, 2}
    with pytest.raises(tn.TnkitError, match=r"layers \[3\] were not scored; scored are 1 to 2"):
        scores.top(1, layers=[3])


def test_top_threshold_and_ties():
    scores = tn.NeuronScores(torch.tensor([[0.5, 0.1, 0.5], [-1.0, 0.5, 0.2]]).double(), "cosine")
    assert scores.top(4).pairs == ((0, 0), (0, 2), (1, 1), (1, 2))
    assert scores.top(1, layers=[1]).pairs == ((1, 1),)
    assert scores.above(0.15).pairs == scores.top(4).pairs
    assert len(scores.above(9.0)) == 0
    for wrong in (0, 7):
        with pytest.raises(tn.TnkitError, match=rf"top {wrong} was asked for.*hold 6 neurons"):
            scores.top(wrong)


def test_a_file_gives_back_what_was_saved(tmp_path):
    model = tiny_model("llama")
    captured = tn.capture(model, SENTENCES, progress=False)
    scores = tn.score_neurons(model, captured, tn.estimate_centroids([captured]), layers=[1])
    again = tn.NeuronScores.load(scores.save(tmp_path / "scores.safetensors"))
    assert torch.equal(again.values.nan_to_num(9), scores.values.nan_to_num(9))
    assert (again.distance, again.provenance) == (scores.distance, scores.provenance)
    assert again.to_frame().loc[(1, 5), "score"] == float(scores.values[1, 5])


def test_centroids_of_other_weights_or_another_shape_are_refused():
    llama, qwen = tiny_model("llama"), tiny_model("qwen2")
    captured = tn.capture(llama, SENTENCES, progress=False)
    with pytest.raises(tn.TnkitError, match=r"were made with .* not with"):
        tn.score_neurons(qwen, tn.capture(qwen, SENTENCES, progress=False), tn.estimate_centroids([captured]))
    with pytest.raises(tn.TnkitError, match="have 2 layers of width 32"):
        tn.score_neurons(llama, captured, tn.Centroids(torch.ones(2, 32), (0, 1)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda module: module.model.layers[1].mlp.down_proj.weight.data[3, 5].mul_(1.5),
        lambda module: module.to(torch.bfloat16),
    ],
    ids=["weights", "dtype"],
)
def test_a_capture_is_scored_only_in_the_model_that_was_captured(edit):
    """The model may be another of the same shape, or this one after an edit."""
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = tn.capture(model, SENTENCES, progress=False)
    target = tn.Centroids(tn.estimate_centroids([captured]).values, captured.layers)
    tn.score_neurons(model, captured, target)
    edit(module)
    with pytest.raises(tn.TnkitError, match=r"these captured states were made with .* not with .* as it is now"):
        tn.score_neurons(model, captured, target)
    with pytest.raises(tn.TnkitError, match="these captured states were made with"):
        contribution_norms(model, captured)
    with pytest.raises(tn.TnkitError, match="these captured states were made with"):
        tn.neuron_card(model, {"en": captured}, {"en": SENTENCES}, (1, 5))
    neurons = tn.NeuronSet(((1, 5),), (4, 48), provenance=captured.provenance)
    with pytest.raises(tn.TnkitError, match="these neurons were made with"):
        tn.lens.promoted(model, neurons)
    assert tn.lens.promoted(model, list(neurons)).neurons == ((1, 5),)


def test_captures_of_different_ablations_are_neither_scored_nor_averaged_together():
    model = tiny_model("llama")
    untouched = tn.capture(model, SENTENCES, progress=False)
    with tn.Ablation(model, [(1, 7)], tokens="last"):
        ablated = tn.capture(model, SENTENCES, progress=False)
    for one, other in ((untouched, ablated), (ablated, untouched)):
        with pytest.raises(tn.TnkitError, match=r"centroids were estimated at ablations=.* mix them on purpose"):
            tn.score_neurons(model, one, tn.estimate_centroids([other]))
    target = tn.estimate_centroids([untouched])
    mixed = tn.score_neurons(model, ablated, tn.Centroids(target.values, target.layers))  # on purpose
    assert mixed.values[1, 7] == 0
    scores = tn.score_neurons(model, ablated, tn.estimate_centroids([ablated]))
    assert scores.values[1, 7] == 0 and scores.provenance["ablations"] == ablated.provenance["ablations"]
    with pytest.raises(tn.TnkitError, match=r"of different ablations \(None and \[.*capture all alike"):
        tn.estimate_centroids([untouched, ablated])
    running = ScoreAccumulator(model, tn.estimate_centroids([untouched]))
    running.add(untouched)
    with pytest.raises(tn.TnkitError, match="of different ablations"):
        running.add(ablated)


def test_states_of_another_attention_implementation_are_refused():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = tn.capture(model, SENTENCES, progress=False)
    target = tn.estimate_centroids([captured])
    module.set_attn_implementation("eager")
    with pytest.raises(tn.TnkitError, match=r"made with attn_implementation='sdpa', and .* now has 'eager'"):
        tn.score_neurons(model, captured, target)
    with pytest.raises(tn.TnkitError, match="of= or minus= were made with attn_implementation='sdpa'"):
        tn.Ablation(model, [(1, 7)], value="mean", of=captured)
    again = tn.capture(model, SENTENCES, progress=False)
    with pytest.raises(
        tn.TnkitError, match="estimated at attention='sdpa', the sentences captured at attention='eager'"
    ):
        tn.score_neurons(model, again, target)
    tn.score_neurons(model, again, tn.estimate_centroids([again]))


def test_centroids_of_another_template_are_refused():
    chatty = tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer(), template="Say {sentence}")
    plain = tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer())
    target = tn.estimate_centroids([tn.capture(chatty, SENTENCES, progress=False)])
    with pytest.raises(tn.TnkitError, match=r"estimated at template='<bos>Say \{sentence\}'"):
        tn.score_neurons(plain, tn.capture(plain, SENTENCES, progress=False), target)


def test_states_that_are_not_finite_are_named():
    model = tiny_model("llama")
    captured = tn.capture(model, SENTENCES, progress=False)
    target = tn.estimate_centroids([captured])
    captured.mid[2, 1, 0] = torch.nan
    with pytest.raises(tn.TnkitError, match="scores of layer 2 are not finite"):
        tn.score_neurons(model, captured, target)


def test_centroids_and_captures_of_different_positions_are_refused():
    model = tiny_model("llama")
    captured = tn.capture(model, SENTENCES, progress=False)
    target = tn.estimate_centroids([tn.capture(model, SENTENCES, position="mean", progress=False)])
    with pytest.raises(tn.TnkitError, match="position='mean', the sentences captured at position='last'"):
        tn.score_neurons(model, captured, target)


def test_an_unknown_distance_is_named():
    captured = tn.capture(tiny_model(), SENTENCES, progress=False)
    with pytest.raises(tn.TnkitError, match="distance='manhattan' must be one of cosine, euclidean"):
        tn.score_neurons(tiny_model(), captured, tn.estimate_centroids([captured]), distance="manhattan")
