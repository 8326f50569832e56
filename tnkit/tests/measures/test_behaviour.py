"""Perplexity against transformers' own loss and plain hooks; continuations against a plain loop without a cache."""

import copy
import sys

import numpy as np
import pytest
import torch
from scipy import stats

import tnkit as tn
from tnkit.measures.behaviour import (
    Perplexity,
    PerplexityMatrix,
    answer_questions,
    continuations,
    generation,
    languages,
    languages_of,
    likelihood,
    losses,
    matrix,
    perplexity,
    perplexity_matrix,
)
from tnkit.testing import ARCHITECTURES, IMAGE_TEXT, SENTENCES, byte_tokenizer, redrawn, tiny_model, tiny_module
from tnkit.tests import oracle

NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def own_loss(model, sentence):
    """transformers' loss of one sentence, and its number of predicted tokens."""
    ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
    with torch.inference_mode():
        return float(model.module(input_ids=ids, labels=ids).loss), ids.shape[1] - 1


def planted(token):
    """A tiny model in which neuron (3, 5) is always at 10 and makes it say one token."""
    module = copy.deepcopy(tiny_module("llama-bias"))
    mlp = module.model.layers[3].mlp
    with torch.no_grad():
        for part, bias in ((mlp.gate_proj, 10.0), (mlp.up_proj, 1.0)):
            part.weight[5], part.bias[5] = 0, bias
        mlp.down_proj.weight[:, 5] = 10 * module.lm_head.weight[token] / module.model.norm.weight
    return tn.load_model(module, tokenizer=copy.deepcopy(byte_tokenizer()))


@every_architecture
def test_perplexity_is_the_loss_of_transformers(name):
    model = tiny_model(name)
    found = perplexity(model, SENTENCES, batch_tokens=90, progress=False)
    losses, tokens = zip(*(own_loss(model, sentence) for sentence in SENTENCES), strict=True)
    assert found.tokens.tolist() == list(tokens)
    assert np.allclose(found.nll, losses, atol=2e-5, rtol=1e-5)
    total = sum(loss * count for loss, count in zip(losses, tokens, strict=True))
    assert found.value == pytest.approx(np.exp(total / sum(tokens)), rel=1e-4)
    assert found.count == 0 and "ablations" not in found.provenance


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "opt"])
def test_perplexity_with_neurons_off_equals_plain_hooks(name):
    model = tiny_model(name)
    found = perplexity(model, SENTENCES, neurons=NEURONS, progress=False)
    with oracle.switched_off(model, NEURONS):
        expected = [own_loss(model, sentence)[0] for sentence in SENTENCES]
    assert np.allclose(found.nll, expected, atol=2e-5, rtol=1e-5)
    assert np.abs(found.nll - perplexity(model, SENTENCES, progress=False).nll).max() > 1e-3
    assert found.count == len(NEURONS) * (found.tokens.sum() + len(SENTENCES))
    assert found.provenance["ablations"][0]["neurons"] == len(NEURONS)
    with tn.Ablation(model, NEURONS, tokens="prompt"):
        assert np.allclose(perplexity(model, SENTENCES, progress=False).nll, found.nll, rtol=1e-6)


def logits_made(monkeypatch, logits, size):
    """The shapes of the logits made at a time for a perplexity that is as without that limit."""
    whole, seen = perplexity(tiny_model("cohere"), SENTENCES, progress=False).nll, []
    logits_of = losses.logits_of
    spy = lambda model, head, states: seen.append(logits_of(model, head, states)) or seen[-1]  # noqa: E731
    monkeypatch.setattr(losses, "logits_of", spy)
    monkeypatch.setattr(losses, "_LOGITS", logits)
    monkeypatch.setattr(losses, "_SLICE", size)
    assert np.allclose(perplexity(tiny_model("cohere"), SENTENCES, progress=False).nll, whole, rtol=1e-6)
    return [tuple(made.shape) for made in seen]


