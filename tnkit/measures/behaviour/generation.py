"""How a model continues prompts, untouched and with neurons switched off: `Continuations`.

Batches are padded on the left, with their own attention mask, whatever the tokenizer's padding side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
import transformers
from tqdm.auto import tqdm

from tnkit import storage
from tnkit.captures.batches import by_length, provenance_of, tokenised
from tnkit.errors import TnkitError, whole_number
from tnkit.interventions.ablation import Ablation
from tnkit.measures.behaviour.languages import detector_of, languages_of
from tnkit.models.fingerprint import check_ready
from tnkit.models.model import Model
from tnkit.models.sessions import TURN, sentences_at

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd


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
        from tnkit.plots import figures as plots

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
    detector_of(languages)  # before minutes of generation, not after
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
    check_ready(model)
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
