"""What states do where they are put into another run: by patched layer, and two experiments with contributions.

tn.patching.by_layer(model, test, source="en", into="ja", measure="next_token").plot()
tn.patching.restored(model, test, type1, language="ja", layer=15, controls=tn.controls(type1))   # all others off
tn.patching.given(model, test, type2_nl, language="ja", donor="nl", layer=15, controls=controls)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.captures.passes import capture
from tnkit.detection.neurons import NeuronSet, Pair
from tnkit.errors import TnkitError, one_of, whole_number
from tnkit.interventions.comparison import NONE, SET, Comparison, compare, values_of
from tnkit.interventions.controls import Control
from tnkit.interventions.intervention import Intervention, set_of
from tnkit.interventions.patch import Patch, patch
from tnkit.interventions.together import Neurons, Together
from tnkit.measures.measurement import MEASURES, Measurement, Texts, capturing, layer_named, measurement
from tnkit.measures.vocabulary import Vocabulary
from tnkit.models.model import Model, check_layers
from tnkit.text.rows import check_texts

OTHER = "another sentence"
_NAMES = {NONE: "untouched", SET: "patched"}


@dataclass(frozen=True, eq=False)
class PatchedLayers:
    """A measure with states of a source patched in at one layer after another.

    Attributes:
        site: what is patched.
        compared: its layers are the patched ones; "none" is the untouched run, "the set" the patched one, and the
            control "another sentence" is patched with the source of the next sentence.
    """

    site: str
    compared: Comparison

    def to_frame(self) -> pd.DataFrame:
        """As `Comparison.to_frame`, indexed (patched layer, condition): untouched, patched, another sentence.

        `effect` is the patched run - the condition, sentences paired, with its 95 % interval.
        """
        frame = self.compared.to_frame().rename(index=_NAMES, level="condition")
        return frame.drop(columns=["p sets", "seeds"])

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw each condition's mean by patched layer, with its interval as a band."""
        how: dict[str, Any] = {"xlabel": f"layer whose {self.site} is patched", "legend": "run"}
        return plots.conditions_by_layer(self.to_frame(), ylabel=self.compared.measure, **how, ax=ax)

    def _repr_html_(self) -> str:
        means = self.to_frame()["mean"].xs("patched", level="condition")
        best = self.compared.layers[int(means.to_numpy().argmax())]
        rows = {"untouched": float(self.compared.untouched[0].mean()), f"highest, layer {best}": float(means.max())}
        return storage.html_card(f"{self.compared.measure}, {self.site} patched", rows)


