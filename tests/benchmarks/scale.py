"""What is promised of long jobs: flat memory, going on after a kill, and two processes that share the work."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tnkit.storage import cache_folder

_HERE = Path(__file__).parents[2]
_MODEL = """
import collections, os, signal, sys, time
import torch, tnkit as tn
from tnkit.testing import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
layers, width = int(sys.argv[1]), int(sys.argv[2])
config = AutoConfig.for_model("llama", vocab_size=260, hidden_size=width, intermediate_size=4 * width,
    num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
    pad_token_id=258)
model = tn.load_model(AutoModelForCausalLM.from_config(config), tokenizer=byte_tokenizer())
"""
_MEMORY = (
    _MODEL
    + """
class Texts(collections.abc.Sequence):  # read when asked for, so that what is measured is the detection
    def __init__(self, name):
        self.name, self.places = name, range(int(sys.argv[3]))

    def __len__(self):
        return len(self.places)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[one] for one in self.places[place]]
        return f"{self.name} {self.places[place]:06d}"

texts = {name: Texts(name) for name in ("en", *(f"x{number}" for number in range(1, int(sys.argv[4]))))}
tn.detect_all(model, texts, top=100, streaming=True, batch_tokens=4096, progress=False)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""
)
_CAPTURE = """
import hashlib, os, signal, sys, time
import tnkit as tn
from tnkit.captures import passes
model, trace = tn.load_model(sys.argv[1]), passes.trace_blocks
texts = tn.load_corpus("everyday", ["ja"])["train"]["ja"]
model.weights_hash
last, count = int(sys.argv[2]), 0

def counted(model, inputs, read, **options):
    global count
    if last and count >= last:
        print(count, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    count += len(read)
    return trace(model, inputs, read, **options)

passes.trace_blocks = counted
started = time.perf_counter()
found = tn.capture(model, texts, cache=sys.argv[3] == "cache", progress=False)
seconds, digest = time.perf_counter() - started, hashlib.sha256()
for name, tensor in sorted(found.tensors().items()):
    digest.update(tensor.numpy().tobytes())
print(len(texts), count, seconds, digest.hexdigest())
"""
_SHARED = (
    _MODEL
    + """
from tnkit import parallel
texts = {name: [f"{name} {'word ' * (number % 15)}" for number in range(600)] for name in ("en", "ja")}
warm = {name: some[:20] for name, some in texts.items()}
for part in (warm, texts):
    started = time.perf_counter()
    tn.detect_all(model, part, ["ja"], top=100, streaming=True, progress=False)
if parallel.rank() == 0:
    print(time.perf_counter() - started)
"""
)


def rows(model: str) -> list[tuple[str, str, str]]:
    """What was measured, and the bound, one row each."""
    return [*memory(), *resumed(model), shared()]


def memory() -> list[tuple[str, str, str]]:
    """Peak resident memory of streaming detection, with more sentences and with more languages."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # what is freed goes back: no allocator's noise
    given_back = {"MALLOC_ARENA_MAX": "1", **dict.fromkeys(names, "131072")}
    cases = {
        "1,000 → 100,000 sentences a language, streaming (2-layer random model)": ("2 64 1000 2", "2 64 100000 2"),
        "2 → 32 languages of 400 sentences, streaming (4-layer random model)": ("4 256 400 2", "4 256 400 32"),
    }
    found = []
    for what, sizes in cases.items():
        small, large = (float(_output(_MEMORY, *size.split(), **given_back)) for size in sizes)
        found.append((f"peak memory, {what}", f"{small:.0f} → {large:.0f} MB ({large / small - 1:+.1%})", "< +5 %"))
    return found


def resumed(model: str) -> list[tuple[str, str, str]]:
    """A capture of the packaged corpus that is killed half-way and run again, beside one that is not."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = _output(_CAPTURE, model, "0", "no", TNKIT_CACHE=None).split()
        (Path(folder) / "models").symlink_to(cache_folder() / "models")  # converted once
        killed = _run(_CAPTURE, model, "128", "cache", TNKIT_CACHE=folder)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again, read = (_output(_CAPTURE, model, "0", "cache", TNKIT_CACHE=folder).split() for _ in range(2))
    whole, before = int(fresh[0]), int(killed.stdout)
    twice = before + int(again[1]) - whole
    assert int(read[1]) == 0
    return [
        (
            f"a capture of {whole} sentences, killed after {before} and run again, against one that was not",
            f"{'bit-equal' if again[3] == fresh[3] else 'different'}, {twice} sentences run twice",
            "bit-equal, ≤ 64",
        ),
        (
            f"reading that capture from the cache, checksums and a fresh fingerprint of the weights included (running "
            f"it took {float(fresh[2]):.1f} s)",
            f"{float(read[2]):.2f} s" if read[3] == fresh[3] else "different",
            "< 1 s",
        ),
    ]


def shared() -> tuple[str, str, str]:
    """Detection in one process and in two that share the work, a thread each."""
    one, two = [], []
    for _ in range(3):
        one.append(float(_output(_SHARED, "8", "256", OMP_NUM_THREADS="1")))
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "job.py"
            script.write_text(_SHARED)
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), "8", "256"]
            two.append(float(_run_words([sys.executable, *launch], OMP_NUM_THREADS="1").stdout))
    ratio = sorted(alone / both for alone, both in zip(one, two, strict=True))[1]
    what = f"one process over two with torchrun, one thread each (8-layer random model, {one[0]:.1f} s alone)"
    return what, f"{ratio:.2f} ×", f"≥ 1.7 × on two idle cores (load now {os.getloadavg()[0]:.0f})"


def _output(script: str, *words: str, **environment: str | None) -> str:
    done = _run(script, *words, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(script: str, *words: str, **environment: str | None) -> subprocess.CompletedProcess:
    return _run_words([sys.executable, "-c", script, *words], **environment)


def _run_words(words: list[str], **environment: str | None) -> subprocess.CompletedProcess:
    whole = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(_HERE), **environment}
    whole = {name: value for name, value in whole.items() if value is not None}
    return subprocess.run(words, capture_output=True, text=True, cwd=_HERE, env=whole)


if __name__ == "__main__":
    for row in rows("gemma-3-270m"):
        print(f"| {' | '.join(row)} |", flush=True)
