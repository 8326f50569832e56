"""All in a live model that decides its numbers: `fingerprint` for the cache, `check_repeatable` before each pass."""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor, nn

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.models.remote import server_of
from tnkit.models.sessions import TURN

if TYPE_CHECKING:
    from tnkit.models.model import Model

FORMAT = 1  # raise it where the same model and sentences give other numbers than before, beyond rounding
_LOG = logging.getLogger("tnkit")
_OURS = ("tnkit.interventions.ablation.", "tnkit.interventions.scopes.")  # hooks of ablations
_KNOWN = (*_OURS, "torch.", "transformers.", "accelerate.")  # hooks from here are part of the model, or in the key
_PROBE = "Languages meet in the middle, 2 by 2; 言葉は中で出会う。"
_TOKENS = 8  # of the probe
_BOOKKEEPING = {*vars(nn.Module()), "forward", "generate", "__nnsight__", "name_or_path"} - {"training"}
_DEPTH = 4  # of containers in an attribute
_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.Size)


def check_repeatable(module: nn.Module) -> None:
    """Refuse a pass whose numbers another pass would not give again, or would round in another way.

    Raises:
        TnkitError: for a module in training mode, which may draw at random, or under `torch.autocast`.

    >>> check_repeatable(nn.Linear(2, 2).eval())
    >>> check_repeatable(nn.Sequential(nn.Linear(2, 2)))
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: Sequential is in training mode (it, or 0 in it), where dropout draws at random; call ...
    """
    name = type(module).__name__
    for path, child in module.named_modules():
        if child.training:
            inner = next((path for path, child in module.named_modules() if path and child.training), path)
            raise TnkitError(
                f"{name} is in training mode (it, or {inner} in it), where dropout draws at random; call .eval() on it"
            )
    for device in {tensor.device.type for tensor in module.parameters()} - {"meta"}:
        if torch.is_autocast_enabled(device):
            raise TnkitError(
                f"torch.autocast is on, so {name} would compute in {torch.get_autocast_dtype(device)} and not in its "
                "own dtype; leave the autocast context, or load the model with dtype='bfloat16'"
            )


@contextmanager
def hooks_checked(model: Model) -> Iterator[bool]:
    """A context in which hooks that are not tnkit's may watch what is read, but not change it; whether there are any.

    States are read before a forward hook acts on them, and after a pre-hook of the norm or block that they go into.

    Raises:
        TnkitError: in a pass, for a hook that changes what is read; it names module and hook, and how to remove it.
    """
    sites = [site for site in (model.sites.mid, model.sites.attention, model.sites.norm) if site]
    if model.remote:
        yield False
        return
    for _, hook in _hooks("", nn.modules.module, "_global"):
        if _foreign(hook):
            raise TnkitError(
                f"every module has the hook {_called(hook)}, which may change states after they are read; call "
                "remove() on the handle that registering it returned"
            )
    hooked = False
    with ExitStack() as stack:
        for number, block in enumerate(attrgetter(model.blocks_path)(model.module)):
            here = [("", block), *((f".{site}", attrgetter(site)(block)) for site in (*sites, model.sites.last_map))]
            for path, child in here:
                where = f"{model.blocks_path}.{number}{path}"
                hooked |= _compare(stack, where, child._forward_hooks, child.register_forward_hook)
                if path[1:] not in (model.sites.last_map, model.sites.attention):  # read, or not, after those act
                    hooked |= _compare(stack, where, child._forward_pre_hooks, child.register_forward_pre_hook)
        yield hooked


def check_ready(model: Model) -> None:
    """Refuse to predict tokens with a model that has no head, was changed since loading, or would draw at random.

    Raises:
        TnkitError: for a model without a head, and as `Model.check_unchanged` and `check_repeatable` do.
    """
    if not model.module.can_generate():
        raise TnkitError(f"{model.name} has no output head to predict tokens; load it with AutoModelForCausalLM")
    model.check_unchanged()
    check_repeatable(model.module)


def settings(model: Model) -> str:
    """A digest of what decides a model's numbers beside weights and hooks: buffers, attributes, code and kernels.

    >>> from tnkit.testing import tiny_model
    >>> settings(tiny_model("llama")) == settings(tiny_model("llama")) != settings(tiny_model("gpt2"))
    True
    """
    if model.remote or model.sharded:
        return ""
    structure = [(*rest, len(devices)) for *rest, devices, _ in _structure(model.module)]
    return hashlib.sha256(repr([_kernels(), structure]).encode()).hexdigest()


def fingerprint(model: Model) -> str | None:
    """Of all in a model that decides its numbers, as it is now; None, with a warning, where that cannot be told.

    It holds the bytes of weights and buffers; the configuration and the attention implementation; of each submodule its
    class, the code of its `forward`, its hooks, and its attributes that are numbers, words, functions or tensors; the
    settings of PyTorch's kernels; the versions of the loaded packages, and of tnkit's numbers. What these do not tell,
    such as a patched function, a short probe sentence does: its states are in the fingerprint, too.

    It cannot be told under a forward hook that is not tnkit's, where a module's own `forward` was replaced, and for a
    model that is spread over processes or whose server does not show its weights.

    >>> from tnkit.testing import tiny_model
    >>> fingerprint(tiny_model("llama")) == fingerprint(tiny_model("llama")) != fingerprint(tiny_model("gpt2"))
    True
    """
    if reason := _untold(model):
        _LOG.warning("%s, so nothing is read from the cache or kept", reason)
        return None
    packages = {name: version for name, version in storage.versions().items() if name != "tnkit"}
    about = [FORMAT, model.weights_hash, str(model.dtype), str(model.sites), sorted(packages.items())]
    if model.remote:
        about += [server_of(model.remote)]
    else:
        about += [_kernels(), list(_structure(model.module)), _probed(model)]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]


