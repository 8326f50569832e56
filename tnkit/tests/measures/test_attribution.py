"""Attribution against finite differences by plain hooks in float64, and against exact effects."""

import copy
from functools import cache
from operator import attrgetter

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.measures.attribution import _OF_STATES, attribution
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle

QUIET = {"progress": False}
FIVE = ("llama", "gemma3", "gpt-neox", "qwen2-moe", "gpt2")
TEXTS = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
LAYER = 2


@cache
def exact(name):
    """A tiny model in float64; experts run in float32 alone."""
    if tiny_model(name).slots:
        return tiny_model(name)
    return tn.load_model(copy.deepcopy(tiny_module(name)).double(), tokenizer=byte_tokenizer())


def states(model, texts, neuron=None, factor=1.0):
    """The last token's post of a layer of each unpadded sentence, a neuron's activation there multiplied."""
    block, kept = attrgetter(model.blocks_path)(model.module)[LAYER], []
    handle = block.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
    for text in texts:
        ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
        change = lambda _, __, old: factor * old  # noqa: E731
        if model.slots and neuron:
            around = tn.Ablation(model, tn.Intervention([neuron], scale=factor), tokens="last")
        else:
            around = oracle.switched_off(model, [neuron] if neuron else [], [ids.shape[1] - 1], change)
        with torch.inference_mode(), around:
            model.module(ids)
    handle.remove()
    return torch.stack([state[0, -1] for state in kept])


def neurons_of(model):
    """Some neurons of several layers, those of experts that run among them."""
    held = tn.capture(model, TEXTS["it"], keep=["activations"], **QUIET)
    return [(layer, int(n)) for layer in range(3) for n in held.of_layer(layer).abs().sum(0).topk(1).indices]


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("measure", _OF_STATES)
def test_gradients_are_the_finite_differences_of_plain_hooks(name, measure):
    model = exact(name)
    found = attribution(model, TEXTS, language="it", layer=LAYER, measure=measure, **QUIET)
    targets = states(model, TEXTS["en"])
    step = 1e-2  # norms round to float32 inside
    for neuron in neurons_of(model):
        high, low = (
            _OF_STATES[measure](states(model, TEXTS["it"], neuron, 1 + sign * step), targets).mean() for sign in (1, -1)
        )
        assert float(found.values[neuron]) == pytest.approx(float((high - low) / (2 * step)), rel=1e-2, abs=2e-5)
    assert found.values[LAYER + 1 :].isnan().all()


@pytest.mark.parametrize("name", [name for name in FIVE if name != "qwen2-moe"])  # the router chooses along the path
def test_integrated_gradients_sum_to_the_difference(name):
    model = exact(name)
    found = attribution(model, TEXTS, language="it", layer=LAYER, method="integrated", steps=100, **QUIET)
    everything = tn.Intervention([(layer, n) for layer in range(LAYER + 1) for n in range(model.widths[layer])])
    with tn.Ablation(model, everything, tokens="last"):
        off = tn.capture(model, TEXTS["it"], keep=["post"], **QUIET).post[LAYER].double()
    targets = states(model, TEXTS["en"])
    untouched, changed = (
        _OF_STATES["centred_similarity"](some, targets).mean() for some in (states(model, TEXTS["it"]), off)
    )
    assert found.difference == pytest.approx(float(untouched - changed), abs=1e-5)
    assert float(found.values.nansum()) == pytest.approx(found.difference, rel=0.05)
    assert abs(found.difference) > 5e-4


def test_nats_are_attributed_to_neurons_at_all_tokens():
    model, neuron, step = exact("gemma3"), (1, 7), 1e-3
    found = attribution(model, TEXTS, language="it", measure="perplexity", **QUIET)
    nats = [
        tn.behaviour.perplexity(model, TEXTS["it"], neurons=tn.Intervention([neuron], scale=1 + s * step), **QUIET).nats
        for s in (1, -1)
    ]
    assert float(found.values[neuron]) == pytest.approx((nats[0] - nats[1]) / (2 * step), rel=1e-2, abs=1e-6)
    many = attribution(model, TEXTS, language="it", measure="perplexity", method="integrated", steps=60, **QUIET)
    assert float(many.values.nansum()) == pytest.approx(many.difference, rel=0.03)


def test_attribution_agrees_with_exact_effects_and_chooses_neurons_that_act():
    model, how = tiny_model(), {"language": "it", "layer": 3, **QUIET}
    scores = tn.detect(model, TEXTS, language="it", top=5, **QUIET).scores
    found = tn.effects(model, TEXTS, scores, measure="centred_similarity", each=12, **how)
    given = attribution(model, TEXTS, **how)
    both = tn.beside(found, {"gradient": given})
    frame = both.to_frame()
    assert list(frame) == ["stratum", "score", "gradient", "drop"]
    row = both.correlation().loc[("all", "gradient and drop")]
    assert row["spearman"] > 0.8 and row["low"] > 0.5 and row["neurons"] == 36
    same = found.correlation().loc["all"]
    assert both.correlation().loc[("all", "score and drop"), "spearman"] == same["spearman"]
    assert "gradient and drop" in both._repr_html_() and "all neurons at 0" in given._repr_html_()
    chosen = given.top(10)
    assert list(given.to_frame()["attribution"].nlargest(10).index) == list(chosen)
    drops = tn.effects(model, TEXTS, scores, measure="centred_similarity", sample={"rival": chosen}, **how)
    assert drops.drops["rival"].mean() > max(0, found.drops["random"].mean())


def test_an_attribution_from_whole_passes_equals_that_from_a_cached_prefix(monkeypatch):
    model, how = tiny_model(), {"language": "it", "layer": 3, **QUIET}
    cached = attribution(model, TEXTS, **how).values
    monkeypatch.setattr(tn.LastToken, "_is_proved", lambda *_: False)
    np.testing.assert_allclose(attribution(model, TEXTS, **how).values, cached, atol=1e-5)


WRONG = {
    "measure": ({"measure": "retrieval"}, "must be one of similarity"),
    "method": ({"method": "guess"}, "must be one of gradient, integrated"),
    "no layer": ({"layer": None}, "name the layer to measure"),
    "beyond": ({"layer": 1, "layers": [2]}, "cannot change layer 1"),
    "language": ({"language": "ko"}, "no sentences in 'ko'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_attributed_is_one_sentence(name):
    how, message = WRONG[name]
    with pytest.raises(tn.TnkitError, match=message):
        attribution(tiny_model(), TEXTS, **{"language": "it", "layer": 2, **QUIET, **how})


def test_experts_at_all_tokens_and_neurons_without_a_value_are_refused():
    with pytest.raises(tn.TnkitError, match="attributed at one token"):
        attribution(tiny_model("mixtral"), TEXTS, language="it", measure="perplexity", **QUIET)
    model, how = tiny_model(), {"language": "it", "layer": 3, **QUIET}
    scores = tn.detect(model, TEXTS, language="it", top=5, **QUIET).scores
    found = tn.effects(model, TEXTS, scores, each=3, **how)
    with pytest.raises(tn.TnkitError, match="has no value for neuron"):
        tn.beside(found, {"few": attribution(model, TEXTS, layers=[3], **how)})
