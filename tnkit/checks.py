"""What is asked of a loaded model before anything else: are its neurons read rightly, and which weights are these?

Both questions are put where the weights are, so that they can be put to a remote model as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit.architecture import Sites, whole
from tnkit.errors import TnkitError
from tnkit.trace import OutOfOrderError, trace_blocks

if TYPE_CHECKING:
    from tnkit.models import Model

_PROBE = "Languages meet in the middle, 2 by 2; 言葉は中で出会う。"
_PIECE = 1 << 18  # values of a weight summed at a time, so that they stay in the processor's cache


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
    """`Model.weights_hash` of a module, or of nnsight's wrapper of one."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict(keep_vars=True).items():
        flat = whole(tensor.detach()).reshape(-1)
        kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
        bits = flat.view(kind)
        total = torch.stack([piece.sum() for piece in bits.split(_PIECE)]).sum()  # one sum makes 64-bit copies of all
        sample = bits[:: max(1, len(bits) // 64)][:64].tolist()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {int(total)} {sample}\n".encode())
    return digest.hexdigest()[:16]


def unread(_module: Any) -> None:
    """The fingerprint of weights that cannot be read."""
    return None


def part(number: int, *weights: Tensor) -> Tensor:
    """One of a layer's value vectors, output gain and output bias."""
    return weights[number]
