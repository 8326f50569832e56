"""Captures of last tokens under many ablations of those tokens: `LastToken` runs what comes before them only once.

off = tn.LastToken(model, test["ja"], keep=["post"])
off.capture(type1), off.capture(control)                 # a fraction of a full pass each
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from tnkit.models.model import Model, hashed_once
from tnkit.models.sessions import TURN, Prompt, running
from tnkit.models.trace import trace_blocks
from tnkit.provenance import provenance_of

PLACES = ("last", "last_word", "end")  # positions that are one token
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
        check_position(model, position, PLACES)
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
            for index in by_length(tokens.lengths(), self.batch_tokens or roomy(model)):
                with TURN:
                    self._check_state()
                    self._batches.append((index, *self._prefix(tokens, index)))
                bar.update(len(index))

    def capture(self, neurons: Given, **how: Any) -> Activations:
        """`capture` of the sentences with neurons ablated at the token that is read.

        Args:
            neurons: as in `Ablation`.
            **how: what is done with them, as in `Ablation`.

        Raises:
            TnkitError: under other ablations or with other weights than when this was made.
        """
        scope = "last_word" if self.position == "last_word" else "last"
        with TURN, hashed_once(self.model):
            ablation = Ablation(self.model, neurons, tokens=scope, **how)
            about = self._check_state()
            about |= {"ablations": [*about.get("ablations", []), *ablation.abouts]}
            with ablation:
                if self.cached:
                    return gathered(self._run_last_tokens(about), len(self.sentences))
                options: dict[str, Any] = {"keep": self.keep, "layers": self.layers, "batch_tokens": self.batch_tokens}
                options |= {"position": self.position, "suffix": self.suffix, "last_layer": self.last_layer}
                return capture(self.model, self.sentences, **options, progress=False)

    def passes(self) -> Iterator[tuple[list[int], dict[str, Any], Prompt | None, Tensor]]:
        """What to run the decoder with to get the token that is read under autograd, batch by batch.

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
        copied = _copied(cache)
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

    def _run_last_tokens(self, about: dict[str, Any]) -> Iterator[Activations]:
        for index, inputs, prompt in self._batches:
            yield batch_of(self._last_states(inputs, prompt, keep=self.keep), self.layers, index, about)

    def _last_states(
        self, inputs: Mapping[str, Any], prompt: Prompt, *, keep: Iterable[str]
    ) -> dict[str, list[Tensor]]:
        """Run last tokens on a copy of the cache of their prefix, which no run changes."""
        cache = _copied(inputs["past_key_values"])
        last = torch.arange(len(inputs["input_ids"]), device=self.model.device)
        with running(self.model.module, prompt=prompt):
            return self._traced({**inputs, "past_key_values": cache}, last, keep)

    def _traced(self, inputs: Mapping[str, Any], read: Tensor, keep: Iterable[str]) -> dict[str, list[Tensor]]:
        normed = self.last_layer == "normed"
        return trace_blocks(self.model, inputs, read, layers=self.layers, keep=keep, normed_last=normed)

    def _prefix(self, tokens: Tokens, index: Sequence[int]) -> tuple[dict[str, Any], Prompt]:
        """Run all but the last token of each sentence, and return what its last token is to be run with."""
        inputs = Rows.of(self.model, [tokens[place] for place in index], packed=False).inputs
        last = inputs["attention_mask"].sum(dim=1) - 1
        rows = torch.arange(len(index), device=self.model.device)
        mask, final = inputs["attention_mask"].clone(), inputs["input_ids"][rows, last][:, None]
        mask[rows, last] = 0
        mask, ids = mask[:, :-1], inputs["input_ids"][:, :-1]
        whole = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if (own := tokens.own_places(index, whole.shape[1])) is not None:
            own = torch.cat([own[:, :-1], own[rows.cpu(), last.cpu()][:, None]], dim=1)
        prompt = Prompt(whole.shape[1], whole.bool(), torch.cat([ids, final], dim=1), own)
        with torch.no_grad(), running(self.model.module, prompt=prompt):
            cache = decoder_of(self.model)(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
        if not isinstance(cache, Cache) or not {*map(type, cache.layers)} <= {DynamicLayer, DynamicSlidingWindowLayer}:
            raise TnkitError(f"the cache of {self.model.name} is more than keys and values")
        return {
            "input_ids": final,
            "attention_mask": whole,
            "position_ids": last[:, None],
            "past_key_values": cache,
            "use_cache": True,
        }, prompt

    def _is_proved(self, tokens: Tokens) -> bool:
        """Whether the last tokens of the shortest and the longest sentence are the same from a prefix as in full."""
        lengths = tokens.lengths()
        both = [lengths.index(min(lengths)), lengths.index(max(lengths))]
        rows = Rows.of(self.model, [tokens[number] for number in both], packed=False)
        try:
            if not _has_positions(self.model, max(lengths)):
                return False
            kept = self._last_states(*self._prefix(tokens, both), keep=["post"])
        except Exception as error:  # a model that runs elsewhere, and whatever a cache of an unknown kind does
            _LOG.debug("%s has no prefix that can be kept: %s", self.model.name, error)
            return False
        with running(self.model.lm._module, **rows.known(tokens, both)):
            full = self._traced(rows.inputs | {"use_cache": False}, rows.places[:, -1], ["post"])
        most = _TOLERANCE if torch.finfo(self.model.dtype).bits >= 32 else _HALF_TOLERANCE
        pairs = zip(kept["post"], full["post"], strict=True)
        return all(bool((cached - run).abs().max() <= most * run.abs().max()) for cached, run in pairs)


def _copied(cache: Any) -> Any:
    """A cache of its own, which makes new tensors when it grows."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _has_positions(model: Model, longest: int) -> bool:
    """Whether a cached prefix can be continued at a position of our choice."""
    config = model.module.config.get_text_config(decoder=True)
    return (
        longest > 1
        and "position_ids" in parameters(decoder_of(model))
        and not getattr(config, "alibi", False)
        and (model.window is None or longest < model.window)
    )
