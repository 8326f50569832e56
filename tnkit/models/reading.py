"""Where a decoder block keeps its MLP neurons, found by name and proved by arithmetic.

A block's MLP branch ends in one linear map. `Sites` says which submodule that is, where `mid` (the sum the branch is
added to) can be read, and whether the branch passes through a norm of its own before it is added. Blocks of a model may
be of several kinds. There is no list of architectures: the few names that transformers' models use are tried in turn
for each kind, and `load_model` keeps the reading for which

    mid + sum of contributions + bias = post

holds on a real forward pass. That identity has one solution for `mid`, so a reading that passes is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tnkit.errors import TnkitError
from tnkit.models import maps
from tnkit.models.experts import Experts, experts_in, is_experts, shape_of
from tnkit.models.refusals import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_LAST_MAPS = """
    mlp.down_proj mlp.c_proj mlp.dense_4h_to_h mlp.fc2 mlp.fc_out mlp.proj ffn.down_proj feed_forward.down_proj
    feed_forward.w2 shared_mlp.output_linear mlp.Wo mlp_block.down_proj mixer.down_proj ffn.proj_down ffn.ffn.w_out
    ffn.fc2 ffn.2 fc2 output.dense
""".split()
# What reads other tokens: attention, and the recurrent and convolutional layers of hybrids.
ATTENTIONS = ("self_attn", "self_attention", "attention", "attn", "linear_attn", "mamba", "conv", "mixer")
_READS_MID = """
    pre_feedforward_layernorm pre_mlp_layernorm post_attention_layernorm ln_2 norm_2 final_layer_norm ffn_norm
    pre_ff_layernorm mlp_norm channel_pre_norm layernorm2 norm_ffn mlp feed_forward ffn intermediate ln LayerNorm norm
""".split()
_BRANCH_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp.post_mlp_layernorm", "post_norm2")
_AFTER = ("per_layer_input_gate",)  # Gemma 4 goes on with the sum here
_CARRIES = ("layer_scalar", "post_attention_residual")
_PARALLEL_FLAGS = ("use_parallel_residual", "parallel_attn", "new_decoder_architecture")
MERGE = "merge the adapter into the weights (peft's merge_and_unload()) and load the result"
_EXPERTS = ("experts", "router", "block_sparse_moe", "shared_expert")


@dataclass(frozen=True)
class Sites:
    """Submodules of a block, by name relative to it.

    Attributes:
        last_map: the MLP's last linear map; its input coordinates are the neurons. It is "" while a block without MLP
            is tried, which adds its attention alone.
        mid: the module whose input is `mid`, or None where attention and MLP run side by side (mid = pre + attention).
        attention: the attention module, read only where `mid` is None.
        norm: the norm that the MLP branch passes through before it is added, or None.
        multiplier: the constant that the branch is multiplied by before it is added (Granite), else 1.
        after: the module whose input is `post`, in a block that goes on after the sum (Gemma 4); None where the sum
            leaves the block.
        carry: the block's own tensor that `mid` is multiplied by on its way to the sum (Gemma 4, Doge), or None.
        experts: what else is read where `last_map` is not a linear map, but the experts of the layer.
    """

    last_map: str
    mid: str | None
    attention: str | None = None
    norm: str | None = None
    multiplier: float = 1.0
    after: str | None = None
    carry: str | None = None
    experts: Experts | None = None

    @property
    def names(self) -> list[str]:
        """The submodules that are read."""
        more = (self.experts.shared, self.experts.gate) if self.experts else ()
        return [name for name in (self.mid, self.attention, self.norm, self.last_map, self.after, *more) if name]

    def __str__(self) -> str:
        where, mid = (
            f"neurons at {self.last_map}",
            f"the input of {self.mid}" if self.mid else f"pre + {self.attention}",
        )
        if self.experts:
            where += f" ({self.experts.slots} experts a token)"
            where += f" and {self.experts.shared}" if self.experts.shared else ""
        norm, post = self.norm and f", branch norm {self.norm}", self.after and f", post = the input of {self.after}"
        return f"{where}, mid = {mid}{norm or ''}{post or ''}"


def decoder_blocks(module: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks in a transformers model, and its dotted path.

    Raises:
        TnkitError: for an encoder-decoder or mixture-of-experts model, or where no such list is found.

    >>> from tnkit.testing import tiny_module
    >>> path, blocks = decoder_blocks(tiny_module("gpt2"))
    >>> path, len(blocks)
    ('transformer.h', 4)
    """
    name = type(module).__name__
    config = module.config.get_text_config(decoder=True)
    if module.config.is_encoder_decoder:
        raise TnkitError(
            f"{name} is an encoder-decoder model; transfer neurons are defined on the residual stream of a "
            "decoder-only model, so load one of those"
        )
    depth = config.num_hidden_layers
    found = [
        (path, child)
        for path, child in module.named_modules()
        if isinstance(child, nn.ModuleList)
        and len(child) == depth
        and any(has(block, site) for block in child for site in (*_LAST_MAPS, *ATTENTIONS))
    ]
    if len(found) > 1:  # an image encoder may be as deep as the text model
        decoder = module.get_decoder()
        for parts in ([*decoder.children()], [*decoder.modules()]):
            if texts := [(path, blocks) for path, blocks in found if any(child is blocks for child in parts)]:
                found = texts
                break
    for path, blocks in found:
        for index, block in enumerate(blocks):
            expert = next((part for part, _ in block.named_modules() if part.split(".")[-1] in _EXPERTS), None)
            if expert and not any(is_experts(part) for part in block.modules()):
                raise TnkitError(
                    f"{name} is a mixture-of-experts model whose experts ({path}.{index}.{expert}) are not one module "
                    "that is called with states, experts' numbers and the router's weights and sums up what they "
                    "write, so that tnkit cannot tell which neurons run; load another model"
                )
    if len(found) != 1:
        lists = [f"{path} ({len(child)})" for path, child in module.named_modules() if isinstance(child, nn.ModuleList)]
        raise TnkitError(
            f"{name} is not an architecture that tnkit knows: expected one list of {depth} decoder blocks with an "
            f"attention or MLP by a usual name, found {[path for path, _ in found] or 'none'}; its lists are "
            f"{', '.join(lists[:4]) or 'none'}"
        )
    return found[0]


