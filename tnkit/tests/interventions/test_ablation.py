"""Ablation against plain PyTorch hooks, in captures and in generation; exact restoring; threads and wrappers."""

import copy
import itertools
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from operator import attrgetter

import pytest
import torch

import tnkit as tn
from tnkit.interventions.last_token import LastToken
from tnkit.models import sessions
from tnkit.testing import ARCHITECTURES, IMAGE_TEXT, SENTENCES, byte_tokenizer, held, tiny_model, tiny_module
from tnkit.tests.oracle import assert_near

NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]
OTHER = {"model": {"weights": "0" * 32}}  # provenance
WRAPPERS = [name for name in IMAGE_TEXT if name != "paligemma"]
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def means_of(activations, layers=(0, 1, 2, 3), **provenance):
    """A capture that holds these activations."""
    return tn.Activations(layers, torch.arange(activations.shape[1]), activations=activations, provenance=provenance)


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

        handles.append(attrgetter(model.sites[0].last_map)(blocks[layer]).register_forward_pre_hook(hook))
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
        *((name, {}) for name in (*ARCHITECTURES, *WRAPPERS)),
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
    with tn.Ablation(model, NEURONS, value="mean", of=means):
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
    last_map = attrgetter(model.sites[0].last_map)(attrgetter(model.blocks_path)(module)[1])
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tokens": "some"}, "tokens='some' must be one of last, prompt, all"),
        ({"value": "median"}, "value='median' must be a number, or 'mean' or 'resampled'"),
        ({"value": "mean"}, "value='mean' needs of=a capture"),
        ({"value": "resampled"}, "value='resampled' needs of=a capture"),
        ({"value": float("nan")}, "value=nan must be a finite number"),
        ({"value": float("-inf")}, "value=-inf must be a finite number"),
        ({"value": 1e300}, r"that torch\.float32 cannot hold"),
        ({"scale": float("nan")}, "scale=nan must be a finite number"),
        ({"value": 0.0, "scale": 2.0}, "give one of them"),
        ({"of": held(torch.ones(4, 2, 32))}, "of= is only for value='mean'"),
        ({"value": 1.0, "of": held(torch.ones(4, 2, 32))}, "of= is only for value='mean'"),
        ({"scale": {0: float("inf")}}, "scale=inf must be a finite number"),
        ({"scale": {0: 1.0, 1: 1.0}}, "scale= has layers 0, 1, not 3"),
        ({"add": 1.0, "of": held(torch.ones(4, 2, 32))}, "needs of= and minus="),
        ({"minus": held(torch.ones(4, 2, 32))}, "minus= is only for add="),
        ({"neurons": tn.Intervention(NEURONS), "scale": 2.0}, "scale was given beside it"),
        ({"value": "mean", "of": held(torch.ones(4, 2, 32))}, "not activations"),
        ({"value": "mean", "of": means_of(torch.ones(4, 0, 48))}, "at least one sentence"),
        ({"value": "mean", "of": means_of(torch.ones(4, 2, 40))}, "40 activations a layer"),
        ({"value": "mean", "of": means_of(torch.ones(2, 2, 48), (0, 1))}, r"holds layers \(0, 1\), not 3"),
        ({"value": "mean", "of": means_of(torch.ones(4, 2, 48), ablations=[{}])}, "from the untouched model"),
        ({"value": "mean", "of": means_of(torch.ones(4, 2, 48), **OTHER)}, "given as of= or minus= were made"),
        (
            {"neurons": tn.NeuronSet(((0, 1),), (4, 48), provenance={"model": {"weights": "0" * 32}})},
            "neurons were made",
        ),
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


