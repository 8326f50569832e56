"""What a model does with sentences, kept at one token each: `Activations`, `capture` (whole), `stream` (by batches).

ja = tn.capture(model, train["ja"])                      # mid, post and activations, float32, on the CPU
for batch in tn.stream(model, sentences): ...            # the same, a batch at a time, in flat memory
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.models import Model, check_layers
from tnkit.trace import SITES, trace_blocks

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

KEEP = ("mid", "post", "activations")


@dataclass(frozen=True, eq=False)
class Activations:
    """Residual stream and neuron activations of sentences, each at one token (or averaged over its tokens).

    All tensors are float32 on the CPU; those that were not asked for are None.

    Attributes:
        layers: the layers that the first axis stands for.
        index: each sentence's place in the captured text.
        pre, mid, post: the residual stream, (layer, sentence, hidden).
        activations: (layer, sentence, neuron).
        scale: reciprocal denominator of the branch's own output norm, 1 without one, (layer, sentence).
        provenance: model, sentences, token position, versions.

    >>> import tnkit as tn
    >>> from tnkit.tests.tiny import tiny_model
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
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        kept = ", ".join(self.tensors())
        language = self.provenance.get("sentences", {}).get("language")
        sentences = f"{len(self)} sentences" + (f" in {language}" if language else "")
        return f"Activations({sentences}, {len(self.layers)} layers: {kept})"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that were kept, by name."""
        return {name: getattr(self, name) for name in SITES if getattr(self, name) is not None}

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

    def to_frame(self) -> "pd.DataFrame":
        """By layer: the mean norm of each kept residual state and the mean absolute activation."""
        import pandas as pd

        columns = {
            f"{name} norm": getattr(self, name).norm(dim=-1).mean(dim=-1)
            for name in ("pre", "mid", "post")
            if getattr(self, name) is not None
        }
        if self.activations is not None:
            columns["mean |activation|"] = self.activations.abs().mean(dim=(1, 2))
        return pd.DataFrame(
            {name: column.numpy() for name, column in columns.items()},
            index=pd.Index(self.layers, name="layer"),
        )

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw `to_frame` by layer."""
        from tnkit import plots

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
        layers = about.get("layers", [])
        index = tensors.pop("index", None)
        if index is None or not set(tensors) <= set(SITES):
            raise TnkitError(f"{path} lacks the index of its sentences or holds unknown tensors; capture again")
        for name, tensor in tensors.items():
            shape = (len(layers), len(index)) + ((None,) if name != "scale" else ())
            storage.finite(path, name, tensor, shape)
        return cls(layers=tuple(layers), index=index, provenance=about.get("provenance", {}), **tensors)

    def _repr_html_(self) -> str:
        shapes = {name: " × ".join(map(str, tensor.shape)) for name, tensor in self.tensors().items()}
        sentences = self.provenance.get("sentences", {})
        return storage.html_card("Activations", {"sentences": len(self), **sentences, **shapes})


