"""Things done to a live model between two cached captures: the second equals a fresh one, or is refused."""

import copy
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import MethodType
from typing import Any

import peft
import torch
from torch import nn
from transformers.models.llama import modeling_llama

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_module

QUIET = {"batch_tokens": 120, "progress": False}
Edit = Callable[[tn.Model], Any]


def layer(model: tn.Model) -> nn.Module:
    return model.module.model.layers[1]


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute has another value, for as long as the context lasts."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def weight(tensor: torch.Tensor, edit: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    """A weight or buffer has other values."""
    before = tensor.detach().clone()
    with torch.no_grad():
        edit(tensor)
        try:
            yield
        finally:
            tensor.data.copy_(before)


@contextmanager
def handled(handle: Any) -> Iterator[None]:
    """A hook is registered."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def cast(model: tn.Model) -> Iterator[None]:
    """The model is in half precision, and then back, rounded."""
    before = copy.deepcopy(model.module.state_dict())
    model.module.to(torch.bfloat16)
    try:
        yield
    finally:
        model.module.to(torch.float32)
        model.module.load_state_dict(before)


@contextmanager
def lora(model: tn.Model, use: Callable[[Any], Any]) -> Iterator[None]:
    """An adapter is added to the attention, and something is done with it."""
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model.module, config).eval()
    try:
        use(adapted)
        yield
    finally:
        adapted.unload()


def two_adapters(adapted: Any) -> None:
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    adapted.add_adapter("second", config)
    adapted.set_adapter("second")
    adapted.eval()


@contextmanager
def mode(model: tn.Model, path: str) -> Iterator[None]:
    """A module is in training mode."""
    model.module.get_submodule(path).train()
    try:
        yield
    finally:
        model.module.eval()


def doubled_input(_: nn.Module, arguments: Any) -> Any:
    return arguments[0] * 2


def rescaled(adapted: Any) -> None:
    for module in adapted.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling.update(default=7.0)


def other_wrapper(model: tn.Model) -> tn.Model:
    return tn.load_model(model.module, tokenizer=model.tokenizer)


def halved(_module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    return states / 2


def doubled(*arguments: Any) -> Any:
    """For a hook, whose last argument is the output; None leaves it as it is."""
    return arguments[-1] * 2 if isinstance(arguments[-1], torch.Tensor) else None


EDITS: dict[str, Edit] = {
    "weight through .data": lambda model: weight(layer(model).mlp.up_proj.weight.data, lambda one: one.mul_(1.5)),
    "one value of a weight": lambda model: weight(layer(model).mlp.gate_proj.weight[3, 5:6], lambda one: one.add_(0.5)),
    "weight through copy_": lambda model: weight(layer(model).mlp.down_proj.weight, lambda one: one.copy_(one.flip(0))),
    "permuted neurons": lambda model: weight(layer(model).mlp.up_proj.weight, lambda one: one.copy_(one.roll(1, 0))),
    "embedding": lambda model: weight(model.module.get_input_embeddings().weight, lambda one: one.neg_()),
    "rotary buffer": lambda model: weight(model.module.model.rotary_emb.inv_freq, lambda one: one.mul_(0.5)),
    "rotary scaling": lambda model: attribute(model.module.model.rotary_emb, "attention_scaling", 1.5),
    "attention scaling": lambda model: attribute(layer(model).self_attn, "scaling", 0.1),
    "epsilon of a norm": lambda model: attribute(layer(model).input_layernorm, "variance_epsilon", 0.5),
    "activation function": lambda model: attribute(layer(model).mlp, "act_fn", nn.GELU().eval()),
    "swapped linear map": lambda model: attribute(layer(model).self_attn, "o_proj", nn.Linear(32, 32).eval()),
    "swapped norm": lambda model: attribute(layer(model), "input_layernorm", nn.Identity().eval()),
    "configuration": lambda model: attribute(model.module.config, "rms_norm_eps", 0.1),
    "attention implementation": lambda model: attribute(model.module.config, "_attn_implementation", "eager"),
    "half precision": cast,
    "forward of a module": lambda model: attribute(
        layer(model).input_layernorm, "forward", MethodType(halved, layer(model).input_layernorm)
    ),
    "forward of a class": lambda model: attribute(type(layer(model).input_layernorm), "forward", halved),
    "function of the modelling file": lambda _: attribute(
        modeling_llama, "repeat_kv", lambda states, n: states.repeat(1, n, 1, 1)
    ),
    "forward hook": lambda model: handled(layer(model).register_forward_hook(doubled)),
    "forward pre-hook": lambda model: handled(layer(model).mlp.register_forward_pre_hook(doubled_input)),
    "hook of every module": lambda _: handled(nn.modules.module.register_module_forward_hook(doubled)),
    "training mode": lambda model: mode(model, ""),
    "training mode of a child": lambda model: mode(model, "model.layers.1.mlp"),
    "autocast": lambda _: torch.autocast("cpu", dtype=torch.bfloat16),
    "ablation": lambda model: tn.Ablation(model, [(1, 7), (2, 9)]),
    "ablation at the last token": lambda model: tn.Ablation(model, [(1, 7)], tokens="last"),
    "ablation through another wrapper": lambda model: tn.Ablation(other_wrapper(model), [(1, 7), (2, 9)]),
    "adapter": lambda model: lora(model, id),
    "adapter with another scaling": lambda model: lora(model, rescaled),
    "adapters disabled": lambda model: lora(model, lambda adapted: adapted.base_model.disable_adapter_layers()),
    "adapter merged": lambda model: lora(model, lambda adapted: adapted.merge_adapter()),
    "another adapter set": lambda model: lora(model, two_adapters),
    "default precision of products": lambda _: precision("medium"),
}


@contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def tried(pairs: int) -> Counter[str]:
    """Each edit, after and before an untouched cached capture, and then two at a time.

    Args:
        pairs: how many pairs of edits.

    Returns:
        How many captures were "equal" to a fresh one, "refused", or "wrong"; and "wrong: EDIT" by name.
    """
    outcome: Counter[str] = Counter()
    chosen = [(name,) for name in EDITS]
    every = list(itertools.permutations(EDITS, 2))
    chosen += every[:: max(1, len(every) // pairs)][:pairs] if pairs else []
    logging.getLogger("tnkit").disabled = True  # warnings that nothing is kept
    try:
        for names in chosen:
            for first in (True, False):
                module = copy.deepcopy(tiny_module("llama"))
                model = tn.load_model(module, tokenizer=byte_tokenizer())
                if first:
                    _count(model, outcome, "untouched", *names)
                for name in names:
                    with suppress(tn.TnkitError), EDITS[name](model):  # an ablation that set nothing says so
                        for _ in range(2):
                            _count(model, outcome, *names)
                _count(model, outcome, "after", *names)
    finally:
        logging.getLogger("tnkit").disabled = False
    return outcome


def _count(model: tn.Model, outcome: Counter[str], *names: str) -> None:
    """Compare a cached capture with a fresh one."""
    try:
        fresh = tn.capture(model, SENTENCES, **QUIET)
    except tn.TnkitError:
        fresh = None
    try:
        cached = tn.capture(model, SENTENCES, cache=True, **QUIET)
    except tn.TnkitError:
        cached = None
    if cached is None or fresh is None:
        how = "refused" if cached is fresh else "wrong"
    else:
        same = all(torch.equal(one, cached.tensors()[name]) for name, one in fresh.tensors().items())
        how = "equal" if same and cached.provenance == fresh.provenance else "wrong"
    outcome[how] += 1
    if how == "wrong":
        outcome[f"wrong: {', '.join(names)}"] += 1
