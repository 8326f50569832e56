"""Two experiments on the effect of transfer neurons, for any model, sentences and neuron sets.

compared = tn.ablate(model, test, type1, language="ja", controls=tn.controls(type1))   # with matched controls
matrix = tn.retrieval_matrix(model, test, {"ja": ja_type1, "it": it_type1})            # off in A, read in B
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float

from tnkit import plots, storage
from tnkit.captures.batches import check_position
from tnkit.detection.neurons import NeuronSet
from tnkit.errors import TnkitError, check_model
from tnkit.interventions.comparison import Comparison, compare
from tnkit.interventions.controls import Control
from tnkit.interventions.intervention import Intervention
from tnkit.interventions.last_token import PLACES
from tnkit.interventions.together import Neurons, Several, as_one
from tnkit.measures.geometry.translation import hits
from tnkit.measures.measurement import Prepared, capturing, measurement, plain, untouched
from tnkit.models.model import Model, check_layers, hashed_at_ends
from tnkit.statistics import mean_interval
from tnkit.text.rows import check_texts


def ablate(
    model: Model,
    texts: Prepared,
    neurons: Neurons | Several,
    *,
    language: str,
    controls: Mapping[str, Control],
    measure: str = "retrieval",
    hub: str = "en",
    tokens: str = "last",
    position: str = "last",
    suffix: str | None = None,
    seeds: SupportsIndex = 10,
    layers: Iterable[SupportsIndex] | None = None,
    last_layer: str = "raw",
    k: SupportsIndex = 10,
    centred: bool = True,
    chosen_layer: SupportsIndex | None = None,
    chosen_on: str = "other sentences",
    progress: bool = True,
    **how: Any,
) -> Comparison:
    """Switch a neuron set off in one language, or set, scale or move it, and compare with controls and the untouched.

    Args:
        model: from `load_model`.
        texts: language → aligned sentences, which were not used to find the neurons, or a `LastToken` of them, of
            which what comes before the token is not run again.
        neurons: the set, or an `Intervention`, a `Direction`, or a list of them.
        language: the language to ablate.
        controls: from `tnkit.controls`; an `Intervention` among them is done as it says.
        measure: "retrieval" (is the nearest hub sentence the translation? mean-centred cosine), "similarity" (cosine
            with the translation), "mutual_knn" (share of the k nearest neighbours common to both), "margin" (the
            mean-centred cosine with the translation - the highest with another hub sentence) or "centred_similarity"
            (mean-centred cosine with the translation), by layer; or "perplexity" (nats per token).
        hub: the language of the translations, which is never ablated (as in Tezuka & Inoue, EMNLP 2025).
        tokens: where the neurons are off: "last", "last_word" (the last token that is not punctuation; states are still
            read at the last token), "prompt" or "all" (the same for sentences).
        position, suffix: which token is read for measures of states, as in `capture`, in both languages.
        seeds: the number of draws of each random control.
        layers: which layers to measure (default: all).
        last_layer: as in `capture`.
        k: how many neighbours mutual_knn takes.
        centred: whether retrieval takes each language's mean away first.
        chosen_layer, chosen_on: the layer to report and the sentences it was chosen on, as in `compare`.
        progress: show a bar.
        **how: value, of, scale, add, minus or seed, as in `Intervention`: what is done with the set, and with every
            control that is a plain set (default: off, set to 0).

    Returns:
        `Comparison`, with a value for every layer and sentence.

    Raises:
        TnkitError: for an unknown measure or language, unaligned sentences, or tokens after the one that is read.

    >>> import tnkit as tn
    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> some = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> texts = {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    >>> ablate(tiny_model(), texts, some, language="it", controls=tn.controls(some), seeds=1, progress=False).layers
    (0, 1, 2, 3)
    """

    def asked(off: Neurons) -> Neurons:
        return Intervention(off, **how) if isinstance(off, NeuronSet) else off

    chosen: Neurons = as_one(neurons)
    if not isinstance(chosen, NeuronSet) and how:
        raise TnkitError(f"an Intervention says what is done; leave out {', '.join(how)}, or give neurons.neurons")
    asked(chosen)  # refuses what it must before sentences are read
    reading: dict[str, Any] = {"hub": hub, "tokens": tokens, "position": position, "suffix": suffix, "layers": layers}
    reading |= {"last_layer": last_layer, "k": k, "centred": centred, "progress": progress}
    measured = measurement(model, texts, language=language, measure=measure, **reading)
    return compare(
        lambda off: measured.run(asked(off)),
        chosen,
        controls=controls,
        seeds=seeds,
        name=measured.name,
        layers=measured.layers,
        chosen_layer=chosen_layer,
        chosen_on=chosen_on,
        model=model,
        progress=progress,
    )


@dataclass(frozen=True, eq=False)
class RetrievalMatrix:
    """Translation retrieval in each language with each language's neurons off, at one layer.

    Attributes:
        values: (off, read), the share of sentences whose nearest hub sentence is their translation, 0 to 1.
        intervals: (bound, off, read), their 95 % intervals (percentile bootstrap over sentences).
        off: the languages whose neurons are off; the first is "none".
        read: the languages that are read.
        layer: the layer measured.
    """

    values: Float[np.ndarray, "off read"]
    intervals: Float[np.ndarray, "2 off read"]
    off: tuple[str, ...]
    read: tuple[str, ...]
    layer: int

    def to_frame(self) -> pd.DataFrame:
        """One row per ablated set, one column per language that is read."""
        return pd.DataFrame(self.values, index=pd.Index(self.off, name="off"), columns=pd.Index(self.read, name="read"))

    def plot(self, ax: "plots.Axes | None" = None, *, cluster: bool = False) -> "plots.Axes":
        """Draw the matrix as a heat map with numbers; with `cluster`, languages that are alike are side by side."""
        return plots.matrix(
            self.to_frame(),
            xlabel="language that is read",
            ylabel="neurons that are off",
            value=f"mean-centred retrieval@1, layer {self.layer}",
            cluster=cluster,
            ax=ax,
        )

    def _repr_html_(self) -> str:
        cells = np.stack([self.values, *self.intervals]).transpose(1, 2, 0)
        rows = {
            f"off: {name}": [f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in row]
            for name, row in zip(self.off, cells, strict=True)
        }
        return storage.html_card("Retrieval matrix", {"read": self.read, **rows, "layer": self.layer})


def retrieval_matrix(
    model: Model,
    texts: Prepared,
    sets: Mapping[str, NeuronSet],
    *,
    hub: str = "en",
    position: str = "last",
    suffix: str | None = None,
    layer: SupportsIndex | None = None,
    progress: bool = True,
) -> RetrievalMatrix:
    """Switch each language's neurons off at the token that is read, and measure retrieval in every language.

    Args:
        model: from `load_model`.
        texts: as in `ablate`.
        sets: language → its neurons.
        hub: the language of the translations.
        position: "last", "last_word" or "end", as in `LastToken`.
        suffix: as in `capture`.
        layer: the layer to measure (default: where mean retrieval of the untouched languages is highest).
        progress: show a bar.

    Raises:
        TnkitError: for a language without aligned sentences, or a layer that the model does not have.

    >>> from tnkit.testing import tiny_model, SENTENCES
    >>> texts = {"en": SENTENCES[:2], "it": SENTENCES[2:4], "ja": SENTENCES[4:]}
    >>> some = NeuronSet(((0, 5), (1, 2)), shape=(4, 48))
    >>> retrieval_matrix(tiny_model(), texts, {"it": some, "ja": some}, progress=False).values.shape
    (3, 2)
    """
    check_model(model)
    missing = [name for name in (*sets, hub) if name not in texts]
    if missing or not sets:
        raise TnkitError(
            f"there are no sentences in {', '.join(missing) or 'any language'}; there are {', '.join(texts)}"
        )
    check_position(model, position, tuple(PLACES))
    sentences = plain(texts)
    for name in sets:
        check_texts(sentences, (hub, name))
    layers = check_layers(model, range(model.n_layers) if layer is None else (layer,))
    nothing = NeuronSet((), (model.n_layers, model.n_neurons))
    reading: dict[str, Any] = {"position": position, "suffix": suffix, "keep": ["post"], "layers": layers}
    targets = untouched(model, texts[hub], reading, progress=progress)

    def column(name: str) -> np.ndarray:
        captured = capturing(model, texts[name], PLACES[position], reading, progress=progress)
        return np.stack([hits(captured(off), targets) for off in (nothing, *sets.values())])

    columns = [*hashed_at_ends(model, map(column, sets))]
    values = np.stack([column.mean(axis=2) for column in columns], axis=2)  # (off, layer, read)
    best = int(values[0].mean(axis=1).argmax())
    intervals = np.stack([mean_interval(column[:, best].astype(np.float64)) for column in columns], axis=2)
    return RetrievalMatrix(values[:, best], intervals, ("none", *sets), tuple(sets), tuple(layers)[best])
