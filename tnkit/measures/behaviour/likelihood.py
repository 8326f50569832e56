"""How well a model predicts text: perplexity, with neurons on and off."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.errors import TnkitError
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.together import Given
from tnkit.measures.behaviour.losses import Losses
from tnkit.models.model import Model
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
    losses = Losses(model, sentences, batch_tokens=batch_tokens, keep=False)
    return perplexity_of(losses, neurons=neurons, tokens=tokens, progress=progress)


def perplexity_of(losses: Losses, *, neurons: Given = (), tokens: str = "all", progress: bool = True) -> Perplexity:
    """`perplexity` of sentences whose `Losses` other interventions share.

    Args:
        losses: of the model and the sentences.
        neurons, tokens, progress: as in `perplexity`.

    Raises:
        TnkitError: as `perplexity` does.

    >>> from tnkit.testing import tiny_model
    >>> losses = Losses(tiny_model(), ["Hello", "Hi"])
    >>> [perplexity_of(losses, neurons=off, progress=False).tokens.tolist() for off in ([], [(1, 7)])]
    [[5, 2], [5, 2]]
    """
    if tokens == "last":
        raise TnkitError('tokens="last" changes no prediction: nothing follows the last token; use tokens="all"')
    model, sentences = losses.model, losses.sentences
    ablation = Ablation(model, neurons, tokens=tokens)
    with (
        ablation if ablation.values else nullcontext(),
        tqdm(total=len(sentences), unit=" sentences", desc="perplexity", disable=not progress, leave=False) as bar,
    ):
        nll = losses.under(ablation, bar.update)
        origin = {name: entry for name, entry in provenance_of(model, sentences).items() if name not in _OF_CAPTURES}
    wrong = np.flatnonzero(~np.isfinite(nll))
    if len(wrong):
        raise TnkitError(
            f"{model.name} gives sentence {wrong[0]} ({sentences[wrong[0]]!r:.60}) a likelihood that is not finite; "
            "load it in another dtype or switch off less"
        )
    return Perplexity(nll, losses.counted, ablation.count, origin)


def nats_of(losses: Losses, tokens: str) -> Callable[[Given], Float[np.ndarray, "sentence"]]:
    """A function of what is switched off: each sentence's nats, as `Perplexity.by_sentence`."""
    return lambda off: perplexity_of(losses, neurons=off, tokens=tokens, progress=False).by_sentence
