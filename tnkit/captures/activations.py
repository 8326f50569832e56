"""What a model did with sentences, kept at one token each: `Activations`; `tnkit.captures.passes` makes them.

ja = tn.capture(model, train["ja"])                      # mid, post and activations, float32, on the CPU
ja.mid.shape, ja.to_frame(), ja.plot(), ja.save("ja.safetensors")
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnkit import plots, storage
from tnkit.errors import TnkitError
from tnkit.models.experts import chosen_neurons, spread
from tnkit.models.tokens import ends_frame, ends_lines
from tnkit.models.trace import SITES
from tnkit.provenance import sentences_of, stated
from tnkit.widths import widths_of


@dataclass(frozen=True, eq=False)
class Activations:
    """Residual stream and neuron activations of sentences, each at one token (or averaged over its tokens).

    All tensors are float32 on the CPU; those that were not asked for are None.

    Attributes:
        layers: the layers that the first axis stands for.
        index: each sentence's place in the captured text.
        pre, mid, post: the residual stream, (layer, sentence, hidden).
        activations: (layer, sentence, neuron), 0 for neurons that a layer lacks. Of experts only those that run are
            kept, (layer, sentence, place), as `tnkit.models.experts` says; `of_layer` has them by neuron.
        experts: which experts those are, (layer, sentence, slot), int32, -1 in a layer without experts.
        scale: reciprocal denominator of the branch's own output norm, 1 without one, (layer, sentence).
        provenance: model, sentences, token position, versions.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model
    >>> found = tn.capture(tiny_model(), ["One can always find time.", "Hi!"], progress=False)
    >>> found.post.shape, found.activations.shape
    (torch.Size([4, 2, 32]), torch.Size([4, 2, 48]))
    """

    layers: tuple[int, ...]
    index: Int[Tensor, "sentence"]
    pre: Float[Tensor, "layer sentence hidden"] | None = None
    mid: Float[Tensor, "layer sentence hidden"] | None = None
    post: Float[Tensor, "layer sentence hidden"] | None = None
    activations: Float[Tensor, "layer sentence neuron"] | None = None
    scale: Float[Tensor, "layer sentence"] | None = None
    experts: Int[Tensor, "layer sentence slot"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        kept = ", ".join(self.tensors())
        language = next((origin.get("language") for origin in sentences_of(self.provenance)), None)
        sentences = f"{len(self)} sentences" + (f" in {language}" if language else "")
        return f"Activations({sentences}, {len(self.layers)} layers: {kept})"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that were kept, by name."""
        return {name: getattr(self, name) for name in SITES if getattr(self, name) is not None}

    def of_layer(self, layer: int) -> Float[Tensor, "sentence neuron"]:
        """The activations of all neurons of a layer; those of experts that did not run are 0.

        Raises:
            TnkitError: where the layer or its activations were not captured.
        """
        kept, experts, layout = self._kept(layer)
        return kept if experts is None else spread(kept, experts, layout)

    def of_neurons(self, layer: int, neurons: Sequence[int]) -> Float[Tensor, "sentence neuron"]:
        """The activations of some neurons of a layer, as `of_layer` has them."""
        kept, experts, layout = self._kept(layer)
        places = torch.tensor(list(neurons), dtype=torch.long, device=kept.device)
        return kept[:, places] if experts is None else chosen_neurons(kept, experts, layout, places)[0]

    def ran(self, layer: int, neurons: Sequence[int]) -> Bool[Tensor, "sentence neuron"]:
        """In which sentences some neurons of a layer run: everywhere, except in experts."""
        kept, experts, layout = self._kept(layer)
        places = torch.tensor(list(neurons), dtype=torch.long, device=kept.device)
        if experts is None:
            return torch.ones(len(kept), len(places), dtype=torch.bool, device=kept.device)
        return chosen_neurons(kept, experts, layout, places)[1]

    def _kept(self, layer: int) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
        """A layer's activations as they are kept, and, of experts, which ran and how many neurons there are."""
        if layer not in self.layers:
            raise TnkitError(f"the capture holds layers {self.layers}, not {layer}; capture that layer too")
        row, tensors = self.layers.index(layer), self.require("activations").tensors()
        kept = tensors["activations"][row]
        if self.experts is None:
            return kept, None, ()
        layout = tuple(self.provenance["model"]["layout"][layer])
        if len(layout) == 1:
            widest = max(neurons for neurons, *_ in self.provenance["model"]["layout"])
            return torch.nn.functional.pad(kept[:, : layout[0]], (0, widest - layout[0])), None, layout
        return kept, self.experts[row], layout

    def require(self, *names: str) -> "Activations":
        """Itself.

        Raises:
            TnkitError: where one of the named tensors was not kept.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise TnkitError(
                f"these activations hold {', '.join(self.tensors())} but not {', '.join(missing)}; "
                f"capture again with keep={tuple(dict.fromkeys([*self.tensors(), *missing]))}"
            )
        return self

    def to_frame(self) -> pd.DataFrame:
        """By layer: the mean norm of each kept residual state and the mean absolute activation."""
        columns = {
            f"{name} norm": getattr(self, name).norm(dim=-1).mean(dim=-1)
            for name in ("pre", "mid", "post")
            if getattr(self, name) is not None
        }
        if self.activations is not None:
            about, columns_kept = self.provenance.get("model", {}), self.activations.shape[2]
            shape = about.get("layers", max(self.layers) + 1), about.get("neurons", columns_kept)
            widths = torch.tensor(widths_of(self.provenance, shape))[list(self.layers)]
            columns["mean |activation|"] = self.activations.abs().mean(dim=(1, 2)) * (columns_kept / widths)
        return pd.DataFrame(
            {name: column.numpy() for name, column in columns.items()}, index=pd.Index(self.layers, name="layer")
        )

    def ends(self) -> pd.DataFrame:
        """How the sentences end: the commonest last token, its share, the share in punctuation, sentences without word.

        What "last" reads is mostly a full stop, which differs between languages; position="last_word" reads a word.
        """
        return ends_frame(sentences_of(self.provenance))

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw `to_frame` by layer."""
        return plots.lines_by_layer(self.to_frame(), ylabel="mean over sentences", log=True, ax=ax)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        about = {"layers": list(self.layers), "provenance": self.provenance}
        return storage.save_tensors(path, "activations", {"index": self.index, **self.tensors()}, about)

    @classmethod
    def load(cls, path: str | Path) -> "Activations":
        """Read what `save` wrote.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        tensors, about = storage.load_tensors(path, "activations")
        layers, index = storage.layers_of(path, about), tensors.pop("index", None)
        if index is None or index.ndim != 1 or index.is_floating_point() or not set(tensors) <= set(SITES):
            raise TnkitError(f"{path} lacks the index of its sentences or holds unknown tensors; capture again")
        for name, tensor in tensors.items():
            shape = (len(layers), len(index)) + ((None,) if name != "scale" else ())
            storage.finite(path, name, tensor.float() if name == "experts" else tensor, shape)
        return cls(layers=layers, index=index, provenance=stated(path, about), **tensors)

    def _repr_html_(self) -> str:
        shapes = {name: " × ".join(map(str, tensor.shape)) for name, tensor in self.tensors().items()}
        sentences = sentences_of(self.provenance)
        about = {name: value for origin in sentences for name, value in origin.items() if name != "ends"}
        about |= dict(zip(["last tokens"], ends_lines(sentences).values(), strict=False))
        return storage.html_card("Activations", {"sentences": len(self), **about, **shapes})


class Gathering:
    """A capture in corpus order, filled from batches as they come.

    Args:
        places: of the sentences that will come.
    """

    def __init__(self, places: Iterable[int]) -> None:
        self.places = torch.tensor(sorted(places), dtype=torch.long)
        self.tensors: dict[str, Tensor] = {}

    def add(self, batch: Activations) -> None:
        """Put the sentences of a batch in their places."""
        rows = torch.searchsorted(self.places, batch.index)
        for name, tensor in batch.tensors().items():
            if name not in self.tensors:
                shape = (tensor.shape[0], len(self.places), *tensor.shape[2:])
                self.tensors[name] = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            self.tensors[name][:, rows.to(tensor.device)] = tensor
        self.layers, self.provenance = batch.layers, batch.provenance

    def fill(self, batches: Iterable[Activations]) -> Iterator[int]:
        """Add batches, and after each yield how many sentences it had."""
        for batch in batches:
            self.add(batch)
            yield len(batch)

    def result(self) -> Activations:
        """The whole capture."""
        return Activations(self.layers, self.places, provenance=self.provenance, **self.tensors)


def gathered(batches: Iterable[Activations], count: int) -> Activations:
    """One capture of `count` sentences, in corpus order, from batches that hold each of them once.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model
    >>> gathered(tn.stream(tiny_model(), ["Hello", "Hi"], keep=["mid"], batch_tokens=1, progress=False), 2)
    Activations(2 sentences, 4 layers: mid)
    """
    whole = Gathering(range(count))
    for _ in whole.fill(batches):
        pass
    return whole.result()


def batch_of(
    found: dict[str, list[Tensor]],
    layers: tuple[int, ...],
    index: Sequence[int],
    provenance: dict[str, Any],
    device: torch.device | str = "cpu",
) -> Activations:
    """What a trace returned, as float32 on a device.

    Raises:
        TnkitError: where a state is not finite, with its layer and sentence.
    """
    tensors = {
        name: torch.stack([part.to(device) if name == "experts" else part.to(device).float() for part in parts])
        for name, parts in found.items()
    }
    for name, tensor in tensors.items():
        if not bool(tensor.sum().isfinite()) and len(wrong := (~tensor.isfinite()).nonzero()):
            layer, sentence = layers[int(wrong[0, 0])], index[int(wrong[0, 1])]
            raise TnkitError(
                f"{name} of layer {layer} is NaN or infinite at sentence {sentence} (from 0): where the weights are "
                "sound, the model overflows in its number format; load it with dtype='bfloat16' or 'float32', or drop "
                "the sentence"
            )
    return Activations(layers, torch.tensor(index), provenance=provenance, **tensors)
