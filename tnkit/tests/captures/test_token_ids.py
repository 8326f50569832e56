"""Token ids in place of sentences: the numbers of the sentences they stand for, and nothing added to them."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

import tnkit as tn
from tnkit.measures.behaviour.likelihood import perplexity
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module

QUIET = {"progress": False}
IDS = [byte_tokenizer()(text)["input_ids"] for text in SENTENCES]


@pytest.mark.parametrize(
    "kind", [list, torch.tensor, lambda ids: np.array(ids), tuple], ids=["list", "tensor", "array", "tuple"]
)
@pytest.mark.parametrize("position", ["last", "last_word", "mean"])
def test_ids_give_the_states_of_their_sentences(kind, position):
    model = tiny_model("llama")
    captured = tn.capture(model, [kind(ids) for ids in IDS], position=position, **QUIET)
    expected = tn.capture(model, SENTENCES, position=position, **QUIET)
    assert torch.equal(captured.post, expected.post) and torch.equal(captured.activations, expected.activations)


def test_nothing_is_put_before_ids_and_the_provenance_says_what_they_are():
    model, bare = tiny_model("llama"), [ids[1:] for ids in IDS]  # without BOS
    captured = tn.capture(model, bare, keep=["post"], **QUIET)
    with torch.inference_mode():
        for number, ids in enumerate(bare):
            hidden = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states[2]
            torch.testing.assert_close(captured.post[1, number], hidden[0, -1], rtol=1e-4, atol=1e-5)
    about = captured.provenance
    assert about["sentences"]["input"] == "token ids" and about["tokens"]["bos"] == "absent"
    hashes = {tn.capture(model, some, keep=["post"], **QUIET).provenance["sentences"]["hash"] for some in (bare, IDS)}
    assert len(hashes) == 2 and about["sentences"]["hash"] in hashes
    assert "input" not in tn.capture(model, SENTENCES, keep=["post"], **QUIET).provenance["sentences"]


def test_rows_of_a_matrix_are_texts():
    ids = torch.tensor([[256, 7, 9], [256, 1, 2]])
    captured = tn.capture(tiny_model("llama"), list(ids), keep=["post"], **QUIET)
    assert torch.equal(captured.post, tn.capture(tiny_model("llama"), ids.tolist(), keep=["post"], **QUIET).post)


def test_detection_from_ids_finds_the_neurons_of_the_sentences(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    model, half = tiny_model("llama"), len(SENTENCES) // 2
    texts, ids = ({"en": some[:half], "ja": some[half:]} for some in (SENTENCES, IDS))
    for how in ({}, {"streaming": True}, {"cache": True}):
        found = tn.detect(model, ids, language="ja", top=9, **how, **QUIET)
        assert list(found.neurons) == list(tn.detect(model, texts, language="ja", top=9, **QUIET).neurons)
    prefix, expected = (tn.LastToken(model, some["ja"], **QUIET).capture([(0, 1)]) for some in (ids, texts))
    assert torch.equal(prefix.post, expected.post)


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ([[256, 7], "Hi!"], {}, "text 1 is str, and text 0 is token ids"),
        (["Hi!", [256, 7]], {}, "sentence 1 is list, expected str"),
        ([torch.tensor([256.0, 1.5])], {}, r"a token id of text 0=tensor\(256\.\) must be a whole number"),
        ([[256, 7], [256, -1]], {}, "a token id of text 1=-1 must be at least 0"),
        ([[256, 7], []], {}, "has no tokens"),
        ([[256, 7], [256, 260]], {}, r"text 1 \(from 0\) has the token 260, and LlamaForCausalLM has 260 token emb"),
        ([[256] * 200], {}, "has 200 tokens, LlamaForCausalLM reads at most 128"),
        ([[256, 7]], {"suffix": "."}, "take no template and no suffix"),
    ],
)
def test_what_are_no_ids_is_named(texts, options, words):
    with pytest.raises(tn.TnkitError, match=words):
        tn.capture(tiny_model("llama"), texts, **options, **QUIET)


def test_ids_are_not_put_into_a_template():
    model = tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer(), template="Say: {sentence}")
    with pytest.raises(tn.TnkitError, match=r"token ids are run as they are.*without chat= and template="):
        tn.capture(model, IDS, **QUIET)


def test_a_tokenizer_that_is_larger_than_the_embedding_is_named_where_it_matters():
    """Tokens were added, and the embedding was not resized; sentences without them run as before."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens([AddedToken("<|extra|>"), AddedToken("<|more|>")])
    model = tn.load_model(tiny_module("llama"), tokenizer=tokenizer)
    for number in range(300):
        tokenizer.add_tokens([AddedToken(f"<|{number}|>")])
    texts = ["fine", "also fine", "not <|299|> fine"]
    said = (
        r"text 2 \(from 0\) has the token \d+, and LlamaForCausalLM has 260 token embeddings.*resize_token_embeddings"
    )
    for run in (lambda: tn.capture(model, texts, **QUIET), lambda: perplexity(model, texts, **QUIET)):
        with pytest.raises(tn.TnkitError, match=said):
            run()
    assert len(tn.capture(model, texts[:2], **QUIET)) == 2
