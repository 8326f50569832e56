"""Storage: writes are whole or not at all, reads are checked, and a pickle runs nothing."""

import builtins
import codecs
import functools
import json
import os
import pickle
import random
import re
import struct

import numpy as np
import pytest
import torch
from numpy._core import multiarray
from safetensors.torch import save_file

import tnkit as tn
from tnkit import storage

TENSORS = {"values": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).half(), "none": torch.zeros(0, 4)}
ABOUT = {"model": "gemma", "languages": ["en", "日本語"], "nested": {"layers": [1, 2], "share": 0.5, "none": None}}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


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
        storage.write_pickle(path, lambda: None)
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
        with pytest.raises(tn.TnkitError, match=rf"cannot write .*{name}: .*; choose another place with out=/--out"):
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
            later.setattr(storage, "_SCHEMA", 2)
            path = save("scores")
        with pytest.raises(tn.TnkitError, match=rf"/{name} has schema 2, this tnkit reads 1; update tnkit"):
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


def test_a_byte_of_the_header_changed_is_an_error_or_another_name_or_value(tmp_path):
    """The header has no checksum: a changed letter of a word, or digit, can still be a header, never a crash."""
    path = storage.save_tensors(tmp_path / "x", "numbers", TENSORS, ABOUT)
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    structure = [place for place in range(header) if place < 8 or whole[place] in b'{}[]":,']
    for place in [*structure, *(generator.randrange(header) for _ in range(600))]:
        data = bytearray(whole)
        data[place] ^= generator.randrange(1, 256)
        path.write_bytes(data)
        try:
            tensors, about = storage.load_tensors(path, "numbers")
        except tn.TnkitError as error:
            assert "/x" in str(error)
            refused += 1
        else:
            assert place >= 8
            assert len(tensors) == len(TENSORS)
            assert about != ABOUT or not same_tensors(tensors, TENSORS) or data[place : place + 1].isspace()
    assert refused > len(structure) // 2


