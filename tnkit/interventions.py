"""Switching neurons off while a model runs: `Ablation`, a context in which everything that calls the model is ablated.

    with tn.Ablation(model, type1):                              # activations set to 0 at every token
        off = tn.capture(model, test["ja"])
    with tn.Ablation(model, type1, tokens="last") as ablation:   # at the last token of the prompt only
        model.module.generate(**inputs)
    ablation.count                                               # (token, neuron) values that were set
    tn.export_ablated(model, type1, "folder")                    # a transformers checkpoint without them

It works through PyTorch's forward hooks, so that captures, generation, evaluation harnesses and code of your own all
see the same ablated model. A remote model is ablated inside the traces that captures and scores send, which edit the
activations at the same places; whatever else would run it is refused. `LastToken` re-runs only the last token of
sentences whose prefix was run once, which makes ten seeds of a control cheap.
"""

import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import parallel, storage
from tnkit.activations import Activations, batch_of, gathered
from tnkit.batches import by_length, padded, provenance_of, roomy, tokenised
from tnkit.errors import TnkitError, one_of
from tnkit.models import Model, check_layers
from tnkit.neurons import NeuronSet
from tnkit.passes import KEEP, capture
from tnkit.trace import Change, changed, chosen_sites, chosen_tokens, trace_blocks

TOKENS = ("last", "prompt", "all")


