"""The MLP of the last block that is read runs at the tokens that are read, unless others look at it."""

import copy

import pytest
import torch

import tnkit as tn
from tnkit.models.proofs import packing
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle

QUIET = {"progress": False}
FAMILIES = ("llama", "gemma3", "cohere", "granite", "qwen3", "gpt-neox", "phi")


def fresh(name="llama"):
    return tn.load_model(copy.deepcopy(tiny_module(name)), tokenizer=byte_tokenizer())


def tokens_given(model, layer, **options):
    """How many tokens the MLP of a layer was given in a capture of all sentences, and the capture."""
    given = []
    with model.module.get_submodule(model.map_path(layer)).register_forward_pre_hook(
        lambda _, args: given.append(args[0].numel() // args[0].shape[-1])
    ):
        return given, tn.capture(model, SENTENCES, **QUIET | options)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("last", [1, 3])
def test_states_are_those_of_one_sentence_after_another(name, last):
    model = tiny_model(name)
    assert model.packs and model.mlp_of(last) is not None
    found = tn.capture(model, SENTENCES, layers=range(last + 1), **QUIET)
    for number, sentence in enumerate(SENTENCES):
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        expected = oracle.hooked(model.module, model.blocks_path, model.sites, ids)
        for site in ("post", "mid", "activations"):
            states = torch.stack([layer[-1] for layer in expected[site][: last + 1]])
            error = getattr(found, site)[:, number].double() - states
            assert error.norm() <= 1e-5 * states.norm(), site


def test_only_the_tokens_that_are_read_run_there():
    model, seen = fresh(), []
    mlp = model.module.model.layers[3].mlp.act_fn
    plain = mlp.forward
    mlp.forward = lambda value: seen.append(value.shape[:-1].numel()) or plain(value)
    tn.capture(model, SENTENCES, **QUIET)
    tn.capture(model, SENTENCES, position="mean", **QUIET)
    total = sum(map(len, model.tokenizer(SENTENCES)["input_ids"]))
    assert seen[0] == len(SENTENCES) and seen[1] >= total


@pytest.mark.parametrize("path", ["mlp", "mlp.gate_proj", "mlp.down_proj"])
def test_a_hook_of_the_user_sees_every_token(path):
    model, expected, seen = fresh(), tn.capture(tiny_model(), SENTENCES, **QUIET), []
    watched = model.module.model.layers[3].get_submodule(path)
    with watched.register_forward_hook(lambda _, __, output: seen.append(output.shape[:-1].numel())):
        found = tn.capture(model, SENTENCES, **QUIET)
    assert sum(seen) >= sum(map(len, model.tokenizer(SENTENCES)["input_ids"]))
    for name, tensor in expected.tensors().items():
        assert torch.allclose(getattr(found, name), tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("tokens", ["all", "last", "last_word"])
def test_an_ablation_of_the_last_block_sets_every_token(tokens):
    model = tiny_model()
    with tn.Ablation(model, [(3, 7), (3, 9)], tokens=tokens) as ablation:
        found = tn.capture(model, SENTENCES, **QUIET)
    counted = sum(map(len, model.tokenizer(SENTENCES)["input_ids"])) if tokens == "all" else len(SENTENCES)
    assert ablation.count == 2 * counted
    assert found.activations[3, :, 7].any() == (tokens == "last_word")


def test_an_mlp_that_looks_at_other_tokens_is_noticed():
    model = fresh()
    assert packing(model)
    gate = model.module.model.layers[3].mlp.gate_proj
    plain = gate.forward
    gate.forward = lambda states: plain(states + 0.1 * states.roll(1, dims=1))
    assert packing(model) is None


def test_no_hook_stays_after_a_pass_that_fails():
    model = fresh()

    def fail(*_):
        raise ZeroDivisionError("stop")

    act = model.module.model.layers[3].mlp.act_fn
    plain, act.forward = act.forward, fail
    with pytest.raises(Exception, match="stop"):
        tn.capture(model, SENTENCES, **QUIET)
    act.forward = plain
    mlp = model.module.model.layers[3].mlp
    assert not mlp._forward_hooks and not mlp._forward_pre_hooks
    assert tokens_given(model, 1)[0][0] >= sum(map(len, model.tokenizer(SENTENCES)["input_ids"]))
