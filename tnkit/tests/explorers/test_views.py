"""Opening an explorer at each view, saving what it shows, and letting go of its model."""

import asyncio
import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from PIL import Image

import tnkit as tn
from tnkit.captures import passes, shards
from tnkit.explorers.study import Study
from tnkit.models import model as identity
from tnkit.testing import byte_tokenizer, tiny_corpus, tiny_model, tiny_module

VIEWS = {"spaces": "map", "neurons": "neurons", "ablation": "evidence", "detection": "detection"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "view"), VIEWS.items())
def test_each_opens_the_explorer_at_its_view(name, view):
    found = {("it", "type1"): tn.detect(tiny_model(), tiny_corpus(), language="it", top=5, progress=False)}
    options = {"languages": ["en", "it"], "sentences": 12, "position": "last_word", "found": found, "top": 5}
    explorer = getattr(tn, f"explore_{name}")(tiny_model(), tiny_corpus(), **options)
    assert explorer.state["view"] == view and explorer.about["size"] == 5
    assert explorer.study.languages == ("en", "it") and explorer.about["position"] == "last_word"
    assert explorer.result == found
    assert len(explorer.about["test"]["it"]) == 12


def test_what_cannot_be_explored_is_refused():
    with pytest.raises(tn.TnkitError, match="add another language"):
        tn.explore_ablation(tiny_model(), tiny_corpus(), languages=["en"])
    with pytest.raises(tn.TnkitError, match="fr"):
        tn.explore_detection(tiny_model(), tiny_corpus(), hub="fr")


OTHERS = """
import tnkit as tn
from tnkit.testing import tiny_corpus, tiny_model
found = tn.detect(tiny_model(), tiny_corpus(), language="it", top=9, progress=False)
for call in (
    lambda: tn.explore_spaces({"en": tn.capture(tiny_model(), ["Hi"], progress=False)}, None),
    lambda: tn.explore_neurons(found, None),
    lambda: tn.explore_neurons({("it", "type1"): found}, None),
    lambda: tn.explore_spaces(tiny_model(), None),
):
    try:
        call()
    except tn.TnkitError as error:
        print(error)
"""


def test_captures_or_detections_without_their_model_are_refused_in_a_sentence():
    """In a process of its own, where no types are checked."""
    done = subprocess.run([sys.executable, "-c", OTHERS], capture_output=True, text=True, timeout=300)
    said = done.stdout.splitlines()
    assert [len(said), done.returncode] == [4, 0], done.stderr
    assert "give a model and a corpus" in said[0] and "found=detections" in said[1] == said[2]
    assert "needs a corpus" in said[3]


def test_explorers_of_one_model_and_corpus_share_what_they_computed():
    one, other = (tn.explore(tiny_model(), tiny_corpus()) for _ in range(2))
    assert one.study is other.study
    assert tn.explore(tiny_model(), tiny_corpus(), sentences=5).study is not one.study
    again = one.study.again(distance="euclidean")
    captured = one.study.captured("train", "it")
    assert one.study.again(distance="euclidean").captured("train", "it") is captured and not again.found
    assert one.study.again(position="mean").captured("train", "it") is not captured


def test_results_are_saved_below_their_folder_whatever_a_language_is_called(tmp_path):
    texts = tiny_corpus()["train"]
    found = tn.detect(
        tiny_model(), {"en": texts["en"], "../../x": texts["it"]}, language="../../x", top=9, progress=False
    )
    explorer = tn.explore_detection(
        tiny_model(), tiny_corpus(), found={("../../x", "type1"): found}, results="deep/below/results"
    )
    saved = {tn.Detection.load(path).language: path for path in explorer.save_results()}
    assert tn.Detection.load(saved["../../x"]).neurons == found.neurons
    assert {path.parts[-5:-2] for path in tmp_path.rglob("neurons.json")} == {("deep", "below", "results")}, saved


def test_a_button_saves_and_what_goes_wrong_is_said(monkeypatch):
    explorer, sent = tn.explore(tiny_model(), tiny_corpus(), sentences=7), []
    monkeypatch.setattr(explorer, "send", sent.append)
    explorer._hear(None, {"ask": "save"}, [])
    assert "no neurons have been found yet" in sent[-1]["failed"]
    explorer.chunks.now("sets")
    explorer._hear(None, {"ask": "save"}, [])
    assert sent[-1]["said"].startswith("saved detections")
    assert tn.Detection.load("detections/ja-type2").neurons.pairs == explorer.result["ja", "type2"].neurons.pairs


