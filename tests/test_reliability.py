"""Small doses of `make reliability`, whose figures tests/RELIABILITY.md keeps."""

from array import array

import pytest

from tests.reliability import ablations, damage, fuzz, interrupts, jobs, layouts, payloads, sessions, tokenizers


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))


def test_damaged_files_are_refused_or_right(tmp_path):
    for name, outcome in damage.tried(tmp_path, cuts=20, flips=60).items():
        expected = {"cut", "flipped", "refused", "right", damage.UNMARKED}
        assert not {how for how, count in outcome.items() if count} - expected, (name, outcome)
        assert outcome["refused"] > 30 or "Parquet" in name, (name, outcome)


def test_a_harness_that_could_not_fail_would_be_worthless(tmp_path, monkeypatch):
    monkeypatch.setattr("tnkit.storage._checksum", lambda *_: "the same")
    outcome = damage.tried(tmp_path, cuts=0, flips=60)["captures"]
    assert outcome["wrong"] > 30


def test_pickles_run_nothing_and_end(tmp_path):
    outcome = payloads.tried(tmp_path, seconds=3)
    assert outcome["payloads"] > 100 and outcome["cases"] > 100
    assert not outcome["payloads let through"] and not outcome["executed"] and not outcome["hung"]


def test_corpora_in_every_layout_are_right_or_refused(tmp_path):
    for kind, outcome in layouts.tried(tmp_path, cuts=2, flips=3).items():
        assert outcome["tried"] > 10, kind
        bad = [how for how, count in outcome.items() if count and how.startswith(("wrong", "hung"))]
        assert not bad, (kind, outcome)


def test_made_up_inputs_are_read_or_refused_in_a_sentence(tmp_path):
    assert min(fuzz.tried(tmp_path, examples=60).values()) >= 30


def test_jobs_and_saves_that_are_killed_lose_nothing():
    outcome = jobs.killed(1)
    assert outcome["kills"] > 3 and outcome["kills while saving"] == 100 and not outcome["half-written"]


def test_interrupted_commands_end_in_one_line(tmp_path):
    found = interrupts.tried(tmp_path, times=5)
    assert not {how for outcome in found.values() for how in outcome} - set(interrupts.FINE), found
    assert found["detect, SIGINT"]["one line"] and found["detect, SIGTERM"]["one line"]


def test_a_session_does_not_grow():
    for before, after in jobs.memory(100).values():
        assert after <= 1.02 * before


def test_scores_are_the_same_again_and_in_any_batches_and_threads():
    found = jobs.repeated()
    assert found.pop("largest difference") < 1e-6
    assert all(found.values()), found


def test_interrupts_threads_and_scopes_leave_ablations_right():
    outcome = ablations.interrupted(12)
    assert outcome["right afterwards"] == 12 and outcome["stopped"] > 3
    assert ablations.threaded(3) == {"right": 12}
    assert set(ablations.scoped(("gpt2",))) == {"right"}


def test_a_model_that_is_edited_between_cached_captures_gives_fresh_numbers_or_is_refused():
    outcome = sessions.tried(0)
    assert outcome["equal"] > 150 and outcome["refused"] > 5 and not outcome["wrong"], outcome


def test_edits_of_a_live_model_would_be_noticed(monkeypatch):
    """With one key for every state of the model, the same edits give wrong numbers."""
    monkeypatch.setattr("tnkit.models.model.Model.fingerprint", lambda *_: "the same")
    assert sessions.tried(0)["wrong"] > 30


def test_tokenizers_of_every_set_up_are_read_at_the_token_that_is_named():
    outcomes = tokenizers.tried(texts=3)
    assert len(outcomes) > 20
    for name, outcome in outcomes.items():
        assert outcome["right"] >= 9 and outcome.total() == outcome["right"], (name, outcome)


def test_a_capture_of_another_token_is_seen(monkeypatch):
    monkeypatch.setattr("tnkit.captures.passes.read_places", lambda _, tokens, __: array("i", [0] * len(tokens)))
    setup = tokenizers.setups()["BOS added"]
    monkeypatch.setattr(tokenizers, "setups", lambda: {"BOS added": setup})
    outcome = tokenizers.tried(texts=3)["BOS added"]
    assert outcome["wrong"] == 18 and outcome["right"] == 9, "a mean does not read one place"
