"""Control versions of a corpus, for results that script or word order could explain: `romanised` and `shuffled`.

latin = tn.variants.romanised(corpus, ["ja", "ko"])   # the same sentences, in Latin script
mixed = tn.variants.shuffled(corpus, ["en"], seed=0)  # the same words, in a random order

Neurons that respond to the Japanese script are inactive on the first, neurons that respond to its grammar on the
second. Rows, splits and alignment stay the same. Install the packages with pip install 'tnkit[measures]'.
"""

import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from tnkit.errors import TnkitError, optional
from tnkit.text.corpus import Corpus

_BASE = {"jpn": "ja", "kor": "ko", "cmn": "zh", "yue": "zh", "zho": "zh", "tha": "th"}
_TRADITIONAL = {"hant", "hk", "mo", "tw", "yue"}
_UNSEGMENTED = set("bo dz km khm lo lao my mya".split())  # no spaces between words, and no package to segment them
_PUNCTUATION = str.maketrans({"。": ". ", "、": ", ", "「": '"', "」": '"', "『": '"', "』": '"', "・": " ", "〜": "~"})
_UROMAN = {
    "ar": "ara", "be": "bel", "bg": "bul", "el": "ell", "fa": "fas", "ja": "jpn", "kk": "kaz", "ky": "kir", "mk": "mkd",
    "ps": "pus", "ru": "rus", "sr": "srp", "ug": "uig", "uk": "ukr", "yi": "yid",
}  # fmt: skip


def romanised(corpus: Corpus, languages: str | Sequence[str] | None = None) -> Corpus:
    """The same corpus with some of its languages in Latin script.

    Japanese is written in modified Hepburn, with long vowels spelt out and words separated; SudachiPy (Takaoka et al.
    2018) gives the readings, correct for most but not all homographs. Korean follows the Revised Romanisation of 2000
    (koroman), Chinese is pinyin without tones (pypinyin); BudouX separates the words of Chinese and Thai. Every other
    language is spelt letter by letter by uroman (Hermjakob, May & Knight 2018), whose licence asks publications to
    acknowledge it.

    Args:
        corpus: from `load_corpus`.
        languages: which languages (default: all that are not in Latin script).

    Returns:
        A `Corpus` with the same rows and splits, named "…, romanised". Latin passages do not change. Homophones can
        make two sentences of a language equal, also across the splits; in "everyday" they do not.

    Raises:
        TnkitError: for a language that the corpus lacks or that is in Latin script, or for a missing package.

    >>> from tnkit.text.corpus import load_corpus
    >>> romanised(load_corpus("everyday", ["en", "ja"]))["train"]["ja"][1]
    'kono ichijiku wa choudo tabegoro da.'
    """
    latin = [name for name in corpus.languages if not _is_foreign("".join(corpus.frame[name]), share=0.5)]
    chosen = _chosen(corpus, languages) if languages is not None else [n for n in corpus.languages if n not in latin]
    refused = [name for name in chosen if name in latin]
    if refused or not chosen:
        raise TnkitError(f"{corpus.name}: {', '.join(refused or latin)} is already in Latin script; leave it out")
    return _rewritten(corpus, chosen, languages is None, "romanised", romanise)


def shuffled(corpus: Corpus, languages: str | Sequence[str] | None = None, *, seed: int = 0) -> Corpus:
    """The same corpus with the words of each sentence in a random order.

    All orders are equally likely except the original: two or more different words never keep their order. Punctuation
    keeps its position (the second word keeps its comma, whichever word that becomes), and letters keep their case.
    Words are separated by spaces; in Japanese a word is a verb with its endings, a noun, or a particle (SudachiPy,
    Takaoka et al. 2018), and in Chinese and Thai a segment of BudouX.

    Args:
        corpus: from `load_corpus` or `romanised`.
        languages: which languages (default: all).
        seed: decides the order, with language and sentence: a sentence gets the same order in every corpus.

    Returns:
        A `Corpus` with the same rows and splits, named "…, shuffled with seed 0".

    Raises:
        TnkitError: for a language that the corpus lacks, that is written without spaces and cannot be segmented
            (Khmer, Lao, Burmese, Tibetan), or for a missing package.

    >>> from tnkit.text.corpus import load_corpus
    >>> shuffled(load_corpus("everyday", ["en", "it"]), ["en"])["train"]["en"][1]
    'are These figs ripe perfectly.'
    """
    chosen = _chosen(corpus, languages)
    unsegmented = [name for name in chosen if _base(name) in _UNSEGMENTED and _is_foreign("".join(corpus.frame[name]))]
    if unsegmented:
        raise TnkitError(
            f"tnkit cannot find the words of {', '.join(unsegmented)}, written without spaces; leave it out"
        )
    change = f"shuffled with seed {seed}"
    return _rewritten(corpus, chosen, languages is None, change, lambda text, name: shuffle(text, name, seed=seed))


