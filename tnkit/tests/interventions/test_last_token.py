"""The cached prefix against full passes; interrupts, other ablations, edited weights, windows and unusual caches."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tnkit as tn
from tnkit.interventions import last_token
from tnkit.interventions.last_token import LastToken
from tnkit.testing import (
    ARCHITECTURES,
    IMAGE_TEXT,
    SENTENCES,
    byte_tokenizer,
    redrawn,
    tiny_corpus,
    tiny_model,
    tiny_module,
)

NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]
WRAPPERS = [name for name in IMAGE_TEXT if name != "paligemma"]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *WRAPPERS])
def test_the_cached_prefix_equals_full_passes(name):
    model = tiny_model(name)
    prefix = LastToken(model, SENTENCES, batch_tokens=70, progress=False)
    assert prefix.cached == (name not in ("bloom", "falcon-rw"))
    for neurons, how in ((NEURONS, {}), ([(2, 5)], {"value": 2.0}), ([], {})):
        with tn.Ablation(model, neurons, tokens="last", **how):
            expected = tn.capture(model, SENTENCES, batch_tokens=70, progress=False)
        found = prefix.capture(neurons, **how)
        for site in ("mid", "post", "activations", "scale"):
            assert torch.allclose(getattr(found, site), getattr(expected, site), atol=2e-5, rtol=1e-4), site


@pytest.mark.parametrize("name", [*ARCHITECTURES, *WRAPPERS])
def test_prefixes_that_run_a_few_at_a_time_are_as_if_they_ran_together(name, monkeypatch):
    """What runs in batches of 60 tokens, is padded and put together, against full passes and one batch of all."""
    model = tiny_model(name)
    together = LastToken(model, SENTENCES, progress=False)
    if not together.cached:
        return
    monkeypatch.setattr(last_token, "roomy", lambda *_, **__: 60)
    runs, cache = [], LastToken._cache
    monkeypatch.setattr(LastToken, "_cache", lambda self, *given: runs.append(len(given[0])) or cache(self, *given))
    prefix = LastToken(model, SENTENCES, progress=False)
    assert len(prefix._batches) == len(together._batches) == 1 and len(runs) > 3
    with tn.Ablation(model, NEURONS, tokens="last"):
        expected = tn.capture(model, SENTENCES, progress=False)
    found, at_once = prefix.capture(NEURONS), together.capture(NEURONS)
    for site in ("mid", "post", "activations", "scale"):
        assert torch.allclose(getattr(found, site), getattr(expected, site), atol=2e-5, rtol=1e-4), site
        assert torch.allclose(getattr(found, site), getattr(at_once, site), atol=1e-6, rtol=1e-5), site


@pytest.mark.parametrize("outer", ["last", "last_word", "prompt", "all"])
def test_prefixes_that_run_a_few_at_a_time_are_ablated_too(outer, monkeypatch):
    monkeypatch.setattr(last_token, "roomy", lambda *_, **__: 60)
    model = tiny_model("gemma3")
    captured = tn.capture(model, SENTENCES, keep=["activations"], position="mean", progress=False)
    for how in ({"scale": 3.0}, {"value": "resampled", "of": captured}):
        with tn.Ablation(model, [(0, 9), (2, 2)], tokens=outer, **how):
            prefix = LastToken(model, SENTENCES, keep=["post"], progress=False)
            assert prefix.cached
            with tn.Ablation(model, NEURONS, tokens="last"):
                expected = tn.capture(model, SENTENCES, keep=["post"], progress=False).post
            assert torch.allclose(prefix.capture(NEURONS).post, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("bloom", "falcon-rw")])
def test_prefixes_run_no_further_than_the_last_layer_that_is_captured(name):
    model, above = copy.deepcopy(tiny_model(name)), []
    layers = {"keep": ["post"], "layers": [0, 1], "progress": False}
    with tn.Ablation(model, NEURONS, tokens="last"):
        expected = tn.capture(model, SENTENCES, **layers).post
    for block in model.blocks[2:]:
        for child in block.children():
            child.register_forward_hook(lambda *_: above.append(1))
    prefix = LastToken(model, SENTENCES, **layers)
    assert prefix.cached
    assert torch.allclose(prefix.capture(NEURONS).post, expected, atol=2e-5, rtol=1e-4)
    assert not above
    with tn.Ablation(model, [(3, 5)]), tn.Ablation(model, NEURONS, tokens="last"):
        assert LastToken(model, SENTENCES, **layers).cached


def test_the_cached_prefix_survives_captures_that_stop_early():
    model = tiny_model("qwen3")
    prefix = LastToken(model, SENTENCES, keep=["post"], layers=[0, 1], progress=False)
    first = prefix.capture(NEURONS).post
    assert all(torch.equal(prefix.capture(NEURONS).post, first) for _ in range(3))


def test_a_sentence_longer_than_the_window_is_run_in_full():
    model = tiny_model("mistral")
    sentences = ["x" * 80, "short"]
    assert not LastToken(model, sentences, keep=["post"], progress=False).cached


OTHERS = {
    "gpt_neo": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "num_heads": 4,
        "window_size": 16,
        "max_position_embeddings": 128,
    },
    "qwen3_5_text": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "llama4_text": {"attention_chunk_size": 16, "moe_layers": [], "intermediate_size_mlp": 48},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "global_head_dim": 8, "sliding_window": 64},
}


def other_model(name):
    options = OTHERS[name] if name == "gpt_neo" else ARCHITECTURES["llama"][1] | OTHERS[name]
    special = {"vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    module = redrawn(AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **special, **options)))
    return tn.load_model(module, tokenizer=byte_tokenizer())


@pytest.mark.parametrize("name", OTHERS)
def test_windows_chunks_and_unusual_caches_are_run_in_full(name):
    model = other_model(name)
    prefix = LastToken(model, SENTENCES, keep=["post"], progress=False)
    assert prefix.cached == (name == "gemma4_text")
    with tn.Ablation(model, NEURONS, tokens="last"):
        expected = tn.capture(model, SENTENCES, keep=["post"], progress=False).post
    assert torch.allclose(prefix.capture(NEURONS).post, expected, atol=2e-5, rtol=1e-4)


def test_a_prefix_that_gives_other_states_is_not_kept(monkeypatch):
    """A window that no configuration tells of: what the longest sentence gives decides."""
    monkeypatch.setattr("tnkit.models.model.Model.window", None)
    assert not LastToken(other_model("gpt_neo"), SENTENCES, progress=False).cached
    assert LastToken(other_model("gpt_neo"), ["Hi", "Hello"], progress=False).cached


def test_ablate_runs_on_a_model_whose_cache_cannot_be_cropped():
    test = tiny_corpus()["test"]
    some = tn.NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    model = other_model("qwen3_5_text")
    found = tn.ablate(model, test, some, language="ja", controls=tn.controls(some), seeds=1, progress=False)
    assert found.layers == (0, 1, 2, 3)


class stopped:
    """A module's layer raises KeyboardInterrupt at its nth call from now on."""

    def __init__(self, module, nth, after):
        self.module, self.left, self.after = module, nth, after

    def __enter__(self):
        register = self.module.register_forward_hook if self.after else self.module.register_forward_pre_hook
        self.handle = register(self.hook)

    def hook(self, *_):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", [0, 1])
