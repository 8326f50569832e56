"""Which tokens of a forward pass an ablation acts on, whatever the cache, the padding and the shape of inner masks.

The attention mask is taken where the caller hands it in: modules around the decoder may turn it into other shapes.
Tokens are distinguished by their absolute position, cached ones counted, so that a token of the prompt is one in a pass
without a cache, in a chunk of a prefill and after a reused prefix, and a decoded token never is.
"""

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tnkit.errors import TnkitError
from tnkit.interventions.prompts import in_rows, last_words, texts_in, texts_of
from tnkit.models.model import Model
from tnkit.models.sessions import Given, Prompt, State, replaced, running, state_of
from tnkit.models.trace import chosen_tokens

TOKENS = ("last", "prompt", "all", "last_word")


def decoder_of(model: Model) -> nn.Module:
    """The module whose blocks are ablated."""
    return model.module.get_submodule(model.blocks_path.rpartition(".")[0])


@contextmanager
def watched(model: Model) -> Iterator[None]:
    """A context in which it is noted what the module, and those around its blocks, are called with."""
    state = state_of(model.module)
    if not state.watchers:
        state.hooks = _watch(model, state)
    state.watchers += 1
    try:
        yield
    finally:
        state.watchers -= 1
        if not state.watchers:
            state.hooks.close()


def _watch(model: Model, state: State) -> ExitStack:
    module = model.module
    with ExitStack() as stack:
        path = model.blocks_path.split(".")[:-1]
        for depth in range(len(path) + 1):
            around = module.get_submodule(".".join(path[:depth]))
            stack.callback(around.register_forward_pre_hook(_noting(state, module), with_kwargs=True).remove)
            stack.callback(around.register_forward_hook(_forgetting(state), always_call=True).remove)
        stack.callback(setattr, state, "given", None)
        if hasattr(module, "generate"):
            stack.enter_context(_generate_noted(module, state))
        return stack.pop_all()


