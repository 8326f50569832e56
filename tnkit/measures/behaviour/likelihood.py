"""How well a model predicts text: perplexity, with neurons on and off."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.captures.batches import Tokens, tokenised
from tnkit.captures.rows import Rows, batches_of
from tnkit.errors import TnkitError, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.scopes import decoder_of
from tnkit.interventions.together import Given
from tnkit.measures.vocabulary import LOGITS as _LOGITS
from tnkit.measures.vocabulary import logits_of
from tnkit.models.model import Model
from tnkit.models.sessions import TURN, running
from tnkit.provenance import provenance_of

_OF_CAPTURES = ("position", "last_layer")


@dataclass(frozen=True, eq=False)
class Perplexity:
    """How well a model predicts sentences.

    Attributes:
        nll: mean negative log likelihood of each sentence's tokens after the text's first, (sentence,), nats, float64.
        tokens: how many tokens that is the mean of, (sentence,).
        count: (token, neuron) values that were set by the ablation.
        provenance: model, sentences, ablations, versions.
    """

    nll: Float[np.ndarray, "sentence"]
    tokens: Int[np.ndarray, "sentence"]
    count: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Perplexity({self.value:.4g} over {self.tokens.sum()} tokens of {len(self.tokens)} sentences)"

    @property
    def nats(self) -> float:
        """Nats per token over all tokens of the text; a mean over sentences would weigh short ones more."""
        return float(self.nll @ self.tokens / self.tokens.sum())

    @property
    def by_sentence(self) -> Float[np.ndarray, "sentence"]:
        """Each sentence's nats divided by the mean number of tokens: the mean over sentences is `nats`.

        >>> result = Perplexity(np.array([4.0, 1.0]), np.array([1, 3]))
        >>> result.nats, float(result.by_sentence.mean()), float(result.nll.mean())
        (1.75, 1.75, 2.5)
        """
        return self.nll * self.tokens / self.tokens.mean()

    @property
    def value(self) -> float:
        """The perplexity of the whole text, exp(nats); inf beyond 709 nats a token."""
        return math.exp(self.nats) if self.nats < 709 else math.inf

    def to_frame(self) -> pd.DataFrame:
        """Each sentence's nats per token, and its number of tokens, indexed by sentence."""
        index = pd.RangeIndex(len(self.nll), name="sentence")
        return pd.DataFrame({"nats per token": self.nll, "tokens": self.tokens}, index=index)

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw the distribution over sentences, with the whole text's nats per token as a line."""
        return plots.losses(self.nll, whole=self.nats, ax=ax)

    def _repr_html_(self) -> str:
        rows = {
            "perplexity": self.value,
            "nats per token, over all tokens": self.nats,
            "tokens": int(self.tokens.sum()),
        }
        return storage.html_card("Perplexity", rows | {"sentences": len(self.tokens)})


