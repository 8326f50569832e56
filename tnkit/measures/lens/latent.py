"""In which language a state says the answer, layer by layer, and in whose space it lies: `latent_language`.

found = tn.lens.latent_language(model, "ja", source="it", neurons=type2, controls=tn.controls(type2))
found.to_frame(), found.plot(), found.plot("nearest")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnkit import plots, storage
from tnkit.captures.activations import Activations
from tnkit.captures.passes import capture
from tnkit.errors import TnkitError, check_model, one_of, whole_number
from tnkit.interventions.comparison import NONE, SET, each_condition
from tnkit.interventions.controls import Control
from tnkit.interventions.together import Given, Neurons, neurons_of
from tnkit.measures.geometry.vectors import unit
from tnkit.measures.lens.jacobian import Jacobians
from tnkit.measures.measurement import Texts, capturing
from tnkit.measures.vocabulary import Vocabulary
from tnkit.models.model import Model, check_layers
from tnkit.statistics import mean_interval
from tnkit.text.concepts import Concepts, load_concepts

PROBABILITY, NEAREST = "probability", "nearest"
_PROMPTS = 16  # of each language, whose mean is the origin
READINGS = {PROBABILITY: "probability of the answer", NEAREST: "nearest language centroid, share"}


@dataclass(frozen=True, eq=False)
class LatentLanguage:
    """What the states of a prompt's last token say of its answer, by layer, with neurons on and off.

    Attributes:
        prompts: what they are, such as "translation, it to ja".
        target: the language of the answers.
        languages: whose words are looked for.
        layers: that were read.
        concepts: the concepts that count, by their number in the set.
        left_out: how many others there are: two languages' words begin with the same token there.
        probability: condition → (draw, layer, language, concept), the probability of the word's first token, with and
            without a space before it, through the final norm and the unembedding.
        nearest: condition → the same, 1 where that language's centroid is nearest and 0 elsewhere; empty without texts.
        provenance: model, prompts, lens.
    """

    prompts: str
    target: str
    languages: tuple[str, ...]
    layers: tuple[int, ...]
    concepts: tuple[int, ...]
    left_out: int
    probability: dict[str, Float[np.ndarray, "draw layer language concept"]]
    nearest: dict[str, Float[np.ndarray, "draw layer language concept"]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """Means with 95 % bootstrap intervals over concepts, indexed (reading, condition, layer, language).

        A control's draws are averaged before concepts are resampled; `draws` says how many there are, `n` how many
        concepts.
        """
        frames = {}
        for reading, conditions in {PROBABILITY: self.probability, NEAREST: self.nearest}.items():
            for condition, values in conditions.items():
                frame = self._frame(values.mean(axis=0), "mean")
                frames[reading, condition] = frame.assign(n=values.shape[-1], draws=len(values))
        return pd.concat(frames, names=["reading", "condition"])

    def difference(self, reading: str = PROBABILITY, *, condition: str = SET, beside: str = NONE) -> pd.DataFrame:
        """One condition - another, concepts paired, with 95 % intervals, indexed (layer, language).

        Raises:
            TnkitError: for an unknown reading or condition.
        """
        values = self._values(reading)
        for name in (condition, beside):
            one_of("condition", name, tuple(values))
        return self._frame(values[condition].mean(axis=0) - values[beside].mean(axis=0), "difference")

    def _frame(self, cells: Float[np.ndarray, "layer language concept"], name: str) -> pd.DataFrame:
        """The mean over concepts with its interval, indexed (layer, language)."""
        low, high = mean_interval(cells)
        columns = {name: cells.mean(axis=-1), "low": low, "high": high}
        index = pd.MultiIndex.from_product([self.layers, self.languages], names=["layer", "language"])
        return pd.DataFrame({name: column.reshape(-1) for name, column in columns.items()}, index=index)

    def plot(self, reading: str = PROBABILITY, *, condition: str = SET, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw each language by layer with its interval, untouched, and dashed in a condition beside it.

        Raises:
            TnkitError: for an unknown reading or condition.
        """
        values = self._values(reading)
        one_of("condition", condition, tuple(values))
        frame: Any = self.to_frame().loc[reading]
        same = condition == NONE or np.array_equal(values[condition], values[NONE])
        beside = None if same else frame.loc[condition]
        how = {"ylabel": READINGS[reading], "title": self.prompts, "dashed": condition}
        return plots.languages_by_layer(frame.loc[NONE], beside=beside, **how, ax=ax)

    def _values(self, reading: str) -> dict[str, np.ndarray]:
        one_of("reading", reading, tuple(READINGS))
        values = self.probability if reading == PROBABILITY else self.nearest
        if not values:
            raise TnkitError("no texts were given, from which centroids are estimated; give texts=")
        return values

    def _repr_html_(self) -> str:
        held = self.to_frame().xs((PROBABILITY, NONE), level=("reading", "condition"))
        frame: Any = held["mean"].unstack("language")
        rows: dict[str, Any] = {"concepts": f"{len(self.concepts)}, {self.left_out} left out"}
        rows |= {
            f"highest {name}": f"{frame[name].max():.3f} at layer {frame[name].idxmax()}" for name in self.languages
        }
        return storage.html_card(f"Latent language: {self.prompts}", rows)


