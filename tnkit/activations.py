"""What a model does with sentences, kept at one token each: `Activations`, `capture` (whole), `stream` (by batches).

ja = tn.capture(model, train["ja"])                      # mid, post and activations, float32, on the CPU
ja = tn.capture(model, train["ja"], cache=True)          # kept on disk: goes on where it was killed, then read again
for batch in tn.stream(model, sentences): ...            # the same, a batch at a time, in flat memory
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import parallel, shards, storage
from tnkit.batches import by_length, grouped, padded, provenance_of, token_weights, tokenised
from tnkit.errors import TnkitError, one_of
from tnkit.models import Model, check_layers
from tnkit.shards import Shards
from tnkit.trace import SITES, chosen_sites, trace_blocks

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd

KEEP = ("mid", "post", "activations")
_SHARD = 64  # sentences that are lost, at most, where a cached capture is killed; fewer where they take more than
_SHARD_BYTES = 64 << 20


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
    cache: bool = False,
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
        cache: keep what is captured in the user's cache folder while it runs, and read from there what was captured
            before from the same weights, tokens and options, under the same ablations. A killed capture goes on where
            it stopped. `tnkit cache` shows and clears what is kept.
        progress: show a bar.

    Returns:
        `Activations`: float32, on the CPU.

    Raises:
        TnkitError: for no sentences, one that has no tokens or more than the model's context, or a wrong option.

    >>> from tnkit.tests.tiny import tiny_model
    >>> capture(tiny_model(), ["Hi!"], keep=["post"], layers=range(2), progress=False)
    Activations(1 sentences, 2 layers: post)
    """
    planned = plan(
        model,
        sentences,
        position=position,
        keep=keep,
        layers=layers,
        last_layer=last_layer,
        batch_tokens=batch_tokens,
    )
    parts = planned.kept(shards.fingerprint(model)) if cache else planned.run()
    return gathered(_shown(parts, len(sentences), progress), len(sentences))


