"""Control versions of a corpus against readings that a speaker knows, and against what a permutation keeps."""

import itertools
import sys
import unicodedata
from collections import Counter

import pandas as pd
import pytest

import tnkit as tn
from tnkit.text import variants


def corpus_of(**languages):
    size = len(next(iter(languages.values())))
    return tn.Corpus("ours", pd.DataFrame({"split": (["train", "test"] * size)[:size], **languages}))


@pytest.fixture(scope="module")
def everyday():
    return tn.load_corpus("everyday")


@pytest.fixture(scope="module")
def latin(everyday):
    return variants.romanised(everyday)


def only_latin(text):
    return all("LATIN" in unicodedata.name(letter) for letter in text if letter.isalpha())


def letters(text, *, spaces=False):
    """Every character in any order, spaces aside."""
    return Counter(text if spaces else "".join(text.split()))


def frame_of_punctuation(text):
    """What stands at the end, after the last letter, digit or apostrophe."""
    return "".join(itertools.takewhile(lambda mark: not mark.isalnum() and mark not in "'’", reversed(text)))


@pytest.mark.parametrize(
    ("japanese", "expected"),
    [
        ("祖父はりんごの皮を長くむく。", "sofu wa ringo no kawa o nagaku muku."),  # は read wa; を read o
        ("お母さんは日曜日に東京へ行った。", "okaasan wa nichiyoubi ni toukyou e itta."),  # へ read e; 行っ + た
        ("彼は「行こう！」と言った。", 'kare wa "ikou!" to itta.'),
        ("こんにちは、お元気ですか？", "konnichiwa, ogenki desu ka?"),
        ("今夜はマッチを一つ使った。", "kon'ya wa matchi o hitotsu tsukatta."),
        ("食べられませんでした。", "taberaremasendeshita."),
        ("312号室で12年間待った。", "312goushitsu de 12 nenkan matta."),
        ("ABCホテルでTom Cruise's bookを買った。", "ABC hoteru de Tom Cruise's book o katta."),
        ("シェフとウェイターとパーティー、ヴァイオリン。", "shefu to weitaa to paatii, vaiorin."),
        ("１２３人の人々", "123nin no hitobito"),
    ],
)
def test_japanese_is_written_as_it_is_read(japanese, expected):
    assert variants.romanise(japanese, "ja") == expected


def test_every_kana_has_its_hepburn():
    """The syllabary as any textbook prints it, not as the code derives it."""
    textbook = """
        キャ kya シャ sha シュ shu ショ sho チャ cha チュ chu チョ cho ジャ ja ジョ jo ニュ nyu ヒョ hyo リュ ryu
        ギョ gyo ピャ pya シ shi チ chi ツ tsu フ fu ジ ji ヂ ji ヅ zu ヲ o ファ fa フィ fi フェ fe フォ fo フュ fyu
        ヴァ va ヴ vu ティ ti ディ di トゥ tu ドゥ du デュ dyu チェ che ジェ je シェ she ツァ tsa ツェ tse ウィ wi
        ウェ we ウォ wo クァ kwa クォ kwo グァ gwa イェ ye ツアー tsuaa ラーメン raamen オーーイ oooi スタッフ sutaffu
        ザッシ zasshi コッチ kotchi ハッピョウ happyou シンイチ shin'ichi シンヨウ shin'you サンマ sanma ワァ waa
        アッ a ァ a
    """.split()
    assert [variants._hepburn(kana) for kana in textbook[::2]] == textbook[1::2]


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("나는 책을 30분 읽는다.", "ko", "naneun chaegeul 30bun ingneunda."),  # 읽는 is read ingneun
        ("독립문, 같이, 신라, 왕십리!", "ko", "dongnimmun, gachi, silla, wangsimni!"),  # the standard's own examples
        ("한국漢字", "ko", "hangukhanzi"),
        ("我昨天和朋友一起去银行。", "zh", "wo zuotian he pengyou yiqi qu yinhang."),  # 行 is xing or hang
        ("我昨天和朋友一起去車站。", "zh_tw", "wo zuotian he pengyou yiqi qu chezhan."),
        ("Привет, как дела?", "ru", "Privet, kak dela?"),
        ("Καλημέρα!", "el", "Kalemera!"),
        ("한국 Drama È bello", "ko", "hanguk Drama È bello"),
        ("città, già!", "ko", "città, già!"),
    ],
)
def test_other_scripts_are_spelt_out(text, language, expected):
    got = variants.romanise(text, language)
    assert got == expected