def latent_language(
    model: Model,
    target: str,
    *,
    source: str | None = None,
    languages: Sequence[str] | None = None,
    concepts: Concepts | None = None,
    neurons: Given = (),
    controls: Mapping[str, Control] = MappingProxyType({}),
    seeds: SupportsIndex = 10,
    tokens: str = "last",
    layers: Sequence[int] | None = None,
    lens: Jacobians | None = None,
    texts: Texts | None = None,
    progress: bool = True,
) -> LatentLanguage:
    """The probability that states hold of the answer's first token in each language, and whose space they lie in.

    The last token's post of each layer goes through the final norm and the unembedding (Wendler et al., ACL 2024, arXiv
    2402.10588). Such decoding may show the language of the unembedding's nearest words rather than that of the state,
    and so more English than there is. With `texts` the state's place is read beside it: the language L with the highest
    cos(h - p, c_L - c), where c_L are the means of the texts' last tokens, c is their mean over languages, and p the
    mean over target languages of untouched prompts' states, 16 of each.

    Args:
        model: from `load_model`; it runs here.
        target: the language of the answers.
        source: translate from this language; None completes sentences in `target`.
        languages: whose words are looked for (default: all of the concepts).
        concepts: words and sentences (default: the packaged ones).
        neurons: what is switched off or changed, as in `Ablation`.
        controls: from `tnkit.controls`.
        seeds: the number of draws of each random control.
        tokens: where: "last", "prompt" or "all" (the same here), as in `Ablation`.
        layers: which (default: all).
        lens: averaged Jacobians that states are carried to the final layer with (default: as they are).
        texts: language → sentences, of each of `languages`, which centroids are estimated from.
        progress: show a bar.

    Returns:
        `LatentLanguage`, of the concepts whose words begin with different tokens in all languages.

    Raises:
        TnkitError: for a language without words or texts, no concept that can be told apart, or a model that cannot be
            read, as in `tn.lens.promoted`.

    >>> from tnkit.testing import tiny_model
    >>> words = {"it": ["cane", "re", "sole"], "ja": ["犬", "王", "太陽"]}
    >>> few = Concepts(words, {}, {"it": "it", "ja": "ja"}, {})
    >>> found = latent_language(tiny_model(), "ja", source="it", concepts=few, layers=[0, 3], progress=False)
    >>> found.to_frame().loc[("probability", "none", 3, "it"), ["n", "draws"]].tolist()
    [3, 1]
    """
    check_model(model)
    concepts = load_concepts() if concepts is None else concepts
    chosen = tuple(languages or concepts.languages)
    if unknown := [name for name in (target, source) if name is not None and name not in concepts.languages]:
        raise TnkitError(f"there are no concepts in {unknown[0]!r}; there are {', '.join(concepts.languages)}")
    if target not in chosen:
        raise TnkitError(f"the answers' language {target!r} is not among languages={', '.join(chosen)}; add it")
    one_of("tokens", tokens, ("last", "prompt", "all"))
    every = {name: _prompts(concepts, name, source) for name in chosen if name != source}
    prompts = every.get(target) or _prompts(concepts, target, source)
    kept, ids = _first_tokens(model, prompts, {name: concepts.words[name] for name in chosen})
    vocabulary, depths = Vocabulary(model), check_layers(model, range(model.n_layers) if layers is None else layers)
    if lens is not None:
        lens.check(model)
    reading: dict[str, Any] = {"position": "last", "keep": ["post"], "layers": depths}
    asked = [prompts[concept] for concept in kept]
    nearest = None if texts is None else _Spaces(model, texts, chosen, every, reading, progress)
    captured = capturing(model, asked, tokens, reading, progress=progress)

    def run(off: Neurons) -> tuple[np.ndarray, np.ndarray | None]:
        held = captured(off)
        return _probabilities(vocabulary, held, ids, len(chosen), lens), nearest(held) if nearest else None

    results = each_condition(
        run, neurons_of(model, neurons), controls=controls, seeds=seeds, name="latent language", progress=progress
    )
    order = [NONE, SET, *(name for name in results if name not in (NONE, SET))]
    said = {name: np.stack([draw for draw, _ in results[name]]) for name in order}
    near: dict[str, list[Any]] = {name: [draw for _, draw in results[name]] for name in order}
    spaces = {name: np.stack(draws) for name, draws in near.items()} if nearest else {}
    title = f"translation, {source} to {target}" if source else f"cloze, {target}"
    about = {"model": model.provenance, "prompts": storage.text_hash(asked), "lens": "jacobian" if lens else "logit"}
    left = len(concepts) - len(kept)
    return LatentLanguage(title, target, chosen, depths, tuple(kept), left, said, spaces, about)


