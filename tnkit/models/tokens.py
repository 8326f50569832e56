"""Which tokens of a sentence are words, punctuation or special, and how a template wraps a sentence.

last_word(model.tokenizer, ids)          # the index of the last token that is neither punctuation nor special
special_tokens(tokenizer, tokens)        # whether BOS is added, and how sentences end
"""

import logging
import unicodedata
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypedDict

import pandas as pd
from transformers import PreTrainedTokenizerBase

from tnkit.errors import TnkitError, first_line

_LOG = logging.getLogger("tnkit")
_LOGGED: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, set[str]]" = weakref.WeakKeyDictionary()
_CHARACTER = 4  # the most bytes, and so tokens, of a character
_SENTENCE = "{sentence}"
_PROBES = ("tnkit probe", "Ein 「は」, {x} <b>?")  # texts that a chat template has to leave unchanged
_INCOMPLETE = "\ufffd"  # the decoded form of an incomplete character


def last_word(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: Collection[int] | None = None) -> int:
    """The index of the last token that is neither punctuation nor special.

    From the end backwards, tokens are punctuation as long as their joint text holds no letter, number or mark, and no
    incomplete character. A full stop of three byte tokens is thus punctuation as a whole, and the token before it may
    be the last byte of a letter. White space, symbols and emoji are punctuation; an unknown token is a word.

    Args:
        tokenizer: of the ids.
        ids: the token ids of one sentence, without padding; at least one.
        special: the tokenizer's `special_ids`, where they are known; to ask for them takes longer than all else.

    Returns:
        An index; that of the last token if all tokens are punctuation or special.

    >>> from tnkit.testing import byte_tokenizer
    >>> tokenizer = byte_tokenizer()
    >>> [last_word(tokenizer, tokenizer(text)["input_ids"]) for text in ("Hi.", "はい。", "?!")]
    [2, 6, 2]
    """
    word = _last_word(tokenizer, ids, special_ids(tokenizer) if special is None else special)
    return len(ids) - 1 if word is None else word