def _untold(model: Model) -> str | None:
    """Why a model's numbers cannot be told from what is known of it."""
    if model.remote:
        named = model.weights_hash.startswith("named:")
        return f"the weights of {model.name} cannot be read on its server" if named else None
    if model.sharded:
        return f"{model.name} is spread over processes"
    if any(weight.is_meta for weight in model.module.parameters()):
        return f"weights of {model.name} are offloaded"
    modules = list(model.module.named_modules())
    hooks = [pair for path, child in modules for pair in _hooks(path or "the model", child)]
    for owner, hook in [*_hooks("every module", nn.modules.module, "_global"), *hooks]:
        origin = f"{_origin(hook)}."
        if _foreign(hook):
            return f"{owner} has a forward hook of {_origin(hook)}"
        if origin.startswith(_OURS) and not model.ablations:
            return f"{owner} has the hook of an ablation that was made through another model of the same module"
    for path, child in modules:
        forwards = [vars(cls).get("forward") for cls in type(child).__mro__]
        if _forward(child) not in forwards and not hasattr(child, "_hf_hook"):  # accelerate's, which moves weights
            return f"{path or 'the model'} has a forward of its own"
    return None


def _hooks(path: str, owner: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The forward hooks of a module, or of all."""
    names = (f"{prefix}_forward_hooks", f"{prefix}_forward_pre_hooks")
    return [(path, hook) for name in names for hook in getattr(owner, name).values()]


def _foreign(hook: Any) -> bool:
    return not f"{_origin(hook)}.".startswith(_KNOWN)


def _called(hook: Any) -> str:
    """A hook's module and name, for messages."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return f"{_origin(hook)}.{getattr(hook, '__qualname__', type(hook).__qualname__)}"


def _compare(stack: ExitStack, where: str, hooks: Mapping[int, Any], register: Callable[..., Any]) -> bool:
    """Compare what comes before and after a module's own hooks of one kind; whether some are not tnkit's."""
    names = [_called(hook) for hook in hooks.values() if _foreign(hook)]
    if not names:
        return False
    before: list[Tensor | None] = [None]

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        before[0] = state(args, kwargs, output).clone()

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        if before[0] is None or not torch.equal(before[0], state(args, kwargs, output)):
            raise TnkitError(
                f"{where} has the hook {', '.join(names)}, which changes a state that tnkit reads without it; call "
                f"remove() on the handle that registering it returned, or load the model again"
            )

    def state(args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]) -> Tensor:
        value = output[0] if output else args[0] if args else next(iter(kwargs.values()))
        return value[0] if isinstance(value, tuple) else value

    for hook, first in ((note, True), (check, False)):
        stack.callback(register(hook, prepend=first, with_kwargs=True).remove)
    return True


def _origin(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__module__", None) or type(hook).__module__


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
                    configs[id(value)] = value.to_json_string(use_diff=False)
                own[name] = configs[id(value)]
        buffers = {name: tensor for name, tensor in child._buffers.items() if tensor is not None}
        devices = {
            tensor.device.type for tensor in (*child._parameters.values(), *buffers.values()) if tensor is not None
        }
        hooks = [hook for _, hook in _hooks(path, child) if not f"{_origin(hook)}.".startswith(_OURS)]
        yield (path, _named(type(child)), *map(_said, (_forward(child), own, buffers, sorted(devices), hooks)))


def _said(value: Any, depth: int = 0) -> Any:
    """What an attribute says, the same in every process; of an object that is none of these, its class."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
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
    if isinstance(value, functools.partial):
        return "partial", *(_said(one, depth + 1) for one in (value.func, value.args, value.keywords))
    value = getattr(value, "__func__", value)
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


def _probed(model: Model) -> str:
    """A digest of the states of a short sentence in every layer, by one thread, so that any number gives the same."""
    module, digest = model.module, xxhash.xxh3_128()
    blocks = attrgetter(model.blocks_path)(module)
    maps = map(attrgetter(model.sites.last_map), blocks)
    read = [*blocks, *maps, *([module.get_submodule(model.final_norm_path)] if model.final_norm_path else [])]

    def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for value in (*args[:1], output[0] if isinstance(output, tuple) else output):
            digest.update(storage.tensor_bytes(value) if isinstance(value, Tensor) else b"")

    ids = torch.tensor([model.tokenizer(_PROBE, verbose=False)["input_ids"][:_TOKENS]], device=model.device)
    threads = torch.get_num_threads()
    with TURN, _without_ablations(module), torch.inference_mode():
        handles = [part.register_forward_hook(note) for part in read]
        try:
            torch.set_num_threads(1)
            module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            torch.set_num_threads(threads)
            for handle in handles:
                handle.remove()
    return digest.hexdigest()


@contextmanager
def _without_ablations(module: nn.Module) -> Iterator[None]:
    """Take tnkit's hooks off for a moment: they count what they set, and the key names them anyway."""
    kept = []
    for child in module.modules():
        for hooks in (child._forward_hooks, child._forward_pre_hooks):
            ours = [number for number, hook in hooks.items() if f"{_origin(hook)}.".startswith(_OURS)]
            if ours:
                kept.append((hooks, hooks.copy()))
            for number in ours:
                del hooks[number]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)
