"""Token batches: sentences as token ids, sorted by length, padded on the right to a budget of tokens."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit import parallel, storage
from tnkit.errors import TnkitError
from tnkit.models import Model
from tnkit.remote import server_of

_CPU_TOKENS, _GPU_TOKENS = 768, 16_384
_NEURON_STATES, _HIDDEN_STATES = 4, 16  # of a token, that a block holds at once
_SHORT = 4  # tokens of a short sentence
if TYPE_CHECKING:
    Numbers = array[int]
else:
    Numbers = array  # which takes no parameter before Python 3.12


class Tokens(Sequence[Numbers]):
    """Token ids of sentences, end to end in one array, so that a large corpus takes hardly more than its ids.

    >>> tokens = Tokens([[256, 7], [256]])
    >>> len(tokens), list(tokens[1]), list(tokens.lengths())
    (2, [256], [2, 1])
    """

    def __init__(self, sentences: Iterable[Sequence[int]]) -> None:
        self._ids, self._ends = array("i"), array("q", [0])
        for ids in sentences:
            self._ids.extend(ids)
            self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> Numbers:  # type: ignore[override]  # it has no slices
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._ids[self._ends[place] : self._ends[place + 1]]

    def lengths(self) -> Numbers:
        """How many tokens each sentence has."""
        return array("i", (end - start for start, end in pairwise(self._ends)))


def tokenised(model: Model, sentences: Sequence[str]) -> Tokens:
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
    parts = (list(sentences[start : start + 1000]) for start in range(0, len(sentences), 1000))
    tokens = Tokens(ids for part in parts for ids in model.tokenizer(part)["input_ids"])
    for number, length in enumerate(tokens.lengths()):
        if not length:
            raise TnkitError(f"sentence {number} ({sentences[number]!r:.60}) has no tokens; drop it")
        if model.context and length > model.context:
            raise TnkitError(
                f"sentence {number} ({sentences[number]!r:.60}) has {length} tokens, {model.name} reads at most "
                f"{model.context}; shorten it or split it"
            )
    return tokens


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places sorted by length, in batches of at most `batch_tokens` tokens once padded (one sentence at the least).

    >>> list(by_length([3, 1, 2], 4))
    [[1, 2], [0]]
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    batch: list[int] = []
    for place in map(int, order):
        if batch and (len(batch) + 1) * lengths[place] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def roomy(model: Model) -> int:
    """How many tokens a batch should have: 768 on a CPU; on a GPU a power of two that fits in half its free memory.

    Of several GPUs, or processes, the fullest decides. Beyond 16,384 tokens nothing is gained.

    >>> from tnkit.tests.tiny import tiny_model
    >>> roomy(tiny_model())
    768
    """
    gpus = [device for device in model.devices if device.type == "cuda"]
    if not gpus:
        return _CPU_TOKENS
    token = (_NEURON_STATES * model.n_neurons + _HIDDEN_STATES * model.hidden_size) * model.dtype.itemsize
    token += 4 * model.n_layers * (model.n_neurons + 2 * model.hidden_size) // _SHORT  # what is kept of a sentence
    fits = parallel.least(min(free_memory(device) for device in gpus) // 2 // token)
    return min(_GPU_TOKENS, max(_CPU_TOKENS, 1 << max(0, fits.bit_length() - 1)))


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that are free, those that PyTorch holds in reserve included."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


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


def token_weights(model: Model, inputs: dict[str, Tensor], index: Sequence[int]) -> Float[Tensor, "sentence token"]:
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
    origin = {name: getattr(sentences, name, None) for name in ("corpus", "language", "split", "source", "rows")}
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
