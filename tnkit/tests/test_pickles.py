"""Pickles: what the published code writes comes back, and nothing in a file runs, hangs or fills the memory."""

import builtins
import codecs
import functools
import os
import pickle
import random

import numpy as np
import pytest
import torch
from numpy._core import multiarray

import tnkit as tn
from tnkit import pickles

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = [["a", "日本"], [("a", 1), ("b", 2.5, None, True, b"x", b"", 2**100)], {"a": {1: [2, 3]}, (1, 2): -1}]
ARRAYS = [np.arange(6).reshape(2, 3).astype(code) for code in "? b u2 <i4 >i4 f2 >f8 c8 S3 >U2".split()]
ARRAYS += [ARRAYS[3].T, np.arange(12).reshape(3, 4)[:, ::2], np.array(3.5), np.zeros((0, 2))]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_pickles_come_back(tmp_path, protocol):
    scalars = [np.int64(3), np.float32(2.5), np.bool_(True), np.str_("é"), np.array([1], ">i4")[0]]
    for content in [*PLAIN, scalars, {"neurons": [(np.int64(3), np.int64(7))]}]:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        found = pickles.read(tmp_path / "x.pkl")
        assert found == content
        assert repr(found) == repr(content)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([ARRAYS, {"again": ARRAYS[3]}], protocol))
    found, again = pickles.read(tmp_path / "x.pkl")
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
        assert np.array_equal(pickles.read(tmp_path / "x.pkl"), content)


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
        "a set": {1, 2},
        "a frozen set": frozenset([1]),
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
        pickles.read(path)
    assert not mark.exists()
    assert np.dtype("f8").isnative


def test_structures_that_hold_themselves_or_are_deep_end(tmp_path):
    path = tmp_path / "x.pkl"
    knot, shared = [], ["a"]
    knot += [knot, {"knot": knot}]
    for _ in range(100):
        shared = [shared] * 10
    path.write_bytes(pickle.dumps(knot))
    found = pickles.read(path)
    assert found[0] is found[1]["knot"] is found
    path.write_bytes(pickle.dumps(shared))
    assert len({id(part) for part in pickles.read(path)}) == 1
    path.write_bytes(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    assert len(pickles.read(path)) == 1


def test_keys_that_are_walked_without_end_are_refused(tmp_path):
    """A tuple of two of a tuple of two of …, 100 deep, takes 500 bytes, and its hash 2^100 steps."""
    path = tmp_path / "x.pkl"
    bomb = b"X\x01\0\0\0a\x85q\0" + b"".join(b"h%c\x86q%c" % (depth, depth + 1) for depth in range(100))
    for keyed in (b"}" + bomb + b"K\x01s.", b"}(" + bomb + b"K\x01u.", b"(" + bomb + b"K\x01d."):
        path.write_bytes(b"\x80\x02" + keyed)
        with pytest.raises(tn.TnkitError, match=r"x\.pkl is not a plain pickle .* a dict with a key of type tuple"):
            pickles.read(path)
    path.write_bytes(b"\x80\x02" + bomb + b".")
    for load in (tn.Centroids.load, lambda path: tn.NeuronSet.load(path, shape=(2, 2)), tn.load_corpus):
        with pytest.raises(tn.TnkitError, match=r"x\.pkl"):
            load(path)


def test_pickles_that_are_damaged(tmp_path):
    path, generator = tmp_path / "x.pkl", random.Random(0)
    whole = pickle.dumps([*PLAIN, ARRAYS])
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(tn.TnkitError, match=r"x\.pkl is not a .*pickle"):
            pickles.read(path)
    path.write_bytes(b"\x80\x04]r\xff\xff\xff\x7f.")  # the empty list as object 2147483647: room for 16 GiB of them
    with pytest.raises(tn.TnkitError, match=r"x\.pkl is not a plain pickle .*it is damaged"):
        pickles.read(path)
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        path.write_bytes(data)
        try:
            pickles.read(path)
        except tn.TnkitError:
            refused += 1
    assert refused > 200