def romanise(text: str, language: str) -> str:
    """One sentence in Latin script; see `romanised`.

    >>> romanise("お母さんは東京へ行った。", "ja")
    'okaasan wa toukyou e itta.'
    >>> romanise("나는 책을 읽는다.", "ko")
    'naneun chaegeul ingneunda.'
    """
    if not _is_foreign(text):
        return text
    base = _base(language)
    if base == "ja":
        text = " ".join(_hepburn(reading) for _, reading in _japanese(text))
    elif base == "ko":
        hangul = optional("koroman", "romanising Korean")
        text = re.sub("[가-힣]+( +[가-힣]+)*", lambda run: hangul.romanize(run[0]), text)
    elif base == "zh":
        pinyin = optional("pypinyin", "romanising Chinese")
        text = " ".join("".join(pinyin.lazy_pinyin(word, v_to_u=True)) for word in words(text, language))
    elif base == "th":
        text = " ".join(words(text, language))
    text = unicodedata.normalize("NFKC", text).translate(_PUNCTUATION)
    if _is_foreign(text):
        text = _uroman().romanize_string(text, lcode=_UROMAN.get(base, base if len(base) == 3 else None))
    return " ".join(text.split())


def shuffle(text: str, language: str, *, seed: int = 0) -> str:
    """One sentence with its words in a random order; see `shuffled`.

    >>> shuffle("¿Dónde está la estación de tren?", "es")
    '¿tren Dónde la está estación de?'
    """
    tokens = words(text, language)
    bounds = [_bare(token) for token in tokens]
    indices = [index for index, (start, end) in enumerate(bounds) if start < end]
    cores = [tokens[index][slice(*bounds[index])] for index in indices]
    if len(set(cores)) < 2:
        return text
    joined = _unspaced if _is_foreign(text) and _base(language) in ("ja", "zh", "th") else " ".join
    # A generator seeded by a string, and its random(), give the same numbers on every Python.
    generator = random.Random(f"{seed} {language} {text}")
    for _ in range(100):  # the first draw suffices, except in very short sentences
        mixed = list(tokens)
        for index, core in zip(indices, sorted(cores, key=lambda _: generator.random()), strict=True):
            start, end = bounds[index]
            mixed[index] = tokens[index][:start] + core + tokens[index][end:]
        if joined(mixed) != joined(tokens):
            break
    return joined(mixed)


def words(text: str, language: str) -> list[str]:
    """The words of a sentence; punctuation belongs to the word that it follows or opens.

    >>> words("彼は「行こう！」と言った。", "ja")
    ['彼', 'は', '「行こう！」', 'と', '言った。']
    """
    if _is_foreign(text) and _base(language) == "ja":
        return [word for word, _ in _japanese(text)]
    if _is_foreign(text) and _base(language) in ("zh", "th"):
        chinese = "traditional" if _TRADITIONAL & {*re.split("[-_]", language.lower())} else "simplified"
        parser = _budoux("thai" if _base(language) == "th" else f"{chinese}_chinese")
        return [word for chunk in text.split() for word in parser.parse(chunk)]
    return text.split()


def _chosen(corpus: Corpus, languages: str | Sequence[str] | None) -> list[str]:
    chosen = list(corpus.languages if languages is None else [languages] if isinstance(languages, str) else languages)
    missing = [name for name in chosen if name not in corpus.languages]
    if missing or not chosen:
        lacking, languages = ", ".join(missing) or "language to change", ", ".join(corpus.languages)
        raise TnkitError(f"{corpus.name} has no {lacking}; name some of {languages}")
    return chosen


def _rewritten(
    corpus: Corpus, languages: list[str], whole: bool, change: str, rewrite: Callable[[str, str], str]
) -> Corpus:
    frame = corpus.to_frame()
    for name in languages:
        frame[name] = [rewrite(text, name) for text in frame[name]]
    label = change if whole else f"{' and '.join(languages)} {change}"
    return replace(corpus, name=f"{corpus.name}, {label}", frame=frame)


def _base(language: str) -> str:
    base = re.split("[-_]", language.lower())[0]
    return _BASE.get(base, base)


def _is_foreign(text: str, *, share: float = 0.0) -> bool:
    """Whether more than a share of the letters are not Latin."""
    letters = [character for character in text if character.isalpha()]
    return sum(not _is_latin(letter) for letter in letters) > share * len(letters)


@cache
def _is_latin(letter: str) -> bool:
    names = [unicodedata.name(character, "") for character in unicodedata.normalize("NFKC", letter)]
    return all(name.startswith(("LATIN", "MODIFIER LETTER")) for name in names)


def _closes(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] == "P" and character not in "'’%‰#@&*_/\\"


def _opens(character: str) -> bool:
    return (unicodedata.category(character) in ("Ps", "Pi") and character != "‘") or character in '"¿¡'


