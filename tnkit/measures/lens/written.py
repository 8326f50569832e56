"""What neurons write, read in the model's own vocabulary: a lens on value vectors.

promoted(model, (12, 345)).to_frame()                     # one neuron
promoted(model, type2[:20], k=5).to_frame()               # several
promoted(model, type1[:20], lens="jacobian").to_frame()   # what they become on the way to the last layer
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tnkit import storage
from tnkit.errors import TnkitError, check_model, one_of, whole_number
from tnkit.measures.lens.jacobian import Jacobians, jacobians
from tnkit.measures.vocabulary import head_of
from tnkit.models.model import Model, check_layers
from tnkit.provenance import check_made_with

LENSES = ("logit", "jacobian")
_NEURONS, _TOKENS = 32, 1 << 15  # at a time, so that logits and a float32 copy of the unembedding stay small


@dataclass(frozen=True, eq=False)
class PromotedTokens:
    """The vocabulary items that each neuron's value vector raises and lowers most, strongest first.

    Attributes:
        neurons: (layer, neuron) pairs, the first axis.
        promoted, suppressed: the items as text.
        promoted_ids, suppressed_ids: their token ids, (neuron, token).
        promoted_logits, suppressed_logits: the change of the logit for an activation of 1 with the norms' denominators
            set to 1, (neuron, token), float32; positive is raised. Compare them only within a neuron: the denominators
            differ between neurons. A neuron with a negative activation raises the items named suppressed here.
        provenance: the model.
    """

    neurons: tuple[tuple[int, int], ...]
    promoted: tuple[tuple[str, ...], ...]
    suppressed: tuple[tuple[str, ...], ...]
    promoted_ids: Int[Tensor, "neuron token"]
    suppressed_ids: Int[Tensor, "neuron token"]
    promoted_logits: Float[Tensor, "neuron token"]
    suppressed_logits: Float[Tensor, "neuron token"]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per rank, indexed (layer, neuron, rank)."""
        ranks = range(1, self.promoted_ids.shape[1] + 1)
        index = [(*neuron, rank) for neuron in self.neurons for rank in ranks]
        columns = {
            "promoted": [text for texts in self.promoted for text in texts],
            "promoted logit": self.promoted_logits.reshape(-1).numpy(),
            "suppressed": [text for texts in self.suppressed for text in texts],
            "suppressed logit": self.suppressed_logits.reshape(-1).numpy(),
        }
        return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(index, names=["layer", "neuron", "rank"]))

    def _repr_html_(self) -> str:
        rows = list(zip(self.neurons, self.promoted, self.suppressed, strict=True))[:20]
        shown = {str(neuron): f"+ {' · '.join(up[:5])}   − {' · '.join(down[:5])}" for neuron, up, down in rows}
        return storage.html_card(f"Promoted and suppressed by {len(self.neurons)} neurons", shown)


def promoted(
    model: Model,
    neuron: tuple[int, int] | Sequence[tuple[int, int]],
    *,
    k: SupportsIndex = 10,
    lens: str | Jacobians = "logit",
) -> PromotedTokens:
    """The vocabulary items that value vectors promote and suppress (Geva et al., EMNLP 2022).

    Logits of neuron i: W_U (g ⊙ J (gain ⊙ v_i)), its value vector through the branch's output gain, the final norm's
    learned gain g and the unembedding W_U; J is the identity for the logit lens, and what the layers after the neuron's
    do on average for the Jacobian lens. The norms' denominators are set to 1; a LayerNorm also subtracts the mean
    over coordinates. Biases, which are the same for all neurons, and any scale or cap of the logits after the
    unembedding are omitted: neither changes the order.

    Args:
        model: from `load_model`.
        neuron: (layer, neuron), or several, such as a `NeuronSet`.
        k: the number of items at each end.
        lens: "logit"; "jacobian", with `tn.lens.jacobians(model)`; or averaged Jacobians.

    Returns:
        `PromotedTokens`: float32, on the CPU.

    Raises:
        TnkitError: for a neuron that the model does not have, a `NeuronSet` of another model, more items than the
            vocabulary has, or a model whose final norm or unembedding does not fit the residual stream.

    >>> from tnkit.testing import tiny_model
    >>> tokens = promoted(tiny_model(), [(0, 1), (3, 5)], k=4)
    >>> tokens.promoted_ids.shape, bool((tokens.promoted_logits > tokens.suppressed_logits).all())
    (torch.Size([2, 4]), True)
    """
    check_model(model)
    pairs = _pairs(model, neuron)
    check_made_with(model, getattr(neuron, "provenance", {}), "these neurons")
    norm, head = head_of(model)
    fitted = _fitted(model, lens)
    size = min(len(head.weight), len(model.tokenizer))
    k = whole_number("k", k, at_least=1)
    if k > size:
        raise TnkitError(f"k={k} is more than the {size} items of the vocabulary; give 1 to {size}")
    highest, lowest = [], []
    with torch.no_grad():
        device = head.weight.device
        directions = frozen_norm(norm, _written(model, pairs, fitted).to(device))
        for rows in directions.split(_NEURONS):
            logits = torch.cat([rows @ block.float().T for block in head.weight[:size].split(_TOKENS)], dim=1)
            highest.append(logits.topk(k, dim=1))
            lowest.append(logits.topk(k, dim=1, largest=False))
    up, down = (torch.cat([block.indices for block in blocks]).cpu() for blocks in (highest, lowest))
    return PromotedTokens(
        neurons=pairs,
        promoted=_texts(model, up),
        suppressed=_texts(model, down),
        promoted_ids=up,
        suppressed_ids=down,
        promoted_logits=torch.cat([block.values for block in highest]).cpu(),
        suppressed_logits=torch.cat([block.values for block in lowest]).cpu(),
        provenance={"model": model.provenance, "lens": lens if isinstance(lens, str) else "jacobian"}
        | {"versions": storage.versions()},
    )


