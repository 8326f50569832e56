"""A part of `make zoo`: types that cover every reading are right, refusals say why, and errors are seen."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import tnkit as tn
from docs.zoo.__main__ import page, verdicts
from docs.zoo.judge import AUTO, Verdict, compared, judged
from docs.zoo.tiny import tiny
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model

RIGHT = """
    lfm2 bamba falcon_h1 minicpm3 olmo_hybrid nemotron_h+dense jamba+dense granitemoehybrid+dense gemma4_text
    gemma4_text+scalar doge roberta-prelayernorm megatron-bert modernbert-decoder recurrent_gemma ctrl gpt_neo gptj
    olmoe deepseek_v3 gpt_oss axk1
""".split()
REFUSED = {
    "bart": "normalises the sum of state and MLP (final_layer_norm)",
    "bert": "normalises the sum of state and MLP (output.LayerNorm)",
    "cpmant": "is given 40 tokens where the text has 8",
    "gemma3n_text": "carries 4 residual streams beside each other",
    "hrm_text": "expected one list of 32 decoder blocks",
    "mamba": "have no MLP, and so no neurons",
    "mllama": "does not run on text alone",
    "openai-gpt": "normalises the sum of state and MLP (ln_2)",
    "rwkv": "no last linear map of an MLP by a usual name",
    "xlnet": "expected one list of 4 decoder blocks",
    "zamba2": "feeds a Mamba layer and is not added to the residual stream",
}


@pytest.mark.parametrize("name", RIGHT)
def test_an_architecture_is_read_correctly(name):
    verdict = judged("causal", name)
    assert verdict.kind == "right", verdict.reason
    assert verdict.error < 1e-6


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_sentence_with_its_reason(name):
    verdict = judged("causal", name)
    assert verdict.kind == "refused" and REFUSED[name] in verdict.reason
    assert "\n" not in verdict.reason and len(verdict.reason) < 500


def test_the_oracle_sees_a_wrong_reading():
    """Twice the contribution, or the state of another module, is off by far more than rounding."""
    model = tiny_model("llama")
    assert compared(model)[0] == []
    for change in ({"multiplier": 2.0}, {"mid": "input_layernorm"}):
        faults, error = compared(replace(model, sites=tuple(replace(one, **change) for one in model.sites)))
        assert error > 1e-4 and any("a score is off" in fault for fault in faults)


def test_the_oracle_sees_a_model_that_looks_ahead():
    module = tiny("llama", AutoModelForCausalLM)
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    ahead = lambda _, __, output: output + 0.1 * output.roll(-1, dims=1)  # noqa: E731
    handle = module.get_input_embeddings().register_forward_hook(ahead)
    assert any("a token that follows changes states" in fault for fault in compared(model)[0])
    handle.remove()


def test_a_type_that_crashes_or_hangs_ends_alone(monkeypatch):
    def judge(table, name):
        if name == "hangs":
            while True:
                pass
        return Verdict(table, name, "right")

    monkeypatch.setattr("docs.zoo.__main__.judged", judge)
    monkeypatch.setattr("docs.zoo.__main__.LIMIT", 1)
    found = {one.name: one for one in verdicts([("causal", "hangs"), ("causal", "runs")])}
    assert found["hangs"].kind == "crashed" and found["runs"].kind == "right"
    text = page(list(found.values()))
    assert transformers.__version__ in text and "| Causal language models | 1 | 0 | 0 | 1 | 0 |" in text


def test_every_type_of_transformers_is_in_the_table():
    for auto, names in AUTO.values():
        known = {config.model_type for config in auto._model_mapping}
        assert known <= set(names)


@pytest.mark.parametrize("name", ["recurrent_gemma", "blenderbot", "lfm2"])
def test_prompts_of_several_lengths_are_continued_as_alone(name):
    """RecurrentGemma and Blenderbot see padding on their left."""
    model = tn.load_model(tiny(name, AutoModelForCausalLM), tokenizer=byte_tokenizer())
    how = {"max_new_tokens": 4, "progress": False}
    together = tn.behaviour.continuations(model, SENTENCES, **how).before
    assert together == tuple(tn.behaviour.continuations(model, [sentence], **how).before[0] for sentence in SENTENCES)
    assert len(set(together)) > 1 and torch.is_grad_enabled()
