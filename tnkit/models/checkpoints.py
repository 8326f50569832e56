"""What `load_model` is given, turned into a transformers module and its tokenizer: checkpoints and wrapped models."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from tnkit.errors import TnkitError, first_line
from tnkit.models import gguf_files
from tnkit.models import reading as architecture
from tnkit.models.decoder import Decoder
from tnkit.models.wrapper import Envoy, quiet_loading

_DTYPES = {
    torch.float32: ("float32", "fp32", "float"),
    torch.bfloat16: ("bfloat16", "bf16"),
    torch.float16: ("float16", "fp16", "half"),
    torch.float64: ("float64", "fp64", "double"),
}
_AUTO: tuple[Any, ...] = (
    transformers.AutoModelForCausalLM,
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForMultimodalLM,
)
# What torch.compile, DataParallel, PEFT and FSDP put into the names of the weights that they save.
_PREFIXES = {
    r"^(?:module\.|base_model\.model\.|_orig_mod\.)+": "",
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.": "",
}


def dtype_of(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """The dtype of that name, or "auto".

    Raises:
        TnkitError: for a name of no floating-point dtype.

    >>> dtype_of("bf16"), dtype_of(torch.float16), dtype_of("auto")
    (torch.bfloat16, torch.float16, 'auto')
    """
    if dtype is None or dtype == "auto":
        return "auto"
    for known, names in _DTYPES.items():
        if dtype == known or str(dtype).removeprefix("torch.") in names:
            return known
    every = ", ".join(name for names in _DTYPES.values() for name in names)
    raise TnkitError(f"dtype={dtype!r} must be 'auto' or one of {every}")


def unwrapped(source: Any, tokenizer: Any) -> tuple[str | Path | PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A name, a folder or a plain transformers module, and the tokenizer that is given or comes with it.

    nnsight's wrappers, transformers' pipelines and models of tnkit bring both; `DataParallel`, compiled modules and
    models of PEFT, whose adapters stay on or off as they are, hold a module. A tokenizer may be the path of one.

    Raises:
        TnkitError: for anything else, and for a path where nothing is.

    >>> from tnkit.testing import byte_tokenizer, tiny_module
    >>> module, _ = unwrapped(torch.nn.DataParallel(tiny_module("gpt2")), byte_tokenizer())
    >>> module is tiny_module("gpt2")
    True
    """
    if isinstance(source, Envoy):
        source, tokenizer = source._module, tokenizer or getattr(source, "tokenizer", None)
    elif isinstance(source, transformers.Pipeline):
        source, tokenizer = source.model, tokenizer or source.tokenizer
    elif isinstance(source, Decoder):
        source, tokenizer = source.module, tokenizer or getattr(source, "tokenizer", None)
    source = _without_peft(source)
    while isinstance(source, nn.DataParallel | nn.parallel.DistributedDataParallel | torch._dynamo.OptimizedModule):
        source = source._orig_mod if isinstance(source, torch._dynamo.OptimizedModule) else source.module
        source = _without_peft(source)
    if isinstance(tokenizer, str | Path):
        tokenizer = _tokenizer_at(tokenizer)
    if isinstance(tokenizer, ProcessorMixin):
        tokenizer = getattr(tokenizer, "tokenizer", None)
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TnkitError(
            f"tokenizer= is {_kind(tokenizer)}; expected a transformers tokenizer (AutoTokenizer makes one)"
        )
    if isinstance(source, nn.Module):
        _check_module(source)
        if tokenizer is None:
            raise TnkitError("a loaded model needs its tokenizer: load_model(module, tokenizer=tokenizer)")
    elif not isinstance(source, str | Path):
        raise TnkitError(
            f"load_model was given {_kind(source)}; expected the name of a model, the folder of a checkpoint, or a "
            "loaded transformers model"
        )
    return _existing(source), tokenizer


def _without_peft(source: Any) -> Any:
    """The transformers module that a PEFT model holds, with the adapters in it.

    Raises:
        TnkitError: for virtual tokens, which PEFT puts before each text and the module does not know.
    """
    if not any(base.__module__.startswith("peft.") for base in type(source).__mro__):
        return source
    if getattr(source.active_peft_config, "is_prompt_learning", False):
        raise TnkitError(
            f"{type(source).__name__} puts virtual tokens before each text ({source.active_peft_config.peft_type}), "
            "which change every state and belong to no sentence; load the base model"
        )
    return source.get_base_model()


def _tokenizer_at(path: str | Path) -> PreTrainedTokenizerBase:
    try:
        return cast(PreTrainedTokenizerBase, transformers.AutoTokenizer.from_pretrained(path))
    except Exception as error:
        raise TnkitError(f"tokenizer={str(path)!r} could not be loaded ({first_line(error)})") from error


def _existing(source: str | Path | PreTrainedModel) -> str | Path | PreTrainedModel:
    if isinstance(source, Path) or str(source).startswith("~"):
        source = Path(str(source)).expanduser()
        if not source.exists():
            raise TnkitError(f"there is no model folder {source}")
    if isinstance(source, str | Path) and Path(source).is_file() and not gguf_files.is_named(source):
        raise TnkitError(
            f"{source} is a file; name a GGUF file, or the folder that holds the model's config.json, weights and "
            "tokenizer"
        )
    return source


