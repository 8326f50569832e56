"""Other abilities are the perplexity and the answers of their own functions, side by side."""

import pytest

import tnkit as tn
from tnkit.measures.behaviour.abilities import QUESTIONS
from tnkit.testing import SENTENCES, tiny_model

SOME = tn.NeuronSet(tuple((layer, neuron) for layer in range(2) for neuron in range(20)), (4, 48))
QUIET = {"progress": False}


def test_the_table_holds_what_each_measures_alone():
    model, asked = tiny_model(), {"Who?": ["I"], "Where?": ["!"]}
    halved = tn.Intervention(SOME, scale=0.5)
    options = {"controls": {"halved": halved, **tn.controls(SOME)}, "seeds": 2}
    table = tn.behaviour.abilities(model, SENTENCES[:3], SOME, questions=asked, examples=(), **options, **QUIET)
    for name, off in {"none": (), "the set": SOME, "halved": halved}.items():
        nats = tn.behaviour.perplexity(model, SENTENCES[:3], neurons=off, **QUIET).nats
        assert table.loc[("nats per token", name), "mean"] == pytest.approx(nats)
        answered = tn.behaviour.answer_questions(
            model, [*asked], [*asked.values()], language="en", neurons=off, tokens="all", max_new_tokens=8, **QUIET
        )
        assert table.loc[("answers, F1", name), "mean"] == pytest.approx(answered.after_scores.mean_f1)
    assert table.loc[("nats per token", "the set"), "mean"] != table.loc[("nats per token", "halved"), "mean"]
    assert table.loc[("answers, F1", "uniform"), "seeds"] == 2


def test_the_questions_have_answers_that_count():
    assert len(QUESTIONS) == 24
    assert QUESTIONS["What is the capital of South Korea?"] == ["Seoul"]
    from tnkit.measures.behaviour.answers import score

    right = [accepted[-1] for accepted in QUESTIONS.values()]
    assert score(right, [*QUESTIONS.values()], "en").mean_exact == 1
