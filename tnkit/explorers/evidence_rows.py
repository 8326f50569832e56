"""What a neuron set does beside its controls, as rows for a browser: `evidence_rows`."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from tnkit.detection.neurons import NeuronSet
from tnkit.errors import one_of
from tnkit.explorers.study import ZERO, Study
from tnkit.interventions.comparison import SET, Comparison
from tnkit.interventions.controls import controls, drawn
from tnkit.interventions.intervention import Intervention
from tnkit.interventions.together import Neurons
from tnkit.measures.behaviour.likelihood import perplexity_of
from tnkit.measures.behaviour.losses import Losses
from tnkit.measures.measurement import BY_STATES, MEASURE_NAMES
from tnkit.plots.looks import language_name

READ = 32  # sentences of each language whose nats a token are measured
_AT_MEAN = "the set at its mean"
_COLUMNS = {"mean": "mean", "low": "low", "high": "high", "effect": "effect", "effect low": "effect_low"}
_COLUMNS |= {"effect high": "effect_high", "p sentences": "p_sentences", "p sets": "p_sets"}
_Draws = Mapping[str, list[dict[str, np.ndarray]]]  # condition → what was measured for each draw


def evidence_rows(
    study: Study, neurons: NeuronSet, *, language: str, kind: str, value: str, scope: str, seeds: int, known: bool
) -> Generator[str, None, dict[str, Any]]:
    """The rows of a set, for `tnkit.explorers.chunks`; yields a description before each step.

    Layers before the first ablated one cannot change, and are left out. Type-2 also has nats per token.

    Args:
        study: whose test sentences are measured.
        neurons: the set.
        language, kind: whose neurons they are.
        value: what they are set to.
        scope: where states are changed: "last", at the last token, or "all".
        seeds: the number of draws of each random control.
        known: whether the set is one that the study detected, whose selection a control can repeat.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> study = Study(tiny_model(), tiny_corpus(), languages=["en", "it"])
    >>> study.detect(["it"])
    >>> how = {"language": "it", "kind": "type1", "value": "zero", "scope": "last", "seeds": 1, "known": False}
    >>> steps = evidence_rows(study, NeuronSet(((2, 5),), shape=(4, 48)), **how)
    >>> next(steps)
    'choosing a layer on training sentences of Italian'
    """
    one_of("scope", scope, ("last", "all"))
    first = min(layer for layer, _ in neurons)
    yield f"choosing a layer on training sentences of {language_name(language)}"
    layer = study.chosen_layer(language, first)
    conditions = _conditions(study, neurons, language=language, kind=kind, value=value, seeds=seeds, known=known)
    values: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in conditions}
    for name, sets in conditions.items():
        for number, off in enumerate(sets, 1):
            yield f"reading {language_name(language)}: {name}, {number} of {len(sets)}"
            off = _at_every_token(study, name, off, language) if scope == "all" else off
            values[name].append(study.measured(language, off, scope))
    layers, count = range(first, study.model.n_layers), len(study.texts["test"][language])
    measured = {
        measure: _rows(_comparison(values, measure, layers), layer, "training sentences", sentences=count)
        for measure in BY_STATES
    }
    nats: dict[str, Any] = {}
    for read in (language, study.hub) if kind == "type2" else ():
        predicted = yield from _nats(study, read, language, conditions)
        compared = _comparison(predicted, "nats", [0], name=f"nats per token, {language_name(read)}")
        nats[f"nats|{read}"] = _rows(compared, None, "", sentences=min(READ, len(study.texts["test"][read])))
    return {"first": first, "size": len(neurons), "scope": scope, "measures": {**nats, **measured}}


def _conditions(
    study: Study, neurons: NeuronSet, *, language: str, kind: str, value: str, seeds: int, known: bool
) -> dict[str, list[Neurons]]:
    """What is changed: nothing, the set, every draw of each control, and the set at its mean."""
    rivals = dict(study.controls_of(neurons, language, kind))
    if known:
        captured = study.all_captured("train", progress=False)
        layers = study.found[language, kind].scores.layers
        made = controls(neurons, layers=layers, model=study.model, captured=captured)
        rivals["random direction"] = made["random direction"]
    sets: dict[str, list[Neurons]] = {"none": [NeuronSet((), neurons.shape)], SET: [neurons]}
    sets |= {name: drawn(rival, seeds) for name, rival in rivals.items()}
    changed = {name: [study.set_to(off, language, value) for off in draws] for name, draws in sets.items()}
    if value == ZERO:
        changed[_AT_MEAN] = [study.set_to(neurons, language, f"mean of {language_name(language)}")]
    return changed


def _nats(
    study: Study, read: str, language: str, conditions: Mapping[str, list[Neurons]]
) -> Generator[str, None, dict[str, list[dict[str, np.ndarray]]]]:
    """Nats per token of a language's first test sentences, with each condition's neurons changed at every token."""
    losses = Losses(study.model, study.texts["test"][read][:READ])
    values: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, sets in conditions.items():
        values[name] = []
        for number, off in enumerate(sets, 1):
            yield f"predicting {language_name(read)}: {name}, {number} of {len(sets)}"
            off = _at_every_token(study, name, off, language)
            predicted = perplexity_of(losses, neurons=off, progress=False)
            values[name].append({"nats": predicted.by_sentence[None]})
    return values


def _at_every_token(study: Study, name: str, off: Neurons, language: str) -> Neurons:
    """The set at its mean over all tokens, where all are set; any other condition as it is."""
    if name == _AT_MEAN and isinstance(off, Intervention):
        return Intervention(off.neurons, value="mean", of=study.means(language))
    return off


def _comparison(values: _Draws, measure: str, layers: Sequence[int], *, name: str = "") -> Comparison:
    """One measure of each condition, at some layers."""
    rows = list(layers)
    stacked = {condition: np.stack([draw[measure][rows] for draw in draws]) for condition, draws in values.items()}
    (untouched,), (ablated,) = stacked.pop("none"), stacked.pop(SET)
    return Comparison(name or MEASURE_NAMES[measure], tuple(layers), untouched, ablated, stacked)


def _rows(compared: Comparison, chosen_layer: int | None, chosen_on: str, *, sentences: int) -> dict[str, Any]:
    """A comparison's table by condition."""
    table = compared.to_frame()
    rows = []
    for condition in table.index.get_level_values("condition").unique():
        frame = table.xs(condition, level="condition")
        columns = {name: rounded(frame[column].to_numpy()) for column, name in _COLUMNS.items()}
        rows.append({"name": condition, "seeds": int(frame["seeds"].iloc[0]), **columns})
    about = {"name": compared.measure, "layers": list(compared.layers), "sentences": sentences}
    return {**about, "chosen": chosen_layer, "chosen_on": chosen_on, "conditions": rows}


def rounded(values: Any, digits: int = 5) -> Any:
    """Numbers for JSON: rounded, and None where there is none."""
    if np.ndim(values) == 0:
        return round(float(values), digits) if np.isfinite(values) else None
    return [rounded(value, digits) for value in values]
