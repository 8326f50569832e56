"""Activation entropy against a plain loop, average precision against scikit-learn, and planted neurons."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import tnkit as tn
from tnkit.measures.specificity import average_precision, correlation_ratio, gates, lape, lape_of_tokens, rivals
from tnkit.testing import ARCHITECTURES, SENTENCES, tiny_model
from tnkit.tests.measures.test_specificity import made

LANGUAGES = ("en", "ja", "ko")


@pytest.fixture(scope="module")
def captured():
    """Three languages, (2, sentence, 50), with different numbers of sentences and shares of positive activations."""
    draw = np.random.default_rng(0)
    bias = draw.normal(size=(len(LANGUAGES), 2, 1, 50))
    return {
        name: made(draw.normal(size=(2, n, 50)) + bias[place])
        for place, (name, n) in enumerate(zip(LANGUAGES, (30, 21, 26), strict=True))
    }


def plain_lape(captured, top_rate, filter_rate, bar_ratio):
    """The published procedure, a neuron at a time."""
    chances = {}
    for layer in range(2):
        for neuron in range(50):
            active = [part.activations[layer, :, neuron].tolist() for part in captured.values()]
            chances[layer, neuron] = [sum(value > 0 for value in values) / len(values) for values in active]
    ordered = sorted(chance for row in chances.values() for chance in row)
    bar = {rate: ordered[round(len(ordered) * rate) - 1] for rate in (filter_rate, bar_ratio)}
    entropy = {}
    for pair, row in chances.items():
        shares = [chance / sum(row) for chance in row]
        entropy[pair] = -sum(share * math.log(share) for share in shares if share)
    kept = [pair for pair, row in chances.items() if max(row) > bar[filter_rate]]
    lowest = sorted(kept, key=entropy.__getitem__)[: round(100 * top_rate)]
    sets = [[pair for pair in lowest if chances[pair][place] > bar[bar_ratio]] for place in range(3)]
    return entropy, sets


@pytest.mark.parametrize("rates", [(0.1, 0.8, 0.7), (0.3, 0.5, 0.9), (0.01, 0.95, 0.95)])
def test_lape_is_the_published_procedure(captured, rates):
    entropy, sets = plain_lape(captured, *rates)
    found = lape(captured, top_share=rates[0], filter_quantile=rates[1], language_quantile=rates[2])
    assert [list(neurons) for neurons in found.neurons.values()] == sets
    assert any(sets)
    for pair, value in entropy.items():
        assert found.values[pair] == pytest.approx(value, abs=1e-12)
    frame = found.to_frame()
    chosen = next(neurons for neurons in found.neurons.values() if len(neurons))
    assert chosen.scores == tuple(frame.loc[pair, "entropy"] for pair in chosen)


@pytest.mark.filterwarnings("error")
def test_a_neuron_of_one_language_is_given_to_it_and_one_that_never_fires_to_none():
    values = -np.ones((3, 1, 10, 40))
    values[:, :, :3] = 1  # some are active in 3 of 10 sentences of every language
    values[1, :, :, 7] = 1
    values[:, :, :, 8] = -1
    found = lape({name: made(part) for name, part in zip(LANGUAGES, values, strict=True)}, top_share=0.05)
    assert {name: list(neurons) for name, neurons in found.neurons.items()} == {"en": [], "ja": [(0, 7)], "ko": []}
    assert found.values[0, 8] == pytest.approx(math.log(3))
    assert found.probabilities[0, 7].tolist() == [0.3, 1.0, 0.3]
    assert found.to_frame().loc[(0, 7), "P(ja)"] == 1
    lines = {line.get_label(): line.get_ydata() for line in found.plot().lines}
    assert list(lines["Japanese (1)"]) == [1]
    assert list(lines["English (0)"]) == [0]


def test_where_no_neuron_passes_the_filter_the_sets_are_empty_and_a_warning_says_so(caplog):
    found = lape({name: made(np.ones((1, 5, 4))) for name in LANGUAGES})
    assert not any(map(len, found.neurons.values()))
    assert "in no language is any active in a share above 1, the 0.95 quantile" in caplog.text


def sets_of_the_published_code(active, counted, top_rate, filter_rate, bar_ratio):
    """LAPE's identify.py: from counts (layer, neuron, language) and tokens (language) to neurons by language."""
    probabilities = active / counted
    normed = probabilities / probabilities.sum(dim=-1, keepdim=True)
    normed[torch.isnan(normed)] = 0
    logs = torch.where(normed > 0, normed.log(), 0)
    entropy = -torch.sum(normed * logs, dim=-1)
    flat = probabilities.flatten()
    top_prob_value = flat.kthvalue(round(len(flat) * filter_rate)).values.item()
    entropy[(probabilities > top_prob_value).sum(dim=-1) == 0] = torch.inf
    index = entropy.flatten().sort(stable=True).indices[: round(entropy.numel() * top_rate)]  # topk, but for ties
    bar = flat.kthvalue(round(len(flat) * bar_ratio)).values.item()
    rows, columns = index // entropy.size(1), index % entropy.size(1)
    chosen = torch.where((probabilities[rows, columns] > bar).T)
    sets = {name: set() for name in TEXTS}
    for language, place in zip(*chosen, strict=True):
        sets[list(TEXTS)[language]].add((int(rows[place]), int(columns[place])))
    return sets


