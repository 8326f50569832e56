"""Capture: order, padding, stopping early, files, and what is refused."""

import copy

import pytest
import torch

import tnkit as tn
from tnkit.captures.passes import plan
from tnkit.detection import sums
from tnkit.detection.centroids import CentroidAccumulator
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.text.rows import fingerprint

LONG = [text[:length] for length in (99, 4, 20, 9) for text in [*SENTENCES, SENTENCES[0] * 3]]


def test_results_come_in_corpus_order_whatever_the_batches():
    model = tiny_model("qwen3")
    alone = [tn.capture(model, [sentence], progress=False).post[:, 0] for sentence in LONG]
    for batch_tokens in (1, 150, 10_000):
        whole = tn.capture(model, LONG, batch_tokens=batch_tokens, progress=False)
        assert whole.index.tolist() == list(range(len(LONG)))
        for number, expected in enumerate(alone):
            assert (whole.post[:, number] - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_stream_keeps_its_token_budget_and_covers_every_sentence_once(name):
    batches = list(tn.stream(tiny_model(name), LONG, batch_tokens=200, progress=False))
    assert sorted(place for batch in batches for place in batch.index.tolist()) == list(range(len(LONG)))
    lengths = [len(ids) for ids in byte_tokenizer()(LONG)["input_ids"]]
    for batch in batches:
        run = [lengths[place] for place in batch.index]  # end to end, or padded to the longest
        assert len(batch) == 1 or (sum(run) if name == "llama" else len(run) * max(run)) <= 200
    assert len(batches) > 3


def test_only_what_is_asked_for_is_kept_and_nothing_later_runs():
    model, module = tiny_model("llama"), tiny_module("llama")
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(module.model.layers)
    ]
    handles.append(module.lm_head.register_forward_hook(lambda *_: ran.append("head")))
    try:
        found = tn.capture(model, SENTENCES, keep=["post"], layers=[1, 0], progress=False)
    finally:
        for handle in handles:
            handle.remove()
    assert found.layers == (0, 1)
    assert set(found.tensors()) == {"post"}
    assert "head" not in ran
    assert 3 not in ran


def test_the_head_never_runs_even_for_the_last_layer():
    model, module = tiny_model("gpt2"), tiny_module("gpt2")
    ran = []
    handle = module.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    tn.capture(model, SENTENCES, progress=False)
    handle.remove()
    assert not ran


def test_the_mean_leaves_special_tokens_out_wherever_they_stand():
    model = tiny_model("llama")
    plain = tn.capture(model, ["abc"], position="mean", keep=["post"], progress=False)
    with torch.inference_mode():
        hidden = tiny_module("llama").model(input_ids=torch.tensor(byte_tokenizer()(["abc"])["input_ids"]))
    states = tn.capture(model, ["abc"], last_layer="normed", position="mean", keep=["post"], progress=False)
    assert torch.allclose(states.post[-1, 0], hidden.last_hidden_state[0, 1:].mean(dim=0), atol=1e-5)
    assert not torch.allclose(plain.post[-1], states.post[-1], atol=1e-2)
    with pytest.raises(tn.TnkitError, match="only special tokens"):
        tn.capture(model, ["<eos>"], position="mean", progress=False)


def test_a_file_gives_back_what_was_saved(tmp_path):
    found = tn.capture(tiny_model(), SENTENCES, keep=["mid", "activations"], layers=[1, 3], progress=False)
    again = tn.Activations.load(found.save(tmp_path / "capture.safetensors"))
    assert again.layers == (1, 3)
    assert again.provenance == found.provenance
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in found.tensors().items())


def test_provenance_says_where_numbers_come_from():
    corpus = tn.load_corpus("everyday", ["en", "ja"])
    about = tn.capture(tiny_model(), corpus["train"]["ja"][:3], progress=False).provenance
    assert about["sentences"] | {"hash": ""} == {
        "corpus": "everyday",
        "language": "ja",
        "split": "train",
        "source": corpus.source,
        "rows": fingerprint(range(3)),
        "n": 3,
        "hash": "",
        "ends": {"token": "。", "share": 2 / 3, "punctuation": 1.0, "wordless": 0},
    }
    assert about["tokens"] == {"bos": "added", "end": None, "inside": 0}
    assert about["model"]["weights"] == tiny_model().weights_hash
    assert about["position"] == "last"
    assert set(about["versions"]) == {"tnkit", "torch", "transformers", "nnsight"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sentences": []}, "no sentences"),
        ({"sentences": "one string"}, "put it in a list"),
        ({"sentences": ["fine", "word " * 100]}, r"sentence 1 .* has 501 tokens, .* reads at most 128"),
        ({"keep": ["attention"]}, r"keep=\['attention'\] must name some of pre, mid"),
        ({"keep": []}, "must name some of"),
        ({"layers": range(10**12)}, "layer 4 is not in .*, which has layers 0 to 3"),
        ({"layers": []}, "no layers were named"),
        ({"position": "first"}, "position='first' must be one of last, mean"),
        ({"last_layer": "cooked"}, "last_layer='cooked' must be one of raw, normed"),
    ],
)
def test_what_cannot_be_captured_is_refused(arguments, words):
    with pytest.raises(tn.TnkitError, match=words):
        tn.capture(tiny_model(), **({"sentences": SENTENCES, "progress": False} | arguments))


def test_a_sentence_without_tokens_is_named():
    tokenizer = byte_tokenizer()
    post_processor = tokenizer.backend_tokenizer.post_processor
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    try:
        with pytest.raises(tn.TnkitError, match=r"sentence 1 .* has no tokens"):
            tn.capture(tiny_model(), ["a", ""], progress=False)
    finally:
        tokenizer.backend_tokenizer.post_processor = post_processor


def test_missing_tensors_are_named():
    found = tn.capture(tiny_model(), SENTENCES, keep=["mid"], progress=False)
    with pytest.raises(tn.TnkitError, match="hold mid but not post; capture again with keep"):
        tn.estimate_centroids([found])


def test_frame_and_plot_show_every_layer():
    found = tn.capture(tiny_model(), SENTENCES, progress=False)
    frame = found.to_frame()
    assert frame.loc[2, "post norm"] == pytest.approx(float(found.post[2].norm(dim=-1).mean()), rel=1e-6)
    assert len(found.plot().lines) == frame.shape[1]


@pytest.mark.parametrize(
    "edit",
    [
        lambda module: module.model.layers[0].mlp.up_proj.weight.detach().mul_(2),
        lambda module: module.model.layers[0].mlp.up_proj.weight.data.mul_(2),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.set_attn_implementation("eager"),
    ],
    ids=["in place", "through .data", "cast", "attention"],
)
def test_weights_that_change_during_a_stream_are_noticed(edit):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    batches = tn.stream(model, SENTENCES, batch_tokens=40, progress=False)
    first = next(batches)
    edit(module)
    with pytest.raises(tn.TnkitError, match="changed during this pass"):
        list(batches)
    assert len(first) < len(SENTENCES)


def test_sums_of_weights_that_changed_on_the_way_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(sums, "_EVERY", 0)
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    planned = plan(model, SENTENCES, keep=["post"], batch_tokens=40)
    work = sums.add_up(planned, {"en": CentroidAccumulator()}, fingerprint="key")
    next(work)
    module.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    with pytest.raises(tn.TnkitError, match="changed during this pass"):
        list(work)
