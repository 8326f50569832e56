"""Hashes of a model's weights: `hash_of` reads every byte, `hash_now` only where one has changed.

`hash_of` runs where the weights are, so that a server gives the same hash of a model as this machine.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from tnkit.models.reading import real, whole
from tnkit.storage import tensor_bytes

_ROW = 1 << 14  # words of a weight that are hashed together
_KNOWN: dict[bytes, str] = {}  # hashes, by the XXH3 of the same weights


def hash_of(module: Any) -> str:
    """A hash of every parameter's name, shape, dtype and bytes (32 hex digits).

    Args:
        module: a PyTorch module, or nnsight's wrapper of one.

    >>> from tnkit.testing import tiny_module
    >>> hash_of(tiny_module("llama")) == hash_of(tiny_module("llama")) != hash_of(tiny_module("gpt2"))
    True
    """
    digest, hashes = hashlib.sha256(), {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in hashes:  # tied weights are read once
            hashes[id(tensor)] = row_sums(whole(real(module, name, tensor).detach()))
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {hashes[id(tensor)]}\n".encode())
    return digest.hexdigest()[:32]


def hash_now(module: nn.Module) -> str:
    """`hash_of`, computed again only where a byte has changed, which XXH3 detects several times as fast."""
    state = module.state_dict(keep_vars=True)
    if any(tensor.device.type != "cpu" for tensor in state.values()):
        return hash_of(module)
    seen, digest = set(), xxhash.xxh3_128()
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {id(tensor) in seen}\n".encode())
        if id(tensor) not in seen:
            digest.update(tensor_bytes(tensor))
        seen.add(id(tensor))
    if (current := digest.digest()) not in _KNOWN:
        _KNOWN[current] = hash_of(module)
    return _KNOWN[current]


def versions_of(module: nn.Module) -> list[Any]:
    """What an edit in place or an exchange of weights changes at once, without reading them.

    An edit through `.data`, or by a fused optimiser, changes none of it: only a hash tells. Weights that accelerate
    offloads are left out, for it exchanges them in each pass.

    >>> layer = nn.Linear(2, 2)
    >>> before = versions_of(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(1)
    >>> versions_of(layer) == before
    False
    """
    weights = [weight for weight in module.parameters() if not weight.is_meta]
    return [(id(w), w.data_ptr(), None if w.is_inference() else w._version) for w in weights]


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
    step = 1 if data.device.type == "cpu" else 1024  # rows at a time: one stays in a processor's cache
    rows = [(part * keys).sum(dim=1) for part in data[:end].view(torch.int32).view(-1, _ROW).split(step)]
    return torch.cat([*rows, (rest.view(torch.int32) * keys).sum()[None]]).tolist()
