"""What is asked of a loaded model before anything else: are its neurons read correctly, and which weights are these?

Both questions are put where the weights are, so that they can be put to a remote model as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor, nn

from tnkit.errors import TnkitError, last_line
from tnkit.models.reading import Sites, real, whole
from tnkit.models.trace import OutOfOrderError, trace_blocks
from tnkit.storage import tensor_bytes

if TYPE_CHECKING:
    from tnkit.models.model import Model

_PROBE = "Languages meet in the middle, 2 by 2; 言葉は中で出会う。"
_ROW = 1 << 14  # words of a weight that are hashed together
_KNOWN: dict[bytes, str] = {}  # weights hashes, by the XXH3 of the same weights


def completeness_error(model: Model) -> Float[Tensor, "layer"]:
    """How far mid + sum of contributions + bias is from post, layer by layer, on a short text.

    What rounding post may account for is taken off; the rest is relative to the size of the MLP branch's output, at the
    worst of the tokens. A wrong reading gives about 1, a right one 1e-6 (float32) to 1e-2 (bfloat16). The token that
    many models give a coordinate of 10^5 says little here, since half precision rounds that away by more than the
    branch; the others say it.

    >>> from tnkit.testing import tiny_model
    >>> bool((completeness_error(tiny_model("bloom")) < 1e-5).all())
    True
    """
    return _probed(model).incomplete


def causality_error(model: Model) -> Float[Tensor, "layer"]:
    """How far a token's state changes with later tokens, or with padding, layer by layer, relative to its size.

    Beginnings of a short text, in one padded batch, are compared with the same tokens of the whole text, unpadded. It
    is rounding where attention is causal, and about 1 where it is not.

    >>> from tnkit.testing import tiny_model
    >>> bool((causality_error(tiny_model("bloom")) < 1e-5).all())
    True
    """
    return _probed(model).acausal


def proved(model: Model, readings: Iterable[Sites]) -> Model:
    """The model with the first reading of its blocks that is complete.

    Raises:
        TnkitError: where none is, where its states are not finite, or where they depend on later tokens or on padding.
    """
    kind, tried = type(model.lm._module).__name__, []
    if model.ablations:
        raise TnkitError(f"{kind} is inside an Ablation, where it cannot be checked; load it before or after that")
    for sites in readings:
        candidate = replace(model, sites=sites)
        try:
            probe = _probed(candidate)
        except OutOfOrderError:  # a site that runs after the neurons is not what the branch is added to
            tried.append((torch.inf, 0, sites, "it runs after the neurons"))
            continue
        except TnkitError:
            raise
        except Exception as error:
            tried.append((torch.inf, 0, sites, f"{type(error).__name__}: {last_line(error)}"))
            continue
        if bool(probe.incomplete.isnan().any()):
            raise TnkitError(
                f"{model.name} computes values that are not finite, first in layer "
                f"{int(probe.incomplete.isnan().int().argmax())}, in {str(model.dtype).removeprefix('torch.')}; try "
                "dtype='bfloat16' or 'float32', whose range is wider than float16's; if that fails too, its weights "
                "are damaged"
            )
        if bool((probe.incomplete <= (1e-3 if probe.fine else 0.05)).all()):
            _check_causal(model, probe)
            return candidate
        tried.append((float(probe.incomplete.max()), int(probe.incomplete.argmax()), sites, ""))
    missed, layer, best, reason = min(tried, key=lambda one: one[0])
    where = f"with {best} in {model.blocks_path}.{layer}"
    if reason:
        raise TnkitError(f"{kind} is not an architecture that tnkit can trace: {where}, the pass failed ({reason})")
    raise TnkitError(
        f"{kind} is not an architecture that tnkit reads correctly: in layer {layer}, mid + sum of contributions + "
        f"bias misses post by {missed:.2g} of the MLP branch's size {where}; its blocks need a reading in "
        "tnkit/models/reading.py"
    )


def _check_causal(model: Model, probe: _Probe) -> None:
    if not bool((probe.acausal <= (1e-3 if probe.fine else 0.1)).all()):
        layer = int(probe.acausal.argmax())
        raise TnkitError(
            f"{type(model.lm._module).__name__} does not attend causally: in layer {layer}, later tokens or padding "
            f"change the state of a token by {float(probe.acausal[layer]):.2g} of its size, so that a sentence would "
            "depend on its batch; load a model whose tokens see only the tokens before them"
        )


@dataclass(frozen=True)
class _Probe:
    """What a short text shows of a model, layer by layer, and whether it computes in float32 or better."""

    incomplete: Float[Tensor, "layer"]
    acausal: Float[Tensor, "layer"]
    fine: bool


def _probed(model: Model) -> _Probe:
    """Run the beginnings of a short text, padded, and then the whole text, unpadded, read where each of those ends."""
    ids = torch.tensor(_probe_ids(model))
    beginnings = torch.ones(len(ids), len(ids), dtype=torch.long).tril()
    found = _run(
        model,
        ids,
        beginnings,
        keep=("mid", "post", "activations", "scale"),
        reduce=_measured if model.remote else None,
    )
    if not model.remote:  # outside the pass, where weights that are spread over processes can be gathered
        weights = (model.value_vectors, model.output_gain, model.output_bias)
        sites = [{site: kept[layer] for site, kept in found.items()} for layer in range(model.n_layers)]
        checked = [_measured(layer, one, *(ask(layer) for ask in weights)) for layer, one in enumerate(sites)]
        found = {name: [one[name] for one in checked] for name in checked[0]}
    whole_text = _run(model, ids, torch.ones_like(beginnings), keep=("post",))["post"]
    changed = [
        (
            (padded.cpu() - unpadded.cpu()).float().norm(dim=1) / unpadded.cpu().float().norm(dim=1).clamp_min(1e-38)
        ).max()
        for padded, unpadded in zip(found["post"], whole_text, strict=True)
    ]
    incomplete = torch.stack([error.cpu() for error in found["error"]])
    return _Probe(incomplete, torch.stack(changed), float(found["rounding"][0]) < 1e-6)


def _run(model: Model, ids: Tensor, mask: Tensor, **how: Any) -> dict[str, list[Tensor]]:
    """Sites of every layer, from a batch of the same tokens, as far as the mask shows them, at its diagonal."""
    inputs = {"input_ids": (ids * mask).to(model.device), "attention_mask": mask.to(model.device), "use_cache": False}
    last = torch.arange(len(ids), device=model.device)
    return trace_blocks(model, inputs, last, layers=range(model.n_layers), **how)


def _probe_ids(model: Model) -> list[int]:
    """The first token ids of a short text.

    Raises:
        TnkitError: where there are none, or the model has no embedding for one: the tokenizer is another model's.
    """
    ids = model.tokenizer(_PROBE, verbose=False)["input_ids"][:8]
    known = model.lm._module.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) >= known:
        raise TnkitError(
            f"the tokenizer does not belong to {model.name}: it makes {f'token {max(ids)}' if ids else 'no tokens'} of "
            f"a short text, and the model has {known} token embeddings; give the tokenizer that the model was trained "
            "with"
        )
    return ids


def _measured(_: int, sites: Mapping[str, Tensor], vectors: Tensor, gain: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Of one layer, by how much its parts miss its output, and that output; it runs where the model does."""
    mid, post, activations = (sites[site].float() for site in ("mid", "post", "activations"))
    branch = sites["scale"][:, None] * gain * (activations @ vectors.float() + bias)
    eps = torch.finfo(sites["post"].dtype).eps  # two roundings: the branch, or two branches, and the sum
    missed = ((mid + branch - post).norm(dim=1) - eps * post.norm(dim=1)).clamp_min(0)
    error = (missed / branch.norm(dim=1).clamp_min(1e-38)).max()
    return {"error": error, "rounding": torch.tensor(eps), "post": sites["post"]}


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
            seen[id(tensor)] = row_sums(whole(real(module, name, tensor).detach()))
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
