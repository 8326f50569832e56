"""Several interventions at once are the same interventions nested, wherever one is accepted."""

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.testing import SENTENCES, cloud, tiny_model

QUIET = {"progress": False}
OFF = tn.NeuronSet(((0, 3), (1, 7), (3, 40)), (4, 48))
ON = tn.NeuronSet(((1, 8), (2, 2)), (4, 48))
TEXTS = {"en": SENTENCES[:3], "it": SENTENCES[3:]}


def parts(model, *, resampled=False):
    """One set off, another at another language's values, and a direction."""
    states = tn.capture(model, TEXTS["en"], **QUIET)
    value = "resampled" if resampled else "mean"
    return [tn.Intervention(OFF), tn.Intervention(ON, value=value, of=states), tn.Direction({2: cloud(32)}, add=0.5)]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox"])
@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("tokens", ["last", "all"])
def test_they_are_the_same_nested_alone_in_a_batch_and_from_a_cached_prefix(name, resampled, tokens):
    model = tiny_model(name)
    first, second, third = asked = parts(model, resampled=resampled)
    with tn.Ablation(model, asked, tokens=tokens) as ablation:
        found = tn.capture(model, SENTENCES, keep=["post"], **QUIET)
    with (
        tn.Ablation(model, first, tokens=tokens) as one,
        tn.Ablation(model, second, tokens=tokens) as two,
        tn.Ablation(model, third, tokens=tokens) as three,
    ):
        nested = tn.capture(model, SENTENCES, keep=["post"], **QUIET)
    assert torch.equal(found.post, nested.post)
    assert found.provenance["ablations"] == nested.provenance["ablations"] == ablation.abouts
    assert ablation.count == one.count + two.count + three.count > 0
    assert model.ablations == []
    if tokens == "last":
        prefix = tn.LastToken(model, SENTENCES, keep=["post"], **QUIET)
        assert prefix.capture(asked).provenance["ablations"] == ablation.abouts
        assert torch.allclose(prefix.capture(asked).post, found.post, atol=2e-5)
    with tn.Ablation(model, third), tn.Ablation(model, OFF):
        other = tn.capture(model, SENTENCES, keep=["post"], **QUIET)
    assert not torch.allclose(other.post, found.post, atol=1e-4)


def test_whoever_takes_an_intervention_takes_several():
    model = tiny_model()
    asked = parts(model)[:2]
    with tn.Ablation(model, asked):
        off = tn.behaviour.perplexity(model, TEXTS["it"], **QUIET)
        said = tn.behaviour.continuations(model, TEXTS["it"], max_new_tokens=4, languages=["en", "ja"], **QUIET)
    assert np.array_equal(tn.behaviour.perplexity(model, TEXTS["it"], neurons=asked, **QUIET).nll, off.nll)
    matrix = tn.behaviour.perplexity_matrix(model, {"it": TEXTS["it"]}, {"both": asked, "one": asked[1]}, **QUIET)
    assert np.array_equal(matrix.values["both", "it"].nll, off.nll)
    with tn.Ablation(model, asked[1]):
        alone = tn.behaviour.perplexity(model, TEXTS["it"], **QUIET)
    assert np.array_equal(matrix.values["one", "it"].nll, alone.nll)
    options = {"max_new_tokens": 4, "languages": ["en", "ja"], "tokens": "all", "seeds": 1, **QUIET}
    rivals = {"list": asked[:1], "drawn": lambda _: [asked[0], ON]}
    found = tn.behaviour.continuations(model, TEXTS["it"], neurons=asked, controls=rivals, **options)
    assert found.after == said.before
    assert len(found.provenance["ablations"]) == 2
    assert found.count > found.controls["list"][0].count
    compared = tn.ablate(model, TEXTS, asked, language="it", controls={"one": asked[1]}, measure="similarity", **QUIET)
    prefix = tn.LastToken(model, TEXTS["it"], keep=["post"], **QUIET)
    english = tn.capture(model, TEXTS["en"], keep=["post"], **QUIET).post
    expected = torch.nn.functional.cosine_similarity(prefix.capture(asked).post, english, dim=-1)
    assert np.allclose(compared.ablated, expected, atol=1e-6)


