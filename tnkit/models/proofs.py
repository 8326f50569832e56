"""What is proved of a model when it is loaded: its neurons are read correctly, and its attention is causal."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tnkit.errors import TnkitError, last_line
from tnkit.models.experts import spread
from tnkit.models.model import PROBE, Model
from tnkit.models.reading import ATTENTIONS, Sites, readings, width
from tnkit.models.refusals import seen_reason, unknown
from tnkit.models.trace import OutOfOrderError, trace_blocks

_LOSSY = 0.1  # beyond this, contributions do not tell what a layer writes
_ROUNDED = 1e-4  # of a state's size, in float32: rounding is a hundredth of it
_ROUNDED_HALF = 0.1  # in formats of 16 bits
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
    return _probed(model, range(model.n_layers)).incomplete


def causality_error(model: Model) -> Float[Tensor, "layer"]:
    """How far a token's state changes with later tokens, or with padding, layer by layer, relative to its size.

    Beginnings of a short text, in one padded batch, are compared with the same tokens of the whole text, unpadded. It
    is rounding where attention is causal, and about 1 where it is not.

    >>> from tnkit.testing import tiny_model
    >>> bool((causality_error(tiny_model("bloom")) < 1e-5).all())
    True
    """
    return _probed(model, range(model.n_layers)).acausal


def packing(model: Model) -> str | None:
    """The attention implementation of a model whose packed sentences have the states that they have alone; else None.

    Three short texts of different lengths, behind each other in one row and in another order in a second one, are
    compared with the same texts in a row each, token by token and layer by layer. Then the first and the last get other
    tokens, which may not change a bit of the states of the one between them (with experts, whose products depend on
    what else is sent to them, nothing beyond rounding). A model that attends from one text to the next, carries a state
    along the row or takes no positions fails; and so does one whose last block that is read gives other states where
    its MLP runs at the last tokens alone.

    >>> from tnkit.testing import tiny_model
    >>> packing(tiny_model("llama")), packing(tiny_model("bloom"))
    ('sdpa', None)
    """
    if model.server is not None:  # nnsight gives packed rows a mask there, which joins them
        return None
    ids = _probe_ids(model)
    texts = [ids, ids[:1] + ids[:0:-1][:4], ids[:3]]
    lengths = [len(text) for text in texts]
    most = _ROUNDED if torch.finfo(model.dtype).bits >= 32 else _ROUNDED_HALF
    orders = [[0, 1, 2]] if "flash" in str(model.attention) else [[0, 1, 2], [2, 0, 1]]
    places = torch.tensor([[place for number in order for place in range(lengths[number])] for order in orders])
    real = torch.arange(len(ids)) < torch.tensor(lengths)[:, None]
    padded = torch.tensor([text + [0] * (len(ids) - len(text)) for text in texts])
    of_text = real.flatten().nonzero()[:, 0].split(lengths)
    read = torch.cat([of_text[number] for order in orders for number in order])
    rows, other_rows = (
        {
            "input_ids": torch.tensor([[id for number in order for id in row[number]] for order in orders]),
            "position_ids": places,
        }
        for row in (texts, [texts[0][::-1], texts[1], texts[2][::-1]])
    )
    ends = torch.tensor(lengths).cumsum(0) - 1
    try:
        alone = _posts(model, {"input_ids": padded, "attention_mask": real.long()}, read)
        packed, others = (_posts(model, inputs, torch.arange(places.numel())) for inputs in (rows, other_rows))
        narrow = [_posts(model, rows, ends.flip(0), narrow=layer) for layer in dict(zip(model.sites, count())).values()]
    except Exception as error:
        _LOG.debug("%s takes no packed rows: %s", model.name, error)
        return None
    between = slice(lengths[0], lengths[0] + lengths[1])
    near = [_furthest(packed, alone), *(_furthest(some, packed[: len(some), ends.flip(0)]) for some in narrow)]
    apart = _furthest(others[:, between], packed[:, between])
    _LOG.debug("packed, states of %s differ by %s of their size, and %.1e by other texts", model.name, near, apart)
    proved = all(error <= most for error in near) and apart <= (most if model.slots else 0)
    return str(model.attention) if proved else None


def _posts(
    model: Model, inputs: dict[str, Tensor], read: Tensor, *, narrow: int | None = None
) -> Float[Tensor, "layer token hidden"]:
    """What leaves each layer at some tokens, float32, on the CPU; up to that whose MLP runs at those tokens alone."""
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    layers = range(model.n_layers if narrow is None else narrow + 1)
    how: dict[str, Any] = {"layers": layers, "keep": ("post",), "narrow": narrow is not None}
    kept = trace_blocks(model, {**inputs, "use_cache": False}, read.to(model.device), **how)
    return torch.stack([post.float().cpu() for post in kept["post"]])


def _furthest(states: Tensor, others: Tensor) -> float:
    """How far states are from others, of their size, at the worst token of the worst layer."""
    return float(((states - others).norm(dim=-1) / others.norm(dim=-1).clamp_min(1e-38)).max())


def kinds(blocks: nn.ModuleList, config: PreTrainedConfig) -> dict[tuple[int, ...], list[Sites]]:
    """The layers of each kind of block, and the ways to read it; blocks of one kind have the same parts and width.

    Raises:
        TnkitError: where a block has neither a last linear map nor an attention of a known name, or no block has the
            former.

    >>> from tnkit.testing import tiny_module
    >>> module = tiny_module("llama")
    >>> list(kinds(module.model.layers, module.config))
    [(0, 1, 2, 3)]
    """
    layers: dict[Any, list[int]] = {}
    tried: dict[Any, list[Sites]] = {}
    for layer, block in enumerate(blocks):
        ways = [*readings(block, config)]
        parts = tuple((name, type(part)) for name, part in block.named_modules())
        kind = parts, width(block, ways[0], config.hidden_size)
        layers.setdefault(kind, []).append(layer)
        tried.setdefault(kind, ways)
    if not any(sites.last_map for ways in tried.values() for sites in ways):
        raise unknown(blocks[0], ATTENTIONS)
    return {tuple(members): tried[kind] for kind, members in layers.items()}


def proved(model: Model, tried: Mapping[tuple[int, ...], Iterable[Sites]]) -> Model:
    """The model with the first reading of each kind of block that is complete; None for blocks that have no neurons.

    Args:
        model: with any readings.
        tried: the layers of each kind of block, and the ways to read it.

    Raises:
        TnkitError: where none is, where its states are not finite, or where they depend on later tokens or on padding.
    """
    if model.ablations:
        raise TnkitError(
            f"{type(model.lm._module).__name__} is inside an Ablation, where it cannot be checked; load it before or "
            "after that"
        )
    sites, fine = list(model.sites), True
    acausal, incomplete, misread = torch.zeros(3, model.n_layers, dtype=torch.float32)
    for layers, ways in tried.items():
        reading, probe = _first_complete(model, layers, ways)
        acausal[list(layers)], fine = probe.acausal, fine and probe.fine
        incomplete[list(layers)], misread[list(layers)] = probe.incomplete, probe.misread
        if reading.experts:
            reading = replace(reading, experts=replace(reading.experts, slots=probe.slots))
        for layer in layers:
            sites[layer] = reading if reading.last_map else None
    _check_causal(model, acausal, fine=fine)
    _check_linear(model, incomplete, misread)
    return replace(model, sites=tuple(sites))


def _first_complete(model: Model, layers: Sequence[int], ways: Iterable[Sites]) -> tuple[Sites, _Probe]:
    """The first reading that is complete in all layers of one kind, and what showed it."""
    kind, tried = type(model.lm._module).__name__, []
    for reading in ways:
        candidate = replace(model, sites=tuple(reading if at in layers else old for at, old in enumerate(model.sites)))
        try:
            probe = _probed(candidate, layers)
        except OutOfOrderError:  # a site that runs after the neurons is not what the branch is added to
            tried.append((torch.inf, 0, reading, "it runs after the neurons"))
            continue
        except TnkitError:
            raise
        except Exception as error:
            tried.append((torch.inf, 0, reading, f"{type(error).__name__}: {last_line(error)}"))
            continue
        if bool(probe.incomplete.isnan().any()):
            raise TnkitError(
                f"{model.name} computes values that are not finite, first in layer "
                f"{layers[int(probe.incomplete.isnan().int().argmax())]}, in "
                f"{str(model.dtype).removeprefix('torch.')}; try dtype='bfloat16' or 'float32', whose range is wider "
                "than float16's; if that fails too, its weights are damaged"
            )
        if bool((probe.misread <= (1e-3 if probe.fine else 0.05)).all()):
            return reading, probe
        tried.append((float(probe.misread.max()), int(probe.misread.argmax()), reading, ""))
    missed, row, best, reason = min(tried, key=lambda attempt: attempt[0])
    layer = layers[row]
    if not best.last_map:
        raise unknown(model.blocks[layer], ATTENTIONS)
    where = f"with {best} in {model.blocks_path}.{layer}"
    if model.server is None and (seen := _seen(model, layer)):
        raise TnkitError(
            f"{kind} has decoder blocks that tnkit does not read: {model.blocks_path}.{layer} is one {seen}"
        )
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.module.parameters()})
    if reason and len(dtypes) > 1:
        raise TnkitError(
            f"{kind} did not run with weights in {' and '.join(dtypes)} ({reason}); leave dtype out, or give that of "
            "its quantised weights"
        )
    if reason:
        raise TnkitError(f"{kind} is not an architecture that tnkit can trace: {where}, the pass failed ({reason})")
    raise TnkitError(
        f"{kind} is not an architecture that tnkit reads correctly: in layer {layer}, mid + sum of contributions + "
        f"bias misses post by {missed:.2g} of the MLP branch's size {where}; its blocks need a reading in "
        "tnkit/models/reading.py"
    )


def _seen(model: Model, layer: int) -> str | None:
    """What is seen of a block that has no reading."""
    try:
        return seen_reason(model.lm._module, model.blocks[layer], _probe_ids(model))
    except Exception:
        return None


def _check_linear(model: Model, incomplete: Float[Tensor, "layer"], misread: Float[Tensor, "layer"]) -> None:
    """Refuse last maps that are far from linear, and say how far those are that round their inputs."""
    if not float(incomplete.max()) > max(1e-3, 3 * float(misread.max())):
        return
    worst, layer = float(incomplete.max()), int(incomplete.argmax())
    said = (
        f"contributions add up to what a layer of {model.name} writes to within {worst:.0%} at the worst token (layer "
        f"{layer}), because its last linear maps are quantised and round their inputs"
    )
    if worst > _LOSSY:
        raise TnkitError(f"{said}; load it in a format that quantises weights alone, or without quantisation")
    _LOG.warning("%s; a format that quantises weights alone adds up to rounding", said)


def _check_causal(model: Model, acausal: Float[Tensor, "layer"], *, fine: bool) -> None:
    if not bool((acausal <= (1e-3 if fine else 0.1)).all()):
        layer = int(acausal.argmax())
        raise TnkitError(
            f"{type(model.lm._module).__name__} does not attend causally: in layer {layer}, later tokens or padding "
            f"change the state of a token by {float(acausal[layer]):.2g} of its size, so that a sentence would "
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
    slots: int = 0


def _probed(model: Model, layers: Sequence[int]) -> _Probe:
    """Run the beginnings of a short text, padded, and then the whole text, unpadded, read where each of those ends."""
    ids = torch.tensor(_probe_ids(model))
    beginnings = torch.ones(len(ids), len(ids), dtype=torch.long).tril()
    reduce, experts, slots = model.sent(_measured), any(map(model.experts_of, layers)), 0
    keep = ("mid", "post", "activations", "scale", *(("experts", "bias") if experts else ()))
    padded = _run(model, ids, beginnings, layers=layers, keep=keep, reduce=reduce)
    if reduce is None:  # outside the pass, where weights that are spread over processes can be gathered
        weights = (model.value_vectors, model.output_gain, model.output_bias)
        sites: list[dict[str, Any]] = [{site: kept[row] for site, kept in padded.items()} for row in range(len(layers))]
        for kept, layer in zip(sites, layers, strict=True):
            if model.experts_of(layer):
                layout, slots = (model.widths[layer], *model.experts_of(layer)), kept["experts"].shape[1]
                kept["activations"] = spread(kept["activations"], kept["experts"], layout)
            kept["written"] = model.written(layer, kept["activations"])
        checked = [
            _measured(layer, kept, *(ask(layer) for ask in weights)) for layer, kept in zip(layers, sites, strict=True)
        ]
        padded = {name: [measured[name] for measured in checked] for name in checked[0]}
    whole = _run(model, ids, torch.ones_like(beginnings), layers=layers, keep=("post",))
    pairs = [(short.cpu(), full.cpu()) for short, full in zip(padded["post"], whole["post"], strict=True)]
    changed = [
        ((short - full).float().norm(dim=1) / full.float().norm(dim=1).clamp_min(1e-38)).max() for short, full in pairs
    ]
    incomplete, misread = (torch.stack([error.cpu() for error in padded[name]]) for name in ("error", "misread"))
    lossy = bool((incomplete > 1e-3).any() and (incomplete != misread).any())
    fine = float(padded["rounding"][0]) < 1e-6 and not lossy
    return _Probe(incomplete, misread, torch.stack(changed), fine, slots)


def _run(model: Model, ids: Tensor, mask: Tensor, **how: Any) -> dict[str, list[Tensor]]:
    """Sites of every layer, from a batch of the same tokens, as far as the mask shows them, at its diagonal."""
    inputs = {"input_ids": (ids * mask).to(model.device), "attention_mask": mask.to(model.device), "use_cache": False}
    last = torch.arange(len(ids), device=model.device) * (len(ids) + 1)
    return trace_blocks(model, inputs, last, **how)


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
    contributed = activations[:, : len(vectors)] @ vectors.float() + bias + sites.get("bias", 0)
    errors = []
    for written in (contributed, sites.get("written")):
        branch = sites["scale"][:, None] * gain * (contributed if written is None else written)
        missed = ((mid + branch - post).norm(dim=1) - eps * post.norm(dim=1)).clamp_min(0)
        errors.append((missed / branch.norm(dim=1).clamp_min(1e-38)).max())
    return {"error": errors[0], "misread": errors[1], "rounding": torch.tensor(eps), "post": sites["post"]}
