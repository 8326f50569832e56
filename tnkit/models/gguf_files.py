"""GGUF files: a model and its tokenizer, dequantised by transformers, with what its reader leaves out put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import transformers
from tokenizers import pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerBase

from tnkit.errors import optional
from tnkit.models.sessions import replaced

_ADDS_BOS = {"llama"}  # vocabularies that begin with BOS where the file does not say
_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")


def local(source: str | Path, revision: str | None = None) -> Path | None:
    """A GGUF file on this machine, downloaded where the source is a Hub id and a file's name; None for other sources.

    >>> local("owner/name") is None
    True
    """
    if not is_named(source):
        return None
    path = Path(source).expanduser()
    if path.is_file():
        return path
    owner, name, file = str(source).split("/", 2)
    return Path(huggingface_hub.hf_hub_download(f"{owner}/{name}", file, revision=revision))


def is_named(source: str | Path) -> bool:
    """Whether a source names a GGUF file.

    >>> is_named("folder/model.gguf")
    True
    """
    return str(source).endswith(".gguf")


def tokenizer_of(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file.

    transformers drops the file's `add_bos_token` (without <bos>, Gemma's perplexity is about 20 times higher), and does
    not split numbers into digits for SmolLM.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    says = _says(file, "add_bos_token", "model", "pre")
    backend = tokenizer.backend_tokenizer
    if says["pre"] == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    bos, adds = tokenizer.bos_token, says["add_bos_token"]
    if bos and (says["model"] in _ADDS_BOS if adds is None else adds):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    return tokenizer


def dequantised(file: Path) -> dict[str, Any]:
    """How `from_pretrained` is asked for a plain model of a file; from 5.22 on it may leave weights packed."""
    config = getattr(transformers, "GgufConfig", None)
    return {"gguf_file": file.name, **({"quantization_config": config(dequantize=True)} if config else {})}


def unmarked(module: nn.Module) -> None:
    """Take off what marks a dequantised module as quantised, which keeps it from being saved."""
    for owner, name in ((module.config, "quantization_config"), *((module, mark) for mark in _MARKS)):
        if hasattr(owner, name):
            delattr(owner, name)


@contextmanager
def parsed_once(source: str | Path) -> Iterator[None]:
    """A context in which a GGUF file is parsed once, though tokenizer, config and weights are read one by one.

    Parsing takes most of the time: a vocabulary is read token by token. Nothing happens for any other source.

    >>> with parsed_once("folder"):
    ...     pass
    """
    if not is_named(source):
        yield
        return
    gguf = optional("gguf", "reading GGUF files", "pip install gguf")

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined]
        """The reader with its file as a plain array, whose slices take a quarter of the time of a memory map's."""

        @property
        def data(self) -> np.ndarray:
            return self._bytes

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._bytes = mapped.view(np.ndarray)

    with replaced(gguf, "GGUFReader", cache(Reader)):
        yield


def _says(file: Path, *names: str) -> dict[str, Any]:
    """What a file says of its tokenizer; None for what it does not say."""
    try:
        from transformers.integrations.gguf.reader import read_gguf_metadata
    except ImportError:  # of transformers before 5.22
        import gguf

        fields = gguf.GGUFReader(file).fields
        said = {name: field.contents() for name, field in fields.items() if name.split(".")[-1] in names}
    else:
        said, _ = read_gguf_metadata(str(file), ())
    return {name: said.get(f"tokenizer.ggml.{name}") for name in names}
