"""A loaded `tnkit.Model` for the lm-evaluation-harness: the class `TnkitLM`, created on first use."""

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from tnkit.errors import TnkitError, optional
from tnkit.models.model import Model


@cache
def model_class() -> type:
    """The harness's model class for tnkit, created on first use because it inherits from a class of the harness.

    >>> model_class().__name__
    'TnkitLM'
    """
    optional("lm_eval", "the lm-evaluation-harness")
    from lm_eval.models.huggingface import HFLM
    from tqdm.auto import tqdm

    class TnkitLM(HFLM):
        """A loaded `tnkit.Model` for the lm-evaluation-harness; runs inside `tnkit.Ablation` are ablated.

        Args:
            model: from `load_model`.
            batch_size: the number of requests that run at once.
            **options: as in lm_eval.models.huggingface.HFLM.
        """

        def __init__(self, model: Model, *, batch_size: int = 8, **options: Any) -> None:
            log = logging.getLogger("lm_eval.models.huggingface")
            level = log.level
            log.setLevel(logging.ERROR)  # it warns of a loaded module, which is intended here
            try:
                super().__init__(model.module, tokenizer=model.tokenizer, batch_size=batch_size, **options)
            finally:
                log.setLevel(level)
            self.ablated = model

        def _loglikelihood_tokens(
            self,
            requests: Sequence[tuple[Any, list[int], list[int]]],
            disable_tqdm: bool = False,
            override_bs: int | None = None,
        ) -> list[tuple[float, bool]]:
            """Like HFLM's method, one length at a time.

            HFLM pads without an attention mask, so the last token of a padded row would be padding.
            """
            scopes = {ablation["tokens"] for ablation in self.ablated.ablations}
            if "last_word" in scopes or ("last" in scopes and any(len(end) > 1 for *_, end in requests)):
                raise TnkitError(
                    'tokens="last" and "last_word" are undefined for continuations of several tokens, which the '
                    'harness feeds together with their prompt; use tokens="prompt" or "all"'
                )
            by_length: dict[int, list[int]] = {}
            for number, (_, start, end) in enumerate(requests):
                by_length.setdefault(len(start) + len(end), []).append(number)
            answers = [(math.nan, False)] * len(requests)
            with tqdm(total=len(requests), desc="likelihoods", disable=disable_tqdm, leave=False) as bar:
                for _, group in sorted(by_length.items(), reverse=True):
                    answered = super()._loglikelihood_tokens([requests[number] for number in group], True, override_bs)
                    for number, answer in zip(group, answered, strict=True):
                        answers[number] = answer
                    bar.update(len(group))
            return answers

    return TnkitLM