def capture(
    model: Model,
    sentences: Sequence[str],
    *,
    position: str = "last",
    keep: Iterable[str] = KEEP,
    layers: Iterable[int] | None = None,
    last_layer: str = "raw",
    batch_tokens: int = 768,
    progress: bool = True,
) -> Activations:
    """Run sentences through a model once and keep what later questions need, in corpus order.

    Args:
        model: from `load_model`.
        sentences: any sequence of str; a language of a `Corpus` brings its name into the provenance.
        position: "last" keeps the last token, "mean" averages over tokens that are neither padding nor special.
        keep: any of "pre", "mid", "post", "activations", "scale"; "activations" brings "scale" with it.
        layers: the layers to keep (default all); nothing after the last of them runs.
        last_layer: "raw" keeps the last layer's post as the block leaves it; "normed" passes it through the final norm,
            as `output_hidden_states` of transformers does, to reproduce the published centroids.
        batch_tokens: the most tokens in a batch, padding included; 768 is best on two CPU cores, a GPU likes more.
        progress: show a bar.

    Returns:
        `Activations`: float32, on the CPU.

    Raises:
        TnkitError: for no sentences, one that has no tokens or more than the model's context, or a wrong option.

    >>> from tnkit.tests.tiny import tiny_model
    >>> capture(tiny_model(), ["Hi!"], keep=["post"], layers=range(2), progress=False)
    Activations(1 sentences, 2 layers: post)
    """
    parts = stream(
        model,
        sentences,
        position=position,
        keep=keep,
        layers=layers,
        last_layer=last_layer,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    return gathered(parts, len(sentences))


def gathered(batches: Iterable[Activations], count: int) -> Activations:
    """One capture of `count` sentences, in corpus order, from batches that hold each of them once.

    >>> from tnkit.tests.tiny import tiny_model
    >>> gathered(stream(tiny_model(), ["Hello", "Hi"], keep=["mid"], batch_tokens=1, progress=False), 2)
    Activations(2 sentences, 4 layers: mid)
    """
    whole: dict[str, Tensor] = {}
    for batch in batches:
        for name, tensor in batch.tensors().items():
            if name not in whole:
                whole[name] = torch.empty(tensor.shape[0], count, *tensor.shape[2:])
            whole[name][:, batch.index] = tensor
    return Activations(batch.layers, torch.arange(count), provenance=batch.provenance, **whole)


def batch_of(
    found: dict[str, list[Tensor]], layers: tuple[int, ...], index: list[int], provenance: dict[str, Any]
) -> Activations:
    """What a trace returned, as float32 on the CPU."""
    tensors = {name: torch.stack([part.float().cpu() for part in parts]) for name, parts in found.items()}
    return Activations(layers, torch.tensor(index), provenance=provenance, **tensors)


def stream(
    model: Model,
    sentences: Sequence[str],
    *,
    position: str = "last",
    keep: Iterable[str] = KEEP,
    layers: Iterable[int] | None = None,
    last_layer: str = "raw",
    batch_tokens: int = 768,
    progress: bool = True,
) -> Iterator[Activations]:
    """`capture`, a batch at a time: sentences come sorted by length, and `index` says which they are.

    >>> from tnkit.tests.tiny import tiny_model
    >>> [part.index.tolist() for part in stream(tiny_model(), ["Hello", "Hi", "Hey"], batch_tokens=8, progress=False)]
    [[1, 2], [0]]
    """
    keep = chosen_sites(keep)
    layers = check_layers(model, range(model.n_layers) if layers is None else layers)
    _one_of("position", position, ("last", "mean"))
    _one_of("last_layer", last_layer, ("raw", "normed"))
    if last_layer == "normed" and model.final_norm_path is None:
        raise TnkitError(f"{model.name} has no final norm that tnkit knows; use last_layer='raw'")
    tokens = tokenised(model, sentences)
    provenance = provenance_of(model, sentences) | {"position": position, "last_layer": last_layer}
    return _batches(model, tokens, position, keep, layers, last_layer == "normed", batch_tokens, progress, provenance)


def _batches(
    model: Model, tokens, position, keep, layers, normed_last, batch_tokens, progress, provenance
) -> Iterator[Activations]:
    with tqdm(total=len(tokens), unit=" sentences", desc="capture", disable=not progress, leave=False) as bar:
        for index in by_length([len(ids) for ids in tokens], batch_tokens):
            inputs, last = padded(model, [tokens[place] for place in index])
            weights = _token_weights(model, inputs, index) if position == "mean" else None
            found = trace_blocks(
                model,
                inputs | {"use_cache": False},
                last,
                layers=layers,
                keep=keep,
                weights=weights,
                normed_last=normed_last,
            )
            yield batch_of(found, layers, index, provenance)
            bar.update(len(index))


def padded(model: Model, tokens: Sequence[Sequence[int]]) -> tuple[dict[str, Tensor], Int[Tensor, "sentence"]]:
    """Token ids and attention mask of sentences padded on the right, and the place of each last token.

    >>> from tnkit.tests.tiny import tiny_model
    >>> inputs, last = padded(tiny_model(), [[256, 7], [256, 7, 9]])
    >>> inputs["attention_mask"].tolist(), last.tolist()
    ([[1, 1, 0], [1, 1, 1]], [1, 2])
    """
    lengths = torch.tensor([len(ids) for ids in tokens])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.full(mask.shape, model.tokenizer.pad_token_id or 0)
    ids[mask.bool()] = torch.tensor([token for sentence in tokens for token in sentence])
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    return inputs, (lengths - 1).to(model.device)


def _token_weights(model: Model, inputs: dict[str, Tensor], index: list[int]) -> Float[Tensor, "sentence token"]:
    """Equal weights, summing to 1, of the tokens that are neither padding nor special."""
    special = [token for token in model.tokenizer.all_special_ids if token != model.tokenizer.unk_token_id]
    ids = inputs["input_ids"]
    counted = inputs["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(special, device=ids.device))
    empty = (~counted.any(dim=1)).nonzero()
    if len(empty):
        raise TnkitError(f"sentence {index[int(empty[0])]} has only special tokens; there is nothing to average")
    return counted / counted.sum(dim=1, keepdim=True)


def provenance_of(model: Model, sentences: Sequence[str]) -> dict[str, Any]:
    """What results record of where they come from: model, sentences, what was switched off, versions."""
    origin = {name: getattr(sentences, name, None) for name in ("corpus", "language", "split")}
    named = {name: value for name, value in origin.items() if value}
    return {
        "model": model.provenance,
        "sentences": {**named, "n": len(sentences), "hash": storage.text_hash(sentences)},
        "position": "last",
        "last_layer": "raw",
        "versions": storage.versions(),
        **({"ablations": list(model.ablations)} if model.ablations else {}),
    }


def tokenised(model: Model, sentences: Sequence[str]) -> list[array]:
    """Token ids of each sentence, special tokens included.

    Raises:
        TnkitError: for no sentences, or one that is not str, has no tokens, or has more than the model's context.
    """
    if isinstance(sentences, str):
        raise TnkitError("sentences must be a sequence of str, not one str; put it in a list")
    if not len(sentences):
        raise TnkitError("there are no sentences to capture")
    wrong = next((n for n, sentence in enumerate(sentences) if not isinstance(sentence, str)), None)
    if wrong is not None:
        raise TnkitError(
            f"sentence {wrong} is {type(sentences[wrong]).__name__}, expected str; "
            'of a Corpus, name split and language: corpus["train"]["ja"]'
        )
    tokens = []
    for start in range(0, len(sentences), 1000):  # compact, so that memory hardly grows with the corpus
        tokens += [array("i", ids) for ids in model.tokenizer(list(sentences[start : start + 1000]))["input_ids"]]
    for number, ids in enumerate(tokens):
        if not ids:
            raise TnkitError(f"sentence {number} ({sentences[number]!r:.60}) has no tokens; drop it")
        if model.context and len(ids) > model.context:
            raise TnkitError(
                f"sentence {number} ({sentences[number]!r:.60}) has {len(ids)} tokens, {model.name} reads at most "
                f"{model.context}; shorten it or split it"
            )
    return tokens


def by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places sorted by length, in batches of at most `batch_tokens` tokens once padded (one sentence at the least).

    >>> list(by_length([3, 1, 2], 4))
    [[1, 2], [0]]
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def chosen_sites(keep: Iterable[str]) -> tuple[str, ...]:
    """The sites to keep, sorted; "activations" brings "scale" with it.

    Raises:
        TnkitError: for none, or an unknown one.
    """
    keep = {keep} if isinstance(keep, str) else set(keep)
    if not keep or not keep <= set(SITES):
        raise TnkitError(f"keep={sorted(keep)} must name some of {', '.join(SITES)}")
    return tuple(sorted(keep | ({"scale"} if "activations" in keep else set())))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise TnkitError(f"{name}={value!r} must be one of {', '.join(choices)}")
