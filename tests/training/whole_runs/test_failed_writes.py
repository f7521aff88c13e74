"""A disk that is full, or a folder that is gone, costs what could not be written, and one line says so."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys

import pytest

from hybridtron.config.load import load
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.errors import TrainingStopped
from hybridtron.training.callbacks import Callback
from hybridtron.training.callbacks.metrics import MetricsFile, read_metrics
from hybridtron.training.config import RunConfig
from hybridtron.training.run import train
from hybridtron.training.validation.resolve import resolve
from tests import warm
from tests.conftest import command, environment

SAVES = ("train.steps=6", "schedule.warmup_steps=1", "checkpoint.save_every=2")
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from hybridtron.__main__ import main
sys.exit(main())
"""


def files_of_at_most(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def run_with_files_of_at_most(size, tiny, *arguments):
    return warm.run(
        [sys.executable, "-c", LIMITED, str(size), *command(*arguments)[3:]],
        env=environment(), cwd=tiny.parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("layout", [[], ["--nproc", 2, "parallel.tensor=2"]], ids=["one process", "two processes"])
def test_a_run_whose_checkpoints_do_not_fit_goes_on_to_its_last(layout, tiny):
    run = tiny.parent / "run"
    done = run_with_files_of_at_most(30_000, tiny, "train", tiny, *SAVES, *layout)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if "not saved" in line]
    assert said == [
        *(f"step {step}: the checkpoint was not saved: File too large; training goes on" for step in (2, 4)),
        "hybridtron: stopped: step 6: the checkpoint was not saved: File too large; there is no checkpoint yet",
    ]
    assert "Traceback" not in done.stderr
    assert not list(run.glob("step_*"))
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_ranks_that_cannot_write_the_file_by_which_they_meet_are_not_started(tiny):
    done = run_with_files_of_at_most(2048, tiny, "train", tiny, "--nproc", 2, "parallel.tensor=2")
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"hybridtron: error: \S+/rendezvous: File too large\n", done.stderr)
    assert not (tiny.parent / "run").exists()


class Mover(Callback):
    """Something outside that moves the run folder away, and may bring it back."""

    def __init__(self, folder, back_at=None):
        self.folder, self.away, self.back_at = folder, folder.with_name("away"), back_at

    def before_step(self, context):
        if context.state.step == 1:
            shutil.move(self.folder, self.away)
        if context.state.step == self.back_at:
            shutil.move(self.away, self.folder)


def trained(tiny, mover):
    config = resolve(load(tiny, SAVES, RunConfig))
    return train(config, Environment(0, 1, 0, None, "single"), callbacks=[mover])


def test_a_folder_that_is_gone_for_a_while_costs_the_checkpoints_of_that_time(tiny, capsys):
    run = tiny.parent / "run"
    trained(tiny, Mover(run, back_at=5))
    said = capsys.readouterr().err
    assert said.count("the checkpoint was not saved") == 2
    assert said.count("TensorBoard: not written") <= 1
    assert "Traceback" not in said
    assert [path.name for path in run.glob("step_*")] == ["step_00000006"]
    assert json.loads((run / "summary.json").read_text())["step"] == 6
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_folder_that_is_gone_to_the_end_fails_the_run(tiny):
    run = tiny.parent / "run"
    with pytest.raises(TrainingStopped, match=r"step 6: the checkpoint was not saved: .*partial.*: No such file"):
        trained(tiny, Mover(run))
    assert not run.exists()


def test_a_row_that_does_not_fit_leaves_no_part(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.stream = (tmp_path / "metrics.jsonl").open("ab+", buffering=0)
    metrics.after_step(None, {"step": 1}, logged=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    files_of_at_most(18)
    try:
        with pytest.raises(OSError, match="File too large"):
            metrics.after_step(None, {"step": 2}, logged=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    metrics.after_step(None, {"step": 3}, logged=True)
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'


def test_output_that_nobody_reads_ends_no_run(tiny):
    """As with `2>&1 | head -1`."""
    process = warm.Popen(
        command("train", tiny, *SAVES),
        env=environment(), cwd=tiny.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert (tiny.parent / "run" / "latest").read_text() == "step_00000006\n"