def test_an_interrupt_leaves_the_prefix_as_it_was(layer, after, nth):
    model = tiny_model("llama")
    prefix = LastToken(model, SENTENCES, keep=["post"], batch_tokens=60, progress=False)
    expected = prefix.capture(NEURONS).post
    for part in ("mlp", "self_attn"):
        with pytest.raises(KeyboardInterrupt), stopped(getattr(model.module.model.layers[layer], part), nth, after):
            prefix.capture(NEURONS)
        assert not model.ablations
        assert torch.equal(prefix.capture(NEURONS).post, expected)
    with pytest.raises(KeyboardInterrupt), stopped(model.module.model.layers[layer], nth, after):
        LastToken(model, SENTENCES, keep=["post"], batch_tokens=60, progress=False)
    assert torch.equal(tn.capture(model, SENTENCES, keep=["post"], progress=False).post[:, :1], clean(model))


def clean(model):
    """The first sentence's states, by the module alone."""
    ids, states = torch.tensor([byte_tokenizer()(SENTENCES[0])["input_ids"]]), []
    handles = [
        layer.register_forward_hook(lambda _, __, output: states.append(output[0, -1]))
        for layer in model.module.model.layers
    ]
    with torch.inference_mode():
        model.module(input_ids=ids)
    for handle in handles:
        handle.remove()
    found = tn.capture(model, SENTENCES[:1], keep=["post"], progress=False).post
    assert torch.allclose(found[:, 0], torch.stack(states), atol=1e-5)
    return tn.capture(model, SENTENCES, keep=["post"], progress=False).post[:, :1]


@pytest.mark.parametrize("outer", ["last", "last_word", "prompt", "all"])
def test_inside_another_ablation_both_act(outer):
    model = tiny_model("gemma3")
    with tn.Ablation(model, [(0, 9), (2, 2)], tokens=outer, scale=3.0) as ablation:
        prefix = LastToken(model, SENTENCES, progress=False)
        assert prefix.cached
        found = prefix.capture(NEURONS)
        with tn.Ablation(model, NEURONS, tokens="last"):
            expected = tn.capture(model, SENTENCES, progress=False)
        assert found.provenance["ablations"] == expected.provenance["ablations"]
        assert found.provenance["ablations"][0] == ablation.about
    for site in ("mid", "post", "activations"):
        assert torch.allclose(getattr(found, site), getattr(expected, site), atol=5e-5, rtol=1e-4)
    with pytest.raises(tn.TnkitError, match="under other ablations"):
        prefix.capture(NEURONS)


def test_what_changed_since_is_refused():
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    prefix = LastToken(model, SENTENCES, keep=["post"], progress=False)
    before = prefix.capture(NEURONS).post
    with tn.Ablation(model, NEURONS), pytest.raises(tn.TnkitError, match="under other ablations"):
        prefix.capture(NEURONS)
    weight = model.module.model.layers[0].mlp.up_proj.weight
    old = weight.data[3, 4].clone()
    weight.data[3, 4] += 1
    with pytest.raises(tn.TnkitError, match="was changed after this LastToken was made"):
        prefix.capture(NEURONS)
    weight.data[3, 4] = old
    assert torch.equal(prefix.capture(NEURONS).post, before)


@pytest.mark.parametrize(
    "edit",
    [
        lambda module: module.model.rotary_emb.inv_freq.mul_(1.7),
        lambda module: setattr(module.model.layers[1].self_attn, "scaling", 3.0),
        lambda module: setattr(module.model.layers[1].mlp, "act_fn", torch.nn.Tanh().eval()),
        lambda module: module.model.norm.weight.data.mul_(2),
    ],
    ids=["buffer", "attribute", "activation function", "weight"],
)
def test_a_prefix_of_a_model_that_was_changed_is_refused(edit):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    prefix = LastToken(model, SENTENCES[:3], keep=["post"], progress=False)
    prefix.capture([(1, 7)])
    edit(module)
    with pytest.raises(tn.TnkitError, match="was changed after this LastToken was made"):
        prefix.capture([(1, 7)])
