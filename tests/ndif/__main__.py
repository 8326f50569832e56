"""Compare models on a running NDIF server with the same models here: python -m tests.ndif URL FOLDER."""

import json
import shutil
import sys
import time
from pathlib import Path

import nnsight
from nnsight.schema.request import RequestModel

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_module
from tnkit.tests.rehearsal import NAMES, NEURONS, compare

ALLOWED = 1e-6  # of the largest value compared


def saved(folder, name):
    """A tiny model where the server can read it."""
    tiny_module(name).save_pretrained(folder / name)
    byte_tokenizer().save_pretrained(folder / name)
    return str(folder / name)


def as_a_stranger(request):
    """What the server knows of a request that is not to be trusted: its block runs where no weights are."""
    return json.dumps(request.model_dump() | {"trusted": False})


def compare_in_the_sandbox(folder, remote):
    """The few questions of `compare` that touch every part; each request costs the server a process."""
    kept = []
    for model in (tn.load_model(folder, packed=False), tn.load_model(folder, remote=remote)):
        ours = tn.capture(model, SENTENCES, progress=False)
        target = tn.estimate_centroids([ours])
        with tn.Ablation(model, NEURONS, tokens="last"):
            ablated = tn.capture(model, SENTENCES, keep=["post"], progress=False)
        found = tn.detect_all(model, {"ja": SENTENCES}, kinds=["type2"], hub=[], top=9, progress=False)["ja", "type2"]
        scores = tn.score_neurons(model, ours, target).values
        kept.append([*ours.tensors().values(), ablated.post, found.scores.values.nan_to_num(), scores])
    names = (*ours.tensors(), "ablated post", "detection", "scores")
    differences = [float((one - other).abs().max() / one.abs().max()) for one, other in zip(*kept, strict=True)]
    named = {"weights are named only": float(not model.weights_hash.startswith("named:"))}
    return dict(zip(names, differences, strict=True)) | named


def refusals(url, folder):
    """What is said of servers and models that are not there."""
    unreadable = Path(folder).with_name("without-weights")
    shutil.copytree(folder, unreadable, ignore=shutil.ignore_patterns("*.safetensors"))
    for source, address in ((folder, "http://127.0.0.1:8002"), (folder, "http://no-such-host:80"), (unreadable, url)):
        try:
            tn.load_model(source, remote=address)
        except tn.TnkitError as error:
            yield str(error)
        else:
            raise SystemExit(f"{source} was loaded from {address}")


def main(url, folder):
    """Print what differs, and return whether anything does."""
    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    wrong = 0

    def report(name, how):
        nonlocal wrong
        started = time.perf_counter()
        found = how(saved(Path(folder), name), remote=url)
        worst = max(found, key=found.get)
        bad = {what: error for what, error in found.items() if not error <= ALLOWED}
        wrong += len(bad)
        print(
            f"{name}, {how.__name__}: {len(found)} comparisons in {time.perf_counter() - started:.0f} s, "
            f"largest difference {found[worst]:.1e} ({worst})",
            *(f"\n  WRONG {what}: {error:.2e}" for what, error in bad.items()),
            flush=True,
        )

    for name in NAMES:
        report(name, compare)
    for sentence in refusals(url, saved(Path(folder), NAMES[0])):
        print("refused:", sentence, flush=True)
    RequestModel.metadata = as_a_stranger
    for name in ("gpt2", "gemma3"):
        report(name, compare_in_the_sandbox)
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
