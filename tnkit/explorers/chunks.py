"""What the explorer shows, as small JSON-able chunks that are computed when a view asks for them: `Chunks`.

A chunk has a key of words: "plane", "ribbon" (retrieval by layer), "sets", "neurons|ja|type1|300",
"off|ja|type1|300|zero|same layers" (states with neurons off), "evidence|ja|type1|300|zero|last",
"own|ja|type1|300|" and a text (activations at its tokens),
"said|ja|type1|300|zero|last|same layers|" and a prompt, and "steered|en|ja|1.5|" and a prompt. In place of a size,
neurons may be listed, "3:17,4:20", or be those towards test sentences, "300@ja.1.7;it.2". The widget and the page that
needs no kernel are drawn from the same chunks.
"""

import base64
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from tnkit import storage
from tnkit.captures.batches import read_places, tokenised
from tnkit.detection.attraction import Attraction
from tnkit.detection.detect import KINDS
from tnkit.detection.neurons import NeuronSet
from tnkit.detection.scores import DISTANCES, SCORES
from tnkit.detection.turns import attraction
from tnkit.errors import TnkitError
from tnkit.explorers.evidence_rows import evidence_rows, rounded
from tnkit.explorers.neuron_rows import neuron_rows, own_rows
from tnkit.explorers.prompt_rows import MOST, continued_rows, steered_rows
from tnkit.explorers.study import CONTROLS, Study
from tnkit.interventions.controls import drawn
from tnkit.interventions.intervention import set_of
from tnkit.interventions.last_token import PLACES
from tnkit.measures.geometry.planes import Planes, aligned_planes
from tnkit.measures.geometry.translation import hits
from tnkit.models.packaged import MODELS
from tnkit.plots.looks import KIND_NAMES, language_looks, language_name

POSITIONS = {"last": "last token", "last_word": "last word", "mean": "mean over tokens"}
ROLES = {"untouched": "untouched", "set": "set off", "control": "control off"}
_Chunk = Generator[str, None, dict[str, Any]]  # yields a description before each step, and returns the chunk
VERSION = 3  # of the payload
_BINS = 48  # of the distribution of scores
_COUNTS = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000)