TEXTS = {"en": SENTENCES[:2], "ja": SENTENCES[2:3], "it": SENTENCES[3:4]}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lape_of_tokens_counts_as_the_published_code_does(name):
    """Every token in turn, by a hook at the activation function (published: the gate's half of `gate_up_proj`)."""
    model = tiny_model(name)
    active = torch.zeros(model.n_layers, model.n_neurons, len(TEXTS), dtype=torch.float64)
    counted = torch.zeros(len(TEXTS), dtype=torch.float64)
    after = []
    hooks = [
        child.register_forward_hook(lambda _, __, output: after.append(output.reshape(-1, output.shape[-1])))
        for path, child in model.module.named_modules()
        if path.rpartition(".")[2] in ("act_fn", "activation_fn", "act", "gelu_impl", "act_func")
    ]
    for language, sentences in enumerate(TEXTS.values()):
        for sentence in sentences:
            after.clear()
            ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
            with torch.inference_mode():
                model.module(input_ids=ids)
            assert len(after) == model.n_layers
            for layer, values in enumerate(after):
                for token in range(1, ids.shape[1]):  # without BOS
                    active[layer, :, language] += (values[token] > 0).double()
            counted[language] += ids.shape[1] - 1
    for hook in hooks:
        hook.remove()
    rates = {"top_share": 0.1, "filter_quantile": 0.6, "language_quantile": 0.7}
    found = lape_of_tokens(model, TEXTS, **rates, batch_tokens=90, progress=False)
    assert np.allclose(found.probabilities, (active / counted).numpy(), atol=1e-12)
    published = sets_of_the_published_code(active, counted, *rates.values())
    assert {language: set(neurons) for language, neurons in found.neurons.items()} == published
    assert any(published.values()) or name == "gpt-neox-sequential"  # whose probabilities are mostly 1
    assert found.provenance["position"] == "all"
    assert [entry["n"] for entry in found.provenance["sentences"]] == [2, 1, 1]


def test_an_mlp_whose_gate_has_another_name_is_refused(monkeypatch):
    monkeypatch.setattr(gates, "_GATES", ())
    monkeypatch.setattr(gates, "_UNGATED", ())
    with pytest.raises(tn.TnkitError, match="gate_proj, up_proj, down_proj, act_fn, but no gate with a known name"):
        lape_of_tokens(tiny_model(), TEXTS, progress=False)
    with pytest.raises(tn.TnkitError, match=r"cannot compare 1 language\(s\)"):
        lape_of_tokens(tiny_model(), {"en": SENTENCES}, progress=False)


def test_the_threshold_says_what_is_active(captured):
    assert np.array_equal(
        lape(captured, threshold=0.5).probabilities[0, :, 1],
        (captured["ja"].activations[0] > 0.5).double().mean(dim=0).numpy(),
    )


@pytest.mark.parametrize("digits", [None, 0, 1])
def test_average_precision_is_that_of_scikit_learn_with_ties_and_without(captured, digits):
    """Rounded activations are tied in runs, with zeros of both signs."""
    parts = {
        name: made(part.activations if digits is None else part.activations.numpy().round(digits))
        for name, part in captured.items()
    }
    found = average_precision(parts, "ja")
    label = np.repeat([name == "ja" for name in LANGUAGES], [30, 21, 26])
    together = np.concatenate([part.activations.numpy() for part in parts.values()], axis=1)
    if digits == 0:
        assert np.signbit(together[together == 0]).any()
    for layer in range(2):
        for neuron in range(50):
            expected = average_precision_score(label, together[layer, :, neuron])
            assert found.values[layer, neuron] == pytest.approx(expected, rel=1e-12)


