"""Evidence: every cell is what an ablation by hand measures, and the selections are those of the controls."""

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.testing import tiny_corpus, tiny_model, tiny_module
from tnkit.tests.test_experts import ids_of, without

HOW = {"language": "it", "top": 9, "draws": 2, "progress": False}


@pytest.fixture(scope="module")
def type1():
    return tn.evidence(tiny_model(), tiny_corpus(), **HOW)


def off(states, corpus, neurons, **how):
    """Mean-centred retrieval@1 by layer, with plain tensors."""
    model = tiny_model()
    with tn.Ablation(model, neurons, tokens="last", **how):
        it = tn.capture(model, corpus["test"]["it"], progress=False).post.double()
    en = tn.capture(model, corpus["test"]["en"], progress=False).post.double()
    it, en = it - it.mean(dim=1, keepdim=True), en - en.mean(dim=1, keepdim=True)
    cosines = torch.nn.functional.normalize(it, dim=-1) @ torch.nn.functional.normalize(en, dim=-1).mT
    return (cosines.argmax(dim=-1) == torch.arange(cosines.shape[-1])).double().mean(dim=-1)[states.layer].item()


def test_the_set_is_what_detection_finds_and_the_layer_is_chosen_on_training_sentences(type1):
    corpus = tiny_corpus()
    detected = tn.detect(tiny_model(), corpus, language="it", top=9, progress=False)
    assert type1.neurons.pairs == detected.neurons.pairs
    en, it = (tn.capture(tiny_model(), corpus["train"][name], progress=False) for name in ("en", "it"))
    assert type1.layer == tn.geometry.retrieval(it, en).best()[0]


def test_cells_are_ablations_by_hand(type1):
    corpus, table = tiny_corpus(), type1.table()
    own = tn.capture(tiny_model(), corpus["train"]["it"], progress=False)
    of_hub = tn.capture(tiny_model(), corpus["train"]["en"], progress=False)
    values = {"zero": {}, "own mean": {"value": "mean", "of": own}, "× 0.25": {"scale": 0.25}}
    values |= {"+ (en − own)": {"add": 1.0, "of": of_hub, "minus": own}}
    for value, how in values.items():
        assert table.loc["the set", value] == pytest.approx(off(type1, corpus, type1.neurons, **how))
    selected = type1.selections["largest norm"]
    assert table.loc["largest norm", "zero"] == pytest.approx(off(type1, corpus, selected))
    draws = [off(type1, corpus, type1.selections["uniform"](seed)) for seed in range(2)]
    assert table.loc["uniform", "zero"] == pytest.approx(np.mean(draws))


def test_every_selection_has_a_row_and_its_balance(type1):
    rows = type1.table().index
    expected = ["none", "the set", "random direction", "shuffled labels", "towards it", "towards the difference"]
    expected += ["largest norm", "equal displacement", "hub placebo", "wrong layers", "centred score", "lowest scores"]
    assert {*expected} <= {*rows}
    assert {*type1.balance.at().index} == {*rows} - {"none"}
    assert type1.table().loc["uniform", ["mean of all", "× 0.5"]].isna().all()  # of the set alone


def test_sentences_without_their_mark_choose_a_selection_or_are_the_whole_study(type1):
    model, corpus = tiny_model(), tiny_corpus()
    for name, suffix in {"without the final mark": "", "one common ending": "\n"}.items():
        found = tn.detect(model, corpus, language="it", top=9, suffix=suffix, progress=False)
        assert type1.selections[name].pairs == found.neurons.pairs
        assert type1.table().loc[name, "zero"] == pytest.approx(off(type1, corpus, found.neurons))
    bare = tn.evidence(model, corpus, suffix="", selections=["uniform"], **HOW)
    assert bare.neurons.pairs == type1.selections["without the final mark"].pairs
    it, en = (tn.capture(model, corpus["test"][name], suffix="", progress=False) for name in ("it", "en"))
    expected = tn.geometry.retrieval(it, en).to_frame().loc[bare.layer].item()
    assert bare.table().loc["none", "zero"] == pytest.approx(expected)
    with pytest.raises(tn.TnkitError, match="selection='one common ending' must be one of"):
        tn.evidence(model, corpus, suffix="", selections=["one common ending"], **HOW)


