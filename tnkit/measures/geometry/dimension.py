"""The number of dimensions of a space."""

from collections.abc import Sequence

import torch

from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError
from tnkit.measures.geometry.layers import ByLayer
from tnkit.measures.geometry.vectors import TIE, centre, states
from tnkit.provenance import joined


def effective_dimension(
    captured: Activations, *, shares: Sequence[float] = (0.9, 0.95, 0.99), centred: bool = True, site: str = "post"
) -> ByLayer:
    """The number of principal components that explain a share of the variance, layer by layer.

    The smallest d with σ_1² + … + σ_d² ≥ share · Σ σ² (to 1e-12 of the sum), where σ are the singular values of the
    (sentence, hidden) matrix minus its mean. centred=False keeps the mean, which then counts as variance, as in the
    code of Tezuka & Inoue (EMNLP 2025). No d exceeds the number of sentences, so compare only equal numbers of them.

    Args:
        captured: of one language, or of any sentences.
        shares: of the variance, each above 0 and at most 1.
        centred: subtract the mean over sentences first.
        site: "pre", "mid", "post" or "activations".

    Returns:
        `ByLayer` with one column per share, int64; 0 if nothing varies (one sentence, or equal states).

    Raises:
        TnkitError: for a share out of range, or a capture that lacks the site.

    >>> from tnkit.testing import captured
    >>> int(effective_dimension(captured(), shares=[1.0]).columns["100%"][3])
    5
    """
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong or not len(shares):
        raise TnkitError(f"shares {wrong or 'none'} must be above 0 and at most 1, as in shares=(0.9, 0.95, 0.99)")
    needed = []
    for layer in states(captured, site):
        points = centre(layer.double()) if centred else layer.double()
        product = points @ points.T if len(points) <= points.shape[1] else points.T @ points
        variance = torch.linalg.eigvalsh(product).flip(0).clamp_min_(0).cumsum(0)  # of σ²
        goal = torch.tensor(shares, dtype=torch.float64) - TIE
        reached = torch.searchsorted(variance, goal * variance[-1]) + 1
        needed.append(torch.where(variance[-1] > 0, reached, 0))
    columns = {f"{100 * share:g}%": column.numpy() for share, column in zip(shares, torch.stack(needed).T, strict=True)}
    provenance = joined([captured], site=site, centred=centred)
    return ByLayer("principal components", columns, captured.layers, provenance)
