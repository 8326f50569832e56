"""What is asked of a loaded model before anything else: are its neurons read rightly, and which weights are these?

Both questions are put where the weights are, so that they can be put to a remote model as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit.architecture import whole
from tnkit.trace import trace_blocks

if TYPE_CHECKING:
    from tnkit.models import Model

_PROBE = "Languages meet in the middle, 2 by 2; 言葉は中で出会う。"


def completeness_error(model: Model) -> Float[Tensor, "layer"]:
    """How far mid + sum of contributions + bias is from post, layer by layer, on a short text.

    Relative to the size of the MLP branch's output; a wrong reading gives about 1, rounding alone 1e-6 (float32) to
    1e-2 (bfloat16).

    >>> from tnkit.tests.tiny import tiny_model
    >>> bool((completeness_error(tiny_model("bloom")) < 1e-5).all())
    True
    """
    return probed(model)[0]


def probed(model: Model) -> tuple[Float[Tensor, "layer"], bool]:
    """The completeness error of each layer, and whether the model computes in float32 or better.

    Raises:
        OutOfOrderError: where a site runs after the neurons.
    """
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
    eps = torch.finfo(sites["post"].dtype).eps
    error = (mid + branch - post).norm(dim=1) / (branch.norm(dim=1) + 4 * eps * post.norm(dim=1))
    return {"error": error.max(), "rounding": torch.tensor(eps)}


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
        sample = bits[:: max(1, len(bits) // 64)][:64].tolist()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {int(bits.sum())} {sample}\n".encode())
    return digest.hexdigest()[:16]


def unread(_module: Any) -> None:
    """The fingerprint of weights that cannot be read."""
    return None


def part(number: int, *weights: Tensor) -> Tensor:
    """One of a layer's value vectors, output gain and output bias."""
    return weights[number]
