"""How a prompt is continued, with neurons changed or a language added, as rows for a browser."""

from collections.abc import Generator, Mapping
from typing import Any

from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, one_of
from tnkit.explorers.study import Study
from tnkit.interventions.controls import drawn
from tnkit.interventions.direction import Direction
from tnkit.interventions.intervention import Intervention
from tnkit.interventions.together import neurons_of
from tnkit.measures.behaviour.generation import texts_with
from tnkit.measures.behaviour.languages import detector_of, languages_of
from tnkit.plots.looks import KIND_NAMES, language_name

NEW = 25  # tokens of a continuation
SCOPES = ("last", "prompt", "all")  # where neurons are changed, as in `Ablation`
MOST = 4.0  # strength
_GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "temperature": None, "seed": 0, "batch_tokens": 1024}
_Rows = Generator[str, None, dict[str, Any]]


def continued_rows(
    study: Study, neurons: NeuronSet, *, language: str, kind: str, value: str, scope: str, control: str, prompt: str
) -> _Rows:
    """A prompt continued untouched, with a set changed, and with one draw of a control changed.

    Args:
        study: whose model continues it.
        neurons: the set.
        language, kind: whose neurons they are.
        value: what they are set to.
        scope: where, one of `SCOPES`.
        control: the name of a control.
        prompt: the beginning of a text.

    Returns:
        "rows", each with name, role, language (None where it cannot be told), text and how many values were set, and
        the settings; yields a description before each step.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> study = Study(tiny_model(), tiny_corpus())
    >>> study.detect(["it"])
    >>> how = {"language": "it", "kind": "type1", "value": "zero", "scope": "last", "control": "same layers"}
    >>> list(continued_rows(study, study.neurons("it", "type1"), prompt="Il gatto", **how))[0]
    'continuing the prompt: untouched, 1 of 3'
    """
    one_of("scope", scope, SCOPES)
    rival = drawn(study.controls_of(neurons, language, kind)[control], 1)[0]
    conditions = {
        "untouched": ("untouched", ()),
        f"{KIND_NAMES[kind]} set": ("set", study.set_to(neurons, language, value)),
        control: ("control", study.set_to(rival, language, value)),
    }
    settings = {"size": len(neurons), "language": language, "kind": kind, "value": value, "scope": scope}
    rows = yield from _continued(study, prompt, conditions, scope)
    return {**rows, "settings": settings | {"control": control}}


def steered_rows(study: Study, *, away: str, added: str, strength: float, prompt: str) -> _Rows:
    """A prompt continued untouched, with one language taken away and another added, and with two controls.

    The Type-2 neurons of the language that is added get strength × (its mean - the mean of the other language), at
    every token; those of the language that is taken away are multiplied by 1 - strength, at least 0. The controls are
    as many random neurons of the same layers, and the difference of the languages' mean states in a middle layer.

    Args:
        study: whose model continues it.
        away, added: two languages; nothing of the hub's own is switched off, and it is not added.
        strength: from 0 to `MOST`.
        prompt: the beginning of a text.

    Returns:
        As `continued_rows`.

    Raises:
        TnkitError: for an empty prompt, one language as both, or a strength that is out of range.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> next(steered_rows(Study(tiny_model(), tiny_corpus()), away="ja", added="ja", strength=1.0, prompt="Hello"))
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: Japanese is both taken away and added; choose two languages
    """
    if away == added:
        raise TnkitError(f"{language_name(away)} is both taken away and added; choose two languages")
    if not 0 <= strength <= MOST:
        raise TnkitError(f"strength={strength} must be from 0 to {MOST:g}")
    yield from study.detecting([name for name in (away, added) if name != study.hub], ["type2"])
    yield f"reading the training sentences of {language_name(away)} and {language_name(added)}"
    add: dict[str, Any] = {"add": strength, "of": study.means(added), "minus": study.means(away)}
    neurons, layer = study.neurons(added, "type2"), study.model.n_layers // 2
    random = neurons.matched(seed=0)

    def less(kept: NeuronSet) -> list[Intervention]:
        if away == study.hub:
            return []
        return [Intervention(study.neurons(away, "type2") - kept, scale=max(0.0, 1.0 - strength))]

    direction = Direction.difference(add["of"], add["minus"], layers=[layer], add=strength)
    conditions: dict[str, tuple[str, Any]] = {
        "untouched": ("untouched", ()),
        f"{language_name(added)} Type-2": ("set", [*less(neurons), Intervention(neurons, **add)]),
        "random neurons of the same layers": ("control", [*less(random), Intervention(random, **add)]),
        f"difference of means, layer {layer}": ("control", [*less(neurons[:0]), direction]),
    }
    rows = yield from _continued(study, prompt, conditions, "all")
    return {**rows, "settings": {"away": away, "added": added, "strength": strength, "size": len(neurons)}}


def _continued(study: Study, prompt: str, conditions: Mapping[str, tuple[str, Any]], scope: str) -> _Rows:
    """The prompt continued under each condition, and the language of each continuation."""
    if not prompt.strip():
        raise TnkitError("the prompt is empty; write the beginning of a sentence")
    candidates, unknown = tuple(study.languages), ""
    try:
        detector_of(candidates)
    except TnkitError as error:
        unknown = str(error)
    rows = []
    for number, (name, (role, changed)) in enumerate(conditions.items(), 1):
        yield f"continuing the prompt: {name}, {number} of {len(conditions)}"
        given = neurons_of(study.model, changed)
        said = texts_with(study.model, [prompt], given, tokens=scope, progress=False, **_GREEDY)
        (spoken,) = (None,) if unknown else languages_of(said.texts, candidates=candidates)
        rows.append({"name": name, "role": role, "language": spoken, "text": said.texts[0], "count": said.values_set})
    return {"prompt": prompt, "rows": rows, "tokens": NEW, "unknown": unknown}
