"""What squeue says of a run that waits."""

from __future__ import annotations

import pytest

import hybridtron as ht
from hybridtron.monitoring.queue import queued_jobs
from tests.monitoring.folders import end_run, write_launch, write_run


def test_without_slurm_there_are_no_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued_jobs() is None


def test_a_controller_that_is_away_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'squeue: error: Unable to contact' >&2; exit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued_jobs() is None


@pytest.mark.slurm
def test_a_run_whose_job_is_pending_is_waiting(tmp_path, slurm):
    number = slurm.call("sbatch", "--parsable", "--hold", "--wrap=true", "--output=/dev/null", "--array=3")
    run = write_run(tmp_path / "a")
    end_run(run, "stopped", "SIGTERM received")
    write_launch(run, "submitted.json", {"job": f"{number}_3"})
    assert queued_jobs()[f"{number}_3"] == "PENDING"
    assert ht.runs(run).runs[0].state == "waiting"
    slurm.call("scancel", number)
    assert ht.runs(run).runs[0].state == "stopped"
