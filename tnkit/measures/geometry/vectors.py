"""The captured vectors that measures of spaces start from: checked, centred, of unit length, in float64."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.provenance import check_alike
from tnkit.text.rows import check_parallel

STATES = ("pre", "mid", "post", "activations")
TIE = 1e-12  # cosines this close are equal: rounding leaves those of parallel vectors about 1e-16 apart


def states(captured: Activations, site: str) -> Float[Tensor, "layer sentence width"]:
    """The captured vectors of a site, (layer, sentence, hidden | neuron).

    Raises:
        TnkitError: for an unknown site, one that was not kept, no sentences, or values that are not finite.
    """
    if site not in STATES:
        raise TnkitError(f"site={site!r} must be one of {', '.join(STATES)}")
    vectors = getattr(captured.require(site), site)
    if site == "activations" and captured.experts is not None:  # by neuron: slots hold another expert in each sentence
        vectors = torch.stack([captured.of_layer(layer) for layer in captured.layers])
    if not len(captured):
        raise TnkitError("this capture holds no sentences; capture some")
    whole = vectors.isfinite().flatten(1).all(dim=1)
    if not bool(whole.all()):
        layer = captured.layers[int(whole.int().argmin())]
        raise TnkitError(f"{site} of layer {layer} holds NaN or Inf; capture again, in bfloat16 or float32")
    return vectors


def check_together(captures: Mapping[str, Activations], *, layers: bool = True) -> None:
    """Refuse captures of different token positions, suffixes, last layers or (with `layers`) layers.

    Captures of different models or under different ablations may be compared.
    """
    options = ("position", "suffix", "last_layer", *(["layers"] if layers else []))
    check_alike({name: {**capture.provenance, "layers": capture.layers} for name, capture in captures.items()}, options)


def directions(
    left: Activations, right: Activations, site: str, *, centred: bool, at_least: int = 2, one_width: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Unit vectors of parallel captures, float64, a layer at a time, once they are known to be compatible.

    Raises:
        TnkitError: for captures of other rows, layers, positions or (with one_width) models.
    """
    a, b = states(left, site), states(right, site)
    sides = {"the first capture": left, "the second": right}
    check_together(sides)
    check_parallel(
        {side: {**capture.provenance.get("sentences", {}), "n": len(capture)} for side, capture in sides.items()}
    )
    if not torch.equal(left.index, right.index):
        raise TnkitError(
            "the captures hold sentences in different orders; use capture, or batches of the same sentences"
        )
    if one_width:
        common_width([a, b])
    if len(left) < at_least:
        raise TnkitError(f"{len(left)} sentences are too few; capture at least {at_least}")
    prepare = centre if centred else torch.Tensor.clone
    return ((unit(prepare(x.double())), unit(prepare(y.double()))) for x, y in zip(a, b, strict=True))


def unit(points: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Vectors divided by their norm; a zero vector stays zero, so that its cosine with any other is 0."""
    norm = points.norm(dim=-1, keepdim=True)
    return points / torch.where(norm > 0, norm, 1)


def centre(points: Float[Tensor, "sentence width"]) -> Float[Tensor, "sentence width"]:
    """Vectors less their mean; exactly zero where float32 states, summed in float64, are all equal.

    >>> centre(torch.tensor([[1.0, 4.0], [3.0, 0.0]]))
    tensor([[-1.,  2.],
            [ 1., -2.]])
    """
    return points - points.mean(dim=0)


def common_width(parts: Iterable[Tensor]) -> int:
    widths = [part.shape[2] for part in parts]
    if len(set(widths)) > 1:
        raise TnkitError(f"the captured states are {' and '.join(map(str, widths))} wide; capture with one model")
    return widths[0]
