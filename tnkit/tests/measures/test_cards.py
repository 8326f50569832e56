"""A card shows what captures, top sentences and the logit lens say."""

import copy

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module

TEXTS = {"en": SENTENCES[:3], "ja": SENTENCES[3:]}


@pytest.fixture(scope="module")
def captured():
    return {name: tn.capture(tiny_model(), texts, progress=False) for name, texts in TEXTS.items()}


def test_a_card_holds_every_activation_and_the_strongest_side(captured):
    whole = np.concatenate([part.activations[2].numpy() for part in captured.values()])
    for neuron in range(12):
        card = tn.neuron_card(tiny_model(), captured, TEXTS, (2, neuron), n=2)
        assert np.concatenate(list(card.activations.values())).tolist() == whole[:, neuron].tolist()
        strongest = whole[np.abs(whole[:, neuron]).argmax(), neuron]
        assert card.to_frame()["activation"].iloc[0] == strongest
        one, other = card.tokens.promoted[0], card.tokens.suppressed[0]
        assert (card.raised, card.lowered) == ((one, other) if strongest > 0 else (other, one))


def test_what_a_card_says_is_raised_is_raised_in_its_top_sentence(captured):
    """By another route: the neuron's own contribution, through the head, in the sentence that the card names first."""
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    for neuron in range(6):
        card = tn.neuron_card(model, captured, TEXTS, (3, neuron), n=1, k=1)
        moved = card.to_frame()["activation"].iloc[0] * model.value_vectors(3)[neuron]
        with torch.no_grad():
            logits = model.module.lm_head(model.module.model.norm(moved))
        ids = card.tokens.promoted_ids if card.raised == card.tokens.promoted[0] else card.tokens.suppressed_ids
        assert logits[: len(model.tokenizer)].argmax() == ids[0, 0]


def test_a_card_is_drawn_by_language_and_escapes_its_text(captured):
    texts = {**TEXTS, "ja": ["<b>", *TEXTS["ja"][1:]]}
    again = {**captured, "ja": tn.capture(tiny_model(), texts["ja"], progress=False)}
    card = tn.neuron_card(tiny_model(), again, texts, (1, 3), n=6)
    shown = card._repr_html_()
    assert "&lt;b<mark>&gt;</mark>" in shown and "<b>Layer 1, neuron 3</b>" in shown  # a byte is a token here
    assert shown.count("<mark>") == 6
    ax = card.plot()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["English", "Japanese"]
    assert ax.get_title(loc="left") == "layer 1, neuron 3"
    assert [len(part.get_offsets()) for part in ax.collections if isinstance(part, PathCollection)] == [3, 3]


def test_sentences_that_were_not_captured_are_refused(captured):
    with pytest.raises(tn.TnkitError, match="not the 3 sentences of ja"):
        tn.neuron_card(tiny_model(), captured, {**TEXTS, "ja": ["x"] * 3}, (1, 3))
