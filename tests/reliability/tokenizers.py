"""Tokenizers of every set-up: each capture is of the token that it names, by plain hooks, or is warned about."""

import copy
import logging
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tnkit as tn
from tnkit.testing import byte_tokenizer, tiny_module
from tnkit.tests.oracle import hooked

TEXTS = [
    "One can always find time.",
    "Hi!",
    "はい。」",
    "猫が好きですか？！",
    "오늘은 날씨가 좋네요...",
    "Perché no? (forse)",
    'He said "yes".',
    "Bello! 😀",
    "cafe\u0301!",
    "हिन्दी।",
    "No 12.",
    "ÀÉ — ok",
]
SUFFIXES = (None, "", "。")
CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
TOLERANCE = 1e-5


@dataclass
class Setup:
    """A tokenizer, how the model is loaded with it, and what must be told about it."""

    tokenizer: PreTrainedTokenizerFast
    options: dict[str, Any] = field(default_factory=dict)
    told: str = ""
    before: str = ""  # of each text
    after: str = ""

    @property
    def template(self) -> str | None:
        """What goes around a sentence, rendered by transformers where it is a chat template."""
        if not self.options.get("chat"):
            return self.options.get("template")
        message = [{"role": "user", "content": "{sentence}"}]
        return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def setups() -> dict[str, Setup]:
    """Every set-up by name."""
    end, inside = "ends in the special token", "the text of a special token"
    every = {
        "BOS added": Setup(byte("<bos> $A")),
        "BOS not added": Setup(byte("$A"), told="does not add it"),
        "no BOS": Setup(byte("$A", bos_token=None)),
        "BOS is EOS, not added": Setup(byte("$A", bos_token="<eos>")),
        "BOS in the text": Setup(byte("<bos> $A"), told="<bos> twice", before="<bos>"),
        "BOS added twice": Setup(byte("<bos> <bos> $A"), told="<bos> twice"),
        "EOS appended": Setup(byte("<bos> $A <eos>"), told=end),
        "EOS in the text": Setup(byte("<bos> $A"), told=end, after="<eos>"),
        "a special token within the text": Setup(byte("<bos> $A"), told=inside, before="a<eos>"),
        "padding on the left": Setup(byte("<bos> $A", padding_side="left")),
        "truncation on the left": Setup(byte("<bos> $A", truncation_side="left", model_max_length=4)),
        "no pad token": Setup(byte("<bos> $A", pad_token=None)),
        "pad is EOS": Setup(byte("<bos> $A", pad_token="<eos>")),
        "a small maximal length": Setup(byte("<bos> $A", model_max_length=4)),
        "a chat template without BOS": Setup(
            byte("<bos> $A", chat_template=CHAT), {"chat": True}, "does not begin with the tokenizer's BOS token"
        ),
        "a chat template with BOS": Setup(byte("<bos> $A", chat_template="{{ bos_token }}" + CHAT), {"chat": True}),
        "a chat template, EOS appended": Setup(
            byte("<bos> $A <eos>", chat_template="{{ bos_token }}" + CHAT), {"chat": True}
        ),
        "a template with BOS": Setup(byte("<bos> $A"), {"template": "<bos>Say {sentence}, please"}),
        "words with ▁ and bytes": Setup(sentencepiece()),
        "words with ▁ and bytes, a template": Setup(sentencepiece(), {"template": "<s>▁Say {sentence}\nÀ"}),
    }
    for name, change in {
        "truncation in tokenizer.json": lambda tokenizer: tokenizer.enable_truncation(5),
        "padding in tokenizer.json": lambda tokenizer: tokenizer.enable_padding(length=70, pad_id=258),
        "a space before the first word": lambda tokenizer: setattr(
            tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)
        ),
        "lower case": lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Lowercase()),
        "NFKC": lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.NFKC()),
        "NFD, accents stripped": lambda tokenizer: setattr(
            tokenizer, "normalizer", normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
        ),
    }.items():
        tokenizer = byte("<bos> $A")
        change(tokenizer.backend_tokenizer)
        every[name] = Setup(tokenizer)
    return every


def byte(single: str, **changes: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that adds these special tokens."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    special = [("<bos>", 256), ("<eos>", 257)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """Pieces with ▁, a byte for what is not among them, as in Llama 2 and Gemma."""
    pieces = ["<unk>", "<s>", *(f"<0x{number:02X}>" for number in range(256)), "▁", "e"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def tried(texts: int = len(TEXTS)) -> dict[str, Counter]:
    """How many captured sentences of each set-up are right, wrong, or not told of."""
    return {
        name: _tried(setup, [setup.before + text + setup.after for text in TEXTS[:texts]])
        for name, setup in setups().items()
    }


def _tried(setup: Setup, texts: list[str]) -> Counter:
    module, outcome, heard = tiny_module("llama"), Counter(), _Heard()
    logger = logging.getLogger("tnkit")
    logger.addHandler(heard)
    before = setup.tokenizer.padding_side, setup.tokenizer.pad_token
    try:
        model = tn.load_model(module, tokenizer=setup.tokenizer, **setup.options)
        for suffix in SUFFIXES if not (setup.after or setup.told.endswith("token")) else (None,):
            expected = [_expected(setup, text, suffix) for text in texts]
            for position in ("last", "last_word", "mean", *(["end"] if setup.template else [])):
                captured = tn.capture(model, texts, position=position, suffix=suffix, batch_tokens=90, progress=False)
                for number, (ids, wanted) in enumerate(expected):
                    states = torch.stack(hooked(module, model.blocks_path, model.sites, torch.tensor([ids]))["post"])
                    right = states[:, wanted[position]].mean(dim=1)
                    error = (captured.post[:, number].double() - right).abs().max()
                    outcome["right" if error < TOLERANCE else "wrong"] += 1
    finally:
        logger.removeHandler(heard)
    outcome["changed tokenizers"] += before != (setup.tokenizer.padding_side, setup.tokenizer.pad_token)
    times = sum(setup.told in message for message in heard.messages) if setup.told else 0
    outcome["not told"] += bool(setup.told) and times != 1
    outcome["told without need"] += len(heard.messages) - times
    return outcome


def _expected(setup: Setup, text: str, suffix: str | None) -> tuple[list[int], dict[str, list[int]]]:
    """The ids that the model is to be given, by the backend itself, and the places in them for each position."""
    backend = Tokenizer.from_str(setup.tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    if suffix is not None:
        end = max((place + 1 for place, letter in enumerate(text) if _is_word(letter)), default=len(text))
        text = text[:end] + suffix
    head, _, tail = (setup.template or "{sentence}").partition("{sentence}")
    encoded = backend.encode(head + text + tail, add_special_tokens=setup.template is None)
    words = [len(head) + place for place, letter in enumerate(text) if _is_word(letter)]
    for special in ("<bos>", "<eos>"):  # a word's letters, but not those of special tokens in the text
        at = text.find(special)
        words = [place for place in words if at < 0 or not len(head) + at <= place < len(head) + at + len(special)]
    special = {*setup.tokenizer.all_special_ids}
    own, last_word = [], 0
    for place, (start, end) in enumerate(encoded.offsets):
        if start < len(head) + len(text) and end > len(head) and encoded.ids[place] not in special:
            own.append(place)
            if any(start <= word < max(end, start + 1) for word in words):
                last_word = place
    last = own[-1] if setup.template else len(encoded.ids) - 1
    return encoded.ids, {"last": [last], "last_word": [last_word], "mean": own, "end": [len(encoded.ids) - 1]}


def _is_word(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"


class _Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
