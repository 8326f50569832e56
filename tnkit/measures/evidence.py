"""One neuron set under every selection and every value that could explain its effect: `evidence`.

shown = tn.evidence(model, corpus, language="ja")               # Type-1: retrieval of translations
shown.to_frame()                                                # effects, intervals and p of every selection and value
shown.table()                                                   # selections as rows, values as columns
shown.plot()
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, SupportsIndex

import pandas as pd

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.captures.batches import check_position
from tnkit.captures.passes import capture
from tnkit.detection.algebra import by_membership
from tnkit.detection.centroids import estimate_centroids
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scores import NeuronScores
from tnkit.detection.scoring import score_neurons
from tnkit.detection.targets import target_languages
from tnkit.errors import TnkitError, check_model, one_of
from tnkit.interventions.balance import Balance, balance
from tnkit.interventions.comparison import SET, Comparison, compare
from tnkit.interventions.controls import Control, controls
from tnkit.interventions.intervention import Intervention
from tnkit.interventions.last_token import PLACES
from tnkit.measures.geometry.translation import retrieval
from tnkit.measures.measurement import MEASURE_NAMES, measurement
from tnkit.measures.specificity.rivals import rivals_found
from tnkit.models.model import Model
from tnkit.text.corpus import Corpus, Split

SITES = ("mid", "post", "activations", "scale")
DOSES = (0.75, 0.5, 0.25)  # what the set alone is multiplied by, too
_LOG = logging.getLogger("tnkit")
ENDINGS = {"without the final mark": "", "one common ending": "\n"}  # of the sentences that choose a set


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a neuron set does, beside what other selections do, at several values.

    Attributes:
        neurons: the set.
        language, kind: whose, and of which type.
        selections: every selection that was tried, by name; a random one is a function of the seed.
        comparisons: (language that was read, value) → its `Comparison`; the value is what neurons were set to.
        layer: where effects are reported, chosen on the training sentences; 0 for a measure without layers.
        balance: in what the selections are alike beside their effects.
    """

    neurons: NeuronSet
    language: str
    kind: str
    selections: Mapping[str, Control]
    comparisons: dict[tuple[str, str], Comparison]
    layer: int
    balance: Balance

    @property
    def measure(self) -> str:
        """What was measured."""
        return next(iter(self.comparisons.values())).measure

    def to_frame(self) -> pd.DataFrame:
        """Means, effects, intervals and p-values at the layer, indexed (read, value, condition), as `Comparison.at`."""
        frames = {key: compared.at(self.layer) for key, compared in self.comparisons.items()}
        return pd.concat(frames, names=["read", "value"])

    def at(self, value: str, read: str | None = None) -> pd.DataFrame:
        """The rows of one value, indexed by condition, as `Comparison.at`.

        Args:
            value: such as "zero" or "own mean".
            read: the language that was read (default: the set's).

        Raises:
            TnkitError: for what was not measured.
        """
        read, values = self._values(read)
        one_of("value", value, values)
        return self.comparisons[read, value].at(self.layer)

    def table(self, read: str | None = None, column: str = "mean") -> pd.DataFrame:
        """One column of `to_frame` with selections as rows and values as columns.

        Args:
            read: the language that was read (default: the set's).
            column: such as "mean", "low", "high" or "p sets".

        Raises:
            TnkitError: for a language that was not read.
        """
        read, values = self._values(read)
        return self.to_frame()[column].loc[read].unstack("value", sort=False).reindex(columns=values)

    def _values(self, read: str | None) -> tuple[str, tuple[str, ...]]:
        """The language that is read (default: that of the set), and its values."""
        read = self.language if read is None else read
        one_of("read", read, tuple(dict.fromkeys(name for name, _ in self.comparisons)))
        return read, tuple(value for name, value in self.comparisons if name == read)

    def plot(self, values: Sequence[str] | None = None, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw each selection's mean with its interval, at some values.

        Args:
            values: which, each in a colour (default: zero, and the set's own mean where it was measured).
            ax: where to draw (default: a new figure).
        """
        if values is None:
            values = [value for value in ("zero", "own mean") if (self.language, value) in self.comparisons]
        frames = {value: self.at(value) for value in values}
        return plots.conditions_by_value(frames, xlabel=self._label(), ax=ax)

    def _label(self) -> str:
        return self.measure + (f", layer {self.layer}" if self.kind == "type1" else "")

    def _repr_html_(self) -> str:
        means = self.to_frame()["mean"].loc[self.language].xs(SET, level="condition")
        rows = {f"set to {value}": f"{mean:.3f}" for value, mean in means.items()}
        return storage.html_card(f"Evidence: {self.language} {self.kind}, {self._label()}", rows)


def evidence(
    model: Model,
    corpus: Corpus,
    *,
    language: str,
    kind: str = "type1",
    hub: str = "en",
    top: SupportsIndex = 300,
    draws: SupportsIndex = 5,
    read: int | None = None,
    selections: Iterable[str] | None = None,
    position: str = "last",
    suffix: str | None = None,
    progress: bool = True,
) -> Evidence:
    """Detect a language's neurons, and compare them with every other selection at every value.

    The selections are those of `tn.controls`, the centred set, the sets of the other languages, the neurons of this set
    alone and of all sets, language-specific neurons of other methods, and of Type-1 what the same score chooses from
    sentences without their final mark or with one common ending. Every selection is set to zero, to its mean
    over the language's training sentences and to its mean over the hub's; the set itself also to its mean over all
    languages, to the values of other sentences, and to shares of its own. Type-1 is measured by mean-centred
    retrieval@1 of the test sentences at their last token, at the layer where the untouched model retrieves most
    *training* sentences; Type-2 by the nats per token of the test sentences, in the language and in the hub, with means
    over all tokens of the training sentences, since neurons are set at every token. Neurons in experts have no such
    means: Type-2 of a model of experts is set to zero and to shares of its values alone.

    Args:
        model: from `load_model`.
        corpus: with the splits "train" and "test".
        language: whose neurons.
        kind: "type1" or "type2".
        hub: the language of the translations.
        top: how many neurons.
        draws: of each random selection.
        read: how many test sentences (default: all; of Type-2 the first 32).
        selections: names of the selections to try (default: all).
        position, suffix: which token is read, as in `capture`: with suffix="" everything is done without the final
            mark, with suffix="\\n" at one common ending. Type-2 is measured on sentences as they are.
        progress: show bars.

    Raises:
        TnkitError: for an unknown language, kind or selection, and as detection does.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> chosen = ["uniform", "random direction"]
    >>> shown = evidence(tiny_model(), tiny_corpus(), language="it", top=9, draws=2, selections=chosen, progress=False)
    >>> shown.table().index.tolist()
    ['none', 'the set', 'uniform', 'random direction']
    """
    check_model(model)
    one_of("kind", kind, ("type1", "type2"))
    if kind == "type1":
        check_position(model, position, tuple(PLACES))
    train, test = corpus["train"], corpus["test"]
    if language == hub or not {language, hub} <= set(train):
        raise TnkitError(f"language={language!r} and hub={hub!r} must be two languages of {', '.join(train)}")
    how: dict[str, Any]
    reading: dict[str, Any] = {"position": position, "suffix": suffix}
    captured = {name: capture(model, train[name], keep=SITES, **reading, progress=progress) for name in train}
    scores = _scores(model, captured, kind, hub)
    found = {name: scored.top(top) for name, scored in scores.items()}
    neurons = found[language]
    options: dict[str, Any] = {"language": language, "kind": kind, "hub": hub, "names": selections}
    if kind == "type1" and (position, suffix) == ("last", None):
        options["endings"] = partial(_endings, model, train, language, hub, top)
    tried = _selections(model, captured, found, scores[language], **options)
    texts = {name: test[name][:read] for name in (language, hub)}
    if kind == "type1":
        layer, _ = retrieval(captured[language], captured[hub]).best()
        how = {"tokens": PLACES[position], "layers": [layer], **reading}
        measures = {language: measurement(model, texts, language=language, hub=hub, progress=False, **how)}
        states, chosen_on = captured, "training sentences"
    else:
        layer, chosen_on, how = 0, "", {"measure": "perplexity", "tokens": "all"}
        texts = {name: sentences[: 32 if read is None else read] for name, sentences in texts.items()}
        measures = {name: measurement(model, texts, language=name, **how) for name in texts}
        states = _of_all_tokens(model, train, progress)
    comparisons = {}
    at: dict[str, Any] = {"layers": (layer,), "chosen_layer": layer, "chosen_on": chosen_on}
    at |= {"name": MEASURE_NAMES["retrieval" if kind == "type1" else "perplexity"], "seeds": draws}
    for name, measured in measures.items():
        for value, (done, by_all) in _values(states, language, hub).items():
            run, rivals = _measured(measured.run, done), tried if by_all else {}
            comparisons[name, value] = compare(run, neurons, controls=rivals, model=model, progress=progress, **at)
    balanced = balance(model, captured, {SET: neurons, **tried}, language=language, seeds=min(int(draws), 3))
    return Evidence(neurons, language, kind, tried, comparisons, layer, balanced)


def _scores(model: Model, captured: Mapping[str, Activations], kind: str, hub: str) -> dict[str, NeuronScores]:
    """The raw scores of every language but the hub, from what was captured."""
    layers = model.early_layers if kind == "type1" else model.late_layers
    scores = {}
    for name, states in captured.items():
        if name != hub:
            target = estimate_centroids([captured[one] for one in target_languages(kind, name, [hub])])
            scores[name] = score_neurons(model, states, target, layers=layers)
    return scores


def _selections(
    model: Model,
    captured: Mapping[str, Activations],
    found: Mapping[str, NeuronSet],
    scores: NeuronScores,
    *,
    language: str,
    kind: str,
    hub: str,
    names: Iterable[str] | None,
    endings: Callable[[str], NeuronSet] | None = None,
) -> dict[str, Control]:
    """Every selection, or those that were named, by name."""
    names = None if names is None else tuple(names)
    layers, neurons, states = scores.layers, found[language], captured[language]
    everyone = estimate_centroids([*captured.values()])
    towards = target_languages(kind, language, [hub], centred=True)
    target = estimate_centroids([captured[name] for name in towards])
    centred = score_neurons(model, states, target, origin=everyone, layers=layers) if len(captured) > 2 else None
    others: dict[str, Control] = {f"{name} set": others for name, others in found.items() if name != language}
    if centred is not None:
        others["centred score"] = centred.top(len(neurons))
    others |= by_membership(found, language)
    others |= rivals_found(captured, neurons, language=language, layers=layers)
    if endings is not None:
        others |= {name: endings(suffix) for name, suffix in ENDINGS.items() if names is None or name in names}
    tried = controls(
        neurons, layers=layers, scores=scores, others=others, model=model, captured=captured, language=language
    )
    chosen = tuple(tried) if names is None else tuple(names)
    for name in chosen:
        one_of("selection", name, tuple(tried))
    # each draw is made once, for all values
    return {name: cache(control) if callable(control := tried[name]) else control for name in chosen}


def _endings(model: Model, train: Split, language: str, hub: str, top: SupportsIndex, suffix: str) -> NeuronSet:
    """The Type-1 neurons that sentences with another ending choose."""
    captured = {
        name: capture(model, train[name], keep=SITES, suffix=suffix, progress=False) for name in (hub, language)
    }
    return _scores(model, captured, "type1", hub)[language].top(top)


def _of_all_tokens(model: Model, texts: Split, progress: bool) -> dict[str, Activations]:
    """Means over all tokens, as all are set; none of experts, which have no such mean."""
    if model.slots:
        _LOG.warning(
            "the tokens of a sentence are sent to different experts of %s, so its neurons are set to zero and to "
            "shares of their values, not to means over tokens",
            model.name,
        )
        return {}
    every: dict[str, Any] = {"keep": ["activations"], "position": "mean", "progress": progress}
    return {name: capture(model, sentences, **every) for name, sentences in texts.items()}


def _values(captured: Mapping[str, Activations], language: str, hub: str) -> dict[str, tuple[dict[str, Any], bool]]:
    """Name → what neurons are set to, and whether every selection is, or the set alone; no means without captures."""
    doses: dict[str, tuple[dict[str, Any], bool]] = {f"× {dose}": ({"scale": dose}, False) for dose in DOSES}
    if not captured:
        return {"zero": ({}, True), **doses}
    own_states, of_hub = captured[language], captured[hub]
    values: dict[str, tuple[dict[str, Any], bool]] = {
        "zero": ({}, True),
        "own mean": ({"value": "mean", "of": own_states}, True),
        f"{hub} mean": ({"value": "mean", "of": of_hub}, True),
        "mean of all": ({"value": "mean", "of": captured}, False),
        "own, resampled": ({"value": "resampled", "of": own_states}, False),
        f"{hub}, resampled": ({"value": "resampled", "of": of_hub}, False),
        f"+ ({hub} − own)": ({"add": 1.0, "of": of_hub, "minus": own_states}, False),
    }
    return values | doses


def _measured(run: Callable[[Any], Any], how: Mapping[str, Any]) -> Callable[[NeuronSet], Any]:
    return lambda neurons: run(Intervention(neurons, **how))