PREDICTED = sum(len(byte_tokenizer()(sentence)["input_ids"]) - 1 for sentence in SENTENCES)


def test_logits_of_a_plain_head_are_made_a_slice_of_the_vocabulary_at_a_time(monkeypatch):
    shapes = logits_made(monkeypatch, 1 << 24, 7 * PREDICTED)
    last = [shape for shape in shapes if shape[0] == PREDICTED]  # the head saw no padding
    assert [items for _, items in last] == [7] * 37 + [1]


def test_logits_of_another_head_are_made_for_some_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(losses, "_is_plain", lambda *_: False)
    shapes = logits_made(monkeypatch, 7 * 260, 1)
    assert max(rows for rows, _ in shapes[1:]) == 7 and {items for _, items in shapes} == {260}
    assert sum(rows for rows, _ in shapes[1:]) == PREDICTED


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_of_a_sliced_vocabulary_are_those_of_all_logits(monkeypatch, name, dtype):
    """With a scale, a cap and a bias, where the architecture has them; float64 logits are the other route."""
    monkeypatch.setattr(losses, "_SLICE", 64)
    model = tn.load_model(copy.deepcopy(tiny_module(name)).to(getattr(torch, dtype)), tokenizer=byte_tokenizer())
    head = losses.Head(model)
    assert head.plain and head.serves
    states, ids = torch.randn(9, model.hidden_size, dtype=model.dtype), torch.arange(250, 259)
    logits = losses.logits_of(model, head.head, states).double()
    expected = logits.logsumexp(1) - logits[torch.arange(9), ids]
    found = head.losses(states, ids)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-6 if dtype == "float32" else 1e-2)


def test_losses_over_a_large_vocabulary_are_those_of_float64():
    """A sum of 200,000 exponentials in float32 loses 1e-6 to 1e-5 of it; sums of slices do not."""
    module = copy.deepcopy(tiny_module("llama"))
    module.resize_token_embeddings(200_000)
    model = tn.load_model(redrawn(module), tokenizer=byte_tokenizer())
    head, states = losses.Head(model), torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(0, 200_000, 10_000)
    logits = torch.nn.functional.linear(states.double(), model.module.lm_head.weight.detach().double())
    expected = logits.logsumexp(1) - logits[torch.arange(20), ids]
    assert head.plain and (head.losses(states, ids) - expected).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("changed", "plain", "serves"), [("nothing", True, True), ("head", False, True), ("module", False, False)]
)
def test_a_head_that_does_more_than_its_matrix_and_a_module_that_does_more_than_its_head(changed, plain, serves):
    model = copy.deepcopy(tiny_model("llama"))
    if changed != "nothing":
        part = model.module.lm_head if changed == "head" else model.module
        part.register_forward_hook(lambda _, __, output: output * 2 if changed == "head" else doubled(output))
    head = losses.Head(model)
    assert (head.plain, head.serves) == (plain, serves)
    found = perplexity(model, SENTENCES, progress=False)
    expected = []
    for sentence in SENTENCES:
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        with torch.inference_mode():
            logits = model.module(input_ids=ids).logits[0, :-1].double()
        expected.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
    assert found.nll == pytest.approx(expected, rel=1e-5)


def doubled(output):
    output.logits = output.logits * 2
    return output


@every_architecture
def test_interventions_that_share_blocks_are_as_if_each_ran_alone(name):
    model, kinds = tiny_model(name), [[], [(3, 40)], [(1, 7), (3, 2)], [(2, 5)], [(0, 3)], [(2, 5), (3, 1)], []]
    shared = losses.Losses(model, SENTENCES, batch_tokens=60)
    for neurons in kinds:
        alone = perplexity(model, SENTENCES, neurons=neurons, batch_tokens=60, progress=False)
        found = likelihood.perplexity_of(shared, neurons=neurons, progress=False)
        assert found.nll.tolist() == alone.nll.tolist() and found.count == alone.count
        assert found.provenance == alone.provenance


