"""What is proved at load, and must still hold at each pass: causality, plain maps, whole checkpoints."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoModelForCausalLM, PaliGemmaForConditionalGeneration

import tnkit as tn
from tnkit.models.proofs import causality_error
from tnkit.testing import (
    SENTENCES,
    byte_tokenizer,
    redrawn,
    tiny_config,
    tiny_corpus,
    tiny_model,
    tiny_module,
)
from tnkit.tests import oracle

peft = pytest.importorskip("peft")


def loaded(module):
    return tn.load_model(module, tokenizer=byte_tokenizer())


def fresh(name="llama"):
    return copy.deepcopy(tiny_module(name))


# --- causality


def test_a_model_that_attends_to_its_prompt_in_both_directions_is_refused():
    module = tiny_module("paligemma")
    assert isinstance(module, PaliGemmaForConditionalGeneration)
    with pytest.raises(tn.TnkitError, match="PaliGemmaForConditionalGeneration does not attend causally: in layer"):
        loaded(module)


def test_a_decoder_with_bidirectional_attention_is_refused():
    config = tiny_config("gemma3")
    config.use_bidirectional_attention = True
    with pytest.raises(tn.TnkitError, match="Gemma3ForCausalLM does not attend causally"):
        loaded(redrawn(AutoModelForCausalLM.from_config(config)))


def test_a_module_that_looks_one_token_ahead_is_refused():
    """Complete in every layer, and wrong: only a longer text shows it."""
    module = fresh()
    ahead = lambda _, __, output: output + 0.1 * output.roll(-1, dims=1)  # noqa: E731
    module.get_input_embeddings().register_forward_hook(ahead)
    with pytest.raises(tn.TnkitError, match="does not attend causally"):
        loaded(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_half_precision_is_not_taken_for_looking_ahead(dtype):
    assert causality_error(loaded(fresh("gemma3").to(dtype))).max() < 0.05


# --- adapters and maps that are not plain


def lora(*targets):
    return peft.LoraConfig(target_modules=list(targets), r=2, init_lora_weights=False)


class OwnAdapter(nn.Linear):
    """A linear map with a low-rank adapter of one's own, which does nothing until it is trained."""

    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.weight = plain.weight
        self.down, self.up = nn.Parameter(torch.ones(2, plain.in_features)), nn.Parameter(torch.zeros(32, 2))

    def forward(self, values):
        return super().forward(values) + values @ self.down.T @ self.up.T


def with_own_adapter(module):
    module.model.layers[2].mlp.down_proj = OwnAdapter(module.model.layers[2].mlp.down_proj)


def down_proj(module):
    return module.model.layers[2].mlp.down_proj


HOOKED = {
    "old spectral_norm": lambda module: nn.utils.spectral_norm(down_proj(module)),
    "prune": lambda module: prune.l1_unstructured(down_proj(module), "weight", 0.3),
}
REFUSED = {
    "peft on the last map": lambda module: peft.get_peft_model(module, lora("down_proj")),
    "own adapter": with_own_adapter,
    "compiled": lambda module: module.model.layers[2].compile(),
    **HOOKED,
}


def with_weight_norm(module):
    parametrizations.weight_norm(down_proj(module)).parametrizations.weight.original0.data.mul_(2)


READ = {
    "peft on attention": lambda module: peft.get_peft_model(module, lora("q_proj")),
    "transformers' own": lambda module: module.add_adapter(lora("q_proj")),
    "weight_norm": with_weight_norm,
    "spectral_norm": lambda module: parametrizations.spectral_norm(down_proj(module)),
}


@pytest.mark.parametrize("change", HOOKED)
def test_a_last_map_whose_weight_a_hook_makes_anew_is_refused(change):
    module = fresh()
    HOOKED[change](module)
    with pytest.raises(tn.TnkitError, match=r"weight of model\.layers\.2\.mlp\.down_proj .* is made anew by a hook"):
        loaded(module)


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "own adapter"])
def test_a_last_map_with_more_than_a_weight_is_asked_for_its_value_vectors(change):
    module = fresh()
    {**READ, **REFUSED}[change](module)
    if change == "own adapter":
        down_proj(module).up.data.normal_()
    model = loaded(module)
    assert torch.allclose(model.value_vectors(2).double(), oracle.value_vectors(down_proj(module)), atol=1e-6)
    assert (model.value_vectors(2) - tiny_model().value_vectors(2)).abs().max() > 1e-3


