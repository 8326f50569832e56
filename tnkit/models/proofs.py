"""What is proved of a model when it is loaded: its neurons are read correctly, and its attention is causal."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit.errors import TnkitError, last_line
from tnkit.models.model import PROBE, Model
from tnkit.models.reading import Sites
from tnkit.models.trace import OutOfOrderError, trace_blocks

_LOSSY = 0.3  # eight bits lose as much of 10^4 inputs of which one is by far the largest
_LOG = logging.getLogger("tnkit")


def completeness_error(model: Model) -> Float[Tensor, "layer"]:
    """How far mid + sum of contributions + bias is from post, layer by layer, on a short text.

    What rounding post may account for is taken off; the rest is relative to the size of the MLP branch's output, at the
    worst of the tokens. A wrong reading gives about 1, a right one 1e-6 (float32, also of quantised weights) to 1e-2
    (bfloat16); `load_model` allows 1e-3 and 0.05. Formats that quantise activations, too, such as LLM.int8, round what
    enters the last map: they miss by 1e-2 to 0.2, which `load_model` says, and are held to 0.05 by what that map writes
    of the rounded inputs. The token that many models give a coordinate of 10^5 says little here, since half precision
    rounds that away by more than the branch; the others say it.

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
        if bool((probe.misread <= (1e-3 if probe.fine else 0.05)).all()):
            _check_causal(model, probe)
            _check_linear(candidate, probe)
            return candidate
        tried.append((float(probe.misread.max()), int(probe.misread.argmax()), sites, ""))
    missed, layer, best, reason = min(tried, key=lambda attempt: attempt[0])
    where = f"with {best} in {model.blocks_path}.{layer}"
    if reason:
        raise TnkitError(f"{kind} is not an architecture that tnkit can trace: {where}, the pass failed ({reason})")
    raise TnkitError(
        f"{kind} is not an architecture that tnkit reads correctly: in layer {layer}, mid + sum of contributions + "
        f"bias misses post by {missed:.2g} of the MLP branch's size {where}; its blocks need a reading in "
        "tnkit/models/reading.py"
    )


def _check_linear(model: Model, probe: _Probe) -> None:
    """Refuse last maps that are far from linear, and say how far those are that round their inputs."""
    if not float(probe.incomplete.max()) > max(1e-3, 3 * float(probe.misread.max())):
        return
    worst, layer = float(probe.incomplete.max()), int(probe.incomplete.argmax())
    said = (
        f"contributions add up to what a layer of {model.name} writes to within {worst:.0%} at the worst token (layer "
        f"{layer}), because its last linear maps are quantised and round their inputs"
    )
    if worst > _LOSSY:
        raise TnkitError(f"{said}; load it in a format that quantises weights alone, or without quantisation")
    _LOG.warning("%s; a format that quantises weights alone adds up to rounding", said)


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
    """What a short text shows of a model, layer by layer, and whether it computes in float32 or better throughout.

    `misread` is `incomplete`, but of what the last maps write, and not of the sum of contributions: they differ where a
    format rounds the inputs of those maps.
    """

    incomplete: Float[Tensor, "layer"]
    misread: Float[Tensor, "layer"]
    acausal: Float[Tensor, "layer"]
    fine: bool


def _probed(model: Model) -> _Probe:
    """Run the beginnings of a short text, padded, and then the whole text, unpadded, read where each of those ends."""
    ids = torch.tensor(_probe_ids(model))
    beginnings = torch.ones(len(ids), len(ids), dtype=torch.long).tril()
    reduce = model.sent(_measured)
    padded = _run(model, ids, beginnings, keep=("mid", "post", "activations", "scale"), reduce=reduce)
    if reduce is None:  # outside the pass, where weights that are spread over processes can be gathered
        weights = (model.value_vectors, model.output_gain, model.output_bias)
        sites: list[dict[str, Any]] = []
        for layer in range(model.n_layers):
            kept = {site: values[layer] for site, values in padded.items()}
            sites.append(kept | {"written": model.written(layer, kept["activations"])})
        checked = [_measured(layer, kept, *(ask(layer) for ask in weights)) for layer, kept in enumerate(sites)]
        padded = {name: [measured[name] for measured in checked] for name in checked[0]}
    whole = _run(model, ids, torch.ones_like(beginnings), keep=("post",))
    pairs = [(short.cpu(), full.cpu()) for short, full in zip(padded["post"], whole["post"], strict=True)]
    changed = [
        ((short - full).float().norm(dim=1) / full.float().norm(dim=1).clamp_min(1e-38)).max() for short, full in pairs
    ]
    incomplete, misread = (torch.stack([error.cpu() for error in padded[name]]) for name in ("error", "misread"))
    lossy = bool((incomplete > 1e-3).any() and (incomplete != misread).any())
    return _Probe(incomplete, misread, torch.stack(changed), float(padded["rounding"][0]) < 1e-6 and not lossy)


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
    ids = model.tokenizer(PROBE, verbose=False)["input_ids"][:8]
    known = model.vocabulary
    if not ids or max(ids) >= known:
        raise TnkitError(
            f"the tokenizer does not belong to {model.name}: it makes {f'token {max(ids)}' if ids else 'no tokens'} of "
            f"a short text, and the model has {known} token embeddings; give the tokenizer that the model was trained "
            "with"
        )
    return ids


def _measured(_: int, sites: Mapping[str, Any], vectors: Tensor, gain: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Of one layer, by how much its parts miss its output, and that output; it runs where the model does."""
    mid, post, activations = (sites[site].float() for site in ("mid", "post", "activations"))
    eps = torch.finfo(sites["post"].dtype).eps  # two roundings: the branch, or two branches, and the sum
    contributed, errors = activations @ vectors.float() + bias, []
    for written in (contributed, sites.get("written")):
        branch = sites["scale"][:, None] * gain * (contributed if written is None else written)
        missed = ((mid + branch - post).norm(dim=1) - eps * post.norm(dim=1)).clamp_min(0)
        errors.append((missed / branch.norm(dim=1).clamp_min(1e-38)).max())
    return {"error": errors[0], "misread": errors[1], "rounding": torch.tensor(eps), "post": sites["post"]}
