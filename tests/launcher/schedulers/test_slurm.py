"""Jobs on a real cluster of two nodes: whatever ends them, they go on and end with the same weights."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed.checkpoint as dcp

import hybridtron as ht
from hybridtron.checkpoint_reader import loading
from hybridtron.launcher.schedulers.slurm import SlurmHandle
from hybridtron.training.run_folder.attempts import read_attempts
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.cluster, pytest.mark.timeout(3000)]

STEPS, SAVE_EVERY = 100, 30
LAYOUT = ("parallel.tensor=2", "parallel.data=2")
LAUNCH = {
    "cluster": "slurm",
    "processes_per_node": 2,
    "cpus_per_process": 1,
    "save_seconds": 100,
    "time_minutes": 60,
    "heartbeat_seconds": 300.0,
    "environment": {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
}


class Run:
    """A launched run, and what happens to it."""

    def __init__(self, cluster: Cluster, config: Path, folder: Path, *overrides: str, **launch: Any) -> None:
        self.cluster, self.folder = cluster, folder
        self.handle = ht.launch(
            config,
            f"folder={folder}",
            f"train.steps={STEPS}",
            f"checkpoint.save_every={SAVE_EVERY}",
            "checkpoint.keep_last=0",
            "data.valid=null",
            "train.log_every=5",
            *overrides,
            launch={**LAUNCH, **launch},
        )
        assert isinstance(self.handle, SlurmHandle)
        self.job, self.submitted = self.handle.job_id, time.monotonic()

    def has_trained(self, step: int) -> bool:
        """Whether metrics of a step are written."""
        file = self.folder / "metrics.jsonl"
        rows = file.read_text().splitlines() if file.exists() else []
        return any(json.loads(row)["step"] >= step for row in rows if row.endswith("}"))

    def rank(self, number: int) -> int:
        """The process id of a rank of the latest attempt."""
        latest = max(self.folder.glob("launch/attempt_*"), key=lambda path: int(path.name[8:]))
        return int(json.loads((latest / f"rank_{number:05d}.json").read_text())["pid"])

    def log(self) -> str:
        file = self.folder / "logs" / "rank_00000.log"
        return file.read_text() if file.exists() else ""

    def verdicts(self) -> list[dict[str, object]]:
        files = self.folder.glob("launch/attempt_*/verdict.json")
        return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: int(file.parent.name[8:]))]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the last checkpoint: weights and optimizer state."""
        folder = self.folder / f"step_{STEPS:08d}"
        with loading(folder) as index:
            entries = index.state_dict_metadata.items()
            tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries}
            with warnings.catch_warnings(action="ignore"):  # of a process without process groups
                dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
        return tensors


def wait_for(condition: Callable[[], object], runs: list[Run], held: str = "", seconds: float = 600) -> None:
    """Wait until a condition holds; meanwhile start requeued jobs at once, but for the one that is `held`."""
    deadline = time.monotonic() + seconds
    while not condition():
        cluster = runs[0].cluster
        for job, state in cluster.states().items():
            if "BeginTime" in state and job != held:
                cluster.release(job)
        assert time.monotonic() < deadline, "\n".join(
            f"{run.folder.name}: {run.handle.state}\n{run.log()}" for run in runs
        )
        time.sleep(0.1)


@contextlib.contextmanager
def node_down(cluster: Cluster) -> Iterator[None]:
    """End the daemon of node1 during the block; SLURM is told at once, which it would find out after SlurmdTimeout.

    What a job still runs there ends with the block, as when the node is started again: SLURM would take it for the next
    start of the job, whose steps have the same numbers.
    """
    cluster.stop("node1")
    cluster.call("scontrol", "update", "NodeName=node1", "State=DOWN", "Reason=test")
    yield
    end_steps(cluster, "node1")
    cluster.start_node("node1")
    cluster.wait_until_idle()  # it registers, and returns to service by that


def end_steps(cluster: Cluster, node: str) -> None:
    """End all that jobs run on a node of the cluster, and the processes of SLURM that watch it."""
    for process in psutil.process_iter(["environ"]):
        variables = process.info["environ"] or {}
        of_cluster = variables.get("SLURM_CONF") == cluster.environment["SLURM_CONF"]
        if of_cluster and variables.get("SLURMD_NODENAME") == node:
            with contextlib.suppress(psutil.NoSuchProcess):
                watching = [each for each in process.parents() if each.name().startswith("slurmstepd")]
                for each in (process, *watching):
                    each.kill()


