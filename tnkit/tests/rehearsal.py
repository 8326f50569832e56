"""Compare remote models with the same ones here, and print what was found as JSON; `test_remote` reads it.

It is a process of its own, because functions whose shapes are checked, as in tests, are decorated and cannot travel.
"""

import copy
import functools
import json
import os
import sys
import tempfile
from dataclasses import replace
from unittest import mock

import nnsight
import torch
from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES as registry
from nnsight.intervention.backends.remote import RemoteError

import tnkit as tn
from tnkit.captures.passes import plan
from tnkit.detection.scoring import ScoreAccumulator, contribution_norms
from tnkit.detection.sums import add_up
from tnkit.interventions.displacement import displacement, equal_displacement
from tnkit.interventions.last_token import LastToken
from tnkit.models.proofs import completeness_error
from tnkit.models.remote import RemoteModel
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_module
from tnkit.tests.server import rehearsing

NAMES, BLIND = ("llama", "gpt2", "gemma3", "cohere"), ("gpt2", "gemma3")
NEURONS = [(0, 3), (1, 7), (1, 8), (3, 40)]
QUIET = {"progress": False, "batch_tokens": 160}
CORPUS = {"en": SENTENCES[:3], "ja": SENTENCES[3:]}
SERVER = "http://rehearsal.invalid"


def compare(folder, remote=SERVER):
    """The largest differences between a remote model and the same one here, by what was compared."""
    here, there = tn.load_model(folder, packed=False), tn.load_model(folder, remote=remote)  # which pads
    text, found = SENTENCES, {}

    def differ(name, ours, theirs):
        scale = ours.abs().max() + 1e-30
        found[name] = float(((ours - theirs).abs().max() / scale).nan_to_num(torch.inf))

    def captured(name, ours, theirs):
        for site in ("pre", "mid", "post", "activations", "scale"):
            if getattr(ours, site) is not None:
                differ(f"{name}: {site}", getattr(ours, site), getattr(theirs, site))

    found["same weights"] = float(here.weights_hash != there.weights_hash)
    found["same dtype"] = float(here.dtype != there.dtype)
    found["completeness"] = float(completeness_error(there).max())
    for layer in (0, here.n_layers - 1):
        differ(f"value vectors {layer}", here.value_vectors(layer).float(), there.value_vectors(layer).float())
        differ(f"output gain {layer}", here.output_gain(layer), there.output_gain(layer))
        differ(f"output bias {layer}", here.output_bias(layer), there.output_bias(layer))

    every = ("pre", "mid", "post", "activations", "scale")
    ours, theirs = (tn.capture(model, text, keep=every, **QUIET) for model in (here, there))
    captured("capture", ours, theirs)
    for label, how in {
        "mean": {"position": "mean"},
        "normed": {"last_layer": "normed", "keep": ["post"]},
        "early layers": {"layers": range(2)},
    }.items():
        captured(label, *(tn.capture(model, text, **how, **QUIET) for model in (here, there)))
    differ("contribution norms", contribution_norms(here, ours), contribution_norms(there, theirs))
    some, both = tn.NeuronSet(tuple(NEURONS), (here.n_layers, here.n_neurons)), ((here, ours), (there, theirs))
    differ("displacement", *(displacement(*one, some) for one in both))
    controls = [equal_displacement(*one, some, seed=0, more=True) for one in both]
    found["equal displacement"] = float(controls[0].pairs != controls[1].pairs)
    targets = [tn.estimate_centroids([kept]) for kept in (ours, theirs)]
    differ("centroids", *(target.values for target in targets))
    origins = [tn.Centroids(target.values.roll(1, 0), target.layers, target.provenance) for target in targets]
    seen = zip((here, there), (ours, theirs), targets, strict=True)
    centred = (tn.score_neurons(*one, origin=origin).values for one, origin in zip(seen, origins, strict=True))
    differ("scores: centred", *centred)
    for distance, parcel in (("cosine", RemoteModel.request_bytes), ("euclidean", 1300)):  # in one request, in several
        both = zip((here, there), (ours, theirs), targets, strict=True)
        with mock.patch.object(RemoteModel, "request_bytes", parcel):
            differ(f"scores: {distance}", *(tn.score_neurons(*one, distance=distance).values for one in both))
    for position, score in (("last", "raw"), ("mean", "raw"), ("last", "centred")):
        options = {"top": 20, "position": position, "score": score, **QUIET}
        both = [tn.detect_all(model, CORPUS, hub="en", languages=["ja"], **options) for model in (here, there)]
        for kind in ("type1", "type2"):
            ours, theirs = (found["ja", kind] for found in both)
            label = f"{kind}, {position}" if score == "raw" else f"{kind}, {score}"
            differ(f"{label}: centroids", ours.centroids.values, theirs.centroids.values)
            differ(f"{label}: scores", ours.scores.values.nan_to_num(), theirs.scores.values.nan_to_num())

    found |= compare_ablations(here, there, captured)
    return found


