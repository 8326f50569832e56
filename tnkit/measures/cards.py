"""A card for one neuron: what activates it, and what it writes.

card = neuron_card(model, captured, texts, (12, 345))    # captures and sentences by language
card.plot()                                              # its activation in every sentence, by language
card.to_frame(), card.tokens.to_frame()                  # its top sentences, the vocabulary that it raises and lowers
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from tnkit import plots
from tnkit.captures.activations import Activations
from tnkit.measures.lens import PromotedTokens, promoted
from tnkit.measures.specificity.sentences import top_sentences
from tnkit.models.model import Model
from tnkit.models.tokens import last_word
from tnkit.provenance import check_made_with


@dataclass(frozen=True, eq=False)
class NeuronCard:
    """What activates one neuron, and what it writes.

    Attributes:
        neuron: (layer, neuron).
        activations: its activation in every sentence, (sentence,) each, by language.
        sentences: those with the largest absolute activation and its sign, as in `tn.specificity.top_sentences`.
        tokens: the vocabulary that its value vector raises and lowers if its activation is positive.
        spans: start and end of the token read in each of these sentences, or None if unknown.
    """

    neuron: tuple[int, int]
    activations: dict[str, Float[np.ndarray, "sentence"]]
    sentences: pd.DataFrame
    tokens: PromotedTokens
    spans: tuple[tuple[int, int] | None, ...]

    def __repr__(self) -> str:
        return f"NeuronCard({self.neuron}, largest activation {self.sentences['activation'].iloc[0]:.3g})"

    @property
    def raised(self) -> tuple[str, ...]:
        """The vocabulary that the neuron raises in its top sentences: the suppressed one if it is negative there."""
        positive = self.sentences["activation"].iloc[0] >= 0
        return (self.tokens.promoted if positive else self.tokens.suppressed)[0]

    @property
    def lowered(self) -> tuple[str, ...]:
        """The vocabulary that the neuron lowers in its top sentences."""
        positive = self.sentences["activation"].iloc[0] >= 0
        return (self.tokens.suppressed if positive else self.tokens.promoted)[0]

    def to_frame(self) -> pd.DataFrame:
        """Its top sentences, by rank."""
        return self.sentences.copy()

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw its activation in every sentence, by language."""
        layer, number = self.neuron
        return plots.activations_by_language(self.activations, title=f"layer {layer}, neuron {number}", ax=ax)

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><td>{row.activation:+z.2f}</td><td {left}>{html.escape(str(row.language))}</td>"
            f"<td {left}>{_marked(str(row.text), span)}</td></tr>"
            for row, span in zip(self.sentences.itertuples(), self.spans, strict=True)
        )
        words = ""
        for verb, tokens in (("raises", self.raised), ("lowers", self.lowered)):
            items = " · ".join(f"<code>{html.escape(token)}</code>" for token in tokens)
            words += f"<tr><td {left} colspan=3>{verb} in these sentences: {items}</td></tr>"
        caption = f"<caption {left}><b>Layer {self.neuron[0]}, neuron {self.neuron[1]}</b></caption>"
        return f"<table>{caption}{rows}{words}</table>"


def neuron_card(
    model: Model,
    captured: Mapping[str, Activations],
    sentences: Mapping[str, Sequence[str]],
    neuron: tuple[int, int],
    *,
    n: int = 5,
    k: int = 8,
) -> NeuronCard:
    """The card of one neuron: its activations by language, its top sentences, its vocabulary.

    Args:
        model: from `load_model`.
        captured: a capture with `activations` per language.
        sentences: the captured sentences, by language.
        neuron: (layer, neuron).
        n: the number of sentences.
        k: the number of vocabulary items at each end.

    Raises:
        TnkitError: for a capture of another model; as `tn.specificity.top_sentences` and `tn.lens.promoted` do.

    >>> from tnkit.testing import captured, tiny_model, SENTENCES
    >>> card = neuron_card(tiny_model(), {"en": captured()}, {"en": SENTENCES}, (3, 5), n=2)
    >>> len(card.to_frame()), len(card.raised)
    (2, 8)
    """
    layer, number = neuron
    check_made_with(model, [capture.provenance for capture in captured.values()], "these captured states", states=True)
    high, low = (top_sentences(captured, sentences, neuron, n=n, lowest=lowest) for lowest in (False, True))
    strongest = high if abs(high["activation"].iloc[0]) >= abs(low["activation"].iloc[0]) else low
    activations = {
        language: capture.of_neurons(layer, [number])[:, 0].numpy() for language, capture in captured.items()
    }
    provenance = next(iter(captured.values())).provenance
    spans = tuple(_token_read(model, text, provenance) for text in strongest["text"])
    return NeuronCard((layer, number), activations, strongest, promoted(model, (layer, number), k=k), spans)


def _token_read(model: Model, text: str, provenance: Mapping[str, Any]) -> tuple[int, int] | None:
    """Start and end of the token read in a sentence; None for a mean, or for a token that is not in the text."""
    position = provenance.get("position", "last")
    if not model.tokenizer.is_fast or position not in ("last", "last_word") or provenance.get("suffix") is not None:
        return None
    tokens = model.tokenizer(text, return_offsets_mapping=True)
    index = last_word(model.tokenizer, tokens["input_ids"]) if position == "last_word" else -1
    start, end = tokens["offset_mapping"][index]
    return (start, end) if end > start else (len(text), len(text))  # a special token comes after the text


def _marked(text: str, span: tuple[int, int] | None) -> str:
    """HTML of a sentence in which the token read is marked; a special token is shown as an empty mark."""
    start, end = span or (len(text), len(text))
    token = html.escape(text[start:end]) or ("&#9144;" if span else "")
    return html.escape(text[:start]) + (f"<mark>{token}</mark>" if token else "") + html.escape(text[end:])
