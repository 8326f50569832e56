"""Running sums over a pass, saved on the way where asked for, so that a killed pass in flat memory goes on.

running = CentroidAccumulator()
for sentences in add_up(plan(model, texts, keep=["post"]), {"centroid": running}):
    ...                                                       # that many more have been counted in
running.result()
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from tnkit import parallel
from tnkit.captures.passes import Pass, plan
from tnkit.detection.centroids import CentroidAccumulator, Centroids
from tnkit.detection.scoring import ScoreAccumulator
from tnkit.models.model import Model
from tnkit.models.trace import jointly

_EVERY = 5.0  # seconds of work that are lost, at most, where a pass is killed


def add_up(
    planned: Pass,
    running: Mapping[str, CentroidAccumulator | ScoreAccumulator],
    *,
    fingerprint: str | None = None,
) -> Iterator[int]:
    """Feed a pass to accumulators, and after each batch yield how many sentences it had.

    Of several processes, each runs its share, and all end with the sums of the whole.

    Args:
        planned: from `tnkit.captures.passes.plan`.
        running: accumulators that nothing was added to, by name.
        fingerprint: of the model, from `Model.fingerprint`, to take up sums from the cache and keep them
            there; None leaves the cache alone.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> running = CentroidAccumulator()
    >>> list(add_up(plan(tiny_model(), SENTENCES, keep=["post"], batch_tokens=100), {"en": running}))
    [3, 2, 1]
    """
    whole, planned = len(planned), planned.share()
    yield from parallel.scaled(_add_up(planned, running, fingerprint), len(planned), whole)
    together(planned, running)


def _add_up(planned: Pass, running: Mapping[str, Any], fingerprint: str | None) -> Iterator[int]:
    kept, start = None, 0
    if fingerprint is not None:
        of = {name: accumulator.about for name, accumulator in running.items()}
        kept = planned.shards(fingerprint, what="sums", of=of)
        wide = max(planned.model.n_neurons, planned.model.hidden_size)
        if (state := kept.read("sums", most=8 * planned.model.n_layers * wide * len(running) + 8)) is not None:
            start = int(state.pop("batches"))
            count = sum(map(len, planned.batches[:start]))
            for name, accumulator in running.items():
                accumulator.resume(state[name], count, planned.layers, planned.provenance)
            yield count
    saved = time.monotonic()
    for number, sentences in enumerate(_counted_in(planned, running, start), start + 1):
        if kept and (number == len(planned.batches) or time.monotonic() - saved >= _EVERY):
            planned.check_weights()
            totals = {name: accumulator.total for name, accumulator in running.items()}
            kept.write("sums", {"batches": torch.tensor(number), **totals})
            saved = time.monotonic()
        yield sentences


def _counted_in(
    planned: Pass, running: Mapping[str, CentroidAccumulator | ScoreAccumulator], start: int
) -> Iterator[int]:
    """Count batches in, from number start on; of a remote model only their sums come here."""
    reduce = planned.model.sent(partial(jointly, {name: summed.reduction() for name, summed in running.items()}))
    if reduce is None:
        for batch in planned.run(start, device=planned.model.home):
            for accumulator in running.values():
                accumulator.add(batch)
            yield len(batch)
        return
    for found, index in planned.traced(start, reduce=reduce):
        for name, accumulator in running.items():
            accumulator.take(found[name], len(index), planned.layers, planned.provenance)
        yield len(index)


def together(planned: Pass, running: Mapping[str, CentroidAccumulator | ScoreAccumulator]) -> None:
    """Add the sums of all processes, where there are several, each of which has counted in its share of a pass."""
    if parallel.size() == 1 or planned.model.sharded:
        return
    for accumulator in running.values():
        total = accumulator.total
        if not isinstance(total, torch.Tensor):  # nothing fell to this process
            total = torch.zeros(len(planned.layers), planned.model.hidden_size, dtype=torch.float64)
        count = int(parallel.added(torch.tensor(accumulator.count)))
        accumulator.resume(parallel.added(total), count, planned.layers, planned.provenance)


def centroid(
    model: Model, sentences: Sequence[str], *, cache: bool = False, progress: bool = True, **options: Any
) -> Centroids:
    """The centroid of one language, in flat memory.

    Args:
        model, sentences: as in `tn.capture`.
        cache: save the sums on the way, and go on from those that were saved.
        progress: show a bar.
        **options: position, suffix, layers, last_layer, batch_tokens, as in `tn.capture`.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> centroid(tiny_model(), SENTENCES, progress=False)
    Centroids(unnamed, 4 layers)
    """
    running, planned = CentroidAccumulator(), plan(model, sentences, keep=["post"], **options)
    work = add_up(planned, {"centroid": running}, fingerprint=model.fingerprint() if cache else None)
    drain(work, len(planned), desc="centroid", progress=progress)
    return running.result()


def drain(work: Iterable[int], total: int, *, desc: str, progress: bool) -> None:
    """Do the work of a generator that yields how many sentences were done, under a bar."""
    with tqdm(
        total=total, unit=" sentences", desc=desc, disable=not progress or parallel.rank() > 0, leave=False
    ) as bar:
        for sentences in work:
            bar.update(sentences)
