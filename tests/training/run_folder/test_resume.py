"""A run that is stopped and resumed ends exactly like one that was not."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from hybridtron.config.load import load
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.resume import find_start
from hybridtron.training.single_process import load as load_model
from hybridtron.training.validation.resolve import resolve
from tests import warm
from tests.conftest import command, environment

STEPS = ("train.steps=40", "checkpoint.save_every=10")


def losses(run: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    model = load_model(run)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, corpus):
    """The run folder of 40 steps at a stretch."""
    import yaml

    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("uninterrupted")
    data = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": data, "folder": str(folder / "run")}))
    warm.run(command("train", folder / "tiny.yaml", *STEPS), env=environment(), check=True, cwd=folder)
    return folder / "run"


def assert_equal(run: Path, other: Path) -> None:
    assert losses(run) == losses(other)
    mine, others = weights(run), weights(other)
    assert mine.keys() == others.keys()
    for name, parameter in mine.items():
        assert torch.equal(parameter, others[name]), name


# A run that sends itself a signal before it gives a path the name that it is told, so that no machine is
# too slow to find it there.
SIGNALLED = """
import os, signal, sys
from hybridtron.__main__ import main
number, name = int(sys.argv.pop(1)), sys.argv.pop(1)
def strike(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(name):
        os.kill(os.getpid(), number)
sys.addaudithook(strike)
sys.exit(main())
"""


def run_signalled(number: signal.Signals, name: str, config: Path) -> int:
    """Train, and return the exit code of a run that is signalled before it gives something this name."""
    arguments = [str(int(number)), name, *command("train", config, *STEPS)[3:]]
    return warm.run([sys.executable, "-c", SIGNALLED, *arguments], env=environment(), cwd=config.parent).returncode


def test_stop_by_signal_then_resume(tiny, uninterrupted, hybridtron):
    run = tiny.parent / "run"
    assert run_signalled(signal.SIGTERM, "step_00000010", tiny) == 0
    stopped_at = losses(run)[-1][0]
    assert 10 <= stopped_at < 40
    assert (run / "latest").read_text().strip() == f"step_{stopped_at:08d}"
    resumed = hybridtron("train", tiny, *STEPS, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(run, uninterrupted)


def test_kill_in_the_middle_of_a_save_then_resume(tiny, uninterrupted, hybridtron):
    run = tiny.parent / "run"
    assert run_signalled(signal.SIGKILL, "step_00000020", tiny) == -signal.SIGKILL
    assert (run / "latest").read_text().strip() == "step_00000010"
    assert list(run.glob("step_00000020.partial-*/*"))
    resumed = hybridtron("train", tiny, *STEPS, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not list(run.glob("*.partial-*"))
    assert_equal(run, uninterrupted)


def test_twenty_and_twenty_equal_forty(tiny, uninterrupted, hybridtron):
    schedule = ("schedule.type=constant",)
    whole = hybridtron("train", tiny, "train.steps=40", *schedule, f"folder={tiny.parent / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    for steps, more in ((20, []), (40, ["--resume"])):
        half = hybridtron("train", tiny, f"train.steps={steps}", *schedule, *more)
        assert half.returncode == 0, half.stderr
    assert_equal(tiny.parent / "run", tiny.parent / "whole")


def test_the_last_k_checkpoints_are_kept(uninterrupted):
    assert sorted(path.name for path in uninterrupted.glob("step_*")) == ["step_00000030", "step_00000040"]
    assert (uninterrupted / "latest").read_text().strip() == "step_00000040"


def test_resuming_a_finished_run_changes_no_weight(uninterrupted, hybridtron):
    before = weights(uninterrupted)
    again = hybridtron("train", uninterrupted / "config.yaml", "--resume")
    assert again.returncode == 0, again.stderr
    after = weights(uninterrupted)
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())


def test_resume_of_another_architecture_is_refused(uninterrupted, hybridtron):
    before = (uninterrupted / "config.yaml").read_text()
    result = hybridtron("train", uninterrupted / "config.yaml", "model.hidden_size=64", "--resume")
    assert result.returncode == 2
    assert "model.hidden_size = 64: expected 32" in result.stderr
    assert (uninterrupted / "config.yaml").read_text() == before


def test_a_longer_run_tells_that_its_learning_rate_rises_again(uninterrupted):
    def told(*overrides: str) -> dict[str, object]:
        config = resolve(load(uninterrupted / "config.yaml", list(overrides), RunConfig))
        return {change.key: change for change in find_start(RunFolder(uninterrupted), config, resume=True).changes}

    longer = told("train.steps=80")
    assert longer["train.steps"].now == 80
    assert longer["learning rate"].now > 5 * longer["learning rate"].was
    assert told() == {}
