"""Check your setup and suggest fixes.

example:
  tnkit doctor
"""

import argparse
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tnkit import __version__
from tnkit.cli import flags
from tnkit.errors import TnkitError, first_line

if TYPE_CHECKING:
    from tnkit.models.model import Model

_GIB = 1 << 30


def add_flags(command: argparse.ArgumentParser) -> None:
    flags.flag(command, "model", "also load this model or folder: what is read, how well it adds up, what is missing")


def run(options: argparse.Namespace) -> None:
    """Print every finding, and fail where something must be fixed first."""
    broken = 0
    for finding in examine(options.model):
        flags.show(finding)
        broken += finding.needed
    if broken:
        raise TnkitError(f"{broken} of these must be fixed before tnkit works; see FIX above")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was checked.
        state: the result.
        advice: what to do; empty where nothing needs doing.
        needed: whether tnkit fails until the advice is followed.

    >>> print(Finding("fonts", "no glyphs for Japanese", "install fonts-noto-cjk"))
    note  fonts          no glyphs for Japanese
                         → install fonts-noto-cjk
    """

    check: str
    state: str
    advice: str = ""
    needed: bool = False

    def __str__(self) -> str:
        verdict = "FIX" if self.needed else "note" if self.advice else "ok"
        return f"{verdict:<5} {self.check:<14} {self.state}" + (f"\n{'':21}→ {self.advice}" if self.advice else "")


def examine(model: str | None = None) -> Iterator[Finding]:
    """Run every check; an error in a check is a finding as well.

    Args:
        model: also load this packaged name, Hub id or folder, and check its tokenizer and how it is read.
    """
    checks = {check.__name__.strip("_").replace("_", " "): check for check in CHECKS}
    if model is not None:
        checks |= {"tokenizer": partial(_tokenizer, model), "model": partial(_model, model)}
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            advice = "please report this, with the versions above"
            yield Finding(name, f"{type(error).__name__}: {error}", advice, needed=True)


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    system = f"{platform.platform(terse=True)}, {platform.machine()}"
    yield Finding("tnkit", f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("python", f"Python {platform.python_version()}, {system}")
    for requirement in map(Requirement, metadata.requires("tnkit") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            yield Finding(requirement.name, "not installed", f"pip install '{requirement}'", needed=True)
        elif not requirement.specifier.contains(version, prereleases=True):
            advice = f"tnkit is tested with {requirement.specifier}: pip install '{requirement}'"
            yield Finding(requirement.name, version, advice, needed=True)
        elif requirement.name in ("torch", "transformers", "nnsight"):
            yield Finding(requirement.name, version)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("processor", f"{torch.get_num_threads()} of {os.cpu_count()} cores in use")
    for number in range(torch.cuda.device_count()):
        yield Finding(
            f"GPU {number}", f"{torch.cuda.get_device_name(number)}, {_room(*torch.cuda.mem_get_info(number))}"
        )
    if torch.cuda.is_available():
        return
    if torch.version.cuda or torch.version.hip:
        yield Finding("GPU", "none that PyTorch can use", "models run on the CPU; to use a GPU, check nvidia-smi")
    else:
        advice = "for an NVIDIA GPU, install PyTorch with CUDA: pytorch.org/get-started"
        yield Finding("GPU", f"this PyTorch ({torch.__version__}) supports the CPU only", advice)


def _memory() -> Iterator[Finding]:
    import psutil

    total, free = psutil.virtual_memory()[:2]
    advice = "" if free > 2 * _GIB else "the packaged model needs 2 GiB: close other programs"
    yield Finding("memory", _room(free, total), advice)


def _room(free: int, total: int) -> str:
    billions = free / 2.5 / 1e9  # 2 bytes a parameter in 16 bits, and room for what a pass needs
    fits = f"enough for about {billions:.0f} billion parameters in bfloat16"
    return (
        f"{free / _GIB:.0f} of {total / _GIB:.0f} GiB free, {fits if billions >= 1 else 'too little for a large model'}"
    )


def _cache() -> Iterator[Finding]:
    from tnkit.captures import shards
    from tnkit.storage import cache_folder

    folder = cache_folder()
    try:
        held = sum(entry.size for entry in shards.entries())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, TnkitError) as error:
        advice = "set TNKIT_CACHE to a writable folder"
        yield Finding("cache", f"{folder} is not writable ({getattr(error, 'strerror', error)})", advice)
        return
    free = shutil.disk_usage(folder).free
    advice = "" if free > 3e9 else "clear it with tnkit cache --clear, or set TNKIT_CACHE to another folder"
    yield Finding("cache", f"{folder}, {held / 1e9:.1f} GB held, {free / 1e9:.0f} GB free", advice)


def _demo_model() -> Iterator[Finding]:
    from tnkit.models import packaged

    for name, model in packaged.MODELS.items():
        if not all(map(_version, model.distributions)):
            yield Finding(name, "not installed", f"{model.install}, or use your own model")
        elif packaged.is_converted(name):
            yield Finding(name, "installed and unpacked")
        else:
            yield Finding(name, "installed; unpacked on first use (about half a minute)")


def _tokenizer(model: str) -> Iterator[Finding]:
    from transformers import AutoTokenizer

    from tnkit.models import packaged
    from tnkit.models.tokens import advice, special_tokens

    source = packaged.converted_folder(model) if model in packaged.MODELS else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        yield Finding("tokenizer", f"{model} has none that loads: {first_line(error)}", "check the name or folder")
        return
    tokens = [tokenizer(text)["input_ids"] for text in ("Hello", "Hi there.")]
    specials = special_tokens(tokenizer, tokens, [(0, len(ids)) for ids in tokens])
    chat = "a chat template" if tokenizer.chat_template else "no chat template"
    state = f"{model}: BOS {specials['bos']}, special token at the end: {specials['end'] or 'none'}, {chat}"
    yield Finding("tokenizer", state, "; ".join(advice(tokenizer, specials)))


def _model(source: str) -> Iterator[Finding]:
    """What is read of a model, how well it adds up, and what it does not support."""
    from tnkit.models.load import load_model
    from tnkit.models.proofs import causality_error, completeness_error

    try:
        model = load_model(source)
    except TnkitError as error:
        yield Finding("model", str(error), "docs/models.md lists the architectures that are read", needed=True)
        return
    incomplete, acausal = completeness_error(model), causality_error(model)
    kind, dtype = type(model.module).__name__, str(model.dtype).removeprefix("torch.")
    yield Finding("model", f"{kind}, {model.n_layers} layers, hidden size {model.hidden_size}, {dtype}")
    yield Finding(
        "neurons", f"{' to '.join(map(str, sorted({min(model.widths), max(model.widths)})))} a layer: {model.reading}"
    )
    worst = f"to {float(incomplete.max()):.1g} of the MLP's output, at worst in layer {int(incomplete.argmax())}"
    yield Finding("adds up", f"mid + contributions + bias = post {worst}")
    yield Finding("causal", f"later tokens and padding change a state by {float(acausal.max()):.1g} of its size")
    missing = dict(_missing(model))
    state = f"all but {', '.join(missing)}" if missing else "everything"
    yield Finding("supports", state, "; ".join(missing.values()))


def _missing(model: "Model") -> Iterator[tuple[str, str]]:
    """What a model does not support, and what to do about it."""
    if not model.module.can_generate():
        yield "generation, likelihood and lens", "for those, load a model with its output head"
    if model.final_norm_path is None:
        yield "last_layer='normed'", "no final norm was found; use last_layer='raw'"
    if not model.tokenizer.chat_template:
        yield "chat=True", "the tokenizer has no chat template; give template='...{sentence}...'"
    if getattr(model.module, "_is_stateful", False):
        yield ("ablation from a cached prefix", "whole sentences run instead, since its state is no cache")


def _extras() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in metadata.requires("tnkit") or []]
    for extra in ("measures", "notebooks"):
        names = [wanted.name for wanted in requirements if wanted.marker and wanted.marker.evaluate({"extra": extra})]
        missing = [name for name in names if not _version(name)]
        state = f"without {', '.join(missing)}" if missing else f"all {len(names)} packages"
        yield Finding(extra, state, f"for what needs them: pip install 'tnkit[{extra}]'" if missing else "")


def _fonts() -> Iterator[Finding]:
    from tnkit.plots import style

    font = style.cjk_font()
    yield Finding("fonts", font or "no glyphs for Japanese, Chinese and Korean", "" if font else style.GET_CJK_FONT)


def _keys() -> Iterator[Finding]:
    """Whether keys are set; they are never shown."""
    import huggingface_hub.constants

    from tnkit.models.remote import has_key

    offline, token = huggingface_hub.constants.HF_HUB_OFFLINE, huggingface_hub.get_token() is not None
    state = ("token set" if token else "no token") + (", offline (HF_HUB_OFFLINE)" if offline else "")
    yield Finding("Hugging Face", state, "" if token or offline else "for gated models such as Llama: hf auth login")
    advice = "for models that run on NDIF: set NDIF_API_KEY to a key from login.ndif.us"
    yield Finding("NDIF", "key set", "") if has_key() else Finding("NDIF", "no key", advice)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _devices,
    _memory,
    _cache,
    _demo_model,
    _extras,
    _fonts,
    _keys,
)
