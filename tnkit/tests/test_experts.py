"""Models of experts against a black box: one neuron of one expert is removed, and what leaves the block is compared."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tnkit as tn
from tnkit.detection.scoring import contribution_norms, routed_shares
from tnkit.models.proofs import completeness_error
from tnkit.testing import EXPERTS, SENTENCES, byte_tokenizer, tiny_corpus, tiny_model, tiny_module
from tnkit.tests.oracle import assert_near

# a gated shared expert; a dense layer first; biases; a router that multiplies what experts read
SOME = ("qwen2-moe", "deepseek-v3", "gpt-oss", "llama4")


def ids_of(sentence):
    return torch.tensor([byte_tokenizer()(sentence)["input_ids"]])


def last_states(module, model, layer, sentence):
    """What leaves a block at the last token, and the sum that its branch is added to."""
    found, block = {}, module.get_submodule(f"{model.blocks_path}.{layer}")
    first = lambda value: value[0] if isinstance(value, tuple) else value  # noqa: E731
    handles = [block.register_forward_hook(lambda _, __, output: found.update(post=first(output)[0, -1].double()))]
    mid = block.get_submodule(model.sites[layer].mid)
    handles.append(
        mid.register_forward_pre_hook(
            lambda _, args, kwargs: found.update(
                mid=[*args, *kwargs.values()][0].reshape(1, -1, model.hidden_size)[0, -1].double()
            ),
            with_kwargs=True,
        )
    )
    with torch.inference_mode():
        module(input_ids=ids_of(sentence), use_cache=False)
    for handle in handles:
        handle.remove()
    return found["mid"], found["post"]


def without(module, model, neurons):
    """A copy of the module in which the weights that neurons write with are 0."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for layer, neuron in neurons:
            sites, block = model.sites[layer], module.get_submodule(f"{model.blocks_path}.{layer}")
            last_map = block.get_submodule(sites.last_map)
            if sites.experts is None:
                last_map.weight[:, neuron] = 0
                continue
            down = last_map.down_proj
            count, width = down.shape[0], down.shape[1 if getattr(last_map, "is_transposed", True) else 2]
            expert, index = divmod(neuron, width)
            if expert >= count:
                block.get_submodule(sites.experts.shared).weight[:, neuron - count * width] = 0
            elif getattr(last_map, "is_transposed", True):
                down[expert, index] = 0
            else:
                down[expert, :, index] = 0
    return module


def some_neurons(model, layer):
    """Neurons of every kind in a layer: the ten of largest contribution in the first sentence, and others at random."""
    found = captured(model.name)
    sizes = found.of_layer(layer)[0].abs()[: model.widths[layer]]
    random = np.random.default_rng(layer).choice(model.widths[layer], 6, replace=False)
    return [(layer, int(neuron)) for neuron in dict.fromkeys([*sizes.topk(10).indices.tolist(), *random.tolist()])]


@cache
def captured(name):
    model = next(model for model in map(tiny_model, EXPERTS) if model.name == name)
    return tn.capture(model, SENTENCES, progress=False)


@pytest.mark.parametrize("name", EXPERTS)
def test_activations_and_scores_are_what_removing_a_neuron_changes(name):
    model, module, sentences = tiny_model(name), tiny_module(name), SENTENCES[:2]
    assert completeness_error(model).max() < 1e-4
    found = tn.capture(model, sentences, keep=("mid", "post", "activations"), progress=False)
    target = tn.estimate_centroids([found])
    scores = tn.score_neurons(model, found, target)
    for layer in (0, model.n_layers - 1):
        vectors = model.value_vectors(layer).double() * model.output_gain(layer).double()
        plain = [last_states(module, model, layer, sentence) for sentence in sentences]
        for number, (mid, post) in enumerate(plain):
            assert_near(found.mid[layer, number].double(), mid)
            assert_near(found.post[layer, number].double(), post)
        biggest = int(found.of_layer(layer)[0].abs().argmax())
        routed = next((n for n in range(model.widths[layer]) if found.of_layer(layer)[0, n] != 0), 0)
        for neuron in {biggest, routed, model.widths[layer] - 1, 3}:
            off, expected = without(module, model, [(layer, neuron)]), []
            for number, (sentence, (mid, post)) in enumerate(zip(sentences, plain, strict=True)):
                moved = (
                    found.scale[layer, number].double()
                    * found.of_layer(layer)[number, neuron].double()
                    * vectors[neuron]
                )
                if not model.sites[layer].norm:
                    gone = post - last_states(off, model, layer, sentence)[1]
                    assert (gone - moved).abs().max() < 1e-5 * post.abs().max()
                near = lambda state: torch.nn.functional.cosine_similarity(state, target.at(layer).double(), dim=0)  # noqa: E731, B023
                expected.append(float(near(mid + moved) - near(mid)))
            assert abs(float(scores.values[layer, neuron]) - np.mean(expected)) < 1e-6


