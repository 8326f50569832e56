"""Pickles that are out to run code, to hang, or to fill the memory: none does, and every one ends soon."""

import pickle
import pickletools
import random
import resource
import time
from collections import Counter
from pathlib import Path

import tnkit as tn
from tnkit import pickles
from tnkit.tests.test_pickles import ARRAYS, PLAIN, PROTOCOLS, hostile

LONG = 5.0
_OPCODES = [code for code in pickletools.opcodes if code.name not in ("PROTO", "FRAME", "STOP")]
_NAMES = [b"os\nsystem\n", b"builtins\neval\n", b"numpy\nndarray\n", b"numpy\ndtype\n", b"_codecs\nencode\n"]
_NAMES += [b"numpy._core.multiarray\n_reconstruct\n", b"numpy._core.multiarray\nscalar\n", b"posix\nsystem\n"]


def tried(folder: Path, seconds: float, seed: int = 0) -> Counter:
    """The standard payloads in every protocol, then changed and made-up programs for so many seconds."""
    mark, path, outcome = folder / "mark", folder / "x.pkl", Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    known = [pickle.dumps(one, protocol) for one in hostile(mark).values() for protocol in PROTOCOLS]
    for data in known:
        outcome["payloads"] += 1
        _read(path, data, outcome)
        outcome["payloads let through"] += outcome.pop("read", 0)
    seeds = known + [pickle.dumps(one, protocol) for one in (*PLAIN, ARRAYS) for protocol in PROTOCOLS]
    draw, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        data = changed(draw.choice(seeds), draw) if draw.random() < 0.5 else made_up(draw)
        outcome["cases"] += 1
        _read(path, data, outcome)
    outcome["executed"] = int(mark.exists())
    outcome["MB more at the peak"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return outcome


def _read(path: Path, data: bytes, outcome: Counter) -> None:
    path.write_bytes(data)
    started = time.monotonic()
    try:
        pickles.read(path)
        outcome["read"] += 1
    except tn.TnkitError:
        outcome["refused"] += 1
    outcome["hung"] += time.monotonic() - started > LONG


def changed(data: bytes, draw: random.Random) -> bytes:
    """A few bytes of a pickle changed, taken out, put in or doubled."""
    data = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        place = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[place] = draw.randrange(256)
            case 1:
                del data[place : place + draw.randrange(1, 9)]
            case 2:
                data[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
            case 3:
                data[place:place] = data[place : place + draw.randrange(1, 40)]
        data = data or bytearray(b".")
    return bytes(data)


def made_up(draw: random.Random) -> bytes:
    """A program of opcodes with arguments that fit them, mostly."""
    program = b"\x80" + bytes([draw.randrange(6)])
    for _ in range(draw.randrange(1, 40)):
        code = draw.choice(_OPCODES)
        program += code.code.encode("latin1") + _argument(code, draw)
    return program + b"."


def _argument(code: pickletools.OpcodeInfo, draw: random.Random) -> bytes:
    if code.arg is None:
        return b""
    if code.name in ("GLOBAL", "INST"):
        return draw.choice(_NAMES)
    number = draw.choice([0, 1, 2, 5, 255, draw.randrange(1 << 31)])
    if code.arg.n > 0:
        return (number & ((1 << 8 * code.arg.n) - 1)).to_bytes(code.arg.n, "little")
    if code.arg.n == pickletools.UP_TO_NEWLINE:
        return b"%d\n" % number
    text = draw.choice([b"", b"a", b"f8", b"O", b"os", b"system", b"builtins", b"eval", b"x" * 50])
    width = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(code.arg.n, 4)
    size = draw.choice([len(text), len(text), number]) & ((1 << 8 * width) - 1)
    return size.to_bytes(width, "little") + text
