"""A neuron set as rows for a browser: measurements, means by language, flags, top sentences token by token."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from tnkit.captures.activations import Activations
from tnkit.captures.batches import by_length, tokenised
from tnkit.captures.rows import Rows
from tnkit.detection.detect import KINDS
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError
from tnkit.explorers.study import Study
from tnkit.interventions.scopes import decoder_of
from tnkit.measures.lens import promoted
from tnkit.measures.specificity.table import MEASUREMENTS
from tnkit.models.model import Model
from tnkit.models.sessions import TURN
from tnkit.plots.looks import language_name

_SENTENCES = 4  # for each neuron
_WORDS = 7  # at each end of what a neuron writes
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the sentences, below each of a box's lines
_CONSTANT = 0.9  # share of the squared activation that its mean explains, from which on a neuron is called constant
_END = 0.5  # share of the variance that the last character explains, from which on it is said to follow it
_MASSIVE = 10.0  # times the median size of its layer, from which on a neuron is called massive
_BATCH = 2048  # tokens
_OWN = 200  # tokens of a text of one's own


def neuron_rows(study: Study, neurons: NeuronSet, *, language: str, kind: str) -> Generator[str, None, dict[str, Any]]:
    """The rows of a set, for `tnkit.explorers.chunks`; yields a description before each step."""
    for name in study.languages:
        yield f"reading the training sentences in {language_name(name)}"
        study.captured("train", name)
    captured = study.all_captured("train", progress=False)
    yield "measuring each neuron"
    layers, places = np.array(neurons.pairs).T
    values = {name: study.per_neuron(measure)[layers, places] for name, (_, measure) in MEASUREMENTS.items()}
    own = {name: _values(capture, neurons) for name, capture in captured.items()}  # (neuron, sentence)
    size = np.array([np.abs(of_layer(captured, layer)).mean(axis=0) for layer in range(study.model.n_layers)])
    massive = size[layers, places] / np.maximum(np.median(size, axis=1)[layers], 1e-12)
    ends = [_after_character(values, study.texts["train"][name]) for name, values in own.items()]
    yield "looking up the sentences that activate each neuron"
    top = _top(own, list(study.languages))
    yield "asking what each neuron writes"
    words = _words(study.model, neurons)
    tokens: dict[str, list[str]] = {}
    strips: list[list[Any]] = [[None] * len(row) for row in top]
    if not any(map(study.model.experts_of, range(study.model.n_layers))):
        tokens, strips = yield from _strips(study, neurons, top)
    found = [(name, of) for name in study.others for of in KINDS if (name, of) in study.found]
    sets = {key: {*study.neurons(*key)} for key in found}
    rows = []
    for number, pair in enumerate(neurons):
        held = {
            "constant": values["constant share"][number] >= _CONSTANT,
            "last character": max(shares[number] for shares in ends) >= _END,
            "massive": massive[number] >= _MASSIVE,
        }
        holding = [key for key in found if pair in sets[key]]
        rows.append(
            {
                "layer": pair[0],
                "neuron": pair[1],
                "score": round(float(neurons.scores[number]), 6) if len(neurons.scores) else None,
                "values": [round(float(column[number]), 4) for column in values.values()],
                "means": [round(float(own[name][number].mean()), 4) for name in study.languages],
                "spread": [np.quantile(own[name][number], _SHARES).round(3).tolist() for name in study.languages],
                "shared": [name for name, of in holding if of == kind and name != language],
                "other": [name for name, of in holding if of != kind],
                "flags": [name for name, holds in held.items() if holds],
                "top": top[number],
                "strips": strips[number],
                "raises": words[0][number],
                "lowers": words[1][number],
            }
        )
    return {"language": language, "columns": list(MEASUREMENTS), "rows": rows, "tokens": tokens}


def of_layer(captured: Mapping[str, Activations], layer: int) -> np.ndarray:
    """The activations of a layer in all languages, (sentence, neuron)."""
    return np.concatenate([capture.of_layer(layer).float().numpy() for capture in captured.values()])


def _values(capture: Activations, neurons: NeuronSet) -> np.ndarray:
    """(neuron, sentence) activations of a set, in its order."""
    places = {pair: row for row, pair in enumerate(neurons)}
    values = np.empty((len(neurons), len(capture)))
    for layer, numbers in neurons.by_layer().items():
        columns = capture.of_neurons(layer, numbers).double().numpy()
        for column, number in enumerate(numbers):
            values[places[layer, number]] = columns[:, column]
    return values


def _after_character(values: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The share of each neuron's variance between sentences of different last characters, in one language."""
    ends = np.array([text[-1:] for text in texts])
    centred = values - values.mean(axis=1, keepdims=True)
    between = sum((ends == end).sum() * centred[:, ends == end].mean(axis=1) ** 2 for end in set(ends))
    total = (centred**2).sum(axis=1)
    share: np.ndarray = np.divide(between, total, out=np.zeros(len(values)), where=total > 0)
    return share


