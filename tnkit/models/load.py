"""`load_model`: a model from a name, a folder or a module, which it proves to be read correctly.

model = tn.load_model("gemma-3-270m")                       # the packaged demo model
model = tn.load_model("meta-llama/Meta-Llama-3-8B", dtype="bfloat16", device_map="auto")
model = tn.load_model("meta-llama/Meta-Llama-3-70B", tp_plan="auto")     # spread over the processes of torchrun
model = tn.load_model("path/to/folder")                     # or "path/to/file.gguf"
model = tn.load_model(module, tokenizer=tokenizer)          # a transformers model you already have
model = tn.load_model("meta-llama/Llama-3.1-70B", remote=True)   # one that runs on NDIF (`tnkit.models.remote`)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.distributed.configuration_utils import DistributedConfig

from tnkit import parallel
from tnkit.errors import TnkitError, last_line
from tnkit.models import checkpoints, gguf_files, packaged
from tnkit.models import reading as architecture
from tnkit.models import remote as servers
from tnkit.models.model import Model
from tnkit.models.proofs import kinds, packing, proved
from tnkit.models.tokens import template_of
from tnkit.models.wrapper import TransformersModel, max_tp_size, traceable

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "layer_norm", "norm_f")


def load_model(
    source: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | str | Path | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    tp_plan: Literal["auto"] | dict[str, str] | None = None,
    trust_remote_code: bool = False,
    remote: bool | str = False,
    chat: bool = False,
    template: str | None = None,
    packed: bool | None = None,
) -> Model:
    """Load a decoder-only model and prove that its neurons are read correctly.

    One tiny forward pass checks, in every layer, that mid + sum of contributions + bias = post, and that neither later
    tokens nor padding change a token's state. The module is put into eval mode, and stays so.

    Args:
        source: a packaged model's name, a Hub id, a local folder, a GGUF file (a path, or a Hub id and the file's
            name: "owner/name/file.gguf"), or a loaded transformers model, with or without its head, quantised or not,
            also inside a pipeline, a wrapper of nnsight, a `Model`, `DataParallel`, `torch.compile` or a model of PEFT,
            whose adapters stay on or off as they are.
        tokenizer: needed with a loaded model, unless its wrapper brings one; it stays as it is. A path loads one.
        revision: branch, tag or commit of the Hub repository.
        dtype: "auto" (as stored), "float32", "bfloat16", "float16", "float64", or their short names.
        device_map: as in transformers; "auto" spreads the model over the GPUs that are there.
        tp_plan: "auto" spreads the weights over the processes of torchrun, for a model that is larger than one GPU; all
            of them then run every batch together.
        trust_remote_code: run code that comes with the model; never on by default.
        remote: True leaves the weights on NDIF and runs there; a URL names another server of its kind.
        chat: wrap every sentence in the tokenizer's chat template, as a user's message.
        template: wrap every sentence in a text of your own, such as "Translate: {sentence}".
        packed: put the sentences of a batch behind each other in rows, without padding between them, which gives the
            same numbers to rounding in less time. None does so on a CPU, if the model gives short texts the same states
            both ways, which is checked; False pads; True also packs on a GPU, where the time has not been measured, and
            refuses a model that fails that check.

    Raises:
        TnkitError: for a model that cannot be loaded, divided by `tp_plan`, or reached on its server; one that lacks
            weights, has experts of an unknown kind or on other machines, is an encoder-decoder, or fails the checks.

    >>> from tnkit.testing import byte_tokenizer, tiny_module
    >>> model = load_model(tiny_module("gemma3"), tokenizer=byte_tokenizer())
    >>> print(model.reading)
    neurons at mlp.down_proj, mid = the input of pre_feedforward_layernorm, branch norm post_feedforward_layernorm
    """
    dtype, name = checkpoints.dtype_of(dtype), None
    if isinstance(source, Model):
        name, revision = source.name, revision or source.revision
        template = source.template if template is None and not chat else template
    source, tokenizer = checkpoints.unwrapped(source, tokenizer)
    name = name or str(source if isinstance(source, str | Path) else source.name_or_path or type(source).__name__)
    there = servers.checked(remote, source, dtype=dtype, device_map=device_map or tp_plan)
    about = {"name": name, "revision": revision, **({"remote": there} if there else {})}
    if isinstance(source, nn.Module):
        with _explained(type(source).__name__):
            tokenizer = cast(PreTrainedTokenizerBase, tokenizer)  # a module without one is refused
            template = template_of(tokenizer, chat, template)
            return _proved(traceable(source, tokenizer), tokenizer, template, about, packed=packed)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    how: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "tp_plan": tp_plan}
    try:
        with gguf_files.parsed_once(source):
            lm, tokenizer = _loaded(source, tokenizer, how, options, remote=bool(there))
        template = template_of(tokenizer, chat, template)
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(checkpoints.cannot_load(name, error, packaged.MODELS)) from error
    if not there:
        about["revision"] = revision or getattr(lm._module.config, "_commit_hash", None)
    with _explained(type(lm._module).__name__):
        return _proved(lm, tokenizer, template, about, packed=packed)


def _loaded(
    source: str | Path, tokenizer: Any, how: dict[str, Any], options: dict[str, Any], *, remote: bool
) -> tuple[TransformersModel, PreTrainedTokenizerBase]:
    """The wrapper of a model of that name or folder, and its tokenizer."""
    name = str(source)
    if name in packaged.MODELS:
        source = packaged.converted_folder(name)
    elif file := gguf_files.local(source, options["revision"]):
        tokenizer = tokenizer or gguf_files.tokenizer_of(file)
        source, options, how = file.parent, {"gguf_file": file.name}, how | gguf_files.dequantised(file)
    base = checkpoints.base_of(source)
    config = transformers.AutoConfig.from_pretrained(base, **options)
    if config.is_encoder_decoder:
        raise TnkitError(f"{name} is an encoder-decoder model ({config.model_type}); load a decoder-only model")
    tp_plan, device_map = how.pop("tp_plan"), how.pop("device_map")
    if tp_plan is None:
        how["device_map"] = parallel.own_device(device_map)
    elif device_map is not None:
        raise TnkitError(f"tp_plan and device_map={device_map!r} both say where the weights go; give one")
    else:
        parallel.check_divides(name, max_tp_size(config))
        how["distributed_config"] = DistributedConfig(tp_plan=tp_plan)
    beside = source if (Path(source) / "tokenizer_config.json").exists() else base
    tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(beside, **options)
    if remote:
        return traceable(source, tokenizer, partial(servers.undispatched, **options)), tokenizer
    return traceable(checkpoints.checkpoint(source, config, how, options), tokenizer), tokenizer


def _proved(
    lm: TransformersModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    about: dict[str, Any],
    *,
    packed: bool | None,
) -> Model:
    """A model with the reading of its blocks that is complete."""
    module = lm._module.eval()
    path, blocks = architecture.decoder_blocks(module)
    config = module.config.get_text_config(decoder=True)
    parent, _, _ = path.rpartition(".")
    norm = next((norm for norm in _FINAL_NORMS if architecture.has(module.get_submodule(parent), norm)), None)
    tried = kinds(blocks, config)
    first = {layer: ways[0] for layers, ways in tried.items() for layer in layers}
    sites = tuple(first[layer] for layer in range(len(blocks)))
    kind = servers.RemoteModel if "remote" in about else Model
    model = kind(
        **about,
        lm=lm,
        tokenizer=tokenizer,
        sites=sites,
        blocks_path=path,
        final_norm_path=norm and f"{parent}.{norm}",
        n_layers=len(blocks),
        widths=tuple(map(architecture.width, blocks, sites, repeat(config.hidden_size))),
        hidden_size=config.hidden_size,
        template=template,
    )
    is_here = model.server is None and (getattr(module, "_tp_size", None) or 1) == 1
    if any(row.experts for row in sites if row) and not is_here:
        raise TnkitError(
            f"{model.name} has experts, whose neurons tnkit reads where all of their weights are here; load it without "
            "remote= and tp_plan="
        )
    model.check_unchanged()
    model = _packed(proved(model, tried), packed)
    if model.sharded:
        model.provenance  # noqa: B018 - gathers the weights, which all processes must do together
    return model


def _packed(model: Model, packed: bool | None) -> Model:
    """The model, packing its batches if it can and may."""
    on_cpu = model.server is None and all(device.type == "cpu" for device in model.devices)
    if (packed or (packed is None and on_cpu)) and (attention := packing(model)):
        model = replace(model, packing=attention)
    if packed and not model.packs:
        raise TnkitError(
            f"{model.name} gives packed sentences other states than it gives them alone, or runs elsewhere; leave out "
            "packed=True, and its batches are padded"
        )
    return model


@contextmanager
def _explained(kind: str) -> Iterator[None]:
    """What goes wrong while a model of that class is read, as one sentence."""
    try:
        yield
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(
            f"{kind} is not a model that tnkit can read ({type(error).__name__}: {last_line(error)}); load a "
            "decoder-only language model of transformers"
        ) from error
