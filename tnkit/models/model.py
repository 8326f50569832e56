"""A decoder-only language model whose MLP neurons can be read: `Model`; `tnkit.models.load` makes one."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar, SupportsIndex, cast

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from tnkit import storage
from tnkit.errors import TnkitError, whole_numbers
from tnkit.models import fingerprint as fingerprints
from tnkit.models import reading as architecture
from tnkit.models.hooks import check_repeatable, hooks_checked
from tnkit.models.reading import Sites
from tnkit.models.sessions import state_of
from tnkit.models.weights import hash_now, hash_of
from tnkit.models.wrapper import TransformersModel, traceable
from tnkit.provenance import ModelOrigin, Origin

PROBE = "Languages meet in the middle, 2 by 2; 言葉は中で出会う。"
Change = tuple[
    Tensor, Tensor, Tensor | None, float | None
]  # what `tnkit.models.trace.changed` does to a layer's activations
_LOG = logging.getLogger("tnkit")


@dataclass(frozen=True, eq=False)
class Model(Origin):
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
        remote: False, or where it runs: True for NDIF, or a server's URL (`tnkit.models.remote.RemoteModel`).
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
    template: str | None = None

    server: ClassVar[str | None] = None  # the address of what runs it, where that is not this process
    request_bytes: ClassVar[int | None] = None  # the most that may travel to it at a time

    @property
    def module(self) -> transformers.PreTrainedModel:
        """The plain transformers module; a remote model has none here."""
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
        """The dtype of the value vectors."""
        return self._last_map(0).weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids must be put."""
        return architecture.device_of(cast(nn.Embedding, self.module.get_input_embeddings()))

    @property
    def devices(self) -> list[torch.device]:
        """The devices that its blocks compute on, in order."""
        return list(dict.fromkeys(map(self.layer_device, range(self.n_layers))))

    def layer_device(self, layer: int, /) -> torch.device:
        """Where the neurons of a layer are computed."""
        return architecture.device_of(self._last_map(layer))

    @property
    def home(self) -> torch.device:
        """Where activations stay that are only summed: the GPU of a model that lies on one, the CPU for any other."""
        devices = self.devices
        return devices[0] if len(devices) == 1 else torch.device("cpu")

    @cached_property
    def sharded(self) -> bool:
        """Whether its weights are spread over the processes of torchrun, each of which runs every batch."""
        return hasattr(self._last_map(0).weight, "full_tensor")

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

        Of a model that is spread over processes they are gathered, so every process must ask for them. Those of a
        remote model are downloaded each time, to the CPU.

        Raises:
            TnkitError: for a layer that the model does not have, or a last map that is no plain linear map any more.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("gpt2").value_vectors(0).shape
        torch.Size([48, 32])
        """
        check_layers(self, [layer])
        self.check_unchanged(layer)
        with architecture.present(self._last_map(layer)):
            return architecture.whole(architecture.value_vectors(self._last_map(layer), self.hidden_size))

    def output_gain(self, layer: int) -> Float[Tensor, "hidden"]:
        """What the MLP branch is multiplied by, coordinate by coordinate, on its way to the residual stream (float32).

        A neuron's contribution is scale · output gain ⊙ value vector · activation. It is 1 in pre-norm blocks, and the
        learned gain of the branch's own norm in Gemma and OLMo 2.
        """
        check_layers(self, [layer])
        norm, last_map = self.sites.norm, self._last_map(layer)
        return architecture.output_gain(
            attrgetter(norm)(self._blocks[layer]) if norm else None,
            self.sites.multiplier,
            torch.empty(self.hidden_size, dtype=last_map.weight.dtype, device=architecture.device_of(last_map)),
        )

    def output_bias(self, layer: int) -> Float[Tensor, "hidden"]:
        """The bias of the MLP's last linear map (zeros where it has none), float32."""
        with architecture.present(self._last_map(layer)):
            bias = getattr(self._last_map(layer), "bias", None)
            if bias is None:
                return torch.zeros_like(self.output_gain(layer))
            return architecture.whole(bias.detach()).float()

    def ask_weights(self, question: Callable[..., Any], given: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Put a question to the weights of some layers, where they are.

        Args:
            question: a function of a layer's value vectors, output gain and output bias, and of what is given for it.
            given: the layers, and what else the question is asked with.

        Returns:
            The answer for each layer.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model().ask_weights(lambda vectors, gain, bias, power: vectors.shape[0] ** power, {2: (1,)})
        {2: 48}
        """
        return {
            layer: question(self.value_vectors(layer), self.output_gain(layer), self.output_bias(layer), *extra)
            for layer, extra in given.items()
        }

    @property
    def weights_hash(self) -> str:
        """A hash of every parameter's name, shape, dtype and bytes (32 hex digits), as they are now.

        It sees any change of weights or of their order, also one made in place. The weights are read each time: a
        gigabyte takes about 0.2 s on a CPU. Weights that are spread over processes are read once, when they are loaded.
        A remote model's are read once, on its server, and give the same as here; where its blocks cannot read them, the
        hash is "named:" and that of the name by which the server knows the checkpoint, and vouches for that name only.
        """
        kept = state_of(self.module).weights
        return kept or (self._gathered_hash if self.sharded else hash_now(self.module))

    @cached_property
    def _gathered_hash(self) -> str:
        """Of weights that all processes must gather together."""
        return hash_of(self.module)

    @property
    def attention(self) -> str | None:
        """The attention implementation of transformers, where it is known."""
        return self.module.config._attn_implementation

    @property
    def provenance(self) -> ModelOrigin:
        """What results record of the model as it is now: name, revision, weights hash, dtype, attention and shape."""
        origin: ModelOrigin = {
            "name": self.name,
            "revision": self.revision,
            "weights": self.weights_hash,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if self.attention is not None:
            origin["attention"] = self.attention
        origin |= {"layers": self.n_layers, "neurons": self.n_neurons, "hidden": self.hidden_size}
        if self.template:
            origin["template"] = self.template
        return origin

    def fingerprint(self) -> str | None:
        """A digest of all that decides its numbers, for the cache; None, with a warning, where that cannot be told.

        It holds the bytes of weights and buffers; the configuration and the attention implementation; of each submodule
        its class, the code of its `forward`, its hooks, and its attributes that are numbers, words, functions or
        tensors; the settings of PyTorch's kernels; the versions of the loaded packages, and of tnkit's numbers; and the
        states of a short sentence, which show what these do not, such as a patched function.

        It cannot be told under a forward hook that is not tnkit's, where a module's own `forward` was replaced, and for
        a model that is spread over processes or offloaded, or whose server does not show its weights.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("llama").fingerprint() == tiny_model("llama").fingerprint() != tiny_model("gpt2").fingerprint()
        True
        """
        if reason := self._hidden():
            _LOG.warning("%s, so nothing is read from the cache or kept", reason)
            return None
        return fingerprints.digest(self.weights_hash, self.dtype, self.sites, self._beside_weights())

    def _hidden(self) -> str | None:
        """Why its numbers cannot be told."""
        if self.sharded:
            return f"{self.name} is spread over processes"
        if any(weight.is_meta for weight in self.module.parameters()):
            return f"weights of {self.name} are offloaded"
        return fingerprints.untold(self.module, ablated=bool(self.ablations))

    def _beside_weights(self) -> list[Any]:
        """What decides its numbers beside its weights."""
        norm = [self.module.get_submodule(self.final_norm_path)] if self.final_norm_path else []
        read = [*self._blocks, *map(self._last_map, range(self.n_layers)), *norm]
        ids = self.tokenizer(PROBE, verbose=False)["input_ids"][:8]
        return fingerprints.live(self.module, read, torch.tensor([ids], device=self.device))

    def settings(self) -> str:
        """A digest of what decides its numbers beside weights and hooks: buffers, attributes, code and kernels."""
        return "" if self.sharded else fingerprints.settings(self.lm._module)

    def check_ready(self) -> None:
        """Refuse to predict tokens with a model that has no head, was changed since loading, or would draw at random.

        Raises:
            TnkitError: for a model without a head, and as `check_unchanged` and `check_repeatable` do.
        """
        if not self.module.can_generate():
            raise TnkitError(f"{self.name} has no output head to predict tokens; load it with AutoModelForCausalLM")
        self.check_unchanged()
        check_repeatable(self.module)

    @contextmanager
    def tracing(self) -> Iterator[bool]:
        """A context in which a trace runs; whether hooks that are not tnkit's run in it, too.

        Raises:
            TnkitError: in training mode, under autocast, or where a hook changes what is read.
        """
        check_repeatable(self.module)
        with hooks_checked(self.module, self.blocks_path, self.sites) as hooked:
            yield hooked

    @contextmanager
    def edited(self, hook: Callable[[ExitStack], None], _edit: Callable[..., dict[int, Change]]) -> Iterator[None]:
        """A context in which its activations are changed, for `tnkit.Ablation`.

        Args:
            hook: registers forward hooks that change them, for a model that runs here.
            _edit: what a trace is to change, given its inputs and its last layer, for one that does not.
        """
        with ExitStack() as stack:
            hook(stack)
            yield

    def edits(self, _inputs: Mapping[str, Any], _deepest: int) -> dict[int, list[Change]]:
        """What a trace changes, by layer; here that is the work of hooks."""
        return {}

    def sent(self, _function: Callable[..., Any]) -> Callable[..., Any] | None:
        """A function that sums up a pass, where it has to run inside the trace because the weights are elsewhere."""
        return None

    @property
    def _config(self) -> transformers.PreTrainedConfig:
        return self.lm._module.config.get_text_config(decoder=True)

    @property
    def _blocks(self) -> nn.ModuleList:
        return attrgetter(self.blocks_path)(self.lm._module)

    def _last_map(self, layer: int) -> nn.Linear | Conv1D:
        return attrgetter(self.sites.last_map)(self._blocks[layer])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
        """A model with a module and a tokenizer of its own, whose ablations are its own, too."""
        if self.sharded:
            raise TnkitError(f"{self.name} cannot be copied, for its weights are not all here; load it again")
        if self.ablations:
            raise TnkitError(f"{self.name} cannot be copied inside an Ablation; copy it before or after that")
        module, tokenizer = copy.deepcopy((self.module, self.tokenizer), memo)
        return replace(self, lm=traceable(module, tokenizer), tokenizer=tokenizer)

    def _repr_html_(self) -> str:
        return storage.html_card(
            "Model",
            {
                "name": self.name,
                "layers": self.n_layers,
                "neurons a layer": self.n_neurons,
                "hidden": self.hidden_size,
                "runs on": self.server or f"{self.device}, in {self.dtype}",
                "sites": self.sites,
            },
        )


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
