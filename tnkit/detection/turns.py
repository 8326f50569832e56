"""Sum up how every neuron turns the residual stream: `attraction`, and `TurnAccumulator`, batch by batch.

The sum of a neuron is a vector, (layer, neuron, hidden) in all, which takes the memory of the down projections. Batches
wait until they are many sentences, so that the whole of it is rarely read and written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.captures.passes import plan
from tnkit.captures.token_ids import Texts
from tnkit.detection.attraction import Attraction
from tnkit.detection.centroids import Centroids
from tnkit.detection.closed_form import add_turns
from tnkit.detection.scoring import FOLDS, shares_sent
from tnkit.detection.sums import NeuronSum, add_up, drain
from tnkit.errors import TnkitError, check_model
from tnkit.models.model import Model

_WAITING = 64  # sentences of a fold that are added at once


class TurnAccumulator(NeuronSum):
    """The running sum of turns, float32, on the device where activations stay.

    Args:
        model: the model that the batches come from.
        origin, layers: as in `attraction`; those without neurons are left out.
        folds: how many sums to keep; a sentence is added to that of its place in the text modulo this.

    Raises:
        TnkitError: for a remote model, layers without neurons, or an origin of another model.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> import tnkit as tn
    >>> running = TurnAccumulator(tiny_model())
    >>> for batch in tn.stream(tiny_model(), SENTENCES, batch_tokens=64, progress=False):
    ...     running.add(batch)
    >>> running.result().sums.shape
    torch.Size([4, 1, 48, 32])
    """

    def __init__(
        self,
        model: Model,
        *,
        origin: Centroids | None = None,
        layers: Iterable[SupportsIndex] | None = None,
        folds: int = 1,
    ) -> None:
        check_model(model)
        if model.request_bytes is not None:
            raise TnkitError(
                f"the sums of {model.name} are as large as its down projections and would travel from {model.server} "
                "with each batch; score towards one centroid after another, with tn.detect or tn.score_neurons"
            )
        super().__init__(model, range(model.n_layers) if layers is None else layers)
        self.origin, self.folds = origin, folds
        self.points = [] if origin is None else [origin.check(model)]
        self.total = torch.zeros((), dtype=torch.float32)
        points = [torch.zeros(model.hidden_size) if origin is None else origin.at(layer) for layer in self.layers]
        self._origins, self._waiting = torch.stack(points), list[Activations]()

    def add(self, batch: Activations) -> None:
        self.check(batch.layers, batch.provenance)
        batch.require("mid", "activations", "scale", *(["experts"] if self.experts else []))
        self._waiting.append(batch)
        self.count, self.provenance = self.count + len(batch), batch.provenance
        if sum(map(len, self._waiting)) >= _WAITING * self.folds:
            self.settle()

    @property
    def settled(self) -> bool:
        return not self._waiting

    def settle(self) -> None:
        batches, self._waiting = self._waiting, []
        if not batches:
            return
        if not self.total.ndim:
            self.total = torch.zeros(len(self.layers), self.columns(self.model), device=self.model.home)
        folds = torch.cat([batch.index for batch in batches]) % self.folds
        shape = self.folds, self.model.n_neurons, self.model.hidden_size
        sums = self.total[:, : self.columns(self.model) - self.experts].unflatten(1, shape)
        for row, layer in enumerate(self.layers):
            place, sites = batches[0].layers.index(layer), [batch.tensors() for batch in batches]
            states = [torch.cat([site[name][place] for site in sites]) for name in ("mid", "activations", "scale")]
            experts = torch.cat([site["experts"][place] for site in sites]) if self.experts else None
            layout = (self.model.widths[layer], *self.model.experts_of(layer))
            given = (*states, experts, self._origins[row], folds, sums[row, :, : layout[0]], layout)
            self.model.ask_weights(_add, {layer: given})
            if experts is not None and len(layout) > 1:
                sent = experts[experts >= 0].long().bincount(minlength=self.experts)
                self.total[row, -self.experts :] += sent.to(self.total.device)

    def columns(self, model: Model) -> int:
        return self.folds * model.n_neurons * model.hidden_size + self.experts

    @property
    def identity(self) -> list[Any]:
        seen_from = [] if self.origin is None else [storage.text_hash(map(str, self._origins.tolist()))]
        return ["turns", self.layers, self.folds, *seen_from]

    def resume(self, total: Tensor, count: int, layers: tuple[int, ...], provenance: dict[str, Any]) -> None:
        super().resume(total.float().to(self.model.home), count, layers, provenance)

    def result(self) -> Attraction:
        """The sums over the sentences that were added.

        Raises:
            TnkitError: where there are none, or a sum is not finite.
        """
        self.settle()
        if not self.count:
            raise TnkitError("there are no sentences to sum up")
        for row, layer in enumerate(self.layers):
            if not bool(self.total[row].sum().isfinite()):
                raise TnkitError(
                    f"sums of layer {layer} are not finite: the captured states or weights hold NaN or Inf"
                )
        sums, sent = self.total.split((self.total.shape[1] - self.experts, self.experts), dim=1)
        routed = shares_sent(self.model, self.layers, sent, self.count)
        sums = sums.unflatten(1, (self.folds, self.model.n_neurons, self.model.hidden_size))
        about, origin = self.provenance, None
        if self.origin is not None:
            origin = self._origins
            about = {**about, "origin": self.origin.provenance.get("sentences", self.origin.provenance)}
        return Attraction(sums, self.layers, tuple(self.model.widths), self.count, origin, about, routed)


def _add(
    vectors: Float[Tensor, "neuron hidden"],
    gain: Float[Tensor, "hidden"],
    _bias: Float[Tensor, "hidden"],
    mid: Float[Tensor, "sentence hidden"],
    activations: Float[Tensor, "sentence place"],
    scale: Float[Tensor, "sentence"],
    experts: Int[Tensor, "sentence slot"] | None,
    origin: Float[Tensor, "hidden"],
    folds: Int[Tensor, "sentence"],
    total: Float[Tensor, "fold neuron hidden"],
    layout: tuple[int, ...],
) -> None:
    """Add the turns of one layer to its sums, those of an expert's neurons over the sentences that are sent to it."""
    device = vectors.device
    states = mid.to(device).float() - origin.to(device)
    kept = activations.to(device).float() * scale.to(device)[:, None]
    there = total if total.device == device else torch.zeros_like(total, device=device)
    for rows, columns, first, last in _groups(kept, None if experts is None else experts.to(device), layout):
        written = vectors[first:last].float() * gain
        add_turns(states[rows], columns, written, there[:, first:last], folds[rows.to(folds.device)])
    if there is not total:
        total += there.to(total.device)


