"""Every architecture: complete, equal to plain PyTorch hooks, equal to the oracle, the same in a batch as alone."""

from dataclasses import replace
from operator import attrgetter

import pytest
import torch

import tnkit as tn
from tnkit.models.proofs import completeness_error
from tnkit.testing import ARCHITECTURES, SENTENCES, tiny_model, tiny_module
from tnkit.tests import oracle
from tnkit.tests.oracle import assert_near

NAMES = [*ARCHITECTURES, "gemma3-image-text", "llava", "mistral3"]
PADDED = {"bloom", "opt", "xglm", "falcon", "falcon-7b", "falcon-rw"}  # their masks or positions know no packed rows
every_architecture = pytest.mark.parametrize("name", NAMES)
in_both_layouts = pytest.mark.parametrize(
    ("name", "packed"),
    [(name, packed) for name in NAMES for packed in (True, False) if name not in PADDED or not packed],
)


def laid_out(name, packed):
    """A tiny model that packs its batches, or the same padding them."""
    model = tiny_model(name)
    assert model.packs == (name not in PADDED)
    return model if packed else replace(model, packing=None)


def ids_of(model, sentence):
    return torch.tensor([model.tokenizer(sentence)["input_ids"]])


@every_architecture
def test_mid_and_contributions_and_bias_make_post(name):
    assert completeness_error(tiny_model(name)).max() < 1e-5


@every_architecture
def test_the_branch_is_not_a_rounding_error(name):
    """Completeness would prove nothing where the MLP or the attention hardly writes."""
    model = tiny_model(name)
    found = oracle.hooked(tiny_module(name), model.blocks_path, model.sites, ids_of(model, SENTENCES[0]))
    for pre, mid, post in zip(found["pre"], found["mid"], found["post"], strict=True):
        assert (mid - pre).norm() > 0.01 * post.norm()
        assert (post - mid).norm() > 0.01 * post.norm()


@in_both_layouts
def test_capture_equals_plain_hooks_on_single_sentences(name, packed):
    """Captured in batches, padded or packed, read one sentence at a time without padding."""
    model = laid_out(name, packed)
    captured = tn.capture(model, SENTENCES, keep=["pre", "mid", "post", "activations"], progress=False)
    for number, sentence in enumerate(SENTENCES):
        found = oracle.hooked(tiny_module(name), model.blocks_path, model.sites, ids_of(model, sentence))
        for site in ("pre", "mid", "post", "activations"):
            expected = torch.stack([layer[-1] for layer in found[site]])
            error = (getattr(captured, site)[:, number].double() - expected).norm() / expected.norm()
            assert error < 1e-5, f"{site} of sentence {number}"


@in_both_layouts
def test_the_mean_over_tokens_equals_plain_hooks(name, packed):
    """BOS is left out by its id; the mean of activations is weighted by the branch's norm, so completeness holds."""
    model = laid_out(name, packed)
    captured = tn.capture(model, SENTENCES, position="mean", keep=["mid", "post", "activations"], progress=False)
    for number, sentence in enumerate(SENTENCES):
        found = oracle.hooked(tiny_module(name), model.blocks_path, model.sites, ids_of(model, sentence))
        for site in ("mid", "post") + (() if model.sites[0].norm else ("activations",)):
            expected = torch.stack([layer[1:].mean(dim=0) for layer in found[site]])
            error = (getattr(captured, site)[:, number].double() - expected).norm() / expected.norm()
            assert error < 1e-5, f"{site} of sentence {number}"
    for layer in range(model.n_layers):
        written = captured.activations[layer] @ model.value_vectors(layer).float() + model.output_bias(layer)
        branch = captured.scale[layer][:, None] * model.output_gain(layer) * written
        assert torch.allclose(captured.mid[layer] + branch, captured.post[layer], atol=1e-4, rtol=1e-4)


@every_architecture
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_scores_equal_the_oracle(name, distance):
    model = tiny_model(name)
    captured = tn.capture(model, SENTENCES, batch_tokens=64, progress=False)
    target = tn.estimate_centroids([captured])
    expected = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.float64)
    for sentence in SENTENCES:
        read = oracle.contributions(tiny_module(name), model.blocks_path, model.sites, ids_of(model, sentence))
        expected += oracle.scores(*read, target.values, distance) / len(SENTENCES)
    found = tn.score_neurons(model, captured, target, distance=distance).values
    assert (found - expected).abs().max() <= 1e-6
    assert expected.abs().max() > 1e-4


@every_architecture
def test_value_vectors_are_what_the_last_map_does_to_unit_vectors(name):
    model = tiny_model(name)
    for layer, block in enumerate(attrgetter(model.blocks_path)(tiny_module(name))):
        expected = oracle.value_vectors(attrgetter(model.sites[0].last_map)(block))
        assert torch.allclose(model.value_vectors(layer).double(), expected, atol=1e-6)


@every_architecture
def test_normed_last_layer_is_what_transformers_returns(name):
    model, module = tiny_model(name), tiny_module(name)
    captured = tn.capture(model, SENTENCES, keep=["post"], last_layer="normed", progress=False)
    raw = tn.capture(model, SENTENCES, keep=["post"], progress=False)
    with torch.inference_mode():
        for number, sentence in enumerate(SENTENCES):
            hidden = module(input_ids=ids_of(model, sentence), output_hidden_states=True).hidden_states
            assert_near(captured.post[-1, number], hidden[-1][0, -1])
            assert_near(raw.post[-2, number], hidden[-2][0, -1])
    assert not torch.allclose(captured.post[-1], raw.post[-1], atol=1e-2)
