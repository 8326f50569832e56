"""The balance of sets whose contributions are known."""

import copy

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_corpus, tiny_model, tiny_module
from tnkit.tests import oracle

SHAPE = (4, 48)


@pytest.fixture(scope="module")
def planted():
    """In layer 1 neurons 0 to 3 write 2 along one axis, 4 and 6 along another, 5 and 7 against it; all are 1."""
    module = copy.deepcopy(tiny_module("llama"))
    with torch.no_grad():
        weight = torch.zeros(32, 48)
        weight[0, :4], weight[1, [4, 6]], weight[1, [5, 7]] = 2, 2, -2
        module.model.layers[1].mlp.down_proj.weight.copy_(weight)
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = tn.Activations(
        tuple(range(4)), torch.arange(3), activations=torch.ones(4, 3, 48), scale=torch.ones(4, 3)
    )
    sets = {
        "the set": tn.NeuronSet(tuple((1, neuron) for neuron in range(4)), SHAPE),
        "same norms": tn.NeuronSet(tuple((1, neuron) for neuron in range(4, 8)), SHAPE),
        "half": tn.NeuronSet(((1, 0), (1, 1), (1, 4), (1, 5)), SHAPE),
        "draws": lambda seed: tn.NeuronSet(((1, 0),) if seed else ((1, 0), (1, 1)), SHAPE),
        "nothing": tn.NeuronSet((), SHAPE),
    }
    return tn.balance(model, {"ja": captured}, sets, language="ja", seeds=2)


def test_what_is_matched_in_norm_need_not_be_in_displacement(planted):
    whole = planted.at()
    assert whole.loc["the set"].tolist() == [4, 2, 8, 1, 4]
    assert whole.loc["same norms"].tolist()[:3] == [4, 2, 0] and whole.loc["same norms", "shared"] == 0
    assert whole.loc["half"].tolist() == [4, 2, 4, 1, 2]
    assert whole.loc["draws"].tolist() == [1.5, 2, 3, 1, 1.5]
    assert whole.loc["nothing", ["size", "displacement"]].tolist() == [0, 0]
    assert np.isnan(whole.loc["same norms", "cosine"]) and np.isnan(whole.loc["nothing", "norm"])
    matched = planted.matched()
    assert matched.loc["same norms"].to_dict() == {"size": True, "layers": True, "norm": True, "displacement": False}
    assert matched.loc["the set"].all() and not matched.loc["nothing"].any()
    assert "matched in size, layers, norm, not in displacement" in planted._repr_html_()


def test_the_frame_is_a_copy_and_the_plot_shows_every_condition(planted):
    frame = planted.to_frame()
    assert frame.index.names == ["condition", "layer"] and {*frame.index.levels[1]} == {1, "all"}
    frame["size"] = 9
    assert planted.at()["size"].tolist() == [4, 4, 4, 1.5, 0]
    drawn = planted.plot()
    assert [label.get_text() for label in drawn.get_yticklabels()] == [*frame.index.unique("condition")]
    assert [label.get_text() for label in drawn.get_xticklabels()] == ["1", "all"]
    assert [text.get_text() for text in drawn.texts][::2] == ["1.00", "0.00", "0.50", "0.38", "0.00"]


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_every_number_is_that_of_sums_of_hooks(name):
    model, neurons = tiny_model(name), tn.NeuronSet(((0, 5), (0, 9), (2, 7)), SHAPE)
    control = tn.NeuronSet(((0, 5), (0, 1), (2, 3)), SHAPE)
    sets = {"the set": neurons, "control": control}
    captured = {"ja": tn.capture(model, SENTENCES, progress=False)}
    found = tn.balance(model, captured, sets, language="ja").to_frame()
    added = []
    for sentence in SENTENCES:
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        added.append(torch.stack(oracle.contributions(tiny_module(name), model.blocks_path, model.sites, ids)[1]))
    mean, norms = torch.stack(added).mean(dim=0), torch.stack(added).norm(dim=-1).mean(dim=0)
    for layer, chosen in {0: [0], 2: [2], "all": [0, 2]}.items():
        moved = {}
        for condition, some in sets.items():
            pairs = [pair for pair in some if pair[0] in chosen]
            moved[condition] = sum(mean[pair] for pair in pairs)
            row = found.loc[(condition, layer)]
            assert row["norm"] == pytest.approx(float(np.mean([norms[pair] for pair in pairs])), rel=1e-4)
            assert row["displacement"] == pytest.approx(float(moved[condition].norm()), rel=1e-4)
        cosine = torch.nn.functional.cosine_similarity(moved["the set"], moved["control"], dim=0)
        assert found.loc[("control", layer), "cosine"] == pytest.approx(float(cosine), abs=1e-5)
    assert found["shared"].tolist() == [2, 1, 3, 1, 0, 1]


