"""Token batches: sentences as token ids, sorted by length, to a budget of tokens."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tnkit import parallel
from tnkit.captures.token_ids import Texts, given_ids
from tnkit.errors import TnkitError, check_model, one_of
from tnkit.models.model import Model
from tnkit.models.tokens import Specials, ends, last_word, special_ids, special_tokens, tell, without_final_punctuation
from tnkit.models.trace import SITES
from tnkit.provenance import provenance_of

_CPU_TOKENS, _PACKED_TOKENS, _GPU_TOKENS = 768, 1536, 16_384
_NEURON_STATES, _HIDDEN_STATES = 4, 16  # of a token, that a block holds at once
POSITIONS = ("last", "mean", "last_word", "end")
_SHORT = 4  # tokens of a short sentence
_AS_IT_IS: dict[str, Any] = {"padding": False, "truncation": False, "verbose": False}
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

    def __init__(self, sentences: Iterable[Sequence[int]], spans: Iterable[tuple[int, int]] | None = None) -> None:
        """Keep the ids and, where a template is around the sentences, the places where theirs begin and end."""
        self._ids, self._ends = array("i"), array("q", [0])
        for ids in sentences:
            self._ids.extend(ids)
            self._ends.append(len(self._ids))
        self._spans = None if spans is None else array("i", (place for span in spans for place in span))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> Numbers:  # type: ignore[override]  # it has no slices
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._ids[self._ends[place] : self._ends[place + 1]]

    def check_known(self, model: Model) -> None:
        """Refuse tokens that a model has no embedding for.

        Raises:
            TnkitError: naming the first one and its text.
        """
        ids, known = np.asarray(self._ids), model.vocabulary
        if len(ids) and int(ids.max()) >= known:
            place = int(np.argmax(ids >= known))
            raise TnkitError(
                f"text {np.searchsorted(self._ends[1:], place, side='right')} (from 0) has the token {ids[place]}, and "
                f"{model.name} has {known} token embeddings: the tokenizer is another model's or was extended; give "
                "the one that the model was trained with, or call resize_token_embeddings on the module"
            )

    def lengths(self) -> Numbers:
        """How many tokens each sentence has."""
        return array("i", (end - start for start, end in pairwise(self._ends)))

    def span(self, number: int) -> tuple[int, int]:
        """Where the sentence's own tokens begin, and the place after the last of them."""
        if self._spans is None:
            return 0, self._ends[number + 1] - self._ends[number]
        return self._spans[2 * number], self._spans[2 * number + 1]

    def own_places(
        self, index: Sequence[int], width: int, *, left: bool = False
    ) -> Bool[Tensor, "sentence token"] | None:
        """Which tokens of sentences padded to a width are their own; None without a template."""
        if self._spans is None:
            return None
        spans = torch.tensor([self.span(number) for number in index])
        if left:
            spans += torch.tensor([[width - (self._ends[number + 1] - self._ends[number])] for number in index])
        places = torch.arange(width)
        return (places >= spans[:, :1]) & (places < spans[:, 1:])

    def own(self) -> Iterator[Numbers]:
        """Each sentence's own token ids, without those of a template."""
        for number, ids in enumerate(self):
            start, stop = self.span(number)
            yield ids[start:stop]


