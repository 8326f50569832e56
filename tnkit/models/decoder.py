"""The decoder blocks of a model, where their neurons are read, and their value vectors: `Decoder`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, cast

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from tnkit.errors import TnkitError
from tnkit.models import maps
from tnkit.models import reading as architecture
from tnkit.models.experts import all_vectors, is_experts, shape_of, some_vectors, weight_of
from tnkit.models.layers import check_layers
from tnkit.models.narrow import mlp_of
from tnkit.models.reading import Sites
from tnkit.models.wrapper import TransformersModel, served


@dataclass(frozen=True, eq=False, kw_only=True)
class Decoder:
    """Decoder blocks, the sites that are read in them, and their weights. Layers count from 0.

    Attributes:
        name: the Hub id, folder or packaged name it was loaded from.
        lm: the nnsight-wrapped module, for traces of your own.
        sites: which submodules of each block are read; None for a block without MLP, which has no neurons.
        widths: how many neurons each layer has.
        blocks_path, final_norm_path: dotted paths of the decoder blocks and of the norm after the last one.
        n_layers, n_neurons, hidden_size: numbers of layers, of neurons in the widest layer, of residual stream
            coordinates. Results have `n_neurons` columns; those that a layer lacks hold activations of 0 and scores of
            NaN.

    >>> from tnkit.testing import tiny_model
    >>> model = tiny_model("llama")
    >>> model.n_layers, model.n_neurons, model.hidden_size
    (4, 48, 32)
    >>> model.early_layers, model.late_layers
    (range(0, 2), range(2, 4))
    """

    name: str
    lm: TransformersModel = field(repr=False)
    sites: tuple[Sites | None, ...]
    widths: tuple[int, ...]
    blocks_path: str
    final_norm_path: str | None
    n_layers: int
    hidden_size: int

    @property
    def n_neurons(self) -> int:
        """The number of neurons in the widest layer."""
        return max(self.widths)

    @property
    def layout(self) -> list[list[int]]:
        """How many neurons each layer has, as results record it; empty where all have as many, and none has experts.

        A layer of experts has how many those are, and the number of neurons of one, beside it.
        """
        rows = [[width, *self.experts_of(layer)] for layer, width in enumerate(self.widths)]
        return rows if len(set(self.widths)) > 1 or self.slots else []

    def experts_of(self, layer: int) -> tuple[int, ...]:
        """How many experts a layer has and how many neurons each of them, shared ones apart; empty without experts."""
        sites = self.sites[layer]
        return shape_of(self._last_map(layer)) if sites and sites.experts else ()

    @property
    def slots(self) -> int:
        """How many experts of a layer a token is sent to; 0 in a model without experts."""
        return max(sites.experts.slots if sites and sites.experts else 0 for sites in self.sites)

    @property
    def places(self) -> int:
        """How many activations of a sentence are kept in a layer: `n_neurons`, or of experts those that run."""
        kept = []
        for layer, width in enumerate(self.widths):
            count, each = self.experts_of(layer) or (0, 0)
            kept.append(width - (count - self.slots) * each if count else width)
        return max(kept)

    @property
    def reading(self) -> str:
        """In words, where neurons and `mid` are read in each kind of block.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("llama").reading
        'neurons at mlp.down_proj, mid = the input of post_attention_layernorm'
        """
        kinds = list(dict.fromkeys(self.sites))
        if len(kinds) == 1:
            return str(kinds[0])
        layers = {kind: [str(layer) for layer, sites in enumerate(self.sites) if sites == kind] for kind in kinds}
        return "; ".join(f"layers {', '.join(layers[kind])}: {kind or 'no neurons'}" for kind in kinds)

    @property
    def module(self) -> transformers.PreTrainedModel:
        """The plain transformers module; a remote model has none here."""
        return self.lm._module

    @property
    def boundary(self) -> int:
        """The first late layer, ⌊20 L / 32⌋ (Tezuka & Inoue, 2025, use the first 20 of 32 layers for Type-1)."""
        return 20 * self.n_layers // 32

    @property
    def early_layers(self) -> Sequence[int]:
        """Where Type-1 neurons are looked for: the early layers that have neurons."""
        return self.with_neurons(range(self.boundary))

    @property
    def late_layers(self) -> Sequence[int]:
        """Where Type-2 neurons are looked for: the late layers that have neurons."""
        return self.with_neurons(range(self.boundary, self.n_layers))

    def with_neurons(self, layers: Sequence[int]) -> Sequence[int]:
        """Those of some layers that have neurons."""
        return layers if all(self.widths) else tuple(layer for layer in layers if self.widths[layer])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the value vectors: that of the activations, where the last map is not a plain matrix."""
        return self._dtype_of(self._a_map)

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
        if self.widths[layer]:
            return architecture.device_of(self._last_map(layer))
        return next((weight.device for weight in self.blocks[layer].parameters()), self.device)

    @property
    def home(self) -> torch.device:
        """Where activations stay that are only summed: the GPU of a model that lies on one, the CPU for any other."""
        devices = self.devices
        return devices[0] if len(devices) == 1 else torch.device("cpu")

    @cached_property
    def sharded(self) -> bool:
        """Whether its weights are spread over the processes of torchrun, each of which runs every batch."""
        return hasattr(weight_of(self._a_map), "full_tensor")

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

    @property
    def vocabulary(self) -> int:
        """How many token embeddings it has."""
        return int(cast(nn.Embedding, self.lm._module.get_input_embeddings()).weight.shape[0])

    def check_unchanged(self, layer: int | None = None) -> None:
        """Refuse to go on where a part was compiled or replaced since the model was loaded.

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
            architecture.check_plain(self.blocks[layer], f"{self.blocks_path}.{layer}")
        reload = f"was replaced after {self.name} was loaded; load the module again"
        if len(self.blocks) != self.n_layers:
            raise TnkitError(f"{self.blocks_path}, a list of {self.n_layers} blocks, {reload}")
        for number in range(self.n_layers) if layer is None else [layer]:
            sites = self.sites[number]
            for site in sites.names if sites else ():
                where = f"{self.blocks_path}.{number}.{site}"
                if sites and site == sites.last_map:
                    architecture.check_map(attrgetter(where)(self.lm._module), where)
                if attrgetter(served(where))(self.lm)._module is not attrgetter(where)(self.lm._module):
                    raise TnkitError(f"{where} {reload}")

    def value_vectors(self, layer: int) -> Float[Tensor, "neuron hidden"]:
        """The value vectors of a layer, one neuron a row: a view, in the model's dtype and on the layer's device.

        Where the MLP's last map is not a plain matrix (a quantised weight, an adapter beside a weight), they are what
        it makes of unit vectors. Of a model that is spread over processes they are gathered, so every process must ask
        for them. Those of a remote model are downloaded each time, to the CPU.

        Raises:
            TnkitError: for a layer that the model does not have, or a last map that was replaced since.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("gpt2").value_vectors(0).shape
        torch.Size([48, 32])
        """
        check_layers(self, [layer])
        self.check_unchanged(layer)
        if not self.widths[layer]:
            return torch.zeros(0, self.hidden_size, dtype=self.dtype, device=self.layer_device(layer))
        last_map, sites = self._last_map(layer), self.sites[layer]
        if not sites or not sites.experts:
            return self._vectors_of(last_map, self._dtype_of(last_map))
        with architecture.present(last_map):
            vectors, shared = all_vectors(last_map), sites.experts.shared
        if not shared:
            return vectors
        return torch.cat([vectors, self._vectors_of(attrgetter(shared)(self.blocks[layer]), vectors.dtype)])

    def vectors_of(self, layer: int, neurons: Sequence[int]) -> Float[Tensor, "neuron hidden"]:
        """The value vectors of some neurons of a layer, in order; of experts, without a copy of the others.

        >>> from tnkit.testing import tiny_model
        >>> model = tiny_model("mixtral")
        >>> torch.equal(model.vectors_of(1, [30, 2]), model.value_vectors(1)[[30, 2]])
        True
        """
        check_layers(self, [layer])
        count, each = self.experts_of(layer) or (0, 0)
        if max(neurons, default=0) < count * each and not (last_map := self._last_map(layer)).down_proj.is_meta:
            return some_vectors(last_map, neurons)
        return self.value_vectors(layer)[list(neurons)]

    def output_gain(self, layer: int) -> Float[Tensor, "hidden"]:
        """What the MLP branch is multiplied by, coordinate by coordinate, before it is added (float32).

        A contribution is scale · output gain ⊙ value vector · activation. The gain is 1 in pre-norm blocks, and the
        gain of the branch's own norm in Gemma and OLMo 2.
        """
        check_layers(self, [layer])
        sites, dtype = self.sites[layer], self._dtype_of(self._last_map(layer) if self.widths[layer] else self._a_map)
        like = torch.empty(self.hidden_size, dtype=dtype, device=self.layer_device(layer))
        if sites is None:
            return torch.ones_like(like).float()
        norm = attrgetter(sites.norm)(self.blocks[layer]) if sites.norm else None
        return architecture.output_gain(norm, sites.multiplier, like)

    def output_bias(self, layer: int) -> Float[Tensor, "hidden"]:
        """The bias of the MLP's last linear map, float32; zeros where it has none, and where experts have their own."""
        if not self.widths[layer] or self.experts_of(layer):
            return torch.zeros_like(self.output_gain(layer))
        last_map = self._last_map(layer)
        with architecture.present(last_map):
            if not maps.is_plain(last_map):
                return maps.asked(last_map, self._dtype_of(last_map), self.layer_device(layer))[1].float()
            bias = getattr(last_map, "bias", None)
            if bias is None:
                return torch.zeros_like(self.output_gain(layer))
            return architecture.whole(bias.detach()).float()

    def written(self, layer: int, activations: Float[Tensor, "token neuron"]) -> Float[Tensor, "token hidden"] | None:
        """What the last map of a layer makes of activations, where it is not a plain matrix; None where it is one."""
        if not self.widths[layer] or self.experts_of(layer) or maps.is_plain(last_map := self._last_map(layer)):
            return None
        with torch.no_grad():
            return cast(
                Tensor, last_map.forward(activations[:, : self.widths[layer]].to(self._dtype_of(last_map)))
            ).float()

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
    def _config(self) -> transformers.PreTrainedConfig:
        return self.lm._module.config.get_text_config(decoder=True)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return attrgetter(self.blocks_path)(self.lm._module)

    def map_path(self, layer: int) -> str:
        """The dotted path of a layer's last linear map.

        Raises:
            TnkitError: for a layer without neurons.
        """
        sites = self.sites[layer]
        if sites is None:
            raise TnkitError(f"layer {layer} of {self.name} has no MLP, and so no neurons; name another layer")
        return f"{self.blocks_path}.{layer}.{sites.last_map}"

    def mlp_of(self, layer: int) -> nn.Module | None:
        """The module of a layer that holds its neurons and reads nothing but their input, where one is known to."""
        sites = self.sites[layer]
        return None if sites is None else mlp_of(self.blocks[layer], sites)

    def _vectors_of(self, last_map: Any, dtype: torch.dtype) -> Float[Tensor, "neuron hidden"]:
        """The value vectors of one linear map."""
        with architecture.present(last_map):
            return architecture.whole(architecture.value_vectors(last_map, self.hidden_size, dtype))

    def _dtype_of(self, last_map: Any) -> torch.dtype:
        is_read = is_experts(last_map) or maps.is_plain(last_map)
        return weight_of(last_map).dtype if is_read else self.module.dtype

    def _last_map(self, layer: int) -> Any:
        return attrgetter(self.map_path(layer))(self.lm._module)

    @property
    def _a_map(self) -> Any:
        """The last map of the first layer that has one."""
        return self._last_map(next(layer for layer, width in enumerate(self.widths) if width))
