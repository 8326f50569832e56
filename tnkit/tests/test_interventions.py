"""Ablation against plain PyTorch hooks, in captures and in generation; exact restoring; the cached prefix."""

from operator import attrgetter

import pytest
import torch
from transformers import AutoModelForCausalLM

import tnkit as tn
from tnkit.last_token import LastToken
from tnkit.tests.oracle import assert_near
from tnkit.tests.tiny import ARCHITECTURES, SENTENCES, byte_tokenizer, tiny_model, tiny_module

NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def plain(name, ids, places, change):
    """The last layer's output of one unpadded sentence, with activations changed at some tokens by plain hooks."""
    model, module = tiny_model(name), tiny_module(name)
    blocks, handles, found = attrgetter(model.blocks_path)(module), [], []
    for layer in {layer for layer, _ in NEURONS}:
        columns = [neuron for at, neuron in NEURONS if at == layer]

        def hook(_, args, columns=columns):
            whole = args[0].clone()
            flat = whole.reshape(ids.shape[1], -1)
            for place in places:
                for column in columns:
                    flat[place, column] = change(flat[place, column])
            return (whole,)

        handles.append(attrgetter(model.sites.last_map)(blocks[layer]).register_forward_pre_hook(hook))
    keep = lambda _, __, output: found.append((output[0] if isinstance(output, tuple) else output)[0, -1])  # noqa: E731
    handles.append(blocks[-1].register_forward_hook(keep))
    with torch.inference_mode():
        module(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found[0]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, {}) for name in ARCHITECTURES),
        *((n, h) for n in ("opt", "gemma3") for h in ({"value": 1.5}, {"scale": -2.0})),
    ],
)
@pytest.mark.parametrize("tokens", ["last", "all"])
def test_every_mode_equals_plain_hooks(name, tokens, how):
    model = tiny_model(name)
    with tn.Ablation(model, NEURONS, tokens=tokens, **how) as ablation:
        found = tn.capture(model, SENTENCES[:3], keep=["post"], progress=False).post[-1]
    change = (lambda old: old * how["scale"]) if "scale" in how else (lambda _: how.get("value", 0.0))
    lengths = []
    for number, sentence in enumerate(SENTENCES[:3]):
        ids = torch.tensor([byte_tokenizer()(sentence)["input_ids"]])
        lengths.append(ids.shape[1])
        places = [ids.shape[1] - 1] if tokens == "last" else range(ids.shape[1])
        expected = plain(name, ids, places, change)
        assert_near(found[number], expected)
    assert ablation.count == len(NEURONS) * (3 if tokens == "last" else sum(lengths))


@every_architecture
def test_the_cached_prefix_equals_full_passes(name):
    model = tiny_model(name)
    prefix = LastToken(model, SENTENCES, batch_tokens=70, progress=False)
    assert prefix.cached == (name not in ("bloom", "falcon-rw"))
    for neurons, how in ((NEURONS, {}), ([(2, 5)], {"value": 2.0}), ([], {})):
        with tn.Ablation(model, neurons, tokens="last", **how):
            expected = tn.capture(model, SENTENCES, batch_tokens=70, progress=False)
        found = prefix.capture(neurons, **how)
        for site in ("mid", "post", "activations", "scale"):
            assert_near(getattr(found, site), getattr(expected, site))


def test_the_cached_prefix_survives_captures_that_stop_early():
    model = tiny_model("qwen3")
    prefix = LastToken(model, SENTENCES, keep=["post"], layers=[0, 1], progress=False)
    first = prefix.capture(NEURONS).post
    assert all(torch.equal(prefix.capture(NEURONS).post, first) for _ in range(3))


def test_a_sentence_longer_than_the_window_is_run_in_full():
    model = tiny_model("mistral")
    sentences = ["x" * 80, "short"]
    assert not LastToken(model, sentences, keep=["post"], progress=False).cached


@every_architecture
def test_ablating_nothing_changes_nothing_bit_for_bit(name):
    model = tiny_model(name)
    before = tn.capture(model, SENTENCES, progress=False)
    with tn.Ablation(model, []):
        inside = tn.capture(model, SENTENCES, progress=False)
    with tn.Ablation(model, NEURONS):
        other = tn.capture(model, SENTENCES, progress=False)
    after = tn.capture(model, SENTENCES, progress=False)
    for site in ("mid", "post", "activations"):
        assert torch.equal(getattr(before, site), getattr(inside, site))
        assert torch.equal(getattr(before, site), getattr(after, site))
    assert not torch.equal(before.post, other.post)