def _last_word(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: Collection[int]) -> int | None:
    last = len(ids) - 1
    text_ids: list[int] = []
    for index in reversed(range(len(ids))):
        if ids[index] not in special:
            text_ids.insert(0, ids[index])
        text = str(tokenizer.decode(text_ids, clean_up_tokenization_spaces=False))
        if any(map(_is_word, text)) or ids[index] == tokenizer.unk_token_id:
            return last
        if _INCOMPLETE not in text:
            last = index - 1
    return None if last < 0 else last


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of special tokens, without the unknown token, which replaces a word."""
    return _special_ids(tokenizer, tuple(tokenizer.all_special_ids), len(tokenizer))


@lru_cache(maxsize=8)  # a search of a large vocabulary takes milliseconds
def _special_ids(tokenizer: PreTrainedTokenizerBase, named: tuple[int, ...], _size: int) -> frozenset[int]:
    added = {token for token, properties in tokenizer.added_tokens_decoder.items() if properties.special}
    return frozenset(added.union(named) - {tokenizer.unk_token_id})


class Specials(TypedDict):
    """The special tokens of tokenised sentences.

    `bos` is "added", "doubled" (in at least one sentence), "absent" (the tokenizer has one) or "none" (it has none);
    `end` is the special token at the end of every sentence, or None; `inside` counts the sentences whose own text holds
    a special token.
    """

    bos: str
    end: str | None
    inside: int


class Ends(TypedDict):
    """How sentences end: the most common last token, its share, and the share that ends in punctuation.

    `wordless` counts sentences without a word; "last_word" reads their last token.
    """

    token: str
    share: float
    punctuation: float
    wordless: int


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]], spans: Iterable[tuple[int, int]]
) -> Specials:
    """Whether BOS is added, and how sentences end.

    Any special token at the beginning counts as BOS, because OPT and XGLM begin with another token than they state.

    Args:
        tokenizer: of the tokens.
        tokens: the token ids of each sentence.
        spans: start and end of each sentence's own tokens, including the special tokens added to it.

    >>> from tnkit.testing import byte_tokenizer
    >>> special_tokens(byte_tokenizer(), [[256, 7], [256, 256, 7]], [(0, 2), (0, 3)])
    {'bos': 'doubled', 'end': None, 'inside': 0}
    """
    special, begun, doubled, inside, ended, ends = special_ids(tokenizer), 0, 0, 0, 0, set()
    for ids, (start, stop) in zip(tokens, spans, strict=True):
        begun += ids[0] in special
        doubled += len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
        words = [index for index in range(start, stop) if ids[index] not in special] or [stop - 1]
        inside += len(words) <= words[-1] - words[0]  # a special token between words
        ended += words[-1] < stop - 1
        ends.add(ids[stop - 1] if ids[stop - 1] in special else None)
    end = next(iter(ends)) if len(ends) == 1 else None
    bos = "doubled" if doubled else "added" if begun == len(tokens) else "absent"
    return {
        "bos": "none" if tokenizer.bos_token_id is None and bos == "absent" else bos,
        "end": None if end is None else str(tokenizer.convert_ids_to_tokens(end)),
        "inside": inside + (0 if end else ended),
    }


def advice(tokenizer: PreTrainedTokenizerBase, specials: Specials, template: str | None = None) -> list[str]:
    """A sentence for each problem with special tokens that can make states useless.

    A tokenizer does not state whether its model was trained with BOS. If BOS and EOS are one token, as in GPT-2, it
    separates documents and is omitted by design, so there is no advice; otherwise the advice covers both kinds of
    model. Within a template the tokenizer adds nothing: the template decides.
    """
    bos, sentences = tokenizer.bos_token, []
    drop = "load the tokenizer with add_eos_token=False" if template is None else "remove it from the text"
    lacking = f"the tokenizer has the BOS token {bos} but does not add it"
    remedy, cause = "load the tokenizer with add_bos_token=True", "their text holds it and the tokenizer adds it"
    if template is not None:
        lacking = f"the template {template!r:.60} does not begin with the tokenizer's BOS token {bos}"
        remedy, cause = f"give a template that begins with {bos}", "both the template and the text hold it"
    if specials["bos"] == "absent" and tokenizer.bos_token_id != tokenizer.eos_token_id:
        sentences.append(
            f"{lacking}: correct for a model trained without it, such as BLOOM, but the states of a model trained with "
            f"it, such as Gemma or Llama, are useless; for those, {remedy}"
        )
    if specials["bos"] == "doubled":
        sentences.append(f"sentences begin with the BOS token {bos} twice, because {cause}; remove one of them")
    if specials["end"]:
        sentences.append(
            f"every sentence ends in the special token {specials['end']}, which position='last' then reads; {drop}, or "
            "read position='last_word'"
        )
    if specials["inside"]:
        sentences.append(
            f"{specials['inside']} sentence(s) hold the text of a special token, such as {tokenizer.eos_token or bos}, "
            "which the tokenizer reads as that token; remove it from the text"
        )
    return sentences


def tell(tokenizer: PreTrainedTokenizerBase, specials: Specials, name: str, template: str | None = None) -> None:
    """Log the advice, each sentence once per tokenizer."""
    logged = _LOGGED.setdefault(tokenizer, set())
    for sentence in advice(tokenizer, specials, template):
        kind = sentence.lstrip("0123456789")
        if kind not in logged:
            logged.add(kind)
            _LOG.warning("%s: %s", name, sentence)


def ends(tokenizer: PreTrainedTokenizerBase, sentences: Iterable[Sequence[int]]) -> Ends:
    """How sentences end, from their token ids.

    >>> from tnkit.testing import byte_tokenizer
    >>> ends(byte_tokenizer(), byte_tokenizer()(["Hi!", "Hi.", "Ja.", "Ja"])["input_ids"])
    {'token': '.', 'share': 0.5, 'punctuation': 0.75, 'wordless': 0}
    """
    special, punctuation, wordless = special_ids(tokenizer), 0, 0
    last, examples = Counter[int](), dict[int, Sequence[int]]()
    for ids in sentences:
        last[ids[-1]] += 1
        examples.setdefault(ids[-1], ids)
        word = _last_word(tokenizer, ids, special)
        wordless += word is None
        end = next((index for index in reversed(range(len(ids))) if ids[index] not in special), 0)
        punctuation += word is None or end > word
    token, times = last.most_common(1)[0]
    count = last.total()
    text = _whole_text(tokenizer, examples[token])
    return {"token": text, "share": times / count, "punctuation": punctuation / count, "wordless": wordless}


def _whole_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The last token as text, with the tokens before it if it is only part of a character."""
    for size in range(1, min(len(ids), _CHARACTER) + 1):
        text = str(tokenizer.decode(list(ids[-size:]), clean_up_tokenization_spaces=False))
        if text.strip() and _INCOMPLETE not in text:
            return text
    return str(tokenizer.convert_ids_to_tokens(ids[-1]))


