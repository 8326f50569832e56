"""Sums of turns: the scores towards any centroid that follow from them are those of the definition."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings

import tnkit as tn
from tnkit.captures import passes
from tnkit.detection import steps, turns
from tnkit.detection.closed_form import add_turns
from tnkit.detection.scoring import routed_shares
from tnkit.testing import ARCHITECTURES, SENTENCES, byte_tokenizer, tiny_corpus, tiny_model, tiny_module
from tnkit.tests import oracle, test_hybrid
from tnkit.tests.detection.test_scoring import problems, written_out
from tnkit.tests.oracle import assert_near

QUIET = {"progress": False}
TEXTS = {name: list(sentences) for name, sentences in tiny_corpus()["train"].items()}


def turned(mid, activations, vectors, folds=None):
    """The sum of turns by fold; of all sentences at once, or of those of each fold."""
    folds = torch.zeros(len(mid), dtype=torch.long) if folds is None else folds
    total = mid.new_zeros(int(folds.max()) + 1, len(vectors), mid.shape[1])
    add_turns(mid, activations, vectors, total, folds)
    return total


@settings(max_examples=200, deadline=None)
@given(problem=problems())
def test_turns_times_a_direction_are_the_definition(problem):
    mid, activations, vectors, centroid = problem
    goal = torch.nn.functional.normalize(centroid, dim=0, eps=1e-300)
    found = turned(mid, activations, vectors)[0] @ goal
    assert ((found - written_out(*problem, "cosine")).abs() <= 1e-9 * len(mid)).all()


def test_special_cases_have_the_documented_values():
    mid, vectors, goal = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0.6, 0.8])
    assert not turned(mid, torch.zeros(1, 2), vectors).any()
    assert not turned(mid, torch.ones(1, 2), vectors)[0, 1].any()
    cancelled, arrived = (turned(mid, torch.tensor([[sign]]), mid)[0, 0] @ goal for sign in (-1.0, 1.0))
    assert (cancelled.item(), arrived.item()) == (pytest.approx(-1, abs=1e-3), pytest.approx(0, abs=1e-3))
    assert (turned(torch.zeros(1, 2), torch.tensor([[2.0]]), mid)[0, 0] @ goal).item() == pytest.approx(1, abs=1e-3)
    assert not turned(torch.zeros(1, 2), torch.tensor([[0.0]]), mid).any()


@pytest.mark.parametrize("at_once", [8, 256])
def test_small_scores_are_exact_beside_a_massive_coordinate(at_once):
    """A coordinate of 5,000 beside 640 of 30, a target nearly parallel to all states: scores of 1e-5, float32 sums."""
    generator = torch.Generator().manual_seed(0)
    mid = 30 * torch.randn(512, 640, generator=generator)
    mid[:, 1] = 5000 + 50 * torch.randn(512, generator=generator)
    activations, vectors = torch.randn(512, 12, generator=generator), 1.5 * torch.randn(12, 640, generator=generator)
    target = mid.double().mean(dim=0)
    expected = sum(
        written_out(*(part.double() for part in (mid[one], activations[one], vectors)), target, "cosine")
        for one in torch.arange(512).split(64)
    )
    total, fold = torch.zeros(1, 12, 640), torch.zeros(512, dtype=torch.long)
    for one in torch.arange(512).split(at_once):
        add_turns(mid[one], activations[one], vectors, total, fold[one])
    found = total[0].double() @ (target / target.norm())
    assert expected.abs().median() / 512 < 1e-4
    assert (found - expected).abs().max() / 512 < 1e-10


def oracle_scores(name, target, origin=None):
    """The mean scores of `SENTENCES`, from float64 contributions at plain hooks."""
    model, total = tiny_model(name), 0
    shift = torch.zeros_like(target) if origin is None else origin
    for sentence in SENTENCES:
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        mids, added = oracle.contributions(tiny_module(name), model.blocks_path, model.sites, ids)
        mids = [mid - row for mid, row in zip(mids, shift.double(), strict=True)]
        total = total + oracle.scores(mids, added, target.double() - shift.double(), "cosine")
    return total / len(SENTENCES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_towards_any_point_equal_the_oracle(name):
    model = tiny_model(name)
    found = tn.attraction(model, SENTENCES, batch_tokens=60, **QUIET)
    points = torch.randn(2, model.n_layers, model.hidden_size, generator=torch.Generator().manual_seed(1))
    for point in points:
        assert_near(found.scores(point).values, oracle_scores(name, point))
    centred = tn.attraction(model, SENTENCES, origin=tn.Centroids(points[0], tuple(range(model.n_layers))), **QUIET)
    assert_near(centred.scores(points[1]).values, oracle_scores(name, points[1], points[0]))


def same_scores(found, expected):
    """Values, folds, shares and provenance."""
    assert torch.equal(found.values.isnan(), expected.values.isnan())
    assert_near(found.values.nan_to_num(0), expected.values.nan_to_num(0))
    assert (found.provenance, found.distance, found.score) == (
        expected.provenance,
        expected.distance,
        expected.score,
    )
    assert found.top(20).provenance == expected.top(20).provenance
    if expected.routed is not None:
        assert torch.allclose(found.routed, expected.routed, equal_nan=True)
        assert found.to_frame()["routed"].equals(expected.to_frame()["routed"])


@pytest.mark.parametrize("name", ["gemma3", "mixtral", "qwen2-moe", "deepseek-v3", "llama4", "gpt-oss"])
def test_scores_from_a_capture_or_a_pass_equal_score_neurons(name):
    model = tiny_model(name)
    captured = {language: tn.capture(model, tiny_corpus()["train"][language], **QUIET) for language in TEXTS}
    means = {language: tn.estimate_centroids([one]) for language, one in captured.items()}
    everywhere, ja = tn.estimate_centroids([*means.values()]), captured["ja"]
    for origin in (None, everywhere):
        made = tn.attraction(model, ja, origin=origin, stability=True)
        ran = tn.attraction(model, tiny_corpus()["train"]["ja"], origin=origin, batch_tokens=100, **QUIET)
        for target in means.values():
            expected = tn.score_neurons(model, ja, target, origin=origin)
            same_scores(made.scores(target), expected)
            same_scores(ran.scores(target), expected)
            assert made.scores(target).folds.shape == expected.folds.shape
            assert_near(made.scores(target).folds.nan_to_num(0), expected.folds.nan_to_num(0))
            assert ran.scores(target).folds is None
    if model.slots:
        shares = routed_shares(model, ja)
        assert torch.allclose(made.scores(means["ja"]).shares().float(), shares, equal_nan=True)


def test_layers_without_neurons_and_narrow_ones_are_nan():
    model, ja = test_hybrid.model(), test_hybrid.captured()
    target = tn.estimate_centroids([ja])
    found = tn.attraction(model, ja)
    assert found.layers == (0, 1, 2) and found.widths == (*test_hybrid.WIDTHS,)
    same_scores(found.scores(target), tn.score_neurons(model, ja, target))
    some = found.scores(target, layers=[1])
    assert some.layers == [1] and int((~some.values.isnan()).sum()) == 32
    assert len(found.to_frame()) == 128


def test_a_target_may_be_some_sentences_one_or_a_capture_and_reach_is_the_most_that_any_gives():
    model = tiny_model("gemma2")
    captured = {name: tn.capture(model, texts, **QUIET) for name, texts in TEXTS.items()}
    found = tn.attraction(model, captured["ja"])
    picked = captured["it"].post[:, [0, 3, 4]].mean(dim=1)
    for point in (picked, captured["it"].post[:, 2]):
        expected = tn.score_neurons(model, captured["ja"], tn.Centroids(point, (0, 1, 2, 3)))
        assert_near(found.scores(point).values, expected.values)
    whole = found.scores(captured["it"])
    same_scores(whole, tn.score_neurons(model, captured["ja"], tn.estimate_centroids([captured["it"]])))
    reach = found.to_frame()["reach"]
    towards = torch.zeros(4, 32, dtype=torch.float64)
    towards[1] = found.sums[1].sum(dim=0)[7].double()  # the mean turn of (1, 7), made the target
    assert found.scores(towards).values[1, 7].item() == pytest.approx(reach[(1, 7)], rel=1e-6)
    assert (found.scores(picked).to_frame()["score"] <= reach + 1e-9).all()
    assert found.plot().lines


@pytest.mark.parametrize("origin", [False, True])
def test_a_file_gives_back_what_was_saved(tmp_path, origin):
    model = tiny_model("mixtral")
    captured = tn.capture(model, tiny_corpus()["train"]["ja"], **QUIET)
    seen_from = tn.Centroids(torch.ones(4, 32), (0, 1, 2, 3)) if origin else None
    found = tn.attraction(model, captured, origin=seen_from, layers=[1, 3], stability=True)
    again = tn.Attraction.load(found.save(tmp_path / "ja.safetensors"))
    assert torch.equal(again.sums, found.sums) and again.provenance == found.provenance
    assert (repr(again), again.widths, again.count) == (repr(found), found.widths, 15)
    target = tn.estimate_centroids([captured])
    one, other = again.scores(target), found.scores(target)
    assert torch.equal(one.values.nan_to_num(9), other.values.nan_to_num(9)) and torch.equal(one.folds, other.folds)
    assert one.layers == [1, 3] and one.provenance == other.provenance


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sums", torch.zeros(2, 1, 48, 32) / 0, "not finite"),
        ("sums", torch.zeros(2, 48, 32), "expected"),
        ("sums", torch.zeros(2, 1, 40, 32), "expected"),
        ("count", 0, "their count or their widths"),
        ("count", "5", "their count or their widths"),
        ("widths", (48,), "their count or their widths"),
        ("widths", (48, 48, -1, 48), "their count or their widths"),
        ("origin", torch.zeros(2, 31), "expected"),
        ("layers", (3, 1), "not in order"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, name, value, words):
    whole = {"sums": torch.zeros(2, 1, 48, 32), "layers": (1, 3), "widths": (48,) * 4, "count": 5, "origin": None}
    about = whole | {name: value}
    tensors = {key: about.pop(key) for key in ("sums", "origin")}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    tn.storage.save_tensors(tmp_path / "a", "attraction", tensors, {**about, "provenance": {}})
    with pytest.raises(tn.TnkitError, match=words):
        tn.Attraction.load(tmp_path / "a")
    tn.storage.save_tensors(tmp_path / "b", "scores", tensors, {})
    with pytest.raises(tn.TnkitError, match="holds scores, expected attraction"):
        tn.Attraction.load(tmp_path / "b")


def test_targets_that_do_not_fit_are_refused():
    model = tiny_model("llama")
    captured = tn.capture(model, SENTENCES, **QUIET)
    own = tn.estimate_centroids([captured])
    found = tn.attraction(model, captured, layers=[0, 2])
    centred = tn.attraction(model, captured, origin=own)
    qwen = tn.estimate_centroids([tn.capture(tiny_model("qwen2"), SENTENCES, **QUIET)])
    mean = tn.estimate_centroids([tn.capture(model, SENTENCES, position="mean", **QUIET)])
    for target, words in {
        torch.ones(2, 31): "states of width 31, this attraction of width 32",
        torch.ones(3, 32): r"a tensor of shape \(3, 32\), expected \(2, 32\)",
        torch.ones(32): r"a tensor of shape \(32,\), expected \(2, 32\)",
        torch.full((2, 32), torch.nan): "the target holds NaN or Inf",
        tn.Centroids(torch.ones(1, 32), (3,)): "the target has layers 3 to 3, this attraction 0, 2",
        qwen: "of different model",
        mean: "position='mean', the sentences captured at position='last'",
    }.items():
        with pytest.raises(tn.TnkitError, match=words):
            found.scores(target)
    with pytest.raises(tn.TnkitError, match="the centroid of layer 0 is the origin itself"):
        centred.scores(own)
    with pytest.raises(tn.TnkitError, match=r"layers \[1\] were not"):
        found.scores(own, layers=[1])
    assert not found.scores(torch.zeros(2, 32)).values[[0, 2]].any()  # as the cosine with a zero vector


def test_what_cannot_be_summed_up_is_refused(monkeypatch):
    model = tiny_model("llama")
    captured = tn.capture(model, SENTENCES, **QUIET)
    broken = copy.deepcopy(captured)
    broken.mid[2, 1, 0] = torch.nan
    for states, words in (
        (broken, "sums of layer 2 are not finite"),
        (tn.capture(model, SENTENCES, keep=["mid"], **QUIET), "but not activations, scale"),
        (tn.capture(tiny_model("qwen2"), SENTENCES, **QUIET), "were made with"),
        (tn.capture(model, SENTENCES, layers=[0], **QUIET), r"layers \[1\] were not captured"),
    ):
        with pytest.raises(tn.TnkitError, match=words):
            tn.attraction(model, states, layers=None if states is broken else [0, 1])
    elsewhere = tn.estimate_centroids([tn.capture(model, SENTENCES, position="mean", **QUIET)])
    with pytest.raises(tn.TnkitError, match="position='mean'"):
        tn.attraction(model, captured, origin=elsewhere)
    with pytest.raises(tn.TnkitError, match="position cannot change a capture"):
        tn.attraction(model, captured, position="mean")
    with pytest.raises(tn.TnkitError, match="no sentences"):
        tn.attraction(model, [], **QUIET)
    monkeypatch.setattr(type(model), "request_bytes", 1)
    with pytest.raises(tn.TnkitError, match="as large as its down projections and would travel"):
        tn.attraction(model, captured)


def test_a_cached_pass_runs_nothing_twice_and_an_interrupted_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(turns, "_WAITING", 0)
    monkeypatch.setattr("tnkit.detection.sums._EVERY", 0)
    monkeypatch.setattr("tnkit.detection.sums._RARELY", 0)
    model, texts, how = tiny_model("gemma3"), TEXTS["ja"], {"batch_tokens": 60, "stability": True} | QUIET
    fresh, trace, ran = tn.attraction(model, texts, **how), passes.trace_blocks, []

    def failing(*arguments, **options):
        ran.append(1)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return trace(*arguments, **options)

    monkeypatch.setattr(passes, "trace_blocks", failing)
    with pytest.raises(KeyboardInterrupt):
        tn.attraction(model, texts, cache=True, **how)
    found = tn.attraction(model, texts, cache=True, **how)
    assert len(ran) == len(passes.plan(model, texts, batch_tokens=60).batches) + 1
    assert torch.equal(found.sums, fresh.sums)
    monkeypatch.setattr(passes, "trace_blocks", lambda *_, **__: pytest.fail("a pass was run"))
    again = tn.attraction(model, texts, cache=True, **how)
    assert torch.equal(again.sums, found.sums) and again.provenance == found.provenance and again.count == len(texts)
    with pytest.raises(pytest.fail.Exception, match="a pass was run"):
        tn.attraction(model, texts, cache=True, **how | {"stability": False})


@pytest.mark.parametrize("name", ["gpt-neox", "mixtral"])
def test_a_streamed_detection_runs_each_sentence_once_and_equals_the_others(name, monkeypatch):
    """Held, in one pass, in one pass without folds, and in two passes where memory is short."""
    model, how, totals = tiny_model(name), {"top": 9, "batch_tokens": 100} | QUIET, []
    trace = passes.trace_blocks

    def counted(model, inputs, read, **options):
        totals[-1] += len(read)
        return trace(model, inputs, read, **options)

    monkeypatch.setattr(passes, "trace_blocks", counted)
    ways = {"held": {"streaming": False}, "once": {"streaming": True}, "small": {"streaming": True, "stability": False}}
    free = {"short": 4 * 7 * 4 * model.n_neurons * model.hidden_size * 3}  # seven sums of the eight
    found = {}
    for way, more in (ways | {"short": {"streaming": True}, "short, small": ways["small"]}).items():
        room = SimpleNamespace(available=free["short"] if "short" in way else 1 << 40)
        monkeypatch.setattr(steps.psutil, "virtual_memory", lambda room=room: room)
        totals.append(0)
        found[way] = tn.detect_all(model, TEXTS, ["ja", "it"], **how, **more)
    assert totals == [45, 45, 45, 75, 45]
    for way, detections in found.items():
        for key, held in found["held"].items():
            assert_near(detections[key].centroids.values, held.centroids.values)
            same_scores(detections[key].scores, held.scores)
            assert detections[key].target().round(3).equals(held.target().round(3))
            if "small" in way:
                with pytest.raises(tn.TnkitError, match="stability=False"):
                    detections[key].stability()
            else:
                assert_near(detections[key].scores.folds, held.scores.folds)
                assert abs(detections[key].stability().mean - held.stability().mean) < 0.5


def test_streamed_sums_of_edited_weights_are_refused():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = tn.capture(model, SENTENCES, **QUIET)
    module.model.layers[1].mlp.down_proj.weight.data[3, 5].mul_(1.5)
    with pytest.raises(tn.TnkitError, match=r"these captured states were made with .* as it is now"):
        tn.attraction(model, captured)