def readings(block: nn.Module, config: PreTrainedConfig) -> Iterator[Sites]:
    """The ways to read a block, the likeliest first.

    Raises:
        TnkitError: where the block has neither a last linear map nor an attention of a known name.
    """
    routed = next((name for name, part in block.named_modules() if is_experts(part)), None)
    last_map = routed or next((name for name in _LAST_MAPS if has(block, name)), None)
    attentions = [name for name in ATTENTIONS if has(block, name)]
    attention = next(iter(attentions), None)
    multiplier = _multiplier(block, config)
    if last_map is None:
        if not attentions:
            raise unknown(block, ATTENTIONS)
        yield from (Sites("", None, name, multiplier=multiplier) for name in attentions)
        return
    mids: list[str | None] = [name for name in _READS_MID if has(block, name)]
    if attention:
        parallel_first = any(getattr(config, flag, False) for flag in _PARALLEL_FLAGS)
        mids.insert(0 if parallel_first else len(mids), None)
    norms = [*(name for name in _BRANCH_NORMS if has(block, name)), None]
    after = next((name for name in _AFTER if has(block, name)), None)
    carry = next((name for name in _CARRIES if not after and isinstance(getattr(block, name, None), Tensor)), None)
    if carry == "layer_scalar":  # the branch is multiplied by it, too
        multiplier *= float(block.layer_scalar)  # type: ignore[arg-type]  # a tensor of one number
    for norm in norms:
        for mid in mids:
            for experts in experts_in(block) if routed else (None,):
                parallel = attention if mid is None else None
                yield Sites(last_map, mid, parallel, norm, multiplier, after, carry, experts)


def _multiplier(block: nn.Module, config: PreTrainedConfig) -> float:
    """What a branch is multiplied by before it is added: Granite's, MiniCPM 3's and Falcon-H1's constants."""
    down = getattr(getattr(block, "feed_forward", None), "down_multiplier", None)
    known = getattr(config, "residual_multiplier", None), getattr(block, "residual_scale", None), down
    return math.prod((float(value) for value in known if isinstance(value, int | float)), start=1.0)


def has(module: nn.Module, path: str) -> bool:
    """Whether a submodule of that dotted path exists.

    >>> has(torch.nn.Sequential(torch.nn.Linear(2, 2)), "0"), has(torch.nn.Linear(2, 2), "mlp.fc2")
    (True, False)
    """
    found: object = module
    for part in path.split("."):
        found = getattr(found, part, None)
        if not isinstance(found, nn.Module):
            return False
    return True


def width(block: nn.Module, sites: Sites, hidden: int) -> int:
    """The number of neurons in a block, 0 without an MLP."""
    if not sites.last_map:
        return 0
    last_map = block.get_submodule(sites.last_map)
    if sites.experts:
        count, each = shape_of(last_map)
        shared = sites.experts.shared
        return count * each + (width(block, Sites(shared, None), hidden) if shared else 0)
    return len(value_vectors(last_map, hidden)) if maps.is_plain(last_map) else maps.inputs_of(last_map)


