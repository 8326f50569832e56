"""What a change of an early state does to the final one, on average: the averaged-Jacobian lens.

fitted = tn.lens.jacobians(model)                                     # minutes once, then from the cache
tn.lens.promoted(model, type1[:20], lens=fitted).to_frame()           # what Type-1 neurons promote by way of all layers
tn.lens.latent_language(model, "ja", lens=fitted)                     # states of early layers, read
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import storage
from tnkit.captures.passes import plan
from tnkit.captures.token_ids import Texts
from tnkit.errors import TnkitError, check_model, whole_number
from tnkit.interventions.last_token import LastToken
from tnkit.interventions.scopes import decoder_of
from tnkit.models.hooks import check_repeatable
from tnkit.models.model import Model
from tnkit.models.sessions import TURN, running
from tnkit.models.trace import first
from tnkit.provenance import check_made_with, stated

_ROWS = 128  # cotangents at a time
_SHARD = 8  # sentences of a file in the cache
_LOG = logging.getLogger("tnkit")
DEFAULT = 40  # sentences


@dataclass(frozen=True, eq=False)
class Jacobians:
    """The mean over sentences of ∂ final state / ∂ state of each layer, both at the token that is read.

    Attributes:
        matrices: (layer, final coordinate, the layer's coordinate), float32; the identity at the last layer.
        count: the number of sentences.
        provenance: model, sentences, position.
    """

    matrices: Float[Tensor, "layer hidden hidden"]
    count: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def carried(self, layer: int, vectors: Float[Tensor, "vector hidden"]) -> Float[Tensor, "vector hidden"]:
        """What additions to a layer's post become in the final state, to first order, on average: J v."""
        return vectors.float() @ self.matrices[layer].T.to(vectors.device)

    def to_frame(self) -> pd.DataFrame:
        """By layer: the norm of J over that of the identity, and the cosine of the two as long vectors."""
        size = self.matrices.shape[-1]
        norms = self.matrices.flatten(1).norm(dim=1)
        traces = self.matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
        columns = {"norm": (norms / size**0.5).numpy(), "cosine with identity": (traces / (norms * size**0.5)).numpy()}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(norms), name="layer"))

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        about = {"count": self.count, "provenance": self.provenance}
        return storage.save_tensors(path, "jacobians", {"matrices": self.matrices}, about)

    @classmethod
    def load(cls, path: str | Path) -> "Jacobians":
        """Read what `save` wrote.

        Raises:
            TnkitError: for a missing, damaged or foreign file.
        """
        tensors, about = storage.load_tensors(path, "jacobians")
        if tensors.keys() != {"matrices"} or not isinstance(about.get("count"), int):
            raise TnkitError(f"{path} does not hold averaged Jacobians; fit them again")
        storage.finite(path, "matrices", tensors["matrices"], (None, None, None))
        return cls(tensors["matrices"], about["count"], stated(path, about))

    def check(self, model: Model) -> None:
        """Refuse Jacobians of another model.

        Raises:
            TnkitError: naming both.
        """
        check_made_with(model, self.provenance, "these Jacobians", states=True)
        shape = (model.n_layers, model.hidden_size, model.hidden_size)
        if tuple(self.matrices.shape) != shape:
            raise TnkitError(f"these Jacobians are {tuple(self.matrices.shape)}, and {model.name} has {shape}")

    def _repr_html_(self) -> str:
        return storage.html_card("Averaged Jacobians", {"sentences": self.count, "layers": len(self.matrices)})


