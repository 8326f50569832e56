"""Steering: a planted neuron that writes a language is found, steers and wins; the numbers by another route."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import tnkit as tn
from tnkit.measures.steering import study
from tnkit.testing import letters, redrawn, steered, tiny_config, tiny_corpus, tiny_model

pytest.importorskip("lingua")
QUIET = {"progress": False}
WORDS = {
    "en": "where there which weather through should thought every".split(),
    "it": "della quando perché sempre questo giorno qualche ancora".split(),
}
SPECIAL = ["<bos>", "<eos>", "<pad>"]
PLANTED = (2, 7)
OPTIONS = {"candidates": ["en", "it"], "encode": letters, "max_new_tokens": 4, **QUIET}


@pytest.fixture(scope="module")
def planted():
    """A model that says English words, and Italian ones where the planted neuron is active, as in Italian text."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *WORDS["en"], *WORDS["it"]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    config = tiny_config("llama")
    config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = len(vocabulary), 0, 1, 2
    module = redrawn(AutoModelForCausalLM.from_config(config))
    italian, (layer, neuron) = slice(3 + len(WORDS["en"]), None), PLANTED
    with torch.no_grad():
        embedded, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
        embedded[:, :3] = 0.0
        embedded[italian, 0] = 1.0  # says that a token is Italian
        embedded[:, 2] = 1.0  # of every token
        head[:, :3] = 0.0
        head[:3, 2], head[3:, 2] = -9.0, 3.0  # words, no special tokens
        head[italian, 1], head[italian, 2] = 6.0, 0.0
        mlp = module.model.layers[layer].mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight[neuron] = 0.0
            linear.weight[neuron, 0] = 3.0
        for block in module.model.layers:
            block.mlp.down_proj.weight[:3] = 0.0
            block.self_attn.o_proj.weight[:3] = 0.0
        mlp.down_proj.weight[:, neuron] = 0.0
        mlp.down_proj.weight[1, neuron] = 1.0
    return tn.load_model(module, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    rows = {name: [" ".join(random.permutation(words)[:5]) for _ in range(12)] for name, words in WORDS.items()}
    return tn.load_corpus(pd.DataFrame(rows | {"split": ["train"] * 8 + ["test"] * 4}))


def test_a_planted_neuron_is_found_steers_and_wins(planted, texts):
    found = tn.detect(planted, texts, language="it", kind="type2", top=3, **QUIET).neurons
    assert PLANTED in found
    only = tn.NeuronSet((PLANTED,), found.shape, provenance=found.provenance)
    names = ["same layers and norms", "lowest scores", "random vector"]
    prompts = texts["test"]["en"]
    how = {"strengths": [0, 1, 2], "selections": names, "draws": 3, "layer": 2}
    shown = tn.steer(planted, prompts, {"it": only}, texts["train"], **how, **OPTIONS)
    shares = shown.to_frame()["share"].xs("it")
    assert shares["none", 0.0] == shares["the set", 0.0] == 0.0
    assert shares["the set", 1.0] == shares["the set", 2.0] == 1.0
    for name in names:
        assert shares[name, 1.0] < 0.5, name
    rows = shown.compared("it", 1).at()
    assert (rows["effect"].drop("the set") > 0.5).all()
    assert (shown.to_frame()["lines"].xs("it")["the set", 1.0]) == 1.0
    moved = shown.provenance["moved"]["it"]
    means = [tn.capture(planted, texts["train"][name], position="mean", **QUIET).activations for name in ("it", "en")]
    vector = planted.value_vectors(2)[7]
    expected = float((means[0][2].mean(0) - means[1][2].mean(0))[7] * vector.norm())
    assert moved["the set"] == pytest.approx(abs(expected), rel=1e-5)
    off = [tn.Intervention([PLANTED]), found - only]
    beside = tn.steer(
        planted, texts["test"]["en"], {"it": off}, texts["train"], strengths=[1], selections=[], **OPTIONS
    )
    assert beside.to_frame()["share"]["it", "the set", 1.0] < 0.5


def test_strength_nothing_is_the_untouched_model_and_others_are_the_interventions_themselves():
    model, corpus = tiny_model(), tiny_corpus()
    prompts, train = corpus["test"]["en"][:3], corpus["train"]
    some = tn.NeuronSet(((1, 3), (2, 5), (3, 7)), (4, 48))
    off = tn.Intervention([(0, 9), (2, 5)])
    rival = tn.NeuronSet(((0, 9), (3, 8)), (4, 48))
    sets, how = {"it": [off, some[:1]]}, {"strengths": [0, 3], "selections": ["DiffMean"], "layer": 1}
    shown = tn.steer(model, prompts, sets, train, others={"it": {"rival": rival}}, tokens="prompt", **how, **OPTIONS)
    texts = shown.outputs["text"].xs("it")

    def said(given):
        options = {"max_new_tokens": 4, "languages": ["en", "it"], "tokens": "prompt", **QUIET}
        return list(tn.behaviour.continuations(model, prompts, neurons=given, **options).after)

    def text_of(name, strength):
        return texts.xs((name, strength), level=("selection", "strength")).tolist()

    means = {name: tn.capture(model, train[name], position="mean", **QUIET) for name in ("it", "en")}
    add = {"add": 3.0, "of": means["it"], "minus": means["en"]}
    assert text_of("none", 0.0) == said([])
    assert text_of("the set", 0.0) == said(off)
    assert text_of("the set", 3.0) == said([off, tn.Intervention(some[:1], **add)])
    assert text_of("rival", 3.0) == said([tn.Intervention([(2, 5)]), tn.Intervention(rival, **add)])
    direction = tn.Direction.difference(means["it"], means["en"], layers=[1], add=3.0)
    assert text_of("DiffMean", 3.0) == said([off, direction])
    pinned = tn.steer(model, prompts, {"it": some}, train, how="mean", selections=[], tokens="prompt", **OPTIONS)
    expected = said(tn.Intervention(some, value="mean", of=means["it"]))
    assert pinned.outputs["text"].xs("the set", level="selection").tolist() == expected


def outputs(values):
    """A result with given columns for two selections, of two draws and four prompts."""
    rows = []
    for name, strength, draws in (("none", 0.0, 1), ("the set", 1.0, 1), ("random", 1.0, 2)):
        for draw in range(draws):
            for prompt in range(4):
                row = {"text": "a", "spoken": None} | {
                    key: column[name][draw][prompt] for key, column in values.items()
                }
                rows.append(
                    {"language": "ja", "selection": name, "strength": strength, "draw": draw, "prompt": prompt, **row}
                )
    return pd.DataFrame(rows).set_index(["language", "selection", "strength", "draw", "prompt"])


@pytest.fixture
def known():
    nan = math.nan
    same = {"none": [[0.5] * 4], "the set": [[0.9, 0.8, nan, 1.0]], "random": [[0.2] * 4, [0.4] * 4]}
    share = {"none": [[0.0] * 4], "the set": [[1.0, 1.0, 0.0, 1.0]], "random": [[0, 0, 1, 0], [0, 0, 0, 0]]}
    lines = {"none": [[0.0] * 4], "the set": [[1.0, nan, nan, 0.0]], "random": [[nan] * 4] * 2}
    nats = {name: [[1.0, 2.0, nan, 3.0]] * 2 for name in share}
    tokens = {name: [[1.0, 2.0, 0.0, 1.0]] * 2 for name in share}
    columns = {"in language": share, "lines pass": lines, "words pass": lines, "relevance": same, "distinct": same}
    return tn.Steering(("a", "b", "c", "d"), outputs(columns | {"nats": nats, "tokens": tokens}))


def test_means_and_intervals_equal_a_plain_bootstrap(known):
    frame = known.to_frame().xs("ja")
    the_set, random = frame.loc[("the set", 1.0)], frame.loc[("random", 1.0)]
    assert (the_set["share"], random["share"], frame["share"]["none", 0.0]) == (0.75, 0.125, 0.0)
    assert the_set["lines"] == 0.5 and math.isnan(random["lines"])
    assert the_set["relevance"] == pytest.approx(0.9)
    assert the_set["perplexity"] == pytest.approx(math.exp((1 + 4 + 3) / 4))
    r = 2 * 0.9 - 1
    assert the_set["score"] == pytest.approx(2 * 0.75 * r / (0.75 + r))
    assert random["score"] == 0.0 == frame["score"]["none", 0.0]
    generator = np.random.default_rng(5)
    picks = [generator.integers(0, 4, 4) for _ in range(20_000)]
    values = np.array([1.0, 1.0, 0.0, 1.0])
    low, high = np.quantile([values[pick].mean() for pick in picks], (0.025, 0.975))
    assert (the_set["share low"], the_set["share high"]) == pytest.approx((low, high), abs=0.02)
    assert (the_set["outputs"], random["draws"]) == (4, 2)


def test_best_compared_and_plots(known):
    assert known.best("share")["share"].xs("ja").to_dict() == {"none": 0.0, "the set": 0.75, "random": 0.125}
    rows = known.compared("ja", 1).at()
    assert rows["effect"].to_dict() == {"none": 0.75, "the set": 0.0, "random": 0.625}
    axes = known.plot(measure="score")
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["the set"].get_ydata().tolist() == [known.to_frame()["score"]["ja", "the set", 1.0]]
    assert "none" in lines and "towards Japanese" in (axes.get_title(), axes.get_title("left"))
    assert "at most 75% with the set" in known._repr_html_()


def test_perplexity_and_language_are_those_of_the_texts_by_themselves():
    shown = steered()
    rows = shown.outputs[shown.outputs["tokens"] > 0].iloc[:4]
    for _, row in rows.iterrows():
        alone = tn.behaviour.perplexity(tiny_model(), [row["text"]], **QUIET)
        assert (row["nats"], row["tokens"]) == (pytest.approx(alone.nats, rel=1e-4), alone.tokens[0])
    told = tn.behaviour.languages_of(list(shown.outputs["text"]), candidates=["en", "it"])
    assert list(told) == list(shown.outputs["spoken"])


def test_what_is_saved_is_loaded_and_a_damaged_file_refused(tmp_path):
    path = steered().save(tmp_path / "s.json")
    pd.testing.assert_frame_equal(tn.Steering.load(path).outputs, steered().outputs)
    assert tn.Steering.load(path).provenance == json.loads(json.dumps(steered().provenance))
    path.write_text(path.read_text().replace('"uniform"', '"unifern"', 1))
    with pytest.raises(tn.TnkitError, match=r"changed|damaged"):
        tn.Steering.load(path)
    tn.storage.save_json(path, "steering", {"prompts": ["a"], "outputs": {"text": ["a"]}})
    with pytest.raises(tn.TnkitError, match="no outputs laid out as tnkit writes them"):
        tn.Steering.load(path)


def test_an_interrupt_keeps_what_was_generated(monkeypatch, caplog):
    real, calls = study.texts_with, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(study, "texts_with", interrupted)
    some = tn.NeuronSet(((1, 3),), (4, 48))
    corpus = tiny_corpus()
    shown = tn.steer(tiny_model(), corpus["test"]["en"][:2], {"it": some}, corpus["train"], selections=[], **OPTIONS)
    assert sorted({*shown.outputs.index.get_level_values("strength")}) == [0.0, 1.0, 2.0]
    assert "interrupted: 2 of 3 settings" in caplog.text


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"sets": {}}, "there is none"),
        ({"sets": {"ko": 1}}, "there are no texts in ko"),
        ({"sets": {"en": 1}}, "away='en' is among them"),
        ({"strengths": []}, "one or more finite numbers"),
        ({"strengths": [math.nan]}, "one or more finite numbers"),
        ({"how": "mean", "strengths": [2]}, 'how="mean" has only 1'),
        ({"how": "times"}, "how='times' must be"),
        ({"how": "mean", "selections": ["DiffMean"]}, "'DiffMean' has none"),
        ({"selections": ["nonsense"]}, "selection='nonsense' must be"),
        ({"sets": {"it": [tn.Intervention([(0, 1)])]}}, "holds 0 neuron sets"),
        ({"others": {"it": {"the set": []}}, "selections": []}, "rename it"),
        ({"draws": 0}, "draws=0"),
        ({"layer": 0}, "layer=0"),
        ({"tokens": "first"}, "tokens='first' must be"),
        ({"candidates": ["en"]}, "at least two"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"encode": lambda _: [1.0]}, "must return a vector"),
    ],
)
def test_what_cannot_be_steered_is_refused(how, message):
    given = {"sets": {"it": tn.NeuronSet(((1, 3),), (4, 48))}, **OPTIONS, **how}
    corpus = tiny_corpus()
    with pytest.raises(tn.TnkitError, match=message):
        tn.steer(tiny_model(), corpus["test"]["en"][:2], given.pop("sets"), corpus["train"], **given)
