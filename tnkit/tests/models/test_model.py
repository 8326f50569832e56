"""Loading: what is right is loaded, what is not is refused by name."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nnsight import NNsight
from nnsight.modeling.transformers import TransformersModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    ViTConfig,
    pipeline,
)

import tnkit as tn
from tnkit import provenance
from tnkit.models import weights as checks
from tnkit.models.proofs import completeness_error
from tnkit.models.reading import Sites
from tnkit.provenance import check_made_with
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module

SMALL = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 258,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def random_model(model_type, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SMALL | options))).eval()


@pytest.mark.parametrize("model_type", ["gptj", "codegen", "starcoder2", "olmo", "glm", "glm4", "nemotron", "smollm3"])
def test_an_architecture_that_is_not_listed_is_complete_or_refused_by_name(model_type):
    options = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_inner": 48, "n_positions": 64}
    module = random_model(model_type, **(options if model_type in ("gptj", "codegen") else {}))
    try:
        model = tn.load_model(module, tokenizer=byte_tokenizer())
    except tn.TnkitError as error:
        assert type(module).__name__ in str(error) or "Block" in str(error) or "Layer" in str(error)
    else:
        assert completeness_error(model).max() < 1e-4


def test_a_block_that_normalises_after_the_sum_is_refused():
    module = random_model("opt", ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False)
    with pytest.raises(
        tn.TnkitError, match=r"OPTForCausalLM has .* normalises the sum of state and MLP \(final_layer_norm\)"
    ):
        tn.load_model(module, tokenizer=byte_tokenizer())


def test_experts_of_an_unknown_kind_are_refused():
    class Unknown(torch.nn.Module):
        def __init__(self, experts):
            super().__init__()
            self.first, self.last = experts.gate_up_proj, experts.down_proj

    module = random_model("mixtral", num_local_experts=4)
    for block in module.model.layers:
        block.mlp.experts = Unknown(block.mlp.experts)
    with pytest.raises(tn.TnkitError, match=r"mixture-of-experts .*experts\) are not one module that is called with"):
        tn.load_model(module, tokenizer=byte_tokenizer())


def test_an_encoder_decoder_is_refused(tmp_path):
    config = AutoConfig.for_model("t5", vocab_size=260, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=2)
    module = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(tn.TnkitError, match="encoder-decoder"):
        tn.load_model(module, tokenizer=byte_tokenizer())
    module.save_pretrained(tmp_path)
    with pytest.raises(tn.TnkitError, match="encoder-decoder"):
        tn.load_model(tmp_path)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox", "olmo2"])
def test_a_wrong_reading_of_the_block_fails_the_check(name):
    """The check must be able to fail: every other site that exists in the block is noticed."""
    model = tiny_model(name)
    sites = model.sites[0]
    wrong = Sites(sites.last_map, "input_layernorm" if name != "olmo2" else "self_attn", norm=sites.norm)
    assert completeness_error(replace(model, sites=(wrong,) * model.n_layers)).max() > 0.05


def test_ignoring_the_norm_of_the_branch_fails_the_check():
    model = tiny_model("gemma3")
    assert completeness_error(replace(model, sites=(replace(model.sites[0], norm=None),) * model.n_layers)).max() > 0.5


def test_states_beyond_the_range_of_float16_are_told_as_that():
    module = copy.deepcopy(tiny_module("gemma3")).half()
    with torch.no_grad():
        module.model.layers[2].post_feedforward_layernorm.weight[:] = 6e4
    with pytest.raises(tn.TnkitError, match=r"not finite, first in layer 2, in float16; try dtype='bfloat16'"):
        tn.load_model(module, tokenizer=byte_tokenizer())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_first_token_that_dwarfs_the_branch_is_rounded_not_misread(dtype):
    """Gemma writes 10^5 in a coordinate of BOS: in half precision the sum rounds by as much as the branch adds."""
    module = copy.deepcopy(tiny_module("gemma3")).to(dtype)
    with torch.no_grad():
        module.get_input_embeddings().weight[256, 3] = 9e3
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    first = tn.capture(model, [""], keep=("mid", "post"), progress=False)
    assert first.post.abs().max() > 3e4
    assert completeness_error(model).max() < (1e-3 if dtype == torch.float32 else 0.05)
    assert completeness_error(replace(model, sites=(replace(model.sites[0], norm=None),) * model.n_layers)).max() > 0.5


def test_a_folder_loads_as_the_module_does(tmp_path):
    tiny_module("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = tn.load_model(tmp_path)
    assert model.weights_hash == tiny_model("llama").weights_hash
    assert model.name == str(tmp_path)
    half = tn.load_model(tmp_path, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.weights_hash != model.weights_hash
    whole = tn.capture(model, SENTENCES, progress=False).post
    rough = tn.capture(half, SENTENCES, progress=False).post
    assert torch.nn.functional.cosine_similarity(whole, rough, dim=-1).min() > 0.99


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no-such-model", "unknown model 'no-such-model'.*gemma-3-270m"),
        ("owner/no-such-model", "unknown model 'owner/no-such-model'"),
        ("/no/such/folder", "no model folder /no/such/folder"),
        ("./no-such-folder", "no model folder"),
    ],
)
def test_an_unknown_model_is_named(source, words):
    with pytest.raises(tn.TnkitError, match=words):
        tn.load_model(source)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(tn.TnkitError, match="could not be loaded as a transformers model folder"):
        tn.load_model(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "load_model was given None; expected"),
        (3, "a value of type int; expected"),
        ({"w": torch.zeros(1)}, "a state dict, which does not say"),
        (byte_tokenizer(), "a tokenizer"),
        (Path("no/such"), "there is no model folder no/such"),
        (Path(__file__), "is a file; name a GGUF file, or the folder"),
        (torch.nn.Linear(2, 2), "Linear is not a transformers model"),
    ],
)
def test_what_is_no_model_is_told_in_a_sentence(source, words):
    with pytest.raises(tn.TnkitError, match=words) as caught:
        tn.load_model(source, tokenizer=byte_tokenizer())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


BERT = BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=300, is_decoder=True
)


@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification, BertLMHeadModel])
def test_an_encoder_is_refused_in_a_sentence(kind, capfd):
    with pytest.raises(
        tn.TnkitError, match=r"Bert\w+ has .* normalises the sum of state and MLP \(output.LayerNorm\)"
    ) as caught:
        tn.load_model(kind(BERT), tokenizer=byte_tokenizer())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert "not supported" not in capfd.readouterr().err


def test_a_folder_of_no_causal_model_is_refused_without_a_list_of_classes(tmp_path):
    ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48).save_pretrained(
        tmp_path
    )
    with pytest.raises(tn.TnkitError, match="is a vit model, which transformers does not load as a causal") as caught:
        tn.load_model(tmp_path, tokenizer=byte_tokenizer())
    assert len(str(caught.value)) < 400


WRAPPERS = {
    "DataParallel": lambda module, _: (torch.nn.DataParallel(module), byte_tokenizer()),
    "torch.compile": lambda module, _: (torch.compile(module), byte_tokenizer()),
    "NNsight": lambda module, _: (NNsight(module), byte_tokenizer()),
    "TransformersModel": lambda module, own: (TransformersModel(module, tokenizer=own, task="text-generation"), None),
    "pipeline": lambda module, own: (pipeline("text-generation", model=module, tokenizer=own), None),
    "headless": lambda module, _: (module.model, byte_tokenizer()),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_is_wrapped_gives_the_numbers_of_the_plain_module(wrapper):
    source, tokenizer = WRAPPERS[wrapper](tiny_module("llama"), copy.deepcopy(byte_tokenizer()))
    found = tn.capture(tn.load_model(source, tokenizer=tokenizer), SENTENCES[:3], progress=False)
    expected = tn.capture(tiny_model("llama"), SENTENCES[:3], progress=False)
    assert torch.allclose(found.post, expected.post, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("half", torch.float16), ("fp32", torch.float32)]
)
def test_a_dtype_has_short_names(name, dtype, tmp_path):
    tiny_module("llama").save_pretrained(tmp_path)
    assert tn.load_model(tmp_path, tokenizer=byte_tokenizer(), dtype=name).dtype == dtype


def test_a_dtype_that_is_none_is_named():
    with pytest.raises(tn.TnkitError, match="dtype='int8' must be 'auto' or one of float32, fp32"):
        tn.load_model("gemma-3-270m", dtype="int8")


def test_another_models_tokenizer_is_noticed():
    module = random_model("llama", vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with pytest.raises(tn.TnkitError, match=r"tokenizer does not belong to .* 100 token embeddings"):
        tn.load_model(module, tokenizer=byte_tokenizer())


def test_the_smallest_window_of_all_layers_is_known():
    neo = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    module = random_model("gpt_neo", window_size=16, **neo)
    assert tn.load_model(module, tokenizer=byte_tokenizer()).window == 16
    assert (tiny_model("mistral").window, tiny_model("gpt2").window) == (64, None)


def test_a_loaded_module_needs_its_tokenizer():
    with pytest.raises(tn.TnkitError, match="tokenizer=tokenizer"):
        tn.load_model(tiny_module("llama"))


def test_wrapping_leaves_the_callers_tokenizer_as_it_was():
    tokenizer = copy.deepcopy(byte_tokenizer())
    for side in ("left", "right"):
        tokenizer.padding_side = side
        tn.load_model(tiny_module("llama"), tokenizer=tokenizer)
        assert tokenizer.padding_side == side
    tokenizer.pad_token = None
    before = tokenizer.special_tokens_map
    tn.load_model(tiny_module("llama"), tokenizer=tokenizer)
    assert tokenizer.pad_token is None and tokenizer.pad_token_id is None
    assert tokenizer.special_tokens_map == before


def test_one_changed_weight_changes_the_hash():
    module = copy.deepcopy(tiny_module("llama"))
    before = tn.load_model(module, tokenizer=byte_tokenizer()).weights_hash
    assert before == tiny_model("llama").weights_hash
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight[3, 17] += 1e-3
    assert tn.load_model(module, tokenizer=byte_tokenizer()).weights_hash != before


def test_permuted_neurons_are_another_model():
    """They compute the same function, so only the order of the weights tells them apart."""
    module = copy.deepcopy(tiny_module("llama"))
    swap = [*range(48)]
    swap[7], swap[9] = 9, 7
    with torch.no_grad():
        for layer in module.model.layers:
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, swap].clone())
            for name in ("gate_proj", "up_proj"):
                getattr(layer.mlp, name).weight.copy_(getattr(layer.mlp, name).weight[swap].clone())
    assert tn.load_model(module, tokenizer=byte_tokenizer()).weights_hash != tiny_model("llama").weights_hash


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_every_byte_and_its_place_are_hashed(dtype):
    """Of sizes around a row of the hash: a changed first, middle or last value, two swapped ones, a part swapped."""
    torch.manual_seed(0)
    for count in (1, 3, checks._ROW - 1, checks._ROW, 2 * checks._ROW + 1, 5 * checks._ROW):
        values = torch.randn(count).to(dtype).view(torch.uint8)
        seen = {tuple(checks.row_sums(values.view(dtype)))}
        places = {0, len(values) // 2, len(values) - 1}
        for place in places:
            changed = values.clone()
            changed[place] ^= 1
            seen.add(tuple(checks.row_sums(changed.view(dtype))))
        for shift in (2, 4 * checks._ROW) if len(values) > 4 * checks._ROW else ():
            seen.add(tuple(checks.row_sums(values.roll(shift).view(dtype))))
        assert len(seen) == 1 + len(places) + 2 * (len(values) > 4 * checks._ROW)
    odd = torch.randn(9).to(dtype)[1:]  # does not begin at a whole word in half precision
    assert checks.row_sums(odd) == checks.row_sums(odd.clone())


@pytest.mark.parametrize(
    "edit",
    [
        lambda module: module.model.layers[1].mlp.down_proj.weight.data.mul_(1.5),
        lambda module: module.model.norm.weight.data.copy_(torch.ones(32)),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.set_input_embeddings(torch.nn.Embedding(260, 32)),
        lambda module: setattr(module.config, "_attn_implementation", "eager"),
    ],
    ids=["data", "copy", "dtype", "module", "attention"],
)
def test_hash_provenance_and_gains_are_those_of_the_model_as_it_is_now(edit):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    before = model.provenance
    assert model.provenance == before
    edit(module)
    fresh = tn.load_model(module, tokenizer=byte_tokenizer())
    assert model.provenance == fresh.provenance != before
    assert model.weights_hash == checks.hash_of(module)


def test_an_output_gain_that_was_edited_is_read_anew():
    module = copy.deepcopy(tiny_module("gemma3"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    before = model.output_gain(2)
    module.model.layers[2].post_feedforward_layernorm.weight.data.add_(0.5)
    torch.testing.assert_close(model.output_gain(2), before + 0.5)


def test_results_of_another_model_are_refused_and_those_of_an_old_tnkit_told(caplog):
    model = tiny_model("llama")
    theirs = {"model": model.provenance | {"name": "theirs", "weights": "f" * 32}}
    for about in (theirs, {"control": {}, "of": theirs}, {"or": [{}, theirs]}):
        with pytest.raises(tn.TnkitError, match=r"these neurons were made with theirs .*f{32}.*LlamaForCausalLM.*list"):
            check_made_with(model, about, "these neurons")
    for about in ({}, {"file": "n.pkl"}, {"model": model.provenance}, {"model": {"name": "named only"}}):
        check_made_with(model, about, "these neurons")
    assert not caplog.records
    provenance._TOLD.clear()
    for _ in range(2):
        check_made_with(model, {"model": {"weights": "0123456789abcdef"}}, "these neurons")
    assert "these neurons: an older tnkit" in caplog.text and len(caplog.records) == 1


def test_layers_of_early_and_late_follow_the_paper():
    model = tiny_model("llama")
    for depth, boundary in ((32, 20), (18, 11), (30, 18), (1, 0), (80, 50)):
        deep = replace(model, n_layers=depth)
        assert (deep.early_layers, deep.late_layers) == (range(boundary), range(boundary, depth))


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(tn.TnkitError, match=r"layer 4 is not in .*layers 0 to 3"):
        tiny_model("llama").value_vectors(4)
