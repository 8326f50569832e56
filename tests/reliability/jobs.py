"""Jobs that are killed, that run long, and that run again: nothing is lost, nothing grows, nothing changes."""

import gc
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import torch

import tnkit as tn
from tnkit.detection import turns
from tnkit.testing import SENTENCES, tiny_model
from tnkit.tests.captures import test_shards

_HERE = Path(__file__).parents[2]
_SAVED = """
import os, random, signal, sys, time
import torch, tnkit as tn
from tnkit.testing import SENTENCES, tiny_model
path, seed = sys.argv[1], int(sys.argv[2])
found = [tn.capture(tiny_model(name), SENTENCES, progress=False) for name in ("llama", "gemma3")]
draw, kills = random.Random(seed), 0
found[0].save(path)
for _ in range(int(sys.argv[3])):
    pid = os.fork()
    if not pid:
        while True:
            for one in found:
                one.save(path)
    time.sleep(draw.uniform(0.0, 0.02))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    if tn.Activations.load(path).provenance["model"] not in [one.provenance["model"] for one in found]:
        sys.exit("another capture than any that was saved")
print(kills)
"""


def killed(rounds: int) -> Counter:
    """Cached captures and streamed detections killed at random moments, and results that are saved when killed."""
    outcome = Counter()
    for seed in range(rounds):
        for work in ("capture", "detect"):
            with tempfile.TemporaryDirectory() as folder:
                outcome["kills"] += _killed(Path(folder), work, seed)
                outcome["jobs"] += 1
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", _SAVED, f"{folder}/x.safetensors", "0", str(100 * rounds)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=_HERE, check=True)
        outcome["kills while saving"] = int(done.stdout)
        outcome["half-written"] = len(list(Path(folder).glob("[!.]*"))) - 1
    return outcome


def _killed(folder: Path, work: str, seed: int) -> int:
    """How often a job was killed; its result must equal, bit for bit, that of an unkilled one with one thread too."""
    os.environ["TNKIT_CACHE"] = str(folder / "cache")
    try:
        (kills, end), said = test_shards.run_killed(folder, work, 1, seed)
    finally:
        del os.environ["TNKIT_CACHE"]
    assert end == 0, said
    if work == "capture":
        with test_shards.one_thread():
            fresh = tn.capture(tiny_model("llama"), test_shards.TEXTS, **test_shards.QUIET)
        test_shards.assert_same(tn.Activations.load(folder / "0.safetensors"), fresh)
    else:
        texts = {"en": test_shards.TEXTS, "ja": test_shards.TEXTS[::-1]}
        how = {"language": "ja", "streaming": True, "top": 9, **test_shards.QUIET}
        with test_shards.one_thread(), mock.patch.object(turns, "_WAITING", 0):  # as the job has it
            fresh = tn.detect(tiny_model("llama"), texts, **how).scores
        found = tn.NeuronScores.load(folder / "0.safetensors")
        assert torch.equal(found.values.nan_to_num(9), fresh.values.nan_to_num(9))
    return kills


def memory(times: int) -> dict[str, tuple[float, float]]:
    """Resident memory (MB) after a tenth and after all of so many captures and ablation contexts, in this process."""
    model = tiny_model("gemma3")
    neurons = [(layer, neuron) for layer in range(model.n_layers) for neuron in range(10)]

    def captures() -> None:
        tn.capture(model, SENTENCES, progress=False)

    def ablations() -> None:
        with tn.Ablation(model, neurons, tokens="last"):
            tn.capture(model, SENTENCES[:1], keep=["post"], progress=False)

    found = {}
    for name, run in (("captures", captures), ("ablation contexts", ablations)):
        sizes = []
        for number in range(1, times + 1):
            run()
            if number in (times // 10, times):
                gc.collect()
                sizes.append(resident())
        found[name] = (sizes[0], sizes[1])
    return found


def resident() -> float:
    """Resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def repeated(batches=(30, 60, 120, 768), threads=(1, 2)) -> dict[str, float | bool]:
    """Scores and best neurons of the same sentences: again, in other batches, with other numbers of threads.

    Only the same batches with the same number of threads give the same bits. Elsewhere rounding may exchange neurons
    whose scores differ by less than it.
    """
    texts, model = {"en": SENTENCES, "ja": SENTENCES[::-1]}, tiny_model("gemma3")

    def found(batch_tokens: int = 768):
        how = {"language": "ja", "top": 90, "batch_tokens": batch_tokens, "progress": False}
        return tn.detect(model, texts, **how)

    first, before = found(), torch.get_num_threads()
    again = found()
    others = [found(batch_tokens) for batch_tokens in batches]
    for count in threads:
        torch.set_num_threads(count)
        others.append(found())
    torch.set_num_threads(before)
    scores = first.scores.values.nan_to_num()
    difference = max(float((other.scores.values.nan_to_num() - scores).abs().max()) for other in others)
    return {
        "again, bit-equal": torch.equal(again.scores.values.nan_to_num(), scores),
        "largest difference": difference,
        "again, same order": again.neurons.pairs == first.neurons.pairs,
        "same order up to that difference": all(
            _same_order(first.neurons.scores, scores[tuple(zip(*other.neurons.pairs, strict=True))], difference)
            for other in others
        ),
    }


def _same_order(scores: tuple[float, ...], ordered: torch.Tensor, difference: float) -> bool:
    """Whether neurons in another run's order have the scores of this run's order, rank by rank.

    Sorting moves no rank by more than the largest difference between two scores of one neuron.
    """
    return bool((ordered - torch.tensor(scores, dtype=ordered.dtype)).abs().max() <= 2 * difference)
