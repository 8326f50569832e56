"""Formats of other packages, each where its package is installed; test_forms.py has the one that is always run."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import tnkit as tn
from tnkit.models.proofs import completeness_error
from tnkit.testing import SENTENCES, byte_tokenizer, redrawn, tiny_config
from tnkit.tests import oracle
from tnkit.tests.oracle import assert_near

QUIET = {"progress": False}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"vocab_size": 260, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain checkpoint whose maps are wide enough for every format."""
    config = AutoConfig.for_model("llama", **SMALL, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    folder = tmp_path_factory.mktemp("plain")
    redrawn(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    return folder


def is_quantised(module, name):
    return isinstance(module, torch.nn.Linear) and "lm_head" not in name


def bitsandbytes(folder, **how):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **how)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def torchao(folder, config, **how):
    quantization = pytest.importorskip("torchao.quantization")
    module = AutoModelForCausalLM.from_pretrained(folder)
    quantization.quantize_(module, getattr(quantization, config)(**how), filter_fn=is_quantised)
    return module


def quanto(folder, kind):
    package = pytest.importorskip("optimum.quanto")
    module = AutoModelForCausalLM.from_pretrained(folder)
    package.quantize(module, weights=getattr(package, kind), exclude="lm_head")
    package.freeze(module)
    return module


def hqq(folder, nbits):
    base, quantize = pytest.importorskip("hqq.models.hf.base"), pytest.importorskip("hqq.core.quantize")
    module = AutoModelForCausalLM.from_pretrained(folder)
    config = quantize.BaseQuantizeConfig(nbits=nbits, group_size=64)
    base.AutoHQQHFModel.quantize_model(module, quant_config=config, compute_dtype=torch.float32, device="cpu")
    return module


# the module, and by how much contributions may miss: float32, bfloat16 on some CPUs, or activations in eight bits
FORMATS = {
    "bitsandbytes int8": (lambda folder: bitsandbytes(folder, load_in_8bit=True), 0.1),
    "bitsandbytes nf4": (lambda folder: bitsandbytes(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4"), 0.02),
    "torchao int8": (lambda folder: torchao(folder, "Int8WeightOnlyConfig"), 1e-5),
    "torchao fp8": (lambda folder: torchao(folder, "Float8WeightOnlyConfig"), 1e-5),
    "torchao int8 dynamic": (lambda folder: torchao(folder, "Int8DynamicActivationInt8WeightConfig"), 0.1),
    "torchao int4": (lambda folder: torchao(folder, "IntxWeightOnlyConfig", weight_dtype=torch.int4), 1e-5),
    "quanto int4": (lambda folder: quanto(folder, "qint4"), 1e-5),
    "quanto int8": (lambda folder: quanto(folder, "qint8"), 1e-5),
    "quanto fp8": (lambda folder: quanto(folder, "qfloat8"), 1e-5),
    "hqq 4": (lambda folder: hqq(folder, 4), 1e-5),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_gives_its_own_numbers(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    make, allowed = FORMATS[name]
    module = make(folder).eval()
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    plain = tn.load_model(folder, tokenizer=byte_tokenizer())
    assert completeness_error(model).max() < allowed
    for layer in range(2):
        near, far = model.value_vectors(layer).float(), plain.value_vectors(layer)
        assert 0 < (near - far).norm() < 0.2 * far.norm()
    hashed = model.weights_hash
    captured = tn.capture(model, SENTENCES, cache=True, **QUIET)
    assert torch.equal(tn.capture(model, SENTENCES, cache=True, **QUIET).post, captured.post)
    assert model.weights_hash == hashed != plain.weights_hash
    alone = torch.cat([tn.capture(model, [text], **QUIET).post for text in SENTENCES], dim=1)
    # where inputs are rounded, a batch that differs in the last bit may round them to the next step
    assert_near(captured.post, alone, {0.1: 0.05, 0.02: 0.02}.get(allowed, 1e-5))
    off = [(0, 3), (1, 200)]
    with tn.Ablation(model, off, tokens="all"):
        ablated = tn.capture(model, SENTENCES[:1], **QUIET).post
    ids = torch.tensor([byte_tokenizer()(SENTENCES[0])["input_ids"]])
    with oracle.switched_off(model, off):
        read = oracle.hooked(module, model.blocks_path, model.sites, ids)["post"]
    assert_near(ablated[:, 0], torch.stack([layer[-1] for layer in read]).float(), 1e-4)
    with pytest.raises(tn.TnkitError, match="quantised"):
        tn.export_ablated(model, off, tmp_path / "off")


@pytest.mark.parametrize("name", FORMATS)
def test_one_changed_weight_changes_the_hash_of_a_format(name, folder):
    module = FORMATS[name][0](folder).eval()
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    before = model.weights_hash
    other = copy.deepcopy(folder)
    assert tn.load_model(FORMATS[name][0](other).eval(), tokenizer=byte_tokenizer()).weights_hash == before
    changed = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight[3, 17] += 0.2
    changed.save_pretrained(folder.parent / "changed")
    changed = FORMATS[name][0](folder.parent / "changed").eval()
    assert tn.load_model(changed, tokenizer=byte_tokenizer()).weights_hash != before


@pytest.mark.parametrize(
    ("method", "package"),
    [({"quant_method": "gptq", "bits": 4}, "gptqmodel|optimum"), ({"quant_method": "aqlm"}, "aqlm")],
    ids=["gptq", "aqlm"],
)
def test_a_format_whose_package_is_missing_is_refused_with_its_name(method, package, folder, tmp_path):
    import importlib.util
    import shutil

    if any(importlib.util.find_spec(name) for name in package.split("|")):
        pytest.skip(f"{package} is installed")
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    with pytest.raises(tn.TnkitError, match=f"could not be loaded .*(?i:{package})") as caught:
        tn.load_model(tmp_path / "model", tokenizer=byte_tokenizer())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


MXFP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # what three bits stand for; the fourth is the sign


def test_experts_in_mxfp4_are_the_numbers_that_their_bits_stand_for(tmp_path):
    config = tiny_config("gpt-oss")
    config.intermediate_size = 64  # blocks are of 32 weights
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    state, expected = load_file(tmp_path / "model.safetensors"), {}
    random = torch.Generator().manual_seed(0)
    for name in [name for name in state if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = state.pop(name).shape
        bits = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), generator=random)
        scales = torch.randint(118, 124, (experts, outputs, inputs // 32), generator=random)
        state[f"{name}_blocks"] = (bits[..., 0::2] + 16 * bits[..., 1::2]).to(torch.uint8)
        state[f"{name}_scales"] = scales.to(torch.uint8)
        values = MXFP4[bits % 8] * (1 - 2 * (bits // 8)) * 2.0 ** (scales[..., None] - 127)
        expected[name] = values.reshape(experts, outputs, inputs).transpose(1, 2).flatten(0, 1)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    about = json.loads((tmp_path / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": plain}
    (tmp_path / "config.json").write_text(json.dumps(about))
    model = tn.load_model(tmp_path)
    for layer in range(model.n_layers):
        assert torch.equal(model.value_vectors(layer).float(), expected[f"{model.map_path(layer)}.down_proj"])
    with pytest.raises(tn.TnkitError, match=r"did not run with weights in bfloat16 and float32 .* leave dtype out"):
        tn.load_model(tmp_path, dtype="float32")