def chosen_now(
    model: Model, decoder: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], tokens: str
) -> Bool[Tensor, "sentence token"]:
    """The places of the decoder's forward pass that an ablation of a token scope acts on.

    Args:
        model: from `load_model`, watched.
        decoder: what holds its blocks.
        inputs: positional and named arguments of the pass.
        tokens: one of `TOKENS`.

    Raises:
        TnkitError: where the arguments do not tell which tokens those are.
    """
    state = state_of(model.module)
    run = _pass_of(model, decoder, inputs, tokens)
    if tokens == "all":
        return run.real
    prompt = _prompt_now(state, run, f'tokens="{tokens}"', 'tokens="all"')
    chosen = _scoped(model.tokenizer, prompt, tokens)
    if run.texts is not None:
        return in_rows(run.real.shape, run.texts[chosen])
    if state.prompt is None and not chosen.any(dim=1).all():
        raise TnkitError("the attention mask calls a whole row padding, in which there is nothing to ablate")
    rows, width = run.real.shape
    chosen = chosen.to(run.real.device).repeat_interleave(rows // len(chosen), dim=0)  # beams, texts for a prompt
    decoded = max(0, run.before + width - prompt.width)
    return torch.nn.functional.pad(chosen, (0, decoded))[:, run.before : run.before + width]


def texts_now(
    model: Model, decoder: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], tokens: str
) -> tuple[list[list[int]], Int[Tensor, "row token"]]:
    """The token ids of each sentence or prompt, up to the last that an ablation of a token scope acts on.

    Args:
        model, decoder, inputs, tokens: as in `chosen_now`.

    Returns:
        The texts, and which of them each token of the pass is of.

    Raises:
        TnkitError: where the arguments do not tell them.
    """
    state, resampled = state_of(model.module), 'value="resampled"'
    run = _pass_of(model, decoder, inputs, tokens)
    prompt = _prompt_now(state, run, resampled, 'value="mean"')
    if prompt.real is None or prompt.ids is None or prompt.ids.shape[1] != prompt.real.shape[1]:
        raise TnkitError(f'{resampled} needs input_ids, which were not given; use value="mean"')
    chosen = _scoped(model.tokenizer, prompt, tokens)
    texts = texts_of(prompt.ids.repeat_interleave(len(chosen) // len(prompt.ids), dim=0), prompt.real, chosen)
    rows, width = run.real.shape
    if run.texts is None:
        number = torch.arange(rows) // (rows // len(texts))
        return texts, number[:, None].expand(rows, width)
    number = torch.zeros(rows * width, dtype=torch.long)
    for text, places in enumerate(run.texts.cpu()):
        number[places[places >= 0]] = text
    return texts, number.reshape(rows, width)


class _Pass(NamedTuple):
    """A forward pass of the decoder, as far as its arguments tell: tokens, and what came before them.

    Attributes:
        ids: token ids, or None.
        real: which tokens are not padding.
        before: how many tokens are cached.
        mask: of all tokens, cached ones included, or None.
        whole: whether each row is one text, the end of which is known.
        texts: of packed rows, the places of each text's tokens, counted through the rows, -1 after its end.
    """

    ids: Tensor | None
    real: Bool[Tensor, "sentence token"]
    before: int
    mask: Tensor | None
    whole: bool
    texts: Int[Tensor, "text token"] | None = None


def _pass_of(model: Model, decoder: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], tokens: str) -> _Pass:
    state = state_of(model.module)
    arguments, given = _arguments(decoder, *inputs), state.given
    ids = arguments.get("input_ids")
    embedded: Any = arguments.get("inputs_embeds", arguments.get("hidden_states"))  # BERT's blocks are given the latter
    here = embedded[..., 0] if ids is None else ids
    mask = given.mask if given is not None else arguments.get("attention_mask")
    known = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    past: Any = arguments.get("past_key_values")
    cached = int(past.get_seq_length()) if hasattr(past, "get_seq_length") else None  # tokens
    rows, width = here.shape
    texts = state.texts
    if texts is None and state.prompt is None and given is not None and given.positions is not None and model.packs:
        uses_cache = arguments.get("use_cache")  # with one, transformers builds no mask between texts
        uses_cache = getattr(decoder.config, "use_cache", False) if uses_cache is None else uses_cache
        if not uses_cache and cached is None:
            texts = texts_in(given.positions.expand(rows, -1))
    if texts is not None:
        ids = given.ids if ids is None and given is not None else ids
        return _Pass(ids, in_rows(here.shape, texts[texts >= 0]).to(here.device), 0, None, False, texts)
    columns = mask.shape[1] if isinstance(mask, Tensor) and known else None
    before = cached if cached is not None else 0 if columns is None else columns - width
    if columns is not None and columns < before + width:
        if tokens != "all":
            raise TnkitError(
                f"an attention mask of {columns} columns does not say which of {before} cached and {width} new tokens "
                'are padding; give a mask of all of them, or use tokens="all"'
            )
        columns = None
    real = torch.ones_like(here).bool()
    if columns is not None and mask is not None:
        real = mask[:, before : before + width].bool()
    real = _checked(real.to(here.device), rows, width)
    ids = given.ids if ids is None and given is not None else ids
    whole = (known or rows == 1) and not (given is not None and given.packed)
    return _Pass(ids, real, before, mask if columns is not None else None, whole)


def _prompt_now(state: State, run: _Pass, what: str, instead: str) -> Prompt:
    """The prompts that a pass is of: those of `generate`, or the pass itself, with their mask.

    Raises:
        TnkitError: where it does not tell; `what` needs it, and `instead` does not.
    """
    if run.texts is not None:
        ids = None if run.ids is None else run.ids.flatten()[run.texts.clamp_min(0)]
        return Prompt(run.texts.shape[1], run.texts >= 0, ids, state.own)
    if state.prompt is None:
        if run.before:
            raise TnkitError(
                f"{what} cannot tell whether tokens after a cache are a prompt or decoded; call module.generate, run "
                f"without past_key_values, or use {instead}"
            )
        if not run.whole:
            raise TnkitError(
                f"{what} needs a 2-D attention mask and one text a row to tell where sentences end, or position_ids "
                f"that begin again with each text and use_cache=False; give that, or use {instead}"
            )
        return Prompt(run.real.shape[1], run.real, run.ids, state.own)
    prompt, rows = state.prompt, len(run.real)
    if prompt.real is None and run.mask is None and run.whole:
        prompt.real = torch.ones(rows, prompt.width, dtype=torch.bool)
    if prompt.real is None and run.mask is not None and run.mask.shape[1] >= prompt.width:
        prompt.real = run.mask[:, : prompt.width].bool()  # as `generate` made it
    real = torch.ones(1, prompt.width, dtype=torch.bool) if prompt.real is None and rows == 1 else prompt.real
    if real is None or rows % len(real):
        raise TnkitError(f"{what} needs the attention mask of the prompts: give generate attention_mask=")
    return replace(prompt, real=real)


def _scoped(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, tokens: str) -> Bool[Tensor, "prompt token"]:
    """The tokens of whole prompts that a scope names."""
    real, ids = prompt.real, prompt.ids
    assert real is not None
    if tokens != "last_word":
        return chosen_tokens(real, tokens)
    if ids is None or ids.shape[1] != real.shape[1]:
        raise TnkitError('tokens="last_word" needs input_ids, which were not given; use tokens="last" or "all"')
    return last_words(tokenizer, ids.repeat_interleave(len(real) // len(ids), dim=0), real, prompt.own)


def _checked(real: Tensor, rows: int, width: int) -> Bool[Tensor, "sentence token"]:
    if real.shape != (rows, width):
        raise TnkitError(
            f"the attention mask is of {tuple(real.shape)} and the tokens of {(rows, width)} (sentences, tokens); give "
            "a mask of all tokens, cached ones included"
        )
    return real


def _noting(state: State, root: nn.Module) -> Callable[..., None]:
    """A hook that keeps what the outermost module is called with."""

    def note(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _check_thread(state)
        if called is not root and state.given is not None:
            return
        arguments = _arguments(called, args, kwargs)
        mask, ids, places = (arguments.get(name) for name in ("attention_mask", "input_ids", "position_ids"))
        begins_again = (
            isinstance(places, Tensor)
            and places.ndim == 2
            and not isinstance(mask, Tensor)
            and bool((places.diff(dim=1) != 1).any())
        )
        packed = begins_again or kwargs.get("cu_seq_lens_q") is not None
        state.given = Given(called, mask, ids, places if begins_again else None, packed)

    return note


def _forgetting(state: State) -> Callable[..., None]:
    """A hook that forgets it again, also after an error."""

    def forget(called: nn.Module, *_: Any) -> None:
        if state.given is not None and state.given.module is called:
            state.given = None

    return forget


def _check_thread(state: State) -> None:
    if state.entered and state.entered[-1][0] != threading.get_ident():
        raise TnkitError("another thread has ablated this module; run it once that Ablation is left")


@contextmanager
def _generate_noted(module: Any, state: State) -> Iterator[None]:
    """A context in which the module's `generate` notes where its prompts end, and compiles nothing."""
    original = module.generate

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        _check_thread(state)
        if state.prompt is not None:  # an assistant that is the module itself
            return original(*args, **kwargs)
        arguments = _given_to(original, args, kwargs)
        config = arguments.pop("generation_config", None)
        if config is None:
            arguments["disable_compile"] = True
        else:
            arguments["generation_config"] = config = copy.deepcopy(config)
            config.disable_compile = True
        partly = any(about["tokens"] != "all" for _, about in state.entered)
        scales = (getattr(one, "guidance_scale", None) for one in (config, module.generation_config))
        scale = next((scale for scale in (arguments.get("guidance_scale"), *scales) if scale is not None), 1)
        if partly and scale != 1:
            raise TnkitError(
                'guidance_scale runs the model on parts of the prompt too; set it to 1 or use tokens="all"'
            )
        state.generated += 1
        with running(module, prompt=replace(_prompt_of(arguments), own=state.own)):
            return original(**arguments)

    with replaced(module, "generate", generate):
        yield


def _prompt_of(arguments: Mapping[str, Any]) -> Prompt:
    """The prompts that `generate` is given."""
    mask, ids = arguments.get("attention_mask"), arguments.get("inputs")
    ids = arguments.get("input_ids") if ids is None else ids
    embeds = arguments.get("inputs_embeds")
    if embeds is not None:
        ids = ids if ids is not None and ids.shape[1] == embeds.shape[1] else None
    if isinstance(mask, Tensor) and mask.ndim == 2:  # it spans cached tokens too, which need not be given again
        return Prompt(mask.shape[1], mask.bool(), ids)
    return Prompt(embeds.shape[1] if embeds is not None else 1 if ids is None else ids.shape[1], None, ids)


def _given_to(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a function by name, those that it takes as ** among them."""
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    return {name: value for name, value in bound.items() if name != "kwargs"} | bound.get("kwargs", {})


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(parameters(module), args, strict=False)) | kwargs


def parameters(module: nn.Module) -> list[str]:
    """The names of what a module's forward takes.

    >>> parameters(nn.Linear(1, 1))
    ['input']
    """
    return list(inspect.signature(type(module).forward).parameters)[1:]
