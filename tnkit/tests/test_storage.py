"""Storage: writes are whole or not at all, reads are checked, and a pickle runs nothing."""

import json
import pickle
import random
import re
import struct

import pytest
import torch
from safetensors.torch import save_file

import tnkit as tn
from tnkit import pickles, storage

TENSORS = {"values": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).half(), "none": torch.zeros(0, 4)}
ABOUT = {"model": "gemma", "languages": ["en", "日本語"], "nested": {"layers": [1, 2], "share": 0.5, "none": None}}


def same_tensors(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = storage.write_text(tmp_path / "new" / "x.json", "old")

    def fail(file):
        file.write(b"half of it")
        file.flush()
        assert path.read_text() == "old"
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        storage.write_atomically(path, fail)
    assert path.read_text() == "old"
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickles.write(path, lambda: None)
    with pytest.raises(TypeError):
        storage.save_json(path, "numbers", {"of": object()})
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("x.json", "old")]


def test_a_write_replaces_the_file_whole_and_gives_it_ordinary_rights(tmp_path):
    path = storage.write_text(tmp_path / "x.txt", "a longer text")
    assert storage.write_text(str(path), "é\n") == path
    assert path.read_bytes() == "é\n".encode()
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()

    def full(_):
        raise OSError(28, "No space left on device")

    for name, write in {"file/x": bytes, "folder": bytes, "a" * 300: bytes, "full": full}.items():
        with pytest.raises(tn.TnkitError, match=rf"cannot write .*{name}: .*; choose another path with out=/--out"):
            storage.write_atomically(tmp_path / name, write)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_tensors_and_json_come_back_as_they_were(tmp_path):
    strided = {**TENSORS, "turned": torch.arange(6).reshape(2, 3).T}
    tensors, about = storage.load_tensors(storage.save_tensors(tmp_path / "x", "numbers", strided, ABOUT), "numbers")
    assert same_tensors(tensors, strided)
    assert about == ABOUT
    assert storage.load_json(storage.save_json(tmp_path / "y", "numbers", ABOUT), "numbers") == ABOUT


def test_files_of_another_kind_schema_or_maker(tmp_path, monkeypatch):
    saves = {
        "t": (lambda kind: storage.save_tensors(tmp_path / "t", kind, TENSORS, ABOUT), storage.load_tensors),
        "j": (lambda kind: storage.save_json(tmp_path / "j", kind, ABOUT), storage.load_json),
    }
    for name, (save, load) in saves.items():
        with pytest.raises(tn.TnkitError, match=rf"/{name} holds centroids, expected scores"):
            load(save("centroids"), "scores")
        with monkeypatch.context() as later:
            later.setattr(storage, "_SCHEMA", 9)
            path = save("scores")
        with pytest.raises(tn.TnkitError, match=rf"/{name} has schema 9, this tnkit reads 2; create it again"):
            load(path, "scores")
    save_file({"values": torch.ones(2)}, tmp_path / "t")
    for text in "[1]", "null", '{"kind": "scores"}', '{"kind": "scores", "about": []}':
        (tmp_path / "j").write_text(text)
        for name, (_, load) in saves.items():
            with pytest.raises(tn.TnkitError, match=rf"/{name} was not written by tnkit; expected scores"):
                load(tmp_path / name, "scores")


def test_json_that_is_cut_or_nested_without_end(tmp_path):
    whole = storage.save_json(tmp_path / "x", "numbers", ABOUT).read_bytes()
    cut = [whole[:length] for length in range(1, len(whole) - 1)]
    for data in [*cut, b"\xff\xfe", b"\0" * 20, b"[" * 100_000, b'{"a":' * 100_000]:
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(tn.TnkitError, match=r"/x is not a readable JSON file \("):
            storage.load_json(tmp_path / "x", "numbers")


def test_tensors_that_are_cut_or_longer(tmp_path):
    path = storage.save_tensors(tmp_path / "x", "numbers", TENSORS, ABOUT)
    whole = path.read_bytes()
    header = json.dumps({"__metadata__": {"tnkit": "[" * 100_000}}).encode()
    deep = struct.pack("<Q", len(header)) + header
    for data in [*(whole[:length] for length in range(1, len(whole), 3)), whole[:-1], whole + b"\0", deep]:
        path.write_bytes(data)
        with pytest.raises(tn.TnkitError, match="/x is not a readable safetensors file: it is damaged"):
            storage.load_tensors(path, "numbers")


