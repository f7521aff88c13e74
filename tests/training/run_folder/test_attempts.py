"""attempts.jsonl: what training and a supervisor write, and what is read back."""

import json
import signal
import subprocess
import sys

import pytest

import hybridtron as ht
from hybridtron.errors import UserError
from hybridtron.training.callbacks.base import Callback, StopTraining
from hybridtron.training.run_folder.attempts import FAILED, begin_attempt, end_attempt, judge_attempt, read_attempts


class Fault(Callback):
    """Raise after a step."""

    def __init__(self, step):
        self.step = step

    def after_step(self, context, row, logged):
        if context.state.step == self.step:
            raise ZeroDivisionError("a fault")


class Stop(Callback):
    def after_step(self, context, row, logged):
        raise StopTraining("enough")


def test_a_run_that_fails_and_goes_on_has_two_attempts(tiny):
    keys = ("checkpoint.save_every=2", "train.steps=6", "train.log_every=1")
    with pytest.raises(ZeroDivisionError):
        ht.train(tiny, *keys, callbacks=[Fault(5)])
    run = ht.train(tiny, *keys, resume=True)
    first, second = read_attempts(run.folder)
    assert (first.start_step, first.end_step, first.outcome, first.cause) == (0, 5, "failed", "a fault")
    assert [save.step for save in first.saves] == [2, 4]
    assert (second.number, second.start_step, second.end_step, second.outcome) == (2, 4, 6, "finished")
    assert first.started < first.first_step_at < first.ended <= second.started
    assert first.seconds.keys() >= {"start", "step", "save"}
    assert sum(second.seconds.values()) == pytest.approx(second.ended - second.started, rel=0.5)
    assert first.processes == 1
    assert len(first.nodes) == 1


def test_a_callback_that_stops_the_run_is_recorded(tiny):
    run = ht.train(tiny, callbacks=[Stop()])
    (attempt,) = read_attempts(run.folder)
    assert (attempt.end_step, attempt.outcome, attempt.cause) == (1, "stopped", "stopped by a callback")


def test_an_attempt_without_end_is_ended_where_the_next_one_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert begin_attempt(tmp_path, 0, 2, ["a", "b", "a"]) == 1
    started = read_attempts(tmp_path)[0].started
    (tmp_path / "metrics.jsonl").write_text(
        f'{{"step": 7, "time": {started + 3}}}\n{{"step": 8, "time": {started + 4}}}\n{{"step": 9, "ti'
    )
    monkeypatch.setenv("HYBRIDTRON_ATTEMPT", "5")
    monkeypatch.setenv("HYBRIDTRON_RESTART_CAUSE", "rank 1\nwas killed")
    assert begin_attempt(tmp_path, 4, 2, ["a", "b"]) == 5
    first, second = read_attempts(tmp_path)
    assert (first.nodes, first.job, first.processes) == (["a", "b"], "17", 2)
    assert (first.end_step, first.ended, first.outcome, first.cause) == (8, started + 4, "failed", None)
    assert (second.number, second.restart_cause, second.outcome) == (5, "rank 1 was killed", None)


def test_only_an_open_attempt_is_ended(tmp_path):
    assert not end_attempt(tmp_path, FAILED, "nothing started")
    begin_attempt(tmp_path, 10, 1, ["a"])
    assert end_attempt(tmp_path, FAILED, "rank 0 on a was killed (signal 9)", step=12)
    assert not end_attempt(tmp_path, FAILED, "again")
    (attempt,) = read_attempts(tmp_path)
    assert (attempt.end_step, attempt.cause) == (12, "rank 0 on a was killed (signal 9)")


def test_a_supervisor_s_cause_stands_in_place_of_what_training_saw(tmp_path):
    number = begin_attempt(tmp_path, 0, 2, ["a"], started=100.0)
    assert not judge_attempt(tmp_path, 101.0, FAILED, "of another attempt", 5, 130.0)
    end_attempt(tmp_path, FAILED, "connection closed", step=7, ended=120.0, seconds={"step": 15.0})
    assert judge_attempt(tmp_path, 99.0, FAILED, "rank 1 on a was killed (signal 9)", 8, 130.0)
    assert not judge_attempt(tmp_path, 99.0, FAILED, "rank 1 on a was killed (signal 9)", 8, 130.0)
    (attempt,) = read_attempts(tmp_path)
    assert (attempt.number, attempt.cause, attempt.end_step) == (number, "rank 1 on a was killed (signal 9)", 8)
    assert (attempt.ended, attempt.seconds) == (120.0, {"step": 15.0})
    begin_attempt(tmp_path, 4, 2, ["a"], started=140.0)
    assert judge_attempt(tmp_path, 139.0, FAILED, "a hang", 6, 150.0)
    last = read_attempts(tmp_path)[-1]
    assert (last.outcome, last.cause, last.end_step, last.ended) == ("failed", "a hang", 6, 150.0)


@pytest.mark.parametrize(
    "damage",
    [
        "not json",
        "[]",
        "{}",
        '{"event": "end", "attempt": 9, "time": 1}',
        '{"event": "start", "attempt": "2", "time": 1}',
        '{"event": "start", "attempt": 2, "time": NaN}',
        '{"event": "save", "attempt": 1, "time": 1, "step": -3}',
        '{"event": "other", "attempt": 1, "time": 1, "step": 3}',
        "\x00\xff",
    ],
)
def test_damaged_rows_are_left_out(tmp_path, damage):
    begin_attempt(tmp_path, 0, 1, ["a"])
    end_attempt(tmp_path, FAILED)
    file = tmp_path / "attempts.jsonl"
    file.write_text(f"{damage}\n{file.read_text()}{damage}\n{damage}")
    (attempt,) = read_attempts(tmp_path)
    assert (attempt.number, attempt.outcome, attempt.saves) == (1, "failed", [])


def test_odd_values_do_not_harm(tmp_path):
    row = {"attempt": 1, "time": 1, "step": "x", "nodes": 3, "processes": None, "outcome": 7, "seconds": {"step": "a"}}
    rows = [row | {"event": event} for event in ("start", "first_step", "save", "end")]
    (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (attempt,) = read_attempts(tmp_path)
    assert (attempt.start_step, attempt.end_step, attempt.nodes, attempt.outcome) == (0, None, [], "failed")
    assert attempt.seconds == {}


def test_no_link_is_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "attempts.jsonl").symlink_to(victim)
    with pytest.raises(UserError, match="link"):
        begin_attempt(tmp_path, 0, 1, ["a"])
    assert victim.read_text() == "kept"


def test_a_signal_is_the_cause(tiny):
    class Signal(Callback):
        def after_step(self, context, row, logged):
            signal.raise_signal(signal.SIGTERM)

    run = ht.train(tiny, callbacks=[Signal()])
    (attempt,) = read_attempts(run.folder)
    assert (attempt.outcome, attempt.cause) == ("stopped", "SIGTERM received")
    assert [save.step for save in attempt.saves] == [1]


def test_no_torch_is_imported():
    code = "import sys, hybridtron.training.run_folder.attempts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