def jacobians(
    model: Model,
    sentences: Texts | None = None,
    *,
    position: str = "last",
    cache: bool = True,
    rows: SupportsIndex = _ROWS,
    progress: bool = True,
) -> Jacobians:
    """Average ∂ final state / ∂ state of each layer over sentences (Gurnee et al., 2026, on all tokens of web text).

    J_l = mean_n ∂ post_last(n) / ∂ post_l(n), both at the token that is read, through all layers between; what comes
    before that token is held fixed, which is exact: it does not depend on it. The final state is the last layer's, raw.
    A sentence costs as many passes of one token, forward and backward, as the state has coordinates. Ctrl-C ends it:
    the result is of the sentences until then, and a warning says how many.

    Args:
        model: from `load_model`; it runs here.
        sentences: any (default: the first eight of each language of the packaged training sentences).
        position: "last", "last_word" or "end", as in `capture`.
        cache: keep finished parts in the user's cache folder, and go on from there.
        rows: how many coordinates run at a time; fewer take less memory.
        progress: show a bar.

    Raises:
        TnkitError: for a remote model, and as `capture` does.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> found = jacobians(tiny_model(), SENTENCES[:2], cache=False, progress=False)
    >>> found.matrices.shape, torch.equal(found.matrices[-1], torch.eye(32))
    (torch.Size([4, 32, 32]), True)
    """
    check_model(model)
    check_repeatable(model.module)
    rows = whole_number("rows", rows, at_least=1)
    texts = packaged() if sentences is None else sentences
    prefix = LastToken(model, texts, position=position, keep=["post"], batch_tokens=1, progress=False)
    planned = plan(model, texts, position=position, keep=["post"])
    key = model.fingerprint(planned.provenance["model"]["weights"]) if cache else None
    kept = planned.shards(key, what="averaged Jacobians", cached=prefix.cached, part=_SHARD) if key else None
    size = (model.n_layers, model.hidden_size, model.hidden_size)
    total, count, part, passes = torch.zeros(size), 0, torch.zeros(size), prefix.passes()
    try:
        with tqdm(total=len(texts), unit=" sentences", desc="Jacobians", disable=not progress, leave=False) as bar:
            for start in range(0, len(texts), _SHARD):
                several = min(_SHARD, len(texts) - start)
                held = kept and kept.read(f"{start:05}", most=4 * total.numel())
                part = held["sum"] if held else torch.zeros(size)
                for _ in range(several):
                    given = next(passes)
                    if not held:
                        part += _of_sentence(model, given, rows)
                    count += 1
                    bar.update()
                if kept and not held:
                    planned.check_weights()
                    kept.write(f"{start:05}", {"sum": part})
                total, part = total + part, torch.zeros(size)
    except KeyboardInterrupt:
        if not count:
            raise
        total += part
        _LOG.warning("interrupted: the Jacobians are of %d of %d sentences", count, len(texts))
    matrices = total / count
    matrices[-1] = torch.eye(model.hidden_size)
    return Jacobians(matrices, count, planned.provenance)


def packaged() -> list[str]:
    """The first eight packaged training sentences of each language."""
    from tnkit.text.corpus import load_corpus

    train = load_corpus("everyday")["train"]
    return [str(text) for language in train for text in list(train[language])[: DEFAULT // len(train)]]


def _of_sentence(model: Model, given: Any, rows: int) -> Float[Tensor, "layer hidden hidden"]:
    """The Jacobians of one sentence, a few rows at a time: copies of it run side by side, each with a cotangent."""
    _, inputs, prompt, last = given
    size, found = model.hidden_size, []
    for start in range(0, size, rows):
        count = min(rows, size - start)
        states: dict[int, Tensor] = {}
        with TURN, torch.enable_grad(), running(model.module, prompt=prompt), ExitStack() as stack:
            for layer, block in enumerate(model.blocks):
                stack.callback(block.register_forward_hook(_keeping(states, layer)).remove)
            decoder_of(model)(**_copies(inputs, count))
        final = states[model.n_layers - 1][:, int(last[0])]
        units = torch.zeros(count, size, dtype=final.dtype, device=final.device)
        units[torch.arange(count), torch.arange(start, start + count)] = 1
        earlier = [states[layer] for layer in range(model.n_layers)]
        gradients = torch.autograd.grad(final, earlier, units)
        found.append(torch.stack([gradient[:, int(last[0])].float().cpu() for gradient in gradients]))
    return torch.cat(found, dim=1)


def _keeping(states: dict[int, Tensor], layer: int) -> Any:
    def keep(_: torch.nn.Module, __: Any, output: Any) -> Any:
        state = first(output)
        if not state.requires_grad:
            state = state.detach().requires_grad_()
        states[layer] = state
        return (state, *output[1:]) if isinstance(output, tuple) else state

    return keep


def _copies(inputs: dict[str, Any], count: int) -> dict[str, Any]:
    """The inputs of one sentence, so many times."""
    several: dict[str, Any] = {}
    for name, value in inputs.items():
        several[name] = value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else value
    if (cache := inputs.get("past_key_values")) is not None:
        several["past_key_values"] = LastToken.repeated(cache, count)
    return several
