"""Which tokens an ablation acts on, against plain hooks that change named places and recompute everything each time."""

import copy
from operator import attrgetter

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import tnkit as tn
from tnkit.models.tokens import last_word
from tnkit.testing import IMAGE_TEXT, SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle

WRAPPERS = [name for name in IMAGE_TEXT if name != "paligemma"]
PROMPTS = ["Hello there.", "Hi!", "Ja, ja..."]
OFF = [(layer, neuron) for layer in range(4) for neuron in range(0, 48, 2)]
NEW = 4


def places_of(ids, tokens):
    """The places of a prompt that a scope names."""
    return {
        "last": [len(ids) - 1],
        "last_word": [last_word(byte_tokenizer(), ids)],
        "prompt": list(range(len(ids))),
        "all": None,
    }[tokens]


def decoded(model, prompt, tokens, new=NEW):
    """Greedy decoding of one prompt with neurons off, everything computed again for each token."""
    ids = list(byte_tokenizer()(prompt)["input_ids"])
    places, length = places_of(ids, tokens), len(ids)
    for _ in range(new):
        with torch.inference_mode(), oracle.switched_off(model, OFF, places):
            ids.append(int(model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[length:]


def batch(prompts=PROMPTS):
    """Prompts of unequal length, padded on the left."""
    ids = byte_tokenizer()(list(prompts))["input_ids"]
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[258] * (width - len(one)) + one for one in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids]),
    }


GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 258, "eos_token_id": None}
WAYS = {
    "a cache": {},
    "no cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 4},
    "chunks of one": {"prefill_chunk_size": 1},
    "looked up": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("tokens", ["last", "last_word", "prompt", "all"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gemma3-image-text", "llama"])
def test_generation_equals_full_recomputation(name, way, tokens):
    model = tiny_model(name)
    prompts = PROMPTS[:1] if way == "looked up" else PROMPTS
    inputs = batch(prompts)
    with tn.Ablation(model, OFF, tokens=tokens) as ablation:
        rows = model.module.generate(**inputs, **GREEDY, **WAYS[way])
    assert rows[:, inputs["input_ids"].shape[1] :].tolist() == [decoded(model, prompt, tokens) for prompt in prompts]
    assert "generate" not in vars(model.module)
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    once = {"last": len(prompts), "last_word": len(prompts), "prompt": sum(lengths)}
    if tokens != "all" and way != "no cache":
        assert ablation.count == len(OFF) * once[tokens]
    if tokens != "all" and way == "no cache":
        assert ablation.count == len(OFF) * once[tokens] * NEW


def test_the_oracle_tells_the_scopes_apart():
    model = tiny_model("llama")
    said = {scope: [decoded(model, prompt, scope) for prompt in PROMPTS] for scope in ("last", "prompt", "all")}
    with_none = [list(row[-NEW:]) for row in model.module.generate(**batch(), **GREEDY).tolist()]
    assert len({str(one) for one in (*said.values(), with_none)}) == 4


@pytest.mark.parametrize("tokens", ["last", "last_word", "prompt"])
@pytest.mark.parametrize("how", [{"num_beams": 3, "num_return_sequences": 3}, {"num_beams": 4}])
def test_beams_act_on_each_rows_own_prompt(tokens, how):
    """Every text of a beam search, forced through a full pass with plain hooks, has the score that the search gave."""
    model, inputs = tiny_model("llama"), batch()
    with tn.Ablation(model, OFF, tokens=tokens):
        found = model.module.generate(
            **inputs, **GREEDY, **how, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
        )
    per = len(found.sequences) // len(PROMPTS)
    for number, (row, score) in enumerate(zip(found.sequences, found.sequences_scores, strict=True)):
        prompt = byte_tokenizer()(PROMPTS[number // per])["input_ids"]
        ids = torch.tensor([[*prompt, *row[inputs["input_ids"].shape[1] :].tolist()]])
        with torch.inference_mode(), oracle.switched_off(model, OFF, places_of(prompt, tokens)):
            logits = model.module(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        steps = [logits[place - 1, ids[0, place]] for place in range(len(prompt), ids.shape[1])]
        assert float(sum(steps)) == pytest.approx(float(score), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("way", [{}, {"prefill_chunk_size": 2}, {"cache_implementation": "static"}])
def test_prompts_without_a_mask_and_without_padding(name, way):
    model, ids = tiny_model(name), torch.tensor(byte_tokenizer()(["Ja.", "Hi!"])["input_ids"])
    with tn.Ablation(model, OFF, tokens="last_word") as ablation:
        rows = model.module.generate(input_ids=ids, **GREEDY, **way)
    assert rows[:, ids.shape[1] :].tolist() == [decoded(model, text, "last_word") for text in ("Ja.", "Hi!")]
    assert ablation.count == 2 * len(OFF)


@pytest.mark.parametrize("tokens", ["last", "prompt"])
def test_a_prefix_that_was_cached_before_is_continued(tokens):
    model, ids = tiny_model("llama"), byte_tokenizer()("Hello there")["input_ids"]
    cache = DynamicCache(config=model.module.config)
    with torch.inference_mode():
        model.module(input_ids=torch.tensor([ids[:6]]), past_key_values=cache)
    with tn.Ablation(model, OFF, tokens=tokens) as ablation:
        row = model.module.generate(input_ids=torch.tensor([ids]), past_key_values=cache, **GREEDY)
    places, said = (range(6, len(ids)) if tokens == "prompt" else [len(ids) - 1]), list(ids)
    for _ in range(NEW):
        with torch.inference_mode(), oracle.switched_off(model, OFF, places):
            said.append(int(model.module(input_ids=torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
    assert row[0].tolist() == said
    assert ablation.count == len(OFF) * len(places)


def test_nested_scopes_and_the_models_own_defaults(monkeypatch):
    model, inputs = tiny_model("llama"), batch()
    config = copy.deepcopy(model.module.generation_config)
    config.use_cache = False
    monkeypatch.setattr(model.module, "generation_config", config)
    with tn.Ablation(model, OFF, tokens="last"), tn.Ablation(model, OFF[:1], tokens="prompt"):
        rows = model.module.generate(**inputs, **GREEDY)
        assert "generate" in vars(model.module)
    with tn.Ablation(model, OFF[:1], tokens="prompt"), tn.Ablation(model, OFF, tokens="last"):
        again = model.module.generate(**inputs, generation_config=GenerationConfig(**GREEDY, use_cache=True))
    assert torch.equal(rows, again)
    said = rows[:, inputs["input_ids"].shape[1] :].tolist()
    with tn.Ablation(model, OFF, tokens="last"):
        alone = model.module.generate(**inputs, **GREEDY)
    assert said != alone[:, inputs["input_ids"].shape[1] :].tolist()
    assert "generate" not in vars(model.module)


@pytest.mark.parametrize("tokens", ["last", "last_word", "prompt", "all"])
@pytest.mark.parametrize("name", ["llama", *WRAPPERS])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_unequal_length_are_all_ablated(name, tokens, side):
    model, inputs = tiny_model(name), batch(SENTENCES)
    if side == "right":
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        inputs = {
            key: torch.stack([row.roll(length) for row, length in zip(rows, lengths, strict=True)])
            for key, rows in inputs.items()
        }
    seen, blocks = [], attrgetter(model.blocks_path)(model.module)
    with tn.Ablation(model, OFF, tokens=tokens) as ablation:
        last_map = attrgetter(model.sites[0].last_map)(blocks[1])
        handle = last_map.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., ::2].clone()))
        with torch.inference_mode():
            model.module(**inputs)
        handle.remove()
    zero = (seen[0] == 0).all(dim=-1)
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)):
        real = ids[mask].tolist()
        chosen = places_of(real, tokens)
        expected = [place in (range(len(real)) if chosen is None else chosen) for place in range(len(real))]
        assert zero[row][mask].tolist() == expected
        assert not zero[row][~mask].any()
    assert ablation.count == len(OFF) * int(zero.sum())


def test_nnsights_own_tracing_is_ablated():
    model = tiny_model("llama")
    with tn.Ablation(model, OFF, tokens="last") as ablation:
        with model.lm.generate(batch(), **GREEDY) as tracer:
            rows = tracer.result.save()
    assert rows[0, -NEW:].tolist() == decoded(model, PROMPTS[0], "last")
    assert ablation.count == len(OFF) * len(PROMPTS)
    with tn.Ablation(model, OFF, tokens="last") as ablation:
        with model.lm.trace(batch()):
            logits = model.lm.lm_head.output.save()
    ids = byte_tokenizer()(PROMPTS[0])["input_ids"]
    with torch.inference_mode(), oracle.switched_off(model, OFF, [len(ids) - 1]):
        expected = model.module(input_ids=torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(logits[0, -1], expected, atol=1e-5)
    assert ablation.count == len(OFF) * len(PROMPTS)


@pytest.mark.parametrize("tokens", ["last", "prompt", "last_word"])
def test_what_does_not_tell_the_tokens_is_refused(tokens):
    model, inputs = tiny_model("llama"), batch()
    causal = torch.ones(3, 1, 13, 13).tril() * inputs["attention_mask"][:, None, None]
    whole = torch.where(causal.bool(), 0.0, torch.finfo().min)
    with torch.inference_mode():
        cache = model.module(input_ids=inputs["input_ids"][:1, :5]).past_key_values
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
    for given, message in (
        ({"input_ids": inputs["input_ids"], "attention_mask": whole}, "2-D attention mask"),
        ({"input_ids": inputs["input_ids"][:1, 5:], "past_key_values": cache}, "prompt or decoded"),
        ({"input_ids": inputs["input_ids"][:1], "position_ids": packed}, "one text a row"),
        ({"input_ids": inputs["input_ids"], "attention_mask": 0 * inputs["attention_mask"]}, "whole row padding"),
        ({"input_ids": inputs["input_ids"][:, 5:], "attention_mask": inputs["attention_mask"]}, "prompt or decoded"),
    ):
        with (
            pytest.raises(tn.TnkitError, match=message),
            torch.inference_mode(),
            tn.Ablation(model, OFF, tokens=tokens),
        ):
            model.module(**given)
    with pytest.raises(tn.TnkitError, match="guidance_scale"), tn.Ablation(model, OFF, tokens=tokens):
        model.module.generate(**inputs, **GREEDY, guidance_scale=1.5)
    assert not model.ablations and "generate" not in vars(model.module)


def test_every_token_needs_no_mask_to_be_told():
    model, ids = tiny_model("llama"), batch(PROMPTS[:1])["input_ids"]
    whole = torch.where(torch.ones(1, 1, 13, 13).tril().bool(), 0.0, torch.finfo().min)
    with torch.inference_mode(), tn.Ablation(model, OFF) as ablation:
        found = model.module(input_ids=ids, attention_mask=whole).logits
        cache = model.module(input_ids=ids[:, :5]).past_key_values
        later = model.module(input_ids=ids[:, 5:], past_key_values=cache).logits
    with torch.inference_mode(), oracle.switched_off(model, OFF, None):
        expected = model.module(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5) and torch.allclose(later, expected[:, 5:], atol=1e-5)
    assert ablation.count == 2 * len(OFF) * 13


def test_a_compiled_module_is_refused():
    whole = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(whole, tokenizer=byte_tokenizer())
    whole.model.layers[2].mlp.compile(backend="eager")
    with pytest.raises(tn.TnkitError, match=r"model\.layers\.2\.mlp .* is compiled"), tn.Ablation(model, OFF):
        pass
    assert not model.ablations and "generate" not in vars(whole) and not whole._forward_pre_hooks


def test_an_ablation_that_sets_nothing_is_an_error():
    whole = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(whole, tokenizer=byte_tokenizer())
    mlp = whole.model.layers[1].mlp  # it calls down_proj past its hooks, as compiled code does
    mlp.forward = lambda states: mlp.down_proj.forward(mlp.act_fn(mlp.gate_proj(states)) * mlp.up_proj(states))
    with pytest.raises(tn.TnkitError, match=r"layer\(s\) 1 of .* ran without being ablated"), tn.Ablation(model, OFF):
        whole(**batch())
    with pytest.raises(tn.TnkitError, match="set nothing"), tn.Ablation(model, [(1, 7)]) as ablation:
        ablation._ran = True  # as if the check after each pass had been compiled away
    with tn.Ablation(model, OFF):
        pass  # nothing ran
