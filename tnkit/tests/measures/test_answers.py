"""Answer scores against values computed by hand, and against the test cases of MKQA's own code."""

import string

import numpy as np
import pytest
from scipy import stats

import tnkit as tn
from tnkit.measures.behaviour import answers


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The  Cat, a dog & an owl!", "en", "cat dog owl"),
        ("Theatre", "en", "theatre"),  # only whole words are articles
        ("El río de la Plata", "es", "río de plata"),
        ("¿Qué?", "es", "¿qué"),  # ASCII punctuation only
        ("Die Straße des 17. Juni", "de", "straße 17 juni"),
        ("Het huis van een Nederlander", "nl", "huis van nederlander"),
        ("'s-Gravenhage", "nl", "sgravenhage"),
        ("Gli amici della nonna", "it", "amici la nonna"),  # della loses del, as it does in MKQA
        ("Italia", "it", "talia"),  # and words their beginnings
        ("L'isola", "it", "lisola"),
        ("Les amis", "fr", "s amis"),
        ("Une pomme", "fr", "e pomme"),
        ("서울 특별시!", "ko", "서울 특별시"),
        ("東京 タワー。", "ja", "東 京 タ ワ ー 。"),
        ("NHK、2020", "ja", "n h k 、 2 0 2 0"),
        ("这是 苹果.", "zh_cn", "这 是 苹 果"),
        ("这是", "zh", "这 是"),
        ("這是", "zh-Hant", "這 是"),
        ("التفاحة", "ar", "تفاحة"),
        ("Et hus", "nb", "hus"),
        ("Ο Πύργος", "el", "ο πύργος"),  # not in MKQA: articles stay
        ("the", "en", ""),
        ("?!", "ja", ""),
        ("", "de", ""),
    ],
)
def test_what_normalisation_leaves(text, language, expected):
    assert answers.normalise(text, language) == expected


@pytest.mark.parametrize(
    ("prediction", "accepted", "language", "expected"),
    [
        # en: {old, town} shared of 2 and 3 tokens: precision 1, recall 2/3
        ("the old town", ["Old Town Square"], "en", 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("Paris, France", ["France", "Paris"], "en", 2 / 3),
        ("no", ["yes", "no"], "en", 1.0),
        ("b b c", ["b b b"], "en", 2 / 3),  # a token counts as often as both have it: 2 of 3 and 3
        # ja: 東 京 of 3 and 2 characters
        ("東京都", ["東京"], "ja", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("富士山です", ["富士山", "ふじさん"], "ja", 2 * (3 / 5) / (3 / 5 + 1)),
        ("京東", ["東京"], "ja", 1.0),  # tokens have no order
        # ko: words, not characters
        ("서울 특별시", ["서울"], "ko", 2 / 3),
        ("서울특별시", ["서울"], "ko", 0.0),
        # nl: "het" and "de" go; rode fiets against fiets
        ("de rode fiets", ["het fiets"], "nl", 2 / 3),
        # it: "un" and "la" go; gatto nero against gatto bianco
        ("un gatto nero", ["gatto bianco"], "it", 1 / 2),
        # es: "los", "un" go; dos perros grandes against dos perros
        ("los dos perros grandes", ["un dos perros"], "es", 2 * (2 / 3) / (2 / 3 + 1)),
        # de: "der" goes, wherever it stands; kaiser reich against kaiser
        ("Kaiser der Reich", ["der Kaiser"], "de", 2 / 3),
        # no answer
        ("", [""], "en", 1.0),
        (None, [None], "ko", 1.0),
        ("", ["first", "second"], "en", 0.0),
        ("anything", [None], "en", 0.0),
        ("", ["yes", None], "it", 1.0),
        ("the", [None], "en", 1.0),  # nothing is left of an article alone
        ("。", [None], "ja", 0.0),
    ],
)
def test_f1_by_hand(prediction, accepted, language, expected):
    assert answers.f1(prediction, accepted, language) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "accepted", "language", "expected"),
    [
        ("The Beatles!", ["beatles"], "en", True),
        ("Beatles, The", ["The Beatles"], "en", True),
        ("京東", ["東京"], "ja", False),  # unlike F1, in order
        ("東 京", ["東京"], "ja", True),
        ("서울특별시", ["서울", "서울특별시"], "ko", True),
        ("서울 특별시", ["서울특별시"], "ko", False),
        ("een fiets", ["Fiets."], "nl", True),
        ("il gatto", ["un gatto"], "it", True),
        ("la torre", ["torre"], "es", True),
        ("Eine Katze", ["die Katze"], "de", True),
        ("ein Kater", ["die Katze"], "de", False),
        ("", [None], "de", True),
        ("", ["Katze"], "de", False),
        (None, ["", "Katze"], "de", True),
    ],
)
def test_exact_match_by_hand(prediction, accepted, language, expected):
    assert answers.exact_match(prediction, accepted, language) is expected


