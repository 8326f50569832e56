"""Where results come from: `provenance_of` writes it, `stated` reads it, and the checks compare it.

`check_made_with` compares a result with a model, `check_alike` and `check_fits` compare captures.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypedDict, cast, runtime_checkable

from tnkit import storage
from tnkit.errors import TnkitError, check_model

_LOG = logging.getLogger("tnkit")
_OLD_HASH = re.compile("[0-9a-f]{16}")  # of tnkit up to 0.1: sums of weights, blind to their order
_TOLD: set[str] = set()  # warnings that were given
_DICTS = ("model", "sentences", "centroid", "selection", "versions")  # or, the second and third, lists of dicts
_HOW = ("position", "suffix", "ablations")  # what decides a state beside the model
_CAPTURED = ("model", "position", "suffix", "last_layer", "ablations")


class ModelOrigin(TypedDict, total=False):
    """What results record of a model: `template` only where it has one, `attention` only where it is known.

    `layout`, the number of neurons of each layer, is there only where layers differ.
    """

    name: str
    revision: str | None
    weights: str
    dtype: str
    attention: str
    layers: int
    neurons: int
    hidden: int
    layout: list[list[int]]
    template: str


class Sentences(TypedDict, total=False):
    """Which sentences of one language: as their corpus names them, how many, their hash, and how they end.

    `input` is "token ids" where those were given in place of sentences.
    """

    corpus: str
    language: str
    split: str
    source: str
    rows: str
    matched: str
    input: str
    n: int
    hash: str
    ends: Any  # `tnkit.models.tokens.Ends`


class Provenance(TypedDict, total=False):
    """Where a result comes from; what does not apply is left out.

    `sentences` are those of one capture, or the list of them for what was made from several; `sentences_of` reads both.
    """

    model: ModelOrigin
    sentences: Any
    position: str
    suffix: str
    last_layer: str
    tokens: Any  # `tnkit.models.tokens.Specials`
    versions: dict[str, str]
    server: str
    ablations: list[dict[str, Any]]
    distance: str
    centroid: Any  # as `sentences`
    selection: dict[str, Any]


@runtime_checkable
class Capture(Protocol):
    """What measures are computed from: `tnkit.captures.activations.Activations`, for one."""

    @property
    def provenance(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...


class Origin(ABC):
    """What a result can be made with; a `tnkit.models.model.Model` is one."""

    name: str
    server: ClassVar[str | None]

    @property
    @abstractmethod
    def weights_hash(self) -> str: ...

    @property
    @abstractmethod
    def dtype(self) -> Any: ...

    @property
    @abstractmethod
    def attention(self) -> str | None: ...

    @property
    @abstractmethod
    def provenance(self) -> ModelOrigin: ...

    @property
    @abstractmethod
    def ablations(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def check_unchanged(self) -> None: ...


def provenance_of(model: Origin, sentences: Sequence[Any]) -> dict[str, Any]:
    """What results record of where they come from: model, sentences (or token ids), what is ablated, versions.

    >>> from tnkit.testing import tiny_model
    >>> provenance_of(tiny_model(), ["Hi!"])["sentences"]
    {'n': 1, 'hash': '5eed476b775c744d'}
    """
    names = ("corpus", "language", "split", "source", "rows", "matched")
    origin = {name: getattr(sentences, name, None) for name in names}
    named = {name: value for name, value in origin.items() if value}
    if not isinstance(sentences[0], str):
        named, sentences = named | {"input": "token ids"}, [" ".join(map(str, map(int, ids))) for ids in sentences]
    made_of: Provenance = {
        "model": model.provenance,
        "sentences": {**named, "n": len(sentences), "hash": storage.text_hash(sentences)},
        "position": "last",
        "last_layer": "raw",
        "versions": storage.versions(),
    }
    if model.server:
        made_of["server"] = model.server
    if model.ablations:
        made_of["ablations"] = list(model.ablations)
    return dict(made_of)


def sentences_of(provenance: Mapping[str, Any]) -> list[Sentences]:
    """The sentences that a result was made of, one entry per capture, whichever version of tnkit wrote its file.

    >>> sentences_of({"sentences": {"language": "ja"}}) == sentences_of({"sentences": [{"language": "ja"}]})
    True
    >>> sentences_of({"sentences": {"en": {"n": 3}, "ja": {"n": 2}}})
    [{'language': 'en', 'n': 3}, {'language': 'ja', 'n': 2}]
    """
    sentences = provenance.get("sentences", [])
    if isinstance(sentences, list):
        return list(sentences)
    if sentences and all(isinstance(entry, dict) for entry in sentences.values()):  # by language, up to tnkit 0.1
        return [cast(Sentences, {"language": language, **entry}) for language, entry in sentences.items()]
    return [sentences]


def joined(captures: Sequence[Capture] | Mapping[str, Capture], **parameters: Any) -> dict[str, Any]:
    """The provenance of what was computed from captures: the first one's, the sentences of all, and the parameters.

    Args:
        captures: in order, or by language; the language is added where a capture does not state its own.
        **parameters: of the computation.

    >>> from tnkit.testing import cloud, held
    >>> joined({"en": held(cloud(1, 3, 2)), "ja": held(cloud(1, 2, 2))}, k=5)
    {'sentences': [{'language': 'en', 'n': 3}, {'language': 'ja', 'n': 2}], 'parameters': {'k': 5}}
    """
    named = captures.items() if isinstance(captures, Mapping) else ((None, capture) for capture in captures)
    sentences: list[Any] = []
    for language, capture in named:
        entries = sentences_of(capture.provenance) or [{"n": len(capture)}]
        sentences += [{"language": language, **entry} if language else entry for entry in entries]
    first = next(iter(captures.values() if isinstance(captures, Mapping) else captures))
    return {**first.provenance, "sentences": sentences, **({"parameters": parameters} if parameters else {})}


def stated(path: str | Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance that a file states, as `Provenance` describes it.

    Args:
        path: of the file, for the message.
        about: what the file says of itself.

    Raises:
        TnkitError: where it is not laid out as tnkit writes it.

    >>> stated("a.json", {"provenance": {"position": "last"}}), stated("a.json", {})
    ({'position': 'last'}, {})
    """
    provenance = about.get("provenance") or {}
    fields = provenance.items() if isinstance(provenance, dict) else [("sentences", None)]
    for name, value in fields:
        entries = value if name in ("sentences", "centroid") and isinstance(value, list) else [value]
        if name in _DICTS and not all(isinstance(entry, dict) for entry in entries):
            raise TnkitError(f"{path}: its provenance is not laid out as tnkit writes it; make it again")
    return provenance


