"""What is asked of a loaded model before anything else: are its neurons read rightly, and which weights are these?

Both questions are put where the weights are, so that they can be put to a remote model as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor, nn

from tnkit.architecture import Sites, whole
from tnkit.errors import TnkitError
from tnkit.storage import tensor_bytes
from tnkit.trace import OutOfOrderError, trace_blocks

if TYPE_CHECKING:
    from tnkit.models import Model

_PROBE = "Languages meet in the middle, 2 by 2; 言葉は中で出会う。"
_ROW = 1 << 14  # words of a weight that are hashed together
_KNOWN: dict[bytes, str] = {}  # weights hashes, by the XXH3 of the same weights


def completeness_error(model: Model) -> Float[Tensor, "layer"]:
    """How far mid + sum of contributions + bias is from post, layer by layer, on a short text.

    What rounding post may account for is taken off; the rest is relative to the size of the MLP branch's output, at the
    worst of the tokens. A wrong reading gives about 1, a right one 1e-6 (float32) to 1e-2 (bfloat16). The token that
    many models give a coordinate of 10^5 says little here, since half precision rounds that away by more than the
    branch; the others say it.

    >>> from tnkit.tests.tiny import tiny_model
    >>> bool((completeness_error(tiny_model("bloom")) < 1e-5).all())
    True
    """
    return _probed(model)[0]


def proved(model: Model, readings: Iterable[Sites]) -> Model:
    """The model with the first reading of its blocks that is complete.

    Raises:
        TnkitError: where none is, or where its states are not finite.
    """
    tried = []
    for sites in readings:
        candidate = replace(model, sites=sites)
        try:
            errors, fine = _probed(candidate)
        except OutOfOrderError:  # a site that runs after the neurons is not what the branch is added to
            errors, fine = torch.full((model.n_layers,), torch.inf), True
        if bool(errors.isnan().any()):
            raise TnkitError(
                f"{model.name} computes values that are not finite, first in layer {int(errors.isnan().int().argmax())}"
                f", in {str(model.dtype).removeprefix('torch.')}; try dtype='bfloat16' or 'float32', whose range is "
                "wider than float16's; if that fails too, its weights are damaged"
            )
        tolerance = 1e-3 if fine else 0.05
        if bool((errors <= tolerance).all()):
            return candidate
        tried.append((float(errors.max()), int(errors.argmax()), sites))
    error, layer, best = min(tried, key=lambda one: one[0])
    raise TnkitError(
        f"{type(model.lm._module).__name__} is not an architecture that tnkit reads rightly: in layer {layer}, mid + "
        f"sum of contributions + bias misses post by {error:.2g} of the MLP branch's size (allowed {tolerance:g}) with "
        f"{best} in {model.blocks_path}.{layer}; its blocks need a reading in tnkit/architecture.py"
    )


def _probed(model: Model) -> tuple[Float[Tensor, "layer"], bool]:
    """The completeness error of each layer, and whether the model computes in float32 or better."""
    ids = model.tokenizer(_PROBE)["input_ids"][:8]
    lengths = torch.arange(1, len(ids) + 1)
    mask = (torch.arange(len(ids)) < lengths[:, None]).long()
    found = trace_blocks(
        model,
        {
            "input_ids": (torch.tensor(ids) * mask).to(model.device),
            "attention_mask": mask.to(model.device),
            "use_cache": False,
        },
        lengths.to(model.device) - 1,
        layers=range(model.n_layers),
        keep=("mid", "post", "activations", "scale"),
        reduce=_incompleteness if model.remote else None,
    )
    if not model.remote:  # outside the pass, where weights that are spread over processes can be gathered
        weights = (model.value_vectors, model.output_gain, model.output_bias)
        sites = [{site: kept[layer] for site, kept in found.items()} for layer in range(model.n_layers)]
        checked = [_incompleteness(layer, one, *(ask(layer) for ask in weights)) for layer, one in enumerate(sites)]
        found = {name: [one[name] for one in checked] for name in checked[0]}
    return torch.stack([error.cpu() for error in found["error"]]), float(found["rounding"][0]) < 1e-6


def _incompleteness(
    _: int, sites: Mapping[str, Tensor], vectors: Tensor, gain: Tensor, bias: Tensor
) -> dict[str, Tensor]:
    """Of one layer, by how much its parts miss its output; it runs where the model does."""
    mid, post, activations = (sites[site].float() for site in ("mid", "post", "activations"))
    branch = sites["scale"][:, None] * gain * (activations @ vectors.float() + bias)
    eps = torch.finfo(sites["post"].dtype).eps  # two roundings: the branch, or two branches, and the sum
    missed = ((mid + branch - post).norm(dim=1) - eps * post.norm(dim=1)).clamp_min(0)
    return {"error": (missed / branch.norm(dim=1).clamp_min(1e-38)).max(), "rounding": torch.tensor(eps)}


def fingerprint_there(module: Any, size: int) -> str | None:
    """`fingerprint` of a model on a server; None where its weights are not there, or not of the expected size."""
    state = module.state_dict(keep_vars=True)
    if size != sum(tensor.numel() * (not tensor.is_meta) for tensor in state.values()):
        return None
    return fingerprint(module)


def fingerprint(module: Any) -> str:
    """`Model.weights_hash` of a module, or of nnsight's wrapper of one, read from its weights as they are now."""
    digest, seen = hashlib.sha256(), {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights are read once
            seen[id(tensor)] = row_sums(whole(tensor.detach()))
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {seen[id(tensor)]}\n".encode())
    return digest.hexdigest()[:32]


def row_sums(tensor: Tensor) -> list[int]:
    """Multilinear hashes (Lemire & Kaser, 2014) of a tensor's bytes, 64 KiB at a time.

    Each is the sum, mod 2^64, of 32-bit words times odd keys that depend on the place of the word. Integers are exact,
    so every device gives the same, at about the speed of its memory.
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


def weights_hash(module: nn.Module) -> str:
    """`fingerprint`, taken again only where a weight's bytes have changed, which XXH3 tells several times as fast."""
    state = module.state_dict(keep_vars=True)
    if any(tensor.device.type != "cpu" for tensor in state.values()):
        return fingerprint(module)
    seen, digest = set(), xxhash.xxh3_128()
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {id(tensor) in seen}\n".encode())
        if id(tensor) not in seen:
            digest.update(tensor_bytes(tensor))
        seen.add(id(tensor))
    if (bytes_now := digest.digest()) not in _KNOWN:
        _KNOWN[bytes_now] = fingerprint(module)
    return _KNOWN[bytes_now]


def unread(_module: Any) -> None:
    """The fingerprint of weights that cannot be read."""
    return None


def part(number: int, *weights: Tensor) -> Tensor:
    """One of a layer's value vectors, output gain and output bias."""
    return weights[number]
