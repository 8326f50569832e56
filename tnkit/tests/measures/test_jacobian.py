"""Averaged Jacobians against PyTorch's own Jacobian of plain forward passes."""

from operator import attrgetter

import pytest
import torch

import tnkit as tn
from tnkit.measures.lens import jacobian
from tnkit.measures.lens.jacobian import Jacobians, jacobians
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model
from tnkit.tests.oracle import assert_near

QUIET = {"progress": False}
FIVE = ("llama", "gemma3", "gpt-neox", "qwen2-moe", "gpt2")
TWO = ["Hi!", "Ciao, tu."]


def expected(model, text, layer):
    """∂ last layer's post / ∂ a layer's post, at the last token of one unpadded sentence."""
    blocks, ids = attrgetter(model.blocks_path)(model.module), torch.tensor([byte_tokenizer()(text)["input_ids"]])
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731

    def final(state):
        kept = []

        def put(_, __, output):
            states = first(output).clone()
            states[0, -1] = state
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handles = [blocks[layer].register_forward_hook(put)]
        handles.append(blocks[-1].register_forward_hook(lambda _, __, output: kept.append(first(output)[0, -1])))
        model.module(ids)
        for handle in handles:
            handle.remove()
        return kept[0]

    held = tn.capture(model, [text], keep=["post"], **QUIET).post[layer, 0]
    return torch.autograd.functional.jacobian(final, held)


@pytest.mark.parametrize("name", FIVE)
def test_they_are_the_mean_of_jacobians_of_plain_passes(name):
    model = tiny_model(name)
    found = jacobians(model, TWO, cache=False, rows=20, **QUIET)  # rows that do not divide the width
    for layer in (0, 2):
        assert_near(found.matrices[layer], sum(expected(model, text, layer) for text in TWO) / 2, 1e-4)
    assert torch.equal(found.matrices[3], torch.eye(32)) and found.count == 2


def test_whole_passes_give_the_same_as_a_cached_prefix(monkeypatch):
    model = tiny_model()
    cached = jacobians(model, TWO, cache=False, **QUIET).matrices
    monkeypatch.setattr(tn.LastToken, "_is_proved", lambda *_: False)
    assert_near(jacobians(model, TWO, cache=False, **QUIET).matrices, cached, 1e-4)


def test_finished_parts_come_from_the_cache_and_an_interrupt_leaves_a_mean(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jacobian, "_SHARD", 2)
    model, run, texts = tiny_model(), jacobian._of_sentence, SENTENCES[:4]
    calls = []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(*given)

    monkeypatch.setattr(jacobian, "_of_sentence", interrupted)
    some = jacobians(model, texts, **QUIET)
    assert some.count == 3 and "3 of 4 sentences" in caplog.text
    monkeypatch.setattr(jacobian, "_of_sentence", lambda *given: calls.append(given) or run(*given))
    whole = jacobians(model, texts, **QUIET)
    assert len(calls) == 4 + 2  # the first two came from the cache
    assert_near(whole.matrices, jacobians(model, texts, cache=False, **QUIET).matrices, 1e-6)


def test_value_vectors_are_carried_to_the_last_layer_and_read_there():
    model = tiny_model("gemma3")
    found, neurons = jacobians(model, TWO, cache=False, **QUIET), [(0, 3), (3, 5)]
    logit, carried = tn.lens.promoted(model, neurons, k=5), tn.lens.promoted(model, neurons, k=5, lens=found)
    assert torch.equal(logit.promoted_logits[1], carried.promoted_logits[1])  # nothing comes after the last layer
    vector = found.matrices[0] @ (model.value_vectors(0)[3] * model.output_gain(0))
    norm, head = model.module.model.norm, model.module.get_output_embeddings()
    with torch.no_grad():
        logits = head.weight[: len(model.tokenizer)] @ (vector * (1 + norm.weight))
    assert_near(carried.promoted_logits[0], logits.topk(5).values, 1e-4)
    assert carried.provenance["lens"] == "jacobian" and logit.provenance["lens"] == "logit"


def test_they_are_saved_checked_and_shown(tmp_path):
    model = tiny_model()
    found = jacobians(model, TWO[:1], cache=False, **QUIET)
    again = Jacobians.load(found.save(tmp_path / "j.safetensors"))
    assert torch.equal(again.matrices, found.matrices) and again.count == 1
    assert found.to_frame().loc[3].tolist() == pytest.approx([1, 1]) and "sentences" in found._repr_html_()
    with pytest.raises(tn.TnkitError, match="were made with"):
        tn.lens.promoted(tiny_model("qwen3"), (0, 1), lens=again)
    with pytest.raises(tn.TnkitError, match="must be one of logit, jacobian"):
        tn.lens.promoted(model, (0, 1), lens="tuned")
    with pytest.raises(tn.TnkitError, match="does not hold averaged Jacobians"):
        tn.storage.save_tensors(tmp_path / "x", "jacobians", {"other": found.matrices}, {"count": 1})
        Jacobians.load(tmp_path / "x")


def test_value_vectors_of_experts_are_read_one_by_one():
    model = tiny_model("qwen2-moe")
    last = model.widths[1] - 1  # of the shared expert
    found = tn.lens.promoted(model, [(1, 30), (1, last), (0, 2)], k=3)
    for row, (layer, neuron) in enumerate(found.neurons):
        one = tn.lens.promoted(model, (layer, neuron), k=3)
        assert_near(found.promoted_logits[row], one.promoted_logits[0], 1e-6)
        assert torch.equal(model.vectors_of(layer, [neuron])[0], model.value_vectors(layer)[neuron])
