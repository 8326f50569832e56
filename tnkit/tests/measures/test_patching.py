"""Effects by patched layer, restored and given contributions, against runs of the source and of the untouched model."""

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model

QUIET = {"progress": False}
TEXTS = {"en": SENTENCES[:3], "it": SENTENCES[3:]}


def next_tokens(model, texts):
    with torch.inference_mode():
        rows = [model.module(torch.tensor([byte_tokenizer()(text)["input_ids"]])).logits[0, -1] for text in texts]
    return torch.stack(rows).double().log_softmax(-1)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox", "qwen2-moe", "gpt2"])
def test_the_last_layer_patched_says_what_the_source_says(name):
    model = tiny_model(name)
    found = tn.patching.by_layer(model, TEXTS, source="en", into="it", layers=[1, 3], **QUIET)
    source, into = (next_tokens(model, texts) for texts in TEXTS.values())
    targets = source.argmax(dim=1)
    frame = found.to_frame()
    assert frame.loc[(3, "patched"), "mean"] == pytest.approx(float(source.max(dim=1).values.mean()), abs=1e-4)
    untouched = into[torch.arange(3), targets]
    np.testing.assert_allclose(found.compared.untouched, np.stack([untouched] * 2), atol=1e-4)
    other = torch.stack([source[(n + 1) % 3, targets[n]] for n in range(3)]).mean()
    assert frame.loc[(3, "another sentence"), "mean"] == pytest.approx(float(other), abs=1e-4)
    texts = [text.get_text() for text in found.plot().get_legend().get_texts()]
    assert texts == ["untouched", "patched", "another sentence"] and "patched" in found._repr_html_()


def test_states_are_measured_at_a_layer_and_later_layers_are_not_patched():
    model = tiny_model()
    how = {"source": "en", "into": "it", "measure": "centred_similarity", **QUIET}
    found = tn.patching.by_layer(model, TEXTS, layer=2, **how)
    assert found.compared.layers == (0, 1, 2)
    assert found.to_frame().loc[(2, "patched"), "mean"] == pytest.approx(1, abs=1e-5)
    some = [(1, 3), (2, 7)]
    of_set = tn.patching.by_layer(model, TEXTS, layer=2, site="contributions", neurons=some, **how)
    assert of_set.compared.layers == (1, 2)
    given = tn.patch(model, *TEXTS.values(), site="contributions", neurons=[(1, 3)], **QUIET)
    whole = tn.ablate(model, TEXTS, given, language="it", measure="centred_similarity", controls={}, **QUIET)
    expected = whole.at(2).loc["the set", "mean"]
    assert of_set.to_frame().loc[(1, "patched"), "mean"] == pytest.approx(expected, abs=1e-6)


def test_all_contributions_restored_are_the_untouched_run_and_none_the_ablated_one():
    model = tiny_model()
    everything = tn.NeuronSet(tuple((layer, n) for layer in (0, 1) for n in range(48)), (4, 48))
    how = {"language": "it", "layer": 2, "measure": "centred_similarity", **QUIET}
    few = everything[:5]
    found = tn.patching.restored(model, TEXTS, everything, controls={"few": few}, seeds=1, **how).at()["mean"]
    whole = tn.ablate(model, TEXTS, everything, language="it", measure="centred_similarity", controls={}, **QUIET)
    at = whole.at(2)["mean"]
    assert found["the set"] == pytest.approx(at["none"], abs=1e-5)
    assert found["none"] == pytest.approx(at["the set"], abs=1e-6)
    assert found["few"] != pytest.approx(found["none"], abs=1e-6)


def test_a_donors_mean_contribution_is_given():
    model, some = tiny_model(), tn.NeuronSet(((0, 3), (1, 9)), (4, 48))
    how = {"language": "it", "layer": 2, "measure": "similarity", **QUIET}
    found = tn.patching.given(model, TEXTS, some, donor="en", controls={}, **how).at()["mean"]
    patched = tn.patch(model, TEXTS["en"], TEXTS["it"], site="contributions", neurons=some, mean=True, **QUIET)
    expected = tn.ablate(model, TEXTS, patched, language="it", measure="similarity", controls={}, **QUIET).at(2)["mean"]
    assert found["the set"] == pytest.approx(expected["the set"], abs=1e-6)
    assert found["none"] == pytest.approx(expected["none"], abs=1e-6)


WRONG = {
    "language": ({"source": "ko"}, "no sentences in 'ko'"),
    "measure": ({"measure": "perplexity"}, "must be one of next_token, retrieval"),
    "no layer": ({"measure": "margin"}, "name the layer to measure"),
    "a layer": ({"layer": 1}, "has no layer"),
    "later": ({"measure": "margin", "layer": 1, "layers": [2, 3]}, "a patch after layer 1 cannot change"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_measured_is_one_sentence(name):
    how, message = WRONG[name]
    with pytest.raises(tn.TnkitError, match=message):
        tn.patching.by_layer(tiny_model(), TEXTS, **{"source": "en", "into": "it", **QUIET, **how})
