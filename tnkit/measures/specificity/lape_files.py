"""Neuron sets from files of the published LAPE code (Tang et al., ACL 2024)."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, first_line
from tnkit.storage import existing_file


def load_lape(path: str | Path, languages: Sequence[str], *, shape: tuple[int, int]) -> dict[str, NeuronSet]:
    """Read the language-specific neurons that the published LAPE code saves with `torch.save`.

    The file holds, for each language in the order in which the code was given them, and for each layer, the indices of
    neurons; it names neither languages nor model. No code in it runs: PyTorch reads tensors and lists alone.

    Args:
        path: of the file, such as activation_mask/llama-7b.
        languages: the names of its languages, in its order.
        shape: the model's layers and neurons in a layer, (model.n_layers, model.n_neurons).

    Returns:
        A set for each language, in the order of layers.

    Raises:
        TnkitError: for a missing, damaged or foreign file, and for other numbers of languages or layers than it holds.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "llama-7b")
    >>> torch.save([[torch.tensor([5]), torch.tensor([2, 7])], [torch.tensor([]).long(), torch.tensor([3])]], file)
    >>> {name: neurons.pairs for name, neurons in load_lape(file, ["en", "zh"], shape=(2, 48)).items()}
    {'en': ((0, 5), (1, 2), (1, 7)), 'zh': ((1, 3),)}
    """
    try:
        content: Any = torch.load(existing_file(path), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise TnkitError(f"{path} is not a file of tensors and lists ({first_line(error)})") from error
    except Exception as error:  # pickle's own, for objects of other types
        raise TnkitError(f"{path} holds more than tensors and lists; was it written by the LAPE code?") from error
    layered = isinstance(content, list) and all(isinstance(layers, list) for layers in content)
    if not layered or not all(_is_indices(indices) for layers in content for indices in layers):
        raise TnkitError(f"{path} does not hold lists of neurons by language and layer, as the LAPE code writes them")
    if len(content) != len(languages):
        raise TnkitError(f"{path} holds {len(content)} languages, not {len(languages)}; name all, in its order")
    if depths := {len(layers) for layers in content} - {shape[0]}:
        raise TnkitError(f"{path} is of a model with {min(depths)} layers, not {shape[0]}; give that model's shape")
    provenance = {"file": Path(path).name, "selection": {"lape of tokens": "published file"}}
    return {
        language: NeuronSet(_pairs(layers), shape, provenance={**provenance, "language": language})
        for language, layers in zip(languages, content, strict=True)
    }


def _is_indices(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    return value.dim() == 1 and (value.numel() == 0 or not (value.is_floating_point() or value.dtype == torch.bool))


def _pairs(layers: Sequence[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((layer, int(neuron)) for layer, indices in enumerate(layers) for neuron in indices.tolist())
