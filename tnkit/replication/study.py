"""What every section of the study is given: a model, sentences, sizes, and the neurons that were found: `Study`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import tnkit as tn
from tnkit.errors import TnkitError, whole_number

KINDS = ("type1", "type2")
SITES = ("mid", "post", "activations", "scale")
MATCHED = ("uniform", "same layers", "same layers and norms", "random direction")
LAST = 0.1  # of a pass through the model: one more neuron set at the last token
_LARGE, _PUBLISHED_TOP, _TOP = 200_000, 1000, 300  # neurons of a model; how many a set has in it, and in a smaller one


@dataclass(frozen=True)
class Sizes:
    """How much each section of the study runs.

    Attributes:
        sentences: the most of each split and language.
        top: neurons of a set; None takes 1,000, as published, and 300 in a model of fewer than 200,000 neurons.
        draws: of each random control.
        read: test sentences of each language whose perplexity is measured.
        questions: of each language.
        documents: of MMLU-ProX, of each language.
        prompts: that steering continues.
        new_tokens: of each continuation.
        studied: for how many languages, the first ones, the evidence is computed.

    >>> Sizes(draws=5).sentences, QUICK.top
    (256, 9)
    """

    sentences: int = 256
    top: int | None = None
    draws: int = 3
    read: int = 24
    questions: int = 24
    documents: int = 50
    prompts: int = 14
    new_tokens: int = 16
    studied: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (name == "top" and value is None):
                whole_number(name, value, at_least=2 if name in ("sentences", "read") else 1)


QUICK = Sizes(sentences=12, top=9, draws=1, read=4, questions=3, documents=4, prompts=2, new_tokens=4)


class Work(NamedTuple):
    """What a section runs, about: sentences whose states are read, sentences that are predicted, tokens written."""

    states: float = 0.0
    predicted: float = 0.0
    written: float = 0.0


@dataclass(frozen=True, eq=False)
class Study:
    """A model, aligned sentences, and what several sections need of both.

    Attributes:
        model: from `load_model`.
        corpus: of the hub and the languages, cut to the size.
        languages: that are studied.
        hub: whose space is taken as shared.
        sizes: how much is run.
        mkqa: the file of MKQA; None asks the packaged questions.
        mmlu_prox: "hub", or a file of MMLU-ProX with {language} in its name; None leaves it out.
        cache: keep captures in the cache folder.
        progress: show bars.
    """

    model: tn.Model
    corpus: tn.Corpus
    languages: tuple[str, ...]
    hub: str
    sizes: Sizes
    mkqa: str | Path | None = None
    mmlu_prox: str | Path | None = None
    cache: bool = True
    progress: bool = True

    @property
    def bar(self) -> dict[str, Any]:
        """The option of calls that show a bar."""
        return {"progress": self.progress}

    @property
    def top(self) -> int:
        """How many neurons a set has."""
        large = sum(self.model.widths) >= _LARGE
        return self.sizes.top or (_PUBLISHED_TOP if large else _TOP)

    @property
    def each(self) -> int:
        """The sentences of a split in every language."""
        return self.sizes.sentences * (len(self.languages) + 1)

    @property
    def candidates(self) -> dict[str, Sequence[int]]:
        """Type → the layers in which its neurons are looked for."""
        return {"type1": self.model.early_layers, "type2": self.model.late_layers}

    def captured(self, split: str) -> dict[str, tn.Activations]:
        """Language → what its sentences are like at their last token, the hub first."""
        texts = self.corpus[split]
        return {
            name: tn.capture(self.model, texts[name], keep=SITES, cache=self.cache, **self.bar)
            for name in (self.hub, *self.languages)
        }

    @cached_property
    def train(self) -> dict[str, tn.Activations]:
        """The training sentences, which choose neurons and layers."""
        return self.captured("train")

    @cached_property
    def found(self) -> dict[tuple[str, str], tn.Detection]:
        """(language, type) → its detection."""
        return tn.detect_all(self.model, self.train, list(self.languages), hub=self.hub, top=self.top, **self.bar)

    def sets(self, kind: str) -> dict[str, tn.NeuronSet]:
        """Language → its neurons of a type."""
        return {language: self.found[language, kind].neurons for language in self.languages}

    def controls(self, language: str, kind: str, names: Sequence[str] = MATCHED) -> dict[str, Any]:
        """The controls of a language's set, by name."""
        how: dict[str, Any] = {"layers": self.candidates[kind], "model": self.model, "captured": self.train}
        every = tn.controls(self.found[language, kind].neurons, **how)
        return {name: every[name] for name in names}

    def layer(self, language: str) -> int:
        """Where the untouched model retrieves most translations of the training sentences."""
        return tn.geometry.retrieval(self.train[language], self.train[self.hub]).best()[0]


def cut(corpus: tn.Corpus, languages: Sequence[str], sentences: int) -> tn.Corpus:
    """The first sentences of each split, in some languages.

    Raises:
        TnkitError: for a language that the corpus lacks, and fewer than two sentences in a split.

    >>> from tnkit.testing import tiny_corpus
    >>> small = cut(tiny_corpus(), ["en", "it"], 5)
    >>> small.languages, len(small["train"]["it"]), len(small["test"]["en"])
    (('en', 'it'), 5, 5)
    """
    names = [corpus["train"][language].language for language in languages]
    kept = (corpus.frame.groupby("split").cumcount() < sentences).tolist()
    ids = None if corpus.ids is None else tuple(compress(corpus.ids, kept))
    frame = corpus.frame.loc[kept, [*names, "split"]].reset_index(drop=True)
    small = replace(corpus, frame=frame, ids=ids)
    for split in ("train", "test"):
        if (count := len(small[split][names[0]])) < 2:
            raise TnkitError(f"{corpus.name} has {count} sentences in its split {split!r}; the study needs both splits")
    return small
