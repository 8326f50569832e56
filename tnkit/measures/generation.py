"""How a model goes on: `Continuations` of prompts and `Answered` questions, untouched and with neurons switched off.

found = continuations(model, ["昨日、私は", "この町で一番"], neurons=type2, tokens="prompt", max_new_tokens=30)
found.shares()                                   # the language of the outputs, before and after
answer_questions(model, questions, answers, language="ja", neurons=type1, examples=[("日本の首都は？", "東京")])

Batches are padded on the left, with their own attention mask, whatever the tokenizer's padding side.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
import transformers
from tqdm.auto import tqdm

from tnkit import storage
from tnkit.captures.batches import by_length, tokenised
from tnkit.errors import TnkitError, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.measures.answers import Answer, QuestionScores, score
from tnkit.models.model import Model
from tnkit.models.sessions import TURN, sentences_at
from tnkit.provenance import provenance_of

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd
    from lingua import LanguageDetector

_BYTES = 8  # of letters in UTF-8, below which no language is named: 8 Latin letters, 4 Cyrillic, 3 Japanese


@dataclass(frozen=True, eq=False)
class Continuations:
    """How a model goes on after prompts, untouched and with neurons switched off.

    Attributes:
        prompts: what it was given.
        before, after: what it added, untouched and ablated.
        before_languages, after_languages: the language of each, ISO 639-1, or None where it cannot be told.
        count: (token, neuron) values that were set; under tokens="all", an output that ends before the others of its
            batch is counted as long as they run.
        provenance: model, prompts, ablations, parameters, versions.
    """

    prompts: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_languages: tuple[str | None, ...]
    after_languages: tuple[str | None, ...]
    count: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> float:
        """The share of prompts that are continued otherwise than before."""
        return sum(a != b for a, b in zip(self.before, self.after, strict=True)) / len(self.prompts)

    def shares(self) -> "pd.DataFrame":
        """The share of outputs in each language, `before` and `after`, commonest first; None is "unknown"."""
        import pandas as pd

        named = {"before": self.before_languages, "after": self.after_languages}
        columns = {name: pd.Series([one or "unknown" for one in column]) for name, column in named.items()}
        frame = pd.DataFrame({name: column.value_counts(normalize=True) for name, column in columns.items()})
        frame = frame.fillna(0.0).rename_axis("language")
        return frame.sort_values(["before", "after"], ascending=False, kind="stable")

    def to_frame(self) -> "pd.DataFrame":
        """One row a prompt: prompt, before, before language, after, after language."""
        import pandas as pd

        columns = {
            "prompt": self.prompts,
            "before": self.before,
            "before language": self.before_languages,
            "after": self.after,
            "after language": self.after_languages,
        }
        return pd.DataFrame(columns, dtype=object)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the share of outputs in each language, before and after."""
        from tnkit import plots

        return plots.language_shares(self.shares(), ax=ax)

    def _repr_html_(self) -> str:
        rows: dict[str, Any] = {"prompts": len(self.prompts), "changed": self.changed, "values set": self.count}
        for name, column in self.shares().items():
            rows[str(name)] = [f"{language} {share:.0%}" for language, share in column.items() if share]
        return storage.html_card("Continuations", rows)


