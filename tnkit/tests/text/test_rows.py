"""Sentences of other rows are not taken for translations, and the states themselves tell parallel from shuffled."""

import numpy as np
import pandas as pd
import pytest
import torch

import tnkit as tn
from tnkit.measures import geometry
from tnkit.testing import cloud, held, tiny_model

MEASURES = [geometry.similarity, geometry.hits, geometry.retrieval, geometry.mexa]


def loaded(texts, language, **options):
    return tn.load_corpus(pd.DataFrame({language: texts}), **options)


ENGLISH, ITALIAN = [f"Sentence {n}." for n in range(12)], [f"Frase {n}." for n in range(12)]
TWO = pd.DataFrame({"en": [*ENGLISH[:11], ""], "it": ["", *ITALIAN[1:]]})
NOT_PARALLEL = {
    "other rows of two sources": (loaded(ENGLISH, "en")["test"]["en"], loaded(ITALIAN[2:], "it")["test"]["it"]),
    "one-language loads that dropped other rows": (
        tn.load_corpus(TWO, "en", test=1.0)["test"]["en"],
        tn.load_corpus(TWO, "it", test=1.0)["test"]["it"],
    ),
    "two splits": (
        tn.load_corpus("everyday", limit=24)["train"]["en"],
        tn.load_corpus("everyday", limit=24)["test"]["it"],
    ),
    "two slices": (tn.load_corpus("everyday")["test"]["en"][:12], tn.load_corpus("everyday")["test"]["it"][1:13]),
}


@pytest.mark.parametrize("pair", NOT_PARALLEL.values(), ids=NOT_PARALLEL)
def test_sentences_of_other_rows_are_refused(pair):
    model, texts = tiny_model(), dict(zip(("en", "it"), pair, strict=True))
    left, right = (tn.capture(model, part, progress=False) for part in pair)
    none = tn.NeuronSet((), (model.n_layers, model.n_neurons))
    calls = [(lambda measure=measure: measure(left, right)) for measure in (*MEASURES, geometry.alignment)]
    calls += [
        lambda: tn.estimate_centroids([left, right]),
        lambda: tn.detect(model, texts, language="it", top=10, progress=False),
        lambda: tn.ablate(model, texts, none, language="it", controls={}, progress=False),
        lambda: tn.retrieval_matrix(model, texts, {"it": none}, progress=False),
    ]
    for call in calls:
        with pytest.raises(tn.TnkitError, match=r"hold different rows|hold \d+ and \d+ sentences"):
            call()
    assert len(tn.detect(model, texts, language="it", kind="type2", top=10, progress=False).neurons) == 10


def test_the_same_rows_are_taken_whether_loaded_together_or_not(caplog):
    model, frame = tiny_model(), pd.DataFrame({"en": ENGLISH, "it": ITALIAN})
    pairs = [tn.load_corpus(frame)["test"], {name: tn.load_corpus(frame, name)["test"][name] for name in frame}]
    shared = [
        geometry.similarity(*(tn.capture(model, pair[name], progress=False) for name in frame)).columns["parallel"]
        for pair in pairs
    ]
    assert np.array_equal(*shared)
    assert caplog.messages == []


def test_the_same_rows_of_two_sources_are_taken_with_one_warning(caplog):
    model = tiny_model()
    texts = (loaded(ENGLISH, "en", test=1.0)["test"]["en"], loaded(ITALIAN, "it", test=1.0)["test"]["it"])
    captured = [tn.capture(model, part, progress=False) for part in texts]
    for measure in MEASURES:
        measure(*captured)
    assert len(caplog.messages) == 1
    assert "come from two sources" in caplog.messages[0]


# Alignment


def test_alignment_tells_parallel_from_shuffled_sentences(caplog):
    left = cloud(6, 60, 16)
    right = left + 0.3 * cloud(6, 60, 16, seed=1) + 2  # the mean is taken away
    found = geometry.alignment(held(left), held(right))
    a, b = (np.asarray(part[2], float) - np.asarray(part[2], float).mean(axis=0) for part in (left, right))
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    wins = [(cosines[n, n] > np.delete(cosines[n], n)).mean() for n in range(60)]
    assert found.layers == (2, 3)
    assert np.isclose(found.columns["share"][0], np.mean(wins))
    assert found.columns["low"][0] <= np.mean(wins) <= found.columns["high"][0]
    assert found.columns["low"].min() > 0.9
    assert caplog.messages == []
    shuffled = geometry.alignment(held(left), held(right.roll(1, dims=1)))
    assert (shuffled.columns["low"] < 0.5).all() and (shuffled.columns["high"] > 0.5).all()
    assert "chance 50 %); check that row n of one language translates row n of the other" in caplog.text


def test_alignment_of_equal_states_is_chance_and_ablated_ones_are_refused():
    flat = held(torch.ones(3, 8, 4))
    assert geometry.alignment(flat, flat, layers=[0, 2]).columns["share"].tolist() == [0.5, 0.5]
    with pytest.raises(tn.TnkitError, match=r"layers \[9\] were not captured"):
        geometry.alignment(flat, flat, layers=[9])
    with pytest.raises(tn.TnkitError, match="without ablations"):
        geometry.alignment(flat, held(torch.ones(3, 8, 4), provenance={"ablations": [{}]}))