def test_empty_parts_change_nothing_and_do_not_hide_the_others():
    model = tiny_model()
    with tn.Ablation(model, [tn.Intervention([]), tn.Intervention(OFF)]) as ablation:
        found = tn.capture(model, SENTENCES, keep=["post"], **QUIET)
    with tn.Ablation(model, OFF):
        expected = tn.capture(model, SENTENCES, keep=["post"], **QUIET)
    assert torch.equal(found.post, expected.post)
    assert ablation.abouts == expected.provenance["ablations"]


def test_an_error_inside_leaves_the_model_as_it_was():
    model = tiny_model()
    before = tn.capture(model, SENTENCES, keep=["post"], **QUIET).post
    with pytest.raises(ZeroDivisionError), tn.Ablation(model, parts(model)):
        raise ZeroDivisionError
    assert torch.equal(tn.capture(model, SENTENCES, keep=["post"], **QUIET).post, before)
    assert model.ablations == []


def test_one_neuron_in_two_of_them_is_refused():
    with pytest.raises(tn.TnkitError, match=r"neuron \(1, 7\) is in two of these interventions; leave it out of one"):
        tn.Ablation(tiny_model(), [tn.Intervention(OFF), tn.Intervention([(1, 7)], scale=2.0)])
    with pytest.raises(tn.TnkitError, match=r"scale was given beside it"):
        tn.Ablation(tiny_model(), [tn.Intervention(OFF)], scale=0.5)
    with pytest.raises(tn.TnkitError, match="export one Intervention"):
        tn.export_ablated(tiny_model(), [tn.Intervention(OFF)], "/nowhere/new")


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox", "bloom", "mixtral"])
@pytest.mark.parametrize("tokens", ["last", "prompt", "all"])
def test_while_text_is_generated_a_cache_a_batch_and_padding_change_nothing(name, tokens):
    """Each prompt alone, read anew for every token, with the interventions nested."""
    model = tiny_model(name)
    on = tn.NeuronSet(((1, 8), (2, 2)), (model.n_layers, model.n_neurons))
    states = [tn.capture(model, TEXTS[language], **QUIET) for language in TEXTS]
    off = tn.Intervention([(0, 3), (1, 7), (3, 20)])
    asked = [off, tn.Intervention(on, add=2.0, of=states[0], minus=states[1]), tn.Direction({2: cloud(32)}, add=0.5)]
    prompts = [model.tokenizer(text)["input_ids"] for text in ("Hello there.", "Hi!")]
    width = max(map(len, prompts))
    ids = torch.tensor([[258] * (width - len(prompt)) + prompt for prompt in prompts])
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 258, "eos_token_id": None}
    with tn.Ablation(model, asked, tokens=tokens):
        rows = model.module.generate(input_ids=ids, attention_mask=(ids != 258).long(), **options)
    for row, prompt in zip(rows, prompts, strict=True):
        with (
            tn.Ablation(model, asked[0], tokens=tokens),
            tn.Ablation(model, asked[1], tokens=tokens),
            tn.Ablation(model, asked[2], tokens=tokens),
        ):
            alone = model.module.generate(input_ids=torch.tensor([prompt]), use_cache=False, **options)
        assert row[width:].tolist() == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["gemma3", "gpt-neox"])
def test_several_of_strength_nothing_change_no_bit(name):
    model = tiny_model(name)
    states = [tn.capture(model, TEXTS[language], **QUIET) for language in TEXTS]
    asked = [tn.Intervention(ON, add=0.0, of=states[0], minus=states[1]), tn.Direction({2: cloud(32)}, add=0.0)]
    ids = torch.tensor([model.tokenizer("Hello there.")["input_ids"]])
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    untouched = model.module.generate(input_ids=ids, **options)
    with tn.Ablation(model, [tn.Intervention(OFF, scale=1.0), *asked]):
        moved = model.module.generate(input_ids=ids, **options)
    assert torch.equal(torch.stack(untouched.logits), torch.stack(moved.logits))
