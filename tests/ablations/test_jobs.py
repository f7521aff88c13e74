"""Jobs of a study on a cluster, with a program in the place of squeue."""

from __future__ import annotations

import json
import os

import pytest

from hybridtron.ablations.jobs import JOBS, describe_jobs, waiting_jobs
from hybridtron.ablations.study import Study
from hybridtron.errors import UserError
from hybridtron.launcher.config import LaunchConfig
from hybridtron.training.run_folder.submitted import SUBMITTED
from tests.ablations.studies import LAYERS, plan


def test_jobs_submitted_before_an_interrupt_are_followed(tiny, tmp_path, monkeypatch):
    """The study has not recorded their numbers yet, or has older ones; their run folders have them."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "squeue").write_text("#!/bin/bash\nprintf '%s\\n' '7_0 RUNNING' '7_1 PENDING' '5 RUNNING'\n")
    (bin_folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    study = Study(plan(tiny))
    runs = study.plan.runs
    study.folder.mkdir()
    (study.folder / JOBS).write_text(json.dumps({runs[1].name: "4", runs[2].name: "5"}))
    for run, number in ((runs[0], "7_0"), (runs[1], "7_1"), (runs[3], "--user=me")):
        file = run.config.run_folder / SUBMITTED
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"job": number}))
    assert waiting_jobs(study) == ["7_0", "7_1", "5"]


def test_jobs_are_checked_and_described_before_any_is_submitted(tiny):
    runs = plan(tiny, axes={"layers": LAYERS}).runs
    assert describe_jobs(runs, LaunchConfig(), 2) == "4 jobs (local), at most 2 at once, of 1 node x 1 processes"
    with pytest.raises(UserError, match=r"^train.global_batch_size = 4: expected a multiple of .* 3 data"):
        describe_jobs(runs, LaunchConfig(cluster="slurm", processes_per_node=3), None)
