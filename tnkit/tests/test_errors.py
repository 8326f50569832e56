"""Numbers that stand for counts and layers are whole, whatever library they come from."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.errors import whole_number, whole_numbers
from tnkit.testing import SENTENCES, tiny_corpus, tiny_model


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_whole_number_of_any_library_is_an_int(value):
    assert type(whole_number("top", value, at_least=1)) is int


@pytest.mark.parametrize(
    "value", [3.0, 1.5, "3", None, True, np.bool_(True), np.float64(3), torch.tensor(True), -1, [3]]
)
def test_anything_else_is_refused(value):
    with pytest.raises(tn.TnkitError, match=r"^top=.* must be (a whole number of )?at least 0$"):
        whole_number("top", value)


@pytest.mark.parametrize("layers", [[1, 2], range(1, 3), np.arange(1, 3), torch.arange(1, 3), {1, 2}, iter([1, 2])])
def test_layers_come_in_any_iterable(layers):
    assert list(whole_numbers("layers", layers)) == [1, 2]


@pytest.mark.parametrize("layers", [[1.5], [0, 1.0], np.array([0.0, 1.0]), "12", [None]])
def test_anything_but_whole_numbers_is_refused(layers):
    with pytest.raises(tn.TnkitError, match=r"^layers=.* must be (a )?whole number"):
        list(whole_numbers("layers", layers))


def test_captures_and_detections_take_numbers_of_numpy():
    model, some = tiny_model(), tiny_corpus()
    captured = tn.capture(model, SENTENCES, layers=np.arange(2), batch_tokens=np.int64(64), progress=False)
    assert captured.layers == (0, 1)
    found = tn.detect(model, some, language="ja", top=np.int64(5), layers=np.arange(2), progress=False)
    assert found.neurons == tn.detect(model, some, language="ja", top=5, layers=range(2), progress=False).neurons
    assert found.scores.top(np.int32(3), layers=np.array([1])) == found.scores.top(3, layers=[1])
    drawn = found.neurons.uniform(seed=np.int64(1), layers=np.arange(2))
    assert drawn == found.neurons.uniform(seed=1, layers=[0, 1])
    json.dumps([found.neurons.provenance, drawn.provenance])


@pytest.mark.parametrize("layers", [[True], [-1]])
def test_layers_that_are_no_whole_numbers_are_refused(layers):
    with pytest.raises(tn.TnkitError, match=r"layers=.* must be (a whole number of )?at least 0"):
        tn.capture(tiny_model(), SENTENCES, layers=layers, progress=False)
    scores = tn.NeuronScores(torch.rand(4, 48).double(), "cosine")
    with pytest.raises(tn.TnkitError, match=r"layers=.* must be (a whole number of )?at least 0"):
        scores.top(3, layers=layers)
    with pytest.raises(tn.TnkitError, match=r"layers=.* must be (a whole number of )?at least 0"):
        scores.top(3).uniform(seed=0, layers=layers)


@pytest.mark.parametrize("wrong", [True, -1])  # the suite checks types: others do not reach the check
def test_every_count_is_a_whole_number(wrong):
    model, texts = tiny_model(), ["Hello", "Hi"]
    captured = tn.capture(model, texts, progress=False)
    how = {"languages": ["en", "ja"], "progress": False}
    calls = {
        "limit": lambda: tn.load_corpus({"en": texts}, limit=wrong),
        "max_new_tokens": lambda: tn.behaviour.continuations(model, texts, max_new_tokens=wrong, **how),
        "batch_tokens": lambda: tn.behaviour.continuations(model, texts, batch_tokens=wrong, **how),
        "batch_tokens=": lambda: tn.behaviour.perplexity(model, texts, batch_tokens=wrong, progress=False),
        "k": lambda: tn.geometry.mutual_knn(captured, captured, k=wrong),
        "k=": lambda: tn.lens.promoted(model, (1, 7), k=wrong),
        "n": lambda: tn.specificity.top_sentences(captured, texts, (1, 7), n=wrong),
        "limit=": lambda: tn.harness.evaluate(model, ["any"], limit=wrong),
        "num_fewshot": lambda: tn.harness.evaluate(model, ["any"], num_fewshot=wrong),
    }
    for name, call in calls.items():
        with pytest.raises(tn.TnkitError, match=rf"^{name.rstrip('=')}=.* must be "):
            call()


def test_counts_of_numpy_are_taken():
    model, texts, one = tiny_model(), ["Hello", "Hi", "Hey"], np.int64(1)
    captured = tn.capture(model, texts, progress=False)
    assert len(tn.load_corpus({"en": texts}, limit=one)) == 1
    assert list(tn.geometry.mutual_knn(captured, captured, k=one).columns) == ["mutual 1-NN"]
    assert tn.lens.promoted(model, (1, 7), k=one).promoted_ids.shape == (1, 1)


CALLS = """
import sys
import tnkit as tn
from tnkit.measures.specificity.gates import positive_gates
from tnkit.testing import SENTENCES, tiny_corpus, tiny_model, tiny_module
model, corpus = tiny_model(), tiny_corpus()
texts = corpus["train"]
held = {name: tn.capture(model, texts[name], progress=False) for name in texts}
target = tn.estimate_centroids([held["ja"]])
scores = tn.score_neurons(model, held["ja"], target)
neurons, same, quiet = scores.top(3), {"same": scores.bottom(3)}, {"progress": False}
CALLS = {
    "capture": lambda x: tn.capture(x, SENTENCES),
    "stream": lambda x: list(tn.stream(x, SENTENCES)),
    "detect": lambda x: tn.detect(x, corpus, language="ja"),
    "detect_all": lambda x: tn.detect_all(x, corpus),
    "detect_steps": lambda x: list(tn.detect_steps(x, corpus)),
    "score_neurons": lambda x: tn.score_neurons(x, held["ja"], target),
    "scoring.contribution_norms": lambda x: tn.scoring.contribution_norms(x, held["ja"]),
    "Ablation": lambda x: tn.Ablation(x, neurons),
    "LastToken": lambda x: tn.LastToken(x, SENTENCES),
    "export_ablated": lambda x: tn.export_ablated(x, neurons, "off"),
    "controls": lambda x: tn.controls(neurons, model=x, captured=held),
    "balance": lambda x: tn.balance(x, held, {"set": neurons} | same, language="ja"),
    "compare": lambda x: tn.compare(lambda off: [1.0], neurons, controls=same, model=x, **quiet),
    "ablate": lambda x: tn.ablate(x, texts, neurons, language="ja", controls=same, **quiet),
    "retrieval_matrix": lambda x: tn.retrieval_matrix(x, texts, {"ja": neurons}, **quiet),
    "doses": lambda x: tn.doses(x, texts, neurons, language="ja", controls=same, sizes=[1], **quiet),
    "effects": lambda x: tn.effects(x, texts, scores, language="ja", **quiet),
    "evidence": lambda x: tn.evidence(x, corpus, language="ja", top=3),
    "neuron_card": lambda x: tn.neuron_card(x, held, texts, (0, 1)),
    "attraction": lambda x: tn.attraction(x, SENTENCES),
    "attribution": lambda x: tn.attribution(x, texts, language="ja", layer=1),
    "patch": lambda x: tn.patch(x, SENTENCES, SENTENCES),
    "steer": lambda x: tn.steer(x, SENTENCES, {"ja": neurons}, texts),
    "explore": lambda x: tn.explore(x, corpus),
    "paper": lambda x: tn.paper(x, ["ja"], corpus=corpus),
    "lens.jacobians": lambda x: tn.lens.jacobians(x, SENTENCES),
    "lens.latent_language": lambda x: tn.lens.latent_language(x, "ja", source="nl"),
    "lens.promoted": lambda x: tn.lens.promoted(x, (0, 1)),
    "behaviour.perplexity": lambda x: tn.behaviour.perplexity(x, SENTENCES),
    "behaviour.perplexity_matrix": lambda x: tn.behaviour.perplexity_matrix(x, texts, {"a": neurons}),
    "behaviour.continuations": lambda x: tn.behaviour.continuations(x, SENTENCES, neurons=neurons),
    "behaviour.abilities": lambda x: tn.behaviour.abilities(x, SENTENCES, neurons, language="ja", controls=same),
    "behaviour.answer_questions": lambda x: tn.behaviour.answer_questions(x, ["a"], [["b"]], language="en"),
    "specificity.lape_of_tokens": lambda x: tn.specificity.lape_of_tokens(x, texts),
    "harness.evaluate": lambda x: tn.harness.evaluate(x, "belebele_jpn_Jpan", neurons=neurons, controls=same),
    "explore_detection": lambda x: tn.explore_detection(x, corpus),
    "explore_ablation": lambda x: tn.explore_ablation(x, corpus),
    "explore_neurons": lambda x: tn.explore_neurons(x, corpus),
    "explore_spaces": lambda x: tn.explore_spaces(x, corpus),
}
"""
RUN = """
for name, call in CALLS.items():
    for value, said in (("gemma-3-270m", "'gemma-3-270m' is not"), (tiny_module("llama"), "LlamaForCausalLM is not")):
        if name == "explore_detection" and isinstance(value, str):
            continue  # it loads a name itself
        try:
            call(value)
            print(name, "took", said)
        except tn.TnkitError as error:
            if said not in str(error) or "pass what tn.load_model(" not in str(error):
                print(name, error)
        except Exception as error:
            print(name, repr(error))
"""


def test_a_name_or_a_module_in_place_of_a_model_is_refused_in_a_sentence():
    """In a process of its own, where no types are checked."""
    done = subprocess.run([sys.executable, "-c", CALLS + RUN], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_every_public_function_of_a_model_is_among_those_calls():
    named = {name: getattr(tn, name) for name in tn.__all__ if callable(getattr(tn, name))}
    for station in ("behaviour", "lens", "specificity"):
        for name, value in inspect.getmembers(getattr(tn, station), inspect.isfunction):
            if value.__module__.startswith(getattr(tn, station).__name__) and not name.startswith("_"):
                named[f"{station}.{name}"] = value
    taking = [name for name, value in named.items() if "model" in {*inspect.signature(value).parameters}]
    assert len(taking) > 20 and not [name for name in taking if f'"{name}"' not in CALLS]
