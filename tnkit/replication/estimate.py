"""How long the study takes, from a short measured rate: `estimated`."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

import tnkit as tn
from tnkit.errors import TnkitError
from tnkit.replication.findings import Section
from tnkit.replication.study import Study, Work

SECONDS, LARGE = "seconds here", "seconds, 8B on one GPU"
# Bare forward passes of the shape of Llama 3 8B with random weights, bfloat16, on one NVIDIA H200, from
# tests/benchmarks/RESULTS.md.
TOKENS_PER_SECOND = 26_205
NOTE = (
    "Estimates: here from a rate measured on a few sentences; for a model of 8 billion parameters on one GPU from "
    f"{TOKENS_PER_SECOND:,} tokens a second, measured with random weights of that shape on one H200, for the same "
    "sizes. Written tokens count there as read ones, so sections that write take longer than it says."
)
_SENTENCES, _NEW = 16, 4  # that are timed


def estimated(study: Study, sections: Iterable[Section]) -> pd.DataFrame:
    """The seconds that each section takes, about, indexed by section, with their sum.

    >>> from tnkit.replication.spaces import SPACES
    >>> from tnkit.testing import tiny_study
    >>> estimated(tiny_study(), [SPACES]).index.tolist()
    ['spaces', 'all']
    """
    rates, tokens = _rates(study)
    rows = {}
    for section in sections:
        work = section.work(study)
        seconds = sum(amount * rate for amount, rate in zip(work, rates, strict=True))
        read = (work.states + work.predicted) * tokens + work.written
        rows[section.name] = {**work._asdict(), SECONDS: seconds, LARGE: read / TOKENS_PER_SECOND}
    frame = pd.DataFrame(rows).T.rename_axis("section")
    return pd.concat([frame, frame.sum().to_frame("all").T]).rename_axis("section")


def _rates(study: Study) -> tuple[Work, float]:
    """Seconds of one sentence read, of one predicted, and of one token written; and tokens of a sentence."""
    texts = [text for name in (study.hub, *study.languages) for text in study.corpus["train"][name][:_SENTENCES]]
    texts = texts[:: max(1, len(texts) // _SENTENCES)][:_SENTENCES]
    tokens = sum(map(len, study.model.tokenizer(texts, verbose=False)["input_ids"])) / len(texts)
    quiet: dict[str, Any] = {"progress": False}
    tn.capture(study.model, texts[:2], keep=["post"], **quiet)
    states = _seconds(lambda: tn.capture(study.model, texts, keep=["post"], **quiet)) / len(texts)
    try:
        predicted = _seconds(lambda: tn.behaviour.perplexity(study.model, texts, **quiet)) / len(texts)
        answers = [[""]] * len(texts)
        asked: dict[str, Any] = {"language": study.hub, "template": "{question}{answer}", **quiet}

        def write() -> object:
            return tn.behaviour.answer_questions(study.model, texts, answers, max_new_tokens=_NEW, **asked)

        written = max(0.0, _seconds(write) / len(texts) - states) / _NEW
    except TnkitError:  # a model without an output head, whose sections will say so
        predicted = written = 0.0
    return Work(states, predicted, written), tokens


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
