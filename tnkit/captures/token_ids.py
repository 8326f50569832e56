"""Token ids in place of sentences: texts that were tokenised before, in whatever template, and are run as they are.

tn.capture(model, [[2, 4521, 236764], [2, 9259]])              # lists of ints
tn.capture(model, [tokenizer.apply_chat_template(...)["input_ids"] for ... in ...])
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tnkit.errors import TnkitError, whole_number
from tnkit.models.model import Model

Texts = Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor] | Sequence[np.ndarray]


def given_ids(model: Model, texts: Any, suffix: str | None = None) -> list[list[int]] | None:
    """The token ids of texts that were given as such, without padding; None for sentences.

    Raises:
        TnkitError: for ids beside sentences, under a template or with a suffix, which they already have, and for a text
            that holds no ids or something else.

    >>> from tnkit.testing import tiny_model
    >>> given_ids(tiny_model(), [[256, 7], [256]]), given_ids(tiny_model(), ["Hi!"])
    ([[256, 7], [256]], None)
    """
    if isinstance(texts, str) or not len(texts) or not _is_ids(texts[0]):
        return None
    if model.template is not None or suffix is not None:
        raise TnkitError(
            "token ids are run as they are, so they take no template and no suffix; load the model without chat= and "
            "template=, or give sentences"
        )
    tokens = []
    for number, ids in enumerate(texts):
        if not _is_ids(ids):
            raise TnkitError(f"text {number} is {type(ids).__name__}, and text 0 is token ids; give one kind")
        tokens.append([whole_number(f"a token id of text {number}", token) for token in ids])
    return tokens


def _is_ids(text: Any) -> bool:
    """Whether a text is a row of token ids."""
    if isinstance(text, Tensor | np.ndarray):
        return text.ndim == 1
    return isinstance(text, Sequence) and not isinstance(text, str | bytes)
