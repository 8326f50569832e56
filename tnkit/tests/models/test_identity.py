"""The weights are read as seldom as can be, and no edit of them goes unnoticed."""

import copy

import pytest
import torch

import tnkit as tn
from tnkit.models import model as models
from tnkit.models import weights as checks
from tnkit.models.model import hashed_at_ends, hashed_once
from tnkit.provenance import check_made_with
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module


def fresh_model():
    return tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())


def test_weights_edited_while_they_are_hashed_once_are_noticed(monkeypatch):
    model = fresh_model()
    weight = model.module.model.layers[0].mlp.up_proj.weight
    with hashed_once(model):
        hashed = model.weights_hash
    with pytest.raises(tn.TnkitError, match=r"weights .* changed"), hashed_once(model), torch.no_grad():
        weight.add_(1)
        assert model.weights_hash == hashed
    monkeypatch.setattr(models, "_RARELY", 0)  # as after a long while
    with pytest.raises(tn.TnkitError, match=r"weights .* changed"), hashed_once(model):
        weight.data.add_(1)
    with pytest.raises(ZeroDivisionError), hashed_once(model):
        weight.data.add_(1 / 0)
    assert model.weights_hash != hashed


def test_a_detection_reads_the_weights_as_it_begins_and_before_it_hands_out_neurons(monkeypatch):
    model, read = fresh_model(), []
    monkeypatch.setattr(models, "hash_now", lambda module: read.append(1) or checks.hash_of(module))
    corpus = {"en": SENTENCES[:3], "it": SENTENCES[3:], "nl": SENTENCES[:3]}
    counts = {step.language: len(read) for step in tn.detect_steps(model, corpus, top=5)}
    assert counts == {"en": 1, "it": 2, "nl": 3}


@pytest.mark.parametrize("at", range(3))
def test_weights_edited_between_the_steps_of_a_detection_are_noticed(at):
    model = fresh_model()
    steps, given = tn.detect_steps(model, {"en": SENTENCES[:3], "it": SENTENCES[3:]}, top=5, batch_tokens=40), []
    with pytest.raises(tn.TnkitError, match=r"weights .* changed"):
        for number, step in enumerate(steps):
            if number == at:
                before = model.weights_hash
                model.module.model.layers[0].mlp.up_proj.weight.data.add_(1)
                assert model.weights_hash != before  # whoever else asks has them read
            given += step.found
    assert not given


def test_work_that_ends_leaves_no_hash_behind():
    model = fresh_model()
    assert list(hashed_at_ends(model, iter([1, 2]), due=bool)) == [1, 2]
    before = model.weights_hash
    model.module.model.layers[0].mlp.up_proj.weight.data.add_(1)
    assert model.weights_hash != before


def test_work_whose_results_are_all_alike_reads_the_weights_before_and_after_it(monkeypatch):
    model, read = fresh_model(), []
    monkeypatch.setattr(models, "hash_now", lambda module: read.append(1) or checks.hash_of(module))
    hashes = [*hashed_at_ends(model, (model.weights_hash for _ in range(4)))]
    assert len(set(hashes)) == 1 and len(read) == 2
    with pytest.raises(tn.TnkitError, match=r"weights .* changed"):
        for number in hashed_at_ends(model, iter(range(3))):
            model.module.model.layers[0].mlp.up_proj.weight.data.add_(number)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_a_step_of_an_optimiser_is_noticed_by_its_versions_or_by_the_hash_alone(optimiser, how):
    model = fresh_model()
    before, hashed = model.versions(), model.weights_hash
    for weight in model.module.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser(model.module.parameters(), lr=1e-2, **how).step()
    assert (model.versions() != before) == ("fused" not in how)  # why no shard is kept without a hash
    assert model.weights_hash != hashed


def test_a_result_of_several_parts_is_compared_with_one_hash_of_the_weights(monkeypatch):
    model, hashes = tiny_model("llama"), []
    theirs = {"model": {"weights": "f" * 32}}
    monkeypatch.setattr(models, "hash_now", lambda module: hashes.append(1) or checks.hash_of(module))
    check_made_with(model, [{"model": model.provenance}, {"of": {"model": model.provenance}}], "these neurons")
    assert len(hashes) == 3  # two of them for the provenances
    with pytest.raises(tn.TnkitError, match=f"weights {'f' * 32}.*weights {checks.hash_of(model.module)}"):
        check_made_with(model, [{"model": model.provenance}, theirs], "these neurons")
    assert len(hashes) == 5


def test_neurons_of_a_server_that_hides_its_weights_are_taken_by_name_and_states_are_not(caplog):
    model = tiny_model("llama")
    theirs = dict(model.provenance) | {"weights": "named:0123456789abcdef"}
    for _ in range(2):
        check_made_with(model, {"model": theirs}, "those neurons")
    assert len(caplog.records) == 1 and "those neurons: the weights of LlamaForCausalLM on a server" in caplog.text
    with pytest.raises(tn.TnkitError, match="these states were made with"):
        check_made_with(model, {"model": theirs}, "these states", states=True)
    for other in ({"name": "another"}, {"neurons": 47}, {"weights": "f" * 32}):
        with pytest.raises(tn.TnkitError, match="these neurons were made with"):
            check_made_with(model, {"model": theirs | other}, "these neurons")


@pytest.mark.parametrize("last_layer", ["raw", "normed"])
def test_under_a_hook_that_watches_the_output_head_does_not_run_either(last_layer):
    model, seen = fresh_model(), []
    expected = tn.capture(model, SENTENCES[:2], last_layer=last_layer, progress=False)
    model.module.model.layers[3].register_forward_hook(lambda *_: seen.append("block"))
    model.module.lm_head.register_forward_hook(lambda *_: seen.append("head"))
    found = tn.capture(model, SENTENCES[:2], last_layer=last_layer, progress=False)
    assert set(seen) == {"block"}
    assert torch.allclose(found.post, expected.post, rtol=1e-5, atol=1e-6)  # the last MLP then runs every token


def test_a_model_that_was_saved_keeps_its_fingerprint_and_one_whose_configuration_changed_does_not(tmp_path):
    model = fresh_model()
    before = model.fingerprint(), model.settings()
    model.module.save_pretrained(tmp_path)  # notes architectures and dtype in the configuration
    assert model.module.config.architectures == ["LlamaForCausalLM"]
    assert (model.fingerprint(), model.settings()) == before
    model.module.config.rms_norm_eps *= 10
    assert model.fingerprint() != before[0] and model.settings() != before[1]