def held(*points):
    """Captures of three languages whose centroids in layer 0 are these points."""
    options = {"activations": torch.ones(1, 4, 48), "scale": torch.ones(1, 4)}
    states = [torch.tensor(point).expand(1, 4, 32) for point in points]
    return {
        name: tn.Activations((0,), torch.arange(4), post=state.contiguous(), **options)
        for name, state in zip(("en", "ja", "ko"), states, strict=True)
    }


def test_a_target_that_tells_nothing_apart_is_seen():
    axes = np.eye(32, dtype=np.float32)
    alike = held(*(np.ones(32, dtype=np.float32) + 0.05 * axes[place] for place in range(3)))
    massive = held(9 * axes[0] + axes[1], 9 * axes[0] - 9 * axes[2], 9 * axes[0] + 20 * axes[3])
    some, model = {"the set": tn.NeuronSet(((0, 5),), SHAPE)}, tiny_model()
    target = tn.balance(model, alike, some, language="ja", target=["en", "ja"]).target
    assert (target[["en", "ja", "ko"]] > 0.99).all(axis=None)
    target = tn.balance(model, massive, some, language="ja", target=["en", "ja"]).target
    centroid = np.array([9, 0.5, -4.5])  # the others are 0
    assert target.loc[0, "largest coordinate"] == pytest.approx(81 / (centroid @ centroid))
    assert target.loc[0, "ko"] == pytest.approx(81 / np.sqrt(centroid @ centroid) / np.sqrt(81 + 400))
    assert tn.balance(model, massive, some, language="ja").target is None


def test_all_controls_have_a_balance():
    model, corpus = tiny_model(), tiny_corpus()
    captured = {name: tn.capture(model, texts, progress=False) for name, texts in corpus["train"].items()}
    type1 = tn.detect(model, corpus, language="ja", top=12, progress=False).neurons
    rivals = tn.controls(type1, layers=[0, 1], model=model, captured=captured)
    found = tn.balance(model, captured, {"the set": type1, **rivals}, seeds=2)
    assert found.at().index.tolist() == ["the set", *rivals]
    matched = found.matched()
    assert matched.loc[["same layers", "same layers and norms", "equal displacement"], ["size", "layers"]].all(
        axis=None
    )
    assert not matched.loc["wrong layers", "layers"]
    assert found.target.columns.tolist() == ["largest coordinate", "en", "it", "ja"]


def test_what_has_no_balance_is_refused():
    model, some = tiny_model(), tn.NeuronSet(((0, 5),), SHAPE)
    captured = {"ja": tn.capture(model, SENTENCES, progress=False)}
    with pytest.raises(tn.TnkitError, match="the first condition must be the neuron set"):
        tn.balance(model, captured, {"draws": lambda seed: some.matched(seed=seed)}, language="ja")
    with pytest.raises(tn.TnkitError, match="which they do not name; there are ja: name one"):
        tn.balance(model, captured, {"the set": some})
    with pytest.raises(tn.TnkitError, match="there is no capture of ko"):
        tn.balance(model, captured, {"the set": some}, language="ko")
