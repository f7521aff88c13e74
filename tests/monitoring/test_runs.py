"""The table of runs: states, numbers, damage, width."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.errors import UserError
from hybridtron.launcher.schedulers.local import LocalHandle
from hybridtron.launcher.schedulers.slurm import SlurmHandle, SlurmQueue
from hybridtron.monitoring import runs as monitored
from hybridtron.monitoring import show
from hybridtron.monitoring.show import table
from tests import warm
from tests.conftest import command, environment
from tests.monitoring.folders import end_run, write_launch, write_run


@pytest.fixture(autouse=True)
def jobs(monkeypatch):
    """The queue, empty at first."""
    found: dict[str, str] = {}
    monkeypatch.setattr(monitored, "queued_jobs", lambda: found)
    return found


def status(folder):
    (run,) = ht.runs(folder).runs
    return run


def test_a_run_whose_lock_is_held_is_running(tmp_path):
    run = write_run(tmp_path / "a", started=time.time() - 85)
    with (run / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = status(run)
    assert (found.state, found.step, found.steps, found.loss) == ("running", 40, 100, 4.6)
    assert (found.tokens_per_s, found.seconds_left) == (32.0, 60 * 64 / 32)
    assert found.notes == []
    assert status(run).state == "dead"  # it has not written its end, and nobody holds the lock
    assert status(run).seconds_left is None


def test_a_running_one_that_is_silent_is_noted(tmp_path):
    run = write_run(tmp_path / "a", started=time.time() - 7280)
    with (run / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert status(run).notes == ["no row of metrics for 2.0 h"]


@pytest.mark.parametrize("outcome", ["finished", "stopped", "failed"])
def test_the_state_of_an_ended_run_is_its_outcome(tmp_path, outcome):
    run = write_run(tmp_path / "a")
    end_run(run, outcome, "rank 1 on b was killed (signal 9)")
    found = status(run)
    assert (found.state, found.restarts) == (outcome, 0)
    assert found.effective == pytest.approx(0.8)
    assert found.notes == (["rank 1 on b was killed (signal 9)"] if outcome == "failed" else [])


def test_jobs_in_the_queue_are_waiting_or_running(tmp_path, jobs):
    run = write_run(tmp_path / "a")
    end_run(run, "stopped", "SIGTERM received")
    jobs["17"] = "PENDING"
    assert status(run).state == "waiting"
    jobs["17"] = "RUNNING"
    assert status(run).state == "running"  # between two attempts
    del jobs["17"]
    assert status(run).state == "stopped"
    write_launch(run, "attempt_1/verdict.json", {"action": "requeue"})
    assert status(run).state == "waiting"
    write_launch(run, "result.json", {"outcome": "failed", "cause": "too many restarts"})
    assert status(run).state == "stopped"


@pytest.mark.parametrize(("jobs", "state"), [({}, "dead"), (None, "waiting"), ({"18": "PENDING"}, "waiting")])
def test_a_job_that_left_the_queue_before_training_is_dead_where_the_queue_is_known(jobs, state, tmp_path):
    write_launch(tmp_path / "a", "submitted.json", {"job": "18"})
    found = monitored.read_status(tmp_path / "a", "a", jobs)
    assert found.state == state
    assert any("its job ended before training began; see " in note for note in found.notes) == (state == "dead")


def test_a_run_that_is_submitted_while_runs_are_read_is_not_dead(tmp_path, monkeypatch):
    write_launch(tmp_path / "a", "job.json", {"name": "a"})

    def queue_before_the_submission():
        write_launch(tmp_path / "a", "submitted.json", {"job": "18"})
        return {}

    monkeypatch.setattr(monitored, "queued_jobs", queue_before_the_submission)
    assert status(tmp_path).state == "waiting"


@pytest.mark.parametrize(
    ("is_training", "attempt_of", "expected"),
    [
        (True, None, "its job ended before training began; see /study/launch/slurm"),
        (False, None, "its job ended before its work began; see /study/launch/slurm"),
        (False, "an earlier launch", "its job ended before its work began; see /study/launch/slurm"),
        (False, "this launch", "its job ended without a result; see {}/logs and /study/launch/slurm"),
    ],
)
def test_a_dead_job_s_note_says_how_far_it_came_and_where_its_output_is(is_training, attempt_of, expected, tmp_path):
    run = tmp_path / "a"
    write_launch(run, "job.json", {"launch_id": "this launch", "is_training": is_training})
    write_launch(run, "submitted.json", {"job": "18", "output": "/study/launch/slurm"})
    if attempt_of:
        write_launch(run, "attempt_1/start.json", {"launch": attempt_of})
    assert status(run).state == "dead"
    assert expected.format(run) in status(run).notes
    assert SlurmHandle("a", run, "18", SlurmQueue()).cause == expected.format(run)


def test_a_local_job_without_a_result_names_its_logs(tmp_path):
    assert (
        LocalHandle("a", tmp_path, "", spec=None, echo=False).cause
        == f"it ended without a result; see {tmp_path / 'logs'}"
    )


def test_a_launched_run_that_has_not_begun_is_waiting(tmp_path):
    write_launch(tmp_path / "a", "job.json", {"name": "a"})
    (tmp_path / "a" / "launch" / "config.yaml").write_text("train: {steps: 7}")
    found = status(tmp_path)
    assert (found.name, found.state, found.step, found.steps, found.notes) == ("a", "waiting", None, 7, [])
    write_launch(tmp_path / "a", "result.json", {"outcome": "failed", "cause": "bad\ninput"})
    assert (status(tmp_path).state, status(tmp_path).notes) == ("failed", ["bad input"])


def test_a_run_whose_supervisor_lives_is_running(tmp_path):
    run = write_run(tmp_path / "a")
    end_run(run, "failed", "a fault")
    code = "import sys; print(flush=True); sys.stdin.read()  # launcher"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # until the program runs, its command line may be empty
        rank = {"node": os.uname().nodename, "supervisor": process.pid}
        write_launch(run, "attempt_2/rank_00000.json", rank)
        assert status(run).state == "running"
        write_launch(run, "attempt_10/rank_00000.json", rank | {"node": "elsewhere"})
        assert status(run).state == "failed"
    (run / "launch" / "attempt_10" / "rank_00000.json").write_text(json.dumps(rank))
    assert status(run).state == "failed"


def test_a_run_from_before_attempts_were_recorded(tmp_path):
    run = write_run(tmp_path / "a", rows=100, started=None)
    assert (status(run).state, status(run).effective) == ("finished", None)
    assert status(write_run(tmp_path / "b", started=None)).state == "stopped"


DAMAGES = {
    "config.yaml": [b"\xff\xfe", b"- 1", b"a: [", b"train: 3", b"train: {steps: x}", b"a: &a [*a]"],
    "metrics.jsonl": [b"", b"{", b"[]\n", b'{"step": "x", "loss": "y", "time": null, "tokens_per_s": 0}\n'],
    "attempts.jsonl": [b"", b"\x00", b'{"event": "start", "attempt": 1, "time": 1e308}\n'],
    "summary.json": [b"[", b"[" * 100_000],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_costs_one_row_at_most(tmp_path, name):
    write_run(tmp_path / "good")
    run = write_run(tmp_path / "bad")
    for content in DAMAGES[name]:
        (run / name).write_bytes(content)
        found = ht.runs(tmp_path)
        assert [each.name for each in found.runs] == ["bad", "good"]
        assert len(str(found).splitlines()) == 3 + len(found.runs[0].notes)
        json.dumps(found.as_json(), allow_nan=False)
    (run / name).unlink()
    os.mkfifo(run / name)
    assert [each.name for each in ht.runs(tmp_path).runs] == ["bad", "good"]


def test_metrics_without_a_row_are_damaged(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "metrics.jsonl").write_text("no row\n")
    assert status(run).notes == ["metrics.jsonl: damaged: no row can be read"]
    (run / "metrics.jsonl").write_text("")
    assert status(run).notes == []


def test_what_is_damaged_is_named(tmp_path):
    run = write_run(tmp_path / "bad")
    (run / "config.yaml").write_bytes(b"a: [")
    (note,) = status(run).notes
    assert note.startswith("config.yaml: damaged: ")
    (run / "config.yaml").unlink()
    assert status(run).notes == ["config.yaml: missing"]


def test_runs_are_found_some_levels_below_and_not_within_runs(tmp_path):
    for name in ("a", "study/cells/b", "study/code/c/d/e"):
        write_run(tmp_path / name)
    write_run(tmp_path / "a" / "inner")
    assert [run.name for run in ht.runs(tmp_path).runs] == ["a", "study/cells/b"]
    with pytest.raises(UserError, match="no such folder"):
        ht.runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert str(ht.runs(tmp_path / "empty")).startswith("no runs in ")


def test_the_table_fits_80_columns(tmp_path):
    for name in ("quickstart", "a-name-that-is-longer-than-any-terminal-has-room-for-in-its-first-column"):
        run = write_run(tmp_path / name, steps=1_000_000, started=time.time() - 100)
    console = Console(width=80, record=True, color_system=None)
    with (run / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = ht.runs(tmp_path)
    found.runs[0].step, found.runs[0].restarts, found.runs[0].effective = 123_456, 12, 1.0
    with console.capture() as captured:
        console.print(table(found))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in captured.get()
    assert "123456/1000000" in captured.get()


def test_names_and_notes_cannot_steer_the_terminal(tmp_path):
    write_run(tmp_path / "a\x1b[31m[red]")
    text = str(ht.runs(tmp_path))
    assert "\x1b" not in text
    assert "[red]" in text


def test_the_verb_prints_the_table_and_json(tmp_path, capsys, monkeypatch):
    end_run(write_run(tmp_path / "checkpoints" / "a"), "stopped")
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "loss", "tokens/s", "left", "restarts", "effective"]
    assert row.split() == ["a", "stopped", "40/100", "4.600", "32", "–", "0", "80%"]
    assert main(["runs", "checkpoints/a", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["name"], found["state"], found["step"]) == ("a", "stopped", 40)
    assert main(["runs", "--watch"]) == 2
    assert "--watch: expected a terminal" in capsys.readouterr().err


def test_the_table_is_shown_again_until_ctrl_c(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a")
    monkeypatch.setattr(show, "REFRESH_SECONDS", 0)
    looks = 0

    def read():
        nonlocal looks
        looks += 1
        if looks == 3:
            end_run(run, "finished")
        if looks == 4:
            raise KeyboardInterrupt
        return ht.runs(tmp_path)

    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        show.watch(read, console)
    shown = console.file.getvalue()
    assert shown.index("dead") < shown.index("finished")


def test_no_torch_is_imported(tmp_path):
    write_run(tmp_path / "a")
    code = f"""if True:
        import sys
        from hybridtron.cli.main import main
        main(["runs", {str(tmp_path)!r}])
        sys.exit("torch" in sys.modules or "pydantic" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_finished_run_shows_as_such(tiny, hybridtron):
    assert hybridtron("train", tiny, "train.steps=4").returncode == 0
    done = warm.run(
        command("runs", tiny.parent, "--json"), env=environment(), capture_output=True, text=True, check=True
    )
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["state"], run["step"], run["steps"], run["restarts"]) == ("finished", 4, 4, 0)
    assert 0 < run["effective"] <= 1
