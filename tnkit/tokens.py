"""Which tokens of a sentence are words, which are punctuation, and which are special.

last_word(model.tokenizer, ids)          # the place of the last token that is neither punctuation nor special
"""

import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what decoding makes of some of the bytes of a character


def last_word(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """The place of the last token that is neither punctuation nor special.

    Walking back from the end, tokens are punctuation as long as their text together holds no letter, number or mark,
    and no incomplete character. So a full stop of three byte tokens is punctuation as a whole, and the token before it
    is the last byte of a letter. White space, symbols and emoji are punctuation, an unknown token is a word.

    Args:
        tokenizer: of the ids.
        ids: the token ids of one sentence, without padding; at least one.

    Returns:
        A place from 0; the last one where all tokens are punctuation or special.

    >>> from tnkit.tests.tiny import byte_tokenizer
    >>> tokenizer = byte_tokenizer()
    >>> [last_word(tokenizer, tokenizer(text)["input_ids"]) for text in ("Hi.", "はい。", "?!")]
    [2, 6, 2]
    """
    special, text_ids, last = special_ids(tokenizer), [], len(ids) - 1
    for place in reversed(range(len(ids))):
        if ids[place] not in special:
            text_ids.insert(0, ids[place])
        text = str(tokenizer.decode(text_ids, clean_up_tokenization_spaces=False))
        if any(map(_is_word, text)) or ids[place] == tokenizer.unk_token_id:
            return last
        if _INCOMPLETE not in text:
            last = place - 1
    return last if last >= 0 else len(ids) - 1


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of special tokens; the unknown token is not among them, because it is the place of a word."""
    added = {token for token, what in tokenizer.added_tokens_decoder.items() if what.special}
    return frozenset(added.union(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def without_final_punctuation(text: str) -> str:
    """The text up to its last letter, number or mark; all of it where it has none.

    >>> without_final_punctuation("はい。」"), without_final_punctuation("?!")
    ('はい', '?!')
    """
    end = next((place + 1 for place in reversed(range(len(text))) if _is_word(text[place])), len(text))
    return text[:end]


def _is_word(character: str) -> bool:
    """Whether it is a letter, a number or a mark, but not one of the marks that only choose how an emoji looks."""
    is_emoji_mark = "\ufe00" <= character <= "\ufe0f" or character == "\u20e3"
    return unicodedata.category(character)[0] in "LMN" and not is_emoji_mark
