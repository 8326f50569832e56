"""Packed rows: which models pack, that leaks between sentences are noticed, equality with padded and single runs."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import tnkit as tn
from tnkit.captures.rows import Rows, batches_of
from tnkit.models.proofs import packing
from tnkit.testing import EXPERTS, SENTENCES, byte_tokenizer, redrawn, tiny_config, tiny_model, tiny_module
from tnkit.tests import oracle
from tnkit.tests.captures.test_shards import traced  # noqa: F401 - a fixture

QUIET = {"progress": False}
RECURRENT = {"qwen3-next", "qwen3.5-moe", "granite-moe-hybrid", "minimax", "lfm2-moe", "jamba"}


def fresh(name="llama", **changes):
    config = tiny_config(name)
    vars(config).update(changes)
    return redrawn(AutoModelForCausalLM.from_config(config))


def padding(model):
    return replace(model, packing=None)


def capture(model, sentences=SENTENCES, **options):
    return tn.capture(model, sentences, **QUIET | options)


def assert_close(found, expected):
    for name, tensor in expected.tensors().items():
        assert (getattr(found, name).float() - tensor.float()).norm() <= 1e-5 * tensor.float().norm(), name


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_packed_where_no_state_is_carried_along_the_row(name):
    model = tiny_model(name)
    assert model.packs == (name not in {*RECURRENT, "gpt-oss"})
    if model.packs:
        found, expected = capture(model), capture(padding(model))
        assert_close(found, expected)
        assert torch.equal(found.experts, expected.experts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_mask_ignores_positions_is_padded(dtype, monkeypatch):
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)
    for attention in ("sdpa", "eager"):
        module = fresh().to(dtype)
        module.set_attn_implementation(attention)
        model = tn.load_model(module, tokenizer=byte_tokenizer())
        assert not model.packs
        if dtype == torch.float32:
            assert_close(capture(model), capture(padding(tiny_model())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [0, 3])
def test_one_layer_that_attends_to_the_sentence_before_is_noticed(dtype, layer):
    module = fresh().to(dtype)
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    assert model.packs

    def leak(_, args, kwargs):
        mask = kwargs["attention_mask"]
        return args, kwargs | {"attention_mask": torch.ones_like(mask).tril()}

    with module.model.layers[layer].self_attn.register_forward_pre_hook(leak, with_kwargs=True):
        assert packing(model) is None


def test_the_user_may_choose():
    padded = tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer(), packed=False)
    assert tiny_model("llama").packs and not padded.packs
    assert_close(capture(tiny_model("llama")), capture(padded))
    assert tn.load_model(padded, packed=True).packs
    with pytest.raises(tn.TnkitError, match="gives packed sentences other states"):
        tn.load_model(tiny_module("bloom"), tokenizer=byte_tokenizer(), packed=True)


def test_another_attention_than_was_checked_is_padded():
    module = fresh()
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    module.set_attn_implementation("eager")
    assert not model.packs and tn.load_model(module, tokenizer=byte_tokenizer()).packs


@pytest.mark.parametrize(("name", "changes"), [("mistral", {"sliding_window": 30}), ("gemma3", {"sliding_window": 16})])
def test_sentences_longer_than_the_attention_window(name, changes):
    """Longer ones are padded, shorter ones are packed in rows no wider than the window."""
    model = tn.load_model(fresh(name, **changes), tokenizer=byte_tokenizer())
    assert model.packs and model.window == changes["sliding_window"]
    lengths = [len(ids) for ids in model.tokenizer(SENTENCES)["input_ids"]]
    assert min(lengths) < model.window < max(lengths)
    assert_close(capture(model), capture(padding(model)))
    for number, sentence in enumerate(SENTENCES):
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        found = oracle.hooked(model.module, model.blocks_path, model.sites, ids)
        expected = torch.stack([layer[-1] for layer in found["post"]])
        error = (capture(model, keep=["post"]).post[:, number].double() - expected).norm() / expected.norm()
        assert error < 1e-5


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_every_token_has_one_place_in_batches_of_the_asked_size(name):
    draw, model = random.Random(0), tiny_model(name)
    for _ in range(20):
        sentences = [[256, *draw.choices(range(256), k=draw.randrange(0, 90))] for _ in range(draw.randrange(1, 40))]
        lengths, most = [len(ids) for ids in sentences], draw.choice([1, 64, 300])
        batches = list(batches_of(model, lengths, most))
        assert sorted(number for batch in batches for number in batch) == list(range(len(sentences)))
        for batch in batches:
            rows = Rows.of(model, [sentences[number] for number in batch])
            assert len(batch) == 1 or rows.inputs["input_ids"].numel() <= most
            assert rows.places[rows.real].unique().numel() == rows.real.sum()
            for row, number in enumerate(batch):
                assert rows.ids[row, : lengths[number]].tolist() == sentences[number]
            if name == "llama" and len(batch) > 1:
                positions = rows.inputs["position_ids"].flatten()[rows.places]
                assert torch.equal(
                    positions[rows.real], torch.arange(rows.real.shape[1]).expand(rows.real.shape)[rows.real]
                )


def test_layouts_do_not_share_cached_captures(traced, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    for _ in range(2):
        for model in (tiny_model("llama"), padding(tiny_model("llama"))):
            capture(model, cache=True, batch_tokens=10_000)
    assert traced == [len(SENTENCES)] * 2


@pytest.mark.parametrize("tokens", ["last", "last_word", "prompt", "all"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2-moe"])
def test_scopes_see_each_sentence_of_a_row(name, tokens):
    model, neurons = tiny_model(name), [(1, 3), (1, 7), (2, 5)]
    found = {}
    for layout in (model, padding(model)):
        with tn.Ablation(layout, neurons, tokens=tokens) as ablation:
            found[layout.packs] = capture(layout), ablation.count
    assert_close(found[True][0], found[False][0])
    assert found[True][1] == found[False][1] > 0
    assert not torch.allclose(found[True][0].post[-1], capture(model).post[-1], atol=1e-3)


@pytest.mark.parametrize("tokens", ["last", "last_word", "prompt"])
def test_packed_rows_of_ones_own_are_ablated_at_each_text(tokens):
    model = tiny_model("llama")
    texts = [model.tokenizer(sentence)["input_ids"] for sentence in SENTENCES[:3]]
    row = torch.tensor([[token for ids in texts for token in ids]])
    inputs = {"input_ids": row, "position_ids": torch.tensor([[at for ids in texts for at in range(len(ids))]])}
    with torch.inference_mode(), tn.Ablation(model, [(1, 7)], tokens=tokens) as ablation:
        packed = model.module(**inputs, use_cache=False).logits[0]
        count = ablation.count
        single = torch.cat([model.module(input_ids=torch.tensor([ids])).logits[0] for ids in texts])
    assert (packed - single).abs().max() < 1e-4
    assert 2 * count == ablation.count
    with tn.Ablation(model, [(1, 7)], tokens=tokens), pytest.raises(tn.TnkitError, match="use_cache=False"):
        model.module(**inputs)  # which lets the texts attend to each other
    with tn.Ablation(padding(model), [(1, 7)], tokens=tokens), pytest.raises(tn.TnkitError, match="use_cache=False"):
        model.module(**inputs, use_cache=False)


@pytest.mark.parametrize("template", [None, "Translate: {sentence} ->"])
def test_likelihoods_and_gates_are_those_of_padded_batches(template):
    model = tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer(), template=template)
    assert model.packs
    for neurons in ([], [(1, 7), (2, 3)]):
        found, expected = (
            tn.behaviour.perplexity(one, SENTENCES, neurons=neurons, **QUIET) for one in (model, padding(model))
        )
        assert found.nll == pytest.approx(expected.nll, rel=1e-5)
        assert found.tokens.tolist() == expected.tokens.tolist() and found.count == expected.count
    from tnkit.measures.specificity.gates import positive_gates

    found, expected = (positive_gates(one, SENTENCES, **QUIET) for one in (model, padding(model)))
    assert found == pytest.approx(expected)
