"""A pass of sentences through a model: `capture` (kept whole), `stream` (by batches), `plan` (before it is run).

ja = tn.capture(model, train["ja"])                      # mid, post and activations, float32, on the CPU
ja = tn.capture(model, train["ja"], cache=True)          # kept on disk: goes on where it was killed, then read again
for batch in tn.stream(model, sentences): ...            # the same, a batch at a time, in flat memory
"""

import hashlib
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import parallel
from tnkit.captures import shards
from tnkit.captures.activations import Activations, batch_of, gathered
from tnkit.captures.batches import (
    Numbers,
    Tokens,
    check_position,
    grouped,
    read_from,
    read_places,
    roomy,
    sites_of,
    tokenised,
)
from tnkit.captures.rows import Rows, batches_of
from tnkit.captures.shards import Shards, Waiting
from tnkit.captures.token_ids import Texts
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.models.model import Model, check_layers
from tnkit.models.sessions import TURN, running
from tnkit.models.tokens import special_ids
from tnkit.models.trace import trace_blocks

KEEP = ("mid", "post", "activations")
_SHARD = 64  # sentences of a shard; fewer where they take more than
_SHARD_BYTES = 64 << 20
_WAITING_BYTES = 256 << 20  # of shards that wait until the weights are read again
_CPU = torch.device("cpu")
_LOG = logging.getLogger("tnkit")


def capture(
    model: Model,
    sentences: Texts,
    *,
    position: str = "last",
    suffix: str | None = None,
    keep: Iterable[str] = KEEP,
    layers: Iterable[SupportsIndex] | None = None,
    last_layer: str = "raw",
    batch_tokens: SupportsIndex | None = None,
    cache: bool = False,
    progress: bool = True,
) -> Activations:
    """Run sentences through a model once and keep what later questions need, in corpus order.

    Args:
        model: from `load_model`.
        sentences: any sequence of str; a language of a `Corpus` brings its name into the provenance. Or token ids, as
            lists of ints or tensors without padding: they are run as they are, and nothing is added to them.
        position: which token is kept. "last" is the sentence's last, mostly a full stop; "last_word" the last that is
            neither punctuation nor special; "mean" averages over tokens that are neither padding nor special; "end" is
            the last token of the model's template, the prompt for an answer included.
        suffix: put in place of each sentence's final punctuation, so that all end alike; "" takes it off, None leaves
            the sentences as they are.
        keep: any of "pre", "mid", "post", "activations", "scale"; "activations" brings "scale" with it.
        layers: the layers to keep (default all); nothing after the last of them runs.
        last_layer: "raw" keeps the last layer's post as the block leaves it; "normed" passes it through the final norm,
            as `output_hidden_states` of transformers does, to reproduce the published centroids.
        batch_tokens: the most tokens in a batch, padding included; None takes 768 on a CPU, twice that where
            the model packs, and on a GPU as many as half of its free memory holds, up to 16,384. A batch that a GPU has
            no memory for is halved. Where the model packs (`load_model`), sentences are behind each other in rows, and
            only the rows' ends are padded.
        cache: keep what is captured in the user's cache folder while it runs, and read from there what was captured
            before from the same model, tokens and options, under the same ablations; what of the model counts, and
            where it cannot be told, `Model.fingerprint` says. What is read equals a fresh capture to
            rounding, and bit for bit with the same number of threads on the same machine. A killed capture goes on
            where it stopped. `tnkit cache` shows and clears what is kept.
        progress: show a bar.

    Returns:
        `Activations`: float32, on the CPU.

    Raises:
        TnkitError: for no sentences, one that has no tokens or more than the model's context, a wrong option, a model
            in training mode, or under `torch.autocast`.

    >>> from tnkit.testing import tiny_model
    >>> capture(tiny_model(), ["Hi!"], keep=["post"], layers=range(2), progress=False)
    Activations(1 sentences, 2 layers: post)
    """
    planned = plan(
        model,
        sentences,
        position=position,
        suffix=suffix,
        keep=keep,
        layers=layers,
        last_layer=last_layer,
        batch_tokens=batch_tokens,
    )
    key = model.fingerprint(planned.provenance["model"]["weights"]) if cache else None
    return gathered(shown(planned.kept(key), len(sentences), progress), len(sentences))


def stream(model: Model, sentences: Texts, *, progress: bool = True, **options: Any) -> Iterator[Activations]:
    """`capture` with its options, a batch at a time; `index` says which sentences those are.

    >>> from tnkit.testing import tiny_model
    >>> [part.index.tolist() for part in stream(tiny_model(), ["Hello", "Hi", "Hey"], batch_tokens=8, progress=False)]
    [[0], [1, 2]]
    """
    return shown(plan(model, sentences, **options).run(), len(sentences), progress)