class Chunks:
    """The chunks of a study.

    Args:
        study: the model, the corpus and their results.
        seeds: the number of draws of each random control.

    >>> from tnkit.explorers.study import Study
    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> chunks = Chunks(Study(tiny_model(), tiny_corpus()))
    >>> sorted(chunks.now("plane"))
    ['explained', 'points', 'spread']
    """

    def __init__(self, study: Study, *, seeds: int = 3) -> None:
        self.study, self.seeds = study, seeds
        self._kept: dict[str, dict[str, Any]] = {}
        self._fitted: Planes | None = None
        self._attraction: tuple[tuple[str, str], Attraction] | None = None  # the last, as large as its layers
        self._weights = study.weights()

    def now(self, key: str) -> dict[str, Any]:
        """A chunk, computed at once."""
        for _ in self.computing(key):
            pass
        return self._kept[key]

    def kept(self, key: str) -> dict[str, Any] | None:
        """A chunk, where it is computed already."""
        if self._weights != self.study.weights():
            self._weights, self._fitted, self._attraction = self.study.weights(), None, None
            self._kept.clear()
        return self._kept.get(key)

    def computing(self, key: str) -> Iterator[str]:
        """Compute a chunk; yields a description before each step.

        Raises:
            TnkitError: for a key that names nothing of this study.
        """
        if self.kept(key) is not None:
            return
        steps: dict[str, tuple[Callable[..., _Chunk], int]] = {
            "plane": (self._plane, 0),
            "ribbon": (self._ribbon, 0),
            "sets": (self._sets, 0),
            "off": (self._off, 5),
            "neurons": (self._neurons, 3),
            "evidence": (self._evidence, 5),
            "own": (self._own, 4),
            "said": (self._said, 7),
            "steered": (self._steered, 4),
        }
        name, *_ = key.split("|", 1)
        compute, count = steps.get(name, (None, 0))
        words = key.split("|", count)[1:]  # a text comes last, and may hold the sign that parts words
        study = self.study
        known = {"steered": ((0, study.languages), (1, study.others))}.get(name, ((0, study.others), (1, KINDS)))
        if compute is None or len(words) != count or any(words[at] not in of for at, of in known if words):
            raise TnkitError(f"there is nothing called {key!r:.80} in this study; its languages are {study.languages}")
        self._kept[key] = yield from compute(*words)

    @property
    def planes(self) -> Planes:
        """The planes of the layers, once "plane" is computed."""
        if self._fitted is None:
            raise TnkitError('the planes are not fitted yet; ask for the chunk "plane"')
        return self._fitted

    def points(self, role: str, language: str, state: Mapping[str, Any]) -> np.ndarray | None:
        """The coordinates of a role of the map, (layer, sentence, 2), where they are computed."""
        if role == "untouched" or language == self.study.hub:
            return self.planes.project(self.study.captured("test", language))
        size = state["size"] if language == state["language"] or str(state["size"]).isdigit() else self.study.top
        chunk = self.kept("|".join(["off", language, state["kind"], str(size), state["value"], state["control"]]))
        return None if chunk is None else unpacked_points(chunk[role]["points"])

    def about(self) -> dict[str, Any]:
        """What the study is: model, corpus, languages and their looks, sentences, and what controls offer."""
        study = self.study
        model, looks = study.model, language_looks(study.languages)
        languages = [
            {"code": code, "name": language_name(code), "colour": looks[code][0], "marker": looks[code][1]}
            for code in study.languages
        ]
        read = {code: self._tokens(code) for code in study.languages}
        most = min(len(layers) for layers in (model.early_layers, model.late_layers)) * model.n_neurons // 3
        test = study.texts["test"][study.hub]
        return {
            "version": VERSION,
            "tnkit": storage.versions().get("tnkit", ""),
            "model": model.name,
            "corpus": study.corpus.name,
            "hub": study.hub,
            "languages": languages,
            "layers": model.n_layers,
            "width": model.n_neurons,
            "early": [min(model.early_layers), max(model.early_layers)],
            "late": [min(model.late_layers), max(model.late_layers)],
            "kinds": KIND_NAMES,
            "size": study.top,
            "sizes": sorted({count for count in _COUNTS if count <= most} | {study.top}),
            "values": study.values(),
            "controls": list(CONTROLS),
            "seeds": self.seeds,
            "position": study.reading["position"],
            "strength": MOST,
            "form": self._form(),
            "ids": list(getattr(test, "ids", None) or range(len(test))),
            "test": {code: list(texts) for code, texts in study.texts["test"].items()},
            "train": {code: list(texts) for code, texts in study.texts["train"].items()},
            "ends": {code: last for code, (last, _) in read.items()},
            "lengths": {code: lengths for code, (_, lengths) in read.items()},
        }

    def _form(self) -> dict[str, Any]:
        """What the form of a detection offers, and what it was last run with."""
        study = self.study
        corpus, layers = study.corpus.languages, study.finding["layers"]
        return {
            "languages": {code: language_name(code) for code in corpus},
            "models": sorted({study.model.name, *MODELS}),
            "distances": list(DISTANCES),
            "scores": list(SCORES),
            "positions": {**POSITIONS, **({"end": "end of the template"} if study.model.template else {})},
            "sentences": study.sentences,
            "distance": study.finding["distance"],
            "score": study.finding["score"],
            "layers": None if layers is None else [min(layers), max(layers)],
        }

    def _tokens(self, language: str) -> tuple[list[str], list[int]]:
        """The token that is read in each test sentence, and how many there are."""
        study, reading = self.study, self.study.reading
        model, position = study.model, reading["position"]
        ids = tokenised(model, study.texts["test"][language], whole=position == "end", suffix=reading["suffix"])
        places = read_places(model, ids, position) if position in PLACES else [len(row) - 1 for row in ids]
        last = [str(model.tokenizer.decode([int(row[place])])) for row, place in zip(ids, places, strict=True)]
        return last, [int(length) for length in ids.lengths()]

    def _plane(self) -> _Chunk:
        study = self.study
        study.recall("test")
        for language in study.languages:
            yield f"reading the test sentences in {language_name(language)}"
            study.captured("test", language)
        yield "fitting a plane to each layer"
        states = study.all_captured("test", progress=False)
        self._fitted = planes = aligned_planes(states)
        points = {language: packed_points(planes.project(captured)) for language, captured in states.items()}
        return {"points": points, "explained": rounded(planes.explained), "spread": planes.spread.tolist()}

    def _ribbon(self) -> _Chunk:
        """Of every language, which test sentences find their translation in the hub, and how far its mean lies."""
        study, rows = self.study, {}
        hub = study.captured("test", study.hub)
        for language in study.others:
            yield f"looking for the translations of {language_name(language)}"
            states = study.captured("test", language)
            centred, raw = (hits(states, hub, centred=centred) for centred in (True, False))
            own, other = (captured.tensors()["post"].double().mean(dim=1) for captured in (states, hub))
            cosine = torch.nn.functional.cosine_similarity(own, other, dim=1)
            rows[language] = {
                "hits": packed_bits(np.asarray(centred)),
                "centred": rounded(np.asarray(centred).mean(axis=1)),
                "raw": rounded(np.asarray(raw).mean(axis=1)),
                "distance": rounded(1 - cosine.numpy(), 6),
            }
        return rows

    def _sets(self) -> _Chunk:
        """The neurons of every language and type, by layer, with the scores they were chosen by."""
        study, found = self.study, {}
        yield from study.detecting(study.others)
        for kind in KINDS:
            for language in study.others:
                detection = study.found[language, kind]
                chosen = study.neurons(language, kind)
                counts = [0] * study.model.n_layers
                for layer, _ in chosen:
                    counts[layer] += 1
                values = detection.scores.values.numpy()
                finite = values[np.isfinite(values)]
                edges = np.histogram_bin_edges(finite, _BINS)
                found[f"{language}|{kind}"] = {
                    "layers": counts,
                    "searched": [min(detection.scores.layers), max(detection.scores.layers)],
                    "distance": detection.scores.distance,
                    "score": detection.scores.score,
                    "lowest": rounded(chosen.scores[-1], 6),
                    "highest": rounded(chosen.scores[0], 6),
                    "edges": rounded(edges, 6),
                    "all": np.histogram(finite, edges)[0].tolist(),
                    "chosen": np.histogram(np.array(chosen.scores), edges)[0].tolist(),
                    "shared": {name: len(chosen & study.neurons(name, kind)) for name in study.others},
                    "candidates": len(finite),
                }
        return found

    def chosen(self, language: str, kind: str, size: str) -> NeuronSet:
        """The neurons that a key names: by their number, one by one, or by the sentences that they move towards.

        Raises:
            TnkitError: for a name of no neurons or sentences of this study.
        """
        study = self.study
        try:
            if "@" in size:
                count, _, group = size.partition("@")
                return self._towards(language, kind, int(count), sentences_of(group))
            if ":" not in size:
                return study.neurons(language, kind, int(size))
            pairs = [(int(layer), int(neuron)) for layer, neuron in (pair.split(":") for pair in size.split(","))]
        except (ValueError, KeyError, IndexError) as error:
            if isinstance(error, TnkitError):
                raise
            raise TnkitError(f"{size!r:.80} names no neurons; give a number, or layer:neuron pairs") from error
        return set_of(study.model, pairs)

    def _towards(self, language: str, kind: str, count: int, group: Mapping[str, list[int]]) -> NeuronSet:
        """The neurons that move the training sentences of a language most towards the mean of some test sentences."""
        study, layers = self.study, self.study.found[language, kind].scores.layers
        if self._attraction is None or self._attraction[0] != (language, kind):
            captured = study.captured("train", language)
            self._attraction = (language, kind), attraction(study.model, captured, layers=layers, progress=False)
        states = [study.captured("test", code).tensors()["post"][:, numbers] for code, numbers in group.items()]
        scores = self._attraction[1].scores(torch.cat(states, dim=1).float().mean(dim=1))
        return scores.top(count)

    def _off(self, language: str, kind: str, size: str, value: str, control: str) -> _Chunk:
        study = self.study
        yield from self.computing("plane")
        yield from study.detecting(study.others, [kind])
        neurons = self.chosen(language, kind, size)
        drawing = drawn(study.controls_of(neurons, language, kind)[control], 1)[0]
        result: dict[str, Any] = {"first": min(layer for layer, _ in neurons)}
        for name, tried in (("set", neurons), ("control", drawing)):
            yield f"reading {language_name(language)} with {len(tried)} neurons off ({name})"
            states = study.off(language, study.set_to(tried, language, value), "last")
            found = np.asarray(hits(states, study.captured("test", study.hub)))
            result[name] = {
                "points": packed_points(self.planes.project(states)),
                "hits": packed_bits(found),
                "centred": rounded(found.mean(axis=1)),
            }
        return result

    def _neurons(self, language: str, kind: str, size: str) -> _Chunk:
        yield from self.study.detecting(self.study.others)
        return (yield from neuron_rows(self.study, self.chosen(language, kind, size), language=language, kind=kind))

    def _evidence(self, language: str, kind: str, size: str, value: str, scope: str) -> _Chunk:
        yield from self.study.detecting(self.study.others)
        neurons = self.chosen(language, kind, size)
        about = {"language": language, "kind": kind, "value": value, "scope": scope}
        return (yield from evidence_rows(self.study, neurons, **about, seeds=self.seeds, known=size.isdigit()))

    def _own(self, language: str, kind: str, size: str, text: str) -> _Chunk:
        yield from self.study.detecting(self.study.others)
        return (yield from own_rows(self.study, self.chosen(language, kind, size), text))

    def _said(self, language: str, kind: str, size: str, value: str, scope: str, control: str, prompt: str) -> _Chunk:
        yield from self.study.detecting(self.study.others)
        about = {"language": language, "kind": kind, "value": value, "scope": scope, "control": control}
        return (yield from continued_rows(self.study, self.chosen(language, kind, size), **about, prompt=prompt))

    def _steered(self, away: str, added: str, strength: str, prompt: str) -> _Chunk:
        return (yield from steered_rows(self.study, away=away, added=added, strength=float(strength), prompt=prompt))