def test_a_romanised_corpus_has_latin_script_and_the_same_rows(everyday, latin):
    assert latin.name == "everyday, romanised"
    assert latin.languages == everyday.languages
    assert latin.dropped == everyday.dropped
    assert latin.hash != everyday.hash
    same = [*{"en", "nl", "it"}, "split"]
    pd.testing.assert_frame_equal(latin.frame[same], everyday.frame[same])
    for language in ("ja", "ko"):
        assert latin.frame[language].map(only_latin).all()
        assert latin.frame[language].str.len().gt(0).all()
        assert latin.frame[language].nunique() == len(everyday)  # no homophones among the packaged sentences
    assert everyday.frame["ja"][0].startswith("祖父")  # the corpus itself is left alone


def test_only_the_named_languages_are_romanised(everyday, latin):
    japanese = variants.romanised(everyday, "ja")
    assert japanese.name == "everyday, ja romanised"
    assert japanese.frame["ja"].equals(latin.frame["ja"])
    assert japanese.frame["ko"].equals(everyday.frame["ko"])
    assert japanese["test"]["ja"].corpus == "everyday, ja romanised"  # so every result says it


def test_a_romanised_corpus_comes_back_from_its_file(latin, tmp_path):
    again = tn.load_corpus(latin.save(tmp_path / "latin.tsv"))
    pd.testing.assert_frame_equal(again.frame, latin.frame)


def test_what_is_latin_already_or_not_there_is_refused(everyday):
    with pytest.raises(tn.TnkitError, match="everyday: it is already in Latin script"):
        variants.romanised(everyday, ["ja", "it"])
    with pytest.raises(tn.TnkitError, match=r"ours: en, de is already in Latin script"):
        variants.romanised(corpus_of(en=["Hi!"], de=["Hallo!"]))
    for change in (variants.romanised, variants.shuffled):
        with pytest.raises(tn.TnkitError, match=r"has no fr; name some of en, ja, ko, nl, it"):
            change(everyday, ["ja", "fr"])
        with pytest.raises(tn.TnkitError, match="no language to change"):
            change(everyday, [])


def test_shuffling_keeps_every_character_the_end_and_the_rows(everyday):
    mixed = variants.shuffled(everyday, seed=3)
    assert mixed.name == "everyday, shuffled with seed 3"
    assert mixed.frame["split"].equals(everyday.frame["split"])
    for language in everyday.languages:
        for before, after in zip(everyday.frame[language], mixed.frame[language], strict=True):
            assert letters(after) == letters(before)
            assert frame_of_punctuation(after) == frame_of_punctuation(before)
            assert after != before
        if language != "ja":
            assert mixed.frame[language].str.count(" ").equals(everyday.frame[language].str.count(" "))


def test_shuffled_words_are_the_sentences_words(everyday):
    mixed = variants.shuffled(everyday, ["en"])
    bare = lambda text: sorted(word.strip(".,!?;:\"'’“”()") for word in text.split())  # noqa: E731
    assert [bare(text) for text in mixed.frame["en"]] == [bare(text) for text in everyday.frame["en"]]
    assert mixed.frame["it"].equals(everyday.frame["it"])


def test_the_seed_the_language_and_the_sentence_decide_the_order(everyday):
    first, again, other = (variants.shuffled(everyday, "en", seed=seed).frame["en"] for seed in (0, 0, 1))
    assert first.equals(again)
    assert (first != other).mean() > 0.9
    alone = corpus_of(en=[everyday.frame["en"][5]])
    assert variants.shuffled(alone, seed=0).frame["en"][0] == first[5]
    assert variants.shuffle("a b c d e f g", "en", seed=7) == "c e g f a b d"  # on every machine and Python