@pytest.mark.parametrize("name", SOME[:3])
@pytest.mark.parametrize("kernel", ["eager", "grouped_mm", "batched_mm"])
def test_every_kernel_of_transformers_reads_the_same(name, kernel):
    module = copy.deepcopy(tiny_module(name))
    module.set_experts_implementation(kernel)
    found = tn.capture(tn.load_model(module, tokenizer=byte_tokenizer()), SENTENCES, progress=False)
    whole = tn.capture(tiny_model(name), SENTENCES, batch_tokens=1, progress=False)
    assert torch.equal(found.experts, whole.experts)
    assert_near(found.activations, whole.activations)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_ablating_neurons_is_zeroing_what_they_write(name, tokens):
    model, module = tiny_model(name), tiny_module(name)
    neurons = [pair for layer in range(model.n_layers) for pair in some_neurons(model, layer)]
    off = without(module, model, neurons)
    ids = ids_of(SENTENCES[3])
    with torch.inference_mode(), tn.Ablation(model, neurons, tokens=tokens) as ablation:
        found = module(input_ids=ids, use_cache=False).logits
        read = tn.capture(model, SENTENCES[:2], progress=False)
        assert ablation.count > 0
    if tokens == "all":
        with torch.inference_mode():
            assert_near(found, off(input_ids=ids, use_cache=False).logits)
        expected = tn.capture(tn.load_model(off, tokenizer=byte_tokenizer()), SENTENCES[:2], progress=False)
        assert_near(read.post, expected.post)
    for layer, neuron in neurons:
        assert not read.of_neurons(layer, [neuron]).any()
    if tokens == "last":
        prefix = tn.LastToken(model, SENTENCES[:2], progress=False)
        assert_near(prefix.capture(neurons).post, read.post)
        assert_near(prefix.capture(neurons).activations, read.activations)
        with torch.inference_mode():  # every token but the last is as it was
            assert_near(found[:, :-1], module(input_ids=ids, use_cache=False).logits[:, :-1])


@pytest.mark.parametrize("name", SOME)
def test_generation_is_ablated_at_every_token_or_at_the_prompt(name):
    model, module = tiny_model(name), tiny_module(name)
    neurons = [pair for layer in range(model.n_layers) for pair in some_neurons(model, layer)]
    off, ids = without(module, model, neurons), ids_of(SENTENCES[0])
    how = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    with tn.Ablation(model, neurons):
        found = module.generate(ids, **how)
    assert torch.equal(found, off.generate(ids, **how))
    with tn.Ablation(model, neurons, tokens="prompt") as ablation:
        module.generate(ids, **how)
    with tn.Ablation(model, neurons, tokens="prompt") as once, torch.inference_mode():
        module(input_ids=ids)
    assert ablation.count == once.count


def test_set_values_count_where_experts_run_and_nowhere_else():
    model = tiny_model("qwen2-moe")
    found = tn.capture(model, SENTENCES, progress=False)
    neurons = [(1, neuron) for neuron in range(0, model.widths[1], 3)]
    places = [neuron for _, neuron in neurons]
    ran, before = found.ran(1, places), found.of_neurons(1, places)
    means = before.sum(dim=0) / ran.sum(dim=0).clamp_min(1)
    with tn.Ablation(model, tn.Intervention(neurons, value="mean", of=found), tokens="last") as ablation:
        off = tn.capture(model, SENTENCES, progress=False)
    assert ablation.count == int(ran.sum())
    assert_near(off.of_neurons(1, places), torch.where(ran, means, 0.0).float())
    moved = (off.of_layer(1) - found.of_layer(1)) @ model.value_vectors(1)
    assert_near(off.post[1] - found.post[1], moved, 1e-4)
    with tn.Ablation(model, tn.Intervention(neurons, scale=0.5), tokens="last"):
        with tn.Ablation(model, tn.Intervention(neurons[:9], scale=0.5), tokens="last"):
            half = tn.capture(model, SENTENCES, progress=False)
    assert_near(half.of_neurons(1, places[9:]), before[:, 9:] / 2)
    assert_near(half.of_neurons(1, places[:9]), before[:, :9] / 4)
    assert_near(half.post[1] - found.post[1], (half.of_layer(1) - found.of_layer(1)) @ model.value_vectors(1), 1e-4)
    one = tn.capture(model, SENTENCES[:1], progress=False)
    never = next(neuron for neuron in range(model.widths[1]) if not one.ran(1, [neuron]).any())
    with tn.Ablation(model, [(1, never)], tokens="last") as nothing:
        tn.capture(model, SENTENCES[:1], progress=False)
    assert nothing.count == 0