def perplexity(
    model: Model,
    sentences: Sequence[str],
    *,
    neurons: Given = (),
    tokens: str = "all",
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> Perplexity:
    """The perplexity of sentences, with neurons switched off.

    exp(-Σ log p(token | tokens before it) / number of tokens), over all tokens after each sentence's first, which is
    BOS where the tokenizer adds one: the usual definition, and the loss that transformers computes. With a template,
    only the sentence's own tokens are scored.

    Args:
        model: from `load_model`.
        sentences: any sequence of str.
        neurons: a `NeuronSet` or (layer, neuron) pairs to switch off, or interventions as in `Ablation`.
        tokens: "all", "prompt" or "last_word", as in `Ablation`; a text that is read and not continued is all prompt.
            "last" is refused: nothing is predicted from the last token.
        batch_tokens: the most tokens in a batch, padding included.
        progress: show a bar.

    Returns:
        `Perplexity`: float64, nats per token of each sentence; `nats` and `value` are of all tokens.

    Raises:
        TnkitError: for sentences that `capture` refuses, one of a single token, or a model whose output is not finite.

    >>> from tnkit.testing import tiny_model
    >>> perplexity(tiny_model(), ["Hello", "Hi"], progress=False).tokens.tolist()
    [5, 2]
    """
    if tokens == "last":
        raise TnkitError('tokens="last" changes no prediction: nothing follows the last token; use tokens="all"')
    batch_tokens = whole_number("batch_tokens", batch_tokens, at_least=1)
    ids = tokenised(model, sentences)
    counted = np.array([stop - max(start, 1) for start, stop in map(ids.span, range(len(ids)))])
    if not counted.all():
        short = int(np.argmin(counted))
        raise TnkitError(
            f"sentence {short} ({sentences[short]!r:.60}) has one token, of which none follows another; drop it"
        )
    nll = np.empty(len(ids))
    model.check_ready()
    ablation = Ablation(model, neurons, tokens=tokens)
    with (
        ablation if ablation.values else nullcontext(),
        tqdm(total=len(ids), unit=" sentences", desc="perplexity", disable=not progress, leave=False) as bar,
    ):
        losses = _Losses(model)
        for index in _batches(model, ids, batch_tokens):
            nll[index] = losses(ids, index)
            bar.update(len(index))
        origin = {name: entry for name, entry in provenance_of(model, sentences).items() if name not in _OF_CAPTURES}
    wrong = np.flatnonzero(~np.isfinite(nll))
    if len(wrong):
        raise TnkitError(
            f"{model.name} gives sentence {wrong[0]} ({sentences[wrong[0]]!r:.60}) a likelihood that is not finite; "
            "load it in another dtype or switch off less"
        )
    return Perplexity(nll, counted, ablation.count, origin)


def _batches(model: Model, ids: Tokens, batch_tokens: int) -> Iterator[list[int]]:
    """Batches sorted by length, the shortest sentence of the first in one of its own."""
    first, *others = batches_of(model, ids.lengths(), batch_tokens)
    yield from ([first[:1], first[1:], *others] if len(first) > 1 else [first, *others])


class _Losses:
    """Mean losses of batches, of logits that the head makes of final states, a slice of real tokens at a time.

    The first batch runs through the whole module. Where logits of ours differ from the module's there, because it does
    more after its decoder than we know of, the whole module runs every batch, a few sentences at a time.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.decoder = model, decoder_of(model)
        self.head = cast(torch.nn.Module | None, model.module.get_output_embeddings())
        embeddings = cast(torch.nn.Embedding, model.module.get_input_embeddings())
        self.rows = max(1, _LOGITS // len(embeddings.weight))
        self.proved: bool | None = None

    def __call__(self, tokens: Tokens, index: Sequence[int]) -> Float[np.ndarray, "sentence"]:
        """Each sentence's mean loss over its own tokens after the text's first."""
        rows = self._rows(tokens, index)
        counted = _counted(rows, tokens, index)
        with TURN, torch.no_grad():
            states = (self._from_states if self.proved else self._from_module)(tokens, index)
            losses = [
                cross_entropy(logits.float(), wanted.to(logits.device), reduction="none").double().cpu()
                for logits, wanted in zip(states, rows.ids[:, 1:][counted].split(self.rows), strict=True)
            ]
        sentence = counted.nonzero()[:, 0].cpu()
        totals = torch.zeros(len(index), dtype=torch.float64).index_add(0, sentence, torch.cat(losses))
        return (totals / counted.sum(dim=1).cpu()).numpy()

    def _rows(self, tokens: Tokens, index: Sequence[int]) -> Rows:
        return Rows.of(self.model, [tokens[number] for number in index])

    def _from_states(self, tokens: Tokens, index: Sequence[int]) -> Iterator[Tensor]:
        """Logits that predict the counted tokens, by the head alone."""
        rows = self._rows(tokens, index)
        with running(self.model.module, **rows.known(tokens, index)):
            states = self.decoder(**rows.inputs, use_cache=False)[0]
        yield from map(self._logits, _before(states, rows, tokens, index).split(self.rows))

    def _from_module(self, tokens: Tokens, index: Sequence[int]) -> Iterator[Tensor]:
        """Logits that predict the counted tokens, by the whole module, a few sentences at a time."""
        kept: list[Tensor] = []
        hook = self.decoder.register_forward_hook(lambda _, __, output: kept.append(output[0]))
        size, logits = max(1, self.rows // max(len(tokens[number]) for number in index)), []
        try:
            for start in range(0, len(index), size):
                some = index[start : start + size]
                rows = self._rows(tokens, some)
                with running(self.model.module, **rows.known(tokens, some)):
                    whole = self.model.module(**rows.inputs, use_cache=False).logits
                logits.append(_before(whole, rows, tokens, some))
                if self.proved is None:
                    self.proved = self._agrees(_before(kept[-1], rows, tokens, some), logits[-1])
                kept.clear()
        finally:
            hook.remove()
        yield from torch.cat(logits).split(self.rows)

    def _agrees(self, states: Tensor, expected: Tensor) -> bool:
        """Whether logits of ours are the module's, up to rounding."""
        if self.head is None:
            return False
        ours = torch.cat([self._logits(rows) for rows in states.split(self.rows)]).float()
        expected = expected.float().to(ours.device)
        precision = 16 * torch.finfo(self.model.dtype).eps
        return bool((ours - expected).abs().max() <= precision * expected.abs().max())

    def _logits(self, states: Float[Tensor, "token hidden"]) -> Float[Tensor, "token item"]:
        """The logits of final states, with the scale and the cap that configurations name."""
        assert self.head is not None
        return logits_of(self.model, self.head, states)


def _counted(rows: Rows, tokens: Tokens, index: Sequence[int]) -> Bool[Tensor, "sentence token"]:
    """Which tokens after the first of each sentence are counted."""
    own = tokens.own_places(index, rows.real.shape[1])
    return rows.real[:, 1:] if own is None else rows.real[:, 1:] & own[:, 1:].to(rows.real.device)


def _before(values: Tensor, rows: Rows, tokens: Tokens, index: Sequence[int]) -> Float[Tensor, "token item"]:
    """What the tokens before the counted ones have."""
    places = rows.places[:, :-1][_counted(rows, tokens, index)]
    return values.flatten(0, 1)[places.to(values.device)]