def tokenised(model: Model, sentences: Texts, *, whole: bool = False, suffix: str | None = None) -> Tokens:
    """Token ids of each sentence, special tokens included, and whatever else the tokenizer is set to add.

    Token ids that are given in place of sentences stay as they are.

    Truncation, padding and the maximal length that the tokenizer is set to are left aside. A template goes around the
    sentence, without the white space at its ends; what comes after the sentence's last token is cut off.

    Args:
        model: from `load_model`.
        sentences: any sequence of str, or of token ids.
        whole: keep all of the template, up to the prompt for an answer.
        suffix: put in place of each sentence's final punctuation; None leaves the sentences as they are.

    Raises:
        TnkitError: for no sentences, or one that is not str, has no tokens, has more than the model's context, or
            holds a token that the model has no embedding for.
    """
    check_model(model)
    ids = given_ids(model, sentences, suffix)
    if ids is None:
        check_sentences(sentences)
    if not (suffix is None or isinstance(suffix, str)):
        raise TnkitError(f"suffix={suffix!r} must be str, such as '.', or None to leave the sentences as they are")
    if suffix is not None and _is_unpaired(suffix):
        raise TnkitError(f"suffix={suffix!r:.60} holds an unpaired surrogate; fix the text")
    parts: Any = (list(sentences[start : start + 1000]) for start in range(0, len(sentences), 1000))
    if suffix is not None:
        parts = ([without_final_punctuation(text) + suffix for text in part] for part in parts)
    if ids is not None:
        tokens = Tokens(ids)
    elif model.template is None:
        tokens = Tokens(ids for part in parts for ids in model.tokenizer(part, **_AS_IT_IS)["input_ids"])
    else:
        spans: list[tuple[int, int]] = []
        tokens = Tokens(_wrapped(model, (text for part in parts for text in part), spans, whole), spans)
    tokens.check_known(model)
    for number, length in enumerate(tokens.lengths()):
        if not length:
            raise TnkitError(f"sentence {number} ({sentences[number]!r:.60}) has no tokens; drop it")
        if model.context and length > model.context:
            raise TnkitError(
                f"sentence {number} ({sentences[number]!r:.60}) has {length} tokens, {model.name} reads at most "
                f"{model.context}; shorten it or split it"
            )
    tell(model.tokenizer, specials_of(model, tokens), model.name, model.template)
    return tokens


def check_sentences(sentences: Sequence[Any]) -> None:
    """Refuse what is not a sequence of at least one str.

    >>> check_sentences(["Hi!"])
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
    unpaired = next((n for n, sentence in enumerate(sentences) if _is_unpaired(sentence)), None)
    if unpaired is not None:
        raise TnkitError(f"sentence {unpaired} ({sentences[unpaired]!r:.60}) holds an unpaired surrogate; fix the text")


def _is_unpaired(text: str) -> bool:
    """Whether a text holds an unpaired surrogate, which UTF-8 and tokenizers lack."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_position(model: Model, position: str, choices: tuple[str, ...] = POSITIONS) -> None:
    """Refuse a position that is not one of the choices, or that the model has none of.

    >>> from tnkit.testing import tiny_model
    >>> check_position(tiny_model(), "last")
    """
    one_of("position", position, choices)
    if position == "end" and model.template is None:
        raise TnkitError("position='end' is the end of a template: load_model(..., chat=True); or read position='last'")


def sites_of(model: Model, keep: Iterable[str], position: str) -> tuple[str, ...]:
    """The sites to keep of a model, sorted: with activations also their scale, and the experts that they are of.

    Raises:
        TnkitError: for no site or an unknown one, experts where there are none, or a mean over tokens, which are sent
            to different ones.
    """
    check_model(model)
    keep = {keep} if isinstance(keep, str) else set(keep)
    if not keep or not keep <= set(SITES):
        raise TnkitError(f"keep={sorted(keep)} must name some of {', '.join(SITES)}")
    if not model.slots and "experts" in keep:
        raise TnkitError(f"{model.name} has no experts; leave 'experts' out of keep")
    if "activations" in keep:
        keep |= {"scale", "experts"} if model.slots else {"scale"}
    if "experts" in keep and position == "mean":
        raise TnkitError(
            f"the tokens of a sentence are sent to different experts of {model.name}, so activations have no mean over "
            "them; use another position, or keep mid and post alone"
        )
    return tuple(sorted(keep))