def _top(own: Mapping[str, np.ndarray], languages: list[str]) -> list[list[list[Any]]]:
    """Each neuron's sentences of the largest activation, with the sign of the largest: [language, sentence, value]."""
    values = np.concatenate([own[name] for name in languages], axis=1)
    counts = np.cumsum([0, *(own[name].shape[1] for name in languages)])
    rows = []
    for row in values:
        signed = row if row.max() >= -row.min() else -row
        chosen = np.argsort(-signed, kind="stable")[:_SENTENCES]
        of = np.searchsorted(counts, chosen, side="right") - 1
        rows.append(
            [
                [languages[place], int(number - counts[place]), round(float(row[number]), 3)]
                for place, number in zip(of, chosen, strict=True)
            ]
        )
    return rows


def _words(model: Model, neurons: NeuronSet) -> tuple[list[list[str]], list[list[str]]]:
    """What each value vector raises and lowers; nothing for a model without a known unembedding."""
    try:
        tokens = promoted(model, neurons, k=_WORDS)
    except TnkitError:
        return [[] for _ in neurons], [[] for _ in neurons]
    return [list(row) for row in tokens.promoted], [list(row) for row in tokens.suppressed]


def _strips(study: Study, neurons: NeuronSet, top: list[list[list[Any]]]) -> Generator[str, None, tuple[Any, Any]]:
    """The tokens of the top sentences, and each neuron's activation at every one of them."""
    model, reading = study.model, study.reading
    wanted: dict[tuple[str, int], list[int]] = {}
    for row, sentences in enumerate(top):
        for language, number, _ in sentences:
            wanted.setdefault((language, number), []).append(row)
    keys = list(wanted)
    texts = [study.texts["train"][language][number] for language, number in keys]
    ids = tokenised(model, texts, whole=reading["position"] == "end", suffix=reading["suffix"])
    done, values = 0, {}
    for index in by_length(ids.lengths(), _BATCH):
        yield f"reading every token: {done} of {len(keys)} sentences"
        rows = sorted({row for place in index for row in wanted[keys[place]]})
        states = token_activations(model, [ids[place] for place in index], [neurons[row] for row in rows])
        for number, place in enumerate(index):
            for row in wanted[keys[place]]:
                activations = states[rows.index(row)][number, : len(ids[place])]
                values[(row, *keys[place])] = [round(float(value), 2) for value in activations]
        done += len(index)
    strips = [
        [values[row, language, sentence] for language, sentence, _ in sentences] for row, sentences in enumerate(top)
    ]
    decoded = {
        f"{language}|{number}": [str(model.tokenizer.decode([int(token)])) for token in ids[place]]
        for place, (language, number) in enumerate(keys)
    }
    return decoded, strips


def own_rows(study: Study, neurons: NeuronSet, text: str) -> Generator[str, None, dict[str, Any]]:
    """The tokens of any text, and the activations of a set's neurons at each of them; yields a description first.

    Raises:
        TnkitError: for a text without tokens or with too many, and for a model with experts.

    >>> from tnkit.testing import tiny_corpus, tiny_model
    >>> steps = own_rows(Study(tiny_model(), tiny_corpus()), NeuronSet(((0, 7),), shape=(4, 48)), " ")
    >>> next(steps)
    Traceback (most recent call last):
    ...
    tnkit.errors.TnkitError: the text is empty; write a sentence
    """
    model = study.model
    if not text.strip():
        raise TnkitError("the text is empty; write a sentence")
    if any(map(model.experts_of, range(model.n_layers))):
        raise TnkitError(f"{model.name} has experts, whose neurons run at some tokens only; capture the text instead")
    (ids,) = tokenised(model, [text], whole=True)
    if len(ids) > _OWN:
        raise TnkitError(f"the text has {len(ids)} tokens; write one of at most {_OWN}")
    yield "reading your text"
    values = token_activations(model, [ids], list(neurons))
    return {
        "tokens": [str(model.tokenizer.decode([int(token)])) for token in ids],
        "values": {
            f"{layer}:{neuron}": [round(float(value), 2) for value in row[0]]
            for (layer, neuron), row in zip(neurons, values, strict=True)
        },
    }


def token_activations(
    model: Model, ids: Sequence[Sequence[int]], neurons: Sequence[tuple[int, int]]
) -> list[torch.Tensor]:
    """The activations of neurons at every token, (sentence, token) each, of a model without experts.

    >>> from tnkit.testing import tiny_model
    >>> [values.shape for values in token_activations(tiny_model(), [[1, 2, 3], [4, 5]], [(0, 7)])]
    [torch.Size([2, 3])]
    """
    values: dict[tuple[int, int], torch.Tensor] = {}
    wanted: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        wanted.setdefault(layer, []).append(neuron)

    def note(layer: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            for neuron in wanted[layer]:
                values[layer, neuron] = args[0][..., neuron].detach().float().cpu()

        return hook

    inputs = Rows.of(model, ids, packed=False).inputs
    with TURN, torch.inference_mode(), ExitStack() as hooks:
        for layer in wanted:
            last_map = model.module.get_submodule(model.map_path(layer))
            hooks.callback(last_map.register_forward_pre_hook(note(layer)).remove)
        decoder_of(model)(**inputs, use_cache=False)
    return [values[pair].reshape(inputs["input_ids"].shape) for pair in neurons]