def by_layer(
    model: Model,
    texts: Texts,
    *,
    source: str,
    into: str,
    site: str = "post",
    layers: Iterable[SupportsIndex] | None = None,
    neurons: Iterable[Pair] | None = None,
    tokens: str = "last",
    measure: str = "next_token",
    layer: SupportsIndex | None = None,
    hub: str | None = None,
    suffix: str | None = None,
    progress: bool = True,
) -> PatchedLayers:
    """Patch one layer of a language's run with the states of its translations, then the next layer, and measure.

    Beside it each sentence gets the states of another sentence of the source, with its language but not its meaning.

    Args:
        model: from `load_model`.
        texts: language → aligned sentences; two sentences of one language are two entries.
        source, into: whose states are put into whose runs.
        site, neurons, tokens, suffix: as in `patch`.
        layers: which are patched (default: all, or those of the neurons).
        measure: "next_token", the log-probability (nats) of the token that the source's own run holds likeliest; or a
            measure of states at `layer` against those of the hub, as in `tn.ablate`.
        layer: where states are measured; layers after it are not patched.
        hub: the language of the translations (default: the source).
        progress: show a bar.

    Returns:
        `PatchedLayers`.

    Raises:
        TnkitError: as `patch` and `tn.ablate` do.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> found = by_layer(tiny_model(), texts, source="en", into="it", progress=False)
    >>> bool(found.to_frame().loc[(3, "patched"), "mean"] > found.to_frame().loc[(3, "untouched"), "mean"])
    True
    """
    check_texts(texts, (source, into))
    one_of("measure", measure, ("next_token", *(name for name in MEASURES if name != "perplexity")))
    reading: dict[str, Any] = {"suffix": suffix, "progress": progress}
    if measure == "next_token":
        if layer is not None:
            raise TnkitError("measure='next_token' has no layer; leave layer out, or choose a measure of states")
        measured, deepest = _next_token(model, texts, source, into, tokens, reading), model.n_layers - 1
    else:
        deepest = layer_named(model, layer)
        reading |= {"measure": measure, "layers": [deepest], "position": _position(tokens)}
        measured = measurement(model, texts, language=into, hub=hub or source, tokens=tokens, **reading)
    given = None if neurons is None else list(neurons)
    chosen = {pair[0] for pair in given} if given is not None and layers is None else layers
    patched = [at for at in check_layers(model, chosen or range(model.n_layers)) if at <= deepest]
    shifted = [*texts[source][1:], *texts[source][:1]]
    if given is not None:
        given = [pair for pair in given if pair[0] in patched]
    if not patched:
        raise TnkitError(f"a patch after layer {deepest} cannot change that layer; patch earlier layers")
    how: dict[str, Any] = {"site": site, "neurons": given, "tokens": tokens, "suffix": suffix, "progress": progress}
    whole = [patch(model, sentences, texts[into], layers=patched, **how) for sentences in (texts[source], shifted)]
    untouched = values_of(measured.run, Intervention(()), measured.name)[0]
    values: list[list[np.ndarray]] = [[], []]
    for at in tqdm(patched, desc="patched layers", disable=not progress, leave=False):
        for runs, several in zip(values, whole, strict=True):
            runs.append(values_of(measured.run, _at(several, at), measured.name)[0])
    name = measured.name if measure == "next_token" else f"{measured.name}, layer {deepest}"
    own, other = (np.stack(runs) for runs in values)
    both = np.broadcast_to(untouched, own.shape).copy()
    return PatchedLayers(site, Comparison(name, tuple(patched), both, own, {OTHER: other[None]}))


def restored(
    model: Model,
    texts: Texts,
    neurons: NeuronSet,
    *,
    language: str,
    layer: SupportsIndex,
    controls: Mapping[str, Control],
    off: NeuronSet | None = None,
    seeds: SupportsIndex = 10,
    measure: str = "retrieval",
    progress: bool = True,
    **reading: Any,
) -> Comparison:
    """Switch many neurons off at the last token, and restore what one set added in the untouched run: is it enough?

    Args:
        model: from `load_model`.
        texts: language → aligned sentences, which were not used to find the neurons.
        neurons: the set whose contributions are restored.
        language: the language to change.
        layer: where to measure, chosen on other sentences.
        controls: neuron sets, from `tnkit.controls`, restored instead.
        off: which neurons are off (default: all neurons of the layers from the set's first to its last).
        seeds: the number of draws of each random control.
        measure: as in `tn.ablate`, of states.
        progress: show a bar.
        **reading: hub, position, suffix, last_layer, k and centred, as in `tn.ablate`.

    Returns:
        `Comparison`: "none" restores nothing, "the set" its contributions.

    Raises:
        TnkitError: as `patch` and `tn.ablate` do.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts, some = {"en": SENTENCES[:3], "it": SENTENCES[3:]}, tn.NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> found = restored(tiny_model(), texts, some, language="it", layer=2, controls={}, progress=False)
    >>> found.layers, sorted(found.at().index)
    ((2,), ['none', 'the set'])
    """
    depths = range(min(neurons.by_layer()), max(neurons.by_layer()) + 1)
    pairs = [(at, neuron) for at in depths for neuron in range(model.widths[at])]
    everything = Intervention(set_of(model, pairs) if off is None else off)
    make = _contributions(model, texts, language, language, mean=False, reading=reading, progress=progress)
    run = measurement(model, texts, language=language, measure=measure, layers=[layer], progress=progress, **reading)
    how: dict[str, Any] = {"controls": controls, "seeds": seeds, "progress": progress, "layers": run.layers}
    return compare(
        lambda some: run.run(Together([everything, make(some)]) if len(some) else everything),
        neurons,
        name=f"{run.name}, {len(everything)} neurons off",
        **how,
    )


