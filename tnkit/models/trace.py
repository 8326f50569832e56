"""One traced forward pass: the only place where tnkit reads the inside of a model.

The pass runs batches of rows, right-padded (causal attention leaves the last real token untouched) or packed (several
sentences a row, whose positions begin again), reads the sites of each wanted block in forward order, reduces them to
one token of each sentence inside the trace, and stops after the last wanted block, so that the output head never runs.

Blocks also run on NDIF; `tnkit.models.remote` states the rules for the functions that they call.
"""

from __future__ import annotations  # shapes in signatures then travel as text, and need no jaxtyping over there

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import nnsight
import torch
from jaxtyping import Bool, Float, Int
from nnsight.intervention.interleaver import OutOfOrderError as OutOfOrderError  # of a site that runs too early
from torch import Tensor

from tnkit.models.experts import called_with, shape_of, slot_activations, slot_bias
from tnkit.models.model import Change, Model
from tnkit.models.narrow import narrowed
from tnkit.models.reading import Sites, output_gain, plain_vectors, present, whole
from tnkit.models.sessions import TURN, state_of
from tnkit.models.wrapper import served

SITES = ("pre", "mid", "post", "activations", "scale", "experts")
_UNITS = 1024  # unit vectors sent through a linear map at a time


def trace_blocks(
    model: Model,
    inputs: Mapping[str, Any],
    read: Int[Tensor, "sentence *token"],
    *,
    layers: Sequence[int],
    keep: Iterable[str],
    weights: Float[Tensor, "sentence token"] | None = None,
    normed_last: bool = False,
    narrow: bool = False,
    reduce: Callable[..., dict[str, Tensor]] | None = None,
) -> dict[str, list[Tensor]]:
    """Run one batch and return the sites named in `keep`, as a list over `layers` each.

    `scale` is the reciprocal of the denominator of the branch's own output norm, so that contribution =
    scale · gain ⊙ value vector · activation; it is 1 without such a norm. Under a mean over tokens the activations are
    weighted by `scale`, which keeps mid + sum of contributions + bias = post exact for the means too.

    Args:
        model: from `load_model`.
        inputs: input_ids, with attention_mask (padded on the right) or position_ids (packed), on the model's device,
            and other arguments.
        read: the place of each sentence's token in input_ids, counted through its rows; with `weights` of all tokens.
            Without, there may be several, which a model without experts allows.
        layers: blocks to read, ascending; nothing after the last one runs.
        keep: any of `SITES`.
        weights: of each token at `read` where a sentence is averaged.
        normed_last: pass `post` of the model's last block through the final norm.
        narrow: run the MLP of the last wanted block at the tokens that are read alone, where nothing else looks at it.
        reduce: return what this makes of each layer, where the model runs, and not the sites themselves: a function of
            the layer, its sites by name, and its value vectors, output gain and output bias, giving tensors by name.

    Returns:
        Tensors (sentence, hidden | neuron), `scale` (sentence,), on the model's device (a remote model's: on the CPU),
        in its dtype or float32.

    Raises:
        TnkitError: as `Model.tracing` does.
    """
    blocks = attrgetter(model.blocks_path)(model.lm)
    final_norm: Any = attrgetter(model.final_norm_path)(model.lm) if normed_last and model.final_norm_path else None
    names, keep = names_of(model, inputs["input_ids"].numel()), frozenset(keep)
    for layer, edit in state_of(model.lm._module).editors:
        names[layer].edits.append(edit)
    for layer, move in state_of(model.lm._module).movers:
        names[layer].movers.append(move)
    layers = tuple(layers)
    normed = model.n_layers - 1 if normed_last else None
    with TURN, torch.no_grad(), model.tracing() as hooked, ExitStack() as stack:
        alone = None if hooked or not narrow or state_of(model.lm._module).entered else model.mlp_of(layers[-1])
        if alone is not None:
            stack.enter_context(narrowed(alone, read, inputs["input_ids"].shape))
            names[layers[-1]].spots = torch.arange(len(read))
        changes = model.edits(inputs, layers[-1])
        after = f"{model.blocks_path}.{layers[-1] + 1}" if layers[-1] + 1 < model.n_layers else model.final_norm_path
        beyond = attrgetter(after)(model.lm) if hooked and after else None
        with model.lm.trace(**inputs, remote=model.remote) as tracer:
            kept = nnsight.save({})
            for layer in sorted({*layers, *changes}):
                wanted = keep if layer in layers else ()
                values = _read(blocks[layer], names[layer], wanted, (read, weights), changes.get(layer, ()))
                if "post" in wanted:
                    post = post_of(blocks[layer], names[layer]) if layer != normed else first(blocks[layer].output)
                    for move in names[layer].movers:
                        post = move(post)
                    values["post"] = _pooled(final_norm(post) if layer == normed else post, read, weights)
                if reduce is not None and wanted:
                    values = exactly(reduce, layer, values, *weights_of(blocks[layer], names[layer]))
                for name, value in values.items():
                    kept.setdefault(name, []).append(value)
            if beyond is not None:  # the last block's own hooks have run by then
                _begun = beyond.input
            if beyond is not None or not hooked:
                tracer.stop()
    return kept


