"""Two processes give what one gives, end when one of them ends, and go on from the cache."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

import tnkit as tn
from tnkit import parallel
from tnkit.captures.passes import plan
from tnkit.cli import main as cli
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_config, tiny_model, tiny_module
from tnkit.tests.captures.test_shards import one_thread

TEXTS = [text[:length] for length in (40, 25, 12, 7, 3) for text in SENTENCES]
SCRIPT = """
import os, signal, sys, time
import tnkit as tn
from tests.test_parallel import TEXTS
from tnkit import parallel
from tnkit.captures import passes
from tnkit.detection import sums, turns
from tnkit.testing import tiny_model
what, folder, name = sys.argv[1:]
texts, trace, traced = {"en": TEXTS, "ja": TEXTS[::-1], "it": TEXTS[3:] + TEXTS[:3]}, passes.trace_blocks, []
passes._SHARD, sums._EVERY, sums._RARELY, turns._WAITING = 1, 0, 0, 0
if what == "different" and parallel.rank():
    texts["en"] = [*texts["en"][:-1], "Another."]

def traced_blocks(*arguments, **options):
    traced.append(1)
    if parallel.rank() and len(traced) == 20:
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raised":
            raise tn.TnkitError("this rank has a reason")
    return trace(*arguments, **options)

passes.trace_blocks = traced_blocks
few = what == "few"
for streaming in (False, True):
    found = tn.detect_all(tiny_model(name), texts, ["ja", "it"], top=20, batch_tokens=10_000 if few else 60,
        streaming=streaming, cache=what in ("killed", "resumed"), progress=False)
    for (language, kind), one in found.items():
        one.save(f"{folder}/{parallel.rank()}/{streaming}/{language}/{kind}")
os.write(1, f"{parallel.rank()} {len(traced)}\\n".encode())  # one piece, whoever else writes
"""
SPREAD = """
import sys, warnings
import tnkit as tn
from tests.test_parallel import PAIRS, TEXTS, spread_results
from tnkit import parallel
model = tn.load_model(sys.argv[1], tp_plan="auto")
assert model.sharded
spread_results(model, f"{sys.argv[2]}/{parallel.rank()}")
try:
    tn.export_ablated(model, PAIRS, f"{sys.argv[2]}/export")
except tn.TnkitError as error:
    print(error, flush=True)
