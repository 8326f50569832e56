"""A checkpoint without chosen neurons, for any tool that loads transformers models: `export_ablated`.

tn.export_ablated(model, type1, "folder")
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tnkit import signals, storage
from tnkit.errors import TnkitError, check_model, first_line
from tnkit.interventions.intervention import Intervention, set_of
from tnkit.interventions.together import Given, intervention_of
from tnkit.models import maps
from tnkit.models.experts import is_transposed
from tnkit.models.model import Model
from tnkit.models.reading import MERGE


def export_ablated(model: Model, neurons: Given, folder: str | Path) -> Path:
    """Write a transformers checkpoint in which the neurons' value vectors are zero, or scaled.

    Any tool can load it; it equals `Ablation(model, neurons, tokens="all")`. The model in memory is not touched.

    Args:
        model: from `load_model`.
        neurons: a `NeuronSet` or (layer, neuron) pairs, or an `Intervention` that sets to 0 or scales.
        folder: a new or empty folder.

    Returns:
        The folder.

    Raises:
        TnkitError: for other values than 0, which weights do not hold; for a folder that holds something already or
            cannot be written, results of another model, a model that is remote, ablated, adapted, quantised, offloaded
            or spread over processes.

    >>> from tnkit.testing import tiny_model
    >>> with tempfile.TemporaryDirectory() as work:
    ...     folder = export_ablated(tiny_model("llama"), [(1, 7)], f"{work}/off")
    ...     [path.name for path in folder.glob("*.safetensors")]
    ['model.safetensors']
    """
    check_model(model)
    folder = Path(folder)
    target = folder.resolve()  # where a link leads
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TnkitError(f"{folder} is there already and is not an empty folder; choose another")
    asked, module = intervention_of(neurons, {}), model.module
    if not isinstance(asked, Intervention):
        raise TnkitError(f"{asked.describe()}: export one Intervention, or run the model inside an Ablation instead")
    chosen = set_of(model, asked.neurons)
    _check_whole(model, chosen.by_layer())
    weights = module.state_dict()
    for layer, places in chosen.by_layer().items():
        factor = _factor(asked, layer, places)
        for path, rows_of, here in _weights(model, layer, places):
            weights[path] = weights[path].clone()
            rows = rows_of(weights[path])
            rows[here] = rows[here] * factor if factor else 0
    about = {"model": model.provenance, "ablated": [list(pair) for pair in chosen], **asked.about()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folders = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-")
        with folders as work, signals.unfinished(work):
            out = Path(work) / "out"
            module.save_pretrained(out, state_dict=weights)
            model.tokenizer.save_pretrained(out)
            storage.write_text(out / "tnkit.json", json.dumps(about, ensure_ascii=False))
            if target.exists():
                target.rmdir()
            shutil.move(out, target)
    except (OSError, SafetensorError) as error:
        raise TnkitError(f"{folder} could not be written ({first_line(error)}); nothing was left there") from error
    return folder


def _weights(model: Model, layer: int, places: list[int]) -> list[tuple[str, Callable[[Tensor], Tensor], Any]]:
    """The weights that hold the value vectors of neurons of a layer, how these are seen by row, and at which row."""
    path, experts, sites = model.map_path(layer), model.experts_of(layer), model.sites[layer]
    last_map = model.module.get_submodule(path)
    if not experts:
        return [(f"{path}.weight", _by_row(type(last_map).__name__ == "Conv1D"), places)]
    count, width = experts
    routed = [divmod(place, width) for place in places if place < count * width]
    beyond = [place - count * width for place in places if place >= count * width]
    weights: list[tuple[str, Callable[[Tensor], Tensor], Any]] = []
    if routed:
        where = tuple(torch.tensor(routed).T)
        weights.append((f"{path}.down_proj", _by_row(is_transposed(last_map)), where))
    if beyond and sites and sites.experts:
        weights.append((f"{model.blocks_path}.{layer}.{sites.experts.shared}.weight", _by_row(False), beyond))
    return weights


def _by_row(is_so: bool) -> Callable[[Tensor], Tensor]:
    return (lambda weight: weight) if is_so else (lambda weight: weight.mT)


def _factor(asked: Intervention, layer: int, places: list[int]) -> float:
    """What value vectors are multiplied by.

    Raises:
        TnkitError: for an intervention that is no multiplication.
    """
    target, scale = asked.target(layer, places)
    if target is not None and (scale is not None or bool(target.any())):
        raise TnkitError(
            f"{asked.describe()}: a checkpoint holds weights alone, which can scale activations or set them to 0; run "
            "the model inside an Ablation instead"
        )
    return 0.0 if scale is None else scale


def _check_whole(model: Model, layers: Iterable[int]) -> None:
    """Refuse a model whose weights in memory are not what it computes with, or not what a checkpoint holds."""
    module = model.module
    if model.sharded:
        raise TnkitError(f"{model.name} is spread over processes; load it without tp_plan to write a checkpoint")
    if model.ablations:
        raise TnkitError("an Ablation is active, which a checkpoint would not hold; leave it, and export all neurons")
    if any(weight.is_meta for weight in module.parameters()):
        raise TnkitError(f"weights of {model.name} are offloaded; load it without device_map to write a checkpoint")
    model.check_unchanged()
    for path, *_ in maps.adapters_of(module):
        raise TnkitError(f"{path} is an adapter, which a plain checkpoint does not hold; {MERGE}")
    for layer in layers:
        name = model.map_path(layer)
        last_map = module.get_submodule(name)
        is_read = maps.is_plain(last_map) or model.experts_of(layer)
        if getattr(module, "is_quantized", False) or not is_read:
            raise TnkitError(
                f"the weight of {name} ({type(last_map).__name__}) is no plain matrix, or the model is quantised, so "
                "that a changed value vector cannot be written as it is; export from the model before quantisation"
            )
