"""On a GPU: the numbers of the CPU, in half precision too, and batches that are halved where memory runs out."""

import copy
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tnkit as tn
from tnkit.captures import passes
from tnkit.captures.batches import roomy
from tnkit.detection.closed_form import summed_scores
from tnkit.interventions.last_token import LastToken
from tnkit.testing import ARCHITECTURES, SENTENCES, byte_tokenizer, tiny_model, tiny_module

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
TEXTS = {"en": SENTENCES, "ja": SENTENCES[::-1]}
QUIET = {"progress": False, "batch_tokens": 120}


def short_of_memory(monkeypatch, most):
    """Let passes fail as a GPU does where more than so many sentences run in one batch; returns the sizes that ran."""
    trace, ran = passes.trace_blocks, []

    def limited(model, inputs, read, **options):
        if len(read) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        ran.append(len(read))
        return trace(model, inputs, read, **options)

    monkeypatch.setattr(passes, "trace_blocks", limited)
    return ran


def both(name, **how):
    """A tiny model on the CPU and a copy of it on the GPU."""
    module = tiny_module(name)
    there = copy.deepcopy(module).to("cuda", **how)
    return (tn.load_model(one, tokenizer=byte_tokenizer()) for one in (module, there))


def test_batches_that_memory_does_not_hold_run_in_halves(monkeypatch, caplog):
    model = tiny_model("gemma3")
    expected = tn.capture(model, SENTENCES, progress=False)
    scores = tn.detect(model, TEXTS, language="ja", top=5, progress=False).scores
    ran = short_of_memory(monkeypatch, 2)
    with caplog.at_level(logging.WARNING, "tnkit"):
        found = tn.capture(model, SENTENCES, progress=False)
    assert max(ran) <= 2 and sum(ran) == len(SENTENCES)
    assert "ran out of memory; batches now run in 4 pieces" in caplog.text
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(getattr(found, name), tensor, rtol=1e-4, atol=1e-5)
    for streaming in (True, False):
        again = tn.detect(model, TEXTS, language="ja", top=5, streaming=streaming, progress=False)
        assert again.neurons.pairs == scores.top(5).pairs


def test_one_sentence_that_memory_does_not_hold_is_an_error(monkeypatch):
    short_of_memory(monkeypatch, 0)
    with pytest.raises(tn.TnkitError, match=r"too little memory for 1 sentence\(s\) of \d+ tokens; ask for fewer"):
        tn.capture(tiny_model("llama"), SENTENCES, progress=False)


@needs_gpu
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_scores_on_a_gpu_are_those_of_the_cpu(name):
    here, there = both(name)
    assert there.home.type == "cuda" and roomy(there) >= 768
    for distance in ("cosine", "euclidean"):
        for streaming in (True, False):
            how = {"distance": distance, "top": 5, "streaming": streaming, **QUIET}
            expected, found = (tn.detect_all(model, TEXTS, ["ja"], **how) for model in (here, there))
            for key, one in expected.items():
                torch.testing.assert_close(
                    found[key].scores.values, one.scores.values, equal_nan=True, rtol=0, atol=2e-6
                )
    captured = tn.capture(there, SENTENCES, **QUIET)
    assert {tensor.device.type for tensor in captured.tensors().values()} == {"cpu"}
    torch.testing.assert_close(captured.post, tn.capture(here, SENTENCES, **QUIET).post, rtol=1e-4, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_half_precision_scores_are_summed_in_full(name, dtype):
    """Against float64 on the CPU, of the very same states and weights."""
    _, there = both(name, dtype=dtype)
    captured = tn.capture(there, SENTENCES, **QUIET)
    target = tn.estimate_centroids([captured])
    found = tn.score_neurons(there, captured, target)
    for layer in range(there.n_layers):
        written = captured.activations[layer].double() * captured.scale[layer].double()[:, None]
        vectors = there.value_vectors(layer).cpu().double() * there.output_gain(layer).cpu().double()
        mid, centroid = captured.mid[layer].double(), target.at(layer).double()
        expected = summed_scores(mid, written, vectors, centroid, distance="cosine")[0] / len(SENTENCES)
        torch.testing.assert_close(found.values[layer], expected, rtol=0, atol=1e-6)


@needs_gpu
def test_ablation_and_cached_prefixes_on_a_gpu_are_those_of_the_cpu():
    off = [(0, 3), (1, 7), (2, 1)]
    one, other = both("llama")
    expected, found = (LastToken(model, SENTENCES, progress=False).capture(off) for model in (one, other))
    torch.testing.assert_close(found.post, expected.post, rtol=1e-4, atol=1e-5)
    with tn.Ablation(other, off, tokens="last"):
        torch.testing.assert_close(tn.capture(other, SENTENCES, **QUIET).post, expected.post, rtol=1e-4, atol=1e-5)


@needs_gpu
def test_a_folder_loads_onto_the_gpu_and_its_cache_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    tiny_module("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    model = tn.load_model(tmp_path / "model", dtype="bfloat16", device_map="auto")
    assert model.device.type == "cuda" and model.dtype == torch.bfloat16
    first = tn.detect(model, TEXTS, language="ja", top=5, cache=True, **QUIET)
    monkeypatch.setattr(passes, "trace_blocks", lambda *_, **__: pytest.fail("a pass was run"))
    again = tn.detect(model, TEXTS, language="ja", top=5, cache=True, **QUIET)
    assert torch.equal(first.scores.values.nan_to_num(), again.scores.values.nan_to_num())


@needs_gpu
def test_a_gpu_that_is_full_runs_what_it_can(caplog):
    config = AutoConfig.for_model(
        "llama", vocab_size=260, hidden_size=1024, intermediate_size=8192, num_hidden_layers=2, num_attention_heads=8
    )
    with torch.device("cuda"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model, texts = tn.load_model(module, tokenizer=byte_tokenizer()), ["word " * 40] * 2000
    expected = tn.capture(model, texts, keep=["post"], batch_tokens=20_000, progress=False)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (1 << 30)) / total)
        with caplog.at_level(logging.WARNING, "tnkit"):
            found = tn.capture(model, texts, keep=["post"], batch_tokens=400_000, progress=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "ran out of memory" in caplog.text
    assert (found.post - expected.post).norm() <= 1e-2 * expected.post.norm()