def check_made_with(model: Origin, provenance: Any, what: str, *, states: bool = False) -> None:
    """Refuse a result that was made with other weights than the model has now.

    A result that does not say which weights it was made with passes. So does one whose hash cannot be compared, and a
    warning says so: that of an old tnkit, and, unless `states` is set, that of a server which does not show its
    weights, where names, revisions and shapes are the same.

    Args:
        model: from `load_model`.
        provenance: of the result; models that it names at any depth are checked.
        what: what the result is, for the message, as in "these neurons".
        states: whether it holds states of the model, which its attention implementation decides, too.

    Raises:
        TnkitError: naming both models, their weights hashes, and how to use the result on purpose.

    >>> from tnkit.testing import tiny_model
    >>> check_made_with(tiny_model(), {"model": tiny_model().provenance}, "these neurons")
    >>> check_made_with(tiny_model(), {"model": tiny_model("qwen3").provenance}, "these neurons")
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: these neurons were made with Qwen3ForCausalLM in float32 (weights ...
    """
    check_model(model)
    model.check_unchanged()
    made_with = {origin["weights"]: origin for origin in _models(provenance)}
    comparable = [weights for weights in made_with if not _OLD_HASH.fullmatch(str(weights))]
    if len(comparable) < len(made_with):
        _tell_once(f"{what}: an older tnkit recorded their model's weights, so these cannot be compared")
    weights_now = model.weights_hash if comparable else None
    for weights in comparable:
        theirs = made_with[weights]
        unread = [str(value).startswith("named:") for value in (weights, weights_now)]
        if any(unread) and not all(unread) and not states and _is_same_by_name(model.provenance, theirs):
            _tell_once(
                f"{what}: the weights of {model.name} on a server cannot be read, so they are taken to be those of "
                "the same name here"
            )
        elif weights != weights_now:
            raise TnkitError(
                f"{what} were made with {theirs.get('name')} in {theirs.get('dtype')} (weights {weights}), not with "
                f"{model.name} in {str(model.dtype).removeprefix('torch.')} (weights {weights_now}) as it is "
                "now; make them with this model, or pass list(neurons) to use the same places in another model"
            )
    now = model.attention
    if states and now is not None:
        for before in {model_then.get("attention", now) for model_then in made_with.values()} - {now}:
            raise TnkitError(
                f"{what} were made with attn_implementation={before!r}, and {model.name} now has {now!r}; make them "
                f"again, or call module.set_attn_implementation({before!r}) first"
            )