class Gathering:
    """A capture in corpus order, filled from batches as they come.

    Args:
        places: of the sentences that will come.
    """

    def __init__(self, places: Iterable[int]) -> None:
        self.places, self.tensors = torch.tensor(sorted(places), dtype=torch.long), {}

    def add(self, batch: Activations) -> None:
        """Put the sentences of a batch in their places."""
        rows = torch.searchsorted(self.places, batch.index)
        for name, tensor in batch.tensors().items():
            if name not in self.tensors:
                self.tensors[name] = torch.empty(tensor.shape[0], len(self.places), *tensor.shape[2:])
            self.tensors[name][:, rows] = tensor
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

    >>> from tnkit.tests.tiny import tiny_model
    >>> gathered(stream(tiny_model(), ["Hello", "Hi"], keep=["mid"], batch_tokens=1, progress=False), 2)
    Activations(2 sentences, 4 layers: mid)
    """
    whole = Gathering(range(count))
    for _ in whole.fill(batches):
        pass
    return whole.result()


def batch_of(
    found: dict[str, list[Tensor]], layers: tuple[int, ...], index: list[int], provenance: dict[str, Any]
) -> Activations:
    """What a trace returned, as float32 on the CPU."""
    tensors = {name: torch.stack([part.float().cpu() for part in parts]) for name, parts in found.items()}
    return Activations(layers, torch.tensor(index), provenance=provenance, **tensors)


def stream(model: Model, sentences: Sequence[str], *, progress: bool = True, **options) -> Iterator[Activations]:
    """`capture` with its options, a batch at a time: sentences come sorted by length, `index` says which they are.

    >>> from tnkit.tests.tiny import tiny_model
    >>> [part.index.tolist() for part in stream(tiny_model(), ["Hello", "Hi", "Hey"], batch_tokens=8, progress=False)]
    [[1, 2], [0]]
    """
    return _shown(plan(model, sentences, **options).run(), len(sentences), progress)


def _shown(batches: Iterable[Activations], count: int, progress: bool) -> Iterator[Activations]:
    with tqdm(total=count, unit=" sentences", desc="capture", disable=not progress, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass of sentences through a model, planned: which of them go together, and what is kept of them.

    Attributes:
        model, position, keep, layers, last_layer: as in `capture`, checked.
        tokens: token ids of each sentence.
        batches: places of the sentences in each batch, sorted by length.
        provenance: of the batches that come of it.
    """

    model: Model
    tokens: list[array]
    batches: list[list[int]]
    position: str
    keep: tuple[str, ...]
    layers: tuple[int, ...]
    last_layer: str
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def share(self) -> "Pass":
        """What of it falls to this process; itself where it is the only one.

        Raises:
            TnkitError: where other processes are about to do something else.
        """
        if parallel.size() == 1 or self.model.sharded:
            return self
        parallel.agree(self.shards(self.model.weights_hash, what="pass").name)
        costs = [len(index) * len(self.tokens[index[-1]]) for index in self.batches]
        return replace(self, batches=parallel.share(self.batches, costs))

    def run(self, start: int = 0, stop: int | None = None) -> Iterator[Activations]:
        """Trace the batches from number start up to number stop.

        Raises:
            TnkitError: where an ablation begins or ends on the way, which would mix two models in one result.
        """
        for found, index in self.traced(start, stop):
            yield batch_of(found, self.layers, index, self.provenance)

    def traced(
        self, start: int = 0, stop: int | None = None, *, reduce: Callable[..., dict[str, Tensor]] | None = None
    ) -> Iterator[tuple[dict[str, list[Tensor]], list[int]]]:
        """What `run` is made of: what each trace returned, reduced as `trace_blocks` says, and whose it is."""
        for index in self.batches[start:stop]:
            if self.model.ablations != self.provenance.get("ablations", []):
                raise TnkitError("an ablation began or ended in the midst of a pass; keep it on, or off, until the end")
            inputs, last = padded(self.model, [self.tokens[place] for place in index])
            found = trace_blocks(
                self.model,
                inputs | {"use_cache": False},
                last,
                layers=self.layers,
                keep=self.keep,
                weights=token_weights(self.model, inputs, index) if self.position == "mean" else None,
                normed_last=self.last_layer == "normed",
                reduce=reduce,
            )
            yield found, index

    def kept(self, fingerprint: str | None) -> Iterator[Activations]:
        """`run`, but batches that the cache holds come from there, a shard at a time, and others go there.

        Args:
            fingerprint: of the model, from `tnkit.shards.fingerprint`; None leaves the cache alone.
        """
        if fingerprint is None:
            yield from self.run()
            return
        cached = self.shards(fingerprint, what="capture")
        widths = {"activations": self.model.n_neurons, "scale": 1}
        size = 4 * len(self.layers) * sum(widths.get(name, self.model.hidden_size) for name in self.keep)
        for number, (start, stop) in enumerate(grouped(self.batches, min(_SHARD, _SHARD_BYTES // size))):
            if (tensors := cached.read(f"{number:05}")) is not None:
                yield Activations(self.layers, provenance=self.provenance, **tensors)
                continue
            parts: list[Activations] = []
            for batch in self.run(start, stop):
                parts.append(batch)
                if len(parts) == stop - start:
                    cached.write(f"{number:05}", shards.joined(parts))
                yield batch

    def shards(self, fingerprint: str, *, what: str, **more: Any) -> Shards:
        """The place in the cache of this pass, or with `more` of something made from it."""
        ids = hashlib.sha256()
        for tokens in self.tokens:
            ids.update(b"%d:" % len(tokens) + tokens.tobytes())
        options = {name: getattr(self, name) for name in ("position", "keep", "layers", "last_layer", "batches")}
        if self.position == "mean":
            options["special"] = sorted(self.model.tokenizer.all_special_ids)
        about = self.provenance["sentences"]
        named = " ".join(str(about[name]) for name in ("corpus", "split", "language") if name in about)
        return Shards(
            {
                "model": fingerprint,
                "tokens": ids.hexdigest(),
                "sentences": about["hash"],
                "ablations": self.provenance.get("ablations", []),
                **options,
                **more,
            },
            f"{what} of {len(self)} sentences{named and f' ({named})'}, {self.model.name}: {', '.join(self.keep)}",
        )


def plan(
    model: Model,
    sentences: Sequence[str],
    *,
    position: str = "last",
    keep: Iterable[str] = KEEP,
    layers: Iterable[int] | None = None,
    last_layer: str = "raw",
    batch_tokens: int = 768,
) -> Pass:
    """Check what `capture` is asked for, tokenise, and lay out the batches.

    >>> from tnkit.tests.tiny import tiny_model
    >>> plan(tiny_model(), ["Hello", "Hi", "Hey"], batch_tokens=8).batches
    [[1, 2], [0]]
    """
    keep = chosen_sites(keep)
    layers = check_layers(model, range(model.n_layers) if layers is None else layers)
    one_of("position", position, ("last", "mean"))
    one_of("last_layer", last_layer, ("raw", "normed"))
    if last_layer == "normed" and model.final_norm_path is None:
        raise TnkitError(f"{model.name} has no final norm that tnkit knows; use last_layer='raw'")
    tokens = tokenised(model, sentences)
    provenance = provenance_of(model, sentences) | {"position": position, "last_layer": last_layer}
    batches = list(by_length([len(ids) for ids in tokens], batch_tokens))
    return Pass(model, tokens, batches, position, keep, layers, last_layer, provenance)
