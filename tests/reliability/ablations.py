"""Interrupts at random moments, threads at once, and every way to generate, under ablations: is each number right?"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch

import tnkit as tn
from tnkit.testing import SENTENCES, tiny_model
from tnkit.tests.interventions.test_scopes import GREEDY, OFF, PROMPTS, WAYS, batch, decoded

NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]


def interrupted(times: int) -> Counter[str]:
    """Interrupt work under ablations at random moments; afterwards the same objects must give the same numbers."""
    model, inputs, outcome, moments = tiny_model("llama"), batch(), Counter[str](), random.Random(0)
    prefix = tn.LastToken(model, SENTENCES, keep=["post"], batch_tokens=60, progress=False)

    def ablated() -> torch.Tensor:
        with tn.Ablation(model, NEURONS, tokens="prompt"):
            return tn.capture(model, SENTENCES, keep=["post"], batch_tokens=60, progress=False).post

    def generated() -> torch.Tensor:
        with tn.Ablation(model, OFF, tokens="last"):
            return model.module.generate(**inputs, **GREEDY)

    def anew() -> torch.Tensor:
        fresh = tn.LastToken(model, SENTENCES, keep=["post"], batch_tokens=60, progress=False)
        return fresh.capture(NEURONS).post

    work = [lambda: prefix.capture(NEURONS).post, ablated, generated, anew]
    expected, took = [run() for run in work], []
    for run in work:  # once more, now that everything is loaded
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    untouched = tn.capture(model, SENTENCES, keep=["post"], progress=False).post
    for turn in range(times):
        job = turn % len(work)
        outcome["stopped" if _stopped(work[job], moments.uniform(0.0005, took[job])) else "done first"] += 1
        try:
            same = all(torch.equal(run(), value) for run, value in zip(work, expected, strict=True))
            same &= torch.equal(tn.capture(model, SENTENCES, keep=["post"], progress=False).post, untouched)
            outcome["right afterwards" if same and not model.ablations else "wrong afterwards"] += 1
        except Exception as error:
            outcome[f"failed afterwards: {type(error).__name__}"] += 1
    return outcome


def _stopped(run: Callable[[], object], seconds: float) -> bool:
    """Whether work was interrupted before it was done."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))  # as Ctrl-C does
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        run()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def threaded(times: int) -> Counter[str]:
    """Four threads that capture, ablate, measure and generate at once, beside the same one after another."""
    model, outcome = tiny_model("llama"), Counter[str]()
    sets = [[], NEURONS, [(2, 5)], [(0, 1), (3, 3)]]
    prefix = tn.LastToken(model, SENTENCES, keep=["post"], progress=False)

    def run(number: int) -> tuple[torch.Tensor, ...]:
        neurons = sets[number]
        with tn.Ablation(model, neurons, tokens="last") if neurons else nullcontext():
            states = tn.capture(model, SENTENCES, keep=["post"], batch_tokens=60, progress=False).post
        nats = tn.behaviour.perplexity(model, SENTENCES[:2], neurons=neurons, progress=False).nll
        return states, prefix.capture(neurons).post, torch.tensor(nats)

    serial = [run(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(number, pool.submit(run, number)) for _ in range(times) for number in range(4)]
    for number, job in jobs:
        if job.exception() is not None:
            outcome[f"failed: {type(job.exception()).__name__}"] += 1
        else:
            same = all(torch.equal(a, b) for a, b in zip(job.result(), serial[number], strict=True))
            outcome["right" if same else "wrong"] += 1
    return outcome


def scoped(names: tuple[str, ...]) -> Counter[str]:
    """Every way to generate and every scope, beside a loop that computes everything again with plain hooks."""
    outcome = Counter[str]()
    for name in names:
        model = tiny_model(name)
        for tokens in ("last", "last_word", "prompt", "all"):
            expected = [decoded(model, prompt, tokens) for prompt in PROMPTS]
            for how in WAYS.values():
                prompts = PROMPTS[:1] if "prompt_lookup_num_tokens" in how else PROMPTS
                inputs = batch(prompts)
                with tn.Ablation(model, OFF, tokens=tokens):
                    rows = model.module.generate(**inputs, **GREEDY, **how)
                same = rows[:, inputs["input_ids"].shape[1] :].tolist() == expected[: len(prompts)]
                outcome["right" if same else "wrong"] += 1
    return outcome
