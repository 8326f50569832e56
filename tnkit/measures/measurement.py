"""How a language's sentences are measured under an intervention, once for all interventions: `measurement`.

measured = measurement(model, test, language="ja", measure="margin", layers=[15])
measured.run(tn.Intervention(type1, scale=0.5))                    # (layer, sentence)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from tnkit.captures.activations import Activations
from tnkit.captures.passes import capture
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, check_model, one_of, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.last_token import PLACES, LastToken
from tnkit.interventions.together import Neurons
from tnkit.measures.behaviour.likelihood import nats_of
from tnkit.measures.behaviour.losses import Losses
from tnkit.measures.geometry.neighbours import shared_neighbours
from tnkit.measures.geometry.translation import hits, margins
from tnkit.measures.geometry.vectors import directions
from tnkit.models.model import Model, check_layers
from tnkit.text.rows import check_texts

Texts = Mapping[str, Sequence[str]]
Prepared = Mapping[str, Sequence[str] | LastToken]  # some of whose prefixes have run


class Measurement(NamedTuple):
    """How the sentences of a language are measured under an intervention.

    Attributes:
        run: takes an `Intervention` and returns a number for every layer and sentence.
        name: what is measured, for tables and axes.
        layers: what the layer axis stands for; (0,) where the measurement has no layers.
    """

    run: Callable[[Neurons], np.ndarray | Tensor]
    name: str
    layers: tuple[int, ...]


def measurement(
    model: Model,
    texts: Prepared,
    *,
    language: str,
    measure: str = "retrieval",
    hub: str = "en",
    tokens: str = "last",
    position: str = "last",
    suffix: str | None = None,
    layers: Iterable[SupportsIndex] | None = None,
    last_layer: str = "raw",
    k: SupportsIndex = 10,
    centred: bool = True,
    progress: bool = True,
) -> Measurement:
    """What `ablate` runs under each intervention; the hub's sentences, and what comes before the token, run once.

    What comes before the token need not run again for a language that is given as a `LastToken`.

    Args:
        model, texts, language, measure, hub, tokens: as in `ablate`.
        position, suffix, layers, last_layer, k, centred, progress: as in `ablate`.

    Raises:
        TnkitError: as `ablate` does.

    >>> from tnkit.interventions.intervention import Intervention
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> measured = measurement(tiny_model(), {"it": SENTENCES}, language="it", measure="perplexity", tokens="all")
    >>> measured.name, measured.run(Intervention([(0, 5)])).shape
    ('nats per token, it', (6,))
    """
    check_model(model)
    one_of("measure", measure, MEASURES)
    sentences = plain(texts)
    check_texts(sentences, (language,) if measure == "perplexity" else (language, hub))
    name = MEASURE_NAMES[measure]
    if measure == "perplexity":
        return Measurement(nats_of(Losses(model, sentences[language]), tokens), f"{name}, {language}", (0,))
    layers = check_layers(model, range(model.n_layers) if layers is None else layers)
    reading: dict[str, Any] = {"position": position, "suffix": suffix, "keep": ["post"], "layers": layers}
    reading["last_layer"] = last_layer
    measured = STATE_MEASURES[measure]
    if measure == "retrieval" and not centred:
        measured, name = partial(hits, centred=False), "raw retrieval@1"
    if measure == "mutual_knn":
        k = whole_number("k", k, at_least=1)
        measured, name = partial(shared_neighbours, k=k), f"mutual {k}-NN"
    targets = untouched(model, texts[hub], reading, progress=progress)
    captured = capturing(model, texts[language], tokens, reading, progress=progress)
    return Measurement(lambda off: measured(captured(off), targets), f"{name}, {language} and {hub}", layers)


def layer_named(model: Model, layer: SupportsIndex | None) -> int:
    """The layer at which states are measured.

    Raises:
        TnkitError: for none, or one that the model does not have.
    """
    if layer is None:
        raise TnkitError("name the layer to measure, chosen on other sentences, as in layer=15")
    return check_layers(model, [layer])[0]


def _similarity(off: Activations, targets: Activations) -> Tensor:
    return torch.nn.functional.cosine_similarity(off.tensors()["post"], targets.tensors()["post"], dim=-1)


def _centred_similarity(off: Activations, targets: Activations) -> Tensor:
    return torch.stack([(a * b).sum(dim=1) for a, b in directions(off, targets, "post", centred=True)])


# Measures of a language's hidden states against those of the hub, each (layer, sentence).
BY_STATES: dict[str, Callable[[Activations, Activations], "np.ndarray | Tensor"]] = {
    "retrieval": hits,
    "similarity": _similarity,
    "mutual_knn": shared_neighbours,
}
STATE_MEASURES = BY_STATES | {"margin": margins, "centred_similarity": _centred_similarity}
MEASURES = (*STATE_MEASURES, "perplexity")
MEASURE_NAMES = {
    "retrieval": "mean-centred retrieval@1",
    "similarity": "cosine similarity",
    "mutual_knn": "mutual 10-NN",
    "margin": "retrieval margin",
    "centred_similarity": "mean-centred cosine similarity",
    "perplexity": "nats per token",
}


def plain(texts: Prepared) -> dict[str, Any]:
    """The sentences of each language, also where it is given as a `LastToken`.

    >>> plain({"it": ["Ciao!"]})
    {'it': ['Ciao!']}
    """
    return {name: _sentences(given) for name, given in texts.items()}


def _sentences(given: Sequence[str] | LastToken) -> Any:
    return given.sentences if isinstance(given, LastToken) else given


def untouched(
    model: Model, sentences: Sequence[str] | LastToken, reading: Mapping[str, Any], *, progress: bool = True
) -> Activations:
    """`capture` of sentences, of which only the token that is read runs where they are given as a `LastToken`.

    >>> from tnkit.testing import tiny_model
    >>> untouched(tiny_model(), ["Hi"], {"position": "last", "keep": ["post"], "layers": [2]}, progress=False)
    Activations(1 sentences, 1 layers: post)
    """
    scope = PLACES.get(reading["position"])
    if scope and isinstance(sentences, LastToken):
        return capturing(model, sentences, scope, reading)(NeuronSet((), (model.n_layers, model.n_neurons)))
    return capture(model, _sentences(sentences), **reading, progress=progress)


def capturing(
    model: Model,
    sentences: Sequence[str] | LastToken,
    tokens: str,
    reading: Mapping[str, Any],
    *,
    progress: bool = True,
) -> Callable[[Neurons], Activations]:
    """A function that captures sentences under an intervention, from a cached prefix where that is the same.

    Args:
        model: from `load_model`.
        sentences: any sequence of str, or a `LastToken` of them.
        tokens: where the intervention acts, as in `Ablation`.
        reading: how they are captured, as in `capture`; with a position.
        progress: show a bar while prefixes run.

    >>> from tnkit.interventions.intervention import Intervention
    >>> from tnkit.testing import tiny_model
    >>> captured = capturing(tiny_model(), ["Hi"], "last", {"position": "last", "keep": ["post"]}, progress=False)
    >>> captured(Intervention([(0, 5)]))
    Activations(1 sentences, 4 layers: post)
    """
    position = reading["position"]
    if tokens == "last" and position == "last_word":
        raise TnkitError(
            "tokens='last' ablates the punctuation after the word that position='last_word' reads, which changes "
            "nothing; give tokens='last_word'"
        )
    if PLACES.get(position) == tokens:
        if not isinstance(sentences, LastToken):
            return LastToken(model, sentences, **reading, progress=progress).capture
        prefix = sentences.like(model, **reading)
        layers = tuple(reading.get("layers", prefix.layers))
        return lambda neurons: _of_layers(prefix.capture(neurons), layers)
    texts = _sentences(sentences)

    def off(neurons: Neurons) -> Activations:
        with Ablation(model, neurons, tokens=tokens):
            return capture(model, texts, **reading, progress=False)

    return off


def _of_layers(captured: Activations, layers: tuple[int, ...]) -> Activations:
    """Some layers of a capture."""
    rows = [captured.layers.index(layer) for layer in layers]
    kept: dict[str, Any] = {name: tensor[rows] for name, tensor in captured.tensors().items()}
    return replace(captured, layers=layers, **kept)