def test_every_wrapper_of_a_module_tells_that_it_is_ablated(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    module = copy.deepcopy(tiny_module("llama"))
    first, second = (tn.load_model(module, tokenizer=byte_tokenizer()) for _ in range(2))
    with tn.Ablation(first, NEURONS) as ablation:
        assert second.ablations == [ablation.about]
        off = tn.capture(second, SENTENCES, cache=True, progress=False)
        assert off.provenance["ablations"] == [ablation.about]
        assert (off.activations[1, :, 7] == 0).all()
    assert second.ablations == []
    untouched = tn.capture(second, SENTENCES, cache=True, progress=False)
    assert "ablations" not in untouched.provenance
    assert torch.equal(untouched.post, tn.capture(tiny_model("llama"), SENTENCES, progress=False).post)
    with pytest.raises(AttributeError):
        first.ablations = []


def test_an_error_on_entering_leaves_nothing_behind(monkeypatch):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    before = tn.capture(model, SENTENCES, progress=False).post
    last_map = module.model.layers[3].mlp.down_proj
    monkeypatch.setattr(last_map, "register_forward_pre_hook", lambda *_: 1 / 0)
    ablation = tn.Ablation(model, NEURONS)
    with pytest.raises(ZeroDivisionError), ablation:
        pass
    assert not model.ablations and "generate" not in vars(module)
    assert not any(child._forward_pre_hooks or child._forward_hooks_always_called for child in module.modules())
    assert torch.equal(tn.capture(model, SENTENCES, progress=False).post, before)
    monkeypatch.undo()
    with ablation:  # it is not active, and other threads have their turn
        assert len(model.ablations) == 1


def test_four_threads_capture_and_ablate_as_one_does():
    model = tiny_model("llama")
    sets = [[], NEURONS, [(2, 5)], [(0, 1), (3, 3)]]
    prefix = LastToken(model, SENTENCES, keep=["post"], progress=False)

    def run(number, _):
        with tn.Ablation(model, sets[number], tokens="last") if sets[number] else nullcontext():
            found = tn.capture(model, SENTENCES, keep=["post"], batch_tokens=60, progress=False)
        nats = tn.behaviour.perplexity(model, SENTENCES[:2], neurons=sets[number], progress=False).nll
        return found.post, prefix.capture(sets[number]).post, torch.tensor(nats), found.provenance.get("ablations")

    def equal(one, other):
        return all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True)) and one[3] == other[3]

    serial = [run(number, 0) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(number, pool.submit(run, number, time)) for time in range(4) for number in range(4)]
        assert all(equal(job.result(), serial[number]) for number, job in jobs)
    assert not model.ablations


def test_another_thread_waits_and_does_not_run_the_ablated_module(caplog, monkeypatch):
    monkeypatch.setattr(sessions, "_PATIENCE", 0.05)
    model, ids = tiny_model("llama"), torch.tensor([[256, 72, 105]])
    expected = tn.capture(model, ["Hi"], progress=False).post
    with ThreadPoolExecutor(1) as pool:
        with tn.Ablation(model, NEURONS):
            assert pool.submit(lambda: model.ablations).result() == []
            for run in (lambda: model.module(input_ids=ids), lambda: model.module.generate(input_ids=ids)):
                with pytest.raises(tn.TnkitError, match="another thread has ablated this module"):
                    pool.submit(run).result()
            waiting = pool.submit(tn.capture, model, ["Hi"], progress=False)
            deadline = time.monotonic() + 60
            while "waiting for another thread" not in caplog.text and time.monotonic() < deadline:
                assert not wait([waiting], timeout=0.01).done
        assert torch.equal(waiting.result().post, expected)
    assert "waiting for another thread" in caplog.text


def test_an_ablation_is_left_in_the_thread_that_entered_it():
    model = tiny_model("llama")
    expected = tn.capture(model, SENTENCES[:2], progress=False).post
    ablation = tn.Ablation(model, NEURONS)
    with ThreadPoolExecutor(1) as pool:
        with ablation:
            with pytest.raises(tn.TnkitError, match="entered in another thread"):
                pool.submit(ablation.__exit__, None, None, None).result()
            assert (tn.capture(model, SENTENCES[:2], progress=False).activations[1, :, 7] == 0).all()
        assert torch.equal(pool.submit(tn.capture, model, SENTENCES[:2], progress=False).result().post, expected)


def test_a_copy_of_a_model_works_on_its_own():
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    expected = tn.capture(model, SENTENCES[:2], progress=False).post
    other = copy.deepcopy(model)
    assert torch.equal(tn.capture(other, SENTENCES[:2], progress=False).post, expected)
    with tn.Ablation(other, NEURONS):
        assert not model.ablations
        assert not torch.equal(tn.capture(other, SENTENCES[:2], progress=False).post, expected)
        assert torch.equal(tn.capture(model, SENTENCES[:2], progress=False).post, expected)
        for one in (other, other.module):
            with pytest.raises(tn.TnkitError, match="cannot be copied inside an Ablation"):
                copy.deepcopy(one)
    other.module.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    assert torch.equal(tn.capture(model, SENTENCES[:2], progress=False).post, expected)
    assert not torch.equal(tn.capture(other, SENTENCES[:2], progress=False).post, expected)


