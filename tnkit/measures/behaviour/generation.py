"""How a model continues prompts, untouched and with neurons switched off: `Continuations`.

Batches are padded on the left, with their own attention mask, whatever the tokenizer's padding side. A model whose
states padding changes all the same, such as RecurrentGemma, is given prompts of one length at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, SupportsIndex
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm

from tnkit import plots, storage
from tnkit.captures.batches import by_length, tokenised
from tnkit.errors import TnkitError, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.interventions.comparison import NONE, SET, Comparison, compared, each_condition, frame_of_conditions
from tnkit.interventions.controls import Control
from tnkit.interventions.together import Given, neurons_of
from tnkit.measures.behaviour.languages import detector_of, languages_of
from tnkit.models.hooks import without_ablations
from tnkit.models.model import PROBE, Model
from tnkit.models.sessions import TURN, running
from tnkit.provenance import provenance_of

_OVERLOOKS: "WeakKeyDictionary[torch.nn.Module, bool]" = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Continuations:
    """How a model continues prompts, untouched and with neurons switched off.

    Attributes:
        prompts: what it was given.
        before, after: what it added, untouched and ablated.
        before_languages, after_languages: the language of each, ISO 639-1, or None where it cannot be told.
        count: (token, neuron) values that were set; under tokens="all", an output that ends before the others of its
            batch is counted as long as they run.
        provenance: model, prompts, ablations, parameters, versions.
        controls: for each control, the continuations with each draw of it switched off.
    """

    prompts: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_languages: tuple[str | None, ...]
    after_languages: tuple[str | None, ...]
    count: int
    provenance: dict[str, Any] = field(default_factory=dict)
    controls: dict[str, tuple["Continuations", ...]] = field(default_factory=dict)

    @property
    def changed(self) -> float:
        """The share of prompts whose continuation differs from the untouched one."""
        return sum(a != b for a, b in zip(self.before, self.after, strict=True)) / len(self.prompts)

    def shares(self) -> pd.DataFrame:
        """The share of outputs in each language, `before`, `after` and with each control off; None is "unknown"."""
        named = {"before": [self.before_languages], "after": [self.after_languages]}
        named |= {name: [draw.after_languages for draw in draws] for name, draws in self.controls.items()}
        columns = {
            name: pd.Series([language or "unknown" for languages in draws for language in languages])
            for name, draws in named.items()
        }
        frame = pd.DataFrame({name: column.value_counts(normalize=True) for name, column in columns.items()})
        frame = frame.fillna(0.0).rename_axis("language")
        return frame.sort_values(["before", "after"], ascending=False, kind="stable")

    def compared(self, language: str | None = None) -> Comparison:
        """How many outputs are in a language (default: differ from the untouched ones), with the set and each control.

        Returns:
            `Comparison` with 1 or 0 for every prompt: shares with intervals, effects and p-values.
        """
        if language is None:
            measure = "outputs that differ from the untouched ones"

            def changed(result: Continuations) -> list[np.ndarray]:
                return [np.array(side, object) != self.before for side in (result.before, result.after)]

            return compared(self, measure, changed)

        def spoken(result: Continuations) -> np.ndarray:
            return np.array([result.before_languages, result.after_languages], dtype=object) == language

        return compared(self, f"outputs in {language}", spoken)

    def by_condition(self) -> pd.DataFrame:
        """`to_frame` for the set and each draw of each control, indexed (off, seed, number of the prompt)."""
        return frame_of_conditions(self)

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: prompt, before, before language, after, after language."""
        columns = {
            "prompt": self.prompts,
            "before": self.before,
            "before language": self.before_languages,
            "after": self.after,
            "after language": self.after_languages,
        }
        return pd.DataFrame(columns, dtype=object)

    def plot(self, ax: "plots.Axes | None" = None) -> "plots.Axes":
        """Draw the share of outputs in each language, before and after."""
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
    neurons: Given = (),
    controls: Mapping[str, Control] = MappingProxyType({}),
    seeds: SupportsIndex = 10,
    tokens: str = "last",
    max_new_tokens: SupportsIndex = 30,
    temperature: float | None = None,
    seed: int = 0,
    languages: Iterable[str] | None = None,
    batch_tokens: SupportsIndex = 1024,
    progress: bool = True,
) -> Continuations:
    """Continue prompts untouched and with neurons switched off, and name the language of what was said.

    The model's own generation defaults (penalties, suppressed tokens, guidance and others) are ignored, except for its
    end of text, so that the model itself is measured.

    Args:
        model: from `load_model`.
        prompts: any sequence of str.
        neurons: a `NeuronSet` or (layer, neuron) pairs to switch off, or interventions as in `Ablation`; none
            changes nothing.
        controls: from `tnkit.controls`; each draw generates once more.
        seeds: draws of each random control.
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
            is not positive, and where the package that identifies languages is missing.

    >>> from tnkit.testing import tiny_model
    >>> found = continuations(tiny_model(), ["Hello", "Hi"], languages=["en", "ja"], max_new_tokens=4, progress=False)
    >>> found.changed, found.count
    (0.0, 0)
    """
    languages = None if languages is None else tuple(languages)
    detector_of(languages)  # before minutes of generation, not after
    how: dict[str, Any] = {
        "max_new_tokens": whole_number("max_new_tokens", max_new_tokens, at_least=1),
        "temperature": temperature,
        "seed": seed,
    }
    reading: dict[str, Any] = {"controls": controls, "seeds": seeds, "tokens": tokens, "batch_tokens": batch_tokens}
    results = texts_of(model, prompts, neurons, **reading, **how, progress=progress)
    (before,) = results.pop(NONE)
    before_languages = languages_of(before.texts, candidates=languages)

    def beside(after: Texts, **drawn: Any) -> Continuations:
        after_languages = languages_of(after.texts, candidates=languages)
        spoken = (before.texts, after.texts, before_languages, after_languages)
        return Continuations(tuple(prompts), *spoken, after.values_set, after.provenance | how, **drawn)

    (after,) = results.pop(SET)
    return beside(after, controls={name: tuple(map(beside, draws)) for name, draws in results.items()})