def check_plain(module: nn.Module, where: str = "") -> None:
    """Refuse a module with parts that are compiled, around which nothing can be read or changed.

    Raises:
        TnkitError: naming the first such part.

    >>> check_plain(torch.nn.Linear(2, 2))
    """
    for path, child in module.named_modules():
        kind, path = type(child), ".".join(filter(None, (where, path)))
        if child._compiled_call_impl is not None or isinstance(child, torch._dynamo.OptimizedModule):
            raise TnkitError(
                f"{path or 'the model'} ({kind.__name__}) is compiled in place, so that its inside is neither read nor "
                "changed; load the model before compile() is called"
            )


def check_map(last_map: nn.Module, where: str) -> None:
    """Refuse a last map whose weight a hook makes anew in each pass, as pruning and the old spectral norm do.

    Raises:
        TnkitError: naming it.

    >>> check_map(torch.nn.utils.spectral_norm(torch.nn.Linear(2, 2)), "mlp.down_proj")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: the weight of mlp.down_proj (Linear) is made anew by a hook in each pass; write it out \
(prune.remove, remove_spectral_norm) and load the model again
    """
    if is_experts(last_map):
        return
    if isinstance(vars(last_map).get("weight"), Tensor):
        raise TnkitError(
            f"the weight of {where} ({type(last_map).__name__}) is made anew by a hook in each pass; write it out "
            "(prune.remove, remove_spectral_norm) and load the model again"
        )


def present(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which the weights of a module are there, also where accelerate keeps them on the CPU or on disk."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module)


def real(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A tensor of a module's state, brought from where accelerate keeps it."""
    if not tensor.is_meta:
        return tensor
    owner, _, attribute = name.rpartition(".")
    child = module.get_submodule(owner)
    with present(child):
        return getattr(child, attribute)


def device_of(module: Any) -> torch.device:
    """Where a module computes: where its weight is, or where accelerate brings it for each pass.

    >>> device_of(torch.nn.Linear(2, 2))
    device(type='cpu')
    """
    outer = getattr(module, "_hf_hook", None)
    weight = next(chain(module.parameters(), module.buffers()))
    for hook in (outer, *getattr(outer, "hooks", ())):
        if weight.is_meta and getattr(hook, "execution_device", None) is not None:
            return torch.device(hook.execution_device)
    return weight.device


def value_vectors(
    last_map: nn.Module, width: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "neuron hidden"]:
    """The columns of an MLP's last linear map, one a row, in the map's own dtype.

    Args:
        last_map: a `Linear` (weight hidden × neuron), GPT-2's `Conv1D` (weight neuron × hidden), or any map that is
            asked what it makes of unit vectors (`tnkit.models.maps`).
        width: the residual stream's width, `hidden`.
        dtype: of the activations that enter a map that is not plain.

    Raises:
        TnkitError: where the vectors are not of that width.

    >>> value_vectors(torch.nn.Linear(3, 2), 2).shape
    torch.Size([3, 2])
    """
    if maps.is_plain(last_map):
        vectors = plain_vectors(last_map)
    else:
        vectors, _ = maps.asked(last_map, dtype, device_of(last_map))
    if vectors.shape[1] != width:
        raise TnkitError(f"value vectors of width {vectors.shape[1]} do not fit a residual stream of width {width}")
    return vectors


def plain_vectors(last_map: Any) -> Float[Tensor, "neuron hidden"]:
    """`value_vectors` of a plain matrix; it travels to a server, as what that one calls cannot.

    Raises:
        TnkitError: for a weight that is not of floating-point numbers.
    """
    weight = last_map.weight.detach()
    if weight.ndim != 2 or not weight.dtype.is_floating_point:
        raise TnkitError(
            f"the weight of {type(last_map).__name__} is {tuple(weight.shape)} of {weight.dtype}, not a plain matrix; "
            "let the server load the model without quantisation"
        )
    return weight if type(last_map).__name__ == "Conv1D" else weight.T


def whole(weight: Tensor) -> Tensor:
    """A weight with all its shards, where it is spread over processes; all of them must ask."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def output_gain(norm: Callable[[Tensor], Tensor] | None, multiplier: float, like: Tensor) -> Float[Tensor, "hidden"]:
    """What the branch's output is multiplied by, coordinate by coordinate, before it is added to the residual stream.

    For a root-mean-square norm this is its learned gain, read by passing a vector of ones through it, whose root mean
    square is 1: no need to know whether the class multiplies by weight or by 1 + weight. The norm's denominator is not
    in it: it differs by token, and `capture` keeps it as `scale`.

    Args:
        norm: the branch's output norm, or None.
        multiplier: a constant factor.
        like: a tensor of the residual stream's width, dtype and device.

    >>> output_gain(None, 0.5, torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    ones = torch.ones_like(like)
    with torch.no_grad():
        return (multiplier * (ones if norm is None else norm(ones))).float()