def _wrapped(
    model: Model, sentences: Iterable[str], spans: list[tuple[int, int]], whole: bool
) -> Iterator[Sequence[int]]:
    """Token ids of sentences within the model's template; the span of each sentence's own tokens is appended."""
    if not model.tokenizer.is_fast:
        raise TnkitError(
            f"{model.name} has a tokenizer in Python, which does not say where a sentence ends within a template; "
            "load it with use_fast=True"
        )
    head, _, tail = str(model.template).partition("{sentence}")
    for number, sentence in enumerate(sentences):
        text = sentence.strip()
        if not text:
            raise TnkitError(f"sentence {number} ({sentence!r:.60}) has no text to put into the template; drop it")
        read = model.tokenizer(head + text + tail, add_special_tokens=False, return_offsets_mapping=True, **_AS_IT_IS)
        ids, offsets = read["input_ids"], read["offset_mapping"]
        span = _span(offsets, len(head), len(head) + len(text))
        if span is None:
            raise TnkitError(
                f"the tokenizer of {model.name} does not say where sentence {number} ({sentence!r:.60}) begins and "
                f"ends within the template {model.template!r:.60}; give one with white space around {{sentence}}"
            )
        spans.append(span)
        yield ids if whole else ids[: span[1]]


def _span(offsets: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, int] | None:
    """Which tokens are of a part of the text; None where several of them reach over its beginning or its end.

    One token may: "." and a line break after it are often one.
    """
    across = [sum(first < edge < last for first, last in offsets) for edge in (begin, end)]
    own = [place for place, (first, last) in enumerate(offsets) if first < end and last > begin]
    return (own[0], own[-1] + 1) if own and max(across) < 2 else None


def specials_of(model: Model, tokens: Tokens) -> Specials:
    """What `special_tokens` says of a model's sentences."""
    return special_tokens(model.tokenizer, tokens, map(tokens.span, range(len(tokens))))


def read_places(model: Model, tokens: Tokens, position: str) -> Numbers:
    """The place of the token that is read of each sentence; "mean" has the last one, which it does not use.

    >>> from tnkit.testing import tiny_model
    >>> tokens = tokenised(tiny_model(), ["Hi!", "Hi"])
    >>> list(read_places(tiny_model(), tokens, "last")), list(read_places(tiny_model(), tokens, "last_word"))
    ([3, 2], [2, 2])
    """
    if position != "last_word":
        return array("i", (length - 1 for length in tokens.lengths()))
    spans, special = map(tokens.span, range(len(tokens))), special_ids(model.tokenizer)
    return array(
        "i",
        (start + last_word(model.tokenizer, ids, special) for (start, _), ids in zip(spans, tokens.own(), strict=True)),
    )


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


def roomy(model: Model, *, packed: bool = True) -> int:
    """How many tokens a batch should have: on a CPU 768, or 1,536 where it is packed; on a GPU what fits.

    That is a power of two of tokens that take half of its free memory. Of several GPUs, or processes, the fullest
    decides. Beyond 16,384 tokens nothing is gained.

    Args:
        model: from `load_model`.
        packed: whether rows are packed where the model packs.

    >>> from tnkit.testing import tiny_model
    >>> roomy(tiny_model("bloom")), roomy(tiny_model("llama"))
    (768, 1536)
    """
    gpus = [device for device in model.devices if device.type == "cuda"]
    if not gpus:
        return _PACKED_TOKENS if packed and model.packs else _CPU_TOKENS
    token = (_NEURON_STATES * model.places + _HIDDEN_STATES * model.hidden_size) * model.dtype.itemsize
    token += 4 * model.n_layers * (model.places + 2 * model.hidden_size) // _SHORT  # what is kept of a sentence
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


def read_from(model: Model, sentences: Texts, tokens: Tokens, *, position: str, suffix: str | None) -> dict[str, Any]:
    """`provenance_of` with the token that is read, the special tokens, and how the sentences end."""
    about = provenance_of(model, sentences)
    about["sentences"] |= {"ends": ends(model.tokenizer, tokens.own())}
    about |= {"position": position, "tokens": specials_of(model, tokens)}
    if suffix is not None:
        about["suffix"] = suffix
    return about
