"""Whose centroids the target of a detection is of, what it is like, and the warning where scores hardly depend on it.

The centroids of all languages are nearly parallel, and a few massive coordinates hold most of their length.
"""

import logging
from collections.abc import Sequence
from typing import Any

from tnkit import parallel
from tnkit.detection.centroids import Centroids

_LOG = logging.getLogger("tnkit")
_TOLD: set[str] = set()  # weights of the models that were warned about
_PARALLEL, _MASSIVE = 0.99, 0.5


def target_languages(kind: str, language: str, hub: Sequence[str], *, centred: bool = False) -> tuple[str, ...]:
    """The languages whose mean centroid the neurons of a language and type are chosen towards.

    Of Type-1 the hub and the language itself, or with a centred score the hub alone; of Type-2 the language.

    >>> target_languages("type1", "ja", ["en"]), target_languages("type1", "ja", ["en"], centred=True)
    (('en', 'ja'), ('en',))
    """
    if kind == "type2":
        return (language,)
    return tuple(hub) if centred else tuple(dict.fromkeys([*hub, language]))


def described(
    target: Centroids, layers: Sequence[int], *, origin: Centroids | None = None, rival: Centroids | None = None
) -> dict[str, Any]:
    """The target of scores, in each scored layer, as provenance holds it.

    Args:
        target: of the scores.
        layers: that were scored.
        origin: of centred scores.
        rival: the target that the scores should tell it from: of Type-1 the language's own centroid, of Type-2 the
            shared one (of centred scores, the hub's); None where it is not known.

    Returns:
        `largest_share`, and `cosines` with the rival, whose languages are `rival`; seen from the origin of the scores.

    >>> import tnkit as tn
    >>> from tnkit.testing import captured
    >>> own = tn.estimate_centroids([captured()])
    >>> described(own, range(4), rival=own)["cosines"]
    [1.0, 1.0, 1.0, 1.0]
    """
    if origin is not None:
        target = target.seen_from(origin)
    rows = [target.layers.index(layer) for layer in layers]
    known: dict[str, Any] = {"largest_share": _rounded(target.largest_share[rows].tolist())}
    if rival is not None:
        cosines = target.cosines(rival if origin is None else rival.seen_from(origin))
        known |= {"cosines": _rounded(cosines[rows].tolist()), "rival": rival.languages}
    return known


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]


def warn(model: dict[str, Any], name: str, target: dict[str, Any], *, centred: bool) -> None:
    """Say once a session and model that scores hardly depend on their target.

    Args:
        model: its provenance.
        name: of the target.
        target: from `described`.
        centred: whether its scores are.
    """
    cosine, share = max(target.get("cosines", [0.0])), max(target["largest_share"])
    reasons = [f"a cosine of up to {cosine:.3f} with its rival"] * (cosine > _PARALLEL)
    reasons += [f"up to {share:.0%} of its squared length in one coordinate"] * (share > _MASSIVE)
    key = str(model.get("weights", model.get("name")))
    if not reasons or key in _TOLD or parallel.rank():
        return
    _TOLD.add(key)
    advice = "see target() of the detection" + ("" if centred else ", and compare score='centred'")
    _LOG.warning(
        "%s: the target of %s has %s, so scores may hardly tell it from others; %s",
        model.get("name"),
        name,
        " and ".join(reasons),
        advice,
    )