def names_of(model: Model, tokens: int = 0) -> list[SimpleNamespace]:
    """What a block is given to read each layer by: its sites, its width, those of the widest layer and the stream."""
    none, names = Sites("", ""), []
    sizes = {"neurons": model.places, "hidden": model.hidden_size, "slots": model.slots, "tokens": tokens}
    for sites, width in zip(model.sites, model.widths, strict=True):
        read = {name: served(site) if isinstance(site, str) else site for name, site in vars(sites or none).items()}
        names.append(SimpleNamespace(**read, width=width, edits=[], movers=[], spots=None, **sizes))
    return names


def chosen_tokens(real: Bool[Tensor, "sentence token"], tokens: str) -> Bool[Tensor, "sentence token"]:
    """The places of whole prompts where an ablation of a token scope acts, among the tokens that are not padding.

    >>> chosen_tokens(torch.tensor([[True, True, False]]), "last").tolist()
    [[False, True, False]]
    """
    if tokens == "last":
        later = real.flip(1).cumsum(1).flip(1)  # real tokens from here on
        return real & (later == 1)
    return real


def changed(
    activations: Tensor,
    chosen: Bool[Tensor, "sentence token"],
    places: Int[Tensor, "neuron"],
    target: Float[Tensor, "*sentence neuron"] | None,
    scale: float | None,
    sentences: Int[Tensor, "row token"] | None = None,
) -> Tensor:
    """A copy of a layer's activations a, in which chosen neurons become the target at chosen tokens, or scale · a + it.

    The target is the same for all sentences, or each sentence's, which are the rows or as `sentences` numbers them;
    None adds nothing. Without a scale it replaces a.
    """
    device = activations.device
    copy = activations.clone().reshape(*chosen.shape, -1)
    rows, columns = chosen.to(device).nonzero(as_tuple=True)
    at = (rows[:, None], columns[:, None], places.to(device))
    new = copy[at] * (0 if scale is None else scale)
    if target is not None:
        of = rows if sentences is None else sentences.to(device)[rows, columns]
        added = target.to(device) if target.ndim == 1 else target.to(device)[of]
        new = added.expand_as(new) if scale is None else new + added
    copy[at] = new.to(activations.dtype)
    return copy.reshape(activations.shape)


