"""Which process of how many this is, read from the environment that the launcher set."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from hybridtron.errors import UserError


@dataclass(frozen=True)
class Environment:
    """One process of a job.

    `init_method` is torch.distributed's, or publish://FILE: rank 0 listens on a free port and writes where into the
    file. None: a single process without peers.
    """

    rank: int
    world_size: int
    local_rank: int
    init_method: str | None
    launcher: str
    collective_seconds: float = 600.0  # longest time of one operation between processes
    address: str = "127.0.0.1"  # of this process, for publish://


def read_environment(env: Mapping[str, str] = os.environ) -> Environment:
    """Recognise `--nproc` and torchrun (RANK, WORLD_SIZE, ...), then a SLURM job step, else one process.

    Raises UserError when a launcher's variables are incomplete or not numbers.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        if rank >= world_size:
            raise UserError(f"environment variable RANK = {rank}: expected less than WORLD_SIZE {world_size}")
        method = env.get("HYBRIDTRON_RENDEZVOUS", "env://")
        if method == "env://":
            _require(env, "MASTER_ADDR", "MASTER_PORT")
            _number(env, "MASTER_PORT")
        seconds = float(env.get("HYBRIDTRON_COLLECTIVE_SECONDS", Environment.collective_seconds))
        own = env.get("HYBRIDTRON_ADDRESS", Environment.address)
        return Environment(rank, world_size, _number(env, "LOCAL_RANK", rank), method, "torchrun", seconds, own)
    # Inside a batch script, before srun, SLURM names a job but no step: that is one process.
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        world_size = _number(env, "SLURM_STEP_NUM_TASKS")
        if world_size == 1:
            return Environment(0, 1, 0, None, "slurm")
        address = env.get("MASTER_ADDR") or _first_node(env) or env.get("SLURM_LAUNCH_NODE_IPADDR")
        if not address:
            raise UserError("SLURM: neither MASTER_ADDR nor SLURM_LAUNCH_NODE_IPADDR is set; expected one address")
        # A step of its own port: a requeued job must not meet processes of its former life.
        port = env.get("MASTER_PORT") or str(20000 + (_number(env, "SLURM_JOB_ID") * 7 + _step(env)) % 20000)
        method = f"tcp://{address}:{port}"
        return Environment(_number(env, "SLURM_PROCID"), world_size, _number(env, "SLURM_LOCALID", 0), method, "slurm")
    return Environment(0, 1, 0, None, "single")


def _first_node(env: Mapping[str, str]) -> str | None:
    """Return the node of rank 0, where its name resolves: srun may have been started on another one."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", env.get("SLURM_STEP_NODELIST", ""))
    if not found:
        return None
    name = found[1] + (found[2] or "")
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return None
    return name


def _step(env: Mapping[str, str]) -> int:
    return int(env["SLURM_STEP_ID"]) if env["SLURM_STEP_ID"].isdigit() else 0


def _require(env: Mapping[str, str], *names: str) -> None:
    for name in names:
        if not env.get(name):
            raise UserError(f"{name} is not set; expected it beside RANK and WORLD_SIZE (as torchrun sets it)")


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()):
        raise UserError(f"environment variable {name} = {text!r}: expected a whole number")
    return int(text)
