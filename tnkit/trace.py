"""One traced forward pass: the only place where tnkit reads the inside of a model.

The pass runs right-padded batches (causal attention leaves the last real token untouched), reads the sites of each
wanted block in forward order, reduces them to one token inside the trace, and stops after the last wanted block, so
that the output head never runs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit.errors import TnkitError

SITES = ("pre", "mid", "post", "activations", "scale")


def trace_blocks(
    model,
    inputs: Mapping[str, Any],
    last: Int[Tensor, "sentence"],
    *,
    layers: Sequence[int],
    keep: Iterable[str],
    weights: Float[Tensor, "sentence token"] | None = None,
    normed_last: bool = False,
) -> dict[str, list[Tensor]]:
    """Run one batch and return the sites named in `keep`, as a list over `layers` each.

    `scale` is the reciprocal of the denominator of the branch's own output norm, so that contribution =
    scale · gain ⊙ value vector · activation; it is 1 where there is no such norm. Under a mean over tokens the
    activations are weighted by `scale`, which keeps mid + sum of contributions + bias = post exact for the means too.

    Args:
        model: a `tnkit.models.Model`.
        inputs: what the model is called with: input_ids and attention_mask, padded on the right, on the model's device.
        last: the place of each sentence's last real token in input_ids.
        layers: blocks to read, ascending; nothing after the last one runs.
        keep: any of `SITES`.
        weights: of each token in the mean over a sentence; None takes the token at `last`.
        normed_last: pass `post` of the model's last block through the final norm.

    Returns:
        Tensors (sentence, hidden | neuron), `scale` (sentence,), on the model's device, in its dtype or float32.
    """
    blocks = attrgetter(model.blocks_path)(model.lm)
    final_norm = attrgetter(model.final_norm_path)(model.lm) if normed_last else None
    sites, gains, keep = model.sites, model.output_gains, frozenset(keep)
    reads_pre = "pre" in keep or ("mid" in keep and sites.mid is None)
    tokens = inputs["input_ids"].shape
    shape, pool = (*tokens, -1), _pool(last, weights)

    with torch.inference_mode():
        with model.lm.trace(**inputs) as tracer:
            found = nnsight.save({site: [] for site in keep})
            for layer in layers:
                block = blocks[layer]
                if reads_pre:
                    pre = pool(block.input)
                    if "pre" in keep:
                        found["pre"].append(pre)
                if "mid" in keep and sites.mid is None:
                    branch = pool(_first(attrgetter(sites.attention)(block).output))
                    found["mid"].append(pre.float() + branch.float())
                elif "mid" in keep:
                    found["mid"].append(pool(attrgetter(sites.mid)(block).input.reshape(shape)))
                if "activations" in keep or "scale" in keep:
                    last_map = attrgetter(sites.last_map)(block)
                    neurons = last_map.input.reshape(shape)
                    scale = torch.ones(tokens, device=neurons.device)
                    if sites.norm:
                        before = last_map.output.float() * gains[layer]
                        after = attrgetter(sites.norm)(block).output.float() * sites.multiplier
                        scale = (after * before).sum(-1) / (before * before).sum(-1).clamp_min(1e-38)
                        if weights is not None:
                            neurons = neurons * (scale / pool(scale)[:, None])[..., None]
                    if "activations" in keep:
                        found["activations"].append(pool(neurons))
                    if "scale" in keep:
                        found["scale"].append(pool(scale))
                if "post" in keep:
                    post = _first(block.output)
                    if final_norm is not None and layer == model.n_layers - 1:
                        post = final_norm(post)
                    found["post"].append(pool(post))
            tracer.stop()
    return found


def chosen_sites(keep: Iterable[str]) -> tuple[str, ...]:
    """The sites to keep, sorted; "activations" brings "scale" with it.

    Raises:
        TnkitError: for none, or an unknown one.
    """
    keep = {keep} if isinstance(keep, str) else set(keep)
    if not keep or not keep <= set(SITES):
        raise TnkitError(f"keep={sorted(keep)} must name some of {', '.join(SITES)}")
    return tuple(sorted(keep | ({"scale"} if "activations" in keep else set())))


def _pool(last: Tensor, weights: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Reduce (sentence, token, …) to (sentence, …): the token at `last`, or a weighted mean."""
    rows = torch.arange(len(last), device=last.device)

    def pool(values: Tensor) -> Tensor:
        if weights is None:
            return values[rows, last]
        return torch.einsum("st...,st->s...", values.float(), weights)

    return pool


def _first(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
