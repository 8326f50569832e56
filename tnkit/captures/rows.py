"""The rows of a batch: its sentences padded, one a row, or packed, several behind each other in a row: `Rows`.

Positions begin again at 0 with every packed sentence, from which transformers builds a mask that keeps sentences apart.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnkit.captures.batches import Tokens, by_length
from tnkit.errors import TnkitError
from tnkit.models.model import Model
from tnkit.models.tokens import special_ids

_ROW = 64  # tokens of a packed row, at least


@dataclass(frozen=True)
class Rows:
    """What a model is given of some sentences, and where in it each of their tokens is.

    Attributes:
        inputs: input_ids, and attention_mask (padded on the right) or position_ids (packed), (row, token).
        places: the place of each sentence's tokens, counted through the rows, and its last one's after its end.
        real: which of those are tokens of the sentence.
        packed: whether they are packed.
    """

    inputs: dict[str, Tensor]
    places: Int[Tensor, "sentence token"]
    real: Bool[Tensor, "sentence token"]
    packed: bool

    @classmethod
    def of(cls, model: Model, sentences: Sequence[Sequence[int]], *, packed: bool = True) -> "Rows":
        """Sentences packed where the model packs, else padded.

        Args:
            model: from `load_model`.
            sentences: token ids of each.
            packed: pack them where the model does.

        >>> from tnkit.testing import tiny_model
        >>> rows = Rows.of(tiny_model(), [[256, 7], [256, 7, 9]])
        >>> rows.inputs["input_ids"].tolist(), rows.inputs["position_ids"].tolist(), rows.places.tolist()
        ([[256, 7, 9, 256, 7]], [[0, 1, 2, 0, 1]], [[3, 4, 4], [0, 1, 2]])
        >>> rows = Rows.of(tiny_model(), [[256, 7], [256, 7, 9]], packed=False)
        >>> rows.inputs["attention_mask"].tolist(), rows.places.tolist()
        ([[1, 1, 0], [1, 1, 1]], [[0, 1, 1], [3, 4, 5]])
        """
        lengths = [len(ids) for ids in sentences]
        fits = max(lengths) <= (model.window or max(lengths))  # chunks of attention are counted along the row
        packed = packed and model.packs and len(lengths) > 1 and fits
        longest = sum(lengths) if "flash" in str(model.attention) else max(_width(model), *lengths)
        rows = _filled(lengths, longest) if packed else [[number] for number in range(len(lengths))]
        shape = len(rows), max(sum(lengths[number] for number in row) for row in rows)
        starts = [0] * len(lengths)
        for row, numbers in enumerate(rows):
            place = row * shape[1]
            for number in numbers:
                starts[number], place = place, place + lengths[number]
        counts, columns = torch.tensor(lengths)[:, None], torch.arange(max(lengths))
        real = columns < counts
        places = torch.tensor(starts)[:, None] + columns.minimum(counts - 1)
        ids = torch.full((shape[0] * shape[1],), model.tokenizer.pad_token_id or 0)
        ids[places[real]] = torch.tensor([token for sentence in sentences for token in sentence])
        beside = torch.zeros_like(ids)  # a token of padding is a sentence of its own, or masked
        beside[places[real]] = columns.expand(real.shape)[real] if packed else 1
        inputs = {"input_ids": ids, "position_ids" if packed else "attention_mask": beside}
        inputs = {name: tensor.reshape(shape).to(model.device) for name, tensor in inputs.items()}
        return cls(inputs, places.to(model.device), real.to(model.device), packed)

    def at(self, tokens: Sequence[int]) -> Int[Tensor, "sentence"]:
        """The places of one token of each sentence."""
        return self.places[torch.arange(len(tokens)), torch.tensor(list(tokens))]

    @property
    def ids(self) -> Int[Tensor, "sentence token"]:
        """Token ids of each sentence."""
        return self.inputs["input_ids"].flatten()[self.places]

    def known(self, tokens: Tokens, index: Sequence[int]) -> dict[str, Any]:
        """What `running` needs to know of a pass over these sentences."""
        own = tokens.own_places(index, self.real.shape[1])
        return {"own": own, "texts": torch.where(self.real, self.places, -1) if self.packed else None}

    def weights(self, model: Model, tokens: Tokens, index: Sequence[int]) -> Float[Tensor, "sentence token"]:
        """Equal weights, summing to 1, of the own tokens of these sentences of a text, without special ones.

        Raises:
            TnkitError: where a sentence has only special tokens.
        """
        own = tokens.own_places(index, self.real.shape[1])
        special = torch.tensor(sorted(special_ids(model.tokenizer)), device=self.real.device)
        counted = self.real & ~torch.isin(self.ids, special)
        if own is not None:
            counted &= own.to(counted.device)
        empty = (~counted.any(dim=1)).nonzero()
        if len(empty):
            raise TnkitError(f"sentence {index[int(empty[0])]} has only special tokens; there is nothing to average")
        return counted / counted.sum(dim=1, keepdim=True)


def batches_of(model: Model, lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places of sentences in batches of at most that many tokens, padding included (one sentence at the least).

    Rows come sorted by their length: a sentence each, or several where the model packs.

    >>> from tnkit.testing import tiny_model
    >>> list(batches_of(tiny_model("bloom"), [3, 1, 2], 4)), list(batches_of(tiny_model("llama"), [3, 1, 2], 4))
    ([[1, 2], [0]], [[2], [1, 0]])
    """
    if not model.packs:
        yield from by_length(lengths, batch_tokens)
        return
    rows = _filled(lengths, min(batch_tokens, _width(model)))
    for batch in by_length([sum(lengths[number] for number in row) for row in rows], batch_tokens):
        yield sorted((number for row in batch for number in rows[row]), key=lambda number: (lengths[number], number))


def _width(model: Model) -> int:
    """How many tokens a packed row has: so few that attention to a row costs a sixtieth of all else, or less."""
    width = max(_ROW, model.hidden_size // 10)
    return width if model.window is None else min(width, model.window)


def _filled(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of sentences, the longest first, each put where it leaves the least room; a longer one has its own.

    >>> _filled([30, 40, 20, 30, 70], 64)
    [[4], [1, 2], [0, 3]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of each row, sorted
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length, at = lengths[number], bisect_left(room, (lengths[number], -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = max(width, length), len(rows)
            rows.append([])
        rows[row].append(number)
        insort(room, (left - length, row))
    return rows
