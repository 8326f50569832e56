"""What could make detection faster on a CPU: number format, attention, threads, rows, batch size; and what is used."""

import statistics
import time
from dataclasses import replace

import torch

import tnkit as tn
from tnkit.captures.batches import tokenised
from tnkit.captures.rows import Rows, batches_of

TOP, ROUNDS, USED, BATCHES = 300, 3, 1536, (384, 768, 3072)


def rows(name: str) -> list[tuple[str, str, str]]:
    """A row of the table for each choice: its time over that of what is used, and what it costs."""
    model, half = tn.load_model(name), tn.load_model(name, dtype="bfloat16")
    train = tn.load_corpus("everyday", ["en", "ja"])["train"]
    texts = {language: sentences[:96] for language, sentences in train.items()}

    def detect(model=model, **how):
        return tn.detect_all(model, texts, ["ja"], top=TOP, progress=False, **how)

    def eager():
        model.module.set_attn_implementation("eager")
        try:
            return detect()
        finally:
            model.module.set_attn_implementation("sdpa")

    def one_thread():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return detect()
        finally:
            torch.set_num_threads(threads)

    padded = replace(model, packing=None)
    runs = {"as it is": detect, "bfloat16": lambda: detect(half), "eager": eager, "one thread": one_thread}
    runs["padded"] = lambda: detect(padded)
    runs |= {f"{size}": lambda size=size: detect(batch_tokens=size) for size in BATCHES}
    times, found = {run: [] for run in runs}, {}
    for _ in range(ROUNDS):
        for run, call in runs.items():
            started = time.perf_counter()
            found[run] = call()
            times[run].append(time.perf_counter() - started)
    ratio = {run: _ratio(taken, times["as it is"]) for run, taken in times.items()}
    errors = []
    for key, one in found["as it is"].items():
        there, here = (found[how][key].scores.values[one.scores.layers] for how in ("as it is", "bfloat16"))
        same = len(set(found["bfloat16"][key].neurons.pairs) & set(one.neurons.pairs)) / TOP
        errors.append(f"{key[1]} {float((here - there).norm() / there.norm()):.1%}, top {TOP} {same:.1%} the same")
    rounding = f"bfloat16 instead of float32; relative error of scores: {'; '.join(errors)}"
    return [
        (rounding, ratio["bfloat16"], "the user's choice: `dtype`"),
        ("eager attention, and padded rows, instead of SDPA and packed ones", ratio["eager"], "not used"),
        (f"one thread instead of {torch.get_num_threads()}", ratio["one thread"], "not used"),
        (f"padded rows, 768 tokens a batch; {waste(padded, texts, 768)}", ratio["padded"], "where packed rows differ"),
        *(
            (f"{size} tokens a batch instead of {USED}; {waste(model, texts, size)}", ratio[f"{size}"], "not used")
            for size in BATCHES
        ),
        (f"packed rows, {USED} tokens a batch; {waste(model, texts, USED)}", "1 ×", "used"),
    ]


def waste(model: tn.Model, texts: dict, size: int) -> str:
    """How much of the batches is padding."""
    real = padded = 0
    for sentences in texts.values():
        tokens = tokenised(model, sentences)
        lengths = tokens.lengths()
        real += sum(lengths)
        batches = batches_of(model, lengths, size)
        padded += sum(Rows.of(model, [tokens[at] for at in index]).inputs["input_ids"].numel() for index in batches)
    return f"{1 - real / padded:.1%} padding"


def _ratio(these: list[float], those: list[float]) -> str:
    return f"{statistics.median(this / that for this, that in zip(these, those, strict=True)):.2f} ×"
