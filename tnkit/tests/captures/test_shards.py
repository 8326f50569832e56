"""A cached capture equals a fresh one, whatever happens to the process, the file or the model.

With the same number of threads, bit for bit: another number may add up in another order.
"""

import copy
import logging
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import tnkit as tn
from tnkit import storage
from tnkit.captures import passes, shards
from tnkit.captures.batches import grouped
from tnkit.models import fingerprint as fingerprints
from tnkit.models import model as identity
from tnkit.models import weights
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module

TEXTS = [text[:length] for length in (40, 25, 12, 7, 3) for text in SENTENCES]
PINNED = [1.73678, 1.917897, 0.243358, 2.24935, 1.048396, 0.8724384, 0.134578, 2.466083, 0.004288249]
QUIET = {"batch_tokens": 60, "progress": False}
# Children of one process, so that torch is imported once: each captures with a pause before every batch.
KILLED = """
import os, random, signal, sys, time
import torch, tnkit as tn
from tnkit.captures import passes, shards
from tnkit.detection import sums, turns
from tnkit.tests.captures.test_shards import TEXTS
from tnkit.testing import tiny_model
torch.set_num_threads(1)
folder, work, at_once, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
passes._SHARD, trace, model = 6, passes.trace_blocks, tiny_model("llama")
sums._EVERY = sums._RARELY = turns._WAITING = 0

def slowly(*arguments, **options):
    time.sleep(0.15)
    found = trace(*arguments, **options)
    with open(f"{folder}/traced", "ab", buffering=0) as log:
        log.write(b".")
    return found

def child(number, pause=slowly):
    if pid := os.fork():
        return pid
    passes.trace_blocks = pause
    if work == "capture":
        tn.capture(model, TEXTS, batch_tokens=60, cache=True, progress=False).save(f"{folder}/{number}.safetensors")
    else:
        texts = {"en": TEXTS, "ja": TEXTS[::-1]}
        found = tn.detect(model, texts, language="ja", streaming=True, top=9, batch_tokens=60, cache=True,
            progress=False)
        found.scores.save(f"{folder}/{number}.safetensors")
    os._exit(0)

draw, kills = random.Random(seed), 0
while at_once == 1 and kills < 12:
    pid = child("whole")
    time.sleep(draw.uniform(0.02, 0.5) * (1 + kills / 4))  # a busy machine gets on, too
    if os.waitpid(pid, os.WNOHANG) != (0, 0):
        break
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
ends = [os.waitpid(pid, 0)[1] for pid in [child(number) for number in range(at_once)]]
print(kills, *ends)
"""


