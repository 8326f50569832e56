"""The last linear map of an MLP, whatever it is made of: a plain matrix is read, any other map is asked.

A quantised weight, an adapter beside a weight, or a parametrised one is asked what it makes of unit vectors, so that no
format is named here. That it is linear is proved when a model is loaded (`tnkit.models.proofs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn

from tnkit import storage
from tnkit.errors import TnkitError

_UNITS = 1024  # unit vectors sent through a map at a time
_KEPT_BYTES = 2 << 30  # of answers, at most
_KEPT: WeakKeyDictionary[nn.Module, tuple[str, Tensor, Tensor]] = WeakKeyDictionary()


def is_plain(last_map: nn.Module) -> bool:
    """Whether a map does what its weight says: a floating-point matrix in its own parameter, with nothing beside it.

    >>> is_plain(nn.Linear(2, 2)), is_plain(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    (True, False)
    """
    weight, names = last_map._parameters.get("weight"), {name for name, _ in last_map.named_parameters()}
    return (
        weight is not None
        and weight.ndim == 2
        and weight.dtype.is_floating_point
        and weight.dtype.itemsize > 1
        and (type(weight) is nn.Parameter or hasattr(weight, "full_tensor"))
        and (type(last_map).forward is nn.Linear.forward or type(last_map).__name__ == "Conv1D")
        and names <= {"weight", "bias"}
        and not last_map._buffers
    )


def inputs_of(last_map: nn.Module) -> int:
    """How many neurons a map that is not plain reads.

    Raises:
        TnkitError: where it does not say.
    """
    count = getattr(last_map, "in_features", None)
    if not isinstance(count, int):
        raise TnkitError(
            f"{type(last_map).__name__}, the last linear map of an MLP, does not say how many inputs it has "
            "(in_features); load the model without quantisation"
        )
    return count


def asked(last_map: nn.Module, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a map makes of unit vectors, (neuron, hidden), beyond what it makes of none, its bias (hidden,).

    Answers are kept as long as no byte of the map changes, 2 GiB of them at most. Hooks of the map itself, such as an
    ablation's, do not act.

    Args:
        last_map: any module that says how many inputs it has.
        dtype: of the activations that enter it.
        device: where it computes.

    >>> last_map = nn.Linear(3, 2)
    >>> vectors, bias = asked(last_map, torch.float32, torch.device("cpu"))
    >>> torch.allclose(vectors, last_map.weight.T, atol=1e-6), torch.equal(bias, last_map.bias)
    (True, True)
    """
    digest = _digest(last_map, dtype)
    if digest and last_map in _KEPT and _KEPT[last_map][0] == digest:
        return _KEPT[last_map][1:]
    count = inputs_of(last_map)
    with torch.no_grad():
        bias = last_map.forward(torch.zeros(1, count, dtype=dtype, device=device))[0]
        rows = [last_map.forward(units) - bias for units in torch.eye(count, dtype=dtype, device=device).split(_UNITS)]
    vectors = torch.cat(rows)
    _KEPT.pop(last_map, None)
    if digest and vectors.nbytes + sum(kept.nbytes for _, kept, _ in _KEPT.values()) <= _KEPT_BYTES:
        _KEPT[last_map] = digest, vectors, bias
    return vectors, bias


def entries(module: Any) -> Iterator[tuple[str, Any]]:
    """What a module's state holds, by name, as `state_dict` does, but nothing is changed by reading it.

    On a CPU the 4-bit weights of bitsandbytes 0.50 are packed anew, and wrongly, once `state_dict` has unpacked them.

    Args:
        module: a PyTorch module, or nnsight's wrapper of one.

    >>> [name for name, _ in entries(nn.Sequential(nn.Linear(2, 2)))]
    ['0.weight', '0.bias']
    """
    if not isinstance(module, nn.Module):
        yield from module.state_dict(keep_vars=True).items()
        return
    for path, child in module.named_modules(remove_duplicate=False):
        state: dict[str, Any] = {}
        quantised = getattr(child._parameters.get("weight"), "quant_state", None)
        if quantised is not None:
            state = {name: value for name, value in child._parameters.items() if value is not None}
            state["weight.quant_state"] = quantised
        elif type(child).state_dict is not nn.Module.state_dict:
            state = child.state_dict()
        else:
            child._save_to_state_dict(state, "", keep_vars=True)
        for name, value in state.items():
            yield f"{path}.{name}" if path else name, value


def leaves(value: Any, depth: int = 4) -> Iterator[Any]:
    """The plain tensors that an entry of a module's state is made of, and what else decides it, as text.

    >>> [leaf.tolist() for leaf in leaves(torch.ones(2))], list(leaves({"bits": 4}))
    ([[1.0, 1.0]], ['bits', '4'])
    """
    if isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        names, context = value.__tensor_flatten__()
        for name in names:
            yield from leaves(getattr(value, name), depth - 1)
        yield repr(context)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping) or (hasattr(value, "__dict__") and not isinstance(value, type)):
        for name, entry in (value if isinstance(value, Mapping) else vars(value)).items() if depth else ():
            yield str(name)
            yield from leaves(entry, depth - 1)
    else:
        yield repr(value)


def adapters_of(module: nn.Module) -> list[Any]:
    """Which adapters of PEFT act, and how strongly; no tensor says it.

    >>> adapters_of(nn.Linear(2, 2))
    []
    """
    names = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
    return [
        (path, *(repr(getattr(child, name, None)) for name in names))
        for path, child in module.named_modules()
        if isinstance(getattr(child, "_disable_adapters", None), bool)
    ]


def _digest(last_map: nn.Module, dtype: torch.dtype) -> str:
    """Of all bytes of a map; empty where they are not here."""
    digest = xxhash.xxh3_128(repr([str(dtype), last_map.training, adapters_of(last_map)]).encode())
    for name, value in chain(entries(last_map), last_map.named_buffers()):
        digest.update(name.encode())
        for leaf in leaves(value):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                return ""
            digest.update(storage.tensor_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
    return digest.hexdigest()