def test_the_mean_is_that_of_the_given_capture():
    model = tiny_model("llama")
    means = tn.capture(model, SENTENCES, progress=False)
    with tn.Ablation(model, NEURONS, value="mean", means=means):
        found = tn.capture(model, SENTENCES[:2], progress=False)
    for layer, neuron in NEURONS:
        expected = means.activations[layer, :, neuron].mean()
        assert torch.allclose(found.activations[layer, :, neuron], expected, atol=1e-6)


def test_contexts_nest_and_an_error_restores_the_model():
    model = tiny_model("llama")
    before = tn.capture(model, SENTENCES, progress=False).post
    with pytest.raises(ZeroDivisionError), tn.Ablation(model, [(0, 1)], value=4.0):
        with tn.Ablation(model, [(0, 1)], scale=0.5), tn.Ablation(model, [(2, 2)]):
            inside = tn.capture(model, SENTENCES, progress=False)
            assert inside.activations[0, :, 1].tolist() == [2.0] * len(SENTENCES)
            assert inside.activations[2, :, 2].tolist() == [0.0] * len(SENTENCES)
            assert len(inside.provenance["ablations"]) == 3
        raise ZeroDivisionError
    assert torch.equal(tn.capture(model, SENTENCES, progress=False).post, before)
    assert model.ablations == []


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "opt", "bloom"])
@pytest.mark.parametrize("tokens", ["last", "prompt", "all"])
def test_token_scopes_mean_what_they_say_under_generation(name, tokens):
    """Left-padded prompts, four new tokens; those fed back are set under "all" only (the last one is never fed)."""
    model, module, tokenizer = tiny_model(name), tiny_module(name), byte_tokenizer()
    prompts = [tokenizer(text)["input_ids"] for text in ("Hello there", "Hi")]
    width = max(map(len, prompts))
    ids = torch.tensor([[258] * (width - len(one)) + one for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    seen = []
    last_map = attrgetter(model.sites.last_map)(attrgetter(model.blocks_path)(module)[1])
    with tn.Ablation(model, [(1, 7)], value=9.0, tokens=tokens) as ablation:
        handle = last_map.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].reshape(2, -1, model.n_neurons)[..., 7].clone())
        )
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 258}
        module.generate(input_ids=ids, attention_mask=mask, **options)
        handle.remove()
    prompt, *decoded = [values == 9.0 for values in seen]
    assert len(decoded) == 3
    expected = {
        "last": [[False] * (width - 1) + [True]] * 2,
        "prompt": mask.bool().tolist(),
        "all": mask.bool().tolist(),
    }
    assert prompt.tolist() == expected[tokens]
    assert all(bool(step.all()) == (tokens == "all") and bool(step.any()) == (tokens == "all") for step in decoded)
    assert ablation.count == sum(map(sum, expected[tokens])) + (6 if tokens == "all" else 0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "llama-bias"])
def test_an_exported_checkpoint_equals_the_ablation(name, tmp_path):
    model = tiny_model(name)
    folder = tn.export_ablated(model, NEURONS, tmp_path / "off")
    other = tn.load_model(AutoModelForCausalLM.from_pretrained(folder), tokenizer=byte_tokenizer())
    with tn.Ablation(model, NEURONS, tokens="all"):
        expected = tn.capture(model, SENTENCES, keep=["post"], progress=False).post
    assert_near(tn.capture(other, SENTENCES, keep=["post"], progress=False).post, expected)
    assert tn.load_model(tiny_module(name), tokenizer=byte_tokenizer()).weights_hash == model.weights_hash
    with pytest.raises(tn.TnkitError, match="is there already"):
        tn.export_ablated(model, NEURONS, folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tokens": "some"}, "tokens='some' must be one of last, prompt, all"),
        ({"value": "median"}, "value='median' must be a number, or 'mean'"),
        ({"value": "mean"}, "with means=a capture"),
        ({"neurons": [(4, 0)]}, r"neuron \(4, 0\) is outside a model of 4 layers"),
        ({"neurons": tn.NeuronSet((), (2, 9))}, r"and .* has \(4, 48\)"),
    ],
)
def test_what_cannot_be_ablated_is_refused(arguments, words):
    with pytest.raises(tn.TnkitError, match=words):
        tn.Ablation(tiny_model(), **({"neurons": NEURONS} | arguments))
    assert tiny_model().ablations == []


def test_an_ablation_is_entered_once():
    ablation = tn.Ablation(tiny_model(), NEURONS)
    with ablation, pytest.raises(tn.TnkitError, match="active already"):
        ablation.__enter__()
    assert tiny_model().ablations == []