def sentences_of(group: str) -> dict[str, list[int]]:
    """The numbers of sentences by language that a key names.

    >>> sentences_of("ja.1.7;it.2")
    {'ja': [1, 7], 'it': [2]}
    """
    rows = [row.split(".") for row in group.split(";")]
    return {language: [int(number) for number in numbers] for language, *numbers in rows}


def packed_points(points: np.ndarray) -> dict[str, Any]:
    """Coordinates, (layer, sentence, 2), as 16-bit integers in base64, with the unit of each layer.

    >>> packed = packed_points(np.array([[[1.0, -2.0]]]))
    >>> unpacked_points(packed).round(3).tolist()
    [[[1.0, -2.0]]]
    """
    unit = np.maximum(np.abs(points).max(axis=(1, 2)), 1e-9) / 32767
    whole = np.round(points / unit[:, None, None]).astype("<i2")
    return {"xy": base64.b64encode(whole.tobytes()).decode(), "unit": unit.tolist()}


def unpacked_points(packed: Mapping[str, Any]) -> np.ndarray:
    """The coordinates that `packed_points` packed."""
    unit = np.array(packed["unit"])
    whole = np.frombuffer(base64.b64decode(packed["xy"]), "<i2").reshape(len(unit), -1, 2)
    points: np.ndarray = whole * unit[:, None, None]
    return points


def packed_bits(hit: np.ndarray) -> str:
    """(layer, sentence) truth values as bits in base64, the first in the highest bit, each layer from a new byte."""
    return base64.b64encode(np.packbits(hit.astype(bool), axis=1).tobytes()).decode()
