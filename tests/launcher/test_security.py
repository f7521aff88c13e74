"""Nothing that a user names reaches a shell unquoted, no secret a run folder, and nobody else a script."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

import hybridtron as ht
from hybridtron.launcher.config import LaunchConfig, read_launch
from hybridtron.launcher.job import Job
from hybridtron.launcher.slurm import SlurmHandle
from hybridtron.launcher.snapshot import recorded_environment
from hybridtron.launcher.submit import batch_script, submit

WORDS = ["a b", "it's", 'say "x"', "$(touch PWNED)", "`touch PWNED`", "; touch PWNED #", "&& touch PWNED", "a\tb"]
NEWLINE = "x\ntouch PWNED\n"
SECRET = "hunter2-sesame"


@pytest.fixture(params=[0o022, 0o000], ids=["umask 022", "umask 000"])
def mask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def writable_by_others(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if not path.is_symlink() and path.lstat().st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    ]


@pytest.mark.parametrize("word", [word for word in WORDS if "\t" not in word])
def test_the_script_runs_nothing_but_srun(word, tmp_path):
    """Bash itself runs the script, with a program in the place of srun that prints its arguments."""
    folder = tmp_path / word
    job = Job(f"name {word} {NEWLINE}", folder, arguments=("describe", word, NEWLINE))
    script = batch_script(job, LaunchConfig(cluster="slurm", sbatch={"comment": word}))
    file = tmp_path / "script.sh"
    file.write_text(script)
    assert subprocess.run(["bash", "-n", file]).returncode == 0
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    (bin_folder / "srun").chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", file], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    arguments = done.stdout.split("\0")
    assert str(folder / "launch" / "slurm" / "%j_%t_log.out") in arguments
    assert str(folder / "launch" / "job.json") in arguments
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "100%j", "a\\b", "\x1b[2J"])
def test_paths_that_slurm_cannot_hold_are_refused(name, tmp_path):
    with pytest.raises(ht.UserError, match="expected a path without %") as refused:
        batch_script(Job("job", tmp_path / name, arguments=("doctor",)), LaunchConfig(cluster="slurm"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "container_image"])
def test_launch_files_cannot_add_lines_to_the_script(key):
    with pytest.raises(ht.UserError, match=key):
        read_launch({"cluster": "slurm", key: "x\ntouch PWNED"})


def test_secrets_are_not_recorded(monkeypatch):
    kept = {"NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0"}
    dropped = (
        "WANDB_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "MY_CONFIG",
        "SLURM_JWT",
        "NCCL_AUTH",
    )
    found = recorded_environment(
        {**kept, **dict.fromkeys(dropped, SECRET), "PYTHON_INDEX": f"https://me:{SECRET}@host"}
    )
    assert found == kept


@pytest.mark.slurm
def test_a_real_job_with_bad_names(slurm, mask, tiny, tmp_path, monkeypatch):
    """Names, a path and overrides with signs of the shell, and a secret, on the cluster."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "SLURM_JWT_X", "OTHER"):
        monkeypatch.setenv(name, SECRET)
    folder = tmp_path / ("run " + "".join(word for word in WORDS if "\t" not in word and "/" not in word))
    jobs = [
        Job(
            f"{index} {word} {NEWLINE}", folder / str(index), arguments=("describe", f"{word}{NEWLINE}", f"name={word}")
        )
        for index, word in enumerate(WORDS[:2])
    ]
    launch = LaunchConfig(cluster="slurm", max_restarts=0, environment={"X": WORDS[3]}, sbatch={"comment": WORDS[2]})
    handles = submit(jobs, launch, folder=folder)
    assert all(isinstance(handle, SlurmHandle) for handle in handles)
    assert [handle.wait(60) for handle in handles] == [2, 2]  # there is no such config
    assert [handle.result["cause"].count("no such file") for handle in handles] == [1, 1]
    assert not [path for place in (tmp_path, Path.cwd()) for path in place.rglob("PWNED")]
    assert writable_by_others(folder) == []
    assert [path for path in folder.rglob("*") if path.is_file() and SECRET in path.read_text(errors="replace")] == []
    assert len(list(folder.rglob("*.sh"))) == 1 + 1  # the script, and submitit's link to it


def test_a_local_job_writes_through_no_link(tiny, tmp_path, mask, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    target = tmp_path / "target"
    target.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    for name in ("launch", "logs", "code"):
        (run / name).symlink_to(target)
        with pytest.raises(ht.UserError, match="is a link"):
            ht.launch(tiny, launch={"cluster": "local"})
        (run / name).unlink()
    handle = ht.launch(tiny, "train.steps=2", "schedule.warmup_steps=1", launch={"cluster": "local"})
    assert handle.wait(120) == 0
    assert list(target.iterdir()) == []
    assert [path for path in run.rglob("*") if path.is_file() and SECRET in path.read_text(errors="replace")] == []
    assert [path for path in writable_by_others(run) if path.parts[len(run.parts)] in ("launch", "logs", "code")] == []
    config = yaml.safe_load((run / "launch" / "config.yaml").read_text())
    assert config["folder"] == str(run)
