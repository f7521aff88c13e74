"""A private SLURM cluster on this machine: munged, slurmctld and a slurmd for each node, in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hybridtron.distributed.process_groups.launch import signal_at_death_of_parent

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
MUNGE = ("key-file", "socket", "pid-file", "log-file", "seed-file")
SYSTEM = "/usr/sbin:/usr/local/sbin"  # where Debian has the daemons, not in every user's PATH

CONFIG = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
DebugFlags=NO_CONF_HASH
GresTypes=seat
MinJobAge=600
KillWait=20
SlurmdTimeout=60
SlurmctldTimeout=60
InactiveLimit=0
Waittime=0
"""


def missing_programs() -> list[str]:
    """The programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{SYSTEM}"


@dataclass
class Cluster:
    """Running daemons. `environment` lets programs of SLURM find them.

    Each node has one seat, a resource for which jobs can compete whatever else is free.
    """

    folder: Path
    nodes: list[str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": search_path()}

    def call(self, *command: str, check: bool = True) -> str:
        """Run a program of SLURM and return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """The state of each job, such as PENDING (BeginTime)."""
        lines = self.call("squeue", "--noheader", "--array", "--states=all", "--format=%i %T (%r)").splitlines()
        return {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}

    def release(self, job: str) -> None:
        """Start a requeued job now, which SLURM would let wait for two minutes."""
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def start(self, *command: str) -> None:
        """Start a daemon, which Linux ends with this process, whatever ends that."""
        name = command[-1] if command[0] == "slurmd" else command[0]
        self.daemons[name] = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: signal_at_death_of_parent(signal.SIGTERM),
        )

    def stop(self, name: str) -> None:
        """End a daemon."""
        if daemon := self.daemons.pop(name, None):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node as after a reboot: it would take sockets of earlier steps for steps that run, and
        SLURM would end the job's next start, whose steps have the same numbers."""
        for stale in (self.folder / f"spool.{node}").glob(f"{node}_*"):
            stale.unlink()
        self.start("slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def cancel_all(self) -> None:
        """End all jobs, and wait until their processes are gone."""
        deadline = time.monotonic() + 240
        while (
            jobs := self.call("squeue", "--noheader", "--format=%A", check=False).split()
        ) and time.monotonic() < deadline:
            for job in jobs:
                self.call("scancel", "--signal=KILL", "--full", job, check=False)
                self.call("scancel", job, check=False)
            time.sleep(0.2)

    def wait_until_idle(self) -> None:
        """Wait until all nodes take jobs."""
        deadline = time.monotonic() + 240
        while len(self.call("sinfo", "-hNp", "main", "-t", "idle", "-o", "%N", check=False).split()) < len(self.nodes):
            assert time.monotonic() < deadline, self.call("sinfo", "-N", "-l", check=False)
            time.sleep(0.05)


def wait_for_file(file: Path) -> None:
    deadline = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} has not appeared"
        time.sleep(0.02)


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextlib.contextmanager
def running_cluster(folder: Path, nodes: int = 2, cpus: int = 16) -> Iterator[Cluster]:
    """Start a cluster in an empty folder, and end its daemons and their jobs at the end of the block."""
    cluster = Cluster(folder, [f"node{index}" for index in range(nodes)])
    host = socket.gethostname().partition(".")[0]
    port, *node_ports = free_ports(1 + nodes)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    lines = [CONFIG.format(folder=folder, host=host, port=port, user=getpass.getuser())]
    for node, node_port in zip(cluster.nodes, node_ports, strict=True):
        (folder / f"spool.{node}").mkdir()
        address = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port}"
        lines.append(f"NodeName={node} {address} CPUs={cpus} RealMemory=4000 Gres=seat:1 State=UNKNOWN")
    names = ",".join(cluster.nodes)
    for name, tier, more in (
        ("main", 5, "Default=YES PreemptMode=OFF"),
        ("low", 1, "PreemptMode=REQUEUE GraceTime=30"),
        ("high", 10, "PreemptMode=OFF"),
    ):
        lines.append(f"PartitionName={name} Nodes={names} MaxTime=INFINITE State=UP PriorityTier={tier} {more}")
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(cluster.stop, "munged")
        cluster.start(
            "munged",
            "--foreground",
            "--force",
            "--num-threads=1",
            *(f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in MUNGE),
        )
        wait_for_file(folder / "munge.socket")
        at_the_end.callback(cluster.stop, "slurmctld")
        cluster.start("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for node in cluster.nodes:
            at_the_end.callback(cluster.stop, node)
            cluster.start_node(node)
        cluster.wait_until_idle()
        at_the_end.callback(cluster.cancel_all)
        yield cluster