def _prompts(concepts: Concepts, target: str, source: str | None) -> list[str]:
    return concepts.clozes(target) if source is None else concepts.translations(source, target)


def _first_tokens(
    model: Model, prompts: Sequence[str], words: Mapping[str, Sequence[str]]
) -> tuple[list[int], Int[Tensor, "concept token"]]:
    """The concepts whose words begin with different tokens, and these tokens: two for each language, -1 for none.

    One is what goes on after the prompt, the other begins the word after a space.
    """
    kept, rows, tokenizer = [], [], model.tokenizer
    for concept, prompt in enumerate(prompts):
        base = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        by_language: list[list[int]] = []
        for several in words.values():
            whole = tokenizer(prompt + several[concept], add_special_tokens=False, verbose=False)["input_ids"]
            spaced = tokenizer(f" {several[concept]}", add_special_tokens=False, verbose=False)["input_ids"][0]
            own = [whole[len(base)]] if whole[: len(base)] == base and len(whole) > len(base) else []
            blank = not str(tokenizer.decode([spaced])).strip() or spaced in own
            by_language.append([*own, *([] if blank else [spaced])])
        found = [token for own in by_language for token in own]
        if all(by_language) and len(set(found)) == len(found):
            kept.append(concept)
            rows.append([token for own in by_language for token in (*own, -1)[:2]])
    if not kept:
        raise TnkitError(
            f"no concept has words that begin with different tokens in {', '.join(words)} with the tokenizer of "
            f"{model.name}; give fewer languages"
        )
    return kept, torch.tensor(rows)


def _probabilities(
    vocabulary: Vocabulary, held: Activations, ids: Tensor, languages: int, lens: Jacobians | None
) -> Float[np.ndarray, "layer language concept"]:
    rows = []
    for states, layer in zip(held.require("post").tensors()["post"], held.layers, strict=True):
        carried = states if lens is None else lens.carried(layer, states)
        found = vocabulary.log_probabilities(carried, ids.clamp_min(0)).exp().where(ids >= 0, 0)
        rows.append(found.unflatten(1, (languages, -1)).sum(dim=2).T.double())
    return torch.stack(rows).numpy()


class _Spaces:
    """Whose centroid a prompt's states are nearest to, layer by layer."""

    def __init__(
        self,
        model: Model,
        texts: Texts,
        languages: Sequence[str],
        prompts: Mapping[str, Sequence[str]],
        reading: dict[str, Any],
        progress: bool,
    ) -> None:
        if missing := [name for name in languages if name not in texts]:
            raise TnkitError(f"there are no texts in {', '.join(missing)}; there are {', '.join(texts)}")
        means = [_means(model, texts[name], reading, progress) for name in languages]
        self.centroids = torch.stack(means, dim=1)  # (layer, language, hidden)
        self.centroids = unit(self.centroids - self.centroids.mean(dim=1, keepdim=True))
        untouched = [_means(model, several[:_PROMPTS], reading, progress) for several in prompts.values()]
        self.origin = torch.stack(untouched).mean(dim=0)

    def __call__(self, held: Activations) -> Float[np.ndarray, "layer language concept"]:
        states = held.tensors()["post"].double() - self.origin[:, None]
        nearest = (unit(states) @ self.centroids.transpose(1, 2)).argmax(dim=2)
        return torch.nn.functional.one_hot(nearest, self.centroids.shape[1]).transpose(1, 2).double().numpy()


def _means(
    model: Model, texts: Sequence[str], reading: dict[str, Any], progress: bool
) -> Float[Tensor, "layer hidden"]:
    whole_number("number of texts", len(texts), at_least=1)
    return capture(model, texts, **reading, progress=progress).tensors()["post"].double().mean(dim=1)
