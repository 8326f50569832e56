"""What states say of the vocabulary: logits and probabilities of tokens through the final norm and the unembedding.

Vocabulary(model).log_probabilities(states, ids)                # (state, token), of raw states of any layer
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit.captures.batches import tokenised
from tnkit.captures.passes import capture
from tnkit.captures.rows import Rows
from tnkit.errors import TnkitError
from tnkit.models.hooks import without_ablations
from tnkit.models.model import PROBE, Model
from tnkit.models.sessions import TURN

LOGITS = 1 << 24  # held at once: 64 MiB in float32


def logits_of(
    model: Model, head: Callable[[Tensor], Tensor], states: Float[Tensor, "*state hidden"]
) -> Float[Tensor, "*state token"]:
    """The logits of final states, with the scale and the cap that configurations name.

    >>> from tnkit.testing import tiny_model
    >>> model = tiny_model("gemma2")
    >>> logits_of(model, model.module.get_output_embeddings(), torch.zeros(2, 32)).shape
    torch.Size([2, 260])
    """
    config = model.module.config.get_text_config(decoder=True)
    logits = head(states)
    times, over = (getattr(config, name, 1) for name in ("logit_scale", "logits_scaling"))
    if times != 1 or over != 1:  # else two copies of the logits would be made for nothing
        logits = logits * times / over
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap


def head_of(model: Model) -> tuple[Any, Any]:
    """The final norm and the unembedding.

    Raises:
        TnkitError: for a remote model, or one whose final norm or unembedding does not fit the residual stream.
    """
    head: Any = model.module.get_output_embeddings()
    if model.final_norm_path is None or head is None or head.weight.shape[1] != model.hidden_size:
        raise TnkitError(
            f"{model.name} has no known final norm, or no unembedding of width {model.hidden_size}, both of which the "
            "logit lens needs; use another model"
        )
    return attrgetter(model.final_norm_path)(model.module), head


class Vocabulary:
    """A model's final norm and unembedding, proved on a short sentence: they give the logits of the module itself.

    Args:
        model: from `load_model`.

    Raises:
        TnkitError: for a model that does more after its last block, or as `head_of` does.

    >>> from tnkit.testing import tiny_model
    >>> found = Vocabulary(tiny_model()).log_probabilities(torch.ones(2, 32), torch.tensor([[0, 5], [0, 5]]))
    >>> found.shape, bool((found < 0).all())
    (torch.Size([2, 2]), True)
    """

    def __init__(self, model: Model) -> None:
        self.model, (self.norm, self.head) = model, head_of(model)
        model.check_ready()
        self.rows = max(1, LOGITS // len(self.head.weight))
        with TURN, torch.inference_mode(), without_ablations(model.module):
            inputs = Rows.of(model, tokenised(model, [PROBE])).inputs
            last = capture(model, [PROBE], keep=["post"], layers=[model.n_layers - 1], progress=False).post
            assert last is not None
            expected = model.module(**inputs, use_cache=False).logits[0, -1].float()
            found = self.logits(last[0])[0].to(expected.device)
        precision = 64 * torch.finfo(model.dtype).eps
        if not bool((found - expected).abs().max() <= precision * expected.abs().max()):
            raise TnkitError(
                f"the final norm and the unembedding of {model.name} do not give its logits: it does more after its "
                "last block than tnkit knows of; use another model"
            )

    def logits(self, states: Float[Tensor, "state hidden"]) -> Float[Tensor, "state token"]:
        """The logits of raw states."""
        weight = self.head.weight
        return logits_of(self.model, self.head, self.norm(states.to(weight.device, weight.dtype))).float()

    def log_probabilities(
        self, states: Float[Tensor, "state hidden"], ids: Int[Tensor, "state token"]
    ) -> Float[Tensor, "state token"]:
        """The log-probability of some tokens for each raw state, float32, on the CPU."""
        return self._by_rows(states, lambda logits, at: logits.log_softmax(-1).gather(1, ids[at].to(logits.device)))

    def likeliest(self, states: Float[Tensor, "state hidden"]) -> Int[Tensor, "state"]:
        """The likeliest token of each raw state, on the CPU."""
        return self._by_rows(states, lambda logits, _: logits.argmax(-1))

    def _by_rows(self, states: Tensor, read: Callable[[Tensor, slice], Tensor]) -> Any:
        with torch.inference_mode():
            slices = [slice(start, start + self.rows) for start in range(0, len(states), self.rows)]
            return torch.cat([read(self.logits(states[at]), at).cpu() for at in slices])
