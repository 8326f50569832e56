"""Halves of the sentences: folds add up to the scores, a planted neuron is in every half, noise gives chance."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats

import tnkit as tn
from tnkit.detection.stability import stability
from tnkit.testing import byte_tokenizer, tiny_model, tiny_module
from tnkit.tests.oracle import assert_near

TEXTS = {
    name: [text[:30] for text in sentences[:20]] for name, sentences in tn.load_corpus("everyday")["train"].items()
}
TEXTS = {name: TEXTS[name] for name in ("en", "ja")}
QUIET = {"progress": False}


@pytest.mark.parametrize("score", ["raw", "centred"])
@pytest.mark.parametrize("streaming", [None, True])
def test_a_fold_holds_the_scores_of_every_eighth_sentence(score, streaming):
    model, how = tiny_model("gemma3"), {"language": "ja", "top": 12, "score": score, "batch_tokens": 100}
    found = tn.detect(model, TEXTS, streaming=streaming, **how, **QUIET)
    captured = [tn.capture(model, TEXTS[name], **QUIET) for name in TEXTS]
    both, hub = tn.estimate_centroids(captured), tn.estimate_centroids(captured[:1])
    target, origin = (hub, both) if score == "centred" else (both, None)
    assert found.scores.folds.shape == (8, 2, model.n_neurons)
    for number, fold in enumerate(found.scores.folds):
        texts = TEXTS["ja"][number::8]
        some = tn.capture(model, texts, **QUIET)
        scores = tn.score_neurons(model, some, target, origin=origin, layers=model.early_layers)
        assert_near(fold.double(), scores.values[:2] * len(texts))
    assert_near(found.scores.folds.sum(dim=0).double(), found.scores.values[:2] * 20)


def test_shared_neurons_are_those_of_sets_from_halves():
    """Of the first split: folds 0 to 3 against folds 4 to 7, each half captured and scored alone."""
    model = tiny_model("llama")
    found = tn.detect(model, TEXTS, language="ja", top=12, **QUIET)
    target, sets = tn.estimate_centroids([tn.capture(model, TEXTS[name], **QUIET) for name in TEXTS]), []
    for folds in (range(4), range(4, 8)):
        half = tn.capture(model, [text for number, text in enumerate(TEXTS["ja"]) if number % 8 in folds], **QUIET)
        sets.append(set(tn.score_neurons(model, half, target).top(12, layers=model.early_layers)))
    result = found.stability()
    assert result.shared[0] == len(sets[0] & sets[1])
    assert (len(result.shared), result.n, result.candidates) == (35, 12, 96)
    assert result.chance[0] == 1.5
    assert stats.hypergeom.cdf(result.chance[2], 96, 12, 12) >= 0.975
    assert str(result) in found._repr_html_()
    assert found.stability(96).mean == 96


def test_a_planted_neuron_is_in_the_set_of_every_half():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    direction = torch.randn(model.n_layers, model.hidden_size, generator=torch.Generator().manual_seed(3))
    mlp = module.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[7] = mlp.up_proj.weight[7]
        mlp.down_proj.weight[:, 7] = 3 * direction[1]
    captured = tn.capture(model, TEXTS["ja"], **QUIET)
    scores = tn.score_neurons(model, captured, tn.Centroids(20 * direction, tuple(range(model.n_layers))))
    assert scores.top(1).pairs == ((1, 7),)
    assert set(stability(scores, 1).shared) == {1}


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_the_chance_level(seed):
    """States, activations and target have nothing to do with each other; all neurons write equally much."""
    generator = torch.Generator().manual_seed(seed)
    module = copy.deepcopy(tiny_module("llama"))
    for block in module.model.layers:
        block.mlp.down_proj.weight.data = torch.nn.functional.normalize(block.mlp.down_proj.weight.data, dim=0)
    model = tn.load_model(module, tokenizer=byte_tokenizer())

    def random(*shape):
        return torch.randn(model.n_layers, *shape, generator=generator)

    n = 400
    states = {"mid": 9 * random(n, model.hidden_size), "activations": random(n, model.n_neurons)}
    captured = tn.Activations(tuple(range(4)), torch.arange(n), scale=torch.ones(4, n), **states)
    scores = tn.score_neurons(model, captured, tn.Centroids(random(model.hidden_size), captured.layers))
    result = stability(scores, 40)
    expected, low, high = result.chance
    assert expected == pytest.approx(40 * 40 / 192)
    assert low <= result.mean <= high


def test_fewer_sentences_than_folds_have_halves_and_one_has_none():
    model = tiny_model("llama")
    for count, splits in ((2, 1), (3, 3), (5, 10), (6, 10)):
        captured = tn.capture(model, TEXTS["ja"][:count], **QUIET)
        scores = tn.score_neurons(model, captured, tn.estimate_centroids([captured]))
        assert len(stability(scores, 5).shared) == splits
    found = tn.detect(model, {name: texts[:1] for name, texts in TEXTS.items()}, language="ja", top=5, **QUIET)
    assert "halves" not in found._repr_html_()
    with pytest.raises(tn.TnkitError, match="one sentence have no halves"):
        found.stability()


def test_folds_are_saved_and_files_without_them_load(tmp_path):
    found = tn.detect(tiny_model(), TEXTS, language="ja", top=12, **QUIET)
    again = tn.Detection.load(found.save(tmp_path / "new"))
    np.testing.assert_array_equal(again.stability().shared, found.stability().shared)
    scores = tn.NeuronScores(found.scores.values, "cosine", found.scores.provenance)
    old = tn.NeuronScores.load(scores.save(tmp_path / "old.safetensors"))
    assert old.folds is None and torch.equal(old.values.nan_to_num(9), scores.values.nan_to_num(9))
    with pytest.raises(tn.TnkitError, match="keep no sums over folds"):
        stability(old, 12)
    broken = tn.NeuronScores(scores.values, "cosine", folds=found.scores.folds[:, :1])
    with pytest.raises(tn.TnkitError, match="folds is"):
        tn.NeuronScores.load(broken.save(tmp_path / "broken.safetensors"))
