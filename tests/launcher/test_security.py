"""Nothing that a user names reaches a shell unquoted, no secret a run folder, and nobody else a script."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

import hybridtron as ht
from hybridtron.launcher import snapshot
from hybridtron.launcher.config import LaunchConfig, read_launch
from hybridtron.launcher.environment_variables import recorded_environment
from hybridtron.launcher.job import Job
from hybridtron.launcher.private_files import make_folder
from hybridtron.launcher.schedulers.slurm import SlurmHandle
from hybridtron.launcher.snapshot import copy_code
from hybridtron.launcher.submit import dry_run, submit

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
    script = dry_run(job, LaunchConfig(cluster="slurm", sbatch={"comment": word}))
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
        dry_run(Job("job", tmp_path / name, arguments=("doctor",)), LaunchConfig(cluster="slurm"))
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
        "LDAP_BIND_PW",
        "LDAPPW",
        "SLURMDB_PW",
        "FIREBASE_CONFIG",
        "FIGMA_PAT",
        "TORCH_PWD",
    )
    found = recorded_environment(
        {**kept, **dict.fromkeys(dropped, SECRET), "PYTHON_INDEX": f"https://me:{SECRET}@host"}
    )
    assert found == kept


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "hf_token", "LDAP_BIND_PW", "FIGMA_PAT", "DB_PWD", "PGPASSWORD"])
def test_launch_files_hold_no_secrets(name):
    with pytest.raises(ht.UserError, match=rf"environment\.{name} = .*set it in the shell that submits") as refused:
        read_launch({"environment": {name: SECRET}})
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_variables_that_only_resemble_secrets_are_kept():
    kept = {"TOKENIZERS_PARALLELISM": "false", "NCCL_IB_PKEY": "1", "NVTE_PATH": "x"}
    assert read_launch({"environment": kept}).environment == kept


def forge_file(copy: Path) -> None:
    (copy / "hybridtron" / "__main__.py").write_text("forged")


def add_module(copy: Path) -> None:
    (copy / "yaml.py").write_text("forged")


def add_package(copy: Path) -> None:
    (copy / "torch").mkdir()


def add_bytecode(copy: Path) -> None:
    (copy / "hybridtron" / "__pycache__").mkdir()


def remove_file(copy: Path) -> None:
    (copy / "hybridtron" / "__main__.py").unlink()


def link_file(copy: Path) -> None:
    moved = (copy / "hybridtron" / "__main__.py").rename(copy.parent / "elsewhere.py")
    (copy / "hybridtron" / "__main__.py").symlink_to(moved)


def link_folder(copy: Path) -> None:
    copy.symlink_to(copy.rename(copy.parent / "elsewhere"))


def open_to_others(copy: Path) -> None:
    (copy / "hybridtron").chmod(0o777)


@pytest.mark.parametrize(
    "change",
    [forge_file, add_module, add_package, add_bytecode, remove_file, link_file, link_folder, open_to_others],
)
def test_code_that_was_changed_in_a_run_folder_is_not_used(change, tmp_path):
    before = os.umask(0o022)
    try:
        first = copy_code(tmp_path)
        assert copy_code(tmp_path) == first
        change(first)
        second = copy_code(tmp_path)
        assert second.name == f"{first.name}.2"
        assert copy_code(tmp_path) == second
    finally:
        os.umask(before)


def test_a_copy_that_is_used_again_notes_the_commit_of_now(tmp_path, monkeypatch):
    heads = ["a" * 40 + "-dirty", "b" * 40]
    monkeypatch.setattr(snapshot, "commit", lambda: heads[0])
    monkeypatch.setattr(snapshot, "changes", lambda: b"+a = 2")
    copy = copy_code(tmp_path)
    assert (copy / "changes.diff").read_bytes() == b"+a = 2"
    heads.pop(0)
    assert copy_code(tmp_path) == copy
    assert (copy / "git.txt").read_text() == "b" * 40 + "\n"
    assert not (copy / "changes.diff").exists()


def test_folders_of_others_are_refused_and_own_ones_closed(tmp_path, monkeypatch):
    folder = tmp_path / "launch"
    folder.mkdir()
    folder.chmod(0o777)
    make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(ht.UserError, match=f"belongs to another user .uid {user}."):
        make_folder(folder)


def test_where_one_job_is_refused_those_before_are_cancelled(tmp_path, monkeypatch):
    """With programs in the place of SLURM's: the second call of sbatch fails."""
    log, bin_folder = tmp_path / "calls", tmp_path / "bin"
    bin_folder.mkdir()
    refusal = "sbatch: error: size 9\\nsbatch: error: no such size\\n"
    programs = {
        "srun": "",
        "sbatch": f"[ -e {log} ] && {{ printf '{refusal}' >&2; exit 1; }}\n"
        f"echo sbatch > {log}; echo Submitted batch job 7\n",
        "scancel": f"echo scancel $* >> {log}\n",
    }
    for name, text in programs.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    jobs = [Job(f"job{n}", tmp_path / f"run{n}", arguments=("doctor",), processes=n) for n in (1, 2)]
    with pytest.raises(ht.UserError, match=r"^sbatch: size 9; no such size$"):
        submit(jobs, LaunchConfig(cluster="slurm", processes_per_node=2, snapshot_code=False))
    assert log.read_text().splitlines() == ["sbatch", "scancel 7"]
    submitted = json.loads((tmp_path / "run1/launch/submitted.json").read_text())
    assert submitted == {"job": "7", "output": str(tmp_path / "run1/launch/slurm")}
    refused = json.loads((tmp_path / "run2/launch/result.json").read_text())
    assert refused["outcome"] == "failed"
    assert "no such size" in refused["cause"]


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
    assert [handle.wait(240) for handle in handles] == [2, 2]  # there is no such config
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
    assert [copy_code(run / "code")] == list((run / "code").iterdir())  # the run left its code as it was