def _groups(
    kept: Float[Tensor, "sentence place"], experts: Int[Tensor, "sentence slot"] | None, layout: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, int, int]]:
    """Each group of neurons that run in the same sentences: these, their activations, the first neuron, and the last.

    A group is an expert, or all that are in none.
    """
    neurons, count, width = (layout[0], 0, 0) if experts is None or len(layout) == 1 else layout
    slots = experts.shape[1] if experts is not None and count else 0
    for expert in experts.unique().tolist() if experts is not None and count else ():
        if expert >= 0:
            rows, chosen = torch.where(experts == expert)
            columns = kept[:, : slots * width].unflatten(1, (slots, width))[rows, chosen]
            yield rows, columns, expert * width, (expert + 1) * width
    shared = neurons - count * width
    if shared:
        columns = kept[:, slots * width :][:, :shared]
        yield torch.arange(len(kept), device=kept.device), columns, count * width, neurons


def attraction(
    model: Model,
    sentences: Activations | Texts,
    *,
    origin: Centroids | None = None,
    layers: Iterable[SupportsIndex] | None = None,
    stability: bool = False,
    cache: bool = False,
    progress: bool = True,
    **options: Any,
) -> Attraction:
    """Sum up how every neuron turns the states of sentences, for scores towards any centroid later.

    It takes as much memory as the down projections of the layers in float32, whatever the number of sentences.

    Args:
        model: from `load_model`, or the one that was captured.
        sentences: to run, each once; or a capture with `mid` and `activations`, which runs nothing.
        origin: G, from `estimate_centroids`, for centred scores; None gives raw ones.
        layers: where to sum (default: all layers with neurons, or those that were captured).
        stability: keep a sum for each of eight folds of the sentences, which `tn.NeuronScores.folds` come from; that
            takes eight times the memory.
        cache: save the sums on the way, and resume from saved ones.
        progress: show a bar.
        **options: position, suffix, batch_tokens, as in `tn.capture`.

    Returns:
        `Attraction`, on the CPU, or on the GPU that the model is on.

    Raises:
        TnkitError: for a remote model, whose sums would be as much to send as its weights; and as `tn.score_neurons`
            and `tn.capture` do.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> attraction(tiny_model(), SENTENCES, progress=False)
    Attraction(unnamed, raw, layers 0 to 3)
    """
    how: dict[str, Any] = {"origin": origin, "folds": FOLDS if stability else 1}
    if isinstance(sentences, Activations):
        if options:
            raise TnkitError(f"{', '.join(options)} cannot change a capture; give its sentences, or capture again")
        running = TurnAccumulator(model, layers=sentences.layers if layers is None else layers, **how)
        running.add(sentences)
        return running.result()
    running = TurnAccumulator(model, layers=layers, **how)
    planned = plan(model, sentences, keep=("activations", "mid", "scale"), layers=running.layers, **options)
    work = add_up(planned, {"turns": running}, fingerprint=model.fingerprint() if cache else None)
    drain(work, len(planned), desc="attraction", progress=progress)
    return running.result()
