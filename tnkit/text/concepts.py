"""Prompts with one word as their answer, in five languages: `load_concepts`.

concepts = tn.load_concepts()
concepts.translations("it", "ja")[0]       # …, Italiano: "fiore" - 日本語: "
concepts.clozes("ja")[0]                   # …, 「___」は庭に咲き、… 答え: "
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tnkit.errors import TnkitError

_FILE = Path(__file__).parent / "data" / "concepts.tsv"
_NAMES = {"en": "English", "ja": "日本語", "ko": "한국어", "nl": "Nederlands", "it": "Italiano"}
_ANSWERS = {"en": "Answer", "ja": "答え", "ko": "답", "nl": "Antwoord", "it": "Risposta"}
_SHOTS = {"translation": 4, "cloze": 2}


@dataclass(frozen=True)
class Concepts:
    """Words for the same things, and sentences that each word completes.

    Attributes:
        words: language → a word for each concept.
        sentences: language → a sentence for each concept, in which ___ is the word.
        names: language → how it calls itself, for prompts.
        answers: language → its word for "Answer".
    """

    words: Mapping[str, Sequence[str]]
    sentences: Mapping[str, Sequence[str]]
    names: Mapping[str, str]
    answers: Mapping[str, str]

    def __len__(self) -> int:
        return len(next(iter(self.words.values())))

    @property
    def languages(self) -> tuple[str, ...]:
        """Those with words."""
        return tuple(self.words)

    def translations(self, source: str, target: str) -> list[str]:
        """For each concept four examples of other concepts and a question, which its word in `target` answers.

        Raises:
            TnkitError: for a language without words.

        >>> load_concepts().translations("it", "ja")[0].splitlines()[-1]
        'Italiano: "fiore" - 日本語: "'
        """
        self._check(source, target)

        def line(concept: int) -> str:
            return f'{self.names[source]}: "{self.words[source][concept]}" - {self.names[target]}: "'

        return self._prompts(line, target, _SHOTS["translation"])

    def clozes(self, language: str) -> list[str]:
        """For each concept two examples of other concepts and a sentence, which its word completes.

        Raises:
            TnkitError: for a language without words.

        >>> load_concepts().clozes("it")[0].splitlines()[-1]
        'Un "___" cresce in giardino, profuma e ha i petali. Risposta: "'
        """
        self._check(language)
        return self._prompts(
            lambda concept: f'{self.sentences[language][concept]} {self.answers[language]}: "',
            language,
            _SHOTS["cloze"],
        )

    def _prompts(self, line: Callable[[int], str], target: str, shots: int) -> list[str]:
        prompts = []
        for concept in range(len(self)):
            others = [other for other in range(len(self)) if other != concept]
            drawn = np.random.default_rng(concept).choice(others, min(shots, len(others)), replace=False).tolist()
            examples = [f'{line(other)}{self.words[target][other]}"' for other in drawn]
            prompts.append("\n".join([*examples, line(concept)]))
        return prompts

    def _check(self, *languages: str) -> None:
        for language in languages:
            if language not in self.words:
                raise TnkitError(f"there are no concepts in {language!r}; there are {', '.join(self.words)}")


def load_concepts() -> Concepts:
    """The packaged concepts: 58 nouns and sentences in English, Japanese, Korean, Dutch and Italian (CC0).

    >>> concepts = load_concepts()
    >>> len(concepts), concepts.words["nl"][:2]
    (58, ('bloem', 'hond'))
    """
    header, *rows = (line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines())
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    words = {language: columns[language] for language in _NAMES}
    return Concepts(words, {language: columns[f"{language} cloze"] for language in _NAMES}, _NAMES, _ANSWERS)
