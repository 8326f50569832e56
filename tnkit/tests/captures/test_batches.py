"""Which token of a sentence is read, with what around it: captures against plain hooks at places worked out by hand."""

import copy
import logging
from operator import attrgetter

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

import tnkit as tn
from tnkit.detection.detect import detect_towards
from tnkit.testing import byte_tokenizer, tiny_model, tiny_module
from tnkit.tests.oracle import hooked

TEXTS = ["One can always find time.", "はい。」", "Perché no?", "오늘은 좋네요!!", "He said 😀  "]
WORDS = [text.encode() for text in ("One can always find time", "はい", "Perché no", "오늘은 좋네요", "He said")]
BOS, EOS = 256, 257
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


def with_processor(single, **changes):
    """A byte tokenizer that adds these special tokens."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    special = [("<bos>", BOS), ("<eos>", EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def load(tokenizer, **options):
    return tn.load_model(tiny_module("llama"), tokenizer=tokenizer, **options)


def chat_model():
    return load(with_processor("<bos> $A", chat_template=TEMPLATE), chat=True)


def states(model, ids):
    """Post of every layer and token of one unpadded sentence, by plain hooks."""
    return torch.stack(hooked(model.module, model.blocks_path, model.sites, torch.tensor([ids]))["post"])


def check(model, captured, rows, places):
    """Each captured state is that of the token at its place among the ids that the model is to be given."""
    for number, (ids, place) in enumerate(zip(rows, places, strict=True)):
        assert torch.allclose(captured.post[:, number].double(), states(model, ids)[:, place], atol=1e-5), number


def ids_of(texts):
    return [[BOS, *byte_tokenizer()(text, add_special_tokens=False)["input_ids"]] for text in texts]


def test_last_word_is_read_before_the_punctuation():
    model = tiny_model()
    captured = tn.capture(model, TEXTS, position="last_word", batch_tokens=64, progress=False)
    check(model, captured, ids_of(TEXTS), [len(word) for word in WORDS])
    assert captured.provenance["position"] == "last_word"
    assert captured.ends().iloc[0].to_dict() | {"token": ""} == {
        "token": "",
        "share": 0.2,
        "punctuation": 1.0,
        "wordless": 0,
    }


@pytest.mark.parametrize("suffix", ["", ".", "。"])
def test_every_sentence_gets_the_same_ending(suffix):
    model = tiny_model()
    captured = tn.capture(model, TEXTS, suffix=suffix, progress=False)
    rows = ids_of([word.decode() + suffix for word in WORDS])
    check(model, captured, rows, [len(ids) - 1 for ids in rows])
    assert captured.provenance["suffix"] == suffix
    assert (
        captured.provenance["sentences"]["hash"]
        == tn.capture(model, TEXTS, progress=False).provenance["sentences"]["hash"]
    )


def test_what_was_read_elsewhere_is_not_mixed():
    model = tiny_model()
    plain, ended = (tn.capture(model, TEXTS, suffix=suffix, progress=False) for suffix in (None, "."))
    with pytest.raises(tn.TnkitError, match="suffix"):
        tn.estimate_centroids([plain, ended])
    own = tn.estimate_centroids([ended])
    with pytest.raises(tn.TnkitError, match=r"at suffix='\.'"):
        detect_towards(model, TEXTS, own, language="it", kind="type2", top=3, progress=False)
    options = {"language": "it", "kind": "type2", "top": 3, "progress": False}
    found = detect_towards(model, TEXTS, own, suffix=".", **options)
    assert found.ends().loc["it", "share"] == 1
    assert "last tokens, it" in found._repr_html_()


def test_a_chat_template_goes_around_the_sentence_once():
    model = chat_model()
    whole = [
        model.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
            "input_ids"
        ]
        for text in TEXTS
    ]
    head = len("<user>") + 1
    last = [head + len(text.strip().encode()) - 1 for text in TEXTS]
    check(model, tn.capture(model, TEXTS, progress=False), whole, last)
    word = tn.capture(model, TEXTS, position="last_word", progress=False)
    check(model, word, whole, [head + len(text) - 1 for text in WORDS])
    end = tn.capture(model, TEXTS, position="end", progress=False)
    check(model, end, whole, [len(ids) - 1 for ids in whole])
    mean = tn.capture(model, TEXTS, position="mean", progress=False)
    for number, (ids, stop) in enumerate(zip(whole, last, strict=True)):
        expected = states(model, ids)[:, head : stop + 1].mean(dim=1)
        assert torch.allclose(mean.post[:, number].double(), expected, atol=1e-5)
    assert mean.provenance["model"]["template"] == "<bos><user>{sentence}</>\n<model>"
    assert word.provenance["tokens"] == {"bos": "added", "end": None, "inside": 0}


def test_an_ablation_at_the_last_token_acts_on_the_token_that_a_chat_capture_reads():
    model = chat_model()
    with tn.Ablation(model, [(1, 7)], tokens="last") as ablation:
        off = tn.capture(model, TEXTS, progress=False)
    assert off.activations[1, :, 7].abs().max() == 0
    assert ablation.count == len(TEXTS)


def test_generation_continues_the_whole_prompt():
    model = chat_model()
    found = tn.behaviour.continuations(model, TEXTS[:2], languages=["en", "ja"], max_new_tokens=5, progress=False)
    for text, added in zip(TEXTS, found.before, strict=False):
        ids = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        row = model.module.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=258)[0, ids.shape[1] :]
        assert model.tokenizer.decode(row, skip_special_tokens=True) == added


def test_a_template_of_ones_own():
    model = load(with_processor("<bos> $A <eos>"), template="Say {sentence}: ")
    captured = tn.capture(model, TEXTS[:2], progress=False)
    rows = ids_of([f"Say {text}" for text in TEXTS[:2]])
    check(model, captured, rows, [len(ids) - 1 for ids in rows])
    assert model.template == "<bos>Say {sentence}: "
    plain = load(with_processor("$A"), template="Say {sentence}")
    assert plain.template == "Say {sentence}"


@pytest.mark.parametrize(
    ("template", "options", "words"),
    [
        (None, {"chat": True}, "no chat template"),
        (TEMPLATE, {"chat": True, "template": "{sentence}"}, "not both"),
        (TEMPLATE, {"template": "Hello"}, "must hold {sentence} once"),
        ("{{ messages[0].content | upper }}", {"chat": True}, "does not hold the user's message"),
        ("{{ raise_exception('no users') }}", {"chat": True}, "fails on one message: no users"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template, options, words):
    with pytest.raises(tn.TnkitError, match=words):
        load(with_processor("<bos> $A", chat_template=template), **options)


def test_the_end_of_a_template_needs_one():
    with pytest.raises(tn.TnkitError, match="position='end' is the end of a template"):
        tn.capture(tiny_model(), TEXTS, position="end", progress=False)


@pytest.mark.parametrize(
    ("single", "texts", "expected", "words"),
    [
        ("<bos> $A", TEXTS, {"bos": "added", "end": None, "inside": 0}, None),
        ("$A", TEXTS, {"bos": "absent", "end": None, "inside": 0}, "has the BOS token <bos> but does not add it"),
        ("<bos> $A <eos>", TEXTS, {"bos": "added", "end": "<eos>", "inside": 0}, "ends in the special token <eos>"),
        ("<bos> $A", ["<bos>Hi", "Hello"], {"bos": "doubled", "end": None, "inside": 0}, "the BOS token <bos> twice"),
        ("<bos> $A", ["a<eos>b", "a"], {"bos": "added", "end": None, "inside": 1}, "the text of a special token"),
        ("<bos> $A", ["a<eos>", "a"], {"bos": "added", "end": None, "inside": 1}, "the text of a special token"),
    ],
)
def test_special_tokens_are_told_once_and_recorded(single, texts, expected, words, caplog):
    model = load(with_processor(single))
    with caplog.at_level(logging.WARNING, logger="tnkit"):
        for _ in range(2):
            captured = tn.capture(model, texts, batch_tokens=8, progress=False)
    assert captured.provenance["tokens"] == expected
    assert [words in record.getMessage() for record in caplog.records] == ([True] if words else [])


def test_nothing_is_said_where_bos_and_eos_are_one_token(caplog):
    tokenizer = with_processor("$A", bos_token="<eos>")
    with caplog.at_level(logging.WARNING, logger="tnkit"):
        assert tn.capture(load(tokenizer), TEXTS, progress=False).provenance["tokens"]["bos"] == "absent"
    assert not caplog.records


@pytest.mark.parametrize(("position", "tokens"), [("last_word", "last_word"), ("end", "last"), ("last", "last")])
@pytest.mark.parametrize("suffix", [None, "!"])
def test_a_kept_prefix_reads_the_same_token(position, tokens, suffix):
    model = chat_model()
    neurons = [(0, 3), (1, 7), (2, 9)]
    prefix = tn.LastToken(model, TEXTS, position=position, suffix=suffix, progress=False)
    with tn.Ablation(model, neurons, tokens=tokens):
        full = tn.capture(model, TEXTS, position=position, suffix=suffix, progress=False)
    kept = prefix.capture(neurons)
    assert prefix.cached
    assert torch.allclose(kept.post, full.post, atol=1e-5)
    assert (
        kept.post - tn.capture(model, TEXTS, position=position, suffix=suffix, progress=False).post
    ).abs().max() > 1e-3
    about = full.provenance
    assert kept.provenance == about


def test_experiments_read_and_ablate_the_same_token():
    model, some = tiny_model(), tn.NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    texts = {"en": TEXTS[:2], "it": TEXTS[2:4]}
    options = {"language": "it", "controls": {}, "seeds": 1, "measure": "similarity", "progress": False}
    found = tn.ablate(model, texts, some, position="last_word", tokens="last_word", suffix="!", **options)
    read = {"position": "last_word", "suffix": "!", "progress": False}
    with tn.Ablation(model, some, tokens="last_word"):
        off = tn.capture(model, texts["it"], **read)
    expected = torch.nn.functional.cosine_similarity(off.post, tn.capture(model, texts["en"], **read).post, dim=-1)
    assert torch.allclose(torch.as_tensor(found.ablated).float(), expected, atol=1e-5)
    with pytest.raises(tn.TnkitError, match="give tokens='last_word'"):
        tn.ablate(model, texts, some, position="last_word", **options)
    matrix = tn.retrieval_matrix(model, texts, {"it": some}, position="last_word", suffix="", progress=False)
    assert matrix.values.shape == (2, 1)
    with pytest.raises(tn.TnkitError, match="position='mean' must be one of last, last_word, end"):
        tn.retrieval_matrix(model, texts, {"it": some}, position="mean", progress=False)


def test_a_sentence_that_cannot_be_located_in_its_template_is_refused():
    pieces = ["<unk>", *(f"<0x{number:02X}>" for number in range(256)), "▁"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(tn.TnkitError, match=r"does not say where sentence 0 .* begins and ends within the template"):
        tn.capture(load(tokenizer, template="Say {sentence}!"), ["Ciao."], progress=False)


def hooked_off(model, ids, place, neurons):
    """Post of every layer and token of one sentence with neurons set to 0 at one place, by plain hooks."""
    handles = []
    for layer, neuron in neurons:

        def hook(_, args, neuron=neuron):
            changed = args[0].clone()
            changed[:, place, neuron] = 0
            return (changed,)

        last_map = attrgetter(f"{model.blocks_path}.{layer}.{model.sites[0].last_map}")(model.module)
        handles.append(last_map.register_forward_pre_hook(hook))
    try:
        return states(model, ids)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("position", ["last", "last_word", "end"])
def test_the_last_word_is_ablated_in_the_sentence_and_not_in_its_template(position):
    model, texts, neurons = chat_model(), ["?!", "Hi.", "。", "One, two!"], [(0, 3), (0, 5), (1, 7)]
    head, words = len("<user>") + 1, [2, 2, 3, 8]  # bytes up to the last word, or all of a sentence without one
    with tn.Ablation(model, neurons, tokens="last_word") as ablation:
        off = tn.capture(model, texts, position=position, batch_tokens=48, progress=False)
    kept = tn.LastToken(model, texts, position=position, progress=False)
    for number, (text, word) in enumerate(zip(texts, words, strict=True)):
        message = [{"role": "user", "content": text}]
        ids = model.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        last = {"last": head + len(text.encode()) - 1, "last_word": head + word - 1, "end": len(ids) - 1}[position]
        expected = hooked_off(model, ids, head + word - 1, neurons)[:, last]
        assert torch.allclose(off.post[:, number].double(), expected, atol=1e-5), text
        at_read = hooked_off(model, ids, last, neurons)[:, last]
        assert torch.allclose(kept.capture(neurons).post[:, number].double(), at_read, atol=1e-5), text
    assert kept.cached and ablation.count == len(texts) * len(neurons)


def test_prompts_within_a_template_are_ablated_at_their_own_last_word():
    model, texts = chat_model(), ["?!", "Hello there."]
    neurons = [(layer, neuron) for layer in range(2) for neuron in range(48)]
    how = {"languages": ["en", "ja"], "max_new_tokens": 3, "progress": False}
    found = tn.behaviour.continuations(model, texts, neurons=neurons, tokens="last_word", **how)
    for text, after, word in zip(texts, found.after, [2, 11], strict=True):
        message = [{"role": "user", "content": text}]
        ids = list(model.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"])
        prompt = len(ids)
        for _ in range(3):
            final = hooked_off(model, ids, len("<user>") + word, neurons)[-1, -1].float()
            ids.append(int(model.module.lm_head(model.module.model.norm(final)).argmax()))
        assert model.tokenizer.decode(ids[prompt:], skip_special_tokens=True) == after


def test_the_perplexity_of_a_templated_model_is_that_of_its_sentences():
    model, texts = chat_model(), ["?!", "Hello there."]
    neurons = [(0, neuron) for neuron in range(48)]
    plain = tn.behaviour.perplexity(model, texts, progress=False)
    off = tn.behaviour.perplexity(model, texts, neurons=neurons, tokens="last_word", batch_tokens=8, progress=False)
    head = len("<user>") + 1
    for number, (text, word) in enumerate(zip(texts, [2, 11], strict=True)):
        ids = ids_of([f"<user>{text}"])[0]
        for found, place in ((plain, None), (off, head + word - 1)):
            post = hooked_off(model, ids, place, neurons if place else [])[-1].float()
            likelihood = model.module.lm_head(model.module.model.norm(post)).log_softmax(dim=-1)
            nats = [-float(likelihood[at - 1, ids[at]].detach()) for at in range(head, len(ids))]
            assert found.tokens[number] == len(nats) == len(text)
            assert found.nll[number] == pytest.approx(sum(nats) / len(nats), rel=1e-5)


@pytest.mark.parametrize(
    ("template", "texts", "words"),
    [
        ("Say {sentence}", TEXTS, "the template 'Say {sentence}' does not begin with the tokenizer's BOS token <bos>"),
        ("<bos>{sentence}", ["<bos>Hi"], "because both the template and the text hold it; remove one of them"),
        ("<bos>{sentence}", ["Hi<eos>"], "remove it from the text, or read position='last_word'"),
    ],
)
def test_within_a_template_the_advice_is_about_the_template(template, texts, words, caplog):
    model = load(with_processor("$A"), template=template)
    with caplog.at_level(logging.WARNING, logger="tnkit"):
        tn.capture(model, texts, progress=False)
    [message] = [record.getMessage() for record in caplog.records]
    assert words in message and "load the tokenizer" not in message and "tokenizer adds it" not in message
