"""A decoder-only language model whose MLP neurons can be read: `Model`; `tnkit.models.load` makes one."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tnkit import storage
from tnkit.errors import TnkitError
from tnkit.models import fingerprint as fingerprints
from tnkit.models.decoder import Decoder
from tnkit.models.hooks import check_repeatable, hooks_checked
from tnkit.models.layers import check_layers as check_layers
from tnkit.models.sessions import TURN, running, state_of
from tnkit.models.weights import hash_now, hash_of, versions_of
from tnkit.models.wrapper import traceable
from tnkit.provenance import ModelOrigin, Origin

PROBE = "Languages meet in the middle, 2 by 2; 言葉は中で出会う。"
# what `tnkit.models.trace.changed` does to a layer's activations
Change = tuple[Tensor, Tensor, Tensor | None, float | None]
_RARELY = 50  # times as long as reading the weights, from which on reading them again hardly matters
_LOG = logging.getLogger("tnkit")
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False, kw_only=True)
class Model(Decoder, Origin):
    """A decoder-only language model: its blocks, its tokenizer, what identifies it, and how it is traced.

    Made by `load_model`.

    Attributes:
        revision: the commit of the Hub repository, where there is one.
        tokenizer: the transformers tokenizer.
        remote: False, or where it runs: True for NDIF, or a server's URL (`tnkit.models.remote.RemoteModel`).
        template: the text around every sentence, {sentence} in its place; None reads sentences as they are.
        packing: the attention implementation under which sentences behind each other in a row were shown to have the
            states that they have alone; None where they have not, or are not to be packed.

    >>> from tnkit.testing import tiny_model
    >>> tiny_model("llama").name, tiny_model("llama").dtype, tiny_model("llama").template
    ('LlamaForCausalLM', torch.float32, None)
    """

    revision: str | None
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    remote: bool | str = False
    template: str | None = None
    packing: str | None = field(default=None, repr=False)

    server: ClassVar[str | None] = None  # the address of what runs it, where that is not this process
    request_bytes: ClassVar[int | None] = None  # the most that may travel to it at a time

    @property
    def ablations(self) -> list[dict[str, Any]]:
        """What is ablated at the moment, through whichever wrapper of the module, for provenance."""
        return state_of(self.lm._module).ablations

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
    def packs(self) -> bool:
        """Whether its batches are packed: sentences behind each other in rows, without padding between them."""
        return self.packing is not None and self.packing == self.attention

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
        if self.layout:
            origin["layout"] = self.layout
        if self.template:
            origin["template"] = self.template
        return origin

    def versions(self) -> list[Any]:
        """What most edits of the weights change at once; `weights_hash` tells all (`tnkit.models.weights`)."""
        return [self.attention, *versions_of(self.module)]

    def edited_meanwhile(self) -> TnkitError:
        """The error for weights that changed while they were used."""
        return TnkitError(
            f"the weights or the attention implementation of {self.name} changed during this pass; leave them as they "
            "are until its last batch, and start the pass again"
        )

    def fingerprint(self, weights: str | None = None) -> str | None:
        """A digest of all that decides its numbers, for the cache; None, with a warning, where that cannot be told.

        It holds the bytes of weights and buffers; the configuration and the attention implementation; of each submodule
        its class, the code of its `forward`, its hooks, and its attributes that are numbers, words, functions or
        tensors; the settings of PyTorch's kernels; the versions of the loaded packages, and of tnkit's numbers; and the
        states of a short sentence, which show what these do not, such as a patched function.

        It cannot be told under a forward hook that is not tnkit's, where a module's own `forward` was replaced, and for
        a model that is spread over processes or offloaded, or whose server does not show its weights.

        Args:
            weights: the weights' hash, where it has just been computed.

        >>> from tnkit.testing import tiny_model
        >>> tiny_model("llama").fingerprint() == tiny_model("llama").fingerprint() != tiny_model("gpt2").fingerprint()
        True
        """
        if reason := self._hidden():
            _LOG.warning("%s, so nothing is read from the cache or kept", reason)
            return None
        return fingerprints.digest(weights or self.weights_hash, self.dtype, self.reading, self._beside_weights())

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
        read = [*self.blocks, *map(self._last_map, self.with_neurons(range(self.n_layers))), *norm]
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
                "neurons a layer": self.n_neurons if len(set(self.widths)) == 1 else self.widths,
                "hidden": self.hidden_size,
                "runs on": self.server or f"{self.device}, in {self.dtype}",
                "sites": self.reading,
            },
        )


@contextmanager
def hashed_once(model: Model) -> Iterator[None]:
    """A context in which the weights are read once for all that ask for their hash; hold `TURN` around it.

    At its end they are compared with what they were: by their versions, and where it lasted so long that it hardly
    matters, by reading them again.

    Raises:
        TnkitError: where they were changed.
    """
    began, versions, weights = time.monotonic(), model.versions(), model.weights_hash
    ready = time.monotonic()
    with running(model.lm._module, weights=weights):
        yield
    long = time.monotonic() - ready > _RARELY * (ready - began)
    if model.versions() != versions or (long and model.weights_hash != weights):
        raise model.edited_meanwhile()


def hashed_at_ends(
    model: Model, work: Iterator[_Result], *, due: Callable[[_Result], bool] | None = None
) -> Iterator[_Result]:
    """The results of work that asks for the weights' hash often: they are read before it, and before results of note.

    Args:
        model: that the work runs.
        work: each result is made while nobody else runs the model.
        due: whether the weights are to be read before a result is handed out; None reads them once all are.

    Raises:
        TnkitError: where they were changed, by whatever means.
    """
    weights = model.weights_hash
    while True:
        try:
            with TURN, running(model.lm._module, weights=weights):
                result = next(work)
        except StopIteration:
            if due is None and model.weights_hash != weights:
                raise model.edited_meanwhile() from None
            return
        if due is not None and due(result) and model.weights_hash != weights:
            raise model.edited_meanwhile()
        yield result