@pytest.mark.parametrize("change", REFUSED)
def test_a_change_after_loading_is_refused_where_it_would_be_used(change):
    module = fresh()
    model = loaded(module)
    before = tn.capture(model, SENTENCES[:2], progress=False)
    target = tn.estimate_centroids([before])
    REFUSED[change](module)
    said = r"was replaced after|is compiled in place|is made anew by a hook"
    with pytest.raises(tn.TnkitError, match=said):
        tn.capture(model, SENTENCES[:2], progress=False)
    if change != "compiled":
        with pytest.raises(tn.TnkitError, match=said):
            tn.score_neurons(model, before, target)


@pytest.mark.parametrize("change", READ)
def test_a_change_after_loading_that_can_be_read_makes_another_model(change):
    module = fresh()
    model = loaded(module)
    before = tn.capture(model, SENTENCES[:2], progress=False)
    READ[change](module)
    after, expected = (tn.capture(which, SENTENCES[:2], progress=False) for which in (model, loaded(module)))
    assert torch.equal(after.post, expected.post) and not torch.allclose(after.post, before.post, atol=1e-4)
    with pytest.raises(tn.TnkitError, match="were made with"):
        tn.score_neurons(model, before, tn.estimate_centroids([before]))


def test_a_last_map_that_was_replaced_after_loading_is_refused():
    module = fresh()
    model = loaded(module)
    module.model.layers[1].mlp.down_proj = copy.deepcopy(module.model.layers[1].mlp.down_proj)
    with pytest.raises(tn.TnkitError, match=r"model\.layers\.1\.mlp\.down_proj was replaced after"):
        tn.capture(model, SENTENCES[:2], progress=False)


def test_a_merged_adapter_equals_plain_hooks():
    adapted = peft.get_peft_model(fresh(), lora("down_proj", "q_proj"))
    module = adapted.merge_and_unload()
    model = loaded(module)
    last_map = module.model.layers[2].mlp.down_proj
    assert torch.allclose(model.value_vectors(2).double(), oracle.value_vectors(last_map), atol=1e-6)
    assert (model.value_vectors(2) - tiny_model().value_vectors(2)).abs().max() > 1e-3
    captured = tn.capture(model, SENTENCES[:1], progress=False)
    ids = torch.tensor([byte_tokenizer()(SENTENCES[0])["input_ids"]])
    expected = oracle.hooked(module, "model.layers", model.sites, ids)
    for layer in range(4):
        assert torch.allclose(captured.post[layer, 0].double(), expected["post"][layer][-1], atol=1e-5)


# --- checkpoints


@pytest.fixture
def folder(tmp_path):
    """A tiny checkpoint with its tokenizer."""
    tiny_module("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: f"base_model.model.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: key.replace("mlp.", "_orig_mod.mlp."),
    ],
    ids=["compile", "parallel", "peft", "both", "compiled blocks"],
)
def test_the_prefixes_of_wrappers_are_taken_off(folder, rename, tmp_path):
    rewrite(folder, lambda tensors: {rename(key): tensor for key, tensor in tensors.items()})
    model = tn.load_model(folder)
    assert model.weights_hash == tiny_model("llama").weights_hash
    off = tn.export_ablated(model, [(0, 1)], tmp_path / "off")  # and they do not come back
    assert torch.equal(tn.load_model(off).value_vectors(1), model.value_vectors(1))


def test_missing_weights_are_named_and_not_drawn_at_random(folder):
    gone = ["model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.up_proj.weight"]
    rewrite(folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if key not in gone})
    with pytest.raises(tn.TnkitError, match=rf"lacks 2 weight\(s\) of its model \({gone[0]}, {gone[1]}\)"):
        tn.load_model(folder)


def test_of_many_missing_weights_three_are_named_and_a_foreign_key(folder):
    rewrite(folder, lambda tensors: {f"student.{key}": tensor for key, tensor in tensors.items()})
    with pytest.raises(tn.TnkitError, match=r"lacks 39 weight.*, …\).*39 key\(s\).* such as student\.") as caught:
        tn.load_model(folder)
    assert len(str(caught.value)) < 500


def test_weights_of_another_shape_are_named(folder):
    key = "model.layers.1.mlp.down_proj.weight"
    rewrite(folder, lambda tensors: tensors | {key: torch.zeros(32, 40)})
    with pytest.raises(tn.TnkitError, match=rf"1 weight.* of another shape .*{key}: \(32, 40\), expected \(32, 48\)"):
        tn.load_model(folder)


def test_an_adapter_in_a_checkpoint_is_named(folder):
    rewrite(
        folder,
        lambda tensors: (
            tensors | {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}
        ),
    )
    with pytest.raises(tn.TnkitError, match=r"adapter .*lora_A.*merge_and_unload"):
        tn.load_model(folder)


