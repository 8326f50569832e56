"""The sentences that activate a neuron most."""

from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import pandas as pd

from tnkit import storage
from tnkit.captures.activations import Activations
from tnkit.errors import TnkitError, whole_number


def top_sentences(
    captured: Activations | Mapping[str, Activations],
    sentences: Sequence[str] | Mapping[str, Sequence[str]],
    neuron: tuple[int, int],
    *,
    n: SupportsIndex = 10,
    lowest: bool = False,
) -> pd.DataFrame:
    """The sentences that activate a neuron most: those with the largest activation at the captured position.

    Args:
        captured: a capture with `activations`, or one for each language.
        sentences: the captured sentences, also by language.
        neuron: (layer, neuron).
        n: the largest number of sentences.
        lowest: take the smallest activations (the most negative) instead.

    Returns:
        A frame by rank, from 1, with columns language, sentence (its index in the text), activation and text; equal
        activations are in the order of the text.

    Raises:
        TnkitError: for sentences other than those captured, or a neuron that was not captured.

    >>> from tnkit.testing import captured, SENTENCES
    >>> top_sentences(captured(), SENTENCES, (3, 5), n=2)[["sentence", "text"]].values.tolist()
    [[3, 'Non hai mai il tempo per le cose importanti!'], [4, "I can't speak Japanese."]]
    """
    if isinstance(captured, Activations):
        name = captured.provenance.get("sentences", {}).get("language", "")
        captured, sentences = {name: captured}, {name: list(sentences)}
    layer, column = neuron
    n = whole_number("n", n, at_least=1)
    frames = []
    for name, capture in captured.items():
        width = capture.require("activations").of_layer(capture.layers[0]).shape[1]
        if layer not in capture.layers or not 0 <= column < width:
            raise TnkitError(
                f"neuron {neuron} was not captured; captured: layers {list(capture.layers)}, {width} neurons each"
            )
        texts = sentences.get(name) if isinstance(sentences, Mapping) else None
        if texts is None:
            raise TnkitError(f"the sentences of {name} are missing; give a mapping from language to sentences")
        origin = capture.provenance.get("sentences", {})
        text_hash = storage.text_hash(texts)
        if int(capture.index.max()) >= len(texts) or origin.get("hash", text_hash) != text_hash:
            count = origin.get("n", len(capture))
            raise TnkitError(f"these are not the {count} sentences of {name} that were captured; give those")
        values = capture.of_neurons(layer, [column])[:, 0].numpy()
        frame = pd.DataFrame({"language": name, "sentence": capture.index.numpy(), "activation": values})
        frames.append(frame.assign(text=[texts[row] for row in capture.index.tolist()]))
    frame = pd.concat(frames).sort_values("activation", ascending=lowest, kind="stable")[:n]
    return frame.set_index(pd.RangeIndex(1, len(frame) + 1, name="rank"))