def given(
    model: Model,
    texts: Texts,
    neurons: NeuronSet,
    *,
    language: str,
    donor: str,
    layer: SupportsIndex,
    controls: Mapping[str, Control],
    measured: Callable[[Any], "np.ndarray | Tensor"] | None = None,
    seeds: SupportsIndex = 10,
    measure: str = "retrieval",
    progress: bool = True,
    **reading: Any,
) -> Comparison:
    """Give a language's run the mean contribution that a set of neurons has in another language, at the last token.

    Args:
        model, texts, language, layer, seeds, measure, progress, **reading: as in `restored`.
        neurons: the set.
        donor: the language whose mean contribution is given.
        controls: neuron sets, whose mean contributions in the donor are given instead.
        measured: what is measured of the states, (layer, sentence), given a `Patch` or no neurons (default: `measure`
            at `layer`).

    Returns:
        `Comparison`.

    Raises:
        TnkitError: as `patch` and `tn.ablate` do.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts, some = {"en": SENTENCES[:3], "it": SENTENCES[3:]}, tn.NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> found = given(tiny_model(), texts, some, language="it", donor="en", layer=2, controls={}, progress=False)
    >>> found.measure
    'mean-centred retrieval@1, it and en'
    """
    make = _contributions(model, texts, donor, language, mean=True, reading=reading, progress=progress)
    at = (whole_number("layer", layer),)
    if measured is not None:
        run = Measurement(measured, measure, at)
    else:
        run = measurement(model, texts, language=language, measure=measure, layers=at, progress=progress, **reading)
    how: dict[str, Any] = {"controls": controls, "seeds": seeds, "progress": progress, "layers": at}
    return compare(lambda some: run.run(make(some) if len(some) else some), neurons, name=run.name, **how)


def _contributions(
    model: Model, texts: Texts, source: str, into: str, *, mean: bool, reading: Mapping[str, Any], progress: bool
) -> Callable[[Any], Patch]:
    """What makes the patch of a set's contributions, from one capture of the source."""
    for name in (source, into):
        check_texts(texts, (name,))
    tokens, suffix = reading.get("position", "last"), reading.get("suffix")
    held = capture(model, texts[source], keep=["activations"], position=tokens, suffix=suffix, progress=progress)

    def make(neurons: Any) -> Patch:
        how: dict[str, Any] = {"site": "contributions", "tokens": tokens, "suffix": suffix}
        return patch(model, held, texts[into], neurons=neurons, mean=mean, **how)

    return make


def _next_token(
    model: Model, texts: Texts, source: str, into: str, tokens: str, reading: Mapping[str, Any]
) -> Measurement:
    """The log-probability of the token that each source holds likeliest."""
    vocabulary, last = Vocabulary(model), model.n_layers - 1
    how: dict[str, Any] = {"keep": ["post"], "layers": [last], "position": _position(tokens), **reading}
    targets = vocabulary.likeliest(_states(capture(model, texts[source], **how)))[:, None]
    del how["progress"]
    run = capturing(model, texts[into], tokens, how, progress=reading["progress"])

    def measured(asked: Neurons) -> np.ndarray:
        return vocabulary.log_probabilities(_states(run(asked)), targets).T.double().numpy()

    return Measurement(measured, f"log p of the next token of {source} (nats)", (0,))


def _states(captured: Any) -> Tensor:
    post: Tensor = captured.require("post").tensors()["post"][0]
    return post


def _at(several: Patch, layer: int) -> Patch:
    """One layer of a patch."""
    neurons = several.neurons
    if neurons is not None:
        neurons = replace(neurons, pairs=tuple(pair for pair in neurons if pair[0] == layer), scores=())
    about = several.provenance | {"values": f"{several.provenance['values']}, layer {layer}"}
    return replace(several, values={layer: several.values[layer]}, neurons=neurons, provenance=about)


def _position(tokens: str) -> str:
    return "last_word" if tokens == "last_word" else "last"
