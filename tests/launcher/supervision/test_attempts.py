"""What the launcher tells a run's attempts.jsonl, and a rank about its restart."""

from __future__ import annotations

import pytest

from hybridtron.launcher.supervision.attempts import History, Verdict, find_attempt, history_of, new_attempt
from hybridtron.training.run_folder.attempts import begin_attempt, read_attempts


@pytest.mark.parametrize(
    ("action", "cause", "expected"),
    [
        ("restart", "rank 1 on a was killed", "rank 1 on a was killed"),
        ("requeue", None, "a time limit or a preemption"),
        ("end", "a fault", "the scheduler queued the job again"),
    ],
)
def test_a_restart_has_the_cause_of_the_attempt_before(tmp_path, action, cause, expected):
    first = new_attempt(tmp_path, "a", "17.0", 2)
    assert first.restart_cause() is None
    assert first.decide(Verdict("failed", action, 1, cause, 8, 1.0))
    assert new_attempt(tmp_path, "a", "17.1", 2).restart_cause() == expected


@pytest.mark.parametrize(
    ("incarnation", "expected"), [("17.1", "the scheduler queued the job again"), ("18.0", None), ("x", None)]
)
def test_a_job_whose_supervisors_are_gone_was_interrupted(tmp_path, incarnation, expected):
    new_attempt(tmp_path, "a", "17.0" if incarnation != "x" else "x", 2)
    assert new_attempt(tmp_path, "a", incarnation, 2).restart_cause() == expected


def test_a_verdict_is_recorded_for_the_attempt_that_training_began(tmp_path):
    attempt = new_attempt(tmp_path / "launch", "a", "17.0", 2)
    verdict = Verdict("failed", "restart", 1, "rank 1 on a was killed", 8, 5.0)
    attempt.record(tmp_path, verdict)  # training has not begun
    assert read_attempts(tmp_path) == []
    begin_attempt(tmp_path, 0, 2, ["a"])
    attempt.record(tmp_path, verdict)
    (found,) = read_attempts(tmp_path)
    assert (found.outcome, found.cause, found.end_step) == ("failed", "rank 1 on a was killed", 8)


def test_an_attempt_is_there_with_its_content_or_not_at_all(tmp_path, monkeypatch):
    first = new_attempt(tmp_path, "a", "17.0", 2)
    monkeypatch.setattr("os.rename", lambda *paths: None)  # the moment before
    new_attempt(tmp_path, "a", "17.0", 2)
    assert not first.is_superseded()
    assert find_attempt(tmp_path, "17.0", first.number) is None


def test_the_history_of_a_launch_counts_failures_and_attempts_without_a_new_step(tmp_path):
    ends = [("stopped", 5), ("failed", 5), ("stopped", 6), ("stopped", 6)]
    for number, (outcome, step) in enumerate(ends):
        assert new_attempt(tmp_path, "a", f"17.{number}", 2).decide(Verdict(outcome, "requeue", 1, None, step, 1e12))
    new_attempt(tmp_path, "a", "17.4", 2)
    assert history_of(tmp_path, "a", 1.0, is_training=True) == History(2, False, 6)
    assert history_of(tmp_path, "a", 1.0, is_training=False) == History(1, False, None)
    new_attempt(tmp_path, "b", "18.0", 2)
    assert history_of(tmp_path, "b", 1.0, is_training=True) == History(0, True, None)
