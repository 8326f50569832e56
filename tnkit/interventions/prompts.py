"""The texts in the rows of a pass: where each begins and ends, and which of its tokens is its last word."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tnkit.models.tokens import last_word, special_ids


def texts_of(ids: Tensor, real: Tensor, chosen: Bool[Tensor, "prompt token"]) -> list[list[int]]:
    """The token ids of each row up to its last chosen one, without padding.

    >>> texts_of(torch.tensor([[7, 8, 9]]), torch.tensor([[False, True, True]]), torch.tensor([[False, True, False]]))
    [[8]]
    """
    until = chosen.flip(1).cumsum(1).flip(1).bool() & real.to(chosen.device)
    return [row[kept].tolist() for row, kept in zip(ids, until.to(ids.device), strict=True)]


def texts_in(positions: Int[Tensor, "row column"]) -> Int[Tensor, "text token"]:
    """The places of the texts of packed rows, counted through the rows, -1 after a text's end.

    >>> texts_in(torch.tensor([[0, 1, 0], [0, 1, 2]])).tolist()
    [[0, 1, -1], [2, -1, -1], [3, 4, 5]]
    """
    begins = positions.diff(dim=1, prepend=positions[:, :1]) != 1
    number = begins.flatten().cumsum(dim=0) - 1
    lengths = number.bincount()
    texts = torch.full((len(lengths), int(lengths.max())), -1, device=positions.device)
    places = torch.arange(len(number), device=positions.device)
    texts[number, places - (lengths.cumsum(dim=0) - lengths)[number]] = places
    return texts


def in_rows(shape: tuple[int, ...], places: Int[Tensor, "chosen"]) -> Bool[Tensor, "row token"]:
    """A mask of tokens at places that are counted through the rows.

    >>> in_rows((2, 2), torch.tensor([1, 2])).tolist()
    [[False, True], [True, False]]
    """
    chosen = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=places.device)
    chosen[places] = True
    return chosen.reshape(shape[0], shape[1])


def last_words(
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    real: Bool[Tensor, "prompt token"],
    own: Bool[Tensor, "prompt token"] | None = None,
) -> Bool[Tensor, "prompt token"]:
    """The place of each prompt's last word, of the sentence's own tokens where a template is around it.

    >>> from tnkit.testing import byte_tokenizer
    >>> ids = torch.tensor(byte_tokenizer()(["Ja.", "Oh!"])["input_ids"])
    >>> last_words(byte_tokenizer(), ids, torch.ones_like(ids).bool()).tolist()
    [[False, False, True, False], [False, False, True, False]]
    """
    chosen, real = torch.zeros_like(real), real if own is None else real & own.to(real.device)
    special = special_ids(tokenizer)
    for row, (tokens, kept) in enumerate(zip(ids.tolist(), real.tolist(), strict=True)):
        columns = [column for column, is_real in enumerate(kept) if is_real]
        if columns:
            chosen[row, columns[last_word(tokenizer, [tokens[column] for column in columns], special)]] = True
    return chosen
