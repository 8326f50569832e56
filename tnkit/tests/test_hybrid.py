"""A model whose layers differ, against plain hooks: in width, in a norm of the branch's own, and in having an MLP."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

import tnkit as tn
from tnkit.detection.scoring import contribution_norms
from tnkit.interventions.displacement import equal_displacement
from tnkit.measures.specificity.neurons import extreme
from tnkit.models.proofs import completeness_error
from tnkit.testing import SENTENCES, byte_tokenizer, redrawn, tiny_corpus, tiny_module
from tnkit.tests import oracle

WIDTHS = (48, 32, 48, 0)


class Normed(LlamaDecoderLayer):
    """A block whose MLP passes through a norm of its own."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.post_mlp_layernorm = LlamaRMSNorm(config.hidden_size)

    def forward(self, hidden_states, **kwargs):
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        mid = hidden_states + attended
        return mid + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(mid)))


class Without(LlamaDecoderLayer):
    """A block of attention alone."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        del self.mlp, self.post_attention_layernorm

    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]


class Odd(nn.Linear):
    """An MLP that is not known as one."""


def hybrid():
    module = copy.deepcopy(tiny_module("llama"))
    narrow = copy.deepcopy(module.config)
    narrow.intermediate_size = 32
    layers = module.model.layers
    layers[1].mlp, layers[2], layers[3] = LlamaMLP(narrow), Normed(module.config, 2), Without(module.config, 3)
    return redrawn(module)


@cache
def model():
    return tn.load_model(hybrid(), tokenizer=byte_tokenizer())


@cache
def captured(language="ja"):
    return tn.capture(model(), tiny_corpus()["train"][language], progress=False)


def ids_of(sentence):
    return torch.tensor([byte_tokenizer()(sentence)["input_ids"]])


def test_each_kind_of_block_has_a_reading_of_its_own():
    loaded = model()
    assert loaded.widths == WIDTHS and loaded.n_neurons == 48
    assert loaded.sites[0] == loaded.sites[1] != loaded.sites[2]
    assert loaded.sites[2].norm == "post_mlp_layernorm" and loaded.sites[3] is None
    assert completeness_error(loaded).max() < 1e-5
    assert (tuple(loaded.early_layers), tuple(loaded.late_layers)) == ((0, 1), (2,))
    assert loaded.reading.endswith("; layers 3: no neurons") and "layers 0, 1: neurons at mlp" in loaded.reading
    assert loaded.provenance["layout"] == [[48], [32], [48], [0]]
    assert "layout" not in tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer()).provenance
    assert [len(loaded.value_vectors(layer)) for layer in range(4)] == list(WIDTHS)
    assert completeness_error(replace(loaded, sites=(*loaded.sites[:2], loaded.sites[0], None))).max() > 0.1


def test_a_block_whose_mlp_has_no_known_name_is_refused_rather_than_read_without_neurons():
    module = hybrid()
    module.model.layers[0].mlp = Odd(32, 32)
    with pytest.raises(
        tn.TnkitError, match=r"it has self_attn, mlp, .* but no last linear map of an MLP by a usual name"
    ):
        tn.load_model(module, tokenizer=byte_tokenizer())


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_captures_equal_plain_hooks(batch_tokens):
    found = tn.capture(model(), SENTENCES, keep=("pre", "mid", "post", "activations"), batch_tokens=batch_tokens)
    assert found.activations.shape == (4, len(SENTENCES), 48)
    for number, sentence in enumerate(SENTENCES):
        read = oracle.hooked(model().module, "model.layers", model().sites, ids_of(sentence))
        for layer, width in enumerate(WIDTHS):
            for site in ("pre", "mid", "post"):
                oracle.assert_near(getattr(found, site)[layer, number].double(), read[site][layer][-1])
            expected = torch.zeros(48).double()
            expected[:width] = read["activations"][layer][-1]
            oracle.assert_near(found.activations[layer, number].double(), expected)
            written = (
                found.activations[layer, number, :width] @ model().value_vectors(layer) * found.scale[layer, number]
            )
            whole = found.mid[layer, number] + written * model().output_gain(layer)
            assert torch.allclose(whole, found.post[layer, number], atol=1e-5)
    frame = found.to_frame()["mean |activation|"]
    assert frame[1] == pytest.approx(float(found.activations[1, :, :32].abs().mean()), rel=1e-6)


def test_an_averaged_capture_is_complete_too():
    found = tn.capture(model(), SENTENCES, keep=("mid", "post", "activations"), position="mean", progress=False)
    for layer, width in enumerate(WIDTHS):
        written = (found.scale[layer, :, None] * found.activations[layer, :, :width]) @ model().value_vectors(layer)
        assert torch.allclose(found.mid[layer] + written * model().output_gain(layer), found.post[layer], atol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_scores_equal_the_definition(distance):
    own = captured()
    target = tn.estimate_centroids([own, captured("en")])
    scores = tn.score_neurons(model(), own, target, distance=distance)
    expected = torch.zeros(4, 48).double()
    for sentence in tiny_corpus()["train"]["ja"]:
        read = oracle.contributions(model().module, "model.layers", model().sites, ids_of(sentence))
        expected += oracle.scores(*read, target.values, distance) / len(own)
    assert torch.equal(scores.values.isnan(), expected.isnan()) and int(expected.isnan().sum()) == 16 + 48
    assert (scores.values - expected).abs().nan_to_num(0).max() < 1e-6
    assert scores.layers == [0, 1, 2] and len(scores.to_frame()) == 128
    assert len(scores.top(128)) == 128 and all(neuron < WIDTHS[layer] for layer, neuron in scores.bottom(128))
    with pytest.raises(tn.TnkitError, match="3 layers of 32 to 48 neurons hold 128 neurons"):
        scores.top(129)


def test_detections_streamed_cached_and_saved_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    options = {"top": 20, "progress": False, "languages": ["ja"]}
    held = tn.detect_all(model(), tiny_corpus(), **options)
    for more in ({"streaming": True}, {"cache": True}, {"cache": True}, {"cache": True, "streaming": True}):
        again = tn.detect_all(model(), tiny_corpus(), **options, **more)
        for key, detection in held.items():
            assert again[key].neurons.pairs == detection.neurons.pairs
            oracle.assert_near(again[key].scores.values.nan_to_num(0), detection.scores.values.nan_to_num(0))
    assert set(held["ja", "type1"].neurons.by_layer()) <= {0, 1}
    assert set(held["ja", "type2"].neurons.by_layer()) == {2}
    found = held["ja", "type1"]
    assert found.stability().candidates == 48 + 32
    loaded = tn.Detection.load(found.save(tmp_path / "found"))
    assert loaded.neurons == found.neurons and loaded.neurons.widths == WIDTHS == loaded.neurons.uniform(seed=1).widths
    assert torch.equal(loaded.scores.values.nan_to_num(0), found.scores.values.nan_to_num(0))
    assert loaded.stability().mean == found.stability().mean
    cached = [tn.capture(model(), SENTENCES, cache=True, progress=False) for _ in range(2)]
    assert torch.equal(cached[0].activations, cached[1].activations)
    again = tn.Activations.load(cached[0].save(tmp_path / "captured"))
    assert torch.equal(again.activations, cached[0].activations)


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_ablation_equals_plain_hooks(tokens):
    neurons = [(0, 47), (1, 31), (1, 2), (2, 40)]
    with tn.Ablation(model(), neurons, tokens=tokens):
        off = tn.capture(model(), SENTENCES[:2], progress=False)
    for number, sentence in enumerate(SENTENCES[:2]):
        ids = ids_of(sentence)
        places = None if tokens == "all" else [ids.shape[1] - 1]
        with oracle.switched_off(model(), neurons, places):
            read = oracle.hooked(model().module, "model.layers", model().sites, ids)
        oracle.assert_near(off.post[3, number].double(), read["post"][3][-1])
    prefix = tn.LastToken(model(), SENTENCES[:2], progress=False)
    if tokens == "last":
        assert prefix.cached
        oracle.assert_near(prefix.capture(neurons).post, off.post)


def test_neurons_that_a_layer_lacks_are_refused():
    for neurons in ([(1, 32)], [(3, 0)], tn.NeuronSet(((1, 40),), (4, 48))):
        with pytest.raises(tn.TnkitError, match=r"is outside layer [13], which has (32|0) neurons"):
            tn.Ablation(model(), neurons)
    with pytest.raises(tn.TnkitError, match="layer 1 has neurons 0 to 31"):
        tn.lens.promoted(model(), [(1, 32)])
    assert tn.lens.promoted(model(), [(1, 31), (2, 40)], k=3).promoted_ids.shape == (2, 3)
    with pytest.raises(tn.TnkitError, match=r"layers 3 to 3 of .* have no neurons"):
        tn.score_neurons(model(), captured(), tn.estimate_centroids([captured()]), layers=[3])


def test_controls_name_neurons_that_there_are():
    found = tn.detect(model(), tiny_corpus(), language="ja", top=14, layers=[1, 2], progress=False).neurons
    norms = contribution_norms(model(), captured())
    assert torch.equal(norms.isnan(), torch.arange(48) >= torch.tensor(WIDTHS)[:, None])
    states = {name: captured(name) for name in ("en", "ja", "it")}
    rivals = tn.controls(found, layers=range(1, 3), norms=norms, model=model(), captured=states)
    for name, control in rivals.items():
        for seed in range(10):
            drawn = control(seed) if callable(control) else control
            assert all(neuron < WIDTHS[layer] for layer, neuron in drawn), name
    assert equal_displacement(model(), captured(), found, seed=0).by_layer().keys() == found.by_layer().keys()
    drawn = {pair for seed in range(60) for pair in found.uniform(seed=seed, layers=[1])}
    assert drawn == {(1, neuron) for neuron in range(32)} - set(found)


def test_an_exported_model_is_the_ablated_one(tmp_path):
    neurons = [(0, 47), (1, 31), (2, 40)]
    folder = tn.export_ablated(model(), neurons, tmp_path / "off")
    off = hybrid()
    off.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    with torch.inference_mode(), tn.Ablation(model(), neurons):
        expected = model().module(input_ids=ids_of(SENTENCES[0])).logits
    with torch.inference_mode():
        assert torch.allclose(off(input_ids=ids_of(SENTENCES[0])).logits, expected, atol=1e-5)


def test_measures_leave_out_neurons_that_a_layer_lacks():
    languages = {name: captured(name) for name in ("en", "ja")}
    gone = np.arange(48) >= np.array(WIDTHS)[:, None]
    found = tn.specificity.correlation_ratio(languages, language="ja")
    for values in (found.eta2, found.p, found.q, found.F, tn.specificity.constant_share(languages)):
        assert np.array_equal(np.isnan(values), gone)
    assert np.allclose(found.q[~gone], stats.false_discovery_control(found.p[~gone]))
    assert len(found.top(128)) == 128 and len(found.to_frame()) == 128
    precise = tn.specificity.average_precision(languages, "ja")
    assert np.array_equal(np.isnan(precise.values), gone)
    entropy = tn.specificity.lape(languages, top_share=0.5, filter_quantile=0.3, language_quantile=0.3)
    assert all(neuron < WIDTHS[layer] for neurons in entropy.neurons.values() for layer, neuron in neurons)
    by_gate = tn.specificity.lape_of_tokens(
        model(), {"en": SENTENCES[:2], "ja": SENTENCES[2:3]}, filter_quantile=0.3, language_quantile=0.3, progress=False
    )
    assert np.array_equal(np.isnan(by_gate.values), gone)
    sets = {"a": found.top(20), "b": extreme(found, -found.eta2, 20, None, {})}
    assert tn.specificity.overlaps(sets).table["expected"].iloc[0] == pytest.approx(400 / 128)


def test_blocks_without_attention_or_mlp_of_a_known_name_are_refused():
    module = hybrid()
    module.model.layers[3] = nn.Identity()
    with pytest.raises(tn.TnkitError, match="Identity is not a decoder block that tnkit knows"):
        tn.load_model(module, tokenizer=byte_tokenizer())
