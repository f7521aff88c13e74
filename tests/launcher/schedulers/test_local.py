"""Jobs of this machine: killed and hung ranks, the budget of restarts, bad input, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.job import Job, Spec
from hybridtron.launcher.schedulers import local
from hybridtron.launcher.submit import submit
from hybridtron.launcher.supervision import supervisor
from hybridtron.launcher.supervision.supervisor import Supervisor
from hybridtron.launcher.supervision.task import Task
from hybridtron.training.run_folder.attempts import read_attempts
from hybridtron.training.run_folder.folder import RunFolder
from tests import warm
from tests.conftest import command, environment

LAUNCH = {"cluster": "local", "processes_per_node": 2, "heartbeat_seconds": 15.0}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)


def rank(run: Path, attempt: int, number: int) -> int:
    return int(json.loads((run / "launch" / f"attempt_{attempt}" / f"rank_{number:05d}.json").read_text())["pid"])


def first_steps(run: Path) -> int:
    file = run / "attempts.jsonl"
    return file.read_text().count('"first_step"') if file.exists() else 0


def test_a_run_goes_on_after_a_killed_and_a_stopped_rank_and_saves_at_ctrl_c(tiny, tmp_path):
    launch, run = tmp_path / "launch.yaml", tmp_path / "run"
    launch.write_text(yaml.safe_dump(LAUNCH))
    overrides = ("parallel.tensor=2", "train.steps=1000000", "schedule.type=constant", "checkpoint.save_every=5")
    process = warm.Popen(
        command("launch", tiny, *overrides, "--launch", launch),
        env=environment(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: (run / "latest").exists(), process)
    os.kill(rank(run, 1, 1), signal.SIGKILL)
    wait_for(lambda: first_steps(run) == 2, process)
    os.kill(rank(run, 2, 1), signal.SIGSTOP)
    wait_for(lambda: first_steps(run) == 3, process)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=240)[1].decode()
    assert process.returncode == 0
    attempts = read_attempts(run)
    assert [attempt.outcome for attempt in attempts] == ["failed", "failed", "stopped"]
    assert attempts[0].cause is not None
    assert attempts[0].cause.endswith("was killed (signal 9)")
    assert attempts[1].cause is not None
    assert attempts[1].cause.startswith("rank 1 on ")
    assert "is stopped by a signal (SIGSTOP)" in attempts[1].cause
    assert [attempt.restart_cause for attempt in attempts] == [None, attempts[0].cause, attempts[1].cause]
    assert [line for line in errors.splitlines() if "attempt" in line] == [
        f"hybridtron: attempt {number}: {attempts[number - 1].cause}; starting again" for number in (1, 2)
    ]
    saved = json.loads((run / (run / "latest").read_text().strip() / "train_state.json").read_text())["step"]
    assert saved == attempts[2].end_step
    assert json.loads((run / "launch" / "result.json").read_text())["outcome"] == "stopped"


def test_bad_input_never_starts_again(tmp_path):
    (handle,) = submit([Job("bad", tmp_path / "bad", arguments=("describe", "missing.yaml"))], LaunchConfig())
    assert handle.wait(240) == 2
    assert handle.state == "failed"
    assert "missing.yaml" in handle.result["cause"]
    assert not (handle.folder / "launch" / "attempt_2").exists()


def test_each_launch_has_a_budget_of_restarts(tmp_path):
    """Each process fails while it imports what a variable puts into its way."""
    (tmp_path / "pydantic.py").write_text("raise RuntimeError('broken')")
    launch = LaunchConfig(max_restarts=2, environment={"PYTHONPATH": str(tmp_path)}, snapshot_code=False)
    job = Job("broken", tmp_path / "run", arguments=("describe", "x.yaml"), processes=2)
    for attempts in (3, 6):
        (handle,) = submit([job], launch)
        assert handle.wait(240) == 1
        assert len(list((tmp_path / "run" / "launch").glob("attempt_*"))) == attempts
        assert "RuntimeError: broken; restarted 2 times within 24 h" in handle.result["cause"]


def test_jobs_run_at_most_some_at_once_and_what_waits_can_be_cancelled(tmp_path, monkeypatch):
    """The first job counts as running until the others have been looked at."""
    others_seen, poll = threading.Event(), local.LocalHandle.poll
    monkeypatch.setattr(local.LocalHandle, "poll", lambda handle: others_seen.wait(0.1) and poll(handle))
    jobs = [Job(f"{index}", tmp_path / f"{index}", arguments=("describe", "x.yaml")) for index in range(3)]
    first, second, third = submit(jobs, LaunchConfig(), folder=tmp_path, parallelism=1)
    third.cancel()
    assert (second.state, third.state) == ("pending", "pending")
    others_seen.set()
    assert [handle.wait(240) for handle in (first, second, third)] == [2, 2, 0]
    assert third.state == "cancelled"
    assert not (third.folder / "launch" / "attempt_1").exists()
    assert len(list((tmp_path / "code").iterdir())) == 1


def test_an_allocation_that_does_not_fit_is_one_line_and_writes_nothing(tiny, tmp_path, capsys):
    launch = tmp_path / "launch.yaml"
    launch.write_text("cluster: slurm\nprocesses_per_node: 3\n")
    assert main(["launch", str(tiny), "parallel.tensor=2", "--launch", str(launch)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("hybridtron: error: nodes 1 x processes_per_node 3 = 3: expected a multiple of")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_key_of_the_launch_file_among_those_of_the_run_is_named_as_one(tiny, tmp_path, capsys):
    (tmp_path / "launch.yaml").write_text("cluster: slurm\n")
    assert main(["launch", str(tiny), "time_minutes=60", "--launch", str(tmp_path / "launch.yaml")]) == 2
    assert "error: time_minutes: is a key of a launch file; expected it there" in capsys.readouterr().err


def test_a_dry_run_prints_the_script_and_imports_no_torch(tiny, tmp_path):
    launch = tmp_path / "launch.yaml"
    launch.write_text("cluster: slurm\nprocesses_per_node: 2\nnodes: 2\nmin_nodes: 1\npartition: h100\n")
    code = "import sys; from hybridtron.cli.main import main; code = main(sys.argv[1:]); print('torch' in sys.modules)"
    arguments = ("-c", code, "launch", tiny, "parallel.tensor=2", "--launch", launch, "--dry-run")
    done = subprocess.run(
        [command()[0], *map(str, arguments)], env=environment(), cwd=tmp_path, capture_output=True, text=True
    )
    *script, torch = done.stdout.splitlines()
    assert torch == "False"
    assert script[0] == "#!/bin/bash"
    assert {"#SBATCH --nodes=1-2", "#SBATCH --mincpus=2", "#SBATCH --partition=h100"} <= set(script)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_on_this_machine_shows_what_it_would_start(tiny, tmp_path):
    found = ht.launch(tiny, "parallel.tensor=2", launch={"cluster": "local", "processes_per_node": 2}, dry_run=True)
    assert isinstance(found, str)
    assert found.startswith("2 supervisors on this machine:\n")
    assert f"launcher.main import main; sys.exit(main())' {tmp_path / 'run' / 'code' / 'DIGEST'} " in found
    assert f" train {tmp_path / 'run' / 'launch' / 'config.yaml'} --resume\n" in found
    assert "sbatch" not in found.lower()
    assert not (tmp_path / "run").exists()


def test_gpus_of_a_machine_without_any_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "DEVICES", tmp_path / "dev")
    launch = {"cluster": "local", "gpus_per_node": 1}
    for dry_run in (False, True):
        with pytest.raises(ht.UserError, match=r"^gpus_per_node = 1: this machine has no GPU; expected 0"):
            ht.launch(tiny, launch=launch, dry_run=dry_run)
    assert not (tmp_path / "run").exists()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert str(ht.launch(tiny, launch=launch, dry_run=True)).startswith("1 supervisor on")


def test_a_launch_of_a_run_that_trains_says_that_it_waits(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervisor, "FREE_SECONDS", 0.0)
    running = RunFolder(tmp_path / "run")
    assert running.lock()
    settings = LaunchConfig(start_seconds=1.0).model_dump(mode="json")
    spec = Spec("tiny", str(running.path), "", (), True, (1,), 1, settings, "launch")
    assert Supervisor(spec, Task(0, 1, 0, "here", 1, "here", "127.0.0.1", None, "run")).run() == 1
    running.unlock()
    folder = f"run folder {running.path}"
    lines = [line for line in capfd.readouterr().err.splitlines() if folder in line]
    assert lines == [
        f"hybridtron: {folder}: another process trains it; waiting for its end, 1 s (start_seconds) at most",
    ]


def test_the_python_function_returns_a_handle(tiny, tmp_path):
    with pytest.raises(ht.UserError, match=r"^processes_per_node = 1: expected 2"):
        ht.launch(tiny, "parallel.tensor=2", launch={"cluster": "local"})
    script = ht.launch(tiny, launch={"cluster": "slurm"}, dry_run=True)
    assert isinstance(script, str)
    assert script.startswith("#!/bin/bash")
