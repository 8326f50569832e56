"""Switching neurons off while a model runs: `Ablation`, a context in which everything that calls the model is ablated.

    with tn.Ablation(model, type1):                              # activations set to 0 at every token
        off = tn.capture(model, test["ja"])
    with tn.Ablation(model, type1, tokens="last") as ablation:   # at the last token of the prompt only
        model.module.generate(**inputs)
    ablation.count                                               # (token, neuron) values that were set

It works through PyTorch's forward hooks, so that captures, generation, evaluation harnesses and code of your own all
see the same ablated model, through whichever wrapper of it. A remote model is ablated inside the traces that captures
and scores send, which edit the activations at the same places; whatever else would run it is refused.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from tnkit import parallel, storage
from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet, pairs_of
from tnkit.errors import TnkitError, one_of
from tnkit.interventions.scopes import TOKENS, chosen_now, decoder_of, last_words, watched
from tnkit.models.model import Change, Model
from tnkit.models.sessions import INTERRUPTS, TURN, state_of
from tnkit.models.trace import changed, chosen_tokens
from tnkit.provenance import check_made_with


class Ablation:
    """A context in which chosen neurons' activations are set to a value, or scaled.

    Contexts nest, the inner one acting on what the outer one left; leaving one restores the model, also after an error.
    The module itself is ablated, so every wrapper of it is. Other threads that trace or ablate a model wait until the
    context is left; one that runs the ablated module directly is refused.

    Inside `module.generate` the prompt is what generate was given, whatever the cache does; tokens whose states come
    from a cache that was handed in are as they were when it was made. Elsewhere a pass without cached tokens is a
    prompt, and one with cached tokens is refused for every scope but "all".

    Args:
        model: from `load_model`.
        neurons: a `NeuronSet` or (layer, neuron) pairs; none changes nothing, bit for bit.
        value: what the activations are set to: a number (default 0.0, which switches off), or "mean".
        means: with value="mean", a capture of the untouched model whose mean activation of each neuron is used.
        scale: multiply the activations by this instead of setting them.
        tokens: "last" acts on the last token of the prompt only, "last_word" on the last one that is not punctuation
            (of the sentence, where tnkit puts a template around it),
            "prompt" on every token of it and on no decoded one, "all" on every token, decoded ones included. Padding is
            not counted where a 2-D mask tells it.

    Attributes:
        count: how many (token, neuron) values have been set so far.

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

    def __init__(
        self,
        model: Model,
        neurons: Iterable[tuple[int, int]],
        *,
        value: float | str | None = None,
        means: Activations | None = None,
        scale: float | None = None,
        tokens: str = "all",
    ) -> None:
        one_of("tokens", tokens, TOKENS)
        value = _checked_value(value, means, scale)
        self.model, self.tokens, self.scale, self.count = model, tokens, scale, 0
        self.neurons = neurons_of(model, neurons)
        self._means = {} if means is None else means.provenance
        if means is not None:
            _check_means(model, means)
        self.values = {
            layer: self._targets(layer, places, value, means) for layer, places in self.neurons.by_layer().items()
        }
        how: dict[str, Any] = {"scale": scale} if scale is not None else {"value": value}
        if means is not None:
            how["means"] = storage.text_hash(str(target.tolist()) for _, target in self.values.values())
        self.about = {"neurons": len(self.neurons), "hash": storage.text_hash(map(str, sorted(self.neurons)))}
        self.about |= {"tokens": tokens, **how}
        self._stack = ExitStack()
        self._active = False
        self._thread = 0  # that entered it
        self._chosen: Tensor | None = None  # of the forward pass under way
        self._set: set[int] = set()  # layers that it has set
        self._ran = False
        self._before = 0, 0  # count, and calls of generate, on entering

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
            self._ran, self._before = False, (self.count, state.generated)
            INTERRUPTS.let_through()
            self._stack = stack.pop_all()
        return self

    @INTERRUPTS.unbroken
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._active and self._thread != threading.get_ident():
            raise TnkitError("this Ablation was entered in another thread; leave it in that one")
        state = state_of(self.model.lm._module)
        generated, state.given = state.generated, None  # an interrupt passes by the hooks that forget what was given
        self._stack.close()
        ran = self._ran or generated > self._before[1]
        if kind is None and self.values and ran and self.count == self._before[0]:
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
        """Refuse neurons and means of another model than the module is now, which may have changed since."""
        check_made_with(self.model, self.neurons.provenance, "these neurons")
        check_made_with(self.model, self._means, "the means", states=True)

    def _hook(self, stack: ExitStack) -> None:
        """Register what notes the tokens of each forward pass, and what sets the neurons."""
        if not self.values:
            return
        stack.enter_context(watched(self.model))
        decoder = decoder_of(self.model)
        blocks = attrgetter(self.model.blocks_path)(self.model.module)
        stack.callback(decoder.register_forward_pre_hook(self._choose_tokens, with_kwargs=True).remove)
        stack.callback(decoder.register_forward_hook(self._check_set).remove)
        stack.callback(decoder.register_forward_hook(self._forget, always_call=True).remove)
        for layer, (places, target) in self.values.items():
            last_map = attrgetter(self.model.sites.last_map)(blocks[layer])
            stack.callback(last_map.register_forward_pre_hook(self._setter(layer, places, target)).remove)

    def _targets(
        self, layer: int, places: list[int], value: float | str, means: Activations | None
    ) -> tuple[Tensor, Tensor]:
        device = self.model.layer_device(layer)
        if means is not None:
            if layer not in means.layers:
                raise TnkitError(f"the means hold layers {means.layers}, not {layer}; capture that layer too")
            values = means.tensors()["activations"][means.layers.index(layer)]
            target = values[:, places].double().mean(dim=0)
        else:
            target = torch.full((len(places),), float(value), dtype=torch.float64)
        if self.scale is None and not bool(target.float().to(self.model.dtype).isfinite().all()):
            raise TnkitError(f"layer {layer} is to be set to values that {self.model.dtype} cannot hold; give others")
        return torch.tensor(places, device=device), target.float().to(device)

    def _choose_tokens(self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which (sentence, token) places of this forward pass are to be set."""
        self._chosen = chosen_now(self.model, decoder, (args, kwargs), self.tokens)
        self._set = set()

    def _check_set(self, *_: Any) -> None:
        if missing := set(self.values) - self._set:
            raise TnkitError(
                f"layer(s) {', '.join(map(str, sorted(missing)))} of {self.model.name} ran without being ablated, or "
                "did not run; call the module with all its layers and do not compile it"
            )
        self._ran |= state_of(self.model.module).prompt is None

    def _forget(self, *_: Any) -> None:
        self._chosen = None

    def _edit(self, inputs: Mapping[str, Any], deepest: int) -> dict[int, Change]:
        """What the trace of a right-padded batch changes in each layer that it runs."""
        real = inputs["attention_mask"].bool()
        if self.tokens == "last_word":
            own = state_of(self.model.lm._module).own
            chosen = last_words(self.model.tokenizer, inputs["input_ids"], real, own)
        else:
            chosen = chosen_tokens(real, self.tokens)
        run = {layer: change for layer, change in self.values.items() if layer <= deepest}
        self.count += int(chosen.sum()) * sum(len(places) for places, _ in run.values())
        return {layer: (chosen, *change, self.scale) for layer, change in run.items()}

    def _setter(self, layer: int, places: Tensor, target: Tensor) -> Callable[..., tuple[Any, ...]]:
        def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            activations, chosen = args[0], self._chosen
            width = activations.shape[-1]  # less than all, where the model is spread over processes
            if chosen is None and self.tokens == "all":  # a block that is called by itself
                chosen = activations.new_ones(activations.shape[:-1], dtype=torch.bool)
            if chosen is None or chosen.numel() * width != activations.numel():
                raise TnkitError(
                    f"layer {layer} runs {activations.numel() // width} tokens, not those that the model was called "
                    f'with, so tokens="{self.tokens}" has no meaning; call the module itself, or use tokens="all"'
                )
            first = width * parallel.rank() if width < self.model.n_neurons else 0
            here = (places >= first) & (places < first + width)
            edited = changed(activations, chosen, places[here] - first, target[here], self.scale)
            self.count += int(chosen.sum()) * len(places)
            self._set.add(layer)
            return (edited, *args[1:])

        return hook


def neurons_of(model: Model, neurons: Iterable[tuple[int, int]]) -> NeuronSet:
    """Neurons as a set of the model's.

    Raises:
        TnkitError: for one that the model does not have, or a set that was made with another model.
    """
    shape = (model.n_layers, model.n_neurons)
    if not isinstance(neurons, NeuronSet):
        return NeuronSet(pairs_of(neurons), shape)
    if neurons.shape != shape:
        raise TnkitError(
            f"the neurons are of a model of {neurons.shape} (layers, neurons a layer), and {model.name} has {shape}; "
            "select neurons of this model"
        )
    check_made_with(model, neurons.provenance, "these neurons")
    return neurons


def _checked_value(value: float | str | None, means: Activations | None, scale: float | None) -> float | str:
    """The value to set, 0 where neither it nor a scale is given."""
    if value is not None and scale is not None:
        raise TnkitError(f"value={value!r} sets activations and scale={scale!r} multiplies them; give one of them")
    if scale is not None and not math.isfinite(scale):
        raise TnkitError(f"scale={scale!r} must be a finite number")
    if value == "mean" and means is not None:
        return "mean"
    if isinstance(value, str) or means is not None:
        raise TnkitError(f"value={value!r} must be a number, or 'mean' with means=a capture with activations")
    if value is not None and not math.isfinite(value):
        raise TnkitError(f"value={value!r} must be a finite number, or 'mean' with means=a capture with activations")
    return 0.0 if value is None else value


def _check_means(model: Model, means: Activations) -> None:
    """Refuse means that are not of the untouched model."""
    values = means.require("activations").tensors()["activations"]
    if not len(means) or values.shape[-1] != model.n_neurons:
        raise TnkitError(
            f"means hold {len(means)} sentences of {values.shape[-1]} neurons a layer; give a capture of at least one "
            f"sentence of {model.name}, which has {model.n_neurons}"
        )
    check_made_with(model, means.provenance, "the means", states=True)
    if means.provenance.get("ablations"):
        raise TnkitError("means were captured while neurons were ablated; capture them from the untouched model")