@contextmanager
def one_thread():
    """One thread, as the children have: they are forked, after which OpenMP's other threads are gone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tnkit.captures.passes._SHARD", 6)
    return tmp_path / "cache" / "captures"


@pytest.fixture
def traced(monkeypatch):
    """How many batches were traced, as a list that grows."""
    from tnkit.captures import passes

    batches, trace = [], passes.trace_blocks

    def counted(model, inputs, read, **options):
        batches.append(len(read))
        return trace(model, inputs, read, **options)

    monkeypatch.setattr(passes, "trace_blocks", counted)
    return batches


def capture(model=None, texts=TEXTS, cache=True, **options):
    return tn.capture(model or tiny_model(), texts, cache=cache, **QUIET | options)


def assert_same(one, other):
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])
    assert (one.layers, one.provenance, one.index.tolist()) == (other.layers, other.provenance, other.index.tolist())


def files(cache):
    return sorted(path for path in cache.rglob("*.safetensors"))


def test_a_finished_capture_is_read_and_equals_a_fresh_one(cache, traced):
    fresh, first = capture(cache=False), capture()
    before = len(traced)
    assert len(files(cache)) > 3
    assert_same(first, fresh)
    assert_same(capture(), fresh)
    assert len(traced) == before
    assert capture(texts=tuple(TEXTS)).provenance == fresh.provenance


def test_shards_hold_several_batches_but_neither_too_many_sentences_nor_bytes(cache, traced, monkeypatch):
    monkeypatch.setattr("tnkit.captures.passes._SHARD", 64)
    capture()
    assert len(files(cache)) == 1 and len(traced) > 5
    monkeypatch.setattr("tnkit.captures.passes._SHARD_BYTES", 5000)
    capture(keep=["mid"])
    sizes = [path.stat().st_size for path in files(cache)[1:]] + [path.stat().st_size for path in files(cache)]
    assert len(files(cache)) > 3 and sorted(sizes)[len(sizes) // 2] < 8000


def run_killed(folder, work, at_once, seed):
    quiet = "ignore::DeprecationWarning"  # from Python 3.12 on, os.fork warns of threads
    words = [sys.executable, "-W", quiet, "-c", KILLED, str(folder), work, str(at_once), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()], done.stderr


@pytest.mark.parametrize("seed", [1, 2])
def test_a_capture_killed_at_any_moment_goes_on_and_loses_a_shard_at_most(tmp_path, seed):
    (kills, end), said = run_killed(tmp_path, "capture", 1, seed)
    assert (kills > 2, end, said) == (True, 0, "")
    with one_thread():
        fresh = capture(cache=False)
    assert_same(tn.Activations.load(tmp_path / "0.safetensors"), fresh)
    batches = list(passes.plan(tiny_model(), TEXTS, batch_tokens=60).batches)
    most = max(stop - start for start, stop in grouped(batches, 6))
    assert len((tmp_path / "traced").read_bytes()) <= len(batches) + kills * most
    assert_same(capture(), fresh)  # read from the cache, whatever the number of threads here


@pytest.mark.parametrize("seed", [3, 4])
def test_a_streamed_detection_killed_at_any_moment_goes_on_and_loses_a_batch_at_most(tmp_path, seed, monkeypatch):
    monkeypatch.setattr("tnkit.detection.turns._WAITING", 0)
    (kills, end), _ = run_killed(tmp_path, "detect", 1, seed)
    assert kills > 2 and end == 0
    texts = {"en": TEXTS, "ja": TEXTS[::-1]}
    with one_thread():
        fresh = tn.detect(tiny_model("llama"), texts, language="ja", streaming=True, top=9, **QUIET)
    found = tn.NeuronScores.load(tmp_path / "0.safetensors")
    assert torch.equal(found.values.nan_to_num(9), fresh.scores.values.nan_to_num(9))
    assert found.provenance == fresh.scores.provenance
    plans = [passes.plan(tiny_model(), part, batch_tokens=60) for part in (TEXTS, TEXTS[::-1])]
    assert len((tmp_path / "traced").read_bytes()) <= sum(len(one.batches) for one in plans) + kills


def test_two_processes_at_once_do_not_hurt_each_other(tmp_path):
    ends, said = run_killed(tmp_path, "capture", 2, 5)
    assert ends == [0, 0, 0] and "again" not in said and "kept" not in said
    with one_thread():
        fresh = capture(cache=False)
    for number in (0, 1):
        assert_same(tn.Activations.load(tmp_path / f"{number}.safetensors"), fresh)


def damage(path, how, seed):
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(len(data))
    if how == "truncated":
        data = data[:place]
    elif how == "grown":
        data += b"more"
    else:
        data[place] ^= 1 << seed % 8
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped", "grown"])
def test_a_damaged_shard_is_named_and_made_again(cache, traced, caplog, how):
    fresh, batches = capture(), passes.plan(tiny_model(), TEXTS, batch_tokens=60).batches
    most = max(sum(map(len, batches[start:stop])) for start, stop in grouped(batches, 6))  # sentences of a shard
    for seed in range(40 if how == "flipped" else 5):
        path = files(cache)[seed % len(files(cache))]
        whole, before = path.read_bytes(), len(traced)
        damage(path, how, seed)
        caplog.clear()
        assert_same(capture(), fresh)
        assert [record.name for record in caplog.records] == ["tnkit"]
        assert str(path) in caplog.text and "computed again" in caplog.text
        assert 0 < sum(traced[before:]) <= most
        assert path.read_bytes() == whole


def test_a_shard_of_another_place_or_job_is_not_taken(cache, caplog):
    fresh = capture()
    one, other, *_ = files(cache)
    one.write_bytes(other.read_bytes())
    assert_same(capture(), fresh)
    assert str(one) in caplog.text
    capture(keep=["mid"])
    mine, theirs = ([path for path in files(cache) if (path.parent == one.parent) == own] for own in (True, False))
    theirs[0].write_bytes(mine[0].read_bytes())
    assert_same(capture(keep=["mid"]), capture(keep=["mid"], cache=False))


@pytest.mark.parametrize(
    "change",
    [
        {"position": "mean"},
        {"keep": ["mid", "post"]},
        {"layers": [1]},
        {"last_layer": "normed"},
        {"batch_tokens": 90},
        {"texts": TEXTS[::-1]},
        {"texts": TEXTS[:-1]},
        {"texts": [*TEXTS[:-1], "other"]},
    ],
)
def test_another_option_or_sentence_is_captured_anew(traced, change):
    capture()
    before = len(traced)
    found = capture(**change)
    assert len(traced) > before
    assert_same(found, capture(cache=False, **change))


def test_weights_that_were_changed_in_place_are_noticed(traced):
    model, weight = tiny_model("qwen3"), tiny_module("qwen3").model.layers[1].mlp.down_proj.weight
    fresh = capture(model)
    kept = weight.detach().clone()
    try:
        for change in (lambda: weight.data[3, 5].mul_(1.5), lambda: weight.data.copy_(kept[:, [1, 0, *range(2, 48)]])):
            change()
            before = len(traced)
            found = capture(model)
            assert len(traced) > before and not torch.equal(found.post, fresh.post)
    finally:
        weight.data.copy_(kept)
    before = len(traced)
    assert_same(capture(model), fresh)
    assert len(traced) == before


def edited_at(monkeypatch, batch, edit):
    """Run an edit after that many batches were traced."""
    numbers, trace = iter(range(10**6)), passes.trace_blocks

    def editing(*arguments, **options):
        traced = trace(*arguments, **options)
        if next(numbers) == batch:
            edit()
        return traced

    monkeypatch.setattr(passes, "trace_blocks", editing)


@pytest.mark.parametrize("rarely", [0, 10**9], ids=["each shard is checked", "shards wait"])
@pytest.mark.parametrize("through_data", [True, False])
@pytest.mark.parametrize("batch", [0, 3, -1])
def test_what_was_made_while_weights_changed_is_refused_and_never_kept(monkeypatch, rarely, through_data, batch):
    monkeypatch.setattr(shards, "_RARELY", rarely)
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    weight, fresh = model.module.model.layers[1].mlp.down_proj.weight, capture(model, cache=False)
    kept, last = weight.detach().clone(), len(passes.plan(model, TEXTS, batch_tokens=60).batches) - 1
    with monkeypatch.context() as patch, torch.no_grad():
        edited_at(patch, last if batch < 0 else batch, (weight.data if through_data else weight).zero_)
        with pytest.raises(tn.TnkitError, match=r"the weights .* changed during this pass"):
            capture(model)
    weight.data.copy_(kept)
    assert_same(capture(model), fresh)


def test_weights_are_hashed_once_before_and_once_after_where_that_is_slow(cache, monkeypatch):
    monkeypatch.setattr(shards, "_RARELY", 10**9)
    hashes, hash_now = [], weights.hash_now
    for module in (identity, weights):
        monkeypatch.setattr(module, "hash_now", lambda module: hashes.append(1) or hash_now(module))
    capture()
    assert len(files(cache)) > 3 and len(hashes) == 3  # of the plan, of the first shard, of all others
    hashes.clear()
    capture()
    assert len(hashes) == 1


def test_a_detection_never_keeps_states_of_edited_weights_as_those_of_the_old():
    model = tn.load_model(copy.deepcopy(tiny_module("llama")), tokenizer=byte_tokenizer())
    weight, texts = model.module.model.layers[1].mlp.down_proj.weight, {"en": TEXTS, "ja": TEXTS[::-1]}
    kept, fresh = weight.detach().clone(), capture(model, texts["ja"], cache=False)
    steps = tn.detect_steps(model, texts, top=9, kinds=["type2"], languages=["en", "ja"], cache=True, batch_tokens=60)
    with pytest.raises(tn.TnkitError, match="captures of different model"):
        for step in steps:
            if step.found and step.language == "en":
                weight.data.zero_()
    weight.data.copy_(kept)
    found = tn.detect(model, texts, language="ja", kind="type2", top=9, cache=True, progress=False, batch_tokens=60)
    expected = tn.score_neurons(model, fresh, tn.estimate_centroids([fresh])).values[list(model.late_layers)]
    torch.testing.assert_close(found.scores.values[list(model.late_layers)], expected, rtol=1e-4, atol=1e-7)


def test_another_configuration_or_tokenizer_is_noticed(traced):
    model = tiny_model("mistral")
    capture(model)
    eps = model.module.config.rms_norm_eps
    model.module.config.rms_norm_eps = 0.1
    before = len(traced)
    try:
        capture(model)
        assert len(traced) > before
    finally:
        model.module.config.rms_norm_eps = eps
    from tokenizers.processors import TemplateProcessing

    inner, before = byte_tokenizer().backend_tokenizer, len(traced)
    old = inner.post_processor
    inner.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    try:
        assert_same(capture(model), capture(model, cache=False))
        assert len(traced) > before
    finally:
        inner.post_processor = old


def test_an_ablated_model_has_a_cache_of_its_own(traced):
    model = tiny_model("llama")
    untouched = capture(model)
    pairs, means = [(0, 3), (1, 5)], [capture(model, texts=TEXTS[:n], cache=False) for n in (3, 9)]
    ways = [{}, {"value": 1.0}, {"scale": 0.5}, {"tokens": "last"}]
    ways += [{"value": "mean", "means": one} for one in means]
    for how in ways:
        with tn.Ablation(model, pairs, **how):
            before = len(traced)
            found = capture(model)
            assert len(traced) > before
            assert_same(found, capture(model, cache=False))
        assert not torch.equal(found.post, untouched.post)
    before = len(traced)
    assert_same(capture(model), untouched)
    assert len(traced) == before


def test_under_someone_elses_hook_nothing_is_kept_or_read(cache, caplog):
    model, module = tiny_model("llama"), tiny_module("llama")
    untouched, before = capture(model), files(cache)
    handle = module.model.layers[1].mlp.gate_proj.register_forward_hook(lambda *_: _[-1] * 2)
    try:
        assert not torch.equal(capture(model).post, untouched.post)
    finally:
        handle.remove()
    assert "model.layers.1.mlp.gate_proj has a forward hook" in caplog.text
    assert files(cache) == before


def test_the_ablation_of_another_wrapper_is_never_kept():
    first = tiny_model("llama")
    second = tn.load_model(first.module, tokenizer=first.tokenizer)
    plain = capture(first, cache=False)
    with tn.Ablation(first, [(1, 7)]):
        ablated = capture(second)
    assert not torch.equal(ablated.post, plain.post)
    assert torch.equal(capture(second).post, plain.post)


def test_the_probe_is_not_counted_by_an_ablation():
    model = tiny_model("llama")
    with tn.Ablation(model, [(1, 7), (2, 3)], tokens="last") as ablation:
        capture(model)
    assert ablation.count == 2 * len(TEXTS)


@pytest.mark.parametrize("child", ["", "model.layers.1.mlp"])
def test_training_mode_and_autocast_are_refused(child):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    module.get_submodule(child).train()
    with pytest.raises(tn.TnkitError, match=r"LlamaForCausalLM is in training mode .*call \.eval\(\)"):
        capture(model)
    module.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(tn.TnkitError, match=r"autocast is on.*bfloat16"):
        capture(model)
    assert_same(capture(model), capture(model, cache=False))


def test_numbers_that_change_need_a_new_format():
    """These were computed with FORMAT 1. Where they change beyond rounding, old cache entries must not be read."""
    kept = tn.capture(tiny_model("gemma3"), SENTENCES, **QUIET)
    mean = tn.capture(tiny_model("gemma3"), SENTENCES, position="mean", last_layer="normed", **QUIET)
    scores = tn.score_neurons(tiny_model("gemma3"), kept, tn.estimate_centroids([kept])).values
    numbers = [part.abs().double().mean() for part in (*kept.tensors().values(), *mean.tensors().values(), scores)]
    torch.testing.assert_close(
        torch.stack(numbers),
        torch.tensor(PINNED, dtype=torch.float64),
        rtol=1e-4,
        atol=0,
        msg=lambda text: f"{text}\nwhere this is meant: raise tnkit.models.fingerprint.FORMAT, and pin the new numbers",
    )
    assert fingerprints.FORMAT == 1


def test_an_ablation_that_begins_during_a_pass_is_refused():
    model = tiny_model("llama")
    batches = tn.stream(model, TEXTS, **QUIET)
    next(batches)
    with tn.Ablation(model, [(0, 1)]), pytest.raises(tn.TnkitError, match="entered or exited during this pass"):
        next(batches)


@pytest.mark.parametrize("where", ["/proc/tnkit", "file", "full"])
def test_a_cache_that_cannot_be_written_to_is_a_warning(where, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    if where == "full":
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    else:
        monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / where))
    assert_same(capture(), capture(cache=False))
    assert len(caplog.records) == 1 and "cannot be written to" in caplog.text and "TNKIT_CACHE" in caplog.text
    assert not list(tmp_path.rglob(".*"))


def test_a_read_only_cache_still_serves(cache, traced, monkeypatch, caplog):
    fresh, before = capture(), len(traced)
    refuse = OSError(30, "Read-only file system")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(refuse))
    assert_same(capture(), fresh)
    assert len(traced) == before and not caplog.records
    assert_same(capture(keep=["mid"]), capture(keep=["mid"], cache=False))
    assert len(caplog.records) == 1 and "(Read-only file system)" in caplog.text
    assert len({path.parent for path in files(cache)}) == 1


def test_what_killed_writers_left_is_cleared_away_after_an_hour(cache):
    capture()
    folder = files(cache)[0].parent
    for name, age in {".00000.safetensors-old": 4000, ".00000.safetensors-new": 0}.items():
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    files(cache)[0].unlink()
    capture()
    assert [path.name for path in folder.glob(".*")] == [".00000.safetensors-new"]


def test_entries_and_clearing(cache):
    corpus = tn.load_corpus("everyday", ["en", "ja"])
    capture(texts=corpus["train"]["ja"][:3], keep=["post"])
    tn.detect(
        tiny_model(), {"en": TEXTS, "it": TEXTS}, language="it", top=3, streaming=True, cache=True, progress=False
    )
    found = shards.entries()
    assert sorted(entry.what.split(",")[0] for entry in found) == [
        "capture of 3 sentences (everyday train ja)",
        *["sums of 30 sentences"] * 2,
    ]
    assert sum(entry.size for entry in found) == sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert all(abs(entry.modified.timestamp() - time.time()) < 60 for entry in found)
    assert shards.clear(found) == sum(entry.size for entry in found)
    assert shards.entries() == [] and list(cache.iterdir()) == []


def converted(folder):
    """A converted model, as far as the cache knows one."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tnkit.json").write_text('{"config.json": 1}')
    return folder


def test_clearing_removes_what_tnkit_made_and_nothing_else(cache):
    """In a cache folder of one's own lie theses, fine-tuned models, and links to either."""
    capture(texts=TEXTS[:3])
    models, entry = cache.parent / "models", files(cache)[0].parent
    ours = converted(models / "gemma-3-270m-a5fd3b62230a-1")
    killed = models / ".gemma-3-270m-abcd1234"
    converted(killed / "converted")
    (killed / "model.gguf").write_bytes(b"12")
    theirs = [
        converted(models / "my-finetune") / "config.json",
        cache / "thesis-data" / "entry.json",
        cache / ("0" * 24) / "data.safetensors",  # no mark
        cache / ("2" * 24) / "entry.json",  # a mark that tnkit did not write
        entry / "notes.txt",
        ours / "notes.txt",
        cache.parent.parent / "elsewhere" / "entry.json",
        cache.parent.parent / "elsewhere" / "00000.safetensors",
    ]
    for path in theirs:
        path.parent.mkdir(exist_ok=True, mode=0o700)
        path.write_text("mine")
    (cache / ("1" * 24)).symlink_to(cache.parent.parent / "elsewhere")
    (entry / "link.safetensors").symlink_to(theirs[-1])
    listed = shards.entries()
    assert sorted(one.path for one in listed) == sorted([entry, ours, killed])
    assert shards.clear(listed) == sum(one.size for one in listed) > 0
    assert [path.read_text() for path in theirs] == ["mine"] * len(theirs)
    assert not killed.exists() and [path.name for path in ours.iterdir()] == ["notes.txt"]
    assert not list(entry.glob("*.json")) and not (entry / "00000.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")
@pytest.mark.parametrize("folder", ["", "captures", "entry"])
def test_a_cache_that_others_can_write_to_is_neither_read_nor_written_nor_cleared(cache, traced, caplog, folder):
    fresh, before = capture(), len(traced)
    entry = files(cache)[0].parent
    opened = {"": cache.parent, "captures": cache, "entry": entry}[folder]
    kept = {path: path.stat().st_mtime_ns for path in files(cache)}
    opened.chmod(0o775)
    assert_same(capture(), fresh)
    assert len(traced) > before and len(caplog.records) == 1
    assert f"{opened} belongs to another user or can be written to by others" in caplog.text and "chmod" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in files(cache)} == kept
    with pytest.raises(tn.TnkitError, match="can be written to by others"):
        shards.clear(shards.entries())
    with pytest.raises(tn.TnkitError, match="can be written to by others"):
        storage.private(entry)
    opened.chmod(0o700)
    before = len(traced)
    assert_same(capture(), fresh)
    assert len(traced) == before


@pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")
def test_the_cache_of_another_user_is_refused(cache, monkeypatch):
    capture()
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert storage.private(cache) == cache or os.getuid()  # that of root is trusted
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: _owned_by(stat(path, **how), 777))
    with pytest.raises(tn.TnkitError, match="belongs to another user"):
        storage.private(cache)


def _owned_by(about, user):
    return os.stat_result([*about[:4], user, *about[5:]])


def test_folders_of_the_cache_are_made_for_this_user_alone(cache):
    before = os.umask(0o002)
    try:
        capture()
    finally:
        os.umask(before)
    made = [cache.parent, cache, files(cache)[0].parent]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3


def test_a_shard_that_is_too_large_is_not_read(cache, caplog):
    fresh = capture()
    with files(cache)[0].open("r+b") as file:
        file.truncate(100 << 30)  # a hole: it takes no room on the disk
    assert_same(capture(), fresh)
    assert "bytes, expected at most" in caplog.text and files(cache)[0].stat().st_size < 1 << 20


def test_clearing_away_what_killed_writers_left_takes_nothing_else(cache):
    capture()
    folder = files(cache)[0].parent
    ours, theirs = folder / ".00000.safetensors-abcd1234", folder / ".bashrc"
    for path in (ours, theirs):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - 4000,) * 2)
    files(cache)[0].unlink()
    capture()
    assert theirs.exists() and not ours.exists()


def test_nothing_is_said_where_all_is_well(caplog):
    with caplog.at_level(logging.DEBUG, "tnkit"):
        capture()
        capture()
    assert not caplog.records
