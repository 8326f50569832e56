"""The latent language against the module's own logits; a planted neuron that writes a word."""

import copy

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.measures.lens.latent import _first_tokens, latent_language
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.text.concepts import Concepts

QUIET = {"progress": False}
WORDS = {"en": ["dog", "king", "sun"], "it": ["cane", "re", "sole"], "ja": ["犬", "王", "太陽"]}
SENTENCE = {"en": ["A ___.", "O ___.", "U ___."], "it": ["Un ___.", "Il ___.", "Lo ___."], "ja": ["___ だ。"] * 3}
NAMES = {name: name for name in WORDS}
FEW = Concepts(WORDS, SENTENCE, NAMES, dict.fromkeys(WORDS, "A"))
FIVE = ("llama", "gemma3", "gpt-neox", "qwen2-moe", "gpt2")


def test_prompts_have_the_answers_of_other_concepts_and_end_before_their_own():
    prompts = FEW.translations("it", "ja")
    assert prompts[0].endswith('it: "cane" - ja: "') and '"王"' in prompts[0] and "犬" not in prompts[0]
    assert FEW.clozes("it")[1].endswith('Il ___. A: "') and '"cane"' in FEW.clozes("it")[1]
    assert len({*prompts}) == 3


@pytest.mark.parametrize("name", [*FIVE, "gemma2", "cohere"])
def test_the_last_layer_says_what_the_model_says_next(name):
    model = tiny_model(name)
    found = latent_language(model, "it", source="en", concepts=FEW, layers=[1, 3], **QUIET)
    prompts, tokenizer = FEW.translations("en", "it"), byte_tokenizer()
    for place, concept in enumerate(found.concepts):
        with torch.inference_mode():
            ids = torch.tensor([tokenizer(prompts[concept])["input_ids"]])
            probabilities = model.module(ids).logits[0, -1].double().softmax(-1)
        for at, language in enumerate(found.languages):
            token = tokenizer(WORDS[language][concept], add_special_tokens=False)["input_ids"][0]
            value = found.probability["none"][0, 1, at, place]
            assert value == pytest.approx(float(probabilities[token]), rel=1e-3, abs=1e-7)
    assert found.left_out + len(found.concepts) == 3 and found.concepts == (0, 1)  # "sun" and "sole" begin alike


def test_words_that_begin_alike_are_left_out_and_counted():
    kept, ids = _first_tokens(tiny_model(), FEW.clozes("it"), WORDS)
    assert kept == [0, 1] and ids.shape == (2, 6)
    assert ids[0, 0] == byte_tokenizer()("d", add_special_tokens=False)["input_ids"][0]
    assert (ids[:, 1::2] == -1).all()  # a space is a token of its own here, and no word's first
    with pytest.raises(tn.TnkitError, match="no concept has words that begin with different tokens in en, it"):
        _first_tokens(tiny_model(), FEW.clozes("it"), {"en": ["same"] * 3, "it": ["so"] * 3})


def planted():
    """A model in which a neuron of layer 2 writes the first byte of "re" at every last token."""
    module, token = copy.deepcopy(tiny_module("llama")), byte_tokenizer()("r")["input_ids"][-1]
    with torch.no_grad():
        row = module.lm_head.weight[token] / module.model.norm.weight
        module.model.layers[2].mlp.down_proj.weight[:, 9] = 2000 * row / row.norm()
    return tn.load_model(module, tokenizer=byte_tokenizer())


def test_a_planted_neuron_says_its_word_from_its_layer_on_and_not_when_it_is_off():
    model, how = planted(), {"source": "en", "concepts": FEW, **QUIET}
    sign = float(tn.capture(model, FEW.translations("en", "it"), keep=["activations"], **QUIET).activations[2, 1, 9])
    with torch.no_grad():
        model.module.model.layers[2].mlp.down_proj.weight[:, 9] *= np.sign(sign)
    some = tn.NeuronSet(((2, 9),), (4, 48))
    found = latent_language(
        model, "it", neurons=some, controls={"other": tn.NeuronSet(((2, 8),), (4, 48))}, seeds=1, **how
    )
    said = {name: values[0, :, found.languages.index("it"), 1] for name, values in found.probability.items()}
    assert said["none"][2] > 10 * said["none"][1] and said["none"][2] > 2 * said["the set"][2]
    assert said["other"][2] > 1.5 * said["the set"][2] and said["none"][1] == pytest.approx(said["the set"][1])
    change = found.difference().xs("it", level="language")["difference"]
    assert change.loc[2] < 0 == change.loc[1]
    frame = found.to_frame()
    assert (frame["low"] <= frame["mean"]).all() and (frame["mean"] <= frame["high"]).all()
    texts = [text.get_text() for text in found.plot().get_legend().get_texts()]
    assert texts == ["English", "Italian", "Japanese", "the set"] and "left out" in found._repr_html_()
    lens = tn.lens.jacobians(model, SENTENCES[:1], cache=False, **QUIET)
    carried = latent_language(model, "it", lens=lens, **how)
    np.testing.assert_allclose(carried.probability["none"][0, 3], found.probability["none"][0, 3], rtol=1e-5)
    assert not np.allclose(carried.probability["none"][0, 0], found.probability["none"][0, 0])


def test_the_nearest_centroid_is_that_of_the_definition():
    model, texts = tiny_model(), {"en": SENTENCES[:2], "it": SENTENCES[3:4], "ja": SENTENCES[2:3]}
    found = latent_language(model, "it", source="en", concepts=FEW, texts=texts, **QUIET)
    states = {name: tn.capture(model, FEW.translations("en", name), **QUIET).post.double() for name in ("it", "ja")}
    means = torch.stack([tn.capture(model, some, **QUIET).post.double().mean(dim=1) for some in texts.values()], dim=1)
    origin = sum(state.mean(dim=1) for state in states.values()) / 2
    for layer in range(4):
        centred = means[layer] - means[layer].mean(dim=0)
        away = states["it"][layer][list(found.concepts)] - origin[layer]
        nearest = torch.nn.functional.cosine_similarity(away[:, None], centred[None], dim=-1).argmax(dim=1)
        assert found.nearest["none"][0, layer].argmax(axis=0).tolist() == nearest.tolist()
    with pytest.raises(tn.TnkitError, match="no texts in it, ja"):
        latent_language(model, "it", source="en", concepts=FEW, texts={"en": SENTENCES}, **QUIET)


WRONG = {
    "target": ({"target": "zz"}, "no concepts in 'zz'"),
    "source": ({"target": "it", "source": "zz"}, "no concepts in 'zz'"),
    "among": ({"target": "it", "languages": ["en"]}, "is not among languages=en"),
    "tokens": ({"target": "it", "tokens": "last_word"}, "must be one of last, prompt, all"),
    "layers": ({"target": "it", "layers": [9]}, "layer 9 is not in"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_one_sentence(name):
    how, message = WRONG[name]
    with pytest.raises(tn.TnkitError, match=message):
        latent_language(tiny_model(), concepts=FEW, **how, **QUIET)
