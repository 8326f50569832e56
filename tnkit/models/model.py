"""A decoder-only language model whose MLP neurons can be read: `Model`, and `load_model`, which proves that they are.

model = tn.load_model("gemma-3-270m")                       # the packaged demo model
model = tn.load_model("meta-llama/Meta-Llama-3-8B", dtype="bfloat16", device_map="auto")
model = tn.load_model("meta-llama/Meta-Llama-3-70B", tp_plan="auto")     # spread over the processes of torchrun
model = tn.load_model("path/to/folder")
model = tn.load_model(module, tokenizer=tokenizer)          # a transformers model you already have
model = tn.load_model("meta-llama/Llama-3.1-70B", remote=True)   # one that runs on NDIF (`tnkit.models.remote`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, SupportsIndex, cast

import torch
import transformers
from jaxtyping import Float
from nnsight.modeling.tp import max_tp_size
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.pytorch_utils import Conv1D

from tnkit import parallel, storage
from tnkit.errors import TnkitError, last_line, whole_numbers
from tnkit.models import checkpoints, packaged
from tnkit.models import reading as architecture
from tnkit.models.proofs import (
    causality_error,
    completeness_error,
    fingerprint,
    fingerprint_there,
    part,
    proved,
    unread,
    weights_hash,
)
from tnkit.models.reading import Sites
from tnkit.models.remote import checked as remote_at
from tnkit.models.remote import server_of, undispatched
from tnkit.models.sessions import state_of
from tnkit.models.tokens import template_of
from tnkit.models.trace import Change, ask_module, ask_weights

__all__ = ["Model", "causality_error", "check_layers", "completeness_error", "load_model"]

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "layer_norm", "norm_f")


@dataclass(frozen=True, eq=False)
class Model:
    """A decoder-only language model, its layer sites and its value vectors.

    Made by `load_model`. Layers count from 0.

    Attributes:
        name: the Hub id, folder or packaged name it was loaded from.
        revision: the commit of the Hub repository, where there is one.
        lm: the nnsight-wrapped module, for traces of your own.
        tokenizer: the transformers tokenizer.
        sites: which submodules of a block are read.
        blocks_path, final_norm_path: dotted paths of the decoder blocks and of the norm after the last one.
        n_layers, n_neurons, hidden_size: numbers of layers, of neurons in a layer, of residual stream coordinates.
        remote: False, or where it runs: True for NDIF, or a server's URL. Then no weights are here.
        edits: how to switch it off in the trace of a remote model; `tnkit.Ablation` keeps it.
        template: the text around every sentence, {sentence} in its place; None reads sentences as they are.

    >>> from tnkit.testing import tiny_model
    >>> model = tiny_model("llama")
    >>> model.n_layers, model.n_neurons, model.hidden_size
    (4, 48, 32)
    >>> model.early_layers, model.late_layers
    (range(0, 2), range(2, 4))
    """

    name: str
    revision: str | None
    lm: TransformersModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    sites: Sites
    blocks_path: str
    final_norm_path: str | None
    n_layers: int
    n_neurons: int
    hidden_size: int
    remote: bool | str = False
    edits: list[Callable[..., dict[int, Change]]] = field(default_factory=list, repr=False)
    template: str | None = None

    @property
    def module(self) -> transformers.PreTrainedModel:
        """The plain transformers module.

        Raises:
            TnkitError: for a remote model, whose weights are not here.
        """
        if self.remote:
            raise TnkitError(
                f"{self.name} runs on {server_of(self.remote)}, where tnkit captures, scores and ablates; "
                f"generation, perplexity, lens, harness and export need its weights: load_model({self.name!r}) here"
            )
        return self.lm._module

    @property
    def ablations(self) -> list[dict[str, Any]]:
        """What is ablated at the moment, through whichever wrapper of the module, for provenance."""
        return state_of(self.lm._module).ablations

    @property
    def boundary(self) -> int:
        """The first late layer, ⌊20 L / 32⌋ (Tezuka & Inoue, 2025, use the first 20 of 32 layers for Type-1)."""
        return 20 * self.n_layers // 32

    @property
    def early_layers(self) -> range:
        """Where Type-1 neurons are looked for."""
        return range(self.boundary)

    @property
    def late_layers(self) -> range:
        """Where Type-2 neurons are looked for."""
        return range(self.boundary, self.n_layers)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the value vectors (of a remote model: that its server computes in)."""
        return getattr(torch, self._there[1]) if self.remote else self._last_map(0).weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids must be put (of a remote model: here, on the CPU)."""
        if self.remote:
            return torch.device("cpu")
        return architecture.device_of(cast(nn.Embedding, self.module.get_input_embeddings()))

    @property
    def devices(self) -> list[torch.device]:
        """The devices that its blocks compute on, in order (of a remote model: the CPU)."""
        if self.remote:
            return [self.device]
        return list(dict.fromkeys(architecture.device_of(self._last_map(layer)) for layer in range(self.n_layers)))

    @property
    def home(self) -> torch.device:
        """Where activations stay that are only summed: the GPU of a model that lies on one, the CPU for any other."""
        devices = self.devices
        return devices[0] if len(devices) == 1 else torch.device("cpu")

    @cached_property
    def sharded(self) -> bool:
        """Whether its weights are spread over the processes of torchrun, each of which runs every batch."""
        return hasattr(self._last_map(0).weight, "full_tensor") and not self.remote

    @property
    def context(self) -> int | None:
        """The longest input in tokens, or None where the model states no limit."""
        return getattr(self._config, "max_position_embeddings", None)

    @property
    def window(self) -> int | None:
        """The fewest tokens that any of its layers attends to, or None where all attend to every token before.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("gemma3").window, tiny_model("llama").window
        (64, None)
        """
        local = "local" in (getattr(self._config, "attention_layers", None) or ())  # GPT-Neo
        names = ["sliding_window", "attention_chunk_size", "attention_window_size", *(["window_size"] if local else [])]
        widths = [getattr(self._config, name, None) for name in names]
        return min((width for width in widths if isinstance(width, int) and width > 0), default=None)

    def check_unchanged(self, layer: int | None = None) -> None:
        """Refuse to go on where an adapter was added, a part compiled or replaced, since the model was loaded.

        Args:
            layer: look at this layer alone.

        Raises:
            TnkitError: naming the module.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("llama").check_unchanged()
        """
        if self.remote:
            return
        if layer is None:
            architecture.check_plain(self.lm._module)
        else:
            architecture.check_plain(self._blocks[layer], f"{self.blocks_path}.{layer}")
        reload = f"was replaced after {self.name} was loaded; load the module again"
        if len(self._blocks) != self.n_layers:
            raise TnkitError(f"{self.blocks_path}, a list of {self.n_layers} blocks, {reload}")
        read = [site for site in (self.sites.mid, self.sites.attention, self.sites.norm) if site]
        for number in range(self.n_layers) if layer is None else [layer]:
            for where in (f"{self.blocks_path}.{number}.{site}" for site in read):
                if attrgetter(where)(self.lm)._module is not attrgetter(where)(self.lm._module):
                    raise TnkitError(f"{where} {reload}")
            where = f"{self.blocks_path}.{number}.{self.sites.last_map}"
            last_map = attrgetter(self.sites.last_map)(self._blocks[number])
            architecture.check_map(last_map, where)
            if attrgetter(where)(self.lm)._module is not last_map:
                raise TnkitError(f"{where} {reload}")

    def value_vectors(self, layer: int) -> Float[Tensor, "neuron hidden"]:
        """The value vectors of a layer, one neuron a row: a view, in the model's dtype and on the layer's device.

        Those of a remote model are downloaded anew each time, to the CPU. Of a model that is spread over processes they
        are gathered, so every process must ask for them.

        Raises:
            TnkitError: for a layer that the model does not have, or a last map that is no plain linear map any more.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("gpt2").value_vectors(0).shape
        torch.Size([48, 32])
        """
        check_layers(self, [layer])
        if self.remote:
            return ask_weights(self, partial(part, 0), {layer: ()})[layer]
        self.check_unchanged(layer)
        with architecture.present(self._last_map(layer)):
            return architecture.whole(architecture.value_vectors(self._last_map(layer), self.hidden_size))

    def output_gain(self, layer: int) -> Float[Tensor, "hidden"]:
        """What the MLP branch is multiplied by, coordinate by coordinate, on its way to the residual stream (float32).

        A neuron's contribution is scale · output gain ⊙ value vector · activation. It is 1 in pre-norm blocks, and the
        learned gain of the branch's own norm in Gemma and OLMo 2.
        """
        check_layers(self, [layer])
        if self.remote:
            return self._gains_there[layer]
        norm, last_map = self.sites.norm, self._last_map(layer)
        return architecture.output_gain(
            attrgetter(norm)(self._blocks[layer]) if norm else None,
            self.sites.multiplier,
            torch.empty(self.hidden_size, dtype=last_map.weight.dtype, device=architecture.device_of(last_map)),
        )

    @cached_property
    def _gains_there(self) -> list[Float[Tensor, "hidden"]]:
        """`output_gain` of every layer of a remote model."""
        return list(ask_weights(self, partial(part, 1), dict.fromkeys(range(self.n_layers), ())).values())

    def output_bias(self, layer: int) -> Float[Tensor, "hidden"]:
        """The bias of the MLP's last linear map (zeros where it has none), float32."""
        if self.remote:
            return ask_weights(self, partial(part, 2), {layer: ()})[layer]
        with architecture.present(self._last_map(layer)):
            bias = getattr(self._last_map(layer), "bias", None)
            if bias is None:
                return torch.zeros_like(self.output_gain(layer))
            return architecture.whole(bias.detach()).float()

    @property
    def weights_hash(self) -> str:
        """A fingerprint of every parameter's name, shape, dtype and bytes (32 hex digits), as they are now.

        It sees any change of weights or of their order, also one made in place. The weights are read each time: a
        gigabyte takes about 0.2 s on a CPU. Weights that are spread over processes are read once, when they are loaded.
        A remote model's are read once, on its server, and give the same as here; where its blocks cannot read them, the
        fingerprint is "named:" and that of the name by which the server knows the checkpoint, and vouches for that name
        only.
        """
        if self.remote:
            return self._there[0]
        kept = state_of(self.module).weights
        return kept or (self._gathered_hash if self.sharded else weights_hash(self.module))

    @cached_property
    def _gathered_hash(self) -> str:
        """Of weights that all processes must gather together."""
        return fingerprint(self.module)

    @cached_property
    def _there(self) -> tuple[str, str]:
        """A remote model's weights hash, and the dtype that its server computes in."""
        sizes = sum(tensor.numel() for tensor in self.lm._module.state_dict().values())
        try:
            seen, dtype = ask_module(self, fingerprint_there, sizes)
        except TnkitError:  # weights that cannot be read, or not in the time that the server grants
            seen, dtype = ask_module(self, unread)
        if seen is None:
            seen = f"named:{hashlib.sha256(self.lm.to_model_key().encode()).hexdigest()[:16]}"
        return seen, dtype.removeprefix("torch.")

    @property
    def provenance(self) -> dict[str, Any]:
        """What results record of the model as it is now: name, revision, weights hash, dtype, attention and shape."""
        attention = {} if self.remote else {"attention": self.module.config._attn_implementation}
        return {
            "name": self.name,
            "revision": self.revision,
            "weights": self.weights_hash,
            "dtype": str(self.dtype).removeprefix("torch."),
            **attention,
            "layers": self.n_layers,
            "neurons": self.n_neurons,
            "hidden": self.hidden_size,
            **({"template": self.template} if self.template else {}),
        }

    @property
    def _config(self) -> transformers.PreTrainedConfig:
        return self.lm._module.config.get_text_config(decoder=True)

    @property
    def _blocks(self) -> nn.ModuleList:
        return attrgetter(self.blocks_path)(self.lm._module)

    def _last_map(self, layer: int) -> nn.Linear | Conv1D:
        return attrgetter(self.sites.last_map)(self._blocks[layer])

    def _repr_html_(self) -> str:
        return storage.html_card(
            "Model",
            {
                "name": self.name,
                "layers": self.n_layers,
                "neurons a layer": self.n_neurons,
                "hidden": self.hidden_size,
                "runs on": server_of(self.remote) if self.remote else f"{self.device}, in {self.dtype}",
                "sites": self.sites,
            },
        )