def _fitted(model: Model, lens: str | Jacobians) -> Jacobians | None:
    if isinstance(lens, Jacobians):
        lens.check(model)
        return lens
    one_of("lens", lens, LENSES)
    return jacobians(model) if lens == "jacobian" else None


def _written(
    model: Model, pairs: Sequence[tuple[int, int]], fitted: Jacobians | None
) -> Float[Tensor, "neuron hidden"]:
    """The value vectors through the branch's output gain, and through the layers after it; on the CPU."""
    rows = torch.empty(len(pairs), model.hidden_size)
    for layer in dict.fromkeys(layer for layer, _ in pairs):
        places = [place for place, pair in enumerate(pairs) if pair[0] == layer]
        vectors = model.vectors_of(layer, [pairs[place][1] for place in places]).float() * model.output_gain(layer)
        rows[places] = (vectors if fitted is None else fitted.carried(layer, vectors)).cpu()
    return rows


def frozen_norm(norm: nn.Module, vectors: Float[Tensor, "neuron hidden"]) -> Float[Tensor, "neuron hidden"]:
    """The effect of additions to a norm's input on its output with the denominator set to 1: no bias, float32.

    Gain and centring are measured on vectors with a root mean square of 1, whatever the norm's class: alternating ±1
    have mean 0, and a norm that centres maps a constant vector to zero.

    >>> norm = nn.LayerNorm(4)
    >>> frozen_norm(norm, torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
    tensor([[ 2.0000,  0.0000, -1.0000, -1.0000]])
    """
    dtype = next((parameter.dtype for parameter in norm.parameters()), torch.float32)
    signs = torch.ones(vectors.shape[1], dtype=dtype, device=vectors.device)
    signs[1::2] = -1

    def odd_part(vector: Tensor) -> Tensor:
        return ((norm(vector) - norm(-vector)) / 2).float()

    with torch.no_grad():
        gain = odd_part(signs) * signs
        if bool(odd_part(torch.ones_like(signs)).abs().max() < 0.01 * gain.abs().max()):
            vectors = vectors - vectors.mean(dim=1, keepdim=True)
        return vectors.float() * gain.to(vectors.device)


def _pairs(model: Model, neuron: tuple[int, int] | Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    if not len(neuron):
        raise TnkitError("no neurons were given; give one as (layer, neuron), or several")
    neurons: Sequence[Any] = neuron if isinstance(neuron[0], Sequence) else [neuron]
    pairs = tuple((int(layer), int(number)) for layer, number in neurons)
    check_layers(model, [layer for layer, _ in pairs])
    outside = next((pair for pair in pairs if not 0 <= pair[1] < model.widths[pair[0]]), None)
    if outside:
        raise TnkitError(
            f"neuron {outside} is not in {model.name}, whose layer {outside[0]} has neurons 0 to "
            f"{model.widths[outside[0]] - 1}"
        )
    return pairs


def _texts(model: Model, ids: Int[Tensor, "neuron token"]) -> tuple[tuple[str, ...], ...]:
    """Tokens as text; those that are incomplete characters as the tokenizer names them."""
    tokenizer = model.tokenizer
    texts = {}
    for token in ids.unique().tolist():
        text = str(tokenizer.decode([token]))
        texts[token] = text if text and "�" not in text else str(tokenizer.convert_ids_to_tokens(token))
    return tuple(tuple(texts[token] for token in row) for row in ids.tolist())