def test_blocks_below_the_first_that_changes_run_once():
    model, runs = copy.deepcopy(tiny_model("llama")), []
    shared = losses.Losses(model, SENTENCES)
    for number, layer in enumerate(model.module.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: runs.append(number))
    for neurons, layers in (([(2, 5)], [0, 1, 2, 3]), ([(3, 1)], [2, 3]), ([], [2, 3]), ([(0, 1)], [0, 1, 2, 3])):
        likelihood.perplexity_of(shared, neurons=neurons, progress=False)
        assert runs[-len(layers) :] == layers
        runs.clear()


def test_nothing_is_shared_under_another_ablation_or_after_an_edit():
    model = copy.deepcopy(tiny_model("llama"))
    shared = losses.Losses(model, SENTENCES)
    likelihood.perplexity_of(shared, neurons=[(2, 5)], progress=False)
    with tn.Ablation(model, [(0, 9), (1, 4)]) as outer:
        found = likelihood.perplexity_of(shared, neurons=[(2, 5)], progress=False)
        count = outer.count
        alone = perplexity(model, SENTENCES, neurons=[(2, 5)], progress=False)
        assert outer.count == 2 * count
    assert found.nll.tolist() == alone.nll.tolist()
    with torch.no_grad():
        model.module.model.layers[0].mlp.up_proj.weight[5] += 1
    found = likelihood.perplexity_of(shared, neurons=[(2, 5)], progress=False)
    assert found.nll.tolist() == perplexity(model, SENTENCES, neurons=[(2, 5)], progress=False).nll.tolist()