def test_one_value_is_its_comparison(type1):
    rows = type1.at("own mean")
    assert rows["mean"].tolist() == type1.table()["own mean"].dropna().tolist()
    with pytest.raises(tn.TnkitError, match="value='half' must be one of zero, own mean"):
        type1.at("half")


def test_type2_is_read_in_the_language_and_in_the_hub():
    shown = tn.evidence(tiny_model(), tiny_corpus(), kind="type2", read=2, selections=["uniform"], **HOW)
    assert [*shown.to_frame().index.unique("read")] == ["it", "en"]
    texts, model = tiny_corpus()["test"], tiny_model()
    for name in ("it", "en"):
        expected = tn.behaviour.perplexity(model, texts[name][:2], neurons=shown.neurons, progress=False).nats
        assert shown.table(name).loc["the set", "zero"] == pytest.approx(expected)
    captured, late = tn.capture(model, tiny_corpus()["train"]["it"], progress=False), model.late_layers
    scores = tn.score_neurons(model, captured, tn.estimate_centroids([captured]), layers=late)
    chosen = tn.evidence(model, tiny_corpus(), kind="type2", read=2, selections=["lowest scores"], **HOW)
    assert chosen.selections["lowest scores"].pairs == scores.bottom(9, layers=late).pairs
    assert chosen.plot(values=("zero",)).get_xlabel() == "nats per token"
    every_token = tn.capture(model, tiny_corpus()["train"]["it"], position="mean", progress=False)
    with tn.Ablation(model, shown.neurons, value="mean", of=every_token):
        expected = tn.behaviour.perplexity(model, texts["en"][:2], progress=False).nats
    assert shown.table("en").loc["the set", "own mean"] == pytest.approx(expected)


def test_it_is_drawn_at_the_values_that_are_asked_for(type1):
    axes = type1.plot(values=("zero", "own mean", "en mean"))
    assert [text.get_text() for text in axes.get_yticklabels()] == [*type1.table().index[1:]]
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["set to zero", "set to own mean"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"language": "xx"}, "two languages of en, it, ja"),
        ({"language": "en"}, "two languages of"),
        ({"kind": "type3"}, "type1, type2"),
        ({"selections": ["nothing"]}, "random direction"),
    ],
)
def test_what_cannot_be_shown_is_refused(wrong, message):
    with pytest.raises(tn.TnkitError, match=message):
        tn.evidence(tiny_model(), tiny_corpus(), **{**HOW, **wrong})


@pytest.mark.parametrize("kind", ["type1", "type2"])
def test_neurons_in_experts_are_set_to_what_they_can_be_set_to(kind, caplog):
    model, corpus = tiny_model("qwen2-moe"), tiny_corpus()
    few = ["uniform", "same layers and norms"]
    shown = tn.evidence(model, corpus, kind=kind, selections=few, read=6, **HOW)
    detected = tn.detect(model, corpus, language="it", kind=kind, top=9, progress=False)
    assert shown.neurons.pairs == detected.neurons.pairs
    assert ("own mean" in shown.table()) == (kind == "type1")
    assert ("not to means over tokens" in caplog.text) == (kind == "type2")
    assert shown.plot() is not None
    if kind == "type2":  # the loss of transformers, without the weights that they write with
        off, nats, count = without(tiny_module("qwen2-moe"), model, shown.neurons), 0.0, 0
        for ids in map(ids_of, corpus["test"]["it"][:6]):
            with torch.no_grad():
                nats += float(off(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        assert shown.table().loc["the set", "zero"] == pytest.approx(nats / count, abs=1e-5)