def exactly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function at full precision: a server runs blocks under autocast, which would round its products."""
    device = next(value.device.type for value in arguments if isinstance(value, Tensor))
    with torch.autocast(device, enabled=False):
        return function(*arguments)


def jointly(
    reductions: Mapping[str, Callable[..., Tensor | None]], layer: int, sites: Mapping[str, Tensor], *weights: Tensor
) -> dict[str, Tensor]:
    """What each of several reductions, by name, makes of a layer; those that make nothing of it are left out."""
    made = {name: reduction(layer, sites, *weights) for name, reduction in reductions.items()}
    return {name: total for name, total in made.items() if total is not None}


def _read(
    block: Any,
    names: SimpleNamespace,
    keep: Collection[str],
    how: tuple[Tensor, Tensor | None],
    changes: Sequence[Change],
) -> dict[str, Tensor]:
    """The wanted sites of one block but `post`, at one token of each sentence, in the order in which they come."""
    (read, weights), values = how, {}
    if "pre" in keep or ("mid" in keep and names.mid is None):
        pre = _pooled(block.input.reshape(names.tokens, -1), read, weights)
        if "pre" in keep:
            values["pre"] = pre
    if "mid" in keep and names.mid is None:
        branch = _pooled(first(attrgetter(names.attention)(block).output), read, weights)
        values["mid"] = pre.float() + names.multiplier * branch.float()
    elif "mid" in keep and names.mid:
        mid = attrgetter(names.mid)(block).input.reshape(names.tokens, -1)  # of as many tokens as were given
        values["mid"] = _pooled(mid if names.carry is None else mid * getattr(block, names.carry), read, weights)
    elif "mid" in keep:  # no branch is added to it
        values["mid"] = _pooled(post_of(block, names), read, weights)
    if not changes and not {"activations", "scale", "experts"} & {*keep}:
        return values
    if not names.last_map:
        state = first(block.output)
        none = {"activations": state.new_zeros(len(read), names.neurons), "scale": state.new_ones(len(read)).float()}
        none |= _no_experts(names, state, len(read))
        return values | {site: value for site, value in none.items() if site in keep}
    if names.experts:
        routed = _read_experts(block, names, read)
        return values | {site: value for site, value in routed.items() if site in keep}
    last_map = attrgetter(names.last_map)(block)
    neurons = last_map.input
    for change in changes:
        neurons = changed(neurons, *change)
    if changes:
        last_map.input = neurons
    if keep:
        before = after = neurons[..., :1]
        if names.norm:
            norm = attrgetter(names.norm)(block)
            before, after = last_map.output, norm.output
        spots = read if names.spots is None else names.spots
        neurons, before = _at(neurons, spots), _at(before, spots)
        after = _at(after, read) if names.norm else before
        scale = torch.ones(before.shape[:-1], dtype=torch.float32, device=before.device)
        if names.norm:
            scale = _scale(norm, names.multiplier, before, after, neurons.dtype)
        if weights is not None:
            mean = (scale * weights.to(scale.device)).sum(dim=1)
            neurons, scale = _averaged(neurons * (scale / mean[:, None])[..., None], weights), mean
        if names.width < names.neurons:
            neurons = torch.nn.functional.pad(neurons, (0, names.neurons - names.width))
        values |= {site: value for site, value in (("activations", neurons), ("scale", scale)) if site in keep}
        values |= {site: value for site, value in _no_experts(names, neurons, len(read)).items() if site in keep}
    return values


def _read_experts(block: Any, names: SimpleNamespace, read: Tensor) -> dict[str, Tensor]:
    """Activations, scale and experts of a block of experts at one token of each sentence, and what biases add."""
    experts, shared, added = names.experts, None, None

    if experts.shared and experts.shared_first:
        shared = _at(attrgetter(experts.shared)(block).input, read)
    routed = attrgetter(names.last_map)(block)
    args, kwargs = routed.inputs
    given = called_with(routed._module, (*args, *kwargs.values()), experts.slots)
    hidden, index, weight = (value.detach()[read.to(value.device)] for value in given)
    with present(routed._module):
        kept = slot_activations(routed._module, hidden, index, weight)
        bias = slot_bias(routed._module, index, weight)
    for edit in names.edits:
        kept, _ = edit(kept, index, read)
    if experts.shared and not experts.shared_first:
        shared = _at(attrgetter(experts.shared)(block).input, read)
    if shared is not None:
        added = getattr(attrgetter(experts.shared)(block)._module, "bias", None)
        share = torch.sigmoid(_at(attrgetter(experts.gate)(block).output, read)) if experts.gate else 1
        kept = torch.cat([kept, (shared * share).to(kept.dtype)], dim=1)
        added = None if added is None else share * added.detach().float()
    scale = torch.ones(len(read), dtype=torch.float32, device=kept.device)
    if names.norm:
        norm = attrgetter(names.norm)(block)
        before, after = _at(norm.input, read), _at(norm.output, read)
        scale = _scale(norm, names.multiplier, before, after, before.dtype)
    kept = torch.nn.functional.pad(kept, (0, max(0, names.neurons - kept.shape[1])))
    count = shape_of(routed._module)[0]
    biases = torch.zeros(len(read), names.hidden, device=kept.device)
    for more in (bias, added):
        biases = biases if more is None else biases + more
    index = torch.where((index >= 0) & (index < count), index, -1).int()
    return {"activations": kept, "experts": index, "scale": scale, "bias": biases}


def _scale(norm: Any, multiplier: float, before: Tensor, after: Tensor, dtype: torch.dtype) -> Float[Tensor, "*token"]:
    """The reciprocal of the denominator of a branch's norm at some tokens, from what it was given and returned."""
    before = before.float() * output_gain(norm, multiplier, before.flatten(0, -2)[0].to(dtype))
    after = after.float() * multiplier
    return (after * before).sum(-1) / (before * before).sum(-1).clamp_min(1e-38)