class Ablation:
    """A context in which chosen neurons' activations are set to a value, or scaled.

    Contexts nest, the inner one acting on what the outer one left; leaving one restores the model, also after an error.

    Args:
        model: from `load_model`.
        neurons: a `NeuronSet` or (layer, neuron) pairs; none changes nothing, bit for bit.
        value: what the activations are set to: a number (0.0 switches off), or "mean".
        means: with value="mean", a capture whose mean activation of each neuron is used.
        scale: multiply the activations by this instead of setting them.
        tokens: "last" acts on the last token of the prompt only, "prompt" on every token of it and on no decoded one,
            "all" on every token, decoded ones included. Padding is never counted.

    Attributes:
        count: how many (token, neuron) values have been set so far.

    Raises:
        TnkitError: for a neuron that the model does not have, an unknown token scope, or a mean that is not given.

    >>> import tnkit as tn
    >>> from tnkit.tests.tiny import tiny_model
    >>> model = tiny_model("llama")
    >>> with Ablation(model, [(1, 7), (1, 8)], tokens="last") as ablation:
    ...     found = tn.capture(model, ["Hello", "Hi"], progress=False)
    >>> found.activations[1, :, 7].tolist(), ablation.count
    ([0.0, 0.0], 4)
    """

    def __init__(
        self,
        model: Model,
        neurons: Iterable[tuple[int, int]],
        *,
        value: float | str = 0.0,
        means: Activations | None = None,
        scale: float | None = None,
        tokens: str = "all",
    ) -> None:
        one_of("tokens", tokens, TOKENS)
        if isinstance(value, str) and (value != "mean" or means is None):
            raise TnkitError(f"value={value!r} must be a number, or 'mean' with means=a capture with activations")
        shape = (model.n_layers, model.n_neurons)
        if isinstance(neurons, NeuronSet) and neurons.shape != shape:
            raise TnkitError(
                f"neurons of a model of {neurons.shape} layers × neurons do not go with {model.name}, {shape}"
            )
        self.model, self.tokens, self.scale, self.count = model, tokens, scale, 0
        self.neurons = neurons if isinstance(neurons, NeuronSet) else NeuronSet(tuple(neurons), shape)
        self.values = {
            layer: self._targets(layer, places, value, means) for layer, places in self.neurons.by_layer().items()
        }
        what: dict[str, Any] = {"scale": scale} if scale is not None else {"value": value}
        if isinstance(value, str):
            what["means"] = storage.text_hash(str(target.tolist()) for _, target in self.values.values())
        self.about = {"neurons": len(self.neurons), "hash": storage.text_hash(map(str, sorted(self.neurons)))}
        self.about |= {"tokens": tokens, **what}
        self._handles: list[Any] = []
        self._chosen: Tensor  # set as each forward pass begins
        self._active = False

    def __enter__(self) -> "Ablation":
        if self._active:
            raise TnkitError("this ablation is active already; make another one to nest it")
        self._active = True
        self.model.ablations.append(self.about)
        if self.model.remote:
            self.model.edits.append(self._edit)
        if not self.values or self.model.remote:
            return self
        blocks = attrgetter(self.model.blocks_path)(self.model.module)
        decoder = self.model.module.get_submodule(self.model.blocks_path.rpartition(".")[0])
        self._handles.append(decoder.register_forward_pre_hook(self._choose_tokens, with_kwargs=True))
        for layer, (places, target) in self.values.items():
            last_map = attrgetter(self.model.sites.last_map)(blocks[layer])
            self._handles.append(last_map.register_forward_pre_hook(self._setter(places, target)))
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False
        self.model.ablations.remove(self.about)
        if self.model.remote:
            self.model.edits.remove(self._edit)
        while self._handles:
            self._handles.pop().remove()

    def _targets(
        self, layer: int, places: list[int], value: float | str, means: Activations | None
    ) -> tuple[Tensor, Tensor]:
        device = self.model.device if self.model.remote else self.model.value_vectors(layer).device
        if isinstance(value, str) and means is not None:
            if layer not in means.require("activations").layers:
                raise TnkitError(f"the means hold layers {means.layers}, not {layer}; capture that layer too")
            values = means.tensors()["activations"][means.layers.index(layer)]
            target = values[:, places].double().mean(dim=0).float()
        else:
            target = torch.full((len(places),), float(value))
        return torch.tensor(places, device=device), target.to(device)

    def _choose_tokens(self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which (sentence, token) places of this forward pass are to be set."""
        given = dict(zip(_parameters(decoder), args, strict=False)) | kwargs
        inputs = given.get("input_ids")
        inputs = given["inputs_embeds"][..., 0] if inputs is None else inputs
        past, mask = given.get("past_key_values"), given.get("attention_mask")
        before = past.get_seq_length() if past is not None and hasattr(past, "get_seq_length") else 0
        real = torch.ones(inputs.shape, dtype=torch.bool, device=inputs.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -inputs.shape[1] :].bool()
        self._chosen = chosen_tokens(real, self.tokens, decoding=bool(before))

    def _edit(self, inputs: Mapping[str, Any], deepest: int) -> dict[int, Change]:
        """What the trace of a right-padded batch changes in each layer that it runs."""
        chosen = chosen_tokens(inputs["attention_mask"].bool(), self.tokens)
        run = {layer: change for layer, change in self.values.items() if layer <= deepest}
        self.count += int(chosen.sum()) * sum(len(places) for places, _ in run.values())
        return {layer: (chosen, *change, self.scale) for layer, change in run.items()}

    def _setter(self, places: Tensor, target: Tensor) -> Callable[..., tuple[Any, ...]]:
        def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            self.count += int(self._chosen.sum()) * len(places)
            width = args[0].shape[-1]  # less than all, where the model is spread over processes
            first = width * parallel.rank() if width < self.model.n_neurons else 0
            here = (places >= first) & (places < first + width)
            change = (self._chosen, places[here] - first, target[here], self.scale)
            return (changed(args[0], *change), *args[1:])

        return hook


class LastToken:
    """Sentences whose prefix has been run once, to capture their last token under many ablations of that token.

    Equal to `capture` inside `Ablation(model, neurons, tokens="last")`, because causal attention leaves the prefix
    untouched. Where a model takes no explicit positions (ALiBi) or is remote, or a sentence is longer than its sliding
    window, every capture is a full pass.

    Args:
        model: from `load_model`.
        sentences: any sequence of str.
        keep, layers, batch_tokens, progress: as in `capture`.

    >>> from tnkit.tests.tiny import tiny_model
    >>> model = tiny_model("llama")
    >>> prefix = LastToken(model, ["Hello", "Hi"], keep=["post"], progress=False)
    >>> with Ablation(model, [(1, 7)], tokens="last"):
    ...     full = capture(model, ["Hello", "Hi"], keep=["post"], progress=False)
    >>> torch.allclose(prefix.capture([(1, 7)]).post, full.post, atol=1e-5)
    True
    """

    def __init__(
        self,
        model: Model,
        sentences: Sequence[str],
        *,
        keep: Iterable[str] = KEEP,
        layers: Iterable[int] | None = None,
        batch_tokens: int | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.sentences, self.batch_tokens = model, sentences, batch_tokens
        self.keep, self.layers = (
            chosen_sites(keep),
            check_layers(model, range(model.n_layers) if layers is None else layers),
        )
        self.about = provenance_of(model, sentences)
        tokens = tokenised(model, sentences)
        self.cached = not model.remote and _has_positions(model, max(tokens.lengths()))
        self._batches: list[tuple[list[int], dict[str, Any]]] = []
        if not self.cached:
            return
        with tqdm(total=len(tokens), unit=" sentences", desc="prefix", disable=not progress, leave=False) as bar:
            for index in by_length(tokens.lengths(), batch_tokens or roomy(model)):
                self._batches.append((index, self._prefix([tokens[place] for place in index])))
                bar.update(len(index))

    def capture(self, neurons: Iterable[tuple[int, int]], **how: Any) -> Activations:
        """`capture` of the sentences with neurons ablated at their last token.

        Args:
            neurons: as in `Ablation`.
            **how: value, means or scale, as in `Ablation`.
        """
        if not self.cached:
            with Ablation(self.model, neurons, tokens="last", **how):
                return capture(
                    self.model,
                    self.sentences,
                    keep=self.keep,
                    layers=self.layers,
                    batch_tokens=self.batch_tokens,
                    progress=False,
                )
        with Ablation(self.model, neurons, tokens="all", **how) as ablation:
            about = self.about | {"ablations": [ablation.about | {"tokens": "last"}]}
            return gathered(self._run_last_tokens(about), len(self.sentences))

    def _run_last_tokens(self, about: dict[str, Any]) -> Iterator[Activations]:
        for index, inputs in self._batches:
            last = torch.zeros(len(index), dtype=torch.long, device=self.model.device)
            found = trace_blocks(self.model, inputs, last, layers=self.layers, keep=self.keep)
            for layer in inputs["past_key_values"].layers[: self.layers[-1] + 1]:  # those that ran kept the token
                layer.crop(-1)
            yield batch_of(found, self.layers, index, about)

    def _prefix(self, tokens: list[Sequence[int]]) -> dict[str, Any]:
        """Run all but the last token of each sentence, and return what its last token is to be run with."""
        inputs, last = padded(self.model, tokens)
        rows = torch.arange(len(tokens), device=self.model.device)
        mask = inputs["attention_mask"].clone()
        mask[rows, last] = 0
        prefix = {"input_ids": inputs["input_ids"][:, :-1], "attention_mask": mask[:, :-1]}
        decoder = self.model.module.get_submodule(self.model.blocks_path.rpartition(".")[0])
        with torch.inference_mode():
            cache = decoder(**prefix, use_cache=True).past_key_values
        return {
            "input_ids": inputs["input_ids"][rows, last][:, None],
            "attention_mask": torch.cat([mask[:, :-1], torch.ones_like(mask[:, :1])], dim=1),
            "position_ids": last[:, None],
            "past_key_values": cache,
            "use_cache": True,
        }


def _parameters(decoder: torch.nn.Module) -> list[str]:
    return list(inspect.signature(type(decoder).forward).parameters)[1:]


def _has_positions(model: Model, longest: int) -> bool:
    """Whether a cached prefix can be continued at a position of our choice."""
    config = model.module.config.get_text_config(decoder=True)
    decoder = model.module.get_submodule(model.blocks_path.rpartition(".")[0])
    window = getattr(config, "sliding_window", None)
    return (
        "position_ids" in _parameters(decoder)
        and not getattr(config, "alibi", False)
        and longest > 1
        and (window is None or longest < window)
    )


def export_ablated(model: Model, neurons: Iterable[tuple[int, int]], folder: str | Path) -> Path:
    """Write a transformers checkpoint in which the neurons' value vectors are zero.

    Any tool can load it; it equals `Ablation(model, neurons, tokens="all")`. The model in memory stays as it is.

    Args:
        model: from `load_model`.
        neurons: a `NeuronSet` or (layer, neuron) pairs.
        folder: a new or empty folder.

    Raises:
        TnkitError: for a folder that holds something already, or a model that is remote or spread over processes.

    >>> from tnkit.tests.tiny import tiny_model
    >>> with tempfile.TemporaryDirectory() as work:
    ...     folder = export_ablated(tiny_model("llama"), [(1, 7)], f"{work}/off")
    ...     [path.name for path in folder.glob("*.safetensors")]
    ['model.safetensors']
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TnkitError(f"{folder} is there already and is not an empty folder; choose another")
    module = model.module
    if model.sharded:
        raise TnkitError(f"{model.name} is spread over processes; load it without tp_plan to write a checkpoint")
    ablation = Ablation(model, neurons)
    folder.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work, torch.no_grad():
        try:
            for layer, (places, _) in ablation.values.items():
                vectors = model.value_vectors(layer)  # a view of the weights
                kept.append((vectors, places, vectors[places].clone()))
                vectors[places] = 0
            module.save_pretrained(Path(work) / "out")
        finally:
            for vectors, places, values in kept:
                vectors[places] = values
        model.tokenizer.save_pretrained(Path(work) / "out")
        about = {"model": model.provenance, "ablated": [list(pair) for pair in ablation.neurons]}
        storage.write_text(Path(work) / "out" / "tnkit.json", json.dumps(about, ensure_ascii=False))
        if folder.exists():
            folder.rmdir()
        shutil.move(Path(work) / "out", folder)
    return folder
