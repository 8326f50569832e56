"""What people have in hand: adapters, quantised weights, wrappers, files; each held to plain PyTorch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import pipeline

import tnkit as tn
from tnkit.models import gguf_files, maps
from tnkit.models.proofs import completeness_error, proved
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle
from tnkit.tests.oracle import assert_near

QUIET = {"progress": False}


def loaded(module):
    return tn.load_model(module, tokenizer=byte_tokenizer())


def fresh(name="llama"):
    return copy.deepcopy(tiny_module(name))


class Int8(nn.Module):
    """A linear map with an int8 weight and a scale by row in buffers, of no library's format; no parameter at all."""

    def __init__(self, plain, rounds_inputs=False):
        super().__init__()
        self.out_features, self.in_features = plain.weight.shape
        scale = plain.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("packed", (plain.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = plain.bias
        self.rounds_inputs = rounds_inputs

    def forward(self, values):
        if self.rounds_inputs:
            step = values.abs().amax(dim=-1, keepdim=True).clamp_min(1e-9) / 127
            values = (values / step).round() * step
        weight = self.packed.to(values.dtype) * self.scale.to(values.dtype)
        return nn.functional.linear(values, weight, None if self.bias is None else self.bias.to(values.dtype))


class Bent(Int8):
    """A map that is not linear."""

    def forward(self, values):
        return (100 * super().forward(values)).tanh()


def quantised(name="llama", **how):
    """A module whose MLPs are quantised, and the same module with the weights that these stand for."""
    module, plain = fresh(name), fresh(name)
    for block, same in zip(module.model.layers, plain.model.layers, strict=True):
        for which in ("gate_proj", "up_proj", "down_proj"):
            small = Int8(getattr(block.mlp, which), **how)
            setattr(block.mlp, which, small)
            with torch.no_grad():
                getattr(same.mlp, which).weight.copy_(small.packed * small.scale)
    return module, plain


@pytest.mark.parametrize("name", ["llama", "llama-bias", "gemma3"])
def test_a_quantised_model_gives_the_numbers_of_the_weights_it_stands_for(name):
    """Value vectors, states, scores and ablations, with a format that no table knows."""
    module, plain = quantised(name)
    model, same = loaded(module), loaded(plain)
    assert completeness_error(model).max() < 1e-5
    assert (model.dtype, model.n_neurons) == (torch.float32, 48)
    for layer in range(4):
        assert torch.allclose(model.value_vectors(layer), same.value_vectors(layer), atol=1e-6)
        assert torch.allclose(model.output_bias(layer), same.output_bias(layer), atol=1e-6)
    captured, expected = (tn.capture(which, SENTENCES, **QUIET) for which in (model, same))
    assert_near(captured.post, expected.post)
    target, theirs = tn.estimate_centroids([captured]), tn.estimate_centroids([expected])
    scores = tn.score_neurons(model, captured, target).values
    assert (scores - tn.score_neurons(same, expected, theirs).values).abs().max() < 1e-6
    off = [(0, 3), (2, 40)]
    with tn.Ablation(model, off, tokens="all"):
        ablated = tn.capture(model, SENTENCES, **QUIET).post
        maps._KEPT.clear()
        assert torch.allclose(model.value_vectors(0), same.value_vectors(0), atol=1e-6)
    ids = torch.tensor([byte_tokenizer()(SENTENCES[0])["input_ids"]])
    with oracle.switched_off(model, off):
        read = oracle.hooked(module, model.blocks_path, model.sites, ids)["post"]
    assert_near(ablated[:, 0], torch.stack([layer[-1] for layer in read]).float())
    assert (ablated - captured.post).abs().max() > 1e-3
    alone = torch.cat([tn.capture(model, [text], **QUIET).post for text in SENTENCES], dim=1)
    assert_near(captured.post, alone)


def test_a_cached_capture_of_a_quantised_model_equals_a_fresh_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    model = loaded(quantised()[0])
    first, again = (tn.capture(model, SENTENCES, cache=True, **QUIET) for _ in range(2))
    assert torch.equal(first.post, again.post) and torch.equal(first.post, tn.capture(model, SENTENCES, **QUIET).post)
    with torch.no_grad():
        model.module.model.layers[0].mlp.up_proj.scale.mul_(2)
    assert not torch.allclose(tn.capture(model, SENTENCES, cache=True, **QUIET).post, first.post)


@pytest.mark.parametrize("buffer", ["packed", "scale"])
@pytest.mark.parametrize("edit", [lambda values: values[0].neg_(), lambda values: values.data[0].neg_()])
def test_an_edited_buffer_of_a_quantised_weight_changes_hash_and_value_vectors(buffer, edit):
    model = loaded(quantised()[0])
    before, vectors = model.weights_hash, model.value_vectors(1).clone()
    captured = tn.capture(model, SENTENCES[:2], **QUIET)
    edit(getattr(model.module.model.layers[1].mlp.down_proj, buffer))
    assert model.weights_hash != before
    assert torch.allclose(model.value_vectors(1)[:, 0], -vectors[:, 0]) and vectors[:, 0].abs().max() > 0
    with pytest.raises(tn.TnkitError, match="were made with"):
        tn.score_neurons(model, captured, tn.estimate_centroids([captured]))


def test_a_format_that_rounds_its_inputs_says_how_far_contributions_add_up(caplog):
    module, _ = quantised(rounds_inputs=True)
    model = loaded(module)
    assert 1e-3 < (missed := float(completeness_error(model).max())) < 0.05
    assert f"add up to what a layer of LlamaForCausalLM writes to within {missed:.0%} at the worst token" in caplog.text
    wrong = replace(model.sites[0], mid="input_layernorm")
    with pytest.raises(tn.TnkitError, match=r"mid \+ sum of contributions \+ bias misses post"):
        proved(model, {tuple(range(4)): [wrong]})
    bent = copy.deepcopy(module)
    bent.model.layers[1].mlp.down_proj = Bent(tiny_module("llama").model.layers[1].mlp.down_proj)
    with pytest.raises(tn.TnkitError, match=r"at the worst token \(layer 1\).*; load it in a format that quantises"):
        loaded(bent)


def test_a_quantised_model_is_not_exported_and_says_why(tmp_path):
    with pytest.raises(tn.TnkitError, match=r"weight of model\.layers\.2\.mlp\.down_proj \(Int8\) is no plain matrix"):
        tn.export_ablated(loaded(quantised()[0]), [(2, 3)], tmp_path / "off")
    assert not (tmp_path / "off").exists()


def test_answers_of_a_map_are_kept_up_to_a_size_and_no_longer_than_the_map(monkeypatch):
    last_map = Int8(nn.Linear(48, 32))
    first, _ = maps.asked(last_map, torch.float32, torch.device("cpu"))
    assert maps.asked(last_map, torch.float32, torch.device("cpu"))[0] is first
    assert maps.asked(last_map, torch.float64, torch.device("cpu"))[0].dtype == torch.float64
    monkeypatch.setattr(maps, "_KEPT_BYTES", 0)
    last_map.scale.mul_(2)
    second, _ = maps.asked(last_map, torch.float32, torch.device("cpu"))
    assert torch.allclose(second, 2 * first) and last_map not in maps._KEPT


# --- adapters


peft = pytest.importorskip("peft")


def lora(*targets):
    return peft.LoraConfig(target_modules=list(targets), r=2, lora_alpha=3, init_lora_weights=False)


def effective(module):
    """The same model with W + scaling · B · A written out."""
    plain = fresh()
    for path, layer in module.named_modules():
        if hasattr(layer, "lora_A"):
            weight = layer.base_layer.weight.detach().clone()
            if not layer.disable_adapters:
                for name in layer.active_adapters:
                    weight += layer.scaling[name] * (layer.lora_B[name].weight @ layer.lora_A[name].weight).detach()
            with torch.no_grad():
                plain.get_submodule(path).weight.copy_(weight)
    return plain


def test_an_adapter_on_the_last_map_is_part_of_its_value_vectors():
    adapted = peft.get_peft_model(fresh(), lora("down_proj", "q_proj"))
    model, same = loaded(adapted), loaded(effective(adapted.get_base_model()))
    assert (same.value_vectors(2) - tiny_model().value_vectors(2)).abs().max() > 1e-3
    for layer in range(4):
        assert torch.allclose(model.value_vectors(layer), same.value_vectors(layer), atol=1e-6)
    captured, expected = (tn.capture(which, SENTENCES, **QUIET) for which in (model, same))
    assert_near(captured.post, expected.post)
    target = tn.estimate_centroids([expected])
    difference = (
        tn.score_neurons(model, captured, target_of(captured)).values - tn.score_neurons(same, expected, target).values
    )
    assert difference.abs().max() < 1e-6
    with tn.Ablation(model, [(1, 7)], tokens="all"), tn.Ablation(same, [(1, 7)], tokens="all"):
        assert_near(tn.capture(model, SENTENCES, **QUIET).post, tn.capture(same, SENTENCES, **QUIET).post)


def target_of(captured):
    return tn.estimate_centroids([captured])


def test_an_adapter_that_is_switched_off_or_scaled_is_another_model():
    adapted = peft.get_peft_model(fresh(), lora("down_proj", "q_proj"))
    model = loaded(adapted)
    on, vectors, keys = model.weights_hash, model.value_vectors(1).clone(), {model.fingerprint()}
    captured = tn.capture(model, SENTENCES[:2], **QUIET)
    with adapted.disable_adapter():
        assert model.weights_hash != on
        keys.add(model.fingerprint())
        assert torch.allclose(model.value_vectors(1), tiny_model().value_vectors(1), atol=1e-6)
        assert_near(
            tn.capture(model, SENTENCES[:2], **QUIET).post, tn.capture(tiny_model(), SENTENCES[:2], **QUIET).post
        )
        off = loaded(adapted)  # loaded while it is off
        with pytest.raises(tn.TnkitError, match="were made with"):
            tn.score_neurons(model, captured, target_of(captured))
    assert model.weights_hash == off.weights_hash == on
    assert torch.equal(model.value_vectors(1), vectors)
    adapted.get_base_model().model.layers[1].mlp.down_proj.scale_layer(2.0)
    assert model.weights_hash != on and len(keys | {model.fingerprint()}) == 3
    base = tiny_model().value_vectors(1)
    assert torch.allclose(model.value_vectors(1) - base, 2 * (vectors - base), atol=1e-5)


def test_an_adapter_is_taken_out_of_the_map_before_it_is_exported(tmp_path):
    model = loaded(peft.get_peft_model(fresh(), lora("q_proj")))
    with pytest.raises(tn.TnkitError, match=r"is an adapter.*merge_and_unload"):
        tn.export_ablated(model, [(0, 1)], tmp_path / "off")


def test_adapters_of_transformers_itself_are_read_too():
    module = fresh()
    module.add_adapter(lora("down_proj"))
    model, same = loaded(module), loaded(effective(module))
    assert_near(tn.capture(model, SENTENCES, **QUIET).post, tn.capture(same, SENTENCES, **QUIET).post)
    module.disable_adapters()
    assert torch.allclose(model.value_vectors(3), tiny_model().value_vectors(3), atol=1e-6)


def test_virtual_tokens_are_refused():
    adapted = peft.get_peft_model(fresh(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(tn.TnkitError, match=r"puts virtual tokens before each text .*PROMPT_TUNING"):
        loaded(adapted)


def test_a_folder_that_holds_an_adapter_alone_is_loaded_with_its_base(tmp_path):
    tiny_module("llama").save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(fresh(), lora("down_proj"))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    model = tn.load_model(tmp_path / "adapter")
    assert torch.allclose(model.value_vectors(2), loaded(adapted).value_vectors(2), atol=1e-6)


# --- wrappers


def test_a_model_of_tnkit_is_taken_with_its_name_tokenizer_and_template():
    first = tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer(), template="Say: {sentence}")
    again, chosen = tn.load_model(first), tn.load_model(first, template="{sentence}!")
    assert (again.name, again.template, chosen.template) == (first.name, first.template, "<bos>{sentence}!")
    assert again.tokenizer is first.tokenizer and again.module is first.module


def test_nnsights_language_model_is_taken():
    import warnings

    from nnsight import LanguageModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = LanguageModel(tiny_module("llama"), tokenizer=copy.deepcopy(byte_tokenizer()))
    found = tn.capture(tn.load_model(wrapped), SENTENCES[:3], **QUIET)
    assert_near(found.post, tn.capture(tiny_model("llama"), SENTENCES[:3], **QUIET).post)


def test_an_adapted_model_in_a_pipeline_or_compiled_is_taken():
    adapted = peft.get_peft_model(fresh(), lora("down_proj"))
    expected = loaded(adapted).value_vectors(1)
    piped = pipeline("text-generation", model=adapted, tokenizer=copy.deepcopy(byte_tokenizer()))
    for source in (piped, torch.compile(adapted), nn.DataParallel(adapted)):
        model = tn.load_model(source, tokenizer=byte_tokenizer())
        assert torch.equal(model.value_vectors(1), expected)


def test_a_tokenizer_may_be_the_path_of_one(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    for path in (tmp_path, str(tmp_path)):
        model = tn.load_model(tiny_module("llama"), tokenizer=path)
        assert model.tokenizer("Hi!")["input_ids"] == byte_tokenizer()("Hi!")["input_ids"]
    with pytest.raises(tn.TnkitError, match=r"tokenizer='.*nowhere' could not be loaded"):
        tn.load_model(tiny_module("llama"), tokenizer=tmp_path / "nowhere")


def test_a_file_that_is_no_model_is_named(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF?")
    with pytest.raises(tn.TnkitError, match=r"model\.gguf could not be loaded"):
        tn.load_model(tmp_path / "model.gguf")


def test_a_gguf_file_is_parsed_once_and_into_what_its_reader_finds(tmp_path):
    gguf, file = pytest.importorskip("gguf"), tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_token_list(["<s>", "für", "日本"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    writer.add_tensor("weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader
    plain = reader(file)
    with gguf_files.parsed_once(file):
        found = gguf.GGUFReader(str(file))
        assert gguf.GGUFReader(str(file)) is found
    assert gguf.GGUFReader is reader
    assert {*found.fields} == {*plain.fields} > {"tokenizer.ggml.tokens"}
    for name, field in plain.fields.items():
        ours = found.fields[name]
        assert (ours.types, ours.data) == (field.types, field.data)
        assert [part.tobytes() for part in ours.parts] == [part.tobytes() for part in field.parts]
    (tensor,) = found.tensors
    assert tensor.name == "weight" and tensor.data.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