@pytest.mark.parametrize("name", SOME)
def test_an_exported_model_is_the_ablated_one(name, tmp_path):
    model = tiny_model(name)
    neurons = [pair for layer in range(model.n_layers) for pair in some_neurons(model, layer)]
    folder = tn.export_ablated(model, neurons, tmp_path / "off")
    off = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode(), tn.Ablation(model, neurons):
        expected = model.module(input_ids=ids_of(SENTENCES[0]), use_cache=False).logits
    with torch.inference_mode():
        assert_near(off(input_ids=ids_of(SENTENCES[0]), use_cache=False).logits, expected)


@pytest.mark.parametrize("name", SOME)
def test_detections_streamed_cached_and_saved_are_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    model, options = tiny_model(name), {"top": 20, "progress": False, "languages": ["ja"]}
    held = tn.detect_all(model, tiny_corpus(), **options)
    for more in ({"streaming": True}, {"cache": True}, {"cache": True}, {"cache": True, "streaming": True}):
        again = tn.detect_all(model, tiny_corpus(), **options, **more)
        for key, detection in held.items():
            assert again[key].neurons.pairs == detection.neurons.pairs
            assert torch.equal(again[key].scores.routed.nan_to_num(-1), detection.scores.routed.nan_to_num(-1))
            assert_near(again[key].scores.values.nan_to_num(0), detection.scores.values.nan_to_num(0))
    found = held["ja", "type1"]
    loaded = tn.Detection.load(found.save(tmp_path / "found"))
    assert loaded.neurons == found.neurons and loaded.neurons.layout == found.neurons.layout
    assert loaded.scores.to_frame().equals(found.scores.to_frame())
    assert found.to_frame()["expert"].notna().sum() > 0
    kept = tn.capture(model, SENTENCES, cache=True, progress=False)
    again = tn.Activations.load(tn.capture(model, SENTENCES, cache=True, progress=False).save(tmp_path / "captured"))
    assert torch.equal(again.activations, kept.activations) and torch.equal(again.experts, kept.experts)


@pytest.mark.parametrize("name", SOME)
def test_a_score_is_the_mean_over_all_sentences_and_the_share_stands_beside_it(name):
    model = tiny_model(name)
    found = tn.capture(model, tiny_corpus()["train"]["ja"], progress=False)
    scores = tn.score_neurons(model, found, tn.estimate_centroids([found]))
    shares = routed_shares(model, found)
    assert torch.equal(scores.shares().float().nan_to_num(-1), shares.nan_to_num(-1))
    frame = scores.to_frame()
    for layer in range(model.n_layers):
        ran = found.ran(layer, range(model.widths[layer])).float().mean(dim=0)
        assert np.allclose(frame.loc[layer, "routed"], ran)
    layer = model.n_layers - 1
    neuron = int(torch.where((shares[layer] > 0) & (shares[layer] < 1))[0][0])
    chosen = [n for n in range(len(found)) if found.ran(layer, [neuron])[n]]
    texts = tiny_corpus()["train"]["ja"]
    few = tn.capture(model, [texts[n] for n in chosen], progress=False)
    alone = tn.score_neurons(model, few, tn.estimate_centroids([found]))
    assert frame.loc[(layer, neuron), "score where routed"] == pytest.approx(
        float(alone.values[layer, neuron]), abs=1e-7
    )


def test_controls_run_as_often_and_write_as_much():
    model = tiny_model("qwen2-moe")
    found = tn.capture(model, tiny_corpus()["train"]["ja"], progress=False)
    scores = tn.score_neurons(model, found, tn.estimate_centroids([found]))
    norms, shares = contribution_norms(model, found), scores.shares()
    chosen = scores.top(20)
    mean = lambda sets, values: np.mean([float(values[pair]) for neurons in sets for pair in neurons])  # noqa: E731
    controls = tn.controls(chosen, norms=norms, scores=scores)
    matched = [controls["same layers and norms"](seed) for seed in range(10)]
    assert abs(mean(matched, shares) - mean([chosen], shares)) < 0.1
    uniform = [controls["uniform"](seed) for seed in range(10)]
    assert mean(matched, norms) > 2 * mean(uniform, norms)
    assert mean(uniform, shares) < 0.7 * mean([chosen], shares)
    captures = {name: tn.capture(model, tiny_corpus()["train"][name], progress=False) for name in ("en", "ja", "it")}
    detected = tn.detect(model, tiny_corpus(), language="ja", top=8, progress=False).neurons
    for name, control in tn.controls(detected, model=model, captured=captures).items():
        assert len(control(0) if callable(control) else control), name