"""
PAIRS = [(1, 3), (2, 40), (2, 5), (0, 23), (0, 24)]  # in either half of the neurons


def torchrun(folder, *words, processes=2):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(tn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "TNKIT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *words]
    return subprocess.run(run, capture_output=True, text=True, timeout=600, env=environment, cwd=folder)


def script(folder, what, name="gemma3"):
    (folder / "job.py").write_text(SCRIPT)
    return torchrun(folder, "job.py", what, str(folder), name)


def detected(batch_tokens=60, streaming=False, name="gemma3"):
    texts = {"en": TEXTS, "ja": TEXTS[::-1], "it": TEXTS[3:] + TEXTS[:3]}
    how = {"top": 20, "batch_tokens": batch_tokens, "streaming": streaming, "progress": False}
    with one_thread():  # as every process of torchrun has
        return tn.detect_all(tiny_model(name), texts, ["ja", "it"], **how)


def assert_same(folder, **how):
    for streaming in (False, True):
        for (language, kind), one in detected(streaming=streaming, **how).items():
            for rank in (0, 1):
                found = tn.Detection.load(folder / str(rank) / str(streaming) / language / kind)
                assert found.neurons.pairs == one.neurons.pairs
                assert found.scores.provenance == one.scores.provenance
                assert torch.allclose(found.scores.values, one.scores.values, rtol=0, atol=1e-7, equal_nan=True)
                assert torch.allclose(found.centroids.values, one.centroids.values, rtol=0, atol=1e-6)
                shares = [scored.routed for scored in (found.scores, one.scores)]
                assert shares == [None, None] or torch.equal(*(share.nan_to_num(-1) for share in shares))


def all_batches():
    """Of one job without and one with streaming."""
    runs = (TEXTS, TEXTS[::-1], TEXTS[3:] + TEXTS[:3])
    return 2 * sum(len(plan(tiny_model(), one, batch_tokens=60).batches) for one in runs)


@pytest.mark.parametrize("name", ["gemma3", "qwen2-moe"])
def test_two_processes_give_what_one_gives_and_share_the_work(tmp_path, name):
    done = script(tmp_path, "whole", name)
    assert done.returncode == 0, done.stderr
    counts = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert sum(counts.values()) == all_batches() and abs(counts[0] - counts[1]) <= 16
    assert_same(tmp_path, name=name)


def test_a_process_that_nothing_falls_to_is_no_trouble(tmp_path):
    done = script(tmp_path, "few")
    assert done.returncode == 0, done.stderr
    assert sorted(int(line.split()[1]) for line in done.stdout.splitlines()) == [0, 6]
    assert_same(tmp_path, batch_tokens=10_000)


def test_a_process_that_is_killed_ends_the_job_and_a_new_run_goes_on(tmp_path):
    started = time.monotonic()
    killed = script(tmp_path, "killed")
    assert killed.returncode != 0 and time.monotonic() - started < 250
    assert re.search("Signal 9|SIGKILL", killed.stderr)
    again = script(tmp_path, "resumed")
    assert again.returncode == 0, again.stderr
    assert_same(tmp_path)
    assert sum(int(line.split()[1]) for line in again.stdout.splitlines()) <= all_batches() - 30
    assert script(tmp_path, "resumed").stdout.split() in (["0", "0", "1", "0"], ["1", "0", "0", "0"])


def test_a_process_that_fails_says_why_and_ends_the_job(tmp_path):
    failed = script(tmp_path, "raised")
    assert failed.returncode != 0 and "this rank has a reason" in failed.stderr


def test_processes_with_different_jobs_are_refused(tmp_path):
    failed = script(tmp_path, "different")
    assert failed.returncode != 0 and "have different models, sentences or options" in failed.stderr


@pytest.fixture
def commands(saved_models, tmp_path):
    """The flags of both commands, and a folder with the files that they read."""
    (tmp_path / "pairs.tsv").write_text("en\tja\n" + "".join(f"{a}\t{b}\n" for a, b in zip(TEXTS, TEXTS[::-1])))  # noqa: B905
    both = f"--model_id {saved_models / 'model'} --TN_Type type1 --lang_for_TN ja --sentence_path pairs.tsv"
    both += " --batch_tokens 60"
    return (
        f"centroids {both} --out c.safetensors",
        f"detect {both} --centroids_path c.safetensors --top_n 20 --out n.json",
    )


def test_the_command_line_writes_and_prints_once(commands, tmp_path, monkeypatch):
    made = [torchrun(tmp_path, "-m", "tnkit", *shlex.split(line)) for line in commands]
    assert [(one.returncode, one.stdout) for one in made] == [(0, "c.safetensors\n"), (0, "n.json\n")], made
    centroids, neurons = tn.Centroids.load(tmp_path / "c.safetensors"), tn.NeuronSet.load(tmp_path / "n.json")
    monkeypatch.chdir(tmp_path)
    with one_thread():
        assert [cli.main(shlex.split(line)) for line in commands] == [0, 0]
    assert tn.NeuronSet.load("n.json").pairs == neurons.pairs
    assert tn.NeuronSet.load("n.json").provenance == neurons.provenance
    assert torch.allclose(tn.Centroids.load("c.safetensors").values, centroids.values, rtol=0, atol=1e-7)


def test_the_command_line_names_the_process_that_fails_and_refuses_other_commands(commands, tmp_path):
    failed = torchrun(tmp_path, "-m", "tnkit", *shlex.split(commands[1]))
    assert failed.returncode != 0 and failed.stdout == ""
    assert "tnkit: rank 0: there is no file c.safetensors" in failed.stderr
    failed = torchrun(tmp_path, "-m", "tnkit", "cache")
    assert "torchrun is for centroids and detect; run tnkit cache without it" in failed.stderr


def spread_results(model, folder):
    """Captures, untouched and ablated, and detections, written to a folder."""
    how = {"batch_tokens": 60, "progress": False}
    tn.capture(model, TEXTS, cache=True, **how).save(f"{folder}/untouched.safetensors")
    tn.capture(model, TEXTS, position="mean", **how).save(f"{folder}/mean.safetensors")
    for name, options in {"off": {}, "last": {"tokens": "last", "value": 1.0}, "scaled": {"scale": 0.5}}.items():
        with tn.Ablation(model, PAIRS, **options):
            tn.capture(model, TEXTS, **how).save(f"{folder}/{name}.safetensors")
    for streaming in (False, True):
        texts = {"en": TEXTS, "ja": TEXTS[::-1]}
        found = tn.detect_all(model, texts, ["ja"], top=20, streaming=streaming, **how)
        for (_, kind), one in found.items():
            one.save(f"{folder}/{streaming}/{kind}")


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_model_spread_over_two_processes_gives_the_same_everywhere(tmp_path, name):
    folder = tmp_path / "model"
    tiny_module(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (tmp_path / "job.py").write_text(SPREAD)
    done = torchrun(tmp_path, "job.py", str(folder), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is spread over processes; load it without tp_plan to write a checkpoint") == 2
    assert "nothing is read from the cache or kept" in done.stderr and not (tmp_path / "cache").exists()
    model = tn.load_model(folder)
    assert not model.sharded
    spread_results(model, tmp_path / "alone")
    for rank in ("0", "1"):
        for file in (tmp_path / "alone").glob("*.safetensors"):
            alone, spread = tn.Activations.load(file), tn.Activations.load(tmp_path / rank / file.name)
            assert spread.provenance == alone.provenance
            for site, tensor in alone.tensors().items():
                torch.testing.assert_close(spread.tensors()[site], tensor, rtol=1e-4, atol=1e-5)
        for where in ("True/type1", "True/type2", "False/type1", "False/type2"):
            alone, spread = (tn.Detection.load(tmp_path / one / where) for one in ("alone", rank))
            assert torch.allclose(spread.scores.values, alone.scores.values, rtol=0, atol=1e-6, equal_nan=True)
            exchanged = set(spread.neurons) ^ set(alone.neurons)
            assert all(abs(alone.scores.values[pair] - alone.neurons.scores[-1]) < 2e-6 for pair in exchanged)
    off = tn.Activations.load(tmp_path / "0" / "off.safetensors").activations
    assert all((off[layer, :, neuron] == 0).all() for layer, neuron in PAIRS)


def test_the_command_line_spreads_a_model_too(commands, tmp_path, monkeypatch):
    made = [torchrun(tmp_path, "-m", "tnkit", *shlex.split(line), "--tp_plan", "auto") for line in commands]
    assert [(one.returncode, one.stdout) for one in made] == [(0, "c.safetensors\n"), (0, "n.json\n")], made
    found = tn.NeuronSet.load(tmp_path / "n.json")
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(commands[1])) == 0  # with the centroids of the spread model
    assert len(set(tn.NeuronSet.load("n.json")) & set(found)) >= 19  # of 20: rounding may exchange the last


def test_a_model_that_does_not_divide_is_refused(saved_models, tmp_path):
    config = tiny_config("llama")
    config.num_key_value_heads = 1
    for name, module in {
        "odd": transformers.AutoModelForCausalLM.from_config(config),
        "gpt2": tiny_module("gpt2"),
    }.items():
        module.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
        flags = "--TN_Type type2 --lang_for_TN ja --sentence_path x.txt --tp_plan auto"
        (tmp_path / "x.txt").write_text("Hi!\n")
        failed = torchrun(tmp_path, "-m", "tnkit", "centroids", "--model_id", name, *flags.split())
        assert failed.returncode != 0 and f"{name} cannot be split over 2 processes: its heads" in failed.stderr
    with pytest.raises(tn.TnkitError, match="there is only one; start it with torchrun"):
        tn.load_model(saved_models / "model", tp_plan="auto")
    with pytest.raises(tn.TnkitError, match="both say where the weights go"):
        tn.load_model(saved_models / "model", tp_plan="auto", device_map="cpu")


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_shares_are_whole_disjoint_and_even(processes, monkeypatch):
    batches, costs = [[number] for number in range(40)], [(number * 7) % 20 + 1 for number in range(40)]
    shares = []
    for rank in range(processes):
        told = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))
        shares.append(parallel.share(batches, costs))
        assert shares[-1] == sorted(shares[-1])
    assert sorted(one for part in shares for one in part) == batches
    loads = [sum(costs[number] for [number] in part) for part in shares]
    assert max(loads) - min(loads) <= max(costs) / 2


LEFT = {  # what an earlier run may leave in the environment: variables, and what is said
    "the first of two": (
        {"RANK": "0", "WORLD_SIZE": "2"},
        "RANK=0 and WORLD_SIZE=2 are set, but the 2 processes could",
    ),
    "the second of two": ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1 and WORLD_SIZE=2 are set, but the 2 processes"),
    "torchrun, gone": (
        {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x"},
        "could not connect",
    ),
    "no numbers": ({"RANK": "a", "WORLD_SIZE": "2"}, "the environment variable RANK is 'a'"),
    "none": ({"RANK": "0", "WORLD_SIZE": "0"}, "the environment variable WORLD_SIZE is '0'"),
}


@pytest.mark.parametrize("left", LEFT)
def test_variables_left_by_an_earlier_run_are_an_error_and_no_endless_wait(left, commands, tmp_path):
    variables, said = LEFT[left]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import sys, datetime; from tnkit import parallel; from tnkit.cli import main as cli"
    code += "; parallel._MEETING = datetime.timedelta(seconds=3)"
    words = [sys.executable, "-c", f"{code}; sys.exit(cli.main(sys.argv[1:]))", *shlex.split(commands[0])]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables}
    environment["PYTHONPATH"] = str(Path(tn.__file__).parents[1])
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert said in last and "unset RANK and WORLD_SIZE" in last


def test_a_world_of_one_is_no_world(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (parallel.rank(), parallel.size()) == (0, 1) and parallel.least(3) == 3
