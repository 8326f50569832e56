"""Losses of the tokens of sentences under one intervention after another, with what these share run once: `Losses`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from tnkit.captures.batches import tokenised
from tnkit.captures.rows import Rows, batches_of
from tnkit.errors import TnkitError, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.scopes import decoder_of
from tnkit.measures.vocabulary import LOGITS as _LOGITS
from tnkit.measures.vocabulary import logits_of
from tnkit.models.blocks import recorded, skipped
from tnkit.models.hooks import without_ablations
from tnkit.models.model import PROBE, Model
from tnkit.models.sessions import TURN, running

_SLICE = 1 << 20  # logits made at once by a plain head: 4 MiB in float32, which stay in a processor's cache
_KEPT = 1 << 28  # bytes of states kept of the sentences of one language
_PROBED = 8  # tokens of a short text


class Head:
    """Losses of tokens by the model's output head alone, without the rest of the module that is around its decoder.

    A short text is run through the whole module first. Where its logits are not ours, because the module does more
    after its decoder than we know of, `serves` is False. A head that is a plain matrix makes the logits of a slice of
    the vocabulary at a time, of which no more is kept than the sum of their exponentials.

    >>> from tnkit.testing import tiny_model
    >>> Head(tiny_model("gemma2")).serves
    True
    """

    def __init__(self, model: Model) -> None:
        model.check_ready()
        self.model, self.decoder = model, decoder_of(model)
        self.head = cast(nn.Module | None, model.module.get_output_embeddings())
        self._logits = partial(logits_of, model, cast(nn.Module, self.head))
        self._shares: dict[int, bool] = {}
        self.plain = _is_plain(model, self.head)
        items = len(cast(nn.Embedding, model.module.get_input_embeddings()).weight)
        self.rows = max(1, _LOGITS // items)
        ids = model.tokenizer(PROBE, verbose=False)["input_ids"][:_PROBED]
        self._probe = Rows.of(model, [ids]).inputs | {"use_cache": False}
        with TURN, torch.no_grad(), without_ablations(model.module):
            self.serves = self._agrees()

    def losses(self, states: Float[Tensor, "token hidden"], ids: Int[Tensor, "token"]) -> Float64[Tensor, "token"]:
        """-log p of tokens, from the final states that predict them, on the CPU."""
        if not self.plain:
            return losses_of(map(self._logits, states.split(self.rows)), ids.split(self.rows))
        own, sums = states.new_zeros(len(states), dtype=torch.float32), []
        for start, head in self._slices(len(states)):
            logits = logits_of(self.model, head, states).float()
            column = ids - start
            inside = (column >= 0) & (column < logits.shape[1])
            own += logits.gather(1, column.where(inside, 0)[:, None])[:, 0].where(inside, 0)
            sums.append(logits.logsumexp(1))
        return (torch.stack(sums).double().logsumexp(0) - own.double()).cpu()

    def shares(self, depth: int) -> bool:
        """Whether blocks below a depth may be left out once the output of the last of them is known."""
        if depth not in self._shares:
            with TURN, torch.no_grad(), without_ablations(self.model.module):
                kept: list[Any] = []
                with recorded(self.model, depth - 1, kept):
                    whole = self.decoder(**self._probe)[0]
                try:
                    with skipped(self.model, range(depth), kept):
                        rest = self.decoder(**self._probe)[0]
                except Exception:  # of blocks that need more of those below than their output
                    self._shares[depth] = False
                else:
                    self._shares[depth] = self._is_alike(rest, whole)
        return self._shares[depth]

    def _agrees(self) -> bool:
        """Whether logits of ours are the module's, up to rounding."""
        kept: list[Tensor] = []
        with self.decoder.register_forward_hook(lambda _, __, output: kept.append(output[0])):
            expected = self.model.module(**self._probe).logits[0]
        if self.head is None:
            return False
        states = kept[-1][0]
        if self.plain:
            slices = [logits_of(self.model, head, states) for _, head in self._slices(len(states))]
            self.plain = self._is_alike(torch.cat(slices, dim=1), expected)
        return self.plain or self._is_alike(self._logits(states), expected)

    def _is_alike(self, ours: Tensor, expected: Tensor) -> bool:
        if ours.shape != expected.shape:
            return False
        expected = expected.float().to(ours.device)
        precision = 16 * torch.finfo(self.model.dtype).eps
        return bool((ours.float() - expected).abs().max() <= precision * expected.abs().max())

    def _slices(self, rows: int) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
        """Where each slice of a plain head's vocabulary begins, and that slice, for so many states."""
        head = cast(nn.Linear, self.head)
        size = max(1, (_SLICE if head.weight.device.type == "cpu" else _LOGITS) // rows)
        for start in range(0, len(head.weight), size):
            bias = None if head.bias is None else head.bias[start : start + size]
            yield start, partial(linear, weight=head.weight[start : start + size], bias=bias)


class Losses:
    """How well a model predicts sentences, under one intervention after another.

    Blocks below the first that an intervention changes return the same under all of them. The output of the last of
    these is kept, and they do not run again, where a short text shows that the final states are the same.

    Args:
        model: from `load_model`.
        sentences: any sequence of str.
        batch_tokens: the most tokens in a batch, padding included.
        head: of the model, where there is one already.
        keep: whether to keep what several interventions share.

    Attributes:
        counted: how many tokens of each sentence are predicted, (sentence,).

    Raises:
        TnkitError: for sentences that `capture` refuses, or one of a single token.

    >>> from tnkit.testing import tiny_model
    >>> Losses(tiny_model(), ["Hello", "Hi"]).counted.tolist()
    [5, 2]
    """

    def __init__(
        self,
        model: Model,
        sentences: Sequence[str],
        *,
        batch_tokens: SupportsIndex = 1024,
        head: Head | None = None,
        keep: bool = True,
    ) -> None:
        batch_tokens = whole_number("batch_tokens", batch_tokens, at_least=1)
        self.model, self.sentences, self.tokens = model, sentences, tokenised(model, sentences)
        spans = map(self.tokens.span, range(len(self.tokens)))
        self.counted = np.array([stop - max(start, 1) for start, stop in spans])
        if not self.counted.all():
            short = int(np.argmin(self.counted))
            raise TnkitError(
                f"sentence {short} ({sentences[short]!r:.60}) has one token, of which none follows another; drop it"
            )
        self.head = Head(model) if head is None else head
        lengths = self.tokens.lengths()
        self._batches = [*batches_of(model, lengths, batch_tokens)]
        size = sum(lengths) * model.hidden_size * model.dtype.itemsize
        self._keeps = keep and self.head.serves and size <= _KEPT
        self._kept: list[Any] = []  # output of block _depth - 1 for each batch
        self._depth = 0
        self._of: Any = None  # the versions of the weights that it is of

    def under(self, ablation: Ablation, told: Callable[[int], Any]) -> Float64[np.ndarray, "sentence"]:
        """Each sentence's mean loss over its own tokens after the text's first, within an ablation that is active.

        Args:
            ablation: the only one that is active, or one that changes nothing.
            told: is given the number of sentences of each batch that was run.
        """
        nll, depth = np.empty(len(self.tokens)), self._shared(ablation)
        known = bool(depth) and self._depth <= depth and self._of == self.model.versions()
        if depth and not known:
            self._kept, self._depth, self._of = [], depth, self.model.versions()
        for number, index in enumerate(self._batches):
            with TURN, torch.no_grad(), ExitStack() as stack:
                if known:
                    stack.enter_context(skipped(self.model, range(self._depth), self._kept[number : number + 1]))
                elif depth:
                    stack.enter_context(recorded(self.model, depth - 1, self._kept))
                nll[index] = self._means(index)
            told(len(index))
        return nll

    def _shared(self, ablation: Ablation) -> int:
        """The number of blocks that the ablation leaves as they are; 0 where they are to run anyway."""
        ours = {id(about) for about in ablation.abouts}
        if not self._keeps or any(id(about) not in ours for about in self.model.ablations):
            return 0
        depth = first_layer(ablation)
        if depth == self.model.n_layers:  # nothing is changed
            return self._depth
        return depth if depth and self.head.shares(depth) else 0

    def _means(self, index: Sequence[int]) -> Float64[np.ndarray, "sentence"]:
        """The mean losses of the sentences of a batch."""
        rows = Rows.of(self.model, [self.tokens[number] for number in index])
        counted = self._counted(rows, index)
        wanted = rows.ids[:, 1:][counted]
        if self.head.serves:
            with running(self.model.module, **rows.known(self.tokens, index)):
                states = self.head.decoder(**rows.inputs, use_cache=False)[0]
            losses = self.head.losses(before := self._before(states, rows, index), wanted.to(before.device))
        else:
            losses = losses_of(self._from_module(index), wanted.split(self.head.rows))
        sentence = counted.nonzero()[:, 0].cpu()
        totals = torch.zeros(len(index), dtype=torch.float64).index_add(0, sentence, losses)
        return (totals / counted.sum(dim=1).cpu()).numpy()

    def _from_module(self, index: Sequence[int]) -> Iterator[Tensor]:
        """Logits that predict the counted tokens, by the whole module, a few sentences at a time."""
        size, logits = max(1, self.head.rows // max(len(self.tokens[number]) for number in index)), []
        for start in range(0, len(index), size):
            some = index[start : start + size]
            rows = Rows.of(self.model, [self.tokens[number] for number in some])
            with running(self.model.module, **rows.known(self.tokens, some)):
                whole = self.model.module(**rows.inputs, use_cache=False).logits
            logits.append(self._before(whole, rows, some))
        yield from torch.cat(logits).split(self.head.rows)

    def _counted(self, rows: Rows, index: Sequence[int]) -> Bool[Tensor, "sentence token"]:
        """Which tokens after the first of each sentence are counted."""
        own = self.tokens.own_places(index, rows.real.shape[1])
        return rows.real[:, 1:] if own is None else rows.real[:, 1:] & own[:, 1:].to(rows.real.device)

    def _before(self, values: Tensor, rows: Rows, index: Sequence[int]) -> Float[Tensor, "token item"]:
        """What the tokens before the counted ones have."""
        places = rows.places[:, :-1][self._counted(rows, index)]
        return values.flatten(0, 1)[places.to(values.device)]


def _is_plain(model: Model, head: nn.Module | None) -> bool:
    """Whether a head is a matrix of plain numbers that is here as a whole."""
    if type(head) is not nn.Linear or model.sharded or hasattr(head, "_hf_hook"):  # accelerate's, which moves weights
        return False
    return not head.weight.is_meta and not hasattr(head.weight, "__tensor_flatten__")


def losses_of(logits: Iterable[Tensor], ids: Iterable[Tensor]) -> Float64[Tensor, "token"]:
    """-log p of tokens, from logits of the whole vocabulary, on the CPU.

    >>> losses_of([torch.zeros(1, 4)], [torch.tensor([2])]).exp().round(decimals=4).tolist()
    [4.0]
    """
    pairs = zip(logits, ids, strict=True)
    return torch.cat([cross_entropy(a.float(), b.to(a.device), reduction="none").double().cpu() for a, b in pairs])


def first_layer(ablation: Ablation) -> int:
    """The first layer that an ablation changes; the number of layers where it changes none.

    >>> from tnkit.testing import tiny_model
    >>> first_layer(Ablation(tiny_model(), [(2, 5), (1, 7)])), first_layer(Ablation(tiny_model(), []))
    (1, 4)
    """
    return min([*ablation.values, *map(first_layer, ablation.others)], default=ablation.model.n_layers)