def _no_experts(names: SimpleNamespace, like: Tensor, count: int) -> dict[str, Tensor]:
    """What a layer without experts has in place of theirs."""
    none = torch.full((count, names.slots), -1, dtype=torch.int32, device=like.device)
    return {"experts": none, "bias": torch.zeros(count, names.hidden, device=like.device)}


def weights_of(block: Any, names: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's value vectors (neuron, hidden), output gain and output bias, wherever the weights are.

    Where this block cannot see a weight whole (a server may run it in a process of its own, beside a model without
    weights, or hold but a part of it on each device), the linear map itself is asked what it makes of unit vectors.
    """
    if not names.last_map:
        none = first(block.output).new_zeros(0, names.hidden)
        return none, none.new_ones(names.hidden).float(), none.new_zeros(names.hidden).float()
    last_map = attrgetter(names.last_map)(block)
    norm = attrgetter(names.norm)(block) if names.norm else None
    weight, bias = last_map.weight, getattr(last_map, "bias", None)
    if weight.is_meta or weight.numel() != names.width * names.hidden:
        none = torch.zeros(1, names.width, dtype=weight.dtype)
        bias = last_map(none)[0].detach()
        units = torch.eye(names.width, dtype=weight.dtype).split(_UNITS)
        vectors = torch.cat([last_map(rows).detach() - bias for rows in units])
    else:
        vectors = whole(plain_vectors(last_map._module))
    gain = output_gain(norm, names.multiplier, vectors[0])
    return vectors, gain, torch.zeros_like(gain) if bias is None else whole(bias.detach()).float()


def _pooled(values: Tensor, read: Tensor, weights: Tensor | None) -> Tensor:
    """Reduce what each token of all rows has to one of each sentence: that at `read`, or their weighted mean."""
    chosen = _at(values, read)
    return chosen if weights is None else _averaged(chosen, weights)


def _at(values: Tensor, read: Tensor) -> Tensor:
    """What tokens have, by their places among those of all rows."""
    return values.detach().reshape(-1, values.shape[-1])[read.to(values.device)]


def _averaged(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over each sentence's tokens, (sentence, token, …), in float32."""
    return (values.float() * weights.to(values.device)[..., None]).sum(dim=1)


def post_of(block: Any, names: SimpleNamespace) -> Tensor:
    """The sum that the MLP's branch is added in: what leaves the block, or what is there before the block goes on."""
    if names.after:
        return attrgetter(names.after)(block).input
    return first(block.output)


def first(output: Tensor | tuple[Any, ...]) -> Tensor:
    """What a module returns first."""
    return output[0] if isinstance(output, tuple) else output
