"""The definition of a score by another route: neurons are removed from the weights, and what leaves a block is read.

No code of tnkit reads the model here. A neuron is a column of the last linear map of a block's MLP, or of one expert.
With u what these maps make together and B(u) what the block adds for it, three passes give a neuron's contribution
c: B(u), B(u - av) without the neuron, and B(av) with it alone. B is linear, or linear but for a factor that a norm of
the branch takes from its whole input; so B(u) = r B(u - av) + k B(av), and c = k B(av) with that norm held fixed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Names of an MLP's last linear map, and of parts of a block that end in a linear map but are no MLP.
LAST = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "proj", "w2", "output_linear", "Wo", "w_out")
LAST += ("dense", "dense_2", "proj_down", "2")
OTHER = "norm attn attention mamba conv ssm recurrent temporal indexer adapter per_layer router".split()
# A block that goes on after the MLP was added: what enters this module is the sum.
AFTER = ("per_layer_input_gate",)


class _DoneError(Exception):
    """Ends a pass once what it is run for is read."""


class Oracle:
    """A model whose blocks are found by watching it run, and whose neurons are rows of views of its weights.

    Attributes:
        blocks: the decoder blocks.
        tables: for each block, its value vectors as views (neuron, hidden) of the weights, those of experts first.
        biases: for each block, what its last maps add whatever the neurons are.
    """

    def __init__(self, module: PreTrainedModel, ids: Tensor, depth: int) -> None:
        self.module = module
        self.blocks = _blocks(module, ids, depth)
        self.watched = [
            next((getattr(block, name) for name in AFTER if hasattr(block, name)), None) for block in self.blocks
        ]
        hidden = self.states(ids)[0].shape[-1]
        pairs = [_tables(block, hidden) for block in self.blocks]
        self.tables = [[table for table, _ in found] for found in pairs]
        self.biases = [[bias for _, bias in found if bias is not None] for found in pairs]

    def states(self, ids: Tensor, deepest: int | None = None) -> list[Tensor]:
        """What leaves each block, (token, hidden), float64, up to the deepest one asked for."""
        read: dict[int, Tensor] = {}

        def keep(layer: int, value: Any) -> None:
            state = value[0] if isinstance(value, tuple) else value
            read[layer] = state.detach().double().reshape(ids.shape[1], -1).clone()
            if layer == deepest:
                raise _DoneError

        with ExitStack() as stack, torch.no_grad():
            for layer, (block, after) in enumerate(zip(self.blocks, self.watched, strict=True)):
                if after is None:
                    hook = block.register_forward_hook(lambda _, __, out, layer=layer: keep(layer, out))
                else:
                    hook = after.register_forward_pre_hook(lambda _, args, layer=layer: keep(layer, args))
                stack.callback(hook.remove)
            with suppress(_DoneError):
                self.module(input_ids=ids, use_cache=False)
        return list(read.values())

    def logits(self, ids: Tensor) -> Tensor:
        """What the model returns first."""
        with torch.no_grad():
            return self.module(input_ids=ids, use_cache=False)[0].double()

    def width(self, layer: int) -> int:
        """The number of neurons of a block."""
        return sum(len(table) for table in self.tables[layer])

    def row(self, layer: int, neuron: int) -> Tensor:
        """The value vector of a neuron, as a view of the weights."""
        for table in self.tables[layer]:
            if neuron < len(table):
                return table[neuron]
            neuron -= len(table)
        raise IndexError(neuron)

    @contextmanager
    def without(self, *neurons: tuple[int, int]) -> Iterator[None]:
        """A context in which these neurons are removed."""
        rows = [self.row(*neuron) for neuron in neurons]
        with _kept(rows):
            for row in rows:
                row.zero_()
            yield

    @contextmanager
    def only(self, layer: int, neuron: int | None) -> Iterator[None]:
        """A context in which all other neurons of a block are removed, and its biases."""
        values = [*self.tables[layer], *self.biases[layer]]
        with _kept(values):
            kept = None if neuron is None else self.row(layer, neuron).clone()
            for value in values:
                value.zero_()
            if kept is not None:
                self.row(layer, neuron).copy_(kept)
            yield

    def contribution(self, layer: int, neuron: int, ids: Tensor, mid: Tensor, post: Tensor) -> Tensor:
        """What a neuron writes at the last token, (hidden,), with the branch's norm held fixed."""
        with self.only(layer, neuron):
            alone = self.states(ids, layer)[layer][-1] - mid
        if alone.norm() <= 1e-12 * mid.norm():  # its expert is not run
            return torch.zeros_like(mid)
        with self.without((layer, neuron)):
            rest = self.states(ids, layer)[layer][-1] - mid
        factors = torch.linalg.lstsq(torch.stack([rest, alone], dim=1), (post - mid)[:, None]).solution[:, 0]
        missed = post - mid - factors[0] * rest - factors[1] * alone
        if missed.norm() > 1e-4 * (post - mid).norm():
            raise ArithmeticError(
                f"layer {layer}: the branch is not linear in its neurons ({float(missed.norm()):.2g})"
            )
        return factors[1] * alone


