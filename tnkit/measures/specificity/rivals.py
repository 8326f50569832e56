"""Language-specific neurons by other methods, as controls of a neuron set: `rivals`."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from tnkit.captures.activations import Activations
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.ranking import chosen_layers
from tnkit.errors import TnkitError
from tnkit.measures.specificity.entropy import lape
from tnkit.measures.specificity.neurons import comparable
from tnkit.measures.specificity.precision import average_precision

_LOG = logging.getLogger("tnkit")


def rivals(
    languages: Mapping[str, Activations],
    neurons: NeuronSet,
    *,
    language: str,
    layers: Iterable[SupportsIndex] | None = None,
    **options: Any,
) -> dict[str, NeuronSet]:
    """As many neurons of a language as a set has, from the same layers, by two other methods.

    "LAPE" are those of lowest entropy among the neurons that pass the filters of `lape` and are given to the language;
    "average precision" those of highest `average_precision`. For the `others` of `tn.controls`.

    Args:
        languages: a capture of each language with `activations`, of the same model and layers.
        neurons: the set whose size they take.
        language: whose neurons.
        layers: where to look (default: from the set's first layer to its last).
        **options: filter_quantile, language_quantile, threshold, as in `lape`.

    Raises:
        TnkitError: where LAPE gives the language fewer neurons in these layers, and as `lape` and `average_precision`
            do.

    >>> from tnkit.testing import by_language
    >>> some, lower = NeuronSet(((0, 5), (1, 2)), (4, 48)), {"filter_quantile": 0.5, "language_quantile": 0.5}
    >>> found = rivals(by_language(), some, language="ja", **lower)
    >>> {name: len(rival) for name, rival in found.items()}
    {'LAPE': 2, 'average precision': 2}
    """
    counts, size = neurons.by_layer(), len(neurons)
    searched = range(min(counts, default=0), max(counts, default=0) + 1) if layers is None else layers
    chosen = chosen_layers(searched, comparable(languages, least=2).layers, verb="captured")
    precise = average_precision(languages, language).top(size, layers=chosen)
    given = lape(languages, top_share=1.0, **options).neurons[language]
    places = [place for place, (layer, _) in enumerate(given) if layer in chosen][:size]
    if len(places) < size:
        raise TnkitError(
            f"LAPE gives {language} {len(places)} neurons in these layers, fewer than the {size} of the set; compare a "
            "smaller set, look in more layers, or lower language_quantile"
        )
    return {"LAPE": given.take(places), "average precision": precise}


def rivals_found(
    languages: Mapping[str, Activations], neurons: NeuronSet, *, language: str, layers: Iterable[SupportsIndex]
) -> dict[str, NeuronSet]:
    """`rivals`, or none and a warning where the methods find fewer neurons than the set has.

    >>> from tnkit.testing import cloud, held
    >>> rivals_found({"en": held(cloud(1, 3, 2))}, NeuronSet((), (1, 2)), language="en", layers=[0])
    {}
    """
    try:
        return rivals(languages, neurons, language=language, layers=layers)
    except TnkitError as error:
        _LOG.warning("no language-specific neurons among the selections: %s", error)
        return {}
