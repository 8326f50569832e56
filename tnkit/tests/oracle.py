"""The definition written out: every m + c_i as a vector of its own, in float64, read with plain PyTorch hooks."""

from operator import attrgetter

import torch
from torch import Tensor


def assert_near(found: Tensor, expected: Tensor, part: float = 1e-5) -> None:
    """No value is off by more than that part of the largest: rounding errors have the size of what was added up.

    Other kernels, batches and numbers of threads move float32 states by up to a millionth of the largest.
    """
    difference, largest = (found - expected).abs().max(), expected.abs().max()
    assert difference <= part * largest, f"off by {difference:.2g} where the largest value is {largest:.3g}"


def hooked(module, blocks_path: str, sites, ids: Tensor) -> dict[str, list[Tensor]]:
    """Pre, mid, post, activations and the branch's own norm, of one unpadded sentence, every token, by layer."""
    blocks = attrgetter(blocks_path)(module)
    names = ("pre", "mid", "post", "activations", "before", "after")
    found: dict[str, list[Tensor]] = {name: [torch.zeros(ids.shape[1], 0).double()] * len(blocks) for name in names}
    handles = []
    first = lambda value: value[0] if isinstance(value, tuple) else value  # noqa: E731

    def keep(name, layer, read):
        def hook(_, args, kwargs, output):
            value = read(args or tuple(kwargs.values()), output)
            found[name][layer] = value.detach().double().reshape(ids.shape[1], -1)

        return hook

    def add(part, name, read, layer):
        handles.append(part.register_forward_hook(keep(name, layer, read), with_kwargs=True))

    for layer, (block, site) in enumerate(zip(blocks, sites, strict=True)):
        add(block, "pre", lambda args, _: args[0], layer)
        add(block, "post", lambda _, output: first(output), layer)
        if site is None:
            add(block, "mid", lambda _, output: first(output), layer)
            continue
        add(attrgetter(site.last_map)(block), "activations", lambda args, _: args[0], layer)
        if site.mid:
            add(attrgetter(site.mid)(block), "mid", lambda args, _: args[0], layer)
        else:
            add(attrgetter(site.attention)(block), "mid", lambda _, output: first(output), layer)
        if site.norm:
            add(attrgetter(site.norm)(block), "before", lambda args, _: args[0], layer)
            add(attrgetter(site.norm)(block), "after", lambda _, output: output, layer)
    with torch.no_grad():
        module(input_ids=ids)
    for handle in handles:
        handle.remove()
    for layer, site in enumerate(sites):
        if site and not site.mid:
            found["mid"][layer] = found["pre"][layer] + found["mid"][layer]
    return found


def value_vectors(last_map) -> Tensor:
    """Columns of the last linear map, (neuron, hidden), found by what the map does to unit vectors."""
    weight = last_map.weight
    width = weight.shape[0] if type(last_map).__name__ == "Conv1D" else weight.shape[1]
    with torch.no_grad():
        return (last_map(torch.eye(width)) - last_map(torch.zeros(1, width))).double()


def contributions(module, blocks_path: str, sites, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The last token's mid (hidden,) and every neuron's contribution (neuron, hidden), by layer, float64."""
    found, mids, added = hooked(module, blocks_path, sites, ids), [], []
    for layer, (block, site) in enumerate(zip(attrgetter(blocks_path)(module), sites, strict=True)):
        mids.append(found["mid"][layer][-1])
        if site is None:
            added.append(torch.zeros(0, found["mid"][layer].shape[1]).double())
            continue
        vectors = value_vectors(attrgetter(site.last_map)(block))
        written = found["activations"][layer][-1][:, None] * vectors
        if site.norm:
            before, after = found["before"][layer][-1], found["after"][layer][-1]
            written = written * (after / before)  # the frozen norm, coordinate by coordinate
        added.append(written * site.multiplier)
    return mids, added


def scores(mids: list[Tensor], added: list[Tensor], centroids: Tensor, distance: str) -> Tensor:
    """Scores of one sentence (layer, neuron), float64, from the definition."""
    rows = []
    for mid, moves, centroid in zip(mids, added, centroids.double(), strict=True):
        moved = mid + moves
        if distance == "cosine":
            near = lambda states: torch.nn.functional.cosine_similarity(states, centroid[None], dim=-1, eps=0)  # noqa: E731, B023
            rows.append(near(moved).nan_to_num(0) - near(mid[None]).nan_to_num(0))
        else:
            rows.append((mid - centroid).norm() - (moved - centroid).norm(dim=-1))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)


class switched_off:
    """Neurons set to 0 by plain hooks at some places of every pass of one row; None is all of them.

    Or changed to what `change` makes of a layer, the neurons in it, and their activations.
    """

    def __init__(self, model, neurons, places=None, change=lambda _, __, old: 0 * old):
        self.model, self.neurons, self.places, self.change = model, neurons, places, change

    def __enter__(self):
        blocks, self.handles = attrgetter(self.model.blocks_path)(self.model.module), []
        for layer in {layer for layer, _ in self.neurons}:
            columns = [neuron for at, neuron in self.neurons if at == layer]

            def hook(_, args, layer=layer, columns=columns):
                flat = args[0].clone().reshape(-1, args[0].shape[-1])
                for place in range(len(flat)) if self.places is None else self.places:
                    flat[place, columns] = self.change(layer, columns, flat[place, columns])
                return (flat.reshape(args[0].shape),)

            last_map = attrgetter(self.model.sites[layer].last_map)(blocks[layer])
            self.handles.append(last_map.register_forward_pre_hook(hook))

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
