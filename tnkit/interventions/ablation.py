"""Switching neurons off while a model runs: `Ablation`, a context in which everything that calls the model is ablated.

    with tn.Ablation(model, type1):                              # activations set to 0 at every token
        off = tn.capture(model, test["ja"])
    with tn.Ablation(model, type1, tokens="last") as ablation:   # at the last token of the prompt only
        model.module.generate(**inputs)
    ablation.count                                               # (token, neuron) values that were set
    with tn.Ablation(model, tn.Intervention(type1, value="mean", of=ja)): ...    # or scaled, resampled, moved
    with tn.Ablation(model, [type2_ja, tn.Intervention(type2_nl, value="mean", of=nl)]): ...     # several at once
    with tn.Ablation(model, tn.Direction.difference(en, ja, layers=[12])): ...   # along a direction of the state

It works through PyTorch's forward hooks, so that captures, generation, evaluation harnesses and code of your own all
see the same ablated model, through whichever wrapper of it. A remote model is ablated inside the traces that captures
and scores send, which edit the activations at the same places; whatever else would run it is refused.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tnkit import parallel, storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError, one_of
from tnkit.interventions.direction import Direction
from tnkit.interventions.intervention import Intervention, set_of, sources
from tnkit.interventions.patch import Patch
from tnkit.interventions.patching import Patcher
from tnkit.interventions.prompts import last_words, texts_of
from tnkit.interventions.routed import Routed
from tnkit.interventions.scopes import TOKENS, chosen_now, decoder_of, texts_now, watched
from tnkit.interventions.together import Given, Together, intervention_of
from tnkit.models.model import Change, Model, hashed_once
from tnkit.models.sessions import INTERRUPTS, TURN, state_of
from tnkit.models.trace import changed, chosen_tokens
from tnkit.provenance import check_made_with

_GIVEN = "the activations given as of= or minus="


class Ablation:
    """A context in which chosen neurons' activations are set, scaled or moved.

    Contexts nest, the inner one acting on what the outer one left; leaving one restores the model, also after an error.
    The module itself is ablated, so every wrapper of it is. Other threads that trace or ablate a model wait until the
    context is left; one that runs the ablated module directly is refused.

    Inside `module.generate` the prompt is what generate was given, whatever the cache does; tokens whose states come
    from a cache that was handed in are as they were when it was made. Elsewhere a pass without cached tokens is a
    prompt, and one with cached tokens is refused for every scope but "all", and for resampled values.

    Args:
        model: from `load_model`.
        neurons: an `Intervention`, a `Direction` or a `Patch`, or a list of them, which act one after another; or a
            `NeuronSet` or (layer, neuron) pairs, with value, of, scale, add, minus or seed as in `Intervention`
            (default: set to 0, which switches them off). No neurons change nothing, bit for bit.
        tokens: "last" acts on the last token of the prompt only, "last_word" on the last one that is not punctuation
            (of the sentence, where tnkit puts a template around it),
            "prompt" on every token of it and on no decoded one, "all" on every token, decoded ones included. Padding is
            not counted where a 2-D mask tells it.

    Attributes:
        intervention: what is done, with which neurons; the first of several.
        count: how many (token, neuron) values have been set so far; a direction counts as one.

    Raises:
        TnkitError: for a neuron that the model does not have, results of another model, an unknown token scope, or a
            value that is not finite or not given. On entering, for a compiled module. While the model runs, where its
            arguments do not tell which tokens are meant. On leaving, where the model ran and nothing was set.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model
    >>> model = tiny_model("llama")
    >>> with Ablation(model, [(1, 7), (1, 8)], tokens="last") as ablation:
    ...     found = tn.capture(model, ["Hello", "Hi"], progress=False)
    >>> found.activations[1, :, 7].tolist(), ablation.count
    ([0.0, 0.0], 4)
    """

    def __init__(self, model: Model, neurons: Given, *, tokens: str = "all", **how: Any) -> None:
        one_of("tokens", tokens, TOKENS)
        asked = intervention_of(neurons, how)
        several = asked.parts if isinstance(asked, Together) else (asked,)
        first, *others = [part for part in several if len(part)] or several[:1]
        self.others = tuple(Ablation(model, other, tokens=tokens) for other in others)
        self.model, self.tokens, self._count = model, tokens, 0
        self.intervention, self.neurons = first, set_of(model, ())
        self._captures: tuple[Activations, ...] = ()
        self._drawing: Intervention | Patch | None = None  # what has a row of its target for each sentence
        self.values: dict[int, tuple[Tensor, Tensor | None, float | None]] = {}
        self.about: dict[str, Any] = {"tokens": tokens}
        if isinstance(first, Direction | Patch):
            first.check(model)
            self._prepare_states(first)
        else:
            self._prepare(first)
        self._stack = ExitStack()
        self._active = False
        self._thread = 0  # that entered it
        self.chosen: Tensor | None = None  # of the forward pass under way
        self.drawn: list[int] | None = None  # for each of its sentences, where values are resampled or patched
        self.sentences: Tensor | None = None  # which of those each token is of
        self._set: set[int] = set()  # layers that it has set
        self._ran = False
        self._reached = 0  # values to set at the tokens that were, wherever their experts ran
        self._before = 0, 0  # what was reached, and calls of generate, on entering

    def _prepare_states(self, asked: Direction | Patch) -> None:
        """Note what is to become of states, or of neurons where a patch sets them."""
        self.about |= asked.about()
        if isinstance(asked, Patch):
            self._drawing = asked
            if asked.tokens != self.tokens:
                raise TnkitError(
                    f'this patch is of tokens="{asked.tokens}", not "{self.tokens}"; give the same to both'
                )
            if asked.site == "activations" and asked.neurons is not None:
                self.neurons = asked.neurons
                for layer, places in asked.neurons.by_layer().items():
                    at = self.model.layer_device(layer)
                    self.values[layer] = torch.tensor(places, device=at), asked.targets(layer).to(at), None
                return
        layers = asked.vectors if isinstance(asked, Direction) else asked.values
        self.values = {layer: (torch.tensor([0]), None, None) for layer in layers}

    def _prepare(self, asked: Intervention) -> None:
        """Note what is to become of neurons."""
        self.neurons = set_of(self.model, asked.neurons)
        self.intervention = asked = replace(asked, neurons=self.neurons)
        self._drawing = asked if asked.value == "resampled" else None
        self._captures = sources(asked.of) + sources(asked.minus)
        for capture in self._captures:
            _check_capture(self.model, capture)
        self.values = {layer: self._change(asked, layer, places) for layer, places in self.neurons.by_layer().items()}
        about = {"neurons": len(self.neurons), "hash": storage.text_hash(map(str, sorted(self.neurons)))}
        self.about = about | self.about | asked.about()
        if self._captures:
            targets = [target for _, target, _ in self.values.values() if target is not None]
            self.about["values"] = storage.text_hash(target.cpu().numpy().tobytes().hex() for target in targets)

    @property
    def count(self) -> int:
        """How many (token, neuron) values have been set so far."""
        return self._count + sum(other.count for other in self.others)

    @property
    def abouts(self) -> list[dict[str, Any]]:
        """What each intervention does, for provenance."""
        return [self.about, *(about for other in self.others for about in other.abouts)]

    @INTERRUPTS.unbroken
    def __enter__(self) -> "Ablation":
        with ExitStack() as stack:
            stack.enter_context(TURN)
            if self._active:
                raise TnkitError("this ablation is active already; make another one to nest it")
            self.model.check_unchanged()
            self._check_origin()
            self._active = True
            stack.callback(setattr, self, "_active", False)
            state = state_of(self.model.lm._module)
            self._thread = threading.get_ident()
            entry = self._thread, self.about
            state.entered.append(entry)
            stack.callback(state.entered.remove, entry)
            stack.enter_context(self.model.edited(self._hook, self._edit))
            for other in self.others:
                stack.enter_context(other)
            self._ran, self._before = False, (self._reached, state.generated)
            INTERRUPTS.let_through()
            self._stack = stack.pop_all()
        return self

    @INTERRUPTS.unbroken
    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if self._active and self._thread != threading.get_ident():
            raise TnkitError("this Ablation was entered in another thread; leave it in that one")
        state = state_of(self.model.lm._module)
        generated, state.given = state.generated, None  # an interrupt passes by the hooks that forget what was given
        self._stack.__exit__(kind, *error)
        ran = self._ran or generated > self._before[1]
        if kind is None and self.values and ran and self._reached == self._before[0]:
            raise TnkitError(
                f"{self.model.name} ran inside an Ablation of {len(self.neurons)} neurons that set nothing: its blocks "
                "were not called as modules, or the tokens to set were all in a cache; call the module itself, without "
                "past_key_values"
            )

    def __deepcopy__(self, _: object) -> "Ablation":
        raise TnkitError(
            f"{self.model.name} cannot be copied inside an Ablation, whose hooks would act on the copy; copy it before "
            "or after that"
        )

    def _check_origin(self) -> None:
        """Refuse neurons and captures of another model than the module is now, which may have changed since."""
        with hashed_once(self.model) if self._captures else nullcontext():
            check_made_with(self.model, self.neurons.provenance, "these neurons")
            if isinstance(self.intervention, Direction | Patch):
                self.intervention.check(self.model)
            for capture in self._captures:
                check_made_with(self.model, capture.provenance, _GIVEN, states=True)

    def _hook(self, stack: ExitStack) -> None:
        """Register what notes the tokens of each forward pass, and what sets the neurons."""
        if not self.values:
            return
        stack.enter_context(watched(self.model))
        decoder = decoder_of(self.model)
        stack.callback(decoder.register_forward_pre_hook(self._choose_tokens, with_kwargs=True).remove)
        stack.callback(decoder.register_forward_hook(self._check_set).remove)
        stack.callback(decoder.register_forward_hook(self._forget, always_call=True).remove)
        for layer in self.values:
            if isinstance(self.intervention, Direction):
                block = self.model.blocks[layer]
                stack.callback(block.register_forward_pre_hook(self._mover(layer), with_kwargs=True).remove)
                continue
            if isinstance(self.intervention, Patch) and self.intervention.site != "activations":
                Patcher(self, self.intervention, layer).hook(stack)
                continue
            if self.model.experts_of(layer):
                Routed(self, layer).hook(stack)
                continue
            last_map = self.model.module.get_submodule(self.model.map_path(layer))
            stack.callback(last_map.register_forward_pre_hook(self._setter(layer)).remove)

    def _change(self, asked: Intervention, layer: int, places: list[int]) -> tuple[Tensor, Tensor | None, float | None]:
        """The places of a layer, their target, and their scale, as `Intervention.target` has them."""
        device = self.model.layer_device(layer)
        target, scale = asked.target(layer, places)
        if target is not None:
            target = target.float()
            if not bool(target.to(self.model.dtype).isfinite().all()):
                raise TnkitError(
                    f"layer {layer} is to be set to values that {self.model.dtype} cannot hold; give others"
                )
            target = target.to(device)
        return torch.tensor(places, device=device), target, scale

    def _choose_tokens(self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which (sentence, token) places of this forward pass are to be set, and what is drawn for its rows."""
        given = self.model, decoder, (args, kwargs), self.tokens
        self.chosen, self._set = chosen_now(*given), set()
        if self._drawing is not None:
            texts, self.sentences = texts_now(*given)
            self.drawn = [self._drawing.draw(text) for text in texts]

    def _check_set(self, *_: Any) -> None:
        if missing := set(self.values) - self._set:
            raise TnkitError(
                f"layer(s) {', '.join(map(str, sorted(missing)))} of {self.model.name} ran without being ablated, or "
                "did not run; call the module with all its layers and do not compile it"
            )
        self._ran |= state_of(self.model.module).prompt is None

    def _forget(self, *_: Any) -> None:
        self.chosen = self.drawn = self.sentences = None

    def _edit(self, inputs: Mapping[str, Any], deepest: int) -> dict[int, Change]:
        """What the trace of a right-padded batch changes in each layer that it runs, where hooks cannot."""
        if isinstance(self.intervention, Direction):
            raise TnkitError(f"{self.model.name} runs elsewhere, where only neurons can be changed; load it here")
        real = inputs["attention_mask"].bool()
        if self.tokens == "last_word":
            own = state_of(self.model.lm._module).own
            chosen = last_words(self.model.tokenizer, inputs["input_ids"], real, own)
        else:
            chosen = chosen_tokens(real, self.tokens)
        if self._drawing is not None:
            self.drawn = [self._drawing.draw(text) for text in texts_of(inputs["input_ids"], real, chosen)]
        run = [layer for layer in self.values if layer <= deepest]
        for layer in run:
            self.note(layer, int(chosen.sum()))
        return {layer: (chosen, self.values[layer][0], self.target(layer), self.values[layer][2]) for layer in run}

    def note(self, layer: int, tokens: int, count: int | None = None) -> None:
        """Count what was set in a layer: at so many tokens all of its neurons, or fewer values in experts."""
        values = tokens * len(self.values[layer][0])
        self._reached += values
        self._count += values if count is None else count
        self._set.add(layer)

    def target(self, layer: int) -> Tensor | None:
        """What the neurons of a layer become in this pass: alike everywhere, or for each sentence."""
        target = self.values[layer][1]
        return target if target is None or self.drawn is None else target[self.drawn]

    def tokens_in(self, layer: int, states: Tensor) -> Tensor:
        """Which (sentence, token) places of a layer's states are to be set.

        Raises:
            TnkitError: where these are other tokens than the model was called with.
        """
        chosen, tokens = self.chosen, states.numel() // states.shape[-1]
        if chosen is None and self.tokens == "all" and self._drawing is None:
            return states.new_ones(states.shape[:-1], dtype=torch.bool)  # a block that is called by itself
        if chosen is None or chosen.numel() != tokens:
            raise TnkitError(
                f"layer {layer} runs {tokens} tokens, not those that the model was called "
                f'with, so tokens="{self.tokens}" has no meaning; call the module itself, or use tokens="all"'
            )
        return chosen

    def _setter(self, layer: int) -> Callable[..., tuple[Any, ...]]:
        places, _, scale = self.values[layer]

        def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            activations, target = args[0], self.target(layer)
            width, chosen = activations.shape[-1], self.tokens_in(layer, activations)  # a part, where it is sharded
            first = width * parallel.rank() if width < self.model.widths[layer] else 0
            here = (places >= first) & (places < first + width)
            target = None if target is None else target[..., here]
            edited = changed(activations, chosen, places[here] - first, target, scale, self.sentences)
            self.note(layer, int(chosen.sum()))
            return (edited, *args[1:])

        return hook

    def _mover(self, layer: int) -> Callable[..., tuple[Any, dict[str, Any]]]:
        direction = self.intervention
        assert isinstance(direction, Direction)

        def hook(
            _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            states = args[0] if args else kwargs["hidden_states"]
            chosen = self.tokens_in(layer, states)
            self.note(layer, int(chosen.sum()))
            moved = direction.moved(states, chosen, layer)
            return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

        return hook


def _check_capture(model: Model, capture: Activations) -> None:
    """Refuse activations that are not of the untouched model."""
    values = capture.require("activations").tensors()["activations"]
    if not len(capture) or values.shape[-1] != model.places:
        raise TnkitError(
            f"{_GIVEN} hold {len(capture)} sentences of {values.shape[-1]} activations a layer; give a capture of at "
            f"least one sentence of {model.name}, which has {model.places}"
        )
    check_made_with(model, capture.provenance, _GIVEN, states=True)
    if capture.provenance.get("ablations"):
        raise TnkitError(f"{_GIVEN} were captured while neurons were ablated; capture them from the untouched model")