def test_every_other_order_is_as_likely():
    """Three words have five other orders: chi-squared with 4 degrees of freedom stays below its 99.9 % point, 18.5."""
    counts = Counter(variants.shuffle("x y z.", "en", seed=seed) for seed in range(3000))
    assert "x y z." not in counts
    assert len(counts) == 5
    assert sum((count - 600) ** 2 / 600 for count in counts.values()) < 18.5


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Ciao, Anna!", "it", "Anna, Ciao!"),  # two words: there is one other order; punctuation stays
        ("¿Hablas español?", "es", "¿español Hablas?"),
        ("«Bonjour Marie !»", "fr", "«Marie Bonjour !»"),
        ("'s avonds", "nl", "avonds 's"),
        ("Mangia un'…", "it", "un' Mangia…"),
        ("100 %.", "en", "% 100."),
        ("雨だ。", "ja", "だ雨。"),
        ("「雨」だ。", "ja", "「だ」雨。"),
        ("下雨。", "zh", "下雨。"),
        ("Ja.", "nl", "Ja."),
        ("no no, no.", "en", "no no, no."),
        ("?!", "en", "?!"),
        ("", "en", ""),
        ("はい。", "ja", "はい。"),
    ],
)
def test_short_sentences(text, language, expected):
    assert variants.shuffle(text, language) == expected


def test_two_different_words_never_stay_as_they_are():
    for seed in range(50):
        assert variants.shuffle("time flies.", "en", seed=seed) == "flies time."
        assert variants.shuffle("no no yes", "en", seed=seed) != "no no yes"


def test_words_without_spaces_between_them():
    assert variants.words("彼女は食べませんでした。", "ja") == ["彼女", "は", "食べませんでした。"]
    assert variants.words("我昨天去北京。", "zh") == ["我", "昨天", "去", "北京。"]
    assert variants.words("วันนี้อากาศดีมาก", "th") == ["วัน", "นี้", "อากาศ", "ดี", "มาก"]
    assert variants.words("Tom Cruiseに会った。", "ja") == ["Tom", "Cruise", "に", "会った。"]
    for text, language in [("彼はTom Cruiseに会った。", "ja"), ("我昨天和朋友去北京。", "zh"), ("วันนี้อากาศดีมาก", "th")]:
        mixed = variants.shuffle(text, language)
        assert mixed != text
        assert letters(mixed) == letters(text)
    orders = {variants.shuffle("Tom Cruise映画。", "ja", seed=seed) for seed in range(40)}
    assert {
        "Cruise Tom映画。",
        "映画Tom Cruise。",
        "Tom映画Cruise。",
    } <= orders  # a space where letters would run together
    assert len(orders) == 5


def test_a_romanised_language_is_shuffled_by_its_spaces(latin):
    mixed = variants.shuffled(latin, ["ja"])
    assert mixed.name == "everyday, romanised, ja shuffled with seed 0"
    for before, after in zip(latin.frame["ja"], mixed.frame["ja"], strict=True):
        assert letters(after, spaces=True) == letters(before, spaces=True)


def test_a_language_that_nobody_here_can_cut_is_refused():
    khmer = corpus_of(km=["ខ្ញុំទៅផ្សារ"], en=["I go to market."])
    with pytest.raises(tn.TnkitError, match="words of km, written without spaces"):
        variants.shuffled(khmer)
    assert variants.shuffled(khmer, ["en"]).frame["en"][0] != "I go to market."
    assert only_latin(variants.romanised(khmer).frame["km"][0])


@pytest.mark.parametrize(
    ("package", "change", "text", "language"),
    [
        ("uroman", variants.romanise, "Привет", "ru"),
        ("koroman", variants.romanise, "한국", "ko"),
        ("sudachipy", variants.romanise, "日本", "ja"),
        ("sudachidict_core", variants.shuffle, "日本に", "ja"),
        ("pypinyin", variants.romanise, "北京", "zh"),
        ("budoux", variants.shuffle, "我去北京", "zh"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch, package, change, text, language):
    for loader in (variants._uroman, variants._sudachi, variants._budoux):
        monkeypatch.setattr(variants, loader.__name__, loader.__wrapped__)  # as in a fresh process
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tn.TnkitError, match=rf"needs {package}, .*pip install 'tnkit\[measures\]'"):
        change(text, language)