def test_the_model_is_as_before_also_after_an_error(monkeypatch):
    model = tiny_model("qwen3")
    decoder, before = model.module.model, tn.capture(model, SENTENCES, progress=False).post
    forward = vars(decoder).get("forward")
    perplexity(model, SENTENCES, progress=False)
    monkeypatch.setattr(model.module.lm_head, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        perplexity(model, SENTENCES, neurons=NEURONS, progress=False)
    monkeypatch.undo()
    assert vars(decoder).get("forward") is forward and not model.ablations
    assert torch.equal(tn.capture(model, SENTENCES, progress=False).post, before)


def test_perplexity_refuses_what_has_no_answer():
    model = tiny_model()
    for sentences, message in (
        (["Hi!", ""], "sentence 1 .* has one token"),
        ("Hi!", "not one str"),
        ([], "no sentences"),
    ):
        with pytest.raises(tn.TnkitError, match=message):
            perplexity(model, sentences, progress=False)
    with pytest.raises(tn.TnkitError, match="nothing follows the last token"):
        perplexity(model, ["Hi!"], neurons=NEURONS, tokens="last", progress=False)
    broken = planted(65)
    with torch.no_grad():
        broken.module.lm_head.weight[0] = torch.nan
    with pytest.raises(tn.TnkitError, match=r"sentence 0 \('Hi!'\) a likelihood that is not finite"):
        perplexity(broken, ["Hi!"], progress=False)


def test_the_matrix_holds_each_set_and_language():
    model, texts = tiny_model(), {"en": SENTENCES[:3], "ja": SENTENCES[2:]}
    sets = {"ja": NEURONS, "nothing": []}
    found = perplexity_matrix(model, texts, sets, progress=False)
    frame = found.to_frame()
    assert list(frame.index) == [(off, read) for off in ("none", "ja", "nothing") for read in ("en", "ja")]
    assert frame.index[frame["own"]].tolist() == [("ja", "ja")]
    for (off, read), row in frame.iterrows():
        alone = perplexity(model, texts[read], neurons=sets.get(off, []), progress=False)
        assert row["perplexity"] == pytest.approx(alone.value)
        assert row["change"] == pytest.approx(alone.nats / perplexity(model, texts[read], progress=False).nats - 1)
    unchanged = frame.drop("ja", level="off")
    assert (unchanged[["change", "low", "high"]] == 0).all(axis=None)
    assert frame.loc[("ja", "ja"), "change"] != 0
    colours = found.plot().collections[0].get_array()
    assert np.allclose(np.ravel(colours), frame["change"])


def test_the_interval_is_that_of_a_paired_bootstrap():
    random = np.random.default_rng(3)
    before = Perplexity(random.gamma(4, 1, 40), random.integers(3, 30, 40))
    after = Perplexity(before.nll * random.normal(1.1, 0.1, 40), before.tokens)
    change, low, high = matrix._change(before, after)
    a, b = before.nll * before.tokens, after.nll * after.tokens
    other = stats.bootstrap(
        (a, b),
        lambda x, y, axis: y.sum(axis) / x.sum(axis) - 1,
        paired=True,
        method="percentile",
        n_resamples=20000,
        random_state=random,
    )
    assert change == pytest.approx(b.sum() / a.sum() - 1)
    assert (low, high) == pytest.approx(other.confidence_interval, abs=0.003)
    assert low < change < high


def test_the_matrix_says_what_it_cannot_know(recwarn):
    one = perplexity_matrix(tiny_model(), {"en": ["Hi!"]}, {"en": NEURONS}, progress=False).to_frame()
    assert one[["low", "high"]].isna().all(axis=None) and one["change"].notna().all()
    certain = Perplexity(np.zeros(2), np.array([3, 4]))
    uncertain = PerplexityMatrix({("none", "en"): certain, ("x", "en"): certain}, {})
    assert uncertain.to_frame()[["change", "low", "high"]].isna().all(axis=None)
    uncertain.plot()
    assert Perplexity(np.array([800.0]), np.array([1])).value == np.inf
    assert not [warning for warning in recwarn if "tnkit" in warning.filename]
    for texts, sets in (({}, {"en": NEURONS}), ({"en": ["Hi!"]}, {}), ({"en": ["Hi!"]}, {"none": NEURONS})):
        with pytest.raises(tn.TnkitError, match="expected languages"):
            perplexity_matrix(tiny_model(), texts, sets, progress=False)


def plain_greedy(model, prompt, new, neurons=(), tokens="all"):
    """Greedy decoding of one prompt, from the start for every token, without cache, padding or `generate`."""
    ids = model.tokenizer(prompt)["input_ids"]
    length = len(ids)
    places = {"last": [length - 1], "prompt": list(range(length)), "all": None}[tokens]
    for _ in range(new):
        with torch.inference_mode(), oracle.switched_off(model, neurons, places):
            ids.append(int(model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return model.tokenizer.decode(ids[length:], skip_special_tokens=True)


@every_architecture
def test_continuations_equal_a_plain_loop(name):
    model = tiny_model(name)
    found = continuations(model, SENTENCES[:3], max_new_tokens=5, languages=["en", "ja"], progress=False)
    assert found.before == tuple(plain_greedy(model, prompt, 5) for prompt in SENTENCES[:3])
    assert found.after == found.before and found.changed == 0 and found.count == 0


@pytest.mark.parametrize("tokens", ["last", "prompt", "all"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
def test_continuations_with_neurons_off_equal_a_plain_loop(name, tokens):
    model = tiny_model(name)
    off = [(layer, neuron) for layer in range(4) for neuron in range(0, model.n_neurons, 2)]
    how = {"max_new_tokens": 4, "languages": ["en", "ja"], "progress": False}
    found = continuations(model, SENTENCES[:3], neurons=off, tokens=tokens, **how)
    assert found.after == tuple(plain_greedy(model, prompt, 4, off, tokens) for prompt in SENTENCES[:3])
    assert found.before == tuple(plain_greedy(model, prompt, 4) for prompt in SENTENCES[:3])
    assert found.changed > 0
    lengths = [len(model.tokenizer(prompt)["input_ids"]) for prompt in SENTENCES[:3]]
    expected = {"last": 3, "prompt": sum(lengths), "all": sum(lengths) + 3 * 3}[tokens]
    assert found.count == len(off) * expected


@pytest.mark.parametrize(("tokens", "said"), [("last", 3), ("prompt", 3), ("all", 0)])
def test_a_planted_neuron_decides_what_is_said(tokens, said):
    how = {"neurons": [(3, 5)], "max_new_tokens": 4, "languages": ["en", "ja"], "progress": False}
    found = continuations(planted(65), ["Hello", "Hi!"], tokens=tokens, **how)
    letter = byte_tokenizer().decode([65])
    assert found.before == (4 * letter,) * 2
    assert [text.count(letter) for text in found.after] == [said] * 2


def test_an_output_that_ends_is_cut_and_has_no_language():
    model = planted(257)
    found = continuations(model, ["Hello", "Hi"], neurons=[(3, 5)], tokens="all", max_new_tokens=4, progress=False)
    assert found.before == ("", "") and found.before_languages == (None, None)
    assert found.shares().loc["unknown", "before"] == 1
    assert all(found.after)


def test_sampling_is_seeded_and_leaves_the_global_generator_alone():
    model = tiny_model()
    how = {"max_new_tokens": 8, "languages": ["en", "ja"], "progress": False}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = continuations(model, SENTENCES[:3], temperature=1.5, seed=1, **how)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert continuations(model, SENTENCES[:3], temperature=1.5, seed=1, **how).before == first.before == first.after
    assert continuations(model, SENTENCES[:3], temperature=1.5, seed=2, **how).before != first.before
    greedy = continuations(model, SENTENCES[:3], **how).before
    assert continuations(model, SENTENCES[:3], temperature=1e-3, **how).before == greedy != first.before


def test_neither_padding_side_nor_the_models_own_settings_matter(monkeypatch):
    model = tn.load_model(tiny_module("llama"), tokenizer=copy.deepcopy(byte_tokenizer()))
    how = {"max_new_tokens": 8, "languages": ["en", "ja"], "progress": False}
    found = continuations(model, SENTENCES[:3], **how).before
    config = copy.deepcopy(model.module.generation_config)
    config.repetition_penalty, config.top_k, config.do_sample = 5.0, 3, True
    monkeypatch.setattr(model.module, "generation_config", config)
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        assert continuations(model, SENTENCES[:3], batch_tokens=1000, **how).before == found
        assert continuations(model, SENTENCES[:3], batch_tokens=1, **how).before == found
        assert model.tokenizer.padding_side == side


def test_continuations_refuse_what_cannot_be(monkeypatch):
    model = tiny_model()
    for how, message in (
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": 127}, "does not end within the 128"),
        ({"temperature": 0.0}, "must be positive"),
        ({"languages": ["en"]}, "at least two"),
        ({"languages": ["en", "xx"]}, "xx is not among them"),
        ({"tokens": "first"}, "must be one of"),
    ):
        with pytest.raises(tn.TnkitError, match=message):
            continuations(model, ["Hi"], **({"languages": ["en", "ja"]} | how), progress=False)
    languages.detector_of.cache_clear()
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(tn.TnkitError, match=r"pip install 'tnkit\[measures\]'"):
        continuations(model, ["Hi"], progress=False)


def test_languages_of_the_packaged_corpus_are_told():
    test = tn.load_corpus("everyday")["test"]
    right = [
        found == language
        for language, texts in test.items()
        for found in languages_of(texts[:40], candidates=tuple(test))
    ]
    assert np.mean(right) > 0.97
    assert languages_of(["", "…?! 12", "Ja", "はい。", "네"], candidates=["nl", "ja", "ko"]) == (None,) * 5
    assert languages_of(["<strong><em><strong>コーン</em>です", "<b><em>"], candidates=["en", "ja"]) == ("ja", None)
    assert languages.detector_of(("nl", "ja")) is languages.detector_of(("nl", "ja"))


def test_shares_count_outputs():
    said = ("a", "b", "c", "d")
    found = generation.Continuations(said, said, said, ("ja", "ja", None, "en"), ("en", "en", "it", "en"), 0)
    shares = found.shares()
    assert shares.loc["ja"].tolist() == [0.5, 0] and shares.loc["en"].tolist() == [0.25, 0.75]
    assert shares.loc["unknown"].tolist() == [0.25, 0] and shares.loc["it"].tolist() == [0, 0.25]
    assert sorted(shares.index) == ["en", "it", "ja", "unknown"] and shares.index[0] == "ja"
    heights = [bar.get_height() for bar in found.plot().patches]
    assert heights == [*shares["before"], *shares["after"]]


def test_questions_are_asked_and_scored(monkeypatch):
    model, asked = tiny_model(), []

    def say(_, prompts, **__):
        asked.append(list(prompts))
        off = bool(model.ablations)
        return tuple(" Parigi\nQ: E poi?" if off else " Roma \nQ: E poi?\nA: Milano" for _ in prompts)

    monkeypatch.setattr(generation, "_generate", say)
    how = {"language": "it", "examples": [("Capitale {question}?", "Tokyo"), ("Due?", "2")], "progress": False}
    found = answer_questions(model, ["Capitale?", "Dove?"], [["Roma"], ["Parigi"]], neurons=NEURONS, **how)
    shown = "Q: Capitale {question}?\nA: Tokyo\n\nQ: Due?\nA: 2\n\n"
    assert asked == [[shown + "Q: Capitale?\nA:", shown + "Q: Dove?\nA:"]] * 2
    assert found.before == ("Roma", "Roma") and found.after == ("Parigi", "Parigi")
    assert found.to_frame()[["before F1", "after F1"]].to_numpy().tolist() == [[1, 0], [0, 1]]
    assert found.before_scores.mean_f1 == 0.5 and found.before_scores.language == "it"


def test_the_prompt_and_the_end_of_an_answer_are_as_asked_for(monkeypatch):
    """Code that scores all that is generated finds the whole answer where the first line holds a part of it."""
    prompts = []

    def say(_, asked, **__):
        prompts.extend(asked)
        return tuple(" Roma\nMilano. " for _ in asked)

    monkeypatch.setattr(generation, "_generate", say)
    how = {"language": "it", "template": "{question} {answer}", "progress": False}
    scores = [
        answer_questions(tiny_model(), ["Q?"], [["Roma Milano"]], **how, **more).before_scores.mean_f1
        for more in ({}, {"stop": None}, {"stop": None, "keep_space": True}, {"stop": "ano"})
    ]
    assert scores == [pytest.approx(2 / 3), 1, 1, 0.5]
    assert list(dict.fromkeys(prompts)) == ["Q?", "Q? "]
    with pytest.raises(tn.TnkitError, match="stop=''"):
        answer_questions(tiny_model(), ["Q?"], [["a"]], stop="", **how)


def test_questions_that_do_not_fit_are_refused():
    for questions, answers, template, message in (
        (["A?"], [["a"], ["b"]], "Q: {question} A: {answer}", "1 questions have the answers of 2"),
        (["A?"], [["a"]], "Q: {question} A: ", "must hold"),
        ("A?", ["a", "b"], "Q: {question} A: {answer}", "give a list of questions"),
    ):
        with pytest.raises(tn.TnkitError, match=message):
            answer_questions(tiny_model(), questions, answers, language="en", template=template, progress=False)


EVERY_DEFAULT = {
    "max_length": 3,
    "max_time": 1e-9,
    "min_length": 90,
    "min_new_tokens": 60,
    "do_sample": True,
    "num_beams": 2,
    "num_return_sequences": 2,
    "use_cache": False,
    "temperature": 9.0,
    "top_k": 3,
    "top_p": 0.1,
    "min_p": 0.9,
    "top_h": 0.5,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.3,
    "eta_cutoff": 0.3,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 3.0,
    "length_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[65], [66]],
    "forced_eos_token_id": 65,
    "forced_bos_token_id": 66,
    "exponential_decay_length_penalty": (1, 1.5),
    "suppress_tokens": list(range(0, 256, 2)),
    "begin_suppress_tokens": list(range(1, 256, 2)),
    "sequence_bias": [[[67], 50.0]],
    "guidance_scale": 3.0,
    "watermarking_config": {"bias": 20.0},
    "return_dict_in_generate": True,
    "output_scores": True,
    "prompt_lookup_num_tokens": 2,
    "prefill_chunk_size": 2,
    "stop_strings": ["e", "a"],
    "cache_implementation": "static",
    "bos_token_id": 3,
}


@pytest.mark.parametrize("default", [*EVERY_DEFAULT, "all of them"])
@pytest.mark.parametrize("temperature", [None, 1.5])
def test_no_default_of_the_model_enters(default, temperature, monkeypatch):
    model = tiny_model("llama")
    how = {"max_new_tokens": 6, "temperature": temperature, "languages": ["en", "ja"], "progress": False}
    expected = continuations(model, SENTENCES[:3], neurons=NEURONS, tokens="prompt", **how)
    config = copy.deepcopy(model.module.generation_config)
    for name, value in EVERY_DEFAULT.items() if default == "all of them" else ((default, EVERY_DEFAULT[default]),):
        setattr(config, name, value)
    monkeypatch.setattr(model.module, "generation_config", config)
    found = continuations(model, SENTENCES[:3], neurons=NEURONS, tokens="prompt", **how)
    assert (found.before, found.after, found.count) == (expected.before, expected.after, expected.count)


@pytest.mark.parametrize("name", [name for name in IMAGE_TEXT if name != "paligemma"])
def test_image_text_models_are_measured_as_text_models_are(name):
    model = tiny_model(name)
    found = perplexity(model, SENTENCES, batch_tokens=90, progress=False)
    assert np.allclose(found.nll, [own_loss(model, sentence)[0] for sentence in SENTENCES], atol=2e-5, rtol=1e-5)
    said = continuations(model, SENTENCES[:3], max_new_tokens=4, languages=["en", "ja"], progress=False)
    assert said.before == tuple(plain_greedy(model, prompt, 4) for prompt in SENTENCES[:3])


@pytest.mark.parametrize("head", ["unknown scale", "no head"])
def test_a_head_that_does_more_than_is_known_runs_as_a_whole(head, monkeypatch):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    if head == "no head":
        monkeypatch.setattr(module, "get_output_embeddings", lambda: None)
    else:
        module.register_forward_hook(lambda _, __, output: setattr(output, "logits", 3 * output.logits))
    found = perplexity(model, SENTENCES, batch_tokens=90, progress=False)
    losses = []
    for sentence in SENTENCES:
        ids = torch.tensor([byte_tokenizer()(sentence)["input_ids"]])
        with torch.inference_mode():
            logits = module(input_ids=ids).logits[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
    assert np.allclose(found.nll, losses, atol=2e-5, rtol=1e-5)


def test_what_would_not_come_again_or_has_no_head_is_refused():
    module = copy.deepcopy(tiny_module("gpt2"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    headless = tn.load_model(copy.deepcopy(tiny_module("llama")).model, tokenizer=byte_tokenizer())
    for run in (
        lambda one: perplexity(one, ["Hello"], progress=False),
        lambda one: continuations(one, ["Hello"], languages=["en", "ja"], max_new_tokens=2, progress=False),
    ):
        module.train()
        with pytest.raises(tn.TnkitError, match="training mode"):
            run(model)
        module.eval()
        with pytest.raises(tn.TnkitError, match="autocast"), torch.autocast("cpu", torch.bfloat16):
            run(model)
        with pytest.raises(tn.TnkitError, match="no output head"):
            run(headless)


OTHERS = [tn.NeuronSet(tuple((layer, neuron) for layer in range(4)), (4, 48)) for neuron in (11, 22, 33)]
CONTROLS = {"other": OTHERS[0], "drawn": lambda seed: OTHERS[1 + seed]}


def test_each_draw_of_each_control_is_as_if_it_ran_alone():
    model, how = tiny_model(), {"tokens": "all", "max_new_tokens": 6, "languages": ["en", "ja"], "progress": False}
    found = continuations(model, SENTENCES[:3], neurons=NEURONS, controls=CONTROLS, seeds=2, **how)
    alone = [continuations(model, SENTENCES[:3], neurons=off, **how) for off in (NEURONS, *OTHERS)]
    drawn = [found, *found.controls["other"], *found.controls["drawn"]]
    for one, expected in zip(drawn, alone, strict=True):
        assert (one.before, one.after, one.count) == (expected.before, expected.after, expected.count)
        assert one.provenance == expected.provenance and one.after_languages == expected.after_languages
    table = found.compared().at()
    changed = [one.changed for one in alone]
    assert any(changed)
    means = {"none": 0, "the set": changed[0], "other": changed[1], "drawn": np.mean(changed[2:])}
    assert table["mean"].to_dict() == pytest.approx(means)
    assert table["seeds"].to_dict() == {"none": 1, "the set": 1, "other": 1, "drawn": 2}
    assert found.by_condition().loc[("drawn", 1), "after"].tolist() == list(alone[3].after)
    with pytest.raises(tn.TnkitError, match="a control is named 'none'"):
        continuations(model, ["Hi"], neurons=NEURONS, controls={"none": OTHERS[0]}, **how)


def test_the_shares_of_a_language_have_intervals_beside_the_controls():
    said, english, mixed = ("a",) * 40, ("en",) * 40, ("en", "ja") * 20
    drawn = [generation.Continuations(said, said, said, english, languages, 0) for languages in (english, mixed)]
    found = generation.Continuations(said, said, said, english, ("ja",) * 40, 0, controls={"random": tuple(drawn)})
    table = found.compared("ja").at()
    assert table["mean"].to_dict() == {"none": 0, "the set": 1, "random": 0.25}
    assert table.loc["random", "low"] < 0.25 < table.loc["random", "high"]
    assert table.loc["random", "effect"] == 0.75 and table.loc["random", "p sentences"] < 0.001
    assert found.shares().loc["ja"].tolist() == [0, 1, 0.25]


def test_answers_are_scored_in_every_condition(monkeypatch):
    model = tiny_model()
    right = {NEURONS[0]: 0, (0, 11): 1, (0, 22): 2, (0, 33): 1}  # how many questions are right with this neuron off
    active, enter, leave = [], tn.Ablation.__enter__, tn.Ablation.__exit__

    def say(_, prompts, **__):
        count = right[active[-1]] if active else 2
        return tuple("Roma" if number < count else "Parigi" for number, _ in enumerate(prompts))

    monkeypatch.setattr(tn.Ablation, "__enter__", lambda self: active.append(next(iter(self.neurons))) or enter(self))
    monkeypatch.setattr(tn.Ablation, "__exit__", lambda self, *error: active.clear() or leave(self, *error))
    monkeypatch.setattr(generation, "_generate", say)
    asked = {"neurons": NEURONS, "controls": CONTROLS, "seeds": 2, "language": "it", "progress": False}
    found = answer_questions(model, ["Capitale?", "Dove?"], [["Roma"], ["Roma"]], **asked)
    for measure in ("F1", "exact match"):
        means = found.compared(measure).at()["mean"].to_dict()
        assert means == {"none": 1, "the set": 0, "other": 0.5, "drawn": 0.75}
    assert found.by_condition().loc[("drawn", 1), "after F1"].tolist() == [1, 0]
    with pytest.raises(tn.TnkitError, match="measure"):
        found.compared("bleu")
