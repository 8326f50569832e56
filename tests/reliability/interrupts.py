"""Commands that are interrupted or terminated at random moments: each ends in one line, and leaves no torn file."""

import contextlib
import copy
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_module

SIGNALS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
_HERE = Path(__file__).parents[2]
_DETECT = "detect --model_id model --TN_Type type2 --top_n 10 --lang_for_TN ja --sentence_path mono.txt --quiet "
_DETECT += "--centroids_path c.safetensors --out out/n.json --scores out/s.safetensors"
_BEGUN = r'File "[^"]*/tnkit/(?!__init__|__main__|signals)'  # frames after `signals.begin`
EARLY = "while Python itself was starting"
FINE = ("one line", "done before", EARLY)
COMMANDS = {"detect": _DETECT.split(), "help": ["detect", "--help"]}


def prepared(folder: Path) -> float:
    """Write a tiny model, sentences and centroids; how many seconds an undisturbed detection takes."""
    tiny_module("llama").save_pretrained(folder / "model")
    copy.deepcopy(byte_tokenizer()).save_pretrained(folder / "model")
    (folder / "mono.txt").write_text("おはよう。\nまたね。\n雨が降っている。\nどこですか？\n")
    captured = tn.capture(tn.load_model(folder / "model"), SENTENCES, progress=False)
    tn.estimate_centroids([captured]).save(folder / "c.safetensors")
    started = time.monotonic()
    with _started(folder, "detect") as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return time.monotonic() - started


def tried(folder: Path, times: int, seed: int = 0) -> dict[str, Counter]:
    """Of each command and signal, how often it ended in one line, was done before, or did what it must not."""
    draw, long = random.Random(seed), prepared(folder)
    found = {}
    for command, most in {"detect": long, "help": 0.3}.items():
        for number, (code, word) in SIGNALS.items():
            outcome = found[f"{command}, {number.name}"] = Counter()
            for _ in range(times):
                outcome[_ended(folder, command, draw.uniform(0, most), number, code, word)] += 1
    return found


def _ended(folder: Path, command: str, delay: float, number: signal.Signals, code: int, word: str) -> str:
    """What becomes of a command that gets a signal after so many seconds."""
    for file in (folder / "out").glob("*"):
        file.unlink()
    with _started(folder, command) as process:
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    if command == "detect":
        left = {file.name for file in (folder / "out").glob("*")}
        if left - {"n.json", "s.safetensors"}:
            return "left a temporary file"
        for name in left:
            (tn.NeuronSet if name == "n.json" else tn.NeuronScores).load(folder / "out" / name)
    if process.returncode == code and re.fullmatch(f"tnkit: {word}; no file was left half-written\n", err):
        return "one line"
    if process.returncode == 0 and not err and out:
        return "done before"
    silent = process.returncode == -number and not err
    if silent or ("KeyboardInterrupt" in err and not re.search(_BEGUN, err)):
        return EARLY
    return f"exit code {process.returncode}, {err.strip()[-300:]!r}"


@contextlib.contextmanager
def _started(folder: Path, command: str) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "PYTHONPATH": str(_HERE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored signals would be inherited
    words = [sys.executable, "-m", "tnkit", *COMMANDS[command]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        with subprocess.Popen(words, cwd=folder, env=environment, **pipes) as process:
            yield process
    finally:
        signal.signal(signal.SIGINT, before)