def test_jobs_end_with_the_same_weights_whatever_happens(slurm, tiny, tmp_path):
    seat = {"partition": "low", "sbatch": {"gres": "seat:1"}}
    runs = {
        name: Run(slurm, tiny, tmp_path / name, *LAYOUT, **seat if name == "preempted" else {})
        for name in ("undisturbed", "limited", "preempted", "requeued", "killed")
    }
    everything = list(runs.values())

    limited, high = runs["limited"], ("-phigh", "-N2", "--ntasks-per-node=1", "--gres=seat:1", "--output=/dev/null")

    def limit() -> None:
        minutes = int((time.monotonic() - limited.submitted) / 60) + 3  # the signal comes 100 s before the end
        slurm.call("scontrol", "update", f"JobId={limited.job}", f"TimeLimit={minutes}")

    strikes = {
        "preempted": lambda: slurm.call("sbatch", *high, "--wrap=true"),
        "requeued": lambda: slurm.call("scontrol", "requeue", runs["requeued"].job),
        "killed": lambda: os.kill(runs["killed"].rank(1), signal.SIGKILL),
        "limited": limit,
    }

    paused = {name: 0 for name in strikes if name != "killed"}  # so that they do not end before SLURM acts

    def all_have_been_struck() -> bool:
        for name in [name for name in strikes if runs[name].has_trained(SAVE_EVERY + 5)]:
            if name in paused:
                paused[name] = runs[name].rank(1)
                os.kill(paused[name], signal.SIGSTOP)
            strikes.pop(name)()
        for name in [name for name, rank in paused.items() if rank and "saving" in runs[name].log()]:
            os.kill(paused.pop(name), signal.SIGCONT)
        return not strikes and not paused

    run = limited
    wait_for(all_have_been_struck, everything, held=run.job)
    wait_for(lambda: "BeginTime" in slurm.states()[run.job], everything, held=run.job)
    slurm.call("scontrol", "update", f"JobId={run.job}", "TimeLimit=60")
    wait_for(lambda: all(each.handle.state == "finished" for each in everything), everything)
    lost = Run(slurm, tiny, tmp_path / "lost", *LAYOUT)
    wait_for(lambda: lost.has_trained(SAVE_EVERY + 5), [lost])
    with node_down(slurm):
        wait_for(lambda: "PENDING" in slurm.states()[lost.job], [lost], held=lost.job)
    wait_for(lambda: lost.handle.state == "finished", [lost])
    expected = runs["undisturbed"].tensors()
    assert len(runs["undisturbed"].verdicts()) == 1
    for run in (*everything, lost):
        assert run.handle.wait() == 0
        tensors = run.tensors()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected), run.folder.name
    killed = runs["killed"].verdicts()
    assert [verdict["action"] for verdict in killed] == ["restart", "end"]
    assert killed[0]["cause"] == "rank 1 on node0 was killed (signal 9)"
    for name in ("limited", "preempted"):
        stopped = runs[name].verdicts()[0]
        assert (stopped["outcome"], stopped["action"]) == ("stopped", "requeue")
        assert f"resumed from {runs[name].folder}/step_{stopped['step']:08d}" in runs[name].log()
    assert "stopped by a signal after step" in runs["requeued"].log()
    assert f"resumed from {runs['requeued'].folder}/step_" in runs["requeued"].log()
    assert f"resumed from {lost.folder}/step_" in lost.log()


def test_a_job_goes_on_on_the_nodes_that_are_left(slurm, tiny, tmp_path):
    run = Run(slurm, tiny, tmp_path / "run", processes_per_node=1, nodes=2, min_nodes=1)
    wait_for(lambda: run.has_trained(SAVE_EVERY + 5), [run])
    with node_down(slurm):
        wait_for(lambda: run.handle.state == "finished", [run])
    first, second = read_attempts(run.folder)
    assert (first.processes, second.processes) == (2, 1)
    assert second.start_step >= SAVE_EVERY
    assert second.restart_cause == "the scheduler queued the job again"