def _bare(word: str) -> tuple[int, int]:
    """The start and end of a word without the punctuation around it; an apostrophe next to a letter is no punctuation.

    >>> [word[slice(*_bare(word))] for word in ["¿Qué", "po'.", "'s", "«forte»,", "50%!", "–"]]
    ['Qué', "po'", "'s", 'forte', '50%', '']
    """
    start, end = 0, len(word)
    while end and (_closes(word[end - 1]) or (word[end - 1] in "'’" and _closes(word[end - 2 : end - 1]))):
        end -= 1
    while start < end and _opens(word[start]):
        start += 1
    return start, end


def _unspaced(tokens: Sequence[str]) -> str:
    """Words joined without spaces, except between two Latin letters or digits."""
    return re.sub("(?<=[!-~])\0(?=[!-~])", " ", "\0".join(tokens)).replace("\0", "")


def _japanese(text: str) -> list[tuple[str, str]]:
    """The words as written and as read, in katakana; what has no reading, as written."""
    pairs: list[tuple[str, str]] = []
    previous = ("空白", "*")
    for token in _sudachi().tokenize(text):
        surface, kind = token.surface(), token.part_of_speech()[:2]
        if kind[0] != "空白":
            reading = _reading(surface, token.reading_form(), kind[0])
            latin = pairs and (pairs[-1][0][-1] + surface[0]).isascii() and previous[0] != "空白"
            if latin or (pairs and _continues(surface, kind, previous)):
                written, read = pairs.pop()
                surface, reading = written + surface, read + reading
            pairs.append((surface, reading))
        previous = kind
    return pairs


def _reading(surface: str, reading: str, kind: str) -> str:
    if kind == "補助記号" or not _is_foreign(surface) or not re.fullmatch("[ァ-ヺー]+", reading):
        return surface
    if surface.endswith("は") and kind in ("助詞", "接続詞", "感動詞"):
        return reading[:-1] + "ワ"
    return "エ" if (surface, kind) == ("へ", "助詞") else reading


def _continues(surface: str, kind: Sequence[str], previous: Sequence[str]) -> bool:
    """Whether a token continues the word before it: endings, suffixes, what follows a prefix, closing punctuation."""
    if previous[0] == "空白":
        return False
    return (
        (kind[0] == "補助記号" and kind[1] != "括弧開")
        or previous[1] == "括弧開"
        or previous[0] == "接頭辞"
        or kind[0] == "接尾辞"
        or (kind[0] == "助動詞" and previous[0] in ("動詞", "形容詞", "助動詞") and surface != "です")
        or (kind[1] == "接続助詞" and surface in ("て", "で", "ば", "ちゃ", "じゃ", "たり", "だり", "ながら"))
    )


_HEPBURN = {"si": "shi", "zi": "ji", "ti": "chi", "di": "ji", "tu": "tsu", "du": "zu", "hu": "fu"}
_HEPBURN |= {"wi": "i", "we": "e", "wo": "o"}  # Unicode name of the kana → Hepburn, if they differ
_GLIDES = {"i": "y", "u": "w", "ku": "kw", "gu": "gw"}  # before a small vowel: イェ ye, ウィ wi, クォ kwo


def _hepburn(kana: str) -> str:
    """Katakana in modified Hepburn, long vowels spelt out; other text does not change.

    >>> " ".join(map(_hepburn, "キッチリ シャシン コンヤ ウェイター デュエット ワァ".split()))
    "kitchiri shashin kon'ya weitaa dyuetto waa"
    """
    latin = re.sub("ン(?=[アイウエオヤユヨ])", "n'", kana.replace("ヶ", "カ"))
    latin = re.sub("([ァ-ヂツ-ヺ])([ァィゥェォャュョ]?)", _syllable, latin)
    latin = re.sub("ッ(?=ch)", "t", latin)
    latin = re.sub("ッ(?=([b-df-hj-np-tv-z]))", r"\1", latin).replace("ッ", "")
    return re.sub("([aeiou])(ー+)", lambda vowel: vowel[1] * (1 + len(vowel[2])), latin).replace("ー", "")


def _syllable(syllable: re.Match[str]) -> str:
    kana, small = (re.sub(".* ", "", unicodedata.name(sign).lower()) if sign else "" for sign in syllable.groups())
    sound = _HEPBURN.get(kana, kana)
    if not small or sound[-1] == small:
        return sound + small
    if small[0] == "y":
        return sound[:-1] + (small[1:] if sound[:-1] in ("sh", "ch", "j") else small)
    return _GLIDES.get(kana, sound[:-1]) + small


@cache
def _uroman() -> Any:
    return optional("uroman", "romanising text").Uroman()


@cache
def _sudachi() -> Any:
    optional("sudachidict_core", "reading Japanese")
    return optional("sudachipy", "reading Japanese").Dictionary(dict="core").tokenizer()


@cache
def _budoux(script: str) -> Any:
    return getattr(optional("budoux", "finding words without spaces"), f"load_default_{script}_parser")()
