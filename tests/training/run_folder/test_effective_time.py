"""Effective training time, restarts and the suggested saving interval, from attempts."""

import json

import pytest

import hybridtron as ht
from hybridtron.training.run_folder.attempts import Attempt, Save, append_event
from hybridtron.training.run_folder.effective_time import effective_time, read_effective_time


def attempts():
    """100 steps of 1 s, in 3 attempts: killed at 50, a fault at 80, done. Saves at 40, 70 and 100 of 2 s each."""
    return [
        Attempt(
            1, 0.0, 0, first_step_at=11.0, ended=62.0, end_step=50, outcome="failed", cause="rank 1 was killed",
            saves=[Save(40, 52.0, {"start": 10.0, "step": 40.0, "save": 2.0})],
        ),
        Attempt(
            2, 70.0, 40, restart_cause="rank 1 was killed", first_step_at=81.0, ended=122.0, end_step=80,
            outcome="failed", cause="a fault", saves=[Save(70, 112.0, {"start": 10.0, "step": 30.0, "save": 2.0})],
            seconds={"start": 10.0, "step": 40.0, "save": 2.0},
        ),
        Attempt(
            3, 1000.0, 70, first_step_at=1005.0, ended=1036.0, end_step=100, outcome="finished",
            saves=[Save(100, 1036.0, {})], seconds={"start": 4.0, "step": 30.0, "save": 2.0},
        ),
    ]  # fmt: skip


def test_lost_steps_and_waiting_are_not_productive():
    found = effective_time(attempts())
    assert (found.steps, found.lost_steps) == (100, 10 + 10)
    assert found.productive_seconds == pytest.approx(100)
    assert found.wall_seconds == pytest.approx(62 + 52 + 36 + 8)  # and 8 s before the launcher's restart
    assert found.share == pytest.approx(100 / 158)
    assert [(each.attempt, each.step, each.cause, each.lost_steps) for each in found.restarts] == [
        (2, 40, "rank 1 was killed", 10),
        (3, 70, "a fault", 10),
    ]
    assert [each.seconds_to_first_step for each in found.restarts] == [19.0, 5.0]


def test_the_suggested_interval_is_young_s():
    found = effective_time(attempts())
    assert found.mttf_seconds == pytest.approx(150 / 2)
    assert found.suggested_seconds == pytest.approx((2 * 2 * 75) ** 0.5)
    assert found.suggested_steps == 17
    assert effective_time(attempts(), mttf_hours=1).suggested_steps == 120
    first, second = found.lines()
    assert first == (
        "effective training time: 63% of 2.6 min; 2 restarts (rank 1 was killed, a fault), 20 steps trained again, "
        "at most 19 s to the first step; 3 saves took 6 s"
    )
    assert second == "a save stops training for 2 s; with a failure every 75 s, save every 17 steps (17 s)"


def test_a_fall_back_beyond_one_attempt_loses_steps_of_several():
    found = effective_time([*attempts()[:2], Attempt(3, 200.0, 10, ended=201.0, end_step=10)])
    assert (found.steps, found.lost_steps) == (10, 40 + 40)
    assert found.productive_seconds == pytest.approx(10)


def test_little_is_said_of_a_run_without_restarts():
    assert effective_time([]).lines() == []
    assert effective_time([]).share is None
    alone = Attempt(1, 0.0, ended=10.0, end_step=9, outcome="finished", seconds={"step": 9.0, "save": 1.0})
    alone.saves = [Save(9, 10.0, {})]
    assert effective_time([alone]).lines() == []
    alone.saves *= 2
    assert effective_time([alone]).lines() == ["effective training time: 90% of 10 s; 2 saves took 1 s"]


def test_a_running_attempt_counts_up_to_its_last_sign_of_life(tmp_path):
    append_event(tmp_path, event="start", attempt=1, time=100.0, step=0)
    append_event(tmp_path, event="first_step", attempt=1, time=110.0, step=1)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 11, "time": 130.0}) + "\n")
    found = read_effective_time(tmp_path)
    assert (found.steps, found.wall_seconds, found.productive_seconds) == (11, 30.0, pytest.approx(22))


def test_a_run_reports_it(tiny, capsys):
    run = ht.train(tiny, "checkpoint.save_every=10", "checkpoint.mttf_hours=0.5")
    printed = capsys.readouterr().err
    found = run.summary["effective_time"]
    assert 0 < found["share"] < 1
    assert (found["saves"], found["lost_steps"], found["restarts"]) == (2, 0, [])
    assert found["mttf_seconds"] == 1800
    assert f"save every {found['suggested_save_every']:,} step" in printed
    assert "effective training time: " in printed
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary
