"""Files of every kind, cut and with changed bytes: each is refused with a clear error or gives the right data."""

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tnkit as tn
from tnkit import storage
from tnkit.captures import shards
from tnkit.testing import SENTENCES, tiny_model

LONG = 5.0  # seconds after which reading a small file counts as a hang
UNMARKED = "no checksum in the format"  # another text is then the file's own, and another number cannot be told


def kinds(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any], bool]]:
    """A file of every kind that tnkit writes or reads, how it is read, and whether it carries a checksum."""
    model = tiny_model("gemma3")
    captured = tn.capture(model, SENTENCES, progress=False)
    centroids = tn.estimate_centroids([captured])
    scores = tn.score_neurons(model, captured, centroids)
    neurons = scores.top(60)
    corpus = tn.load_corpus("everyday", ["en", "ja"], limit=60)
    jobs = shards.Shards({"job": "x"}, "a job")
    jobs.write("0", {"post": captured.post})

    def of(path: Path) -> Any:
        return tn.load_corpus(path, ["en", "ja"]).to_frame().to_numpy().tolist()

    def shard(path: Path) -> Any:
        jobs.folder = path.parent
        tensors, about = storage.load_tensors(path, "shard")
        return {name: tensor.tolist() for name, tensor in tensors.items()}, about

    frame = corpus.to_frame()
    frame.to_csv(folder / "corpus.csv", index=False)
    frame.to_json(folder / "corpus.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_parquet(folder / "corpus.parquet")
    shape = tuple(scores.values.shape)
    return {
        "captures": (
            captured.save(folder / "capture.safetensors"),
            lambda path: plain(tn.Activations.load(path)),
            True,
        ),
        "centroids": (
            centroids.save(folder / "centroids.safetensors"),
            lambda path: plain(tn.Centroids.load(path)),
            True,
        ),
        "scores": (scores.save(folder / "scores.safetensors"), lambda path: plain(tn.NeuronScores.load(path)), True),
        "neuron sets": (neurons.save(folder / "neurons.json"), lambda path: plain(tn.NeuronSet.load(path)), True),
        "shards of the cache": (jobs._path("0"), shard, True),
        "entries of the cache": (
            jobs.folder / "entry.json",
            lambda path: storage.load_json(path, "cache entry"),
            True,
        ),
        "corpora, TSV": (corpus.save(folder / "corpus.tsv"), of, False),
        "corpora, CSV": (folder / "corpus.csv", of, False),
        "corpora, JSONL": (folder / "corpus.jsonl", of, False),
        "corpora, Parquet": (folder / "corpus.parquet", of, False),
        "published neuron sets": (
            neurons.save(folder / "neurons.pkl", format="reference"),
            lambda path: plain(tn.NeuronSet.load(path, shape=shape)),
            False,
        ),
        "published centroids": (
            centroids.save(folder / "centroids.pkl", format="reference"),
            lambda path: plain(tn.Centroids.load(path)),
            False,
        ),
    }


def plain(result: Any) -> Any:
    """All that a result holds, comparable."""
    return {
        name: value.nan_to_num(9.75).tolist() if isinstance(value, torch.Tensor) else value
        for name, value in vars(result).items()
    }


def damaged(whole: bytes, cuts: int, flips: int, draw: random.Random):
    """The file cut at so many places, and with so many single bytes changed."""
    for place in sorted(draw.sample(range(len(whole)), min(cuts, len(whole)))):
        yield "cut", whole[:place]
    for _ in range(flips):
        data = bytearray(whole)
        data[draw.randrange(len(whole))] ^= draw.randrange(1, 256)
        yield "flipped", bytes(data)


def tried(folder: Path, cuts: int, flips: int, seed: int = 0) -> dict[str, Counter]:
    """Of each kind of file, how often it was refused, right, other than it was, or what must not be."""
    found = {}
    for name, (path, read, marked) in kinds(folder).items():
        whole, right, outcome = path.read_bytes(), read(path), Counter()
        for how, data in damaged(whole, cuts, flips, random.Random(seed)):
            path.write_bytes(data)
            started = time.monotonic()
            try:
                same = read(path) == right
            except tn.TnkitError as error:
                outcome["refused" if path.name in str(error) and "\n" not in str(error) else "unclear"] += 1
            except Exception as error:
                outcome[f"traceback: {type(error).__name__}"] += 1
            else:
                other = "wrong" if marked else UNMARKED
                outcome["right" if same else other] += 1
            outcome["hung"] += time.monotonic() - started > LONG
            outcome[how] += 1
        path.write_bytes(whole)
        found[name] = outcome
    return found
