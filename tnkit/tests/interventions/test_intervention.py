"""What neurons are set to, against plain PyTorch hooks: in captures, from a cached prefix, in generation."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

import tnkit as tn
from tnkit.models.tokens import last_word
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle

NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]
QUIET = {"progress": False}
THREE = ("llama", "gemma3", "gpt-neox")  # plain, with norms around each branch, with parallel branches
OTHERS = ["Das Wetter ist heute schön.", "¡Hola!", "Où est la gare?", "Ein Hund.", "Tre case."]
WAYS = ("mean", "means", "resampled", "scale", "scales", "add")


FIRST, SECOND = OTHERS[:3], OTHERS[3:]


@cache
def captured(model, first=True):
    """A capture of three sentences, or of two others."""
    return capture(model, FIRST if first else SECOND)


def capture(model, sentences):
    return tn.capture(model, sentences, keep=["activations"], **QUIET)


def intervention(model, way):
    """One of each kind."""
    first, second = captured(model), captured(model, first=False)
    return {
        "mean": lambda: tn.Intervention(NEURONS, value="mean", of=first),
        "means": lambda: tn.Intervention(NEURONS, value="mean", of={"a": first, "b": second}),
        "resampled": lambda: tn.Intervention(NEURONS, value="resampled", of=[first, second], seed=3),
        "scale": lambda: tn.Intervention(NEURONS, scale=-2.0),
        "scales": lambda: tn.Intervention(NEURONS, scale={0: 0.5, 1: 0.0, 2: 1.0, 3: 4.0}),
        "add": lambda: tn.Intervention(NEURONS, add=2.5, of=first, minus=[second]),
    }[way]()


def change_of(model, way, row=None):
    """What it makes of activations, written out; a row of the pooled captures where they are resampled."""
    first, second = captured(model).activations, captured(model, first=False).activations
    pooled = torch.cat([first, second], dim=1)
    return {
        "mean": lambda layer, columns, _: first[layer][:, columns].mean(0),
        "means": lambda layer, columns, _: (first[layer][:, columns].mean(0) + second[layer][:, columns].mean(0)) / 2,
        "resampled": lambda layer, columns, _: pooled[layer, row, columns],
        "scale": lambda _, __, old: -2.0 * old,
        "scales": lambda layer, _, old: {0: 0.5, 1: 0.0, 3: 4.0}[layer] * old,
        "add": lambda layer, columns, old: old + 2.5 * (first[layer].mean(0) - second[layer].mean(0))[columns],
    }[way]


def drawn(model, found, number):
    """The one row of the pooled captures from which all neurons of a captured sentence come."""
    pooled = torch.cat([captured(model).activations, captured(model, first=False).activations], dim=1)
    layers, columns = map(list, zip(*NEURONS, strict=True))
    (same,) = (pooled[layers, :, columns] == found.activations[layers, number, columns][:, None]).all(0).nonzero().T
    assert len(same) == 1
    return int(same)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", ["last", "last_word", "all"])
def test_captures_equal_plain_hooks(name, way, tokens):
    model, asked = tiny_model(name), intervention(tiny_model(name), way)
    position = "last_word" if tokens == "last_word" else "last"
    with tn.Ablation(model, asked, tokens=tokens) as ablation:
        found = tn.capture(model, SENTENCES[:4], position=position, **QUIET)
    assert found.provenance["ablations"] == [ablation.about]
    for number, sentence in enumerate(SENTENCES[:4]):
        ids = byte_tokenizer()(sentence)["input_ids"]
        read = last_word(byte_tokenizer(), ids) if tokens == "last_word" else len(ids) - 1
        places, states = None if tokens == "all" else [read], []
        change = change_of(model, way, drawn(model, found, number) if way == "resampled" else None)
        with torch.inference_mode(), oracle.switched_off(model, NEURONS, places, change):
            states = oracle.hooked(model.module, model.blocks_path, model.sites, torch.tensor([ids]))
        oracle.assert_near(found.post[-1, number].double(), states["post"][-1][read])


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("position", ["last", "last_word"])
def test_a_cached_prefix_gives_what_a_full_pass_gives_in_any_batch_and_order(name, way, position):
    model, asked = tiny_model(name), intervention(tiny_model(name), way)
    with tn.Ablation(model, asked, tokens=position):
        full = tn.capture(model, SENTENCES, position=position, **QUIET)
        single = [tn.capture(model, [text], position=position, **QUIET) for text in SENTENCES]
        turned = tn.capture(model, SENTENCES[::-1], position=position, batch_tokens=50, **QUIET)
    prefix = tn.LastToken(model, SENTENCES, position=position, batch_tokens=70, **QUIET)
    assert prefix.cached
    for other in (prefix.capture(asked).post, torch.cat([one.post for one in single], 1), turned.post.flip(1)):
        oracle.assert_near(other, full.post, 2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", ["last", "last_word", "prompt", "all"])
@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"prefill_chunk_size": 4}], ids=["cache", "none", "chunks"])
def test_generation_equals_full_recomputation(way, tokens, how):
    model, asked = tiny_model("llama"), intervention(tiny_model("llama"), way)
    asked = intervention(model, way)
    prompts = [byte_tokenizer()(text)["input_ids"] for text in ("Hello there.", "Hi!", "Ja, ja...")]
    width = max(map(len, prompts))
    ids = torch.tensor([[258] * (width - len(one)) + one for one in prompts])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 258, "eos_token_id": None, **how}
    with tn.Ablation(model, asked, tokens=tokens):
        rows = model.module.generate(input_ids=ids, attention_mask=(ids != 258).long(), **options)
    for row, prompt in zip(rows, prompts, strict=True):
        last = last_word(byte_tokenizer(), prompt)
        places = {"last": [len(prompt) - 1], "last_word": [last], "prompt": range(len(prompt)), "all": None}[tokens]
        until = last + 1 if tokens == "last_word" else len(prompt)
        change = change_of(model, way, asked.draw(prompt[:until]) if way == "resampled" else None)
        said = list(prompt)
        for _ in range(4):
            with torch.inference_mode(), oracle.switched_off(model, NEURONS, places, change):
                said.append(int(model.module(input_ids=torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
        assert row[width:].tolist() == said[len(prompt) :]


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("how", [{"scale": 1.0}, {"scale": dict.fromkeys(range(4), 1.0)}, {"add": 0.0}])
def test_a_dose_of_nothing_changes_no_bit(name, how):
    model = tiny_model(name)
    if "add" in how:
        how = how | {"of": captured(model), "minus": captured(model, first=False)}
    before = tn.capture(model, SENTENCES, **QUIET)
    with tn.Ablation(model, NEURONS, **how) as ablation:
        after = tn.capture(model, SENTENCES, **QUIET)
    assert ablation.count
    assert all(torch.equal(getattr(before, site), getattr(after, site)) for site in ("mid", "post", "activations"))


def test_draws_are_uniform_over_captures_and_their_sentences_and_follow_the_seed():
    model = tiny_model()
    first, second = captured(model), captured(model, first=False)
    rows = np.array([tn.Intervention([], value="resampled", of=[first, second]).draw([n]) for n in range(4000)])
    expected = np.array([1 / 6] * 3 + [1 / 4] * 2) * len(rows)
    assert stats.chisquare(np.bincount(rows, minlength=5), expected).pvalue > 0.001
    other = [tn.Intervention([], value="resampled", of=[first, second], seed=1).draw([n]) for n in range(4000)]
    same = sum(p * p for p in expected / len(rows))
    assert np.mean(rows == other) == pytest.approx(same, abs=0.03)


def test_whoever_takes_neurons_takes_an_intervention():
    model, text = tiny_model(), SENTENCES[:3]
    asked, zero = intervention(model, "resampled"), tn.Intervention(NEURONS)
    with tn.Ablation(model, asked):
        off = tn.behaviour.perplexity(model, text, **QUIET)
        said = tn.behaviour.continuations(model, text, max_new_tokens=4, languages=["en", "ja"], **QUIET)
    assert np.array_equal(tn.behaviour.perplexity(model, text, neurons=asked, **QUIET).nll, off.nll)
    assert not np.allclose(tn.behaviour.perplexity(model, text, **QUIET).nll, off.nll, atol=1e-4)
    options = {"max_new_tokens": 4, "languages": ["en", "ja"], "tokens": "all", "seeds": 2, **QUIET}
    controls = {"zero": zero, "drawn": lambda seed: tn.Intervention(NEURONS, scale=float(seed))}
    found = tn.behaviour.continuations(model, text, neurons=asked, controls=controls, **options)
    assert found.after == said.before
    assert found.controls["zero"][0].after == tn.behaviour.continuations(model, text, neurons=NEURONS, **options).after
    assert [draw.provenance["ablations"][0]["scale"] for draw in found.controls["drawn"]] == [0.0, 1.0]
    assert found.controls["drawn"][1].after == found.before
    answered = tn.behaviour.answer_questions(
        model, ["Who?"], [["I"]], language="en", neurons=asked, controls={"zero": zero}, max_new_tokens=2, **QUIET
    )
    assert answered.count


def test_a_comparison_takes_interventions_as_set_and_as_controls():
    model = tiny_model()
    neurons = tn.NeuronSet(tuple(NEURONS), (4, 48))
    prefix = tn.LastToken(model, SENTENCES, keep=["post"], **QUIET)
    first = captured(model)
    controls = {"zero": neurons, "again": lambda seed: tn.Intervention(neurons, value="resampled", of=first, seed=seed)}
    asked = tn.Intervention(neurons, value="mean", of=first)
    measure = lambda off: prefix.capture(off).post.norm(dim=-1)  # noqa: E731
    found = tn.compare(measure, asked, controls=controls, seeds=3, **QUIET)
    with tn.Ablation(model, neurons, value="mean", of=first, tokens="last"):
        expected = tn.capture(model, SENTENCES, keep=["post"], **QUIET).post.norm(dim=-1)
    assert np.allclose(found.ablated, expected, rtol=1e-5)
    assert len(np.unique(found.controls["again"][:, -1], axis=0)) == 3
    assert asked.shape == neurons.shape
    assert asked.provenance["intervention"]["value"] == "mean"


def test_what_is_done_is_recorded_and_told():
    model = tiny_model()
    first, second = captured(model), captured(model, first=False)
    with tn.Ablation(model, NEURONS, value="resampled", of=first, seed=5) as ablation:
        about = ablation.about
    assert about["value"] == "resampled"
    assert about["seed"] == 5
    assert [origin["n"] for origin in about["of"]] == [3]
    ways = [{"value": "mean", "of": first}, {"value": "mean", "of": second}, {"value": "mean", "of": [first, second]}]
    ways += [{"add": dose, "of": first, "minus": second} for dose in (1.0, 2.0)]
    ways += [{"value": "resampled", "of": first, "seed": seed} for seed in (0, 1)]
    told = [tn.Ablation(model, NEURONS, **way).about for way in ways]
    assert all(one != other for number, one in enumerate(told) for other in told[:number])
    with pytest.warns(DeprecationWarning, match="means= is now of="):
        assert tn.Ablation(model, NEURONS, value="mean", means=first).about == told[0]
    assert tn.Intervention(NEURONS, add=2.0, of={"en": first}, minus={"ja": second}).describe() == (
        "4 neurons moved by 2.0 × (mean of en - mean of ja)"
    )
    assert "3 sentences" in tn.Intervention(NEURONS, value="mean", of=first).describe()


def test_resampling_is_refused_where_the_sentence_is_unknown():
    model, asked = tiny_model(), intervention(tiny_model(), "resampled")
    ids = torch.tensor([byte_tokenizer()("Hello")["input_ids"]])
    with torch.inference_mode():
        cache = model.module(input_ids=ids[:, :3], use_cache=True).past_key_values
    with torch.inference_mode(), tn.Ablation(model, asked), pytest.raises(tn.TnkitError, match="after a cache"):
        model.module(input_ids=ids[:, 3:], past_key_values=cache)
    embeds = model.module.get_input_embeddings()(ids).detach()
    with torch.inference_mode(), tn.Ablation(model, asked), pytest.raises(tn.TnkitError, match="needs input_ids"):
        model.module(inputs_embeds=embeds)


@pytest.mark.parametrize("name", THREE)
def test_a_neuron_that_writes_a_token_says_it_once_it_has_the_activations_of_those_who_say_it(name):
    module = copy.deepcopy(tiny_module(name))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    low, texts = capture(model, FIRST), [torch.tensor([byte_tokenizer()(text)["input_ids"]]) for text in SECOND]
    much = 50 * low.activations[3, :, 11].abs().max()
    head = module.get_output_embeddings().weight.detach()
    token = int(head.norm(dim=1).argmax())
    with torch.no_grad():
        model.value_vectors(3)[11] = 100 * head[token] / much
    activations = low.activations.clone()
    activations[3, :, 11] += much
    high, low = (replace(low, activations=values, provenance={}) for values in (activations, low.activations))

    def says(**how):
        with torch.inference_mode(), tn.Ablation(model, [(3, 11)], tokens="last", **how):
            logits = torch.stack([module(input_ids=ids).logits[0, -1] for ids in texts])
        return logits.log_softmax(-1)[:, token]

    untouched, moved = says(scale=1.0), says(add=1.0, of=high, minus=low)
    assert torch.equal(says(add=0.0, of=high, minus=low), untouched)
    for raised in (moved, says(value="mean", of=high), says(value="resampled", of=high)):
        for kept in (untouched, says(), says(value="mean", of=low), says(add=-1.0, of=high, minus=low)):
            assert (raised > kept + 0.5).all()
