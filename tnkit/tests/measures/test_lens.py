"""The logit lens against plain calls of the final norm and the unembedding, and a planted neuron."""

import copy
from operator import attrgetter

import pytest
import torch

import tnkit as tn
from tnkit.measures.lens import promoted
from tnkit.testing import byte_tokenizer, tiny_model, tiny_module
from tnkit.tests.oracle import assert_near

CENTRING = {"cohere", "gpt2", "gpt-neox", "bloom", "opt", "falcon", "phi", "stablelm"}
PLAIN = {"llama", "gemma2", "gemma3", "olmo2", "qwen3", "granite"}


def all_logits(found, row, size):
    logits = torch.full((size,), torch.nan)
    logits[found.promoted_ids[row]] = found.promoted_logits[row]
    return logits


@pytest.mark.parametrize("name", sorted(CENTRING | PLAIN))
def test_logits_are_those_of_the_modules_with_the_denominator_put_back(name):
    model = tiny_model(name)
    size = len(model.tokenizer)
    neurons = [(0, 3), (3, 47), (1, 3)]
    found = promoted(model, neurons, k=size)
    norm, head = attrgetter(model.final_norm_path)(model.module), model.module.get_output_embeddings()
    for row, (layer, neuron) in enumerate(neurons):
        # Far from the origin no epsilon is seen; the logits of nothing take the biases away.
        stream = 1e3 * model.value_vectors(layer)[neuron] * model.output_gain(layer)
        with torch.no_grad():
            logits = (head(norm(stream)) - head(norm(torch.zeros_like(stream))))[:size]
        centred = stream - stream.mean() if name in CENTRING else stream
        expected = logits * centred.square().mean().sqrt() / 1e3
        assert_near(all_logits(found, row, size), expected, 1e-4)


def test_what_is_suppressed_is_what_the_opposite_promotes():
    found = promoted(tiny_model(), (2, 5), k=259)
    assert found.suppressed_ids.tolist() == found.promoted_ids.flip(1).tolist()
    assert torch.equal(found.suppressed_logits, found.promoted_logits.flip(1))
    assert (found.promoted_logits.diff() <= 0).all()


def test_a_neuron_that_writes_a_token_promotes_it():
    module = copy.deepcopy(tiny_module("llama"))
    token = byte_tokenizer()("Q")["input_ids"][-1]
    with torch.no_grad():
        row = module.lm_head.weight[token].detach()
        module.model.layers[1].mlp.down_proj.weight[:, 9] = row / module.model.norm.weight
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    found = promoted(model, (1, 9), k=3)
    assert found.promoted[0][0] == "Q"
    assert float(found.promoted_logits[0, 0]) == pytest.approx(float(row @ row), rel=1e-4)
    frame = found.to_frame()
    assert frame.loc[(1, 9, 1), "promoted"] == "Q"
    assert frame.loc[(1, 9, 3), "suppressed"] == found.suppressed[0][2]
    assert "(1, 9)" in found._repr_html_()
    assert found.provenance["model"]["name"] == model.name


def test_one_neuron_several_and_a_set_are_the_same():
    model = tiny_model()
    pairs = ((3, 1), (0, 2), (3, 0))
    several = promoted(model, tn.NeuronSet(pairs, (4, 48)), k=5)
    assert several.neurons == pairs
    for row, pair in enumerate(pairs):
        assert_near(promoted(model, pair, k=5).promoted_logits[0], several.promoted_logits[row])
    many = [(layer, neuron) for layer in range(4) for neuron in range(20)]  # more than one block
    assert promoted(model, many, k=5).promoted[many.index((3, 1))] == several.promoted[0]
    assert several.to_frame().index[5] == (0, 2, 1)


def test_an_unembedding_in_half_precision_is_multiplied_in_full():
    module = copy.deepcopy(tiny_module("gemma3")).bfloat16()
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    whole = tn.load_model(copy.deepcopy(module).float(), tokenizer=byte_tokenizer())
    found, expected = promoted(model, (2, 5), k=20), promoted(whole, (2, 5), k=20)
    assert found.promoted_logits.dtype == torch.float32
    assert_near(found.promoted_logits, expected.promoted_logits, 0.01)


def test_half_a_character_is_named_as_the_tokenizer_names_it():
    found = promoted(tiny_model(), (0, 0), k=259)
    texts = dict(zip(found.promoted_ids[0].tolist(), found.promoted[0], strict=True))
    assert not any("�" in text or not text for text in texts.values())
    assert texts[byte_tokenizer()("é")["input_ids"][-1]] == byte_tokenizer().convert_ids_to_tokens(
        byte_tokenizer()("é")["input_ids"][-1]
    )


def test_what_the_lens_cannot_read_is_refused():
    model = tiny_model()
    with pytest.raises(tn.TnkitError, match="layer 9 is not in"):
        promoted(model, (9, 0))
    with pytest.raises(tn.TnkitError, match=r"neuron \(0, 48\) is not in .* neurons 0 to 47"):
        promoted(model, [(0, 1), (0, 48)])
    with pytest.raises(tn.TnkitError, match="no neurons were given"):
        promoted(model, [])
    with pytest.raises(tn.TnkitError, match="more than the 259 items of the vocabulary; give 1 to 259"):
        promoted(model, (0, 0), k=260)