def compare_ablations(here, there, captured):
    """Ablate both, in every token scope and way of changing; what else must be the same about it."""
    means, same = replace(tn.capture(here, SENTENCES, **QUIET), provenance={}), {}  # a server may hide its weights
    ways = [{"tokens": tokens} for tokens in ("last", "prompt", "all")]
    ways += [{"value": 1.5}, {"scale": -2.0, "tokens": "last"}, {"value": "mean", "means": means}]
    for way in ways:
        kept = []
        for model in (here, there):
            with tn.Ablation(model, NEURONS, **way) as ablation:
                kept.append(tn.capture(model, SENTENCES, **QUIET))
            kept[-1].provenance["count"] = ablation.count
        label = " ".join(f"{key}={value}" for key, value in way.items() if key != "means")
        captured(f"ablated {label}", *kept)
        for about in ("ablations", "count"):
            same[f"ablated {label}: {about}"] = float(kept[0].provenance[about] != kept[1].provenance[about])
        assert not torch.equal(means.post, kept[1].post)
    kept = []
    for model in (here, there):
        other = {"site": "activations", "neurons": NEURONS}
        with tn.Ablation(model, tn.patch(model, SENTENCES[::-1], SENTENCES, **other, progress=False), tokens="last"):
            kept.append(tn.capture(model, SENTENCES, **QUIET))
    captured("patched", *kept)
    with tn.Ablation(there, [(0, 1)], value=4.0), tn.Ablation(there, [(0, 1)], scale=0.5):
        nested = tn.capture(there, SENTENCES[:2], **QUIET)
    same["nested"] = float((nested.activations[0, :, 1] - 2).abs().max())
    with tn.Ablation(there, [(3, 1)], value=4.0) as later:
        captured("later layers", *(tn.capture(model, SENTENCES, layers=[0], **QUIET) for model in (here, there)))
    same["later layers: count"] = float(later.count)
    captured("restored", means, tn.capture(there, SENTENCES, **QUIET))
    captured("last token", *(LastToken(model, SENTENCES, **QUIET).capture(NEURONS) for model in (here, there)))
    return same


def doubled(function):
    """A decorator, which does not travel."""

    @functools.wraps(function)
    def wrapper(value):
        return 2 * function(value)

    return wrapper


@doubled
def size(value):
    """The norm of a tensor; decorated, twice that."""
    return value.norm()


def compare_half(folder):
    """In half precision, score the same capture here and there, and in the pass itself."""
    here, there = tn.load_model(folder, packed=False), tn.load_model(folder, remote=SERVER)  # which pads
    kept = tn.capture(there, SENTENCES, **QUIET)
    target, found = tn.estimate_centroids([kept]), {}
    for distance in ("cosine", "euclidean"):
        ours = tn.score_neurons(here, kept, target, distance=distance).values
        running = ScoreAccumulator(there, target, distance=distance)
        planned = plan(there, SENTENCES, keep=["mid", "activations"], batch_tokens=QUIET["batch_tokens"])
        assert sum(add_up(planned, {"scores": running})) == len(SENTENCES)
        for label, theirs in {
            "asked": tn.score_neurons(there, kept, target, distance=distance).values,
            "in the pass": running.result().values,
        }.items():
            found[f"{distance}, {label}"] = float((ours - theirs).abs().max() / ours.abs().max())
    found["same weights"] = float(here.weights_hash != there.weights_hash)
    found["same dtype"] = float((here.dtype, there.dtype) != (torch.bfloat16, torch.bfloat16))
    return found


def break_rules(folder):
    """What comes of blocks that break the rules: what was refused, or how the result was wrong."""
    outcome, tokens = {}, {"input_ids": torch.tensor([[1, 2, 3]])}
    model = tn.load_model(folder, remote=SERVER)
    block = model.lm.model.layers[0]
    try:
        with model.lm.trace(**tokens, remote=SERVER):
            import tnkit.models.trace

            found = nnsight.save(tnkit.models.trace.SITES)
    except RemoteError as error:
        outcome["import"] = str(error)
    with model.lm.trace(**tokens, remote=SERVER):
        plain, decorated = nnsight.save(block.output.norm()), nnsight.save(size(block.output))
    outcome["decorator"] = float(decorated / plain)
    found = []
    with model.lm.trace(**tokens, remote=SERVER):
        found.append(block.output)
    outcome["outer list"] = len(found)
    registry.discard("tnkit")
    try:
        tn.capture(model, SENTENCES, progress=False)
    except tn.TnkitError as error:
        outcome["unregistered"] = str(error)
    registry.add("tnkit")
    return outcome


def traffic_of(folder, traffic):
    """What travels for a detection and for a capture, of few sentences and of eight times as many."""
    model, found = tn.load_model(folder, remote=SERVER), {}
    assert model.provenance  # asked for once
    for times in (1, 8):
        how = {"progress": False, "batch_tokens": 1 << 20}
        for label, run in {
            "detect": lambda text: tn.detect_all(model, {"ja": text}, kinds=["type2"], hub=[], top=9, **how),  # noqa: B023
            "capture": lambda text: tn.capture(model, text, **how),  # noqa: B023
        }.items():
            before = dict(traffic)
            run(SENTENCES * times)
            found[f"{label} {times}"] = {name: traffic[name] - before[name] for name in traffic}
    with mock.patch.dict(os.environ, TNKIT_CACHE=folder):
        first = tn.capture(model, SENTENCES, cache=True, progress=False)
        before = traffic["requests"]
        again = tn.capture(model, SENTENCES, cache=True, progress=False)
        found["cached"] = {"requests": traffic["requests"] - before, "same": torch.equal(first.post, again.post)}
    return found


def main():
    """Print the JSON."""
    found, modules = {}, {name: tiny_module(name) for name in NAMES}
    modules["half"] = copy.deepcopy(tiny_module("gemma3")).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as work:
        for name, module in modules.items():
            module.save_pretrained(f"{work}/{name}")
            byte_tokenizer().save_pretrained(f"{work}/{name}")
        with rehearsing() as traffic:
            found["remote"] = {name: compare(f"{work}/{name}") for name in NAMES}
            found["half"] = compare_half(f"{work}/half")
            found["traffic"] = traffic_of(f"{work}/llama", traffic)
            found["rules"] = break_rules(f"{work}/llama")
        with rehearsing(blind=True):
            found["blind"] = {name: compare(f"{work}/{name}") for name in BLIND}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
