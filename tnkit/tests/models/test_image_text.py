"""Image-text models and models without a head, from the folder they are saved in, through every feature."""

import copy

import pytest
import torch
from transformers import AutoModel

import tnkit as tn
from tnkit.testing import (
    IMAGE_TEXT,
    SENTENCES,
    byte_tokenizer,
    tiny_config,
    tiny_corpus,
    tiny_model,
    tiny_module,
)
from tnkit.tests import oracle

NEURONS = [(0, 3), (1, 7), (3, 40)]
every_wrapper = pytest.mark.parametrize("name", [name for name in IMAGE_TEXT if name != "paligemma"])


def saved(module, folder):
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Models of image-text wrappers, each read from a folder once."""
    models = {}

    def load(name):
        if name not in models:
            models[name] = tn.load_model(saved(tiny_module(name), tmp_path_factory.mktemp(name)))
        return models[name]

    return load


def zeroed(module):
    """A copy of a module in which the neurons' columns are zero, found by the names of its text model."""
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for layer, neuron in NEURONS:
            copied.get_decoder().layers[layer].mlp.down_proj.weight[:, neuron] = 0
    return copied


@every_wrapper
def test_a_folder_is_loaded_as_the_class_that_was_saved(name, loaded):
    model = loaded(name)
    assert type(model.module) is type(tiny_module(name))
    assert model.weights_hash == tiny_model(name).weights_hash  # its vision weights too
    assert all(layer is text for layer, text in zip(model.blocks, model.module.get_decoder().layers, strict=True))


@every_wrapper
def test_scores_equal_the_oracle(name, loaded):
    model, plain = loaded(name), tiny_model(name)
    captured = tn.capture(model, SENTENCES, progress=False)
    target = tn.estimate_centroids([captured])
    expected = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.float64)
    for sentence in SENTENCES:
        ids = torch.tensor([byte_tokenizer()(sentence)["input_ids"]])
        read = oracle.contributions(tiny_module(name), plain.blocks_path, plain.sites, ids)
        expected += oracle.scores(*read, target.values, "cosine") / len(SENTENCES)
    assert (tn.score_neurons(model, captured, target).values - expected).abs().max() <= 1e-6
    found = tn.detect(model, tiny_corpus(), language="ja", kind="type1", top=5, progress=False)
    assert len(found.neurons) == 5


@every_wrapper
def test_generation_and_logits_under_an_ablation_equal_zeroed_weights(name, loaded):
    model, without = loaded(name), zeroed(tiny_module(name))
    ids = {"input_ids": torch.tensor([byte_tokenizer()(SENTENCES[3])["input_ids"]])}
    with torch.no_grad(), tn.Ablation(model, NEURONS):
        off = model.module(**ids).logits
        texts = model.module.generate(**ids, max_new_tokens=6, do_sample=False)
    with torch.no_grad():
        assert torch.allclose(off, without(**ids).logits, atol=1e-4)
        assert not torch.allclose(off, model.module(**ids).logits, atol=1e-3)
        assert torch.equal(texts, without.generate(**ids, max_new_tokens=6, do_sample=False))


@every_wrapper
def test_what_is_exported_is_read_by_folder(name, loaded, tmp_path):
    model = loaded(name)
    other = tn.load_model(tn.export_ablated(model, NEURONS, tmp_path / "off"))
    assert type(other.module) is type(model.module)
    assert other.weights_hash == tn.load_model(zeroed(tiny_module(name)), tokenizer=byte_tokenizer()).weights_hash


@pytest.mark.parametrize("name", ["llava", "mistral3"])
def test_promoted_tokens_are_those_of_the_value_vector_through_norm_and_unembedding(name, loaded):
    module = tiny_module(name)
    text = module.get_decoder()
    logits = module.lm_head.weight @ (text.norm.weight * text.layers[1].mlp.down_proj.weight[:, 7])
    logits = logits[: len(byte_tokenizer())]
    assert tn.lens.promoted(loaded(name), (1, 7), k=3).promoted_ids.tolist() == [logits.topk(3).indices.tolist()]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_model_without_a_head_does_all_that_needs_none(name, tmp_path):
    module = AutoModel.from_config(tiny_config(name)).eval()
    module.load_state_dict(tiny_module(name).base_model.state_dict())
    model, whole = tn.load_model(saved(module, tmp_path)), tiny_model(name)
    assert type(model.module) is type(module)
    corpus, how = tiny_corpus(), {"language": "ja", "kind": "type1", "top": 5, "progress": False}
    assert list(tn.detect(model, corpus, **how).neurons) == list(tn.detect(whole, corpus, **how).neurons)
    with tn.Ablation(model, NEURONS), tn.Ablation(whole, NEURONS):
        off, expected = (tn.capture(one, SENTENCES, progress=False) for one in (model, whole))
    assert torch.equal(off.post, expected.post)
    with pytest.raises(tn.TnkitError, match="has no output head"):
        tn.behaviour.continuations(model, SENTENCES[:1], progress=False)
