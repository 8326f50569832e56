"""Small doses of `make reliability`, whose figures tests/RELIABILITY.md keeps."""

import pytest

from tests.reliability import damage, fuzz, jobs, layouts, payloads


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


def test_a_session_does_not_grow():
    for before, after in jobs.memory(100).values():
        assert after <= 1.02 * before


def test_scores_are_the_same_again_and_in_any_batches_and_threads():
    found = jobs.repeated()
    assert found["again, bit-equal"] and found["same order"] and found["largest difference"] < 1e-6