def _is_same_by_name(here: ModelOrigin, there: Mapping[str, Any]) -> bool:
    """Whether two models have one name and shape, and no different revisions."""
    names = ("name", "layers", "neurons", "hidden")
    revisions = {origin.get("revision") for origin in (here, there)} - {None}
    return len(revisions) < 2 and all(here.get(name) == there.get(name) for name in names)


def _tell_once(text: str) -> None:
    if text not in _TOLD:
        _LOG.warning(text)
    _TOLD.add(text)


def check_alike(
    provenances: Iterable[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]], options: Iterable[str] = _CAPTURED
) -> None:
    """Refuse to compare or average what was captured in different ways: other models, ablations or positions.

    Args:
        provenances: of the captures, by name or in order; those that state no model, position or layers pass.
        options: which entries must be equal; "layers" and "width" where the caller adds them.

    Raises:
        TnkitError: naming the first difference.

    >>> check_alike({"en": {"position": "last"}, "ja": {"position": "mean"}})
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: en and ja are captures of different position ('last' and 'mean'); capture all alike
    """
    if not isinstance(provenances, Mapping):
        provenances = {f"capture {number}": provenance for number, provenance in enumerate(provenances, 1)}
    stated = {name: entry for name, entry in provenances.items() if {"model", "position", "layers"} & entry.keys()}
    first = next(iter(stated), "")
    for name, option in product(list(stated)[1:], options):
        left, right = stated[first].get(option), stated[name].get(option)
        if isinstance(left, dict) and isinstance(right, dict):
            left, right = ({k: side[k] for k in side if left.get(k) != right.get(k)} for side in (left, right))
        if left != right:
            raise TnkitError(
                f"{first} and {name} are captures of different {option} ({left!r} and {right!r}); capture all alike"
            )


def check_fits(states: Mapping[str, Any], centroids: Mapping[str, Any]) -> None:
    """Refuse to score states against centroids that were captured in another way.

    Args:
        states: the provenance of the states.
        centroids: that of the centroids; nothing is compared where either names no position.

    Raises:
        TnkitError: naming the first difference.

    >>> check_fits({"position": "last", "ablations": [{"neurons": 1}]}, {"position": "last"})
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: the centroids were estimated at ablations=None, the sentences captured at ablations=[{...
    """
    if not (states.get("position") and centroids.get("position")):
        return
    here, there = ({name: side.get(name) for name in _HOW} for side in (states, centroids))
    if "model" in states and "model" in centroids:
        here["template"], there["template"] = (side["model"].get("template") for side in (states, centroids))
        if "attention" in states["model"] and "attention" in centroids["model"]:  # a server does not tell its own
            here["attention"], there["attention"] = (side["model"]["attention"] for side in (states, centroids))
    for option, value in here.items():
        if value != there[option]:
            raise TnkitError(
                f"the centroids were estimated at {option}={there[option]!r}, the sentences captured at "
                f"{option}={value!r}; use one {option} for both, or pass Centroids(centroids.values, centroids.layers) "
                "to mix them on purpose"
            )


def _models(provenance: Any) -> Iterator[dict[str, Any]]:
    """The models with weights that a provenance names, also those of the sets that a set was made of."""
    if isinstance(provenance, dict):
        if isinstance(model := provenance.get("model"), dict) and "weights" in model:
            yield model
        provenance = list(provenance.values())
    if isinstance(provenance, list):
        for entry in provenance:
            yield from _models(entry)