def test_a_missing_shard_is_named(tmp_path):
    tiny_module("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(tn.TnkitError, match=f"could not be loaded .*{shards[1].name}"):
        tn.load_model(tmp_path)


def test_a_shard_that_the_index_forgets_is_missing_weights(tmp_path):
    tiny_module("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    forgotten = sorted(set(table["weight_map"].values()))[1]
    table["weight_map"] = {key: shard for key, shard in table["weight_map"].items() if shard != forgotten}
    index.write_text(json.dumps(table))
    with pytest.raises(tn.TnkitError, match=r"lacks .* of its model"):
        tn.load_model(tmp_path)


def test_tied_weights_are_not_missing(tmp_path):
    from safetensors.torch import load_file

    tiny_module("gemma3").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert not any("lm_head" in key for key in load_file(tmp_path / "model.safetensors"))
    assert tn.load_model(tmp_path).weights_hash == tn.load_model(tmp_path).weights_hash


# --- weights that accelerate keeps elsewhere


PLACES = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
PLACES |= {f"model.layers.{layer}": "disk" if layer == 2 else "cpu" for layer in range(4)}


def dispatched(where, folder):
    """A module whose third block's weights are on disk, or all of them on the CPU, brought for each pass."""
    import accelerate

    if where == "disk":
        return accelerate.dispatch_model(
            fresh("llama-bias"), PLACES, main_device="cpu", offload_dir=str(folder), force_hooks=True
        )
    return accelerate.cpu_offload(fresh("llama-bias"))


def equals_plain(model):
    plain = tiny_model("llama-bias")
    assert model.device == torch.device("cpu")
    assert torch.equal(model.value_vectors(2), plain.value_vectors(2))
    assert torch.equal(model.output_bias(2), plain.output_bias(2))
    assert model.weights_hash == plain.weights_hash
    captured, expected = (tn.capture(one, SENTENCES, progress=False) for one in (model, plain))
    assert torch.allclose(captured.post, expected.post, atol=1e-5)
    target = tn.estimate_centroids([expected])
    scores, wanted = tn.score_neurons(model, captured, target).values, tn.score_neurons(plain, expected, target).values
    assert (scores - wanted).abs().max() < 1e-6
    assert model.module.model.layers[2].mlp.down_proj.weight.is_meta


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_read_where_accelerate_keeps_them(where, tmp_path):
    equals_plain(loaded(dispatched(where, tmp_path)))


@pytest.mark.parametrize("name", ["llama", "qwen2-moe", "gpt-oss"])
def test_offloaded_models_give_what_plain_ones_give(name, caplog):
    import accelerate

    model, plain = loaded(accelerate.cpu_offload(fresh(name))), tiny_model(name)
    for layer in range(model.n_layers):
        assert torch.equal(model.value_vectors(layer), plain.value_vectors(layer))
    captured, expected = (tn.capture(one, SENTENCES, progress=False) for one in (model, plain))
    assert torch.equal(captured.activations, expected.activations) and torch.equal(captured.post, expected.post)
    for how in ({}, {"streaming": True}, {"streaming": True, "cache": True}):  # whose pass stops inside the last block
        found, wanted = (
            tn.detect_all(one, tiny_corpus(), ["ja"], top=20, progress=False, **options)
            for one, options in ((model, how), (plain, {"streaming": how.get("streaming")}))
        )
        for key, detection in wanted.items():
            assert found[key].neurons.pairs == detection.neurons.pairs
            assert torch.equal(found[key].scores.values.nan_to_num(9), detection.scores.values.nan_to_num(9))
    assert "are offloaded, so nothing is read from the cache" in caplog.text
    off = []
    for one in (model, plain):
        with tn.Ablation(one, wanted["ja", "type1"].neurons):
            off.append(tn.capture(one, SENTENCES, progress=False).post)
    assert torch.equal(*off) and not torch.equal(off[0], captured.post)
    assert all(weight.is_meta for weight in model.module.get_submodule(model.map_path(1)).parameters())


def test_a_folder_may_be_loaded_with_some_weights_left_on_disk(tmp_path):
    tiny_module("llama-bias").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    equals_plain(tn.load_model(tmp_path, device_map=PLACES))


# --- a wide default dtype


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_default_dtype_does_not_matter(name):
    plain = tn.capture(tiny_model(name), SENTENCES, progress=False)
    expected = tn.score_neurons(tiny_model(name), plain, tn.estimate_centroids([plain])).values
    torch.set_default_dtype(torch.float64)
    try:
        model = loaded(tiny_module(name))
        captured = tn.capture(model, SENTENCES, batch_tokens=64, progress=False)
        scores = tn.score_neurons(model, captured, tn.estimate_centroids([captured])).values
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert captured.post.dtype == captured.scale.dtype == torch.float32
    assert torch.allclose(captured.post, plain.post, atol=1e-5)
    assert (scores - expected).abs().max() < 1e-6
