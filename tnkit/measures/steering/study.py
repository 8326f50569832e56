"""Steering a model towards languages with neuron sets and what they are compared with: `steer`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tnkit import signals
from tnkit.captures.activations import Activations
from tnkit.captures.passes import capture
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, check_model, one_of, whole_number
from tnkit.interventions.comparison import NONE, SET
from tnkit.interventions.controls import Control, drawn
from tnkit.interventions.direction import Direction
from tnkit.interventions.displacement import displacement
from tnkit.interventions.intervention import Intervention, set_of
from tnkit.interventions.together import Neurons, Together, as_one
from tnkit.measures.behaviour.confusion import foreign_words, other_languages
from tnkit.measures.behaviour.generation import texts_with
from tnkit.measures.behaviour.languages import detector_of, languages_of
from tnkit.measures.behaviour.likelihood import perplexity
from tnkit.measures.behaviour.meaning import Encode, encoded, relevance
from tnkit.measures.steering import selections as choices
from tnkit.measures.steering.steering import INDEX, Steering
from tnkit.models.model import Model
from tnkit.provenance import provenance_of, sentences_of
from tnkit.text.languages import scripts_of
from tnkit.text.rows import check_texts

_SITES = ("mid", "post", "activations", "scale")
_AMOUNTS = {"add": "strength, × (mean of the language − mean of {})", "mean": "set to the mean of the language"}


def steer(
    model: Model,
    prompts: Sequence[str],
    sets: Mapping[str, Any],
    texts: Mapping[str, Sequence[str]],
    *,
    away: str = "en",
    how: str = "add",
    strengths: Iterable[SupportsFloat] | None = None,
    selections: Iterable[str] | None = None,
    others: Mapping[str, Mapping[str, Control]] = MappingProxyType({}),
    draws: SupportsIndex = 2,
    tokens: str = "all",
    layer: SupportsIndex | None = None,
    max_new_tokens: SupportsIndex = 24,
    candidates: Iterable[str] | None = None,
    encode: Encode | None = None,
    batch_tokens: SupportsIndex = 1024,
    cache: bool = False,
    progress: bool = True,
) -> Steering:
    """Continue prompts while a language's neurons get what they have more in it, beside other selections.

    a → a + strength · (mean of the language - mean of `away`) for the neurons of each selection, and the same with the
    state that enters a layer for directions. Means are over all tokens of all sentences of `texts`. A strength of 0
    changes no bit. Ctrl-C ends it: the result is of what was generated until then, and a warning says so.

    Args:
        model: from `load_model`.
        prompts: texts that leave the language of what follows open, such as those of `tn.load_corpus("openings")`.
        sets: language → the set that should bring it, or a list of that set and of interventions that act beside it and
            beside each other selection, such as another language's neurons set to 0.
        texts: language → the sentences that chose the sets, aligned; their languages are those of LAPE and of average
            precision.
        away: the language whose mean is taken away, such as that of the prompts.
        how: "add", or "mean", which sets activations to their mean in the language and has one strength, 1.
        strengths: of "add" (default: 1, 2 and 4).
        selections: names as in `selections` of this package (default: all but those that need `how="add"`).
        others: language → further selections by name: sets, directions, or functions of a seed.
        draws: of each random selection.
        tokens: as in `tn.Ablation`: "last", "last_word", "prompt" or "all".
        layer: which layer the directions enter (default: the middle of the model).
        max_new_tokens, batch_tokens: as in `tn.behaviour.continuations`.
        candidates: which languages an output may be in, as in `tn.behaviour.languages_of`.
        encode: as in `tn.behaviour.relevance`.
        cache: keep what is captured of `texts` on disk, as in `tn.capture`.
        progress: show bars.

    Raises:
        TnkitError: for a language without texts, an unknown selection or strength, and as generation does.

    >>> from tnkit.testing import steered                         # Italian, with two strengths, on a tiny model
    >>> steered().to_frame()["outputs"].xs("the set", level="selection").tolist()
    [3, 3]
    """
    candidates = None if candidates is None else tuple(candidates)
    chosen = _checked(model, sets, texts, away, how, selections)
    amounts = _strengths(how, strengths)
    detector_of(candidates)  # before minutes of generation, not after
    (encode or encoded)(["."])
    draws = whole_number("draws", draws, at_least=1)
    layer = model.n_layers // 2 if layer is None else whole_number("layer", layer, at_least=1)
    tried = _Tried(model, sets, texts, away=away, how=how, cache=cache, progress=progress)
    plan = [
        (language, name, seed, amount, item)
        for language in sets
        for name, control in tried.controls(language, chosen, others.get(language, {}), layer).items()
        for seed, item in enumerate(drawn(control, draws))
        for amount in amounts
    ]
    options: dict[str, Any] = {"temperature": None, "seed": 0, "batch_tokens": batch_tokens, "tokens": tokens}
    options["max_new_tokens"] = whole_number("max_new_tokens", max_new_tokens, at_least=1)
    said: dict[tuple[Any, ...], tuple[str, ...]] = {}
    with signals.interruptible(lambda: f"{len(said)} of {len(plan)} settings were tried" if said else ""):
        untouched = texts_with(model, prompts, (), progress=False, **options).texts
        for language, name, seed, amount, item in tqdm(plan, desc="steer", disable=not progress, leave=False):
            given = tried.given(language, item, amount)
            said[language, name, amount, seed] = texts_with(model, prompts, given, progress=False, **options).texts
    said = {(language, NONE, 0.0, 0): untouched for language in dict.fromkeys(key[0] for key in said)} | said
    outputs = _scored(model, prompts, said, candidates, encode, progress)
    origin = provenance_of(model, prompts)
    about = {"away": away, "how": how, "tokens": tokens, "layer": layer, "new tokens": options["max_new_tokens"]}
    provenance = {"model": origin["model"], "prompts": origin["sentences"], "versions": origin["versions"]}
    provenance |= {"parameters": about, "amount": _AMOUNTS[how].format(away), **tried.provenance(plan)}
    return Steering(tuple(prompts), outputs, provenance)


def _checked(
    model: Model,
    sets: Mapping[str, Any],
    texts: Mapping[str, Sequence[str]],
    away: str,
    how: str,
    names: Iterable[str] | None,
) -> tuple[str, ...]:
    """The names of the selections, once everything that can be refused early was."""
    one_of("how", how, tuple(_AMOUNTS))
    check_model(model)
    model.check_ready()
    missing = [language for language in (away, *sets) if language not in texts]
    if not sets or missing or away in sets:
        wrong = f"there are no texts in {', '.join(missing)}" if missing else f"away={away!r} is among them"
        raise TnkitError(
            f"sets= must name one or more languages of texts= ({', '.join(texts)}) other than away=: "
            + (wrong if sets else "there is none")
        )
    check_texts(texts)
    chosen = tuple(choices.SELECTIONS if names is None else names)
    if how == "mean" and names is None:
        return tuple(name for name in chosen if name not in choices.DIRECTIONS)
    if how == "mean" and (refused := set(chosen) & set(choices.DIRECTIONS)):
        raise TnkitError(f'how="mean" sets neurons, and {refused.pop()!r} has none; leave it out, or use how="add"')
    return chosen


def _strengths(how: str, strengths: Iterable[SupportsFloat] | None) -> list[float]:
    """The strengths, each once."""
    if strengths is None:
        return [1.0] if how == "mean" else [1.0, 2.0, 4.0]
    amounts = [*dict.fromkeys(map(float, strengths))]
    if not amounts or not all(map(math.isfinite, amounts)) or (how == "mean" and amounts != [1.0]):
        raise TnkitError(
            f"strengths={amounts} must be one or more finite numbers" + ('; how="mean" has only 1' * (how == "mean"))
        )
    return amounts


class _Tried:
    """What is steered with: sets, and captures of their texts, made once."""

    def __init__(
        self,
        model: Model,
        sets: Mapping[str, Any],
        texts: Mapping[str, Sequence[str]],
        *,
        away: str,
        how: str,
        **reading: Any,
    ) -> None:
        self.model, self.texts, self.away, self.how, self.reading = model, texts, away, how, reading
        self.neurons, self.beside = {}, {}
        for language, given in sets.items():
            self.neurons[language], self.beside[language] = _split(model, language, given)
        every: dict[str, Any] = {"keep": ["activations", "post", "scale"], "position": "mean"}
        self.means = {language: capture(model, texts[language], **every, **reading) for language in (away, *sets)}

    @cached_property
    def captured(self) -> dict[str, Activations]:
        """The last token of every text, which other selections are chosen by."""
        reading: dict[str, Any] = {"keep": _SITES, **self.reading}
        return {language: capture(self.model, sentences, **reading) for language, sentences in self.texts.items()}

    def controls(
        self, language: str, names: Sequence[str], others: Mapping[str, Control], layer: int
    ) -> dict[str, Control]:
        """The set and what it is compared with, by name."""
        captured = self.captured if set(names) - set(choices.DIRECTIONS) else {}
        asked: dict[str, Any] = {"language": language, "away": self.away, "layer": layer, "names": names}
        tried = choices.selections(self.model, self.neurons[language], captured, self.means, **asked)
        if taken := {NONE, SET, *tried} & set(others):
            raise TnkitError(f"others={taken.pop()!r} is the name of another selection; rename it")
        return {SET: self.neurons[language], **tried, **others}

    def given(self, language: str, item: Neurons, amount: float) -> list[Any]:
        """One selection at one strength, with what acts beside it on other neurons."""
        if isinstance(item, Direction):
            return [*self.beside[language], replace(item, add=amount * float(item.add or 0.0))]
        neurons = set_of(self.model, item)
        beside = [_without(part, neurons, self.model) for part in self.beside[language]]
        return [*beside, self._moved(language, neurons, amount)]

    def _moved(self, language: str, neurons: NeuronSet, amount: float) -> Intervention:
        if self.how == "mean":
            return Intervention(neurons, value="mean", of=self.means[language])
        return Intervention(neurons, add=amount, of=self.means[language], minus=self.means[self.away])

    def length(self, language: str, item: Neurons) -> float:
        """How far a selection moves the residual stream at a strength of 1, over all layers together."""
        if isinstance(item, Direction):
            return float(sum(vector.norm() * abs(float(item.add or 0.0)) for vector in item.vectors.values()))
        neurons = set_of(self.model, item)
        towards, away = (displacement(self.model, self.means[name], neurons) for name in (language, self.away))
        return float((towards - away).sum(dim=0).norm())

    def provenance(self, plan: Iterable[tuple[str, str, int, float, Neurons]]) -> dict[str, Any]:
        """The sets, the texts, and how far each selection moves the residual stream."""
        lengths: dict[str, dict[str, list[float]]] = {language: {} for language in self.neurons}
        amounts = {(language, name, seed): item for language, name, seed, _, item in plan}
        for (language, name, _), item in amounts.items():
            lengths[language].setdefault(name, []).append(self.length(language, item))
        moved = {
            language: {name: float(np.mean(draws)) for name, draws in named.items()}
            for language, named in lengths.items()
        }
        beside = {language: [part.describe() for part in parts] for language, parts in self.beside.items() if parts}
        sets = {language: neurons.provenance for language, neurons in self.neurons.items()}
        return {"sets": sets, "beside": beside, "moved": moved} | {
            "sentences": [sentences_of(captured.provenance)[0] for captured in self.means.values()]
        }


def _split(model: Model, language: str, given: Any) -> tuple[NeuronSet, list[Any]]:
    """The set that is steered with, and what acts beside it."""
    several = as_one(given)
    parts = [*given] if isinstance(several, Together) else [given]
    fixed = [part for part in parts if isinstance(part, Intervention | Direction | Together)]
    steered = [part for part in parts if not isinstance(part, Intervention | Direction | Together)]
    if len(steered) != 1:
        raise TnkitError(
            f"sets[{language!r}] holds {len(steered)} neuron sets to steer with; give one, and what acts beside it as "
            "tn.Intervention"
        )
    return set_of(model, steered[0]), fixed


def _without(part: Any, neurons: NeuronSet, model: Model) -> Any:
    """An intervention without neurons that another one acts on."""
    return replace(part, neurons=set_of(model, part.neurons) - neurons) if isinstance(part, Intervention) else part


def _scored(
    model: Model,
    prompts: Sequence[str],
    said: Mapping[tuple[str, str, float, int], tuple[str, ...]],
    candidates: tuple[str, ...] | None,
    encode: Encode | None,
    progress: bool,
) -> pd.DataFrame:
    """One row for each output, with what is measured of it."""
    distinct = list(dict.fromkeys(text for texts in said.values() for text in texts))
    spoken = dict(zip(distinct, languages_of(distinct, candidates=candidates), strict=True))
    predicted, encode = _predicted(model, distinct, progress), _remembering(encode or encoded)
    frames = {}
    for key, texts in said.items():
        language = key[0]
        others = other_languages(texts, language, candidates)
        lines = np.array([math.nan if wrong is None else float(not wrong) for wrong in others])
        words = np.array([float(not foreign_words(text, language)) for text in texts])
        if scripts_of(language) == {"Latn"}:
            words[:] = math.nan
        columns = {
            "text": texts,
            "spoken": [spoken[text] for text in texts],
            "in language": [float(spoken[text] == language) for text in texts],
            "lines pass": lines,
            "words pass": np.where(lines == 1, words, math.nan),
            "relevance": relevance(texts, prompts, encode=encode),
            "distinct": [predicted[text].distinct for text in texts],
            "nats": [predicted[text].nats for text in texts],
            "tokens": [predicted[text].tokens for text in texts],
        }
        frames[key] = pd.DataFrame(columns, index=pd.RangeIndex(len(texts)))
    table = pd.concat(frames, names=[*INDEX])
    return table.assign(spoken=table["spoken"].astype(object).where(table["spoken"].notna(), None))


def _remembering(encode: Encode) -> Encode:
    """An encoder that reads each text once."""
    vectors: dict[str, Any] = {}

    def remembered(texts: Sequence[str]) -> Any:
        new = [text for text in texts if text not in vectors]
        if new:
            vectors.update(zip(new, encode(new), strict=False))
        return np.array([vectors[text] for text in texts if text in vectors])

    return remembered


class _Predicted(NamedTuple):
    """Of a text: the share of its tokens that are distinct, its nats per token, and of how many tokens."""

    distinct: float = math.nan
    nats: float = math.nan
    tokens: float = 0.0


def _predicted(model: Model, texts: Sequence[str], progress: bool) -> dict[str, _Predicted]:
    """What the untouched model says of each text of two or more tokens."""
    ids = model.tokenizer(list(texts), verbose=False, add_special_tokens=False)["input_ids"]
    distinct = {text: len({*tokens}) / max(1, len(tokens)) for text, tokens in zip(texts, ids, strict=True)}
    read = [text for text, tokens in zip(texts, ids, strict=True) if text.strip() and len(tokens) > 1]
    results = dict.fromkeys(texts, _Predicted())
    if read:
        scored = perplexity(model, read, progress=progress)
        for text, nats, count in zip(read, scored.nll, scored.tokens, strict=True):
            results[text] = _Predicted(distinct[text], float(nats), float(count))
    return results
