"""The token that "last_word" reads, against places worked out by hand."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tnkit.models.tokens import last_word, special_ids, without_final_punctuation
from tnkit.testing import byte_tokenizer

# text, and how many of its UTF-8 bytes come before and with the last byte that is a word's
WORDS = [
    ("One can always find time.", len("One can always find time")),
    ("Hi!", 2),
    ("Hi", 2),
    ("はい。", 6),
    ("はい？！", 6),
    ("「はい。」", 9),
    ("오늘은 좋네요.", len("오늘은 좋네요".encode())),
    ("Perché no?", len("Perché no".encode())),
    ('He said "yes".', len('He said "yes')),
    ("Dove (qui)…  ", len("Dove (qui")),
    ("Bello! 😀", 5),
    ("Love ❤️", 4),
    ("cafe\u0301!", len("cafe\u0301".encode())),
    ("हिन्दी।", len("हिन्दी".encode())),
    ("ラーメンー。", len("ラーメンー".encode())),
    ("room 12.", 7),
    ("x²!", 3),
]


@pytest.mark.parametrize(("text", "before"), WORDS)
def test_the_last_word_of_bytes(text, before):
    ids = byte_tokenizer()(text)["input_ids"]
    assert len(ids) == 1 + len(text.encode())
    assert last_word(byte_tokenizer(), ids) == before  # BOS stands before the bytes
    assert last_word(byte_tokenizer(), [*ids, 257]) == before, "EOS is no word"
    assert without_final_punctuation(text).encode() == text.encode()[:before]


@pytest.mark.parametrize("text", ["?!", "。", "…", " ", "😀"])
def test_a_sentence_of_punctuation_is_read_at_its_last_token(text):
    ids = byte_tokenizer()(text)["input_ids"]
    assert last_word(byte_tokenizer(), ids) == len(ids) - 1
    assert without_final_punctuation(text) == text


def sentencepiece_tokenizer():
    """Words with ▁, a byte for what is not among them, and an unknown token, as in Llama 2 and Gemma."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁time", "▁no", ".", "?", "は", "い"]
    model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("no time.", ["▁no", "▁time"]),
        ("no ?", ["▁no"]),
        ("はい。", ["▁", "は", "い"]),  # 。 is three byte tokens
        ("no é.", ["▁no", "▁", "<0xC3>", "<0xA9>"]),
    ],
)
def test_the_last_word_of_sentencepiece(text, pieces):
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[: last_word(tokenizer, ids) + 1]) == pieces


def test_an_unknown_word_is_a_word():
    tokenizer = sentencepiece_tokenizer()
    stop = tokenizer.convert_tokens_to_ids(".")
    assert last_word(tokenizer, [1, 0, stop]) == 1
    assert 0 not in special_ids(tokenizer)


def test_special_tokens_without_a_name_are_special():
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=True)])
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    ids = [*tokenizer("no time.")["input_ids"], end, end]
    assert end in special_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids[last_word(tokenizer, ids)]) == "▁time"