def scores(
    oracle: Oracle, sentences: list[Tensor], chosen: dict[int, list[int]]
) -> tuple[dict[tuple[int, int], float], list[Tensor]]:
    """Scores of some neurons towards the mean of the sentences' own states, and these states, (sentence, hidden).

    The score is the mean over sentences of cos(m + c, C) - cos(m, C), in float64.
    """
    states = [oracle.states(ids) for ids in sentences]
    posts = [torch.stack([state[layer][-1] for state in states]) for layer in range(len(oracle.blocks))]
    near = lambda state, centroid: float(torch.nn.functional.cosine_similarity(state, centroid, dim=0, eps=0))  # noqa: E731
    found: dict[tuple[int, int], float] = {}
    for layer, neurons in chosen.items():
        centroid = posts[layer].mean(dim=0)
        for number, ids in enumerate(sentences):
            with oracle.only(layer, None):
                mid = oracle.states(ids, layer)[layer][-1]
            for neuron in neurons:
                wrote = oracle.contribution(layer, neuron, ids, mid, posts[layer][number])
                moved = near(mid + wrote, centroid) - near(mid, centroid)
                found[layer, neuron] = found.get((layer, neuron), 0.0) + moved / len(sentences)
    return found, posts


def look_ahead(oracle: Oracle, ids: Tensor) -> float:
    """How far the states of a sentence change with a token that follows it, relative to their size."""
    longer = torch.cat([ids, ids[:, 1:2]], dim=1)
    pairs = zip(oracle.states(ids), oracle.states(longer), strict=True)
    return max(float((more[:-1] - state).norm() / state.norm()) for state, more in pairs)


@contextmanager
def _kept(values: list[Tensor]) -> Iterator[None]:
    """A context after which the tensors hold again what they held."""
    before = [value.clone() for value in values]
    with torch.no_grad():
        try:
            yield
        finally:
            for value, old in zip(values, before, strict=True):
                value.copy_(old)


def _blocks(module: PreTrainedModel, ids: Tensor, depth: int) -> list[nn.Module]:
    """The outermost list of that many modules that all run, one after the other, when the model reads text."""
    ran: list[nn.Module] = []
    with ExitStack() as stack, torch.no_grad():
        for child in module.modules():
            stack.callback(child.register_forward_hook(lambda child, *_: ran.append(child)).remove)
        module(input_ids=ids, use_cache=False)
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == depth and all(part in ran for part in child):
            return list(child)
    raise LookupError(f"no list of {depth} modules runs")


def _tables(block: nn.Module, hidden: int) -> list[tuple[Tensor, Tensor | None]]:
    """The value vectors of a block, one view (neuron, hidden) for each last map or expert, and its bias."""
    experts: list[tuple[Tensor, Tensor | None]] = []
    dense: list[tuple[Tensor, Tensor | None]] = []
    for path, child in block.named_modules():
        parts = path.split(".")
        if any(word in part for part in parts for word in OTHER):
            continue
        for name in ("down_proj", "w2", "weight"):
            table = child._parameters.get(name)
            if table is not None and table.ndim == 3 and (name != "weight" or parts[-1] in LAST):
                is_by_row = getattr(child, "is_transposed", table.shape[2] == hidden != table.shape[1])
                rows = table.data if is_by_row else table.data.transpose(1, 2)
                bias = child._parameters.get(f"{name}_bias")
                experts += [(rows[one], None if bias is None else bias.data[one]) for one in range(len(rows))]
        weight = child._parameters.get("weight")
        if weight is not None and weight.ndim == 2 and parts[-1] in LAST:
            rows = weight.data if type(child).__name__ == "Conv1D" else weight.data.T
            if rows.shape[1] == hidden:
                bias = child._parameters.get("bias")
                dense.append((rows, None if bias is None else bias.data))
    return [*experts, *dense]