def test_neighbouring_float32_values_are_not_ties():
    values = np.array([1, 0, 1, 0], dtype=np.float32)  # from the highest
    close = np.float32(0.1) - np.arange(4, dtype=np.float32) * np.spacing(np.float32(0.1))
    parts = {"ja": made(close[values == 1][None, :, None]), "en": made(close[values == 0][None, :, None])}
    assert average_precision(parts, "ja").values[0, 0] == pytest.approx((1 + 2 / 3) / 2)
    negative = {name: made(-part.activations) for name, part in parts.items()}
    assert average_precision(negative, "ja").values[0, 0] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_neurons_high_and_low_in_a_language_are_top_and_bottom(captured):
    values = {name: part.activations.clone() for name, part in captured.items()}
    values["ja"][0, :, 3] += 40
    values["ja"][1, :, 4] -= 40
    for part in values.values():
        part[1, :, 5] = 0.25
    found = average_precision({name: made(part) for name, part in values.items()}, "ja")
    assert found.top(2)[0] == (0, 3)
    assert found.top(1).scores == (1.0,)
    assert found.bottom(1)[0] == (1, 4)
    assert found.bottom(100)[::-1].scores == found.top(100).scores
    assert found.values[1, 5] == pytest.approx(21 / 77)
    assert found.chance == 21 / 77
    assert found.to_frame().loc[(0, 3), "average precision"] == 1
    assert found.plot().lines[-1].get_xdata()[0] == found.chance
    with pytest.raises(tn.TnkitError, match="top 0 was asked for; 2 layers of 50 neurons hold 100"):
        found.top(0)


def test_a_width_that_is_no_multiple_of_the_block_keeps_its_order():
    draw = np.random.default_rng(5)
    parts = {name: made(draw.normal(size=(1, 5, 600))) for name in ("en", "ja")}
    found = average_precision(parts, "ja").values
    for neuron in (0, 255, 256, 511, 512, 599):
        alone = {name: made(part.activations[:, :, neuron : neuron + 1]) for name, part in parts.items()}
        assert average_precision(alone, "ja").values[0, 0] == found[0, neuron]
    assert found.shape == (1, 600)


@pytest.mark.parametrize("measure", [lape, lambda parts: average_precision(parts, "ja"), correlation_ratio])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"weights": "b"}}, r"model \({'weights': 'a'} and {'weights': 'b'}\)"),
        ({"position": "mean"}, r"position \('last' and 'mean'\)"),
        ({"ablations": [{"neurons": 3}]}, r"ablations \(None and \[{'neurons': 3}\]\)"),
        ({"suffix": "."}, r"suffix \(None and '.'\)"),
    ],
)
def test_captures_of_different_models_positions_or_ablations_are_refused(measure, change, words):
    about = {"model": {"weights": "a"}, "position": "last"}
    values = np.random.default_rng(1).normal(size=(2, 1, 6, 20))
    alike = {name: made(part, **about) for name, part in zip(("en", "ja"), values, strict=True)}
    with pytest.raises(tn.TnkitError, match=f"en and ja are captures of different {words}"):
        measure(alike | {"ja": made(values[1], **(about | change))})


def test_what_cannot_be_compared_is_refused(captured):
    alone = {"en": captured["en"]}
    for ask in (lape, lambda parts: average_precision(parts, "en")):
        with pytest.raises(tn.TnkitError, match=r"cannot compare 1 language\(s\); capture at least 2"):
            ask(alone)
        with pytest.raises(tn.TnkitError, match="the capture of it has no sentences"):
            ask(captured | {"it": made(np.ones((2, 0, 50)))})
    with pytest.raises(tn.TnkitError, match="no capture of 'it'"):
        average_precision(captured, "it")
    with pytest.raises(tn.TnkitError, match=r"top_share=1\.5 must be a share"):
        lape(captured, top_share=1.5)
    with pytest.raises(tn.TnkitError, match="hold post"):
        lape({name: tn.Activations((0,), part.index, post=part.activations[:1]) for name, part in captured.items()})


def test_rivals_are_as_many_from_the_same_layers(captured):
    """Against a sort by entropy of all that pass both filters, and by scikit-learn's average precision."""
    neurons = tn.NeuronSet(tuple((1, neuron) for neuron in range(4)), (2, 50))
    found = rivals(captured, neurons, language="ja", filter_quantile=0.6, language_quantile=0.5)
    entropy, sets = plain_lape(captured, 1.0, 0.6, 0.5)
    assert list(found["LAPE"]) == [pair for pair in sets[1] if pair[0] == 1][:4]
    assert found["LAPE"].scores == pytest.approx([entropy[pair] for pair in found["LAPE"]])
    labels = np.concatenate([np.full(len(part), name == "ja") for name, part in captured.items()])
    values = np.concatenate([part.activations[1].numpy() for part in captured.values()])
    precision = [average_precision_score(labels, values[:, neuron]) for neuron in range(50)]
    best = sorted(range(50), key=lambda neuron: -precision[neuron])[:4]
    assert list(found["average precision"]) == [(1, neuron) for neuron in best]
    many = tn.NeuronSet(tuple((1, neuron) for neuron in range(50)), (2, 50))
    with pytest.raises(tn.TnkitError, match=r"LAPE gives ja .* fewer than the 50 of the set"):
        rivals(captured, many, language="ja")
