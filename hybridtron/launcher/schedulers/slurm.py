"""Jobs of a SLURM cluster: the batch script, by submitit, and what becomes of them, by squeue."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.job import Spec, python_from
from hybridtron.launcher.private_files import make_folder
from hybridtron.launcher.schedulers.handle import Handle, State
from hybridtron.training.run_folder.unrecorded_end import end_without_result

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
CACHED_SECONDS = 1.0  # for which one answer of squeue serves all jobs
STATES: dict[str, State] = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED"), "pending"),
    **dict.fromkeys(("RUNNING", "CONFIGURING", "COMPLETING", "STOPPED", "RESIZING", "SIGNALING"), "running"),
    "CANCELLED": "cancelled",
}  # all others: the job is over
# What SLURM replaces in the names of output files, and what cannot stand in a line of a script.
UNUSABLE = re.compile(r"[%\\\x00-\x1f\x7f]")


@dataclass
class SlurmHandle(Handle):
    queue: SlurmQueue

    @property
    def state(self) -> State:
        outcome = self.result.get("outcome")
        if outcome in ("finished", "failed"):
            return outcome
        queued = self.queue.state(self.job_id)  # a job that has stopped may have been put back into the queue
        return "stopped" if outcome and queued not in ("pending", "running") else queued

    @property
    def cause(self) -> str:
        """Return why a job failed, in words."""
        recorded = self.result.get("cause")
        return str(recorded) if recorded else end_without_result(self.folder)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code. Raises TimeoutError."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.state in ("pending", "running"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {self.job_id} is {self.state} after {timeout:g} s")
            time.sleep(POLL_SECONDS)
        return int(self.result.get("code", 1))

    def cancel(self) -> None:
        subprocess.run(["scancel", self.job_id], capture_output=True, stdin=subprocess.DEVNULL)


@dataclass
class SlurmQueue:
    """What squeue says of the jobs that were submitted together."""

    ids: list[str] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    asked_at: float = float("-inf")

    def state(self, job_id: str) -> State:
        """Return the state of a job; failed where the queue no longer has it."""
        if time.monotonic() - self.asked_at > CACHED_SECONDS:
            jobs = ",".join(sorted({job.partition("_")[0] for job in self.ids}))
            command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={jobs}"]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode and "Invalid job id" not in done.stderr:  # the controller may be away for a while
                logger.warning("squeue: %s", done.stderr.strip())
                return STATES.get(self.found.get(job_id, "PENDING"), "running")
            self.found = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
            self.asked_at = time.monotonic()
        name = self.found.get(job_id)
        return "failed" if name is None else STATES.get(name, "failed")


def require_usable_path(folder: Path) -> None:
    """Raise UserError for a path that cannot stand in a batch script as the name of an output file."""
    if UNUSABLE.search(str(folder.absolute())):
        raise UserError(
            f"folder = {str(folder)!r}: expected a path without %, \\ and control characters, which SLURM takes for "
            "something else in the names of output files"
        )


def batch_command(root: Path, file: Path) -> str:
    """Return what each task runs, as shell text: a supervisor of the job in `file`."""
    return shlex.join(python_from(root, "launcher.main", str(file)))


def script(
    name: str, folder: Path, launch: LaunchConfig, spec: Spec, command: str, array: tuple[int, int] | None
) -> str:
    """Return the batch script; `array` is the number of jobs, and of those that may run at once."""
    from submitit.slurm.slurm import _make_sbatch_string

    options = parameters(name, launch, spec)
    if array:
        options |= {"map_count": array[0], "array_parallelism": array[1]}
    return str(_make_sbatch_string(command=command, folder=folder, **options))


def submit_script(
    name: str, folder: Path, launch: LaunchConfig, spec: Spec, command: str, array: tuple[int, int] | None
) -> str:
    """Submit a script by submitit; return the job's number. Raises UserError where sbatch refuses it."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    make_folder(folder)
    try:
        executor = SlurmExecutor(folder=folder)
        executor.update_parameters(**parameters(name, launch, spec))
        if array:
            executor.parameters |= {"map_count": array[0], "array_parallelism": array[1]}
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch says, which the error below has
            return str(executor._submit_command(command).job_id)
    except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
        lines = [re.sub("^(sbatch: )?(error: )?", "", line.strip()) for line in str(error).splitlines()]
        raise UserError(
            f"sbatch: {'; '.join(line for line in lines if line and not line.startswith('Try '))}"
        ) from None


def parameters(name: str, launch: LaunchConfig, spec: Spec) -> dict[str, Any]:
    """Return submitit's parameters of a job."""
    counts, per_node, cpus = spec.node_counts, spec.processes_per_node, launch.cpus_per_process
    more: dict[str, Any] = {"nodes": counts[-1], "ntasks-per-node": per_node, "cpus-per-task": cpus}
    if len(counts) > 1:  # with tasks given, SLURM counts those of the fewest nodes, and gives no more nodes than tasks
        more = {"nodes": f"{counts[0]}-{counts[-1]}", "mincpus": per_node * (cpus or 1)}
    # srun takes the cores of a task from its own options alone, since SLURM 22.05
    srun = [f"--ntasks-per-node={per_node}", *([f"--cpus-per-task={cpus}"] if cpus else []), *launch.srun]
    if launch.container_image:
        srun.append(f"--container-image={launch.container_image}")
    if launch.container_mounts:
        srun.append(f"--container-mounts={launch.container_mounts}")
    return {
        "job_name": re.sub(r"[^A-Za-z0-9._-]", "_", name),
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        "time": launch.time_minutes,
        "nodes": counts[-1],
        "gpus_per_node": launch.gpus_per_node or None,
        "mem": None if launch.memory_gb is None else f"{launch.memory_gb}G",
        "exclusive": launch.exclusive or None,
        "signal_delay_s": launch.save_seconds,
        "wckey": None,
        "setup": list(launch.setup) or None,
        "additional_parameters": {
            **{key: value for key, value in more.items() if value is not None},
            "requeue": True,
            **launch.sbatch,
        },
        "srun_args": srun,
        "stderr_to_stdout": True,
    }


def new_name() -> str:
    """Return a name that no other submission has."""
    return uuid.uuid4().hex[:12]


def handles(specs: Sequence[Spec], number: str, is_array: bool) -> list[SlurmHandle]:
    """Return the handles of jobs that were submitted together."""
    queue = SlurmQueue([f"{number}_{index}" if is_array else number for index in range(len(specs))])
    return [SlurmHandle(spec.name, spec.path, job, queue) for spec, job in zip(specs, queue.ids, strict=True)]