def test_pictures_say_what_they_show_and_keep_the_folder_of_a_model_to_themselves(tmp_path):
    tiny_module("llama").save_pretrained(tmp_path / "secret" / "own-model")
    byte_tokenizer().save_pretrained(tmp_path / "secret" / "own-model")
    model = tn.load_model(tmp_path / "secret" / "own-model")
    path = tn.explore_ablation(model, tiny_corpus(), language="ja").save(tmp_path / "x.png")
    with Image.open(path) as image:
        said = image.text["Description"]
    assert "own-model" in said and "secret" not in said
    assert model.weights_hash in said and "'language': 'ja'" in said


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_closed_explorer_lets_go_of_its_model(in_a_loop, monkeypatch):
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=copy.deepcopy(byte_tokenizer()))
    alive = weakref.ref(model), weakref.ref(module)

    async def use():
        explorer = tn.explore(model, tiny_corpus())
        monkeypatch.setattr(explorer, "send", lambda _: None)
        explorer._hear(None, {"ask": "chunks", "keys": ["plane", "evidence|it|type1|9|zero|last"]}, [])
        await asyncio.sleep(0.05)  # work is under way
        explorer.close()
        await asyncio.sleep(0)
        return explorer

    if in_a_loop:
        explorer = asyncio.run(use())
    else:
        explorer = tn.explore(model, tiny_corpus())
        explorer.chunks.now("plane")
        explorer.close()
    explorer.close()
    del model, module
    gc.collect()
    assert [one() for one in alive] == [None, None]  # although the explorer is still there
    assert repr(explorer) == "Explorer(closed)"
    with pytest.raises(tn.TnkitError, match="this explorer is closed; open a new one"):
        explorer.figure()


def test_a_refused_explorer_releases_its_model():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=copy.deepcopy(byte_tokenizer()))
    alive = weakref.ref(model), weakref.ref(module)
    with pytest.raises(tn.TnkitError, match="layer=99"):
        tn.explore(model, tiny_corpus(), layer=99)
    del model, module
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_edited_weights_are_noticed_when_something_is_asked_for(monkeypatch):
    monkeypatch.setattr("tnkit.explorers.study._LOOK", -1.0)
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    explorer, sent = tn.explore(model, tiny_corpus()), []
    monkeypatch.setattr(explorer, "send", sent.append)
    explorer._hear(None, {"ask": "chunks", "keys": ["plane"]}, [])
    before = sent[-2]["chunk"]
    with torch.no_grad():
        module.get_input_embeddings().weight.mul_(1.5)
        module.model.layers[1].mlp.down_proj.weight.mul_(-3)
    for cached in ("weights_hash", "provenance", "output_gains"):
        vars(model).pop(cached, None)
    explorer._hear(None, {"ask": "chunks", "keys": ["plane"]}, [])
    assert {"forget": True} in sent
    fresh = tn.load_model(copy.deepcopy(module), tokenizer=byte_tokenizer())
    assert sent[-2]["chunk"] == tn.explore(fresh, tiny_corpus()).chunks.now("plane") != before


def test_captures_on_disk_are_recalled_together_and_the_weights_are_read_once(monkeypatch):
    module = copy.deepcopy(tiny_module("llama"))
    model, read, hash_now = tn.load_model(module, tokenizer=byte_tokenizer()), [], identity.hash_now
    first = Study(model, tiny_corpus())
    captured = {language: first.captured("test", language) for language in ("en", "ja")}
    again = Study(model, tiny_corpus())
    with monkeypatch.context() as patch:
        patch.setattr(identity, "hash_now", lambda module: read.append(1) or hash_now(module))
        patch.setattr("tnkit.captures.passes.trace_blocks", None)  # nothing is run
        again.recall("test")
        recalled = {language: again.captured("test", language) for language in captured}
    assert len(read) == 1
    for language, states in captured.items():
        assert torch.equal(recalled[language].post, states.post)
        assert recalled[language].provenance == states.provenance
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.data.mul_(-3)
    edited = Study(model, tiny_corpus())
    edited.recall("test")
    assert not torch.equal(edited.captured("test", "ja").post, captured["ja"].post)


def test_weights_that_are_edited_while_captures_are_recalled_never_reach_the_cache(monkeypatch):
    """A shard is missing, so that its sentences are run again: the weights are read before it is written."""
    module = copy.deepcopy(tiny_module("llama"))
    model, trace = tn.load_model(module, tokenizer=byte_tokenizer()), passes.trace_blocks
    fresh = Study(model, tiny_corpus()).captured("test", "ja").post
    (shard,) = (path for path in shards.folder().rglob("*.safetensors"))
    shard.unlink()
    weight = module.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()

    def edited(*arguments, **options):
        weight.data.zero_()
        return trace(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(tn.TnkitError, match="changed during this pass"):
        patch.setattr(passes, "trace_blocks", edited)
        Study(model, tiny_corpus()).recall("test")
    assert not shard.exists()
    weight.data.copy_(kept)
    assert torch.equal(Study(model, tiny_corpus()).captured("test", "ja").post, fresh)


def test_a_study_says_what_it_was_made_with():
    study = Study(tiny_model(), tiny_corpus())
    assert study.options() == Study.usual(tiny_corpus())