def shown(batches: Iterable[Activations], count: int, progress: bool) -> Iterator[Activations]:
    """Batches of a capture of so many sentences, under a progress bar."""
    with tqdm(total=count, unit=" sentences", desc="capture", disable=not progress, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass of sentences through a model, planned: which of them run in one batch, and what is kept.

    Attributes:
        model, position, keep, layers, last_layer: as in `capture`, checked.
        tokens: token ids of each sentence.
        read: the place in them of the token that is read.
        batches: places of the sentences in each batch.
        provenance: of the batches that come of it.
        narrow: whether the last block's MLP may run at the tokens read alone, which changes rounding.
    """

    model: Model
    tokens: Tokens
    read: Numbers
    batches: list[Numbers]
    position: str
    keep: tuple[str, ...]
    layers: tuple[int, ...]
    last_layer: str
    provenance: dict[str, Any]
    narrow: bool = True

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
        costs = [sum(len(self.tokens[place]) for place in index) for index in self.batches]
        return replace(self, batches=parallel.share(self.batches, costs))

    def run(self, start: int = 0, stop: int | None = None, *, device: torch.device = _CPU) -> Iterator[Activations]:
        """Trace the batches from number start up to number stop, and leave what is kept on a device.

        Raises:
            TnkitError: where an ablation begins or ends, or weights change, on the way, which would mix two models, or
                where a GPU's memory does not hold one sentence.
        """
        for found, index in self.traced(start, stop):
            yield batch_of(found, self.layers, index, self.provenance, device)

    def traced(
        self, start: int = 0, stop: int | None = None, *, reduce: Callable[..., dict[str, Tensor]] | None = None
    ) -> Iterator[tuple[dict[str, list[Tensor]], Numbers]]:
        """What `run` is made of: what each trace returned, reduced as `trace_blocks` says, and whose it is.

        Where a GPU runs out of memory, this batch and those after it run in halves, or halves of those.
        """
        batches = self.batches[start:stop]
        for number, traced in enumerate(self._traces(batches, self.model.versions(), reduce), 1):
            if number == len(batches):
                self.check_weights()
            yield traced

    def _traces(
        self, batches: Sequence[Numbers], versions: list[Any], reduce: Callable[..., dict[str, Tensor]] | None
    ) -> Iterator[tuple[dict[str, list[Tensor]], Numbers]]:
        """`traced`, which does not read the weights at its end, but notices most edits by their versions."""
        pieces = 1
        for index in batches:
            if self.model.ablations != self.provenance.get("ablations", []):
                raise TnkitError("an Ablation was entered or exited during this pass; do so before or after it")
            while (found := self._pieced(index, pieces, reduce)) is None:  # outside the error, which holds tensors
                if pieces >= len(index) or reduce is not None or self.model.sharded:
                    longest = max(len(self.tokens[place]) for place in index)
                    raise TnkitError(
                        f"{self.model.device} has too little memory for {-(-len(index) // pieces)} sentence(s) of "
                        f"{longest} tokens; ask for fewer layers, or a smaller batch_tokens"
                    )
                torch.cuda.empty_cache()
                pieces *= 2
                _LOG.warning("%s ran out of memory; batches now run in %d pieces", self.model.device, pieces)
            if self.model.versions() != versions:
                raise self.model.edited_meanwhile()
            yield found, index

    def check_weights(self) -> None:
        """Refuse to go on where the model's weights are not those that this pass was planned with.

        Raises:
            TnkitError: where they were changed, by whatever means.
        """
        if self.model.weights_hash != self.provenance["model"]["weights"]:
            raise self.model.edited_meanwhile()

    def _pieced(
        self, index: Sequence[int], pieces: int, reduce: Callable[..., dict[str, Tensor]] | None
    ) -> dict[str, list[Tensor]] | None:
        """What traces of a batch in pieces return, side by side; None where memory does not suffice."""
        size = -(-len(index) // pieces)
        try:
            parts = [self._trace(index[place : place + size], reduce) for place in range(0, len(index), size)]
            if len(parts) == 1:
                return parts[0]
            return {name: list(map(torch.cat, zip(*(part[name] for part in parts), strict=True))) for name in parts[0]}
        except torch.OutOfMemoryError:
            return None

    def _trace(
        self, index: Sequence[int], reduce: Callable[..., dict[str, Tensor]] | None, *, packed: bool = True
    ) -> dict[str, list[Tensor]]:
        rows = Rows.of(self.model, [self.tokens[place] for place in index], packed=packed)
        mean = self.position == "mean"
        with TURN, running(self.model.lm._module, **rows.known(self.tokens, index)):
            traced = trace_blocks(
                self.model,
                rows.inputs | {"use_cache": False},
                rows.places if mean else rows.at([self.read[place] for place in index]),
                layers=self.layers,
                keep=self.keep,
                weights=rows.weights(self.model, self.tokens, index) if mean else None,
                normed_last=self.last_layer == "normed",
                narrow=self.narrow and rows.packed and not mean,
                reduce=reduce,
            )
        if rows.packed and not all(bool(part.sum().isfinite()) for parts in traced.values() for part in parts):
            return self._trace(index, reduce, packed=False)  # a state that is not finite reaches all of its row
        return traced

    def kept(self, key: str | None, *, device: torch.device = _CPU) -> Iterator[Activations]:
        """`run`, but batches that the cache holds come from there, a shard at a time, and others go there.

        No shard is written before the weights were read again, after it ran.

        Args:
            key: of the model, from `Model.fingerprint`; None leaves the cache alone.
            device: where batches stay that neither come from the cache nor go there.
        """
        if key is None:
            yield from self.run(device=device)
            return
        cached = self.shards(key, what="capture")
        widths = {"activations": self.model.places, "scale": 1, "experts": self.model.slots}
        size = 4 * len(self.layers) * sum(widths.get(name, self.model.hidden_size) for name in self.keep)
        waiting, versions = Waiting(cached, self.check_weights, most=_WAITING_BYTES), self.model.versions()
        for number, (start, stop) in enumerate(grouped(self.batches, min(_SHARD, _SHARD_BYTES // size))):
            name, last = f"{number:05}", stop == len(self.batches)
            most = (size + 8) * sum(map(len, self.batches[start:stop]))
            if (tensors := cached.read(name, most=most)) is not None:
                waiting.write(at_once=last)
                yield Activations(self.layers, provenance=self.provenance, **tensors)
                continue
            batches: list[Activations] = []
            for found, index in self._traces(self.batches[start:stop], versions, None):
                batches.append(batch_of(found, self.layers, index, self.provenance))
                if len(batches) == stop - start:
                    waiting.add(name, shards.joined(batches))
                    waiting.write(at_once=last)
                yield batches[-1]

    def shards(self, key: str, *, what: str, **more: Any) -> Shards:
        """The place in the cache of this pass, or with `more` of something made from it."""
        ids = hashlib.sha256()
        for tokens in self.tokens:
            ids.update(b"%d:" % len(tokens) + tokens.tobytes())
        options = {name: getattr(self, name) for name in ("position", "keep", "layers", "last_layer")}
        options["batches"] = [index.tolist() for index in self.batches]
        options |= {"packed": True} if self.model.packs else {}
        if self.position == "mean":
            options["special"] = sorted(special_ids(self.model.tokenizer))
        if self.position == "mean" or self.model.template is not None:
            options["own"] = [self.tokens.span(place)[0] for place in range(len(self.tokens))]
        options |= {"read": self.read.tolist()} if self.position == "last_word" else {}
        about = self.provenance["sentences"]
        named = " ".join(str(about[name]) for name in ("corpus", "split", "language") if name in about)
        return Shards(
            {
                "model": key,
                "weights": self.provenance["model"]["weights"],  # edited since, perhaps
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
    sentences: Texts,
    *,
    position: str = "last",
    suffix: str | None = None,
    keep: Iterable[str] = KEEP,
    layers: Iterable[SupportsIndex] | None = None,
    last_layer: str = "raw",
    batch_tokens: SupportsIndex | None = None,
) -> Pass:
    """Check what `capture` is asked for, tokenise, and lay out the batches.

    >>> from tnkit.testing import tiny_model
    >>> plan(tiny_model(), ["Hello", "Hi", "Hey"], batch_tokens=8).batches
    [array('i', [0]), array('i', [1, 2])]
    """
    keep = sites_of(model, keep, position)
    model.check_unchanged()
    layers = check_layers(model, range(model.n_layers) if layers is None else layers)
    check_position(model, position)
    batch_tokens = None if batch_tokens is None else whole_number("batch_tokens", batch_tokens, at_least=1)
    one_of("last_layer", last_layer, ("raw", "normed"))
    if last_layer == "normed" and model.final_norm_path is None:
        raise TnkitError(f"{model.name} has no final norm that tnkit knows; use last_layer='raw'")
    tokens = tokenised(model, sentences, whole=position == "end", suffix=suffix)
    provenance = read_from(model, sentences, tokens, position=position, suffix=suffix)
    provenance["last_layer"] = last_layer
    size = roomy(model) if batch_tokens is None else batch_tokens
    batches = [array("i", index) for index in batches_of(model, tokens.lengths(), size)]
    read = read_places(model, tokens, position)
    return Pass(model, tokens, read, batches, position, keep, layers, last_layer, provenance)
