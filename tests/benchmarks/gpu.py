"""Detection at 7B shape on a GPU, with random weights: against bare forward passes and the plain implementation.

make bench NAMES=gpu        # says so, and leaves the table in RESULTS.md alone, where there is no GPU
"""

import gc
import statistics
import time
from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tnkit as tn
from tests.benchmarks import plain
from tnkit.captures.batches import roomy, tokenised
from tnkit.captures.rows import Rows, batches_of
from tnkit.testing import byte_tokenizer

WIDE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
SHAPES = {  # of the published configurations
    "Llama-3-8B": ("llama", WIDE | {"vocab_size": 128_256, "num_key_value_heads": 8, "rope_theta": 5e5}),
    "Mistral-7B": ("mistral", WIDE | {"vocab_size": 32_000, "num_key_value_heads": 8, "sliding_window": None}),
}
SENTENCES, SOME, TOP, ROUNDS = 1000, 64, 1000, 3
WORDS = "the sea is far and no one had seen it".split()


def missing() -> str | None:
    """Why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "there is no GPU here"
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return None if memory > 30 else f"{torch.cuda.get_device_name()} has {memory:.0f} GB; 30 are needed"


def about() -> str:
    """The device and what runs on it."""
    device = f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    return f"random weights, {SENTENCES} sentences a language of 8 to 32 tokens, ja and en; {device}"


def rows() -> list[tuple[str, str, str]]:
    """A row of the table for each model, number format and thing compared."""
    texts = {name: [sentence(number, name) for number in range(SENTENCES)] for name in ("en", "ja")}
    found = []
    for name, (kind, shape) in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float16):
            found += measured(f"{name}, {str(dtype).removeprefix('torch.')}", kind, shape, dtype, texts)
            print(f"gpu: {name} {dtype} done", flush=True)
    return found


def sentence(number: int, language: str) -> str:
    """8 to 32 characters, each of which is a token."""
    text = f"{language} {number} " + " ".join(WORDS[(number + place) % len(WORDS)] for place in range(8))
    return text[: 8 + number * 7 % 24]


def measured(name, kind, shape, dtype, texts) -> list[tuple[str, str, str]]:
    """Times side by side, the device's memory, and how far scores in this format are from those in float32."""
    torch.manual_seed(0)
    gc.collect()  # the model before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = AutoConfig.for_model(kind, **shape, max_position_embeddings=8192, pad_token_id=258)
    with torch.device("cuda"):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = tn.load_model(module, tokenizer=byte_tokenizer(), packed=True)
    how, some = {"top": TOP, "progress": False}, {language: part[:SOME] for language, part in texts.items()}
    runs = {
        "detect": lambda: tn.detect_all(model, texts, ["ja"], **how),
        "padded": lambda: tn.detect_all(replace(model, packing=None), texts, ["ja"], **how),
        "bare": lambda: bare_forwards(model, texts),
        "bare packed": lambda: bare_forwards(model, texts, packed=True),
        "type1": lambda: tn.detect(model, texts, language="ja", **how),
        "streaming": lambda: tn.detect_all(model, texts, ["ja"], streaming=True, stability=False, **how),
        "some": lambda: tn.detect_all(model, some, ["ja"], **how),
        "plain": lambda: plain.detect(module, model.tokenizer, some["ja"], some["en"], model.boundary, TOP, head=True),
    }
    times, results = {run: [] for run in runs}, {}
    for number in range(ROUNDS + 1):
        for run, call in runs.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            results[run] = call()
            torch.cuda.synchronize()
            times[run] += [time.perf_counter() - started] * (number > 0)  # the first round warms up
    chosen = [set(results["some"]["ja", kind].neurons.pairs) for kind in ("type1", "type2")]
    same = [len(ours & set(theirs)) / TOP for ours, theirs in zip(chosen, results["plain"], strict=True)]
    peak = torch.cuda.max_memory_allocated() / 2**30
    bare = statistics.median(times["bare"])
    tokens = sum(sum(tokenised(model, part).lengths()) for part in texts.values())
    exact = tn.detect_all(tn.load_model(module.float(), tokenizer=model.tokenizer), texts, ["ja"], **how)
    errors = []
    for key, one in exact.items():
        there, here = one.scores.values[one.scores.layers], results["detect"][key].scores.values[one.scores.layers]
        overlap = len(set(results["detect"][key].neurons.pairs) & set(one.neurons.pairs)) / TOP
        errors.append(f"{float((here - there).norm() / there.norm()):.1e}, top {TOP} {overlap:.1%} the same")
    speed = f"{bare:.2f} s, {tokens / bare:,.0f} tokens/s"
    alike = f"{2 * SOME} sentences (same top {TOP}: {min(same):.1%})"
    return [
        (
            f"{name}: detection of both types, packed, over bare forward passes of padded batches ({speed})",
            _ratio(times["detect"], times["bare"]),
            "≤ 1.03 ×",
        ),
        (
            f"{name}: the same, over bare forward passes of the same packed batches",
            _ratio(times["detect"], times["bare packed"]),
            "for comparison",
        ),
        (
            f"{name}: the same, padded, over bare forward passes of padded batches",
            _ratio(times["padded"], times["bare"]),
            "for comparison",
        ),
        (
            f"{name}: detection of Type-1 alone over the same full forward passes",
            _ratio(times["type1"], times["bare"]),
            "≤ 0.75 ×",
        ),
        (
            f"{name}: streaming detection, each sentence once, over the same",
            _ratio(times["streaming"], times["bare"]),
            "≤ 1.10 ×",
        ),
        (
            f"{name}: plain one-sentence-at-a-time implementation over detection, {alike}",
            _ratio(times["plain"], times["some"]),
            "≥ 10 ×",
        ),
        (
            f"{name}: relative error of scores against float32 on the same weights, Type-1; Type-2",
            "; ".join(errors),
            "for comparison",
        ),
        (f"{name}: peak memory of the device", f"{peak:.1f} GiB", "for comparison"),
    ]


def bare_forwards(model, texts, *, packed=False) -> None:
    """The decoder without its head, on padded batches, or on those that detection makes."""
    model = model if packed else replace(model, packing=None)
    for sentences in texts.values():
        tokens = tokenised(model, sentences)
        for index in batches_of(model, tokens.lengths(), roomy(model)):
            inputs = Rows.of(model, [tokens[place] for place in index]).inputs
            with torch.inference_mode():
                model.module.model(**inputs, use_cache=False)


def _ratio(these, those) -> str:
    return f"{statistics.median(this / that for this, that in zip(these, those, strict=True)):.2f} ×"
