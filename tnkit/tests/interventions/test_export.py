"""Exported checkpoints against ablation; disks that fill up, links, and models that a checkpoint would not be."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, redrawn, tiny_config, tiny_model, tiny_module

NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "llama-bias"])
def test_an_exported_checkpoint_equals_the_ablation(name, tmp_path):
    model = tiny_model(name)
    folder = tn.export_ablated(model, NEURONS, tmp_path / "off")
    other = tn.load_model(AutoModelForCausalLM.from_pretrained(folder), tokenizer=byte_tokenizer())
    with tn.Ablation(model, NEURONS, tokens="all"):
        expected = tn.capture(model, SENTENCES, keep=["post"], progress=False).post
    assert torch.allclose(tn.capture(other, SENTENCES, keep=["post"], progress=False).post, expected, atol=1e-5)
    assert tn.load_model(tiny_module(name), tokenizer=byte_tokenizer()).weights_hash == model.weights_hash
    with pytest.raises(tn.TnkitError, match="is there already"):
        tn.export_ablated(model, NEURONS, folder)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_scale_is_exported_and_a_constant_is_refused(name, tmp_path):
    model, asked = tiny_model(name), tn.Intervention(NEURONS, scale={0: 0.5, 1: -2.0, 3: 0.0})
    module = AutoModelForCausalLM.from_pretrained(tn.export_ablated(model, asked, tmp_path / "scaled"))
    with tn.Ablation(model, asked):
        expected = tn.capture(model, SENTENCES, keep=["post"], progress=False).post
    other = tn.load_model(module, tokenizer=byte_tokenizer())
    assert torch.allclose(tn.capture(other, SENTENCES, keep=["post"], progress=False).post, expected, atol=1e-5)
    with pytest.raises(tn.TnkitError, match=r"4 neurons set to 1\.5: a checkpoint holds weights alone"):
        tn.export_ablated(model, tn.Intervention(NEURONS, value=1.5), tmp_path / "constant")


def test_tied_weights_stay_tied(tmp_path):
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    model = tn.load_model(redrawn(AutoModelForCausalLM.from_config(config)), tokenizer=byte_tokenizer())
    other = AutoModelForCausalLM.from_pretrained(tn.export_ablated(model, NEURONS, tmp_path / "off"))
    assert other.lm_head.weight is other.model.embed_tokens.weight
    ids = torch.tensor([byte_tokenizer()("Hello")["input_ids"]])
    with torch.inference_mode(), tn.Ablation(model, NEURONS):
        assert torch.allclose(other(input_ids=ids).logits, model.module(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("moment", ["weights", "tokenizer", "words"])
def test_a_full_disk_leaves_nothing_behind(moment, tmp_path, monkeypatch):
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=copy.deepcopy(byte_tokenizer()))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    target = {
        "weights": "transformers.modeling_utils.safe_save_file",
        "tokenizer": "transformers.PreTrainedTokenizerFast.save_pretrained",
        "words": "tnkit.storage.write_text",
    }
    monkeypatch.setattr(target[moment], full)
    with pytest.raises(tn.TnkitError, match=r"off could not be written .*No space left on device.*nothing was left"):
        tn.export_ablated(model, NEURONS, tmp_path / "deep" / "off")
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith(".")] == []
    assert model.weights_hash == tiny_model("llama").weights_hash


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tn.export_ablated(tiny_model("llama"), NEURONS, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "model.safetensors").is_file()
    (tmp_path / "full").symlink_to(tmp_path / "real")
    with pytest.raises(tn.TnkitError, match="is there already"):
        tn.export_ablated(tiny_model("llama"), NEURONS, tmp_path / "full")


def test_what_a_checkpoint_would_not_be_is_refused(tmp_path):
    model = tiny_model("llama")
    with tn.Ablation(model, NEURONS), pytest.raises(tn.TnkitError, match="an Ablation is active"):
        tn.export_ablated(model, NEURONS, tmp_path / "off")
    other = tn.NeuronSet(((0, 1),), (4, 48), provenance={"model": tiny_model("qwen3").provenance})
    with pytest.raises(tn.TnkitError, match="these neurons were made with"):
        tn.export_ablated(model, other, tmp_path / "off")
    offloaded = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    offloaded.module.model.layers[1].to("meta")
    with pytest.raises(tn.TnkitError, match="are offloaded"):
        tn.export_ablated(offloaded, NEURONS, tmp_path / "off")
    assert not (tmp_path / "off").exists()


def test_an_adapted_model_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    model.module.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(tn.TnkitError, match=r"q_proj is an adapter.*merge_and_unload"):
        tn.export_ablated(model, NEURONS, tmp_path / "off")
