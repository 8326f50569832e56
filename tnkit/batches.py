"""Token batches: sentences as token ids, sorted by length, padded on the right to a budget of tokens."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.models import Model
from tnkit.remote import server_of


def tokenised(model: Model, sentences: Sequence[str]) -> list[array]:
    """Token ids of each sentence, special tokens included.

    Raises:
        TnkitError: for no sentences, or one that is not str, has no tokens, or has more than the model's context.
    """
    if isinstance(sentences, str):
        raise TnkitError("sentences must be a sequence of str, not one str; put it in a list")
    if not len(sentences):
        raise TnkitError("there are no sentences to capture")
    wrong = next((n for n, sentence in enumerate(sentences) if not isinstance(sentence, str)), None)
    if wrong is not None:
        raise TnkitError(
            f"sentence {wrong} is {type(sentences[wrong]).__name__}, expected str; "
            'of a Corpus, name split and language: corpus["train"]["ja"]'
        )
    tokens = []
    for start in range(0, len(sentences), 1000):  # compact, so that memory hardly grows with the corpus
        tokens += [array("i", ids) for ids in model.tokenizer(list(sentences[start : start + 1000]))["input_ids"]]
    for number, ids in enumerate(tokens):
        if not ids:
            raise TnkitError(f"sentence {number} ({sentences[number]!r:.60}) has no tokens; drop it")
        if model.context and len(ids) > model.context:
            raise TnkitError(
                f"sentence {number} ({sentences[number]!r:.60}) has {len(ids)} tokens, {model.name} reads at most "
                f"{model.context}; shorten it or split it"
            )
    return tokens


def by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places sorted by length, in batches of at most `batch_tokens` tokens once padded (one sentence at the least).

    >>> list(by_length([3, 1, 2], 4))
    [[1, 2], [0]]
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def grouped(batches: Sequence[Sequence[int]], most: int) -> Iterator[tuple[int, int]]:
    """Runs of batches, from number and up to number, of at most that many sentences (one batch at the least).

    >>> list(grouped([[3, 4], [2], [0, 1]], 3))
    [(0, 2), (2, 3)]
    """
    start = sentences = 0
    for number, index in enumerate(batches):
        if sentences and sentences + len(index) > most:
            yield start, number
            start, sentences = number, 0
        sentences += len(index)
    yield start, len(batches)


def padded(model: Model, tokens: Sequence[Sequence[int]]) -> tuple[dict[str, Tensor], Int[Tensor, "sentence"]]:
    """Token ids and attention mask of sentences padded on the right, and the place of each last token.

    >>> from tnkit.tests.tiny import tiny_model
    >>> inputs, last = padded(tiny_model(), [[256, 7], [256, 7, 9]])
    >>> inputs["attention_mask"].tolist(), last.tolist()
    ([[1, 1, 0], [1, 1, 1]], [1, 2])
    """
    lengths = torch.tensor([len(ids) for ids in tokens])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.full(mask.shape, model.tokenizer.pad_token_id or 0)
    ids[mask.bool()] = torch.tensor([token for sentence in tokens for token in sentence])
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    return inputs, (lengths - 1).to(model.device)


def token_weights(model: Model, inputs: dict[str, Tensor], index: list[int]) -> Float[Tensor, "sentence token"]:
    """Equal weights, summing to 1, of the tokens that are neither padding nor special."""
    special = [token for token in model.tokenizer.all_special_ids if token != model.tokenizer.unk_token_id]
    ids = inputs["input_ids"]
    counted = inputs["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(special, device=ids.device))
    empty = (~counted.any(dim=1)).nonzero()
    if len(empty):
        raise TnkitError(f"sentence {index[int(empty[0])]} has only special tokens; there is nothing to average")
    return counted / counted.sum(dim=1, keepdim=True)


def provenance_of(model: Model, sentences: Sequence[str]) -> dict[str, Any]:
    """What results record of where they come from: model, sentences, what was switched off, versions."""
    origin = {name: getattr(sentences, name, None) for name in ("corpus", "language", "split")}
    named = {name: value for name, value in origin.items() if value}
    return {
        "model": model.provenance,
        "sentences": {**named, "n": len(sentences), "hash": storage.text_hash(sentences)},
        "position": "last",
        "last_layer": "raw",
        "versions": storage.versions(),
        **({"server": server_of(model.remote)} if model.remote else {}),
        **({"ablations": list(model.ablations)} if model.ablations else {}),
    }
