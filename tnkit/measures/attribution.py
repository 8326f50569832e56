"""How much each neuron adds to a measure, by gradients: `attribution`.

found = tn.attribution(model, train, language="ja", layer=15)                     # all neurons, a few passes
rival = found.top(1000, layers=model.early_layers)                                # a selection, for tn.controls
tn.beside(exact, {"attribution": found}).correlation()                            # beside scores and exact effects
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from tqdm.auto import tqdm

from tnkit import storage
from tnkit.captures.batches import by_length, roomy, tokenised
from tnkit.captures.passes import capture
from tnkit.captures.rows import Rows
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scores import NeuronScores
from tnkit.errors import TnkitError, check_model, one_of, whole_number
from tnkit.interventions.last_token import LastToken
from tnkit.interventions.scopes import decoder_of
from tnkit.measures.gates import Gates
from tnkit.measures.geometry.vectors import centre, unit
from tnkit.measures.measurement import MEASURE_NAMES, Texts, layer_named
from tnkit.measures.vocabulary import LOGITS, head_of, logits_of
from tnkit.models.hooks import check_repeatable
from tnkit.models.model import Model, check_layers
from tnkit.models.sessions import TURN, running
from tnkit.models.trace import first
from tnkit.provenance import provenance_of
from tnkit.text.rows import check_texts

METHODS = ("gradient", "integrated")


def _centred_similarity(states: Tensor, targets: Tensor) -> Tensor:
    return (unit(centre(states)) * unit(centre(targets))).sum(dim=1)


def _margin(states: Tensor, targets: Tensor) -> Tensor:
    cosines = unit(centre(states)) @ unit(centre(targets)).T
    others = cosines.masked_fill(torch.eye(len(cosines), dtype=torch.bool, device=cosines.device), -torch.inf)
    return cosines.diagonal() - others.amax(dim=1)


_OF_STATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "similarity": partial(cosine_similarity, dim=-1),
    "centred_similarity": _centred_similarity,
    "margin": _margin,
}
ATTRIBUTED = (*_OF_STATES, "perplexity")


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each neuron adds to the mean of a measure over sentences, by gradients.

    Attributes:
        values: (layer, neuron), float64: about how much the measure falls where that neuron is set to 0; NaN in layers
            that were not attributed, and for neurons that a layer lacks.
        measure, method: what was attributed, and how.
        difference: the measure's mean, untouched - with all these neurons at 0; integrated gradients sum to it.
        provenance: model, sentences, layer.
    """

    values: Float64[Tensor, "layer neuron"]
    measure: str
    method: str
    difference: float
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Attribution({self.method}, {self.measure}, sums to {self.values.nansum():.4g} of {self.difference:.4g})"
        )

    @property
    def scores(self) -> NeuronScores:
        """The values as scores, as `tn.effects` takes them."""
        return NeuronScores(self.values, f"{self.method} of {self.measure}", self.provenance)

    def top(self, n: SupportsIndex, *, layers: Iterable[SupportsIndex] | None = None) -> NeuronSet:
        """The n neurons of highest attribution, best first, as `NeuronScores.top`."""
        return self.scores.top(n, layers=layers)

    def to_frame(self) -> pd.DataFrame:
        """The attribution of every neuron, indexed (layer, neuron)."""
        return self.scores.to_frame().rename(columns={"score": "attribution"})

    def _repr_html_(self) -> str:
        rows = {"sum": float(self.values.nansum()), "all neurons at 0": self.difference}
        return storage.html_card(f"Attribution: {self.method} of {self.measure}", rows)