PLAIN = [["a", "日本"], [("a", 1), ("b", 2.5, None, True, b"x", b"", 2**100)], {"a": {1: [2, 3]}, (1, 2): -1}]
ARRAYS = [np.arange(6).reshape(2, 3).astype(code) for code in "? b u2 <i4 >i4 f2 >f8 c8 S3 >U2".split()]
ARRAYS += [ARRAYS[3].T, np.arange(12).reshape(3, 4)[:, ::2], np.array(3.5), np.zeros((0, 2))]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_pickles_come_back(tmp_path, protocol):
    scalars = [np.int64(3), np.float32(2.5), np.bool_(True), np.str_("é"), np.array([1], ">i4")[0]]
    for content in [*PLAIN, scalars, {"neurons": [(np.int64(3), np.int64(7))]}]:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        found = storage.read_pickle(tmp_path / "x.pkl")
        assert found == content
        assert repr(found) == repr(content)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([ARRAYS, {"again": ARRAYS[3]}], protocol))
    found, again = storage.read_pickle(tmp_path / "x.pkl")
    for array, expected in zip(found, pickle.loads((tmp_path / "x.pkl").read_bytes())[0], strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == expected.dtype
        assert array.tobytes("A") == expected.tobytes("A")
    assert again["again"] is found[3]


def test_pickles_of_numpy_1_come_back(tmp_path):
    """Numpy 1 wrote numpy.core where numpy 2 writes numpy._core."""
    for content in [np.arange(3), np.float32(2.5)]:
        data = pickle.dumps(content, 2)
        assert b"numpy._core" in data
        (tmp_path / "x.pkl").write_bytes(data.replace(b"numpy._core", b"numpy.core"))
        assert np.array_equal(storage.read_pickle(tmp_path / "x.pkl"), content)


class Calls:
    """Pickles as a call of `function`, and then as a state to set on what it gave."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


def forged(code="f8", byte_order="<", subarray=None, names=None, fields=None, size=-1, align=-1, flags=0):
    return Calls(np.dtype, code, False, True, state=(3, byte_order, subarray, names, fields, size, align, flags))


def array_of(dtype, data=b"\x10" * 8):
    return Calls(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), dtype, False, data))


def hostile(mark):
    """Objects by name that must not load; those that run something would make the file `mark`."""
    touch = f"touch {mark}"
    outside = ("a",), {"a": (np.dtype("f8"), 10**7)}, 8, 1
    return {
        "os.system": Calls(os.system, touch),
        "builtins.eval": Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
        "builtins.getattr": Calls(getattr, "a", "upper"),
        "deep inside": [{"a": ([1, {"b": (2, [Calls(os.system, touch)])}],)}],
        "a dict key": {Calls(os.system, touch): 1},
        "the state of a list": Calls(list, state=Calls(os.system, touch)),
        "functools.partial": functools.partial(os.system, touch),
        "codecs": Calls(codecs.encode, "a", "rot13"),
        "an object": Calls(Calls, os.system),
        "a tensor": torch.ones(2),
        "a function of numpy": np.load,
        "an array of objects": np.array([["a"], None], dtype=object),
        "an array of objects with a call": np.array([Calls(os.system, touch)], dtype=object),
        "an array of objects among dicts": [{"a": np.array([None])}, *({name: 1} for name in "bcdefgh")],
        "an array of records": np.zeros(2, [("a", "f8"), ("b", "O")]),
        "an array of dates": np.zeros(2, "M8[s]"),
        "an object number": Calls(multiarray.scalar, np.dtype("O"), "a"),
        "an array by hand": Calls(np.ndarray, (2,), "O"),
        "an array of objects by hand": Calls(multiarray._reconstruct, np.ndarray, (2,), "O"),
        "numpy's own float": Calls(np.dtype, "f8", False, False, state=(3, ">", None, None, None, -1, -1, 0)),
        "addresses as objects": array_of(forged("O8", "|")),
        "an address as an object": Calls(multiarray.scalar, forged("O8", "|"), b"\x10" * 8),
        "a field far outside": array_of(forged("V8", "|", None, *outside)),
        "a field outside a float": array_of(forged("f8", "<", None, *outside)),
        "a float of many": array_of(forged("f8", "<", (np.dtype("f8"), (10**7,)), size=8, align=1)),
        "a float with flags": array_of(forged(flags=63)),
        "a text of another size": array_of(forged("U2", size=4, align=4, flags=8)),
        "an array shorter than its shape": array_of(np.dtype("f8"), b"\x10" * 7),
    }


@pytest.mark.parametrize("name", hostile("mark"))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_anything_else_is_refused_and_nothing_runs(tmp_path, name, protocol):
    mark, path = tmp_path / "mark", tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(hostile(mark)[name], protocol))
    with pytest.raises(tn.TnkitError, match=r"x\.pkl is not a .*pickle.*; save it as TSV or JSONL"):
        storage.read_pickle(path)
    assert not mark.exists()
    assert np.dtype("f8").isnative


def test_structures_that_hold_themselves_or_are_deep_end(tmp_path):
    path = tmp_path / "x.pkl"
    knot, shared = [], ["a"]
    knot += [knot, {"knot": knot}]
    for _ in range(100):
        shared = [shared] * 10
    path.write_bytes(pickle.dumps(knot))
    found = storage.read_pickle(path)
    assert found[0] is found[1]["knot"] is found
    path.write_bytes(pickle.dumps(shared))
    assert len({id(part) for part in storage.read_pickle(path)}) == 1
    path.write_bytes(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    assert len(storage.read_pickle(path)) == 1


def test_pickles_that_are_damaged(tmp_path):
    path, generator = tmp_path / "x.pkl", random.Random(0)
    whole = pickle.dumps([*PLAIN, ARRAYS])
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(tn.TnkitError, match=r"x\.pkl is not a .*pickle"):
            storage.read_pickle(path)
    path.write_bytes(b"\x80\x04]r\xff\xff\xff\x7f.")  # the empty list as object 2147483647: room for 16 GiB of them
    with pytest.raises(tn.TnkitError, match=r"x\.pkl is not a plain pickle .*it is damaged"):
        storage.read_pickle(path)
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        path.write_bytes(data)
        try:
            storage.read_pickle(path)
        except tn.TnkitError:
            refused += 1
    assert refused > 200


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