def texts_of(
    model: Model,
    prompts: Sequence[str],
    neurons: Given,
    *,
    controls: Mapping[str, Control],
    seeds: SupportsIndex,
    tokens: str,
    progress: bool,
    **options: Any,
) -> dict[str, list["Texts"]]:
    """The continuations of prompts, greedy or sampled as the options say, in each condition (`each_condition`)."""
    changed = neurons_of(model, neurons)
    model.check_ready()  # before the weights are read
    run = partial(texts_with, model, prompts, tokens=tokens, progress=progress, **options)
    how: dict[str, Any] = {"controls": controls, "seeds": seeds, "name": "conditions", "model": model}
    return each_condition(run, changed, **how, progress=progress)


def texts_with(
    model: Model, prompts: Sequence[str], off: Given, *, tokens: str, progress: bool, **options: Any
) -> "Texts":
    """The continuations of prompts with neurons switched off, or under an intervention; untouched with none."""
    ablation = Ablation(model, off, tokens=tokens)
    with ablation if ablation.values else nullcontext():
        texts = _generate(model, prompts, progress=progress, **options)
    origin = provenance_of(model, prompts)
    about = {"model": origin["model"], "prompts": origin["sentences"]}
    about["ablations"] = [*model.ablations, *(ablation.abouts if ablation.values else [])]
    return Texts(texts, ablation.count, about | {"versions": origin["versions"]})


class Texts(NamedTuple):
    """What a model added to prompts, the number of values that were set, and where it comes from."""

    texts: tuple[str, ...]
    values_set: int
    provenance: dict[str, Any]


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
        torch.no_grad(),
        torch.random.fork_rng(range(torch.cuda.device_count()), enabled=temperature is not None),
        tqdm(total=len(ids), unit=" prompts", desc="generate", disable=not progress, leave=False) as bar,
    ):
        if temperature is not None:
            torch.manual_seed(seed)
        for index in _batches(model, [len(tokens) + max_new_tokens for tokens in ids], batch_tokens):
            width = max(len(ids[number]) for number in index)
            batch = torch.full((len(index), width), _padding(model))
            mask = torch.zeros_like(batch)
            for row, number in enumerate(index):
                batch[row, width - len(ids[number]) :] = torch.tensor(ids[number])
                mask[row, width - len(ids[number]) :] = 1
            inputs = {"input_ids": batch.to(model.device), "attention_mask": mask.to(model.device)}
            with running(model.module, own=ids.own_places(index, width, left=True)):
                rows = model.module.generate(**inputs, generation_config=options)  # type: ignore[operator]  # of a mixin
            for number, row in zip(index, rows, strict=True):
                new = row[width:].tolist()
                end = next((at for at, token in enumerate(new) if token in ends), len(new))
                texts[number] = str(model.tokenizer.decode(new[:end], skip_special_tokens=True))
            bar.update(len(index))
    return tuple(texts)


def _batches(model: Model, lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batches by length, of one length each where padding on the left changes what the model says."""
    if len(set(lengths)) == 1 or _overlooks_padding(model):
        yield from by_length(lengths, batch_tokens)
        return
    for length in sorted(set(lengths)):
        places = [place for place, other in enumerate(lengths) if other == length]
        for batch in by_length([length] * len(places), batch_tokens):
            yield [places[number] for number in batch]


def _overlooks_padding(model: Model) -> bool:
    """Whether a short prompt gets the same logits with padding on its left; found once for a module."""
    module = model.module
    if module not in _OVERLOOKS:
        ids = torch.tensor([model.tokenizer(PROBE, verbose=False)["input_ids"][:8]])
        logits = []
        with without_ablations(module):
            for padding in (0, 3):
                prompt = torch.nn.functional.pad(ids, (padding, 0), value=_padding(model)).to(model.device)
                mask = torch.nn.functional.pad(torch.ones_like(ids), (padding, 0)).to(model.device)
                options = _Pinned(max_new_tokens=1, use_cache=True, disable_compile=True, pad_token_id=_padding(model))
                options.return_dict_in_generate = options.output_logits = True
                run: Any = type(module).generate  # type: ignore[attr-defined]  # past what notes prompts for ablations
                logits.append(run(module, input_ids=prompt, attention_mask=mask, generation_config=options).logits[0])
        near = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
        _OVERLOOKS[module] = bool((logits[1] - logits[0]).float().norm() <= near * logits[0].float().norm())
    return _OVERLOOKS[module]


class _Pinned(transformers.GenerationConfig):
    """A generation configuration that ignores the model's own.

    `generate` first fills what is None from the model's defaults, custom entries included, then from its own.
    """

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **values: Any) -> dict[str, Any]:
        """Change values, other than to those of the model."""
        if defaults_only and allow_custom_entries:
            return {}
        return super().update(defaults_only, allow_custom_entries, **values)


def _ends(model: Model) -> list[int]:
    """The tokens that end a text."""
    ends = model.module.generation_config.eos_token_id
    every = [*(ends if isinstance(ends, list) else [ends]), model.tokenizer.eos_token_id]
    return [end for end in dict.fromkeys(every) if end is not None]


def _padding(model: Model) -> int:
    pad = model.tokenizer.pad_token_id
    return pad if pad is not None else next(iter(_ends(model)), 0)
