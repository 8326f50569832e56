"""Hashes of a model's weights: `hash_of` reads every byte, `hash_now` only where one has changed.

`hash_of` runs where the weights are, so that a server gives the same hash of a model as this machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from tnkit.models.maps import adapters_of, entries, leaves
from tnkit.models.reading import real, whole
from tnkit.storage import tensor_bytes

_ROW = 1 << 14  # words of a weight that are hashed together
_PIECE = 1 << 24  # bytes that a thread hashes at a time
_KNOWN: dict[bytes, str] = {}  # hashes, by the XXH3 of the same weights


def hash_of(module: Any) -> str:
    """A hash of every parameter's name, shape, dtype and bytes (32 hex digits).

    Of a quantised weight it reads what that is made of; of adapters also which of them act, and how strongly.

    Args:
        module: a PyTorch module, or nnsight's wrapper of one.

    >>> from tnkit.testing import tiny_module
    >>> hash_of(tiny_module("llama")) == hash_of(tiny_module("llama")) != hash_of(tiny_module("gpt2"))
    True
    """
    digest, hashes, kept = hashlib.sha256(), {}, list[Any]()  # kept, so that no two have one id
    for name, tensor in entries(module):
        if id(tensor) not in hashes:  # tied weights are read once
            hashes[id(tensor)] = _hashed(whole(real(module, name, tensor).detach()) if _is(tensor) else tensor)
            kept.append(tensor)
        digest.update(f"{_said(name, tensor)} {hashes[id(tensor)]}\n".encode())
    digest.update("".join(map(repr, adapters_of(module))).encode())
    return digest.hexdigest()[:32]


def hash_now(module: nn.Module) -> str:
    """`hash_of`, computed again only where a byte has changed, which XXH3 detects several times as fast."""
    state = dict(entries(module))
    if any(tensor.device.type != "cpu" for tensor in state.values() if _is(tensor)):
        return hash_of(module)
    once = {id(tensor): tensor for tensor in state.values()}  # tied weights are read once
    pieces = [(key, piece) for key, tensor in once.items() for piece in _pieces(tensor)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        hashes = threads.map(lambda piece: xxhash.xxh3_128(piece[1]).digest(), pieces)
    read = dict.fromkeys(once, b"")
    for (key, _), hashed in zip(pieces, hashes, strict=True):
        read[key] += hashed
    digest = xxhash.xxh3_128()
    for name, tensor in state.items():
        digest.update(f"{_said(name, tensor)}\n".encode() + read[id(tensor)])
    digest.update("".join(map(repr, adapters_of(module))).encode())
    if (current := digest.digest()) not in _KNOWN:
        _KNOWN[current] = hash_of(module)
    return _KNOWN[current]


def _pieces(entry: Any) -> Iterator[memoryview | bytes]:
    """The bytes of an entry, in pieces that several threads can read at a time."""
    for leaf in leaves(entry):
        content = tensor_bytes(leaf) if _is(leaf) else repr(leaf).encode()
        yield from (content[start : start + _PIECE] for start in range(0, max(1, len(content)), _PIECE))


def versions_of(module: nn.Module) -> list[Any]:
    """What an edit in place or an exchange of weights changes at once, without reading them.

    An edit through `.data`, or by a fused optimiser, changes none of it: only a hash tells. Weights that accelerate
    offloads are left out, for it exchanges them in each pass, and those of a module in which a pass stops stay there.

    >>> layer = nn.Linear(2, 2)
    >>> before = versions_of(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(1)
    >>> versions_of(layer) == before
    False
    """
    moved = {id(weight) for child in module.modules() if _is_offloaded(child) for weight in child.parameters()}
    weights = [weight for weight in (*module.parameters(), *_packed(module)) if id(weight) not in moved]
    tensors = [leaf for weight in weights for leaf in leaves(weight) if _is(leaf)]
    versions = [(id(t), t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]
    return [*versions, *adapters_of(module)]


def _is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings the weights of a module for each pass."""
    outer = getattr(module, "_hf_hook", None)
    return any(getattr(hook, "offload", False) for hook in (outer, *getattr(outer, "hooks", ())))


def _packed(module: nn.Module) -> Iterator[Tensor]:
    """Buffers that may hold quantised weights: matrices that are saved with the model."""
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.ndim > 1 and name not in child._non_persistent_buffers_set:
                yield buffer


def _is(value: Any) -> bool:
    """Whether an entry of a module's state is a tensor; some formats keep numbers and words beside theirs."""
    return isinstance(value, Tensor)


def _said(name: str, entry: Any) -> str:
    return f"{name} {tuple(entry.shape)} {entry.dtype}" if _is(entry) else name


def _hashed(entry: Any) -> list[Any]:
    """`row_sums` of a tensor, or of each that an entry is made of."""
    if _is(entry) and not hasattr(entry, "__tensor_flatten__"):
        return row_sums(entry)
    return [row_sums(leaf) if _is(leaf) else leaf for leaf in leaves(entry)]


def row_sums(tensor: Tensor) -> list[int]:
    """Multilinear hashes (Lemire & Kaser, 2014) of a tensor's bytes, 64 KiB at a time.

    Each is the sum, mod 2^64, of 32-bit words times odd keys that depend on the position of the word. Integers are
    exact, so every device gives the same result, at about the speed of its memory.
    """
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    if data.storage_offset() % 4:
        data = data.clone()
    size = 4 * _ROW
    end = len(data) // size * size
    keys = torch.arange(1, _ROW + 1, device=data.device) * -7046029254386353131  # mixed as splitmix64 does
    keys = (keys ^ keys >> 30) * -4658895280553007687
    keys = (keys ^ keys >> 27) | 1
    rest = torch.nn.functional.pad(data[end:], (0, size - len(data) + end))
    step = 8 if data.device.type == "cpu" else 1024  # rows at a time: so many threads share, and a cache holds
    rows = [(part * keys).sum(dim=1) for part in data[:end].view(torch.int32).view(-1, _ROW).split(step)]
    return torch.cat([*rows, (rest.view(torch.int32) * keys).sum()[None]]).tolist()