def interrupting(code, nth):
    """A profiler that sends SIGINT at the nth call that a function makes, itself included; and how many it has made."""
    calls = [0]

    def profile(frame, event, _):
        inner = frame
        while inner is not None and inner.f_code is not code:
            inner = inner.f_back
        if inner is not None and event == "call":
            calls[0] += 1
            if calls[0] == nth:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    return profile, calls


@pytest.mark.parametrize("method", ["__enter__", "__exit__"])
def test_an_interrupt_on_entering_or_leaving_comes_after_it(method):
    """Ctrl-C arrives at a call that entering or leaving makes; no hook stays, and the interrupt is not lost."""
    model, before = tiny_model("llama"), signal.getsignal(signal.SIGINT)
    plain = tn.capture(model, SENTENCES[:2], keep=["post"], progress=False).post
    for nth in itertools.chain(range(1, 50), itertools.count(50, 211)):
        profile, calls = interrupting(getattr(tn.Ablation, method).__code__, nth)
        stopped = False
        try:
            sys.setprofile(profile)
            with tn.Ablation(model, NEURONS, tokens="last"), tn.Ablation(model, NEURONS[:1]):
                pass
        except KeyboardInterrupt:
            stopped = True
        finally:
            sys.setprofile(None)
        assert not model.ablations and signal.getsignal(signal.SIGINT) is before
        assert not model.module.model._forward_pre_hooks and "generate" not in vars(model.module)
        if not stopped:
            assert 50 < calls[0] < nth
            break
    assert torch.equal(tn.capture(model, SENTENCES[:2], keep=["post"], progress=False).post, plain)


def test_neurons_and_means_are_checked_again_on_entering():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    means = tn.capture(model, SENTENCES[:2], keep=["activations"], progress=False)
    ablation = tn.Ablation(model, NEURONS, value="mean", of=means)
    module.model.layers[0].mlp.down_proj.weight.data.mul_(2)
    with pytest.raises(tn.TnkitError, match="given as of= or minus= were made with"), ablation:
        pass
    assert not model.ablations


def test_a_model_is_not_loaded_inside_an_ablation():
    model = tiny_model("llama")
    with tn.Ablation(model, []), pytest.raises(tn.TnkitError, match="is inside an Ablation"):
        tn.load_model(model.module, tokenizer=byte_tokenizer())


@pytest.mark.parametrize("layers", [None, [0, 1]])
@pytest.mark.parametrize("path", ["", ".mlp.down_proj", ".post_attention_layernorm"])
def test_a_hook_that_changes_what_is_read_is_refused_and_one_that_watches_is_not(path, layers):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    child, seen = module.get_submodule(f"model.layers.1{path}"), []
    expected = tn.capture(model, SENTENCES[:2], layers=layers, progress=False)
    watching = child.register_forward_hook(lambda *_: seen.append(1))
    found = tn.capture(model, SENTENCES[:2], layers=layers, progress=False)
    assert seen and torch.equal(found.mid, expected.mid)
    assert torch.allclose(found.post, expected.post, rtol=1e-5, atol=1e-6)  # the last MLP then runs every token
    watching.remove()
    for change in (lambda _, __, output: output * 2, lambda _, __, output: output.mul_(2)):
        handle = child.register_forward_hook(change)
        with pytest.raises(tn.TnkitError, match=f"model.layers.1{path} has the hook tnkit.tests.*remove"):
            tn.capture(model, SENTENCES[:2], layers=layers, progress=False)
        handle.remove()
    if not path.endswith("proj"):
        handle = child.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
        with pytest.raises(tn.TnkitError, match=f"model.layers.1{path} has the hook"):
            tn.capture(model, SENTENCES[:2], layers=layers, progress=False)
        handle.remove()
    assert torch.equal(tn.capture(model, SENTENCES[:2], layers=layers, progress=False).post, expected.post)


def test_a_hook_of_the_last_block_and_one_of_every_module_are_refused():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    handle = module.model.layers[3].register_forward_hook(lambda _, __, output: output * 2)
    with pytest.raises(tn.TnkitError, match=r"model.layers.3 has the hook"):
        tn.capture(model, SENTENCES[:2], progress=False)
    handle.remove()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(tn.TnkitError, match="every module has the hook"):
            tn.capture(model, SENTENCES[:2], progress=False)
    finally:
        handle.remove()
