"""How often each neuron's gate is positive over all tokens of a text: the counts of the published LAPE."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from tnkit.captures.batches import tokenised
from tnkit.captures.rows import Rows, batches_of
from tnkit.errors import TnkitError, whole_number
from tnkit.interventions.scopes import decoder_of
from tnkit.models.hooks import check_repeatable
from tnkit.models.model import Model
from tnkit.models.reading import has
from tnkit.models.sessions import TURN, running

_GATES = ("gate_proj", "gate_up_proj", "w1")  # the first columns of their output enter the activation function
_UNGATED = ("c_fc", "fc1", "fc_in", "dense_h_to_4h", "up_proj")  # first linear maps of MLPs without a gate


def positive_gates(
    model: Model, sentences: Sequence[str], *, batch_tokens: SupportsIndex = 1024, progress: bool = True
) -> Float64[np.ndarray, "layer neuron"]:
    """The share of a text's tokens at which each neuron's gate is positive.

    In a gated MLP the gate is the gate projection, whose sign is that of its activation for SiLU, GELU and ReLU; in an
    MLP without a gate it is the activation itself. Padding, special tokens and the tokens of a template do not count.

    Args:
        model: from `load_model`.
        sentences: any sequence of str.
        batch_tokens: the most tokens in a batch, padding included.
        progress: show a bar.

    Returns:
        (layer, neuron), float64; NaN for neurons that a layer lacks.

    Raises:
        TnkitError: for sentences that `capture` refuses, or an MLP whose gate has no known name.

    >>> from tnkit.testing import tiny_model
    >>> shares = positive_gates(tiny_model(), ["Hi!"], progress=False)
    >>> shares.shape, set((3 * shares).round(9).ravel().tolist())
    ((4, 48), {0.0, 1.0, 2.0, 3.0})
    """
    tokens = tokenised(model, sentences)
    model.check_unchanged()
    check_repeatable(model.module)
    counts = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.int64)
    there = torch.arange(model.n_neurons) < torch.tensor(model.widths)[:, None]
    counted, total = torch.zeros(0), 0  # the places of the pass under way that count

    def count(layer: int, gates: Tensor) -> None:
        rows = gates.reshape(-1, gates.shape[-1])[counted.to(gates.device)]
        width = model.widths[layer]
        counts[layer, :width] += (rows[:, :width] > 0).sum(dim=0).cpu()

    with (
        TURN,
        torch.no_grad(),
        ExitStack() as hooks,
        tqdm(total=len(tokens), unit=" sentences", desc="gates", disable=not progress, leave=False) as bar,
    ):
        for layer in model.with_neurons(range(model.n_layers)):
            hooks.callback(_hook(model, layer, partial(count, layer)))
        for index in batches_of(model, tokens.lengths(), whole_number("batch_tokens", batch_tokens, at_least=1)):
            rows = Rows.of(model, [tokens[number] for number in index])
            counted = rows.places[rows.weights(model, tokens, index) > 0]
            total += len(counted)
            with running(model.module, **rows.known(tokens, index)):
                decoder_of(model)(**rows.inputs, use_cache=False)
            bar.update(len(index))
    return np.where(there, counts.numpy() / total, np.nan)


def _hook(model: Model, layer: int, count: Callable[[Tensor], None]) -> Callable[[], None]:
    """Let a layer's gates be counted in each pass; the function that ends it."""
    path = model.map_path(layer)
    mlp = model.module.get_submodule(path.rpartition(".")[0])

    for name in _GATES:
        if has(mlp, name):
            return mlp.get_submodule(name).register_forward_hook(lambda _, __, output: count(output)).remove
    if any(has(mlp, name) for name in _UNGATED):
        last_map = model.module.get_submodule(path)
        return last_map.register_forward_pre_hook(lambda _, inputs: count(inputs[0])).remove
    children = ", ".join(name for name, _ in mlp.named_children())
    raise TnkitError(
        f"the MLP of {model.name} has {children}, but no gate with a known name ({', '.join(_GATES)}); use lape with "
        "captured activations"
    )
