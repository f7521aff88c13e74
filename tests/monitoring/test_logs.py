"""Logs of launched runs, printed and followed."""

from __future__ import annotations

import fcntl

import pytest

from hybridtron.cli.main import main
from hybridtron.monitoring import logs
from tests.monitoring.folders import end_run, write_launch, write_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A launched run of two ranks."""
    monkeypatch.setattr(logs, "queued_jobs", dict)
    folder = write_run(tmp_path / "a")
    (folder / "logs").mkdir()
    for rank in range(2):
        (folder / "logs" / f"rank_0000{rank}.log").write_bytes(b"=== attempt 1\nrank %d \xff\n" % rank)
    return folder


def test_the_log_of_a_rank_is_printed_as_it_is(run, capfdbinary):
    assert main(["logs", str(run)]) == 0
    assert capfdbinary.readouterr().out == b"=== attempt 1\nrank 0 \xff\n"
    assert main(["logs", str(run), "--rank", "1"]) == 0
    assert capfdbinary.readouterr().out == b"=== attempt 1\nrank 1 \xff\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{}", "--rank", "7"], "--rank = 7: {} has no log of it; expected one of 0 to 1"),
        (["{}", "--rank", "-1"], "--rank = -1: expected at least 0"),
        (["{}/none"], "{}/none: no such folder; expected a run folder"),
        (["{0}-c"], "{0}-c: no such folder; expected a run folder (nearest: {0}-b)"),
        (["{}/logs"], "{}/logs: no run folder; expected one with config.yaml, which training writes"),
        (["{}/config.yaml"], "{}/config.yaml: is a file; expected a run folder"),
        (["{}-b"], "{}-b: no logs, since the run was not started by `hybridtron launch`"),
        (["{}-b", "--follow"], "{}-b: no logs, since the run was not started by `hybridtron launch`"),
    ],
)
def test_where_there_is_no_log_that_is_said(run, arguments, expected, capsys):
    end_run(write_run(run.with_name("a-b")), "finished")
    assert main(["logs", *(argument.format(run) for argument in arguments)]) == 2
    assert capsys.readouterr().err == f"hybridtron: error: {expected.format(run)}\n"


def test_a_job_in_the_queue_has_no_log_yet(run, capsys):
    write_launch(run.with_name("b"), "job.json", {"name": "b"})
    assert main(["logs", str(run.with_name("b"))]) == 2
    assert "no log yet; its job has not started" in capsys.readouterr().err


def test_a_job_that_ended_before_training_has_none_either(run, capsys):
    write_launch(run.with_name("b"), "job.json", {"name": "b"})
    write_launch(run.with_name("b"), "submitted.json", {"job": "18"})
    assert main(["logs", str(run.with_name("b"))]) == 2
    assert "no log: its job ended before training began; see " in capsys.readouterr().err
    write_launch(run.with_name("b"), "result.json", {"outcome": "failed", "cause": "sbatch: no such\npartition"})
    assert main(["logs", str(run.with_name("b"))]) == 2
    assert "no log: sbatch: no such partition\n" in capsys.readouterr().err


def test_a_log_is_followed_over_a_restart_until_the_run_ends(run, monkeypatch):
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(logs, "STATE_SECONDS", 0)
    log = run / "logs" / "rank_00000.log"
    with (run / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        blocks = logs.read_log(run, follow=True)
        assert next(blocks) == b"=== attempt 1\nrank 0 \xff\n"
        with log.open("ab") as file:
            file.write(b"=== attempt 2\n")
        assert next(blocks) == b"=== attempt 2\n"
        log.unlink()
        log.write_bytes(b"new\n")
        assert next(blocks) == b"new\n"
    end_run(run, "finished")
    with log.open("ab") as file:
        file.write(b"the end\n")
    assert list(blocks) == [b"the end\n"]


def test_a_log_is_no_pipe(run, capsys):
    import os

    (run / "logs" / "rank_00000.log").unlink()
    os.mkfifo(run / "logs" / "rank_00000.log")
    assert main(["logs", str(run)]) == 2
    assert "expected a plain file" in capsys.readouterr().err