def attribution(
    model: Model,
    texts: Texts,
    *,
    language: str,
    layer: SupportsIndex | None = None,
    measure: str = "centred_similarity",
    method: str = "gradient",
    steps: SupportsIndex = 8,
    layers: Iterable[SupportsIndex] | None = None,
    hub: str = "en",
    position: str = "last",
    suffix: str | None = None,
    progress: bool = True,
) -> Attribution:
    """Attribute the mean of a measure over sentences to neurons, all that come after them left running.

    Each activation is multiplied by a gate α, one for each neuron and alike in all sentences. With M the mean of the
    measure, "gradient" is ∂M/∂α at α = 1, which is gradient × activation; "integrated" is its mean over α from 0 to 1
    for all neurons together (integrated gradients, Sundararajan et al., ICML 2017, eq. 1, of the gates), which sums to
    M(1) - M(0). There the branch's output norm, which would undo a common α, divides by what it would at α = 1;
    experts that the router chooses only at some α make the sum differ. Centring over sentences is part of the measure.

    Args:
        model: from `load_model`; it runs here.
        texts: language → aligned sentences.
        language: whose runs are attributed.
        layer: where states are measured.
        measure: "similarity", "centred_similarity" or "margin" with the hub's sentence at `layer`, of the neurons at
            the token that is read; or "perplexity", nats per token, of the neurons at all tokens.
        method: "gradient" or "integrated".
        steps: how many values α takes from 0 to 1 (midpoints).
        layers: whose neurons (default: all up to `layer`).
        hub, position, suffix: as in `tn.ablate`.
        progress: show a bar.

    Returns:
        `Attribution`, with the sign of `Effects.drops`: positive where the measure falls without the neuron.

    Raises:
        TnkitError: for a remote model, a measure of states without a layer, neurons after that layer, or perplexity of
            a model with experts.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> found = attribution(
    ...     tiny_model(), texts, language="it", layer=2, method="integrated", steps=64, progress=False
    ... )
    >>> bool(abs(found.values.nansum() - found.difference) < 0.01), len(found.top(5))
    (True, 5)
    """
    one_of("measure", measure, ATTRIBUTED)
    one_of("method", method, METHODS)
    check_model(model)
    check_repeatable(model.module)
    steps = whole_number("steps", steps, at_least=1)
    of_states = measure in _OF_STATES
    depth = layer_named(model, layer) if of_states else model.n_layers - 1
    if not of_states and model.slots:
        raise TnkitError(
            f"{model.name} has experts, whose neurons are attributed at one token; give a measure of states"
        )
    chosen = check_layers(model, range(depth + 1) if layers is None else layers)
    if max(chosen) > depth:
        raise TnkitError(f"a neuron of layer {max(chosen)} cannot change layer {depth}; attribute earlier layers")
    check_texts(texts, (language, hub) if of_states else (language,))
    chosen = tuple(model.with_neurons(chosen))
    if method == "integrated" and any((sites := model.sites[at]) and sites.experts and sites.norm for at in chosen):
        raise TnkitError(f"{model.name} norms what its experts add; give method='gradient'")
    reading = {"position": position, "suffix": suffix, "progress": progress}
    if of_states:
        run: _OfStates | _OfText = _OfStates(model, texts, (language, hub), measure, depth, reading)
    else:
        run = _OfText(model, texts[language])
    run.frozen = method == "integrated"
    alphas = [1.0] if method == "gradient" else [(step + 0.5) / steps for step in range(steps)]
    total = [torch.zeros(model.widths[at], dtype=torch.float64) for at in chosen]
    for alpha in tqdm(alphas, desc="attribution", unit=" passes", disable=not progress, leave=False):
        for held, gradient in zip(total, run.gradients(chosen, alpha), strict=True):
            held += gradient / len(alphas)
    values = torch.full((model.n_layers, model.n_neurons), torch.nan, dtype=torch.float64)
    for at, row in zip(chosen, total, strict=True):
        values[at, : len(row)] = row
    difference = run.mean(chosen, 1.0) - run.mean(chosen, 0.0)
    about = provenance_of(model, texts[language]) | {"position": position}
    about |= {"attribution": {"measure": measure, "method": method, "layer": depth, "steps": len(alphas), "hub": hub}}
    name = MEASURE_NAMES[measure] + (f", layer {depth}" if of_states else "")
    return Attribution(values, name, method, difference, about)