@pytest.mark.parametrize(
    ("prediction", "accepted", "language", "f1", "exact"),
    [
        ("first dummy answer", ["first dummy answer", "second dummy answer"], "en", 1, True),
        ("alternative answer", ["dummy answer one", "alternative answer two"], "en", 0.8, False),
        ("an answer ?? without stopwords", ["answer -- without, stopwords!!"], "en", 1, True),
        ("esto es manzana", ["esto es una manzana", "esta es otra manzana"], "es", 1, True),
        ("تفاحة", ["التفاحة", "هذه تفاحة"], "ar", 1, True),
        ("c'est de la pomme", ["c'est la pomme", "c'est une autre pomme"], "fr", 1, True),
        ("ez egy alma", ["ez alma", "ez egy újabb alma"], "hu", 1, True),
        ("这个一个苹果", ["这是还是苹果", "这是另一个苹果"], "zh_cn", 10 / 13, False),
        ("នេះគឺជាផ្លែប៉ោម", ["នេះគឺជាផ្លែប៉ោមមួយទៀត"], "km", 5 / 6, False),
    ],
)
def test_the_published_evaluation_gives_the_same(prediction, accepted, language, f1, exact):
    """Inputs and outcomes as in the tests of MKQA's own code."""
    assert answers.f1(prediction, accepted, language) == pytest.approx(f1, abs=1e-12)
    assert answers.exact_match(prediction, accepted, language) is exact


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    """Another route: overlap counted by crossing tokens off."""
    random = np.random.default_rng(0)
    for _ in range(200):
        predicted, accepted = (random.choice(list("bcdef"), size=random.integers(1, 7)).tolist() for _ in range(2))
        left, common = list(accepted), 0
        for token in predicted:
            if token in left:
                left.remove(token)
                common += 1
        precision, recall = common / len(predicted), common / len(accepted)
        expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert answers.f1(" ".join(predicted), [" ".join(accepted)], "en") == pytest.approx(expected, abs=1e-12)


def test_normalising_twice_changes_nothing_where_articles_are_words():
    text = "The Quick, brown: FOX (an animal) jumps over a lazy dog's bone; 東京タワー!"
    for language in ("en", "nl", "de", "es", "ja", "ko"):
        once = answers.normalise(text, language)
        assert answers.normalise(once, language) == once
        assert not set(once) & set(string.punctuation)


def test_many_questions_at_once():
    predictions = ["1889", "Parijs", "", None, "Jan"]
    accepted = [["in 1889"], ["Paris", "Parijs"], [None], ["een boek"], [""]]
    found = answers.score(predictions, accepted, "nl")
    assert found.f1.tolist() == pytest.approx([2 / 3, 1, 1, 0, 0])
    assert found.exact.tolist() == [False, True, True, False, False]
    assert found.answerable.tolist() == [True, True, False, True, False]
    assert found.mean_f1 == pytest.approx((2 / 3 + 2) / 5)
    assert found.mean_exact == pytest.approx(2 / 5)  # shares, not percent
    frame = found.to_frame()
    assert frame.index.name == "question"
    assert frame.columns.tolist() == ["f1", "exact", "answerable"]
    assert frame.loc[0, "f1"] == pytest.approx(2 / 3)
    assert len(found) == 5
    assert "F1</" in found._repr_html_() and "0.533" in found._repr_html_()
    for number, (prediction, gold) in enumerate(zip(predictions, accepted, strict=True)):
        assert found.f1[number] == answers.f1(prediction, gold, "nl")


def test_records_of_mkqa_bring_their_aliases():
    record = {"type": 5, "entity": "Q90", "text": "Parijs", "aliases": ["de lichtstad"]}
    assert answers.exact_match("Lichtstad", [record], "nl")
    assert answers.f1("", [{"type": 8, "text": None, "aliases": []}], "nl") == 1.0
    assert answers.f1("", [{"text": None}], "nl") == 1.0
    assert answers.score(["x"], [[{"text": None, "aliases": None}]], "nl").answerable.tolist() == [False]


def test_the_plot_counts_every_question_and_tells_exact_ones_apart():
    found = answers.score(["a b", "b", "", "c"], [["b c"], ["b"], ["d"], ["c"]], "ja")
    ax = found.plot()
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert sum(heights[0]) == 2  # not exact; stacked bars hold their own counts
    assert sum(heights[1]) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "other",
        "exact match (50.0%)",
        f"mean F1 ({found.mean_f1:.1%})",
    ]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(tn.TnkitError, match="no accepted answer; write \\[None\\]"):
        answers.f1("x", [], "en")
    with pytest.raises(tn.TnkitError, match="must be a list, not a single one"):
        answers.exact_match("x", "x", "en")
    with pytest.raises(tn.TnkitError, match="question 1: there is no accepted answer"):
        answers.score(["x", "y"], [["x"], []], "en")
    with pytest.raises(tn.TnkitError, match="question 0: accepted answers must be a list"):
        answers.score(["x"], ["x"], "en")
    with pytest.raises(tn.TnkitError, match="2 predictions for 1 questions"):
        answers.score(["x", "y"], [["x"]], "en")
    with pytest.raises(tn.TnkitError, match="0 predictions for 0 questions"):
        answers.score([], [], "en")
    with pytest.raises(tn.TnkitError, match="one str for 1 questions"):
        answers.score("x", [["x"]], "en")


def test_means_have_the_percentile_intervals_of_scipy():
    draw = np.random.default_rng(2)
    said = ["a b" if right else "a x" if near else "y" for right, near in draw.random((60, 2)) < 0.5]
    scores = answers.score(said, [["a b"]] * 60, "it")
    means = scores.means()
    for name, values in (("F1", scores.f1), ("exact match", scores.exact)):
        expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=draw)
        assert means.loc[name, "mean"] == pytest.approx(values.mean())
        assert means.loc[name, ["low", "high"]].tolist() == pytest.approx(expected.confidence_interval, abs=0.02)
