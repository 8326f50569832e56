"""nnsight's wrapper of a transformers module, through which its inside is traced: `traceable`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from nnsight.intervention.envoy import Envoy as Envoy
from nnsight.modeling.tp import max_tp_size as max_tp_size
from nnsight.modeling.transformers import TransformersModel as TransformersModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tnkit.models.reading import device_of
from tnkit.models.sessions import replaced


def traceable(
    source: str | Path | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    wrap: Callable[..., TransformersModel] | None = None,
) -> TransformersModel:
    """The wrapper of a module; the tokenizer, which nnsight sets up in its own way, stays as it was.

    Args:
        source: a loaded module, or with `wrap` what that takes.
        tokenizer: of the module.
        wrap: makes the wrapper.

    >>> from tnkit.testing import byte_tokenizer, tiny_module
    >>> tokenizer = byte_tokenizer()
    >>> traceable(tiny_module("llama"), tokenizer)._module is tiny_module("llama"), tokenizer.padding_side
    (True, 'right')
    """
    if wrap is None:
        wrap = _Offloaded if next(cast(nn.Module, source).parameters()).is_meta else _Local
    before = {name: getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "pad_token")}
    generates = not isinstance(source, PreTrainedModel) or source.can_generate()
    # only dispatch_model notes a map; without one, a pipeline would move weights that accelerate.cpu_offload offloaded
    unmapped = hasattr(source, "_hf_hook") and not hasattr(source, "hf_device_map")
    in_place = replaced(source, "hf_device_map", {"": "cpu"}) if unmapped else nullcontext()
    with quiet_loading(), in_place:
        lm = wrap(source, tokenizer=tokenizer, task="text-generation" if generates else "feature-extraction")
    for name, value in before.items():
        setattr(tokenizer, name, value)
    return lm


def served(path: str) -> str:
    """The path under which nnsight serves a submodule: those named `output` are in the way of a module's own output.

    >>> served("output.dense"), served("mlp.down_proj")
    ('E_output.dense', 'mlp.down_proj')
    """
    parts = path.split(".")
    return ".".join(f"{Envoy.OVERLOAD_PREFIX}{part}" if part == "output" else part for part in parts)


class _Local(TransformersModel):
    """The wrapper of a model that is here, to which packed rows go as they are: nnsight would add a mask to them."""

    def _batch(self, invokes: list[tuple[tuple[Any, ...], dict[str, Any]]], fn: Any) -> tuple[Any, ...]:
        (inputs, given), *others = invokes
        packed = "position_ids" in given and not {"attention_mask", "past_key_values"} & given.keys()
        return (inputs, given) if packed and not others else super()._batch(invokes, fn)


class _Offloaded(_Local):
    """The wrapper of a model whose weights accelerate brings for each pass: inputs go to where it computes."""

    @property
    def device(self) -> torch.device:
        """Where its embedding computes, for it lies on the meta device."""
        return device_of(cast(nn.Embedding, self._module.get_input_embeddings()))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' progress bars and reports for a moment; tnkit says in a sentence what is wrong."""
    log = transformers.utils.logging
    was_on, verbosity = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if was_on:
            log.enable_progress_bar()