def ends_frame(sentences: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """How the sentences of each language end, from the `sentences` of a provenance; old captures have no row.

    >>> ends = {"token": "。", "share": 0.8, "punctuation": 1.0, "wordless": 0}
    >>> ends_frame([{"language": "ja", "ends": ends}]).loc["ja"].to_dict() == ends
    True
    """
    rows = {origin.get("language", "unnamed"): origin["ends"] for origin in sentences if "ends" in origin}
    frame = pd.DataFrame(rows.values(), index=pd.Index(rows, name="language"))
    return frame if len(frame) else frame.reindex(columns=list(Ends.__annotations__))


def ends_lines(sentences: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """`ends_frame` in words, by language."""
    return {
        str(language): f"{row.share:.0%} in {row.token!r}, {row.punctuation:.0%} in punctuation"
        + (f", {row.wordless} without a word" if row.wordless else "")
        for language, row in ends_frame(sentences).iterrows()
    }


def template_of(tokenizer: PreTrainedTokenizerBase, chat: bool, template: str | None) -> str | None:
    """The text around a sentence, with {sentence} in its place; None without a template.

    The tokenizer's chat template is rendered once, with the sentence as the user's message and the prompt for an answer
    after it. A custom template starts with the BOS token if the tokenizer adds one to plain sentences.

    Raises:
        TnkitError: for a tokenizer without a chat template, or a template that does not hold {sentence} exactly once.
    """
    if chat and template is not None:
        raise TnkitError("chat=True uses the tokenizer's template; give either chat=True or template=, not both")
    if chat:
        return _chat_template(tokenizer)
    if template is None:
        return None
    if template.count(_SENTENCE) != 1:
        raise TnkitError(f"template={template!r} must hold {_SENTENCE} once, in place of the sentence")
    bos = tokenizer.bos_token
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return bos + template if begins and bos and not template.startswith(bos) else template


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise TnkitError(
            "the tokenizer has no chat template; give template='...{sentence}...', or load a model tuned for chat"
        )
    texts = []
    for probe in _PROBES:
        message = [{"role": "user", "content": probe}]
        try:
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs
            raise TnkitError(f"the tokenizer's chat template fails on one message: {first_line(error)}") from error
        texts.append(str(text).split(probe))
    if any(len(text) != 2 for text in texts) or texts[0] != texts[1]:
        raise TnkitError(
            "the tokenizer's chat template does not hold the user's message exactly once and unchanged, so its last "
            "token cannot be located; give template='...{sentence}...'"
        )
    return _SENTENCE.join(texts[0])


def without_final_punctuation(text: str) -> str:
    """The text up to its last letter, number or mark; the whole text if it has none.

    >>> without_final_punctuation("はい。」"), without_final_punctuation("?!")
    ('はい', '?!')
    """
    end = next((index + 1 for index in reversed(range(len(text))) if _is_word(text[index])), len(text))
    return text[:end]


def _is_word(character: str) -> bool:
    """Whether a character is a letter, a number or a mark, except marks that only select the style of an emoji."""
    is_emoji_mark = "\ufe00" <= character <= "\ufe0f" or character == "\u20e3"
    return unicodedata.category(character)[0] in "LMN" and not is_emoji_mark
