"""Captures of last tokens under many ablations of those tokens: `LastToken` runs what comes before them only once.

off = tn.LastToken(model, test["ja"], keep=["post"])
off.capture(type1), off.capture(control)                 # a fraction of a full pass each
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from tnkit.captures.activations import Activations, batch_of, gathered
from tnkit.captures.batches import Tokens, by_length, check_position, roomy
from tnkit.captures.passes import KEEP, capture, plan
from tnkit.captures.rows import Rows
from tnkit.captures.token_ids import Texts
from tnkit.errors import TnkitError, check_model, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.scopes import decoder_of, parameters
from tnkit.interventions.together import Given
from tnkit.models.blocks import recorded, skipped
from tnkit.models.model import Model, hashed_at_ends, hashed_once
from tnkit.models.sessions import TURN, Prompt, running
from tnkit.models.trace import trace_blocks
from tnkit.provenance import provenance_of

PLACES = {"last": "last", "last_word": "last_word", "end": "last"}  # positions that are one token, and its scope
_TOGETHER = 16  # times as many tokens' last ones run together: a product with few rows costs up to three times as much
_TOLERANCE = 1e-3  # of the largest value of a state in float32: rounding is a hundredth of it, a lost token far more
_HALF_TOLERANCE = 0.1  # in formats of 16 bits
_LOG = logging.getLogger("tnkit")


class LastToken:
    """Sentences whose prefix has been run once, to capture their last token under many ablations of that token.

    Equal to `capture` inside `Ablation(model, neurons, tokens="last")`, because causal attention leaves the prefix
    untouched. Every capture is a full pass where the model is remote, takes no explicit positions (ALiBi), has an
    attention window or chunk that a sentence exceeds, or a cache that is more than keys and values, and where the
    shortest and the longest sentence, run both ways, give different states.

    The prefix is of the model as it is here: a capture under other ablations, or with other weights, is refused.

    Args:
        model: from `load_model`.
        sentences: any sequence of str.
        position: "last", or the other token to read and ablate: "last_word" or "end", as in `capture`.
        suffix, keep, layers, last_layer, batch_tokens, progress: as in `capture`.

    Attributes:
        cached: whether the prefix is kept; otherwise every capture is a full pass.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model
    >>> model = tiny_model("llama")
    >>> prefix = LastToken(model, ["Hello", "Hi"], keep=["post"], progress=False)
    >>> with tn.Ablation(model, [(1, 7)], tokens="last"):
    ...     full = tn.capture(model, ["Hello", "Hi"], keep=["post"], progress=False)
    >>> torch.allclose(prefix.capture([(1, 7)]).post, full.post, atol=1e-5)
    True
    """

    def __init__(
        self,
        model: Model,
        sentences: Texts,
        *,
        position: str = "last",
        suffix: str | None = None,
        keep: Iterable[str] = KEEP,
        layers: Iterable[SupportsIndex] | None = None,
        last_layer: str = "raw",
        batch_tokens: SupportsIndex | None = None,
        progress: bool = True,
    ) -> None:
        check_model(model)
        self.model, self.sentences = model, sentences
        self.position, self.suffix, self.last_layer = position, suffix, last_layer
        self.batch_tokens = None if batch_tokens is None else whole_number("batch_tokens", batch_tokens, at_least=1)
        asked: dict[str, Any] = {"keep": keep, "layers": layers, "last_layer": last_layer, "batch_tokens": batch_tokens}
        check_position(model, position, tuple(PLACES))
        with TURN:
            self._settings = model.settings()
            planned = plan(model, sentences, position=position, suffix=suffix, **asked)
            self.keep, self.layers, self.about = planned.keep, planned.layers, planned.provenance
            tokens = planned.tokens
            if position == "last_word":  # nothing after the token that is read changes it
                cut = [ids[: place + 1] for ids, place in zip(tokens, planned.read, strict=True)]
                spans = [(tokens.span(number)[0], place + 1) for number, place in enumerate(planned.read)]
                tokens = Tokens(cut, spans if model.template else None)
            self.cached = self._is_proved(tokens)
        self._tokens = tokens
        self._batches: list[tuple[list[int], dict[str, Any], Prompt]] = []
        if not self.cached:
            return
        with tqdm(total=len(tokens), unit=" sentences", desc="prefix", disable=not progress, leave=False) as bar:
            for batch in hashed_at_ends(model, self._prefixes(tokens)):
                self._batches.append(batch)
                bar.update(len(batch[0]))

    def like(
        self, model: Model, *, layers: Iterable[SupportsIndex] = (), keep: Iterable[str] = (), **reading: Any
    ) -> "LastToken":
        """Itself, if it was made with this model and these options, and reads at least these layers and sites.

        Raises:
            TnkitError: naming what differs.

        >>> from tnkit.testing import tiny_model
        >>> LastToken(tiny_model(), ["Hi!"], progress=False).like(tiny_model(), position="end")
        Traceback (most recent call last):
        ...
        tnkit.errors.TnkitError: this LastToken has position='last', and 'end' is asked for; make it anew with that
        """
        if model is not self.model:
            raise TnkitError(f"this LastToken was made with another model than this {model.name}; make it anew with it")
        more = {"layers": tuple(layers), "keep": tuple(keep)}
        reading |= {name: wanted for name, wanted in more.items() if not {*wanted} <= {*getattr(self, name)}}
        for name, wanted in reading.items():
            if (own := getattr(self, name)) != wanted:
                difference = f"has {name}={own!r}, and {wanted!r} is asked for"
                raise TnkitError(f"this LastToken {difference}; make it anew with that")
        return self

    def capture(self, neurons: Given, **how: Any) -> Activations:
        """`capture` of the sentences with neurons ablated at the token that is read.

        Args:
            neurons: as in `Ablation`.
            **how: what is done with them, as in `Ablation`.

        Raises:
            TnkitError: under other ablations or with other weights than when this was made.
        """
        with TURN, hashed_once(self.model):
            ablation = Ablation(self.model, neurons, tokens=PLACES[self.position], **how)
            about = self._check_state()
            about |= {"ablations": [*about.get("ablations", []), *ablation.abouts]}
            with ablation:
                if self.cached:
                    batches = (
                        batch_of(self._last_states(inputs, prompt, keep=self.keep), self.layers, index, about)
                        for index, inputs, prompt in self._batches
                    )
                    return gathered(batches, len(self.sentences))
                options: dict[str, Any] = {"keep": self.keep, "layers": self.layers, "batch_tokens": self.batch_tokens}
                options |= {"position": self.position, "suffix": self.suffix, "last_layer": self.last_layer}
                return capture(self.model, self.sentences, **options, progress=False)

    def passes(self) -> Iterator[tuple[list[int], dict[str, Any], Prompt | None, Tensor]]:
        """What to run the decoder with to get the token that is read under autograd, up to the last of `layers`.

        Yields:
            The sentences, arguments of the decoder, their prompts, and the place of the token in what runs; without
            a cached prefix whole sentences run.
        """
        if not self.cached:
            for index in by_length(self._tokens.lengths(), self.batch_tokens or roomy(self.model)):
                inputs = Rows.of(self.model, [self._tokens[place] for place in index], packed=False).inputs
                yield index, inputs | {"use_cache": False}, None, inputs["attention_mask"].sum(dim=1) - 1
            return
        for index, inputs, prompt in self._batches:
            cache = self.repeated(inputs["past_key_values"], 1)
            plain = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
            last = torch.zeros(len(index), dtype=torch.long, device=self.model.device)
            yield index, {**plain, "past_key_values": cache}, prompt, last

    @staticmethod
    def repeated(cache: Any, count: int) -> Any:
        """A copy of a cache of which each row is there so many times, and which autograd may keep."""
        copied = copy.copy(cache)
        copied.layers = [layer.whole() if isinstance(layer, _Joined) else copy.copy(layer) for layer in cache.layers]
        for layer in copied.layers:
            layer.keys, layer.values = (
                state.clone().repeat_interleave(count, 0) for state in (layer.keys, layer.values)
            )
        return copied

    def _check_state(self) -> dict[str, Any]:
        """The provenance of the model as it is, where it is as it was.

        Raises:
            TnkitError: where it is not.
        """
        now = provenance_of(self.model, self.sentences)
        if now.get("ablations") != self.about.get("ablations"):
            raise TnkitError(
                "this LastToken was made under other ablations than are active now, so its prefix is of another model; "
                "make it anew inside them"
            )
        if now["model"] != self.about["model"] or self.model.settings() != self._settings:
            raise TnkitError(
                f"{self.model.name} was changed after this LastToken was made, so its prefix is of another model; make "
                "it anew"
            )
        return self.about.copy()

    def _last_states(
        self, inputs: Mapping[str, Any], prompt: Prompt, *, keep: Iterable[str]
    ) -> dict[str, list[Tensor]]:
        last = torch.arange(len(inputs["input_ids"]), device=self.model.device)
        with running(self.model.module, prompt=prompt):
            return self._traced(inputs, last, keep)

    def _traced(self, inputs: Mapping[str, Any], read: Tensor, keep: Iterable[str]) -> dict[str, list[Tensor]]:
        normed = self.last_layer == "normed"
        return trace_blocks(self.model, inputs, read, layers=self.layers, keep=keep, normed_last=normed)

    def _prefixes(self, tokens: Tokens) -> Iterator[tuple[list[int], dict[str, Any], Prompt]]:
        """Batches of sentences whose last tokens run together, and what these are to be run with."""
        size = self.batch_tokens or roomy(self.model, packed=False)
        on_gpu = any(device.type == "cuda" for device in self.model.devices)
        for index in by_length(tokens.lengths(), size if self.batch_tokens or on_gpu else _TOGETHER * size):
            self._check_state()
            yield index, *self._prefix(tokens, index, size)

    def _prefix(self, tokens: Tokens, index: Sequence[int], size: int) -> tuple[dict[str, Any], Prompt]:
        """Run all but the last token of each sentence, and return what its last token is to be run with.

        Args:
            tokens: of all sentences.
            index: which of them, the shortest first.
            size: how many tokens run at a time; padding to the longest of all would cost more.
        """
        inputs = Rows.of(self.model, [tokens[place] for place in index], packed=False).inputs
        last = inputs["attention_mask"].sum(dim=1) - 1
        rows = torch.arange(len(index), device=self.model.device)
        mask, final = inputs["attention_mask"].clone(), inputs["input_ids"][rows, last][:, None]
        mask[rows, last] = 0
        mask, ids = mask[:, :-1], inputs["input_ids"][:, :-1]
        whole = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if (own := tokens.own_places(index, whole.shape[1])) is not None:
            own = torch.cat([own[:, :-1], own[rows.cpu(), last.cpu()][:, None]], dim=1)
        run, caches = torch.cat([ids, final], dim=1), []
        prompt = Prompt(whole.shape[1], whole.bool(), run, own)
        for some in by_length((last + 1).tolist(), size):
            at, width = slice(some[0], some[-1] + 1), max(1, int(last[some[-1]]))
            part = Prompt(prompt.width, whole[at].bool(), run[at], None if own is None else own[at])
            with torch.no_grad(), running(self.model.module, prompt=part):
                caches.append(self._cache(ids[at, :width], mask[at, :width]))
        return {
            "input_ids": final,
            "attention_mask": whole,
            "position_ids": last[:, None],
            "past_key_values": _joined(caches),
            "use_cache": True,
        }, prompt

    def _cache(self, ids: Tensor, mask: Tensor) -> Cache:
        """The keys and values of prefixes, as far as the last layer that is captured.

        Raises:
            TnkitError: where the model keeps more than these.
        """
        states, above = list[Any](), range(self.layers[-1] + 1, self.model.n_layers)
        with ExitStack() as stack:
            if above and not self.model.ablations:  # which want to have set every layer of theirs
                stack.enter_context(recorded(self.model, self.layers[-1], states))
                stack.enter_context(skipped(self.model, above, states))
            cache = decoder_of(self.model)(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
        if not isinstance(cache, Cache) or not {*map(type, cache.layers)} <= {DynamicLayer, DynamicSlidingWindowLayer}:
            raise TnkitError(f"the cache of {self.model.name} is more than keys and values")
        return cache

    def _is_proved(self, tokens: Tokens) -> bool:
        """Whether the last tokens of the shortest and the longest sentence are the same from a prefix as in full."""
        lengths = tokens.lengths()
        both = [lengths.index(min(lengths)), lengths.index(max(lengths))]
        rows = Rows.of(self.model, [tokens[number] for number in both], packed=False)
        try:
            if not _has_positions(self.model, max(lengths)):
                return False
            kept = self._last_states(*self._prefix(tokens, both, max(lengths)), keep=["post"])
        except Exception as error:  # a model that runs elsewhere, and whatever a cache of an unknown kind does
            _LOG.debug("%s has no prefix that can be kept: %s", self.model.name, error)
            return False
        with running(self.model.lm._module, **rows.known(tokens, both)):
            full = self._traced(rows.inputs | {"use_cache": False}, rows.places[:, -1], ["post"])
        most = _TOLERANCE if torch.finfo(self.model.dtype).bits >= 32 else _HALF_TOLERANCE
        pairs = zip(kept["post"], full["post"], strict=True)
        return all(bool((cached - run).abs().max() <= most * run.abs().max()) for cached, run in pairs)


class _Joined(DynamicLayer):
    """One layer of a cache whose rows ran in several batches: they are put together only while the layer runs.

    Args:
        parts: the layer of each batch, the widest last; what is shorter is padded, and whoever uses it masks that.
        sliding: whether its attention has a window, which is wider than any row.
    """

    def __init__(self, parts: Sequence[Any], *, sliding: bool) -> None:
        super().__init__()
        self.parts, self.is_sliding, self.is_initialized = parts, sliding, True

    def get_seq_length(self) -> int:
        return int(self.parts[-1].keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._rows("keys", key_states), self._rows("values", value_states)

    def whole(self) -> Any:
        """A layer of the usual kind."""
        layer = copy.copy(self.parts[-1])
        for name in ("keys", "values"):
            setattr(layer, name, self._rows(name, getattr(layer, name)[:, :, :0]))
        return layer

    def _rows(self, name: str, added: Tensor) -> Tensor:
        """All rows, with what is added at their ends."""
        several, (_, heads, width, size) = [getattr(part, name) for part in self.parts], added.shape
        before = several[-1].shape[2]
        rows = added.new_zeros(sum(map(len, several)), heads, before + width, size)
        for place, states in zip(rows.split([*map(len, several)]), several, strict=True):
            place[:, :, : states.shape[2]] = states
        if width:
            rows[:, :, before:] = added
        return rows


def _joined(caches: Sequence[Cache]) -> Cache:
    """One cache of the rows of several, the widest last, which no run changes.

    Layers above the last that ran are only asked how much they hold, for the masks of their kind.
    """
    layers = [*zip(*(cache.layers for cache in caches), strict=True)]
    last = sum(parts[-1].is_initialized for parts in layers) - 1
    joined: Cache = copy.copy(caches[-1])
    joined.layers = [
        _Joined(layers[min(place, last)], sliding=parts[-1].is_sliding) for place, parts in enumerate(layers)
    ]
    return joined


def _has_positions(model: Model, longest: int) -> bool:
    """Whether a cached prefix can be continued at a position of our choice."""
    config = model.module.config.get_text_config(decoder=True)
    return (
        longest > 1
        and "position_ids" in parameters(decoder_of(model))
        and not getattr(config, "alibi", False)
        and (model.window is None or longest < model.window)
    )