def continuations(
    model: Model,
    prompts: Sequence[str],
    *,
    neurons: Iterable[tuple[int, int]] = (),
    tokens: str = "last",
    max_new_tokens: SupportsIndex = 30,
    temperature: float | None = None,
    seed: int = 0,
    languages: Iterable[str] | None = None,
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> Continuations:
    """Continue prompts untouched and with neurons switched off, and name the language of what was said.

    The model's own defaults of generation (penalties, suppressed tokens, guidance and the rest) are left out, apart
    from its end of text: what is measured is the model.

    Args:
        model: from `load_model`.
        prompts: any sequence of str.
        neurons: a `NeuronSet` or (layer, neuron) pairs to switch off; none changes nothing.
        tokens: as in `Ablation`: "last" acts on the last token of the prompt only, "last_word" on the last one that is
            not punctuation, "prompt" on all of the prompt, "all" on the prompt and on every token that is generated.
        max_new_tokens: the most tokens to add; a model that ends its text adds fewer.
        temperature: None takes the likeliest token each time; a number samples from all tokens at that temperature,
            with the same random numbers before and after.
        seed: of the sampling.
        languages: which languages an output may be in, as in `languages_of`.
        batch_tokens: the most tokens in a batch, padding and new tokens included.
        progress: show a bar.

    Raises:
        TnkitError: for prompts that `capture` refuses, too many new tokens for the model's context, a temperature that
            is not positive, and where the package that tells languages is missing.

    >>> from tnkit.testing import tiny_model
    >>> found = continuations(tiny_model(), ["Hello", "Hi"], languages=["en", "ja"], max_new_tokens=4, progress=False)
    >>> found.changed, found.count
    (0.0, 0)
    """
    languages = None if languages is None else tuple(languages)
    _detector(languages)  # before minutes of generation, not after
    how = {
        "max_new_tokens": whole_number("max_new_tokens", max_new_tokens, at_least=1),
        "temperature": temperature,
        "seed": seed,
    }
    ablation = Ablation(model, neurons, tokens=tokens)
    before, after = _both(model, prompts, ablation, **how, batch_tokens=batch_tokens, progress=progress)
    return Continuations(
        tuple(prompts),
        before,
        after,
        languages_of(before, candidates=languages),
        languages_of(after, candidates=languages),
        ablation.count,
        _provenance(model, prompts, ablation) | how,
    )


@dataclass(frozen=True, eq=False)
class Answered:
    """What a model answers to questions and how right that is, untouched and with neurons switched off.

    Attributes:
        questions: what it was asked.
        before, after: its answers, untouched and ablated.
        before_scores, after_scores: of `tnkit.measures.answers.score`.
        count: (token, neuron) values that were set.
        provenance: model, prompts, ablations, parameters, versions.
    """

    questions: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_scores: QuestionScores
    after_scores: QuestionScores
    count: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> "pd.DataFrame":
        """One row a question: question, answers and F1 before and after."""
        import pandas as pd

        columns = {"question": self.questions, "before": self.before, "after": self.after}
        scores = {"before F1": self.before_scores.f1, "after F1": self.after_scores.f1}
        return pd.DataFrame(columns | scores, index=pd.RangeIndex(len(self.questions), name="question"))

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw mean F1 and the share of exact matches, before and after."""
        from tnkit import plots

        return plots.before_and_after(self._means(), ylabel="mean over questions", ax=ax)

    def _means(self) -> dict[str, tuple[float, float]]:
        before, after = self.before_scores, self.after_scores
        return {"F1": (before.mean_f1, after.mean_f1), "exact match": (before.mean_exact, after.mean_exact)}

    def _repr_html_(self) -> str:
        means = {name: [f"{value:.3f}" for value in pair] for name, pair in self._means().items()}
        return storage.html_card("Answers, before and after", {"questions": len(self.questions), **means})


def answer_questions(
    model: Model,
    questions: Sequence[str],
    answers: Sequence[Sequence[Answer]],
    *,
    language: str,
    examples: Sequence[tuple[str, str]] = (),
    template: str = "Q: {question}\nA: {answer}",
    neurons: Iterable[tuple[int, int]] = (),
    tokens: str = "prompt",
    max_new_tokens: SupportsIndex = 20,
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> Answered:
    """Ask a model questions, untouched and with neurons switched off, and score what it says up to the line's end.

    The prompt is each example through the template, an empty line between, and the question through the template with
    nothing for its answer. Answers are greedy.

    Args:
        model: from `load_model`.
        questions: any sequence of str.
        answers: the accepted answers of each question, as in `tnkit.measures.answers.score`.
        language: of the answers, which decides how they are compared.
        examples: (question, answer) pairs to show first; one or a few tell a base model what is asked of it.
        template: with {question} and, at its end, {answer}.
        neurons: a `NeuronSet` or (layer, neuron) pairs to switch off.
        tokens: as in `Ablation`; Tezuka & Inoue (EMNLP 2025) act on the prompt only, at its last token or at all.
        max_new_tokens, batch_tokens, progress: as in `continuations`.

    Raises:
        TnkitError: as `continuations` and `tnkit.measures.answers.score` do, and for a template without its places.

    >>> from tnkit.testing import tiny_model
    >>> asked = {"answers": [["Roma"]], "language": "it", "examples": [("La capitale del Giappone?", "Tokyo")]}
    >>> answer_questions(tiny_model(), ["Dove?"], **asked, max_new_tokens=4, progress=False).before_scores.mean_f1
    0.0
    """
    if "{question}" not in template or not template.endswith("{answer}"):
        raise TnkitError(f"the template {template!r} must hold {{question}} and end in {{answer}}")
    if isinstance(questions, str) or len(questions) != len(answers):
        raise TnkitError(f"{len(questions)} questions do not go with the answers of {len(answers)}; give one list each")
    fill = lambda question, answer: template.replace("{answer}", answer).replace("{question}", question)  # noqa: E731
    shown = "".join(fill(*example) + "\n\n" for example in examples)
    prompts = [shown + fill(question, "").rstrip() for question in questions]
    how = {"max_new_tokens": whole_number("max_new_tokens", max_new_tokens, at_least=1), "temperature": None, "seed": 0}
    ablation = Ablation(model, neurons, tokens=tokens)
    both = _both(model, prompts, ablation, **how, batch_tokens=batch_tokens, progress=progress)
    before, after = (tuple(text.strip().partition("\n")[0].strip() for text in texts) for texts in both)
    about = _provenance(model, prompts, ablation) | how
    scored, scored_after = (score(texts, answers, language) for texts in (before, after))
    return Answered(tuple(questions), before, after, scored, scored_after, ablation.count, about)


def languages_of(texts: Sequence[str], *, candidates: Iterable[str] | None = None) -> tuple[str | None, ...]:
    """The language of each text, by lingua (https://github.com/pemistahl/lingua-py); tags such as <em> are passed over.

    Args:
        texts: any sequence of str.
        candidates: ISO 639-1 codes to choose from, at least two (default: all 75 that lingua knows; the fewer, the
            surer, but a text in any other language is then named wrongly). Loaded once for each choice of candidates.

    Returns:
        ISO 639-1 codes; None for a text with fewer than 8 bytes of letters in UTF-8 (8 Latin letters, 3 Japanese ones),
        and where lingua finds no language.

    Raises:
        TnkitError: for an unknown or a single candidate, and where lingua is missing.

    >>> languages_of(["時間はいくらでも作れる。", "We are here.", "Ja!", ""], candidates=["en", "ja"])
    ('ja', 'en', None, None)
    """
    detector = _detector(None if candidates is None else tuple(candidates))
    found = []
    for text in texts:
        text = re.sub("<[^<>]*>", " ", text)
        enough = len("".join(filter(str.isalpha, text)).encode()) >= _BYTES
        language = detector.detect_language_of(text) if enough else None
        found.append(language and language.iso_code_639_1.name.lower())
    return tuple(found)


@cache
def _detector(candidates: tuple[str, ...] | None) -> "LanguageDetector":
    try:
        from lingua import IsoCode639_1, Language, LanguageDetectorBuilder
    except ImportError as error:
        raise TnkitError(
            "telling languages apart needs lingua-language-detector, which is not installed: "
            "pip install 'tnkit[measures]'"
        ) from error
    if candidates is None:
        return LanguageDetectorBuilder.from_all_languages().build()
    known = sorted(language.iso_code_639_1.name.lower() for language in Language.all())
    unknown = sorted(set(candidates) - set(known))
    if unknown or len(set(candidates)) < 2:
        raise TnkitError(
            f"languages {list(candidates)} must be at least two of {', '.join(known)}"
            + (f"; {', '.join(unknown)} is not among them" if unknown else "")
        )
    return LanguageDetectorBuilder.from_iso_codes_639_1(*(IsoCode639_1.from_str(code) for code in candidates)).build()


def _both(
    model: Model, prompts: Sequence[str], ablation: Ablation, **how: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The continuations untouched and ablated; without neurons the second are the first."""
    before = _generate(model, prompts, **how)
    if not ablation.values:
        return before, before
    with ablation:
        return before, _generate(model, prompts, **how)


def _generate(
    model: Model,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float | None,
    seed: int,
    batch_tokens: SupportsIndex,
    progress: bool,
) -> tuple[str, ...]:
    model.check_ready()
    ids = tokenised(model, prompts, whole=True)
    longest = max(map(len, ids))
    batch_tokens = whole_number("batch_tokens", batch_tokens, at_least=1)
    if model.context and longest + max_new_tokens > model.context:
        raise TnkitError(
            f"max_new_tokens={max_new_tokens} after a prompt of {longest} tokens does not end within the "
            f"{model.context} that {model.name} reads; give fewer"
        )
    if temperature is not None and not temperature > 0:
        raise TnkitError(f"temperature={temperature} must be positive, or None for the likeliest token each time")
    ends = _ends(model)
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    options = _Pinned(
        max_new_tokens=max_new_tokens,
        do_sample=temperature is not None,
        use_cache=True,
        disable_compile=True,
        guidance_scale=1.0,
        eos_token_id=ends or None,
        pad_token_id=_padding(model),
        **sampling,
    )
    texts = [""] * len(ids)
    with (
        TURN,
        torch.inference_mode(),
        torch.random.fork_rng(range(torch.cuda.device_count()), enabled=temperature is not None),
        tqdm(total=len(ids), unit=" prompts", desc="generate", disable=not progress, leave=False) as bar,
    ):
        if temperature is not None:
            torch.manual_seed(seed)
        for index in by_length([len(one) + max_new_tokens for one in ids], batch_tokens):
            width = max(len(ids[place]) for place in index)
            batch = torch.full((len(index), width), _padding(model))
            mask = torch.zeros_like(batch)
            for row, place in enumerate(index):
                batch[row, width - len(ids[place]) :] = torch.tensor(ids[place])
                mask[row, width - len(ids[place]) :] = 1
            inputs = {"input_ids": batch.to(model.device), "attention_mask": mask.to(model.device)}
            with sentences_at(model.module, ids.own_places(index, width, left=True)):
                rows = model.module.generate(**inputs, generation_config=options)  # type: ignore[operator]  # of a mixin
            for place, row in zip(index, rows, strict=True):
                new = row[width:].tolist()
                end = next((at for at, token in enumerate(new) if token in ends), len(new))
                texts[place] = str(model.tokenizer.decode(new[:end], skip_special_tokens=True))
            bar.update(len(index))
    return tuple(texts)


class _Pinned(transformers.GenerationConfig):
    """A configuration of generation that takes nothing over from the model's own.

    `generate` first fills what is None from the model's defaults, custom entries included, then from its own.
    """

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **values: Any) -> dict[str, Any]:
        """Change values, other than to those of the model."""
        if defaults_only and allow_custom_entries:
            return {}
        unused: dict[str, Any] = super().update(defaults_only, allow_custom_entries, **values)
        return unused


def _ends(model: Model) -> list[int]:
    """The tokens that end a text."""
    ends = model.module.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return [end for end in dict.fromkeys([*ends, model.tokenizer.eos_token_id]) if end is not None]


def _padding(model: Model) -> int:
    pad = model.tokenizer.pad_token_id
    return pad if pad is not None else next(iter(_ends(model)), 0)


def _provenance(model: Model, prompts: Sequence[str], ablation: Ablation) -> dict[str, Any]:
    about = provenance_of(model, prompts)
    ablations = [*model.ablations, *([ablation.about] if ablation.values else [])]
    return {
        "model": about["model"],
        "prompts": about["sentences"],
        "ablations": ablations,
        "versions": about["versions"],
    }