def load_model(
    source: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    tp_plan: Literal["auto"] | dict[str, str] | None = None,
    trust_remote_code: bool = False,
    remote: bool | str = False,
    chat: bool = False,
    template: str | None = None,
) -> Model:
    """Load a decoder-only model and prove that its neurons are read correctly.

    One tiny forward pass checks, in every layer, that mid + sum of contributions + bias = post, and that neither later
    tokens nor padding change a token's state. The module is put into eval mode, and stays so.

    Args:
        source: the packaged model's name, a Hub id, a local folder, or a loaded transformers model, with or without
            its head, also inside a pipeline, a wrapper of nnsight, `DataParallel` or `torch.compile`.
        tokenizer: needed with a loaded model, unless its wrapper brings one; it stays as it is.
        revision: branch, tag or commit of the Hub repository.
        dtype: "auto" (as stored), "float32", "bfloat16", "float16", "float64", or their short names.
        device_map: as in transformers; "auto" spreads the model over the GPUs that are there.
        tp_plan: "auto" spreads the weights over the processes of torchrun (tensor parallelism of transformers), for a
            model that is larger than one GPU; all of them then run every batch together and have every result.
        trust_remote_code: run code that comes with the model; never on by default.
        remote: True leaves the weights on NDIF and runs there; a URL names another server of its kind. Captures,
            scores and ablations then travel as traces, and only slices and sums of activations come back.
        chat: wrap every sentence in the tokenizer's chat template, as a user's message. Captures still read the
            sentence's last token, or with position="end" the last token of the prompt for an answer.
        template: wrap every sentence in a text of your own, such as "Translate: {sentence}".

    Raises:
        TnkitError: for an unknown model, a checkpoint that lacks weights, a model with an adapter, an encoder-decoder
            or mixture-of-experts model, one that fails the checks, a server that does not answer or does not have it,
            or with `tp_plan` a model that cannot be divided among the processes there are.

    >>> from tnkit.testing import byte_tokenizer, tiny_module
    >>> model = load_model(tiny_module("gemma3"), tokenizer=byte_tokenizer())
    >>> print(model.sites)
    neurons at mlp.down_proj, mid = the input of pre_feedforward_layernorm, branch norm post_feedforward_layernorm
    """
    dtype = checkpoints.dtype_of(dtype)
    source, tokenizer = checkpoints.unwrapped(source, tokenizer)
    name = str(source) if isinstance(source, str | Path) else str(source.name_or_path or type(source).__name__)
    there = remote_at(remote, source, dtype=dtype, device_map=device_map or tp_plan)
    if isinstance(source, nn.Module):
        with _told(type(source).__name__):
            tokenizer = cast(PreTrainedTokenizerBase, tokenizer)  # a module without one is refused
            lm = _traceable(_wrapper(source), source, tokenizer)
            return _wrap(lm, tokenizer, name, revision, there, template_of(tokenizer, chat, template))
    if name in packaged.MODELS:
        source = packaged.converted_folder(name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    how: dict[str, Any] = {"dtype": dtype, "device_map": parallel.own_device(device_map)}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        if config.is_encoder_decoder:
            raise TnkitError(f"{name} is an encoder-decoder model ({config.model_type}); load a decoder-only model")
        if tp_plan is not None:
            if device_map is not None:
                raise TnkitError(f"tp_plan and device_map={device_map!r} both say where the weights go; give one")
            parallel.check_divides(name, max_tp_size(config))
            how = {"dtype": dtype, "distributed_config": DistributedConfig(tp_plan=tp_plan)}
        tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(source, **options)
        if there:
            lm = _traceable(partial(undispatched, **options), source, tokenizer)
        else:
            module = checkpoints.checkpoint(source, config, how, options)
            lm = _traceable(_wrapper(module), module, tokenizer)
            revision = revision or getattr(lm._module.config, "_commit_hash", None)
        template = template_of(tokenizer, chat, template)
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(checkpoints.cannot_load(name, error, packaged.MODELS)) from error
    with _told(type(lm._module).__name__):
        return _wrap(lm, tokenizer, name, revision, there, template)


@contextmanager
def hashed_once(model: Model) -> Iterator[None]:
    """A context in which the weights are read once for all that ask for their hash; they must not change in it."""
    state = state_of(model.lm._module)
    outer, state.weights = state.weights, model.weights_hash
    try:
        yield
    finally:
        state.weights = outer


def check_layers(model: Model, layers: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """The layers as a tuple of ints, ascending.

    Raises:
        TnkitError: for none, for a layer that the model does not have, or that is not a whole number.
    """
    chosen = set()
    for layer in whole_numbers("layers", layers):
        if not layer < model.n_layers:
            raise TnkitError(f"layer {layer} is not in {model.name}, which has layers 0 to {model.n_layers - 1}")
        chosen.add(layer)
    if not chosen:
        raise TnkitError(f"no layers were named; {model.name} has layers 0 to {model.n_layers - 1}")
    return tuple(sorted(chosen))


class _Offloaded(TransformersModel):
    """The wrapper of a model whose weights accelerate brings for each pass: inputs go to where it computes."""

    @property
    def device(self) -> torch.device:
        """Where its embedding computes, for it lies on the meta device."""
        return architecture.device_of(cast(nn.Embedding, self._module.get_input_embeddings()))


@contextmanager
def _told(kind: str) -> Iterator[None]:
    """What goes wrong while a model of that class is looked at, as a sentence."""
    try:
        yield
    except TnkitError:
        raise
    except Exception as error:
        raise TnkitError(
            f"{kind} is not a model that tnkit can read ({type(error).__name__}: {last_line(error)}); load a "
            "decoder-only language model of transformers"
        ) from error


def _wrapper(module: nn.Module) -> type[TransformersModel]:
    return _Offloaded if next(module.parameters()).is_meta else TransformersModel


def _traceable(
    wrap: Callable[..., TransformersModel], source: str | Path | nn.Module, tokenizer: PreTrainedTokenizerBase
) -> TransformersModel:
    """The nnsight wrapper. Making it gives the caller's tokenizer a pad token and another side, which is undone."""
    before = {name: getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "pad_token")}
    generates = not isinstance(source, PreTrainedModel) or source.can_generate()
    with checkpoints.quiet_loading():
        lm = wrap(source, tokenizer=tokenizer, task="text-generation" if generates else "feature-extraction")
    for name, value in before.items():
        setattr(tokenizer, name, value)
    return lm


def _wrap(
    lm: TransformersModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    revision: str | None,
    remote: bool | str,
    template: str | None,
) -> Model:
    """A model of the reading of its blocks that is complete."""
    module = lm._module.eval()
    path, blocks = architecture.decoder_blocks(module)
    config = module.config.get_text_config(decoder=True)
    parent, _, _ = path.rpartition(".")
    norm = next((norm for norm in _FINAL_NORMS if architecture.has(module.get_submodule(parent), norm)), None)
    first, *others = architecture.readings(blocks[0], config)
    model = Model(
        name=name,
        revision=revision,
        lm=lm,
        tokenizer=cast(Any, tokenizer),
        sites=first,
        blocks_path=path,
        final_norm_path=norm and f"{parent}.{norm}",
        n_layers=len(blocks),
        n_neurons=architecture.width(blocks, path, first.last_map, config.hidden_size),
        hidden_size=config.hidden_size,
        remote=remote,
        template=template,
    )
    model.check_unchanged()
    model = proved(model, (first, *others))
    if model.sharded:
        model.provenance  # noqa: B018 - gathers the weights, which all processes must do together
    return model