def test_measures_see_neurons_and_not_slots():
    model = tiny_model("qwen2-moe")
    captures = {name: tn.capture(model, tiny_corpus()["train"][name], progress=False) for name in ("en", "ja")}
    dense = {
        name: np.stack([found.of_layer(layer).numpy() for layer in range(model.n_layers)])
        for name, found in captures.items()
    }
    found = tn.specificity.correlation_ratio(captures)
    assert found.eta2.shape == (model.n_layers, model.n_neurons)
    values = np.concatenate([*dense.values()], axis=1)[2]
    between = sum(len(part[2]) * (part[2].mean(0) - values.mean(0)) ** 2 for part in dense.values())
    total = ((values - values.mean(0)) ** 2).sum(0)
    assert np.allclose(found.eta2[2], np.divide(between, total, out=np.zeros_like(total), where=total > 0), atol=1e-4)
    assert len(tn.specificity.table(found.top(5), captures).to_frame()) == 5
    assert tn.geometry.similarity(captures["en"], captures["ja"], site="activations") is not None
    assert tn.lens.promoted(model, [(0, 5), (1, model.widths[1] - 1)], k=3).promoted_ids.shape == (2, 3)


def test_means_over_tokens_and_experts_of_dense_models_are_refused():
    with pytest.raises(tn.TnkitError, match="sent to different experts"):
        tn.capture(tiny_model("qwen2-moe"), SENTENCES, position="mean", progress=False)
    assert tn.capture(tiny_model("qwen2-moe"), SENTENCES, position="mean", keep=["mid"], progress=False).mid is not None
    with pytest.raises(tn.TnkitError, match="has no experts"):
        tn.capture(tiny_model("llama"), SENTENCES, keep=["experts"], progress=False)


def test_activations_of_experts_that_did_not_run_are_not_kept():
    model = tiny_model("qwen2-moe")
    found = tn.capture(model, SENTENCES, progress=False)
    shared = model.widths[0] - 6 * 24
    assert found.activations.shape[2] == model.places == 2 * 24 + shared < model.n_neurons
    assert (found.of_layer(1) != 0).sum(dim=1).max() <= 2 * 24 + shared


def test_routing_counts_sentences_and_sees_a_set_in_few_experts():
    model, texts = tiny_model("deepseek-v3"), tiny_corpus()["train"]
    captures = {name: tn.capture(model, texts[name], keep=["experts"], progress=False) for name in ("en", "ja", "it")}
    sent = tn.specificity.routing(captures)
    assert sent.layers == (1, 2, 3)
    frame = sent.to_frame()
    for name, capture in captures.items():
        for layer, expert in ((1, 0), (3, 5)):
            share = float((capture.experts[layer] == expert).any(dim=1).float().mean())
            assert frame.loc[(layer, expert), name] == pytest.approx(share)
    p, q = (sent.shares[name][0] / sent.shares[name][0].sum() for name in ("en", "ja"))
    others = (p + sent.shares["it"][0] / sent.shares["it"][0].sum()) / 2
    assert sent.apart().loc[1, "ja"] == pytest.approx(np.abs(q - others).sum() / 2)
    layout = tuple(map(tuple, model.layout))
    busy = [int(sent.shares["ja"][row].argmax()) for row in range(3)]
    few = tuple((row + 1, expert * 24 + number) for row, expert in enumerate(busy) for number in range(12))
    inside = sent.concentration(tn.NeuronSet(few, (4, model.n_neurons), layout=layout), language="ja").iloc[0]
    assert inside["experts"] == pytest.approx(3) and inside["p"] < 0.02 and inside["low"] > 3
    # drawn as the controls are, a set is not concentrated
    random, drawn = np.random.default_rng(9), []
    for row in range(3):
        weights = np.repeat(sent.shares["ja"][row], 24)
        picked = random.choice(144, 12, replace=False, p=weights / weights.sum())
        drawn += [(row + 1, int(neuron)) for neuron in picked]
    row = sent.concentration(tn.NeuronSet(tuple(drawn), (4, model.n_neurons), layout=layout), language="ja").iloc[0]
    assert row["p"] > 0.02 and row["neurons"] == 36
    with pytest.raises(tn.TnkitError, match="none of these neurons is in an expert"):
        sent.concentration(tn.NeuronSet(((0, 3), (1, 144)), (4, model.n_neurons), layout=layout), language="ja")
    assert sent.plot() is not None