def _check_module(module: nn.Module) -> None:
    architecture.check_plain(module)
    if not isinstance(module, PreTrainedModel):
        raise TnkitError(
            f"{type(module).__name__} is not a transformers model; load_model reads a PreTrainedModel, such as "
            "AutoModelForCausalLM.from_pretrained(…) returns"
        )
    empty = next((name for name, weight in module.named_parameters() if weight.is_meta), None)
    if empty and not any(hasattr(child, "_hf_hook") for child in module.modules()):
        raise TnkitError(
            f"{type(module).__name__} has no weights yet ({empty} is on the meta device); load them first "
            "(from_pretrained, or dispatch=True for a model of nnsight)"
        )


def _kind(thing: Any) -> str:
    if isinstance(thing, dict) and any(isinstance(value, torch.Tensor) for value in thing.values()):
        return "a state dict, which does not say how its tensors are used"
    if isinstance(thing, PreTrainedTokenizerBase):
        return f"a tokenizer ({type(thing).__name__})"
    return "None" if thing is None else f"a value of type {type(thing).__name__}"


def checkpoint(
    source: str | Path, config: transformers.PreTrainedConfig, how: dict[str, Any], options: dict[str, Any]
) -> PreTrainedModel:
    """The model of a folder or of the Hub, every one of whose weights the checkpoint holds.

    Args:
        source: a folder or Hub id.
        config: its configuration.
        how: dtype and placement, as `from_pretrained` takes them.
        options: revision and trust in its code.

    Raises:
        TnkitError: for weights that are missing or of another shape, and for a configuration of no causal model.
    """
    loading: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, **how, **options}
    load: Callable[..., Any] = _auto_class(source, config).from_pretrained  # a pair, with loading info
    with quiet_loading():
        module, info = load(source, **loading)
        if info["missing_keys"] and info["unexpected_keys"]:
            del module
            module, info = load(source, key_mapping=_PREFIXES, **loading)
            # It would write the prefixes back, in a broken form, into a checkpoint that is saved.
            conversions = getattr(module, "_weight_conversions", None) or []
            module._weight_conversions = [
                one for one in conversions if not set(getattr(one, "source_patterns", ())) & _PREFIXES.keys()
            ]
    check_complete(str(source), info)
    if "gguf_file" in options:
        gguf_files.unmarked(module)
    return module


def base_of(source: str | Path) -> str | Path:
    """Where the configuration is: the base model's place, for a folder that holds an adapter of PEFT alone."""
    folder = Path(source)
    if (folder / "config.json").exists() or not (folder / "adapter_config.json").exists():
        return source
    return str(json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"])


def check_complete(name: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights of its model; transformers draws those at random.

    Args:
        name: of the checkpoint.
        info: what `from_pretrained(…, output_loading_info=True)` returns beside the model.

    >>> check_complete("m", {"missing_keys": {"lm_head.weight"}, "unexpected_keys": set(), "mismatched_keys": set()})
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: m lacks 1 weight(s) of its model (lm_head.weight), which transformers would draw at \
random; save the checkpoint again with save_pretrained, from a model that is whole
    """
    missing, other = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    shapes = sorted(info["mismatched_keys"])
    adapters = [key for key in other if "lora_" in key or ".base_layer." in key]
    if adapters:
        raise TnkitError(f"{name} holds the weights of an adapter ({adapters[0]}); {architecture.MERGE}")
    if shapes:
        key, here, wanted = shapes[0]
        raise TnkitError(
            f"{name} has {len(shapes)} weight(s) of another shape than its config.json says ({key}: {tuple(here)}, "
            f"expected {tuple(wanted)}); use the config.json that was saved with these weights"
        )
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        holds = f"; it holds {len(other)} key(s) that the model does not have, such as {other[0]}" if other else ""
        raise TnkitError(
            f"{name} lacks {len(missing)} weight(s) of its model ({some}), which transformers would draw at "
            f"random{holds}; save the checkpoint again with save_pretrained, from a model that is whole"
        )


def _auto_class(source: str | Path, config: transformers.PreTrainedConfig) -> Any:
    """The class of transformers that loads a checkpoint: the kind that it was saved from, or a causal language model.

    It may have a vision part beside the text model, or no head.
    """
    own_code = getattr(config, "auto_map", None) or {}
    known = [auto for auto in _AUTO if auto.__name__ in own_code or type(config) in auto._model_mapping]
    if not known:
        raise TnkitError(
            f"{source} is a {config.model_type} model, which transformers does not load as a causal language model; "
            "transfer neurons are defined on decoder-only language models, so load one of those"
        )
    saved = getattr(config, "architectures", None) or ()
    for auto in (*known, transformers.AutoModel):
        classes = auto._model_mapping.get(type(config), ())
        if any(kind.__name__ in saved for kind in (classes if isinstance(classes, tuple) else (classes,))):
            return auto
    return known[0]


def cannot_load(source: str, error: Exception, known: Iterable[str]) -> str:
    """Why a model was not loaded, in a sentence."""
    said = f"{type(error).__name__}: {first_line(error)}"
    if Path(source).is_dir():
        return f"{source} could not be loaded as a transformers model folder ({said})"
    if Path(source).is_file():
        return f"{source} could not be loaded ({said})"
    if Path(source).is_absolute() or source.startswith("."):
        return f"there is no model folder {source}"
    if not isinstance(error, OSError):
        return f"{source} could not be loaded ({said})"
    return (
        f"unknown model {source!r}: it is not a packaged model ({', '.join(known)}), not a local folder, and "
        f"it could not be downloaded from the Hugging Face Hub ({said})"
    )
