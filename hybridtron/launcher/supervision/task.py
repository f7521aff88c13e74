"""One task of a job: which rank it is, from the variables of srun or of the local queue."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from hybridtron.errors import UserError

RANK, NUM_TASKS, RUN_ID = "HYBRIDTRON_TASK", "HYBRIDTRON_NUM_TASKS", "HYBRIDTRON_RUN_ID"  # set by the local queue
ECHO = "HYBRIDTRON_ECHO"  # set where rank 0's log is also to be printed


@dataclass(frozen=True)
class Task:
    """One of `num_tasks` tasks. `incarnation` differs between a job and the same job after a requeue."""

    rank: int
    num_tasks: int
    local_rank: int
    node: str
    num_nodes: int
    nodes: str  # all of them, as the scheduler writes them
    address: str  # by which other nodes reach this one
    job_id: str | None
    incarnation: str

    @property
    def place(self) -> str:
        return f"rank {self.rank} on {self.node}"


def this_task(env: Mapping[str, str] = os.environ) -> Task:
    """Return the task that this process is. Raises UserError where no launcher started it."""
    host = socket.gethostname()
    if RANK in env:
        rank, tasks = int(env[RANK]), int(env[NUM_TASKS])
        return Task(rank, tasks, rank, host, 1, host, "127.0.0.1", None, env[RUN_ID])
    if "SLURM_PROCID" not in env or "SLURM_JOB_ID" not in env:
        raise UserError("expected a task that `hybridtron launch` has started: neither SLURM's variables nor its own")
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    nodes, node = env.get("SLURM_STEP_NODELIST", ""), env.get("SLURMD_NODENAME", host)
    return Task(
        rank=int(env["SLURM_PROCID"]),
        num_tasks=int(env["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(env.get("SLURM_LOCALID", "0")),
        node=node,
        num_nodes=int(env.get("SLURM_STEP_NUM_NODES", "1")),
        nodes=nodes,
        address=env.get("MASTER_ADDR") or _address(node, env),
        job_id=job,
        incarnation=f"{job}.{env.get('SLURM_RESTART_COUNT', '0')}",
    )


def _address(node: str, env: Mapping[str, str]) -> str:
    """Return the name of this node where it resolves, else the address that srun was started from."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return env.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostname()
    return node