def test_a_changed_byte_is_an_error_or_no_change(tmp_path):
    generator = random.Random(0)
    for save, load in (
        (lambda path: storage.save_tensors(path, "numbers", TENSORS, ABOUT), storage.load_tensors),
        (lambda path: storage.save_json(path, "numbers", ABOUT), storage.load_json),
    ):
        path = save(tmp_path / "x")
        whole, right, refused = path.read_bytes(), load(path, "numbers"), 0
        for place in [*range(0, len(whole), 3), *(generator.randrange(len(whole)) for _ in range(600))]:
            data = bytearray(whole)
            data[place] ^= generator.randrange(1, 256)
            path.write_bytes(data)
            try:
                found = load(path, "numbers")
            except tn.TnkitError as error:
                assert "/x" in str(error)
                refused += 1
            else:
                assert str(found) == str(right)
        assert refused > 600


STRANGE = [{"provenance": strange} for strange in ("x", {"model": 1}, {"sentences": [1]})]
STRANGE += [{"layers": strange} for strange in (3, ["a"], [1, 0], [-1, 0], [])]


@pytest.mark.parametrize("change", STRANGE)
def test_files_that_a_stranger_wrote_with_care_are_refused(tmp_path, change):
    about = {"layers": [0, 1], "provenance": {}, "distance": "cosine", "shape": [2, 3], "pairs": [[0, 1]], **change}
    file, layers = tmp_path / "x", "provenance" not in change
    storage.save_tensors(file, "centroids", {"values": torch.ones(2, 3)}, about)
    with pytest.raises(tn.TnkitError, match="/x"):
        tn.Centroids.load(file)
    storage.save_tensors(file, "activations", {"index": torch.arange(2), "mid": torch.ones(2, 2, 3)}, about)
    with pytest.raises(tn.TnkitError, match="/x"):
        tn.Activations.load(file)
    storage.save_tensors(file, "scores", {"values": torch.ones(2, 3).double()}, about)
    storage.save_json(tmp_path / "x.json", "neurons", about)
    for load in (tn.NeuronScores.load, lambda _: tn.NeuronSet.load(tmp_path / "x.json")):
        if not layers:
            with pytest.raises(tn.TnkitError, match="its provenance is not laid out"):
                load(file)


def test_scores_that_are_in_part_not_numbers_are_refused(tmp_path):
    values = torch.full((3, 4), torch.nan).double()
    path = storage.save_tensors(tmp_path / "x", "scores", {"values": values}, {"distance": "cosine"})
    with pytest.raises(tn.TnkitError, match="/x holds no scored layer"):
        tn.NeuronScores.load(path)
    values[1] = torch.tensor([1, torch.nan, 2, 3])
    storage.save_tensors(path, "scores", {"values": values}, {"distance": "cosine"})
    with pytest.raises(tn.TnkitError, match="/x: values holds values that are not finite"):
        tn.NeuronScores.load(path)


def test_the_fingerprint_tells_order_and_boundaries_apart():
    texts = [[], [""], ["", ""], ["ab"], ["a", "b"], ["b", "a"], ["a\0b"], ["a\0", "b"], ["1:a"], ["é"], ["e\u0301"]]
    found = [storage.text_hash(text) for text in texts]
    assert len(set(found)) == len(texts)
    assert storage.text_hash(iter(["a", "b"])) == storage.text_hash(("a", "b"))


def test_a_card_escapes_titles_names_and_values():
    card = storage.html_card("<i>", {"<b>": "<script>'\"&", "list": ["<x>", 2], "nan": float("nan"), "long": "<" * 500})
    assert set(re.findall(r"</?(\w+)", card)) == {"table", "caption", "b", "tr", "th", "td"}
    for text in (
        "<b>&lt;i&gt;</b>",
        "&lt;b&gt;",
        "&lt;script&gt;&#x27;&quot;&amp;",
        "&lt;x&gt;, 2",
        ">—<",
        "&lt;" * 117 + "…<",
    ):
        assert card.count(text) == 1


def test_a_tilde_in_the_cache_folder_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TNKIT_CACHE", "~/kept")
    assert storage.cache_folder() == tmp_path / "kept"


def test_versions_are_those_that_were_loaded(monkeypatch):
    """A package that was upgraded under a live kernel is on the disk, not in memory."""
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99")
    assert storage.versions()["torch"] == torch.__version__
