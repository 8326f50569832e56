"""Sums over the sentences of a pass, in memory that does not grow with them: `RunningSum` and `add_up`.

running = CentroidAccumulator()                               # or ScoreAccumulator(model, centroids)
for sentences in add_up(plan(model, texts, keep=["post"]), {"centroid": running}):
    ...                                                       # a batch of so many sentences was added
running.result()
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import parallel
from tnkit.captures.activations import Activations
from tnkit.captures.passes import Pass
from tnkit.detection.ranking import span
from tnkit.errors import TnkitError
from tnkit.models.model import Model, check_layers
from tnkit.models.trace import jointly
from tnkit.provenance import check_alike, check_fits, check_made_with

_EVERY = 5.0  # seconds of work that a killed pass can lose, beside what waits to be added
_RARELY = 20  # times as long as saving took, until large sums are saved again


class RunningSum(ABC):
    """A sum over sentences of something that has a row per layer, in float64 where a subclass says nothing else.

    A subclass says what is summed, both for captured states (`totals`) and as a function that runs beside the weights
    of a remote model (`reduction`). One whose sums are too large to be made anew with each batch, or to travel, adds to
    them itself (`add`).

    Attributes:
        layers: of the rows of `total`; empty until the first batch, where no layers were chosen.
        total: (layer, column); a scalar 0 before the first batch.
        count: how many sentences were added.
        provenance: of the last batch.
    """

    def __init__(self, layers: tuple[int, ...] = ()) -> None:
        self.layers = layers
        self.total: Tensor = torch.zeros((), dtype=torch.float64)
        self.count = 0
        self.provenance: dict[str, Any] = {}

    def add(self, batch: Activations) -> None:
        """Add the sentences of a batch.

        Raises:
            TnkitError: where it lacks what is summed, or was captured in another way than the batches before it.
        """
        self.check(batch.layers, batch.provenance)
        self._count(self.totals(batch), len(batch), batch.layers, batch.provenance)

    def take(self, totals: list[Tensor], count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        """Add a batch that `reduction` has summed, layer by layer.

        Raises:
            TnkitError: where it was captured in another way than the batches before it.
        """
        self.check(layers, provenance)
        self._count(torch.stack([total.cpu() for total in totals]), count, layers, provenance)

    def _count(self, total: Tensor, count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        self.resume(self.total + total, self.count + count, layers, provenance)

    def resume(self, total: Tensor, count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        """Replace the sums by saved ones."""
        self.total, self.count, self.provenance = total, count, provenance
        self.layers = self.layers or layers

    def totals(self, batch: Activations) -> Float64[Tensor, "layer column"]:
        """The sum over the sentences of a batch, on the CPU."""
        raise NotImplementedError

    def reduction(self) -> Callable[..., Tensor | None]:
        """The same as a function of a layer, its sites and weights, for `tnkit.models.trace.jointly`."""
        raise NotImplementedError

    @property
    def settled(self) -> bool:
        """Whether `total` holds every batch that was added."""
        return True

    def settle(self) -> None:  # noqa: B027 - most have nothing to do
        """Add the batches that wait."""

    @abstractmethod
    def check(self, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        """Refuse a batch that cannot be added."""

    @abstractmethod
    def columns(self, model: Model) -> int:
        """How many columns the sum has."""

    @property
    @abstractmethod
    def identity(self) -> Any:
        """What is summed, JSON-able: saved sums of anything else are not used."""


class NeuronSum(RunningSum):
    """A running sum of every neuron of some layers, of states that belong to `points`."""

    points: Sequence[Any] = ()

    def __init__(self, model: Model, layers: Iterable[SupportsIndex]) -> None:
        wanted = check_layers(model, layers)
        if not model.with_neurons(wanted):
            raise TnkitError(f"layers {span(wanted)} of {model.name} have no neurons; name others")
        super().__init__(tuple(model.with_neurons(wanted)))
        self.model, self.experts = model, max((row[1] for row in model.layout if len(row) > 1), default=0)

    def check(self, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        if provenance is not self.provenance:  # batches of one pass share theirs
            check_made_with(self.model, provenance, "these captured states", states=True)
            check_alike([self.provenance, provenance])
            for centroids in self.points:
                check_fits(provenance, centroids.provenance)
        missing = [layer for layer in self.layers if layer not in layers]
        if missing:
            raise TnkitError(f"layers {missing} were not captured; capture them, or name layers={layers}")


def add_up(planned: Pass, running: Mapping[str, RunningSum], *, fingerprint: str | None = None) -> Iterator[int]:
    """Run a pass, add each batch to running sums, and yield its number of sentences.

    Each of several processes runs its share, and all have the sums of the whole pass at the end.

    Args:
        planned: from `tnkit.captures.passes.plan`.
        running: empty sums by name.
        fingerprint: of the model, from `Model.fingerprint`, to save the sums in the cache and resume from there;
            None does not use the cache.

    >>> from tnkit.captures.passes import plan
    >>> from tnkit.detection.centroids import CentroidAccumulator
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> running = CentroidAccumulator()
    >>> list(add_up(plan(tiny_model(), SENTENCES, keep=["post"], batch_tokens=100), {"en": running}))
    [1, 3, 2]
    """
    whole, planned = len(planned), planned.share()
    work = _add_up(planned, running) if fingerprint is None else _resumed(planned, running, fingerprint)
    yield from parallel.scaled(work, len(planned), whole)
    share_sums(planned, running)


def _add_up(planned: Pass, running: Mapping[str, RunningSum], start: int = 0) -> Iterator[int]:
    """Add the batches from number `start`; only sums travel from a remote model."""
    if planned.model.request_bytes is None:
        for number, batch in enumerate(planned.run(start, device=planned.model.home), start + 1):
            for running_sum in running.values():
                running_sum.add(batch)
                if number == len(planned.batches):
                    running_sum.settle()
            yield len(batch)
        return
    reduce = planned.model.sent(partial(jointly, {name: added.reduction() for name, added in running.items()}))
    for totals, index in planned.traced(start, reduce=reduce):
        for name, running_sum in running.items():
            running_sum.take(totals[name], len(index), planned.layers, planned.provenance)
        yield len(index)


def _resumed(planned: Pass, running: Mapping[str, RunningSum], fingerprint: str) -> Iterator[int]:
    """Start from the sums in the cache, and save them there every few seconds."""
    cached = planned.shards(
        fingerprint, what="sums", sums={name: running_sum.identity for name, running_sum in running.items()}
    )
    columns = sum(running_sum.columns(planned.model) for running_sum in running.values())
    start = 0
    if (state := cached.read("sums", most=8 * len(planned.layers) * columns + 8)) is not None:
        start = int(state.pop("batches"))
        count = sum(map(len, planned.batches[:start]))
        for name, running_sum in running.items():
            running_sum.resume(state[name], count, planned.layers, planned.provenance)
        yield count
    due = time.monotonic() + _EVERY
    for number, sentences in enumerate(_add_up(planned, running, start), start + 1):
        settled = all(running_sum.settled for running_sum in running.values())
        if settled and (number == len(planned.batches) or time.monotonic() >= due):
            began = time.monotonic()
            planned.check_weights()
            totals = {name: running_sum.total for name, running_sum in running.items()}
            cached.write("sums", {"batches": torch.tensor(number), **totals})
            due = time.monotonic() + max(_EVERY, _RARELY * (time.monotonic() - began))
        yield sentences


def share_sums(planned: Pass, running: Mapping[str, RunningSum]) -> None:
    """Give every process the sums over the shares of all processes."""
    if parallel.size() == 1 or planned.model.sharded:
        return
    for running_sum in running.values():
        shape = len(running_sum.layers or planned.layers), running_sum.columns(planned.model)
        total = parallel.added(running_sum.total.cpu().expand(shape))  # a process without batches has a scalar
        count = int(parallel.added(torch.tensor(running_sum.count)))
        running_sum.resume(total, count, planned.layers, planned.provenance)


def drain(work: Iterable[int], total: int, *, desc: str, progress: bool) -> None:
    """Do the work of a generator of sentence counts, under a progress bar."""
    hidden = not progress or parallel.rank() > 0
    with tqdm(total=total, unit=" sentences", desc=desc, disable=hidden, leave=False) as bar:
        for sentences in work:
            bar.update(sentences)
