"""The explorer with 32 languages: every one is in each chunk, none looks like another, and the page counts them."""

import pandas as pd
import pytest

import tnkit as tn
from tnkit.explorers.chunks import Chunks
from tnkit.explorers.page import keys_of, page_of
from tnkit.explorers.study import Study
from tnkit.testing import tiny_model

CODES = "en zh es hi ar bn pt ru ja de ko fr vi te mr tr ta ur it th gu fa pl uk nl ms sw ro el he my am".split()
WORDS = {"ar": "مرحبا", "hi": "नमस्ते", "he": "שלום", "th": "สวัสดี", "ja": "こんにちは"}


@pytest.fixture(scope="module")
def chunks(tmp_path_factory, request):
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("TNKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    rows = {code: [f"{WORDS.get(code, code)} {number}." for number in range(24)] for code in CODES}
    corpus = tn.load_corpus(pd.DataFrame(rows | {"split": ["train", "test"] * 12}))
    return Chunks(Study(tiny_model(), corpus), seeds=1)


def test_the_map_the_layers_and_the_sets_have_every_language(chunks):
    plane, ribbon, sets = map(chunks.now, ("plane", "ribbon", "sets"))
    assert list(plane["points"]) == CODES and set(ribbon) == set(CODES[1:])
    assert set(sets) == {f"{code}|{kind}" for code in CODES[1:] for kind in ("type1", "type2")}


def test_evidence_compares_a_set_with_those_of_30_other_languages(chunks):
    (key,) = (key for key in keys_of(chunks) if key.startswith("evidence|hi|type1|"))
    text = str(chunks.now(key))
    names = {code: tn.plots.language_name(code) for code in CODES}
    assert all(f"{names[code]} Type-1" in text for code in CODES if code not in ("en", "hi"))


def test_no_two_languages_look_the_same_and_the_page_counts_them(chunks):
    about = chunks.about()
    looks = {(one["colour"], one["marker"]) for one in about["languages"]}
    assert len(looks) == 32 and len({one["name"] for one in about["languages"]}) == 32
    page = page_of(about, {})
    assert "Here are 31 languages beside English" in page
    few = page_of(about | {"languages": about["languages"][:3]}, {})
    assert "Here are Chinese and Spanish beside English" in few
