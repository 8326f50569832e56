"""A digest of all in a live module that decides its numbers, for the cache: `live`, `settings`, and `untold`."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import FunctionType, MethodType
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from tnkit import storage
from tnkit.models.hooks import hooks_of, is_foreign, is_ours, origin, without_ablations
from tnkit.models.maps import leaves
from tnkit.models.sessions import TURN

FORMAT = 1  # raise it where the same model and sentences give other numbers than before, beyond rounding
_BOOKKEEPING = {*vars(nn.Module()), "forward", "generate", "__nnsight__", "name_or_path"} - {"training"}
_NOTED = {"architectures", "dtype", "transformers_version", "_name_or_path"}  # what saving writes to a configuration
_DEPTH = 4  # of containers in an attribute
_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.Size)


def digest(weights: str, dtype: torch.dtype, sites: object, beside: Iterable[Any]) -> str:
    """24 hex digits of what decides numbers, together with the versions of the loaded packages and of tnkit's numbers.

    >>> digest("w", torch.float32, "s", [1]) == digest("w", torch.float32, "s", [2])
    False
    """
    packages = {name: version for name, version in storage.versions().items() if name != "tnkit"}
    about = [FORMAT, weights, str(dtype), str(sites), sorted(packages.items()), *beside]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]


def settings(module: nn.Module) -> str:
    """A digest of what decides a module's numbers beside weights and hooks: buffers, attributes, code and kernels.

    >>> from tnkit.testing import tiny_module
    >>> settings(tiny_module("llama")) == settings(tiny_module("llama")) != settings(tiny_module("gpt2"))
    True
    """
    structure = [(*rest, len(devices)) for *rest, devices, _ in _structure(module)]
    return hashlib.sha256(repr([_kernels(), structure]).encode()).hexdigest()


def live(module: nn.Module, read: Iterable[nn.Module], ids: Tensor) -> list[Any]:
    """What decides a module's numbers beside its weights, as it is now.

    It holds of each submodule its class, the code of its `forward`, its hooks, and its attributes that are numbers,
    words, functions or tensors, and the settings of PyTorch's kernels. What these do not tell, such as a patched
    function, the states of a short text do.

    Args:
        module: a transformers model.
        read: submodules whose states are taken.
        ids: token ids of the text, (1, token), on the module's device.
    """
    return [_kernels(), list(_structure(module)), _probed(module, read, ids)]


def untold(module: nn.Module, *, ablated: bool) -> str | None:
    """Why a module's numbers cannot be told from what is known of it; None where they can.

    Args:
        module: a transformers model.
        ablated: whether its ablations are known.
    """
    modules = list(module.named_modules())
    hooks = [pair for path, child in modules for pair in hooks_of(path or "the model", child)]
    for owner, hook in [*hooks_of("every module", nn.modules.module, "_global"), *hooks]:
        if is_foreign(hook):
            return f"{owner} has a forward hook of {origin(hook)}"
        if is_ours(hook) and not ablated:
            return f"{owner} has the hook of an ablation that was made through another model of the same module"
    for path, child in modules:
        forwards = [vars(cls).get("forward") for cls in type(child).__mro__]
        if _forward(child) not in forwards and not hasattr(child, "_hf_hook"):  # accelerate's, which moves weights
            return f"{path or 'the model'} has a forward of its own"
    return None


def _forward(module: nn.Module) -> Any:
    """The function that a call of a module runs: nnsight keeps it when it puts its own in that place."""
    forward = vars(module).get("forward")
    return type(module).forward if forward is None else getattr(getattr(forward, "state", None), "original", forward)


def _kernels() -> list[Any]:
    """The settings of PyTorch that decide how a product is rounded; the number of threads is not among them."""
    cuda = torch.backends.cuda
    asked = [torch.get_float32_matmul_precision, torch.are_deterministic_algorithms_enabled, torch.get_default_dtype]
    asked += [cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled, cuda.cudnn_sdp_enabled]
    flags = [cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.mkldnn.enabled]
    flags += [cuda.matmul.allow_bf16_reduced_precision_reduction, cuda.matmul.allow_fp16_reduced_precision_reduction]
    return [*(question() for question in asked), *flags]


def _structure(module: nn.Module) -> Iterator[Any]:
    """Of each submodule its class, code, hooks, buffers and attributes."""
    configs: dict[int, str] = {}
    for path, child in module.named_modules():
        own = {name: value for name, value in vars(child).items() if name not in _BOOKKEEPING}
        for name, value in own.items():
            if hasattr(value, "to_json_string"):  # a configuration, which many modules share
                if id(value) not in configs:
                    configs[id(value)] = repr(_settings_of(json.loads(value.to_json_string(use_diff=False))))
                own[name] = configs[id(value)]
        buffers = {name: tensor for name, tensor in child._buffers.items() if tensor is not None}
        devices = {
            tensor.device.type for tensor in (*child._parameters.values(), *buffers.values()) if tensor is not None
        }
        hooks = [hook for _, hook in hooks_of(path, child) if not is_ours(hook)]
        yield (path, _named(type(child)), *map(_said, (_forward(child), own, buffers, sorted(devices), hooks)))


def _settings_of(config: Any) -> Any:
    """A configuration, and those inside it, without what `save_pretrained` notes there: saving changes no number."""
    if isinstance(config, dict):
        return {key: _settings_of(value) for key, value in config.items() if key not in _NOTED}
    return config


def _said(value: Any, depth: int = 0) -> Any:
    """What an attribute says, the same in every process; of an object that is none of these, its class."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            return [_said(leaf, depth + 1) for leaf in leaves(value)]
        return tuple(value.shape), str(value.dtype), xxhash.xxh3_128_hexdigest(storage.tensor_bytes(value))
    if isinstance(value, MethodType | functools.partial | FunctionType):
        return _function(value, depth)
    if depth < _DEPTH and isinstance(value, Mapping):
        return sorted((repr(key), _said(one, depth + 1)) for key, one in value.items())
    if depth < _DEPTH and isinstance(value, list | tuple | set | frozenset):
        said = [_said(one, depth + 1) for one in value]
        return sorted(said, key=repr) if isinstance(value, set | frozenset) else said
    return _named(value if isinstance(value, type) else type(value))


def _function(value: Any, depth: int) -> Any:
    """A function's name, code, defaults and the values it was made around, and those of what it wraps."""
    value = getattr(value, "__func__", value)
    if isinstance(value, functools.partial):
        return "partial", *(_said(one, depth + 1) for one in (value.func, value.args, value.keywords))
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != type(cell)()]
    around = (
        [_said(one, depth + 1) for one in (cells, value.__defaults__, value.__kwdefaults__)] if depth < _DEPTH else []
    )
    return _named(value), _code(value.__code__), around


def _code(code: Any) -> list[Any]:
    """What a code object does, without the lines and the file it comes from."""
    parts = [_code(const) if hasattr(const, "co_code") else _said(const) for const in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_varnames, parts]


def _named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _probed(module: nn.Module, read: Iterable[nn.Module], ids: Tensor) -> str:
    """A digest of the states of a short text, computed by one thread, so that any number of threads gives the same."""
    states = xxhash.xxh3_128()

    def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for value in (*args[:1], output[0] if isinstance(output, tuple) else output):
            states.update(storage.tensor_bytes(value) if isinstance(value, Tensor) else b"")

    with TURN, without_ablations(module), torch.no_grad(), ExitStack() as stack:
        for child in read:
            stack.enter_context(child.register_forward_hook(note))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        decoder = getattr(module, "base_model", module)  # without the head, which costs as much and is not noted
        decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return states.hexdigest()
