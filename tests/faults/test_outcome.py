from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hybridtron.faults.agent import write_plan
from hybridtron.faults.outcome import (
    LOUD,
    NOT_FIRED,
    RECOVERED,
    WRONG,
    Firing,
    differences,
    newest_whole,
    results_of,
)
from hybridtron.faults.plan import Fault, Session

KILL = Fault(0, "kill", 0, 8, 0.5)


@pytest.fixture
def recorded(tmp_path):
    """Return a function that records a fault at step 8 of attempt 1, and the step at which attempt 2 began."""

    def record(fault, start_step, saved=(6, 3), latest=0):
        run, plan = tmp_path / "run", tmp_path / "plan.json"
        run.mkdir()
        write_plan(plan, run, (fault,))
        names = [f"step_{step:08d}" for step in saved]
        firing = {"time": 100.0, "attempt": 1, "step": 8, "checkpoints": names, "latest": names[latest]}
        (tmp_path / "fired" / "0.json").write_text(json.dumps(firing))
        rows = [
            {"event": "start", "attempt": 1, "time": 90.0, "step": 0},
            {"event": "start", "attempt": 2, "time": 110.0, "step": start_step},
            {"event": "first_step", "attempt": 2, "time": 112.0, "step": start_step + 1},
        ]
        (run / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Session(0, "launched", 2, (), (fault,)), plan, run

    return record


def test_steps_and_times_are_measured(recorded):
    session, plan, run = recorded(KILL, 6)
    (result,) = results_of(session, plan, run, "", {1: 101.5}, None)
    assert (result.outcome, result.detection, result.restart) == (RECOVERED, 1.5, 10.5)
    assert (result.lost_steps, result.lost_saved) == (2, 0)


def test_a_start_before_the_last_checkpoint_is_wrong(recorded):
    (result,) = results_of(*recorded(KILL, 3), "", {1: 101.5}, None)
    assert (result.outcome, result.lost_saved) == (WRONG, 3)


def test_a_damaged_checkpoint_that_is_used_or_not_named_is_wrong(recorded):
    flipped = replace(KILL, kind="bit_flip")
    session, plan, run = recorded(flipped, 6)
    (result,) = results_of(session, plan, run, "", {}, None)
    assert result.problem == "began with the damaged checkpoint of step 6"


def test_a_damaged_checkpoint_that_latest_does_not_name_yet_need_not_be_named(recorded):
    session, plan, run = recorded(replace(KILL, kind="bit_flip"), 3, latest=1)
    assert results_of(session, plan, run, "", {}, None)[0].outcome == RECOVERED


def test_damage_must_be_named(recorded):
    session, plan, run = recorded(replace(KILL, kind="bit_flip"), 3)
    assert results_of(session, plan, run, "", {}, None)[0].outcome == WRONG
    log = "step_00000006/.metadata: damaged: does not match its checksum"
    assert results_of(session, plan, run, log, {}, None)[0].outcome == RECOVERED


def test_a_run_without_a_whole_checkpoint_must_be_refused(recorded):
    session, plan, run = recorded(replace(KILL, kind="all_damaged"), 6)
    assert results_of(session, plan, run, "", {}, None)[0].outcome == WRONG
    assert results_of(session, plan, run, "no checkpoint is whole", {}, None)[0].outcome == LOUD


def test_a_save_under_way_may_complete_after_the_damage(recorded):
    assert results_of(*recorded(replace(KILL, kind="all_damaged"), 9), "", {}, None)[0].outcome == RECOVERED


def test_a_fault_that_has_not_happened_is_no_fault(recorded):
    session, plan, run = recorded(KILL, 6)
    (plan.parent / "fired" / "0.json").unlink()
    assert results_of(session, plan, run, "", {}, "other weights")[0].outcome == NOT_FIRED


def test_a_problem_of_the_session_makes_its_faults_wrong(recorded):
    assert results_of(*recorded(KILL, 6), "", {}, "other weights")[0].problem == "other weights"


@pytest.mark.parametrize(
    ("kind", "latest", "expected"),
    [
        ("kill", "step_00000006", 6),
        ("kill", "step_00000003", 3),  # that of step 6 was not yet named
        ("kill", "", 6),
        ("bit_flip", "step_00000006", 3),
        ("two_damaged", "step_00000006", 0),
    ],
)
def test_the_newest_checkpoint_that_is_whole(kind, latest, expected):
    assert newest_whole(Firing(replace(KILL, kind=kind), 0.0, 1, 8, (6, 3), latest)) == expected


def test_one_bit_of_the_last_checkpoint_differs(tmp_path):
    for name, content in (("a", b"12"), ("b", b"12"), ("c", b"13")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").write_bytes(content)
    assert differences(tmp_path / "a", tmp_path / "b") is None
    assert "__0_0.distcp" in (differences(tmp_path / "a", tmp_path / "c") or "")
