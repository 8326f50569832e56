"""Detection in a random mixture of experts of OLMoE's shape at half its width, against bare forward passes."""

import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tnkit as tn
from tests.benchmarks.gpu import bare_forwards, sentence
from tnkit.testing import byte_tokenizer

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 512,
}
SENTENCES, TOP, ROUNDS = 256, 300, 3


def about() -> str:
    """What is measured."""
    return f"random weights, {SENTENCES} sentences a language of 8 to 32 tokens, ja and en"


def rows() -> list[tuple[str, str, str]]:
    """A row of the table for a detection that holds activations, and for one that streams."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmoe", **SHAPE, pad_token_id=258))
    model = tn.load_model(module.eval(), tokenizer=byte_tokenizer())
    texts = {name: [sentence(number, name) for number in range(SENTENCES)] for name in ("en", "ja")}
    how = {"top": TOP, "progress": False}
    runs = {
        "detect": lambda: tn.detect_all(model, texts, ["ja"], **how),
        "bare": lambda: bare_forwards(model, texts),
        "streaming": lambda: tn.detect_all(model, texts, ["ja"], streaming=True, **how),
    }
    times = {run: [] for run in runs}
    for number in range(ROUNDS + 1):
        for run, call in runs.items():
            started = time.perf_counter()
            call()
            times[run] += [time.perf_counter() - started] * (number > 0)  # the first round warms up
        print({run: round(taken[-1], 2) for run, taken in times.items() if taken}, flush=True)
    bare = statistics.median(times["bare"])
    shape = "64 experts of 512 neurons, 8 a token, hidden 1024, 2 layers"
    return [
        (
            f"{shape}: detection of both types over bare forward passes of padded batches ({bare:.1f} s)",
            _ratio(times["detect"], times["bare"]),
            "≤ 1.15 ×",
        ),
        (
            f"{shape}: streaming detection, each sentence once in flat memory, over the same",
            _ratio(times["streaming"], times["bare"]),
            "for comparison",
        ),
    ]


def _ratio(these, those) -> str:
    return f"{statistics.median(this / that for this, that in zip(these, those, strict=True)):.2f} ×"