class _OfStates:
    """A measure of the states of one layer at the token that is read, against the hub's."""

    frozen = False

    def __init__(
        self, model: Model, texts: Texts, named: tuple[str, str], measure: str, layer: int, reading: dict[str, Any]
    ) -> None:
        self.model, self.layer = model, layer
        self.prefix = LastToken(model, texts[named[0]], **reading, keep=["post"])
        targets = capture(model, texts[named[1]], **reading, keep=["post"], layers=[layer]).tensors()["post"][0]
        self.measure, self.targets = _OF_STATES[measure], targets.double()
        self.count = len(texts[named[0]])

    def _batches(self, layers: Sequence[int], alpha: float) -> Iterator[tuple[list[int], Gates, Tensor]]:
        """The state of each sentence of a batch, with gates on the neurons."""
        block = self.model.blocks[self.layer]
        for index, inputs, prompt, last in self.prefix.passes():
            gates, kept = Gates(self.model, layers, alpha, last, frozen=self.frozen), list[Tensor]()
            read = block.register_forward_hook(lambda _, __, output, kept=kept: kept.append(first(output)))
            with read, TURN, running(self.model.module, prompt=prompt), gates:
                decoder_of(self.model)(**inputs)
            yield index, gates, kept[0][torch.arange(len(index), device=last.device), last]

    def _states(self, layers: Sequence[int], alpha: float) -> Float64[Tensor, "sentence hidden"]:
        states = torch.empty(self.count, self.model.hidden_size, dtype=torch.float64)
        with torch.no_grad():
            for index, _, found in self._batches(layers, alpha):
                states[index] = found.double().cpu()
        return states

    def mean(self, layers: Sequence[int], alpha: float) -> float:
        """The mean of the measure with all gates at α."""
        return float(self.measure(self._states(layers, alpha), self.targets).mean())

    def gradients(self, layers: Sequence[int], alpha: float) -> list[Float64[Tensor, "neuron"]]:
        """∂ mean / ∂ gate of each neuron of each layer."""
        states = self._states(layers, alpha).requires_grad_()
        (cotangents,) = torch.autograd.grad(self.measure(states, self.targets).mean(), states)
        total: list[Tensor] = []
        with torch.enable_grad():
            for index, gates, found in self._batches(layers, alpha):
                total = gates.gradients(found, cotangents[index].to(found.device, found.dtype), total)
        return total


class _OfText:
    """Nats per token of whole sentences."""

    frozen = False

    def __init__(self, model: Model, sentences: Sequence[str]) -> None:
        model.check_ready()
        self.model, (_, self.head) = model, head_of(model)
        self.ids = tokenised(model, sentences)
        spans = [self.ids.span(number) for number in range(len(self.ids))]
        self.tokens = sum(stop - max(start, 1) for start, stop in spans)

    def _batches(self, layers: Sequence[int], alpha: float) -> Iterator[tuple[Gates, Tensor, Tensor]]:
        """Final states of the tokens that are predicted from, and the tokens that follow."""
        for index in by_length(self.ids.lengths(), roomy(self.model)):
            inputs = Rows.of(self.model, [self.ids[number] for number in index], packed=False).inputs
            real = inputs["attention_mask"][:, 1:].bool()
            own = self.ids.own_places(index, inputs["input_ids"].shape[1])
            real = real if own is None else real & own[:, 1:].to(real.device)
            gates = Gates(self.model, layers, alpha, None, frozen=self.frozen)
            with TURN, running(self.model.module, own=own), gates:
                states = decoder_of(self.model)(**inputs, use_cache=False)[0][:, :-1]
            yield gates, states[real], inputs["input_ids"][:, 1:][real]

    def _nats(self, states: Tensor, wanted: Tensor) -> Iterator[Tensor]:
        rows = max(1, LOGITS // len(self.head.weight))
        for some, tokens in zip(states.split(rows), wanted.split(rows), strict=True):
            logits = logits_of(self.model, self.head, some).float()
            yield cross_entropy(logits, tokens.to(logits.device), reduction="sum") / self.tokens

    def mean(self, layers: Sequence[int], alpha: float) -> float:
        """Nats per token with all gates at α."""
        with torch.no_grad():
            return sum(
                float(nats) for _, states, wanted in self._batches(layers, alpha) for nats in self._nats(states, wanted)
            )

    def gradients(self, layers: Sequence[int], alpha: float) -> list[Float64[Tensor, "neuron"]]:
        """∂ nats / ∂ gate of each neuron of each layer."""
        total: list[Tensor] = []
        with torch.enable_grad():
            for gates, states, wanted in self._batches(layers, alpha):
                leaf, cotangents = states.detach().requires_grad_(), torch.zeros_like(states)
                for nats in self._nats(leaf, wanted):
                    cotangents = cotangents + torch.autograd.grad(nats, leaf)[0]
                total = gates.gradients(states, cotangents, total)
        return total
