"""Submit jobs: check them, snapshot code and config, and give them to SLURM or to this machine."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Sequence
from pathlib import Path

from hybridtron.config.load import dump
from hybridtron.distributed.process_groups.launch import usable_cores
from hybridtron.errors import UserError
from hybridtron.files import replace_file, require_folder
from hybridtron.launcher.allocation import allocation_of
from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.job import Job, Spec
from hybridtron.launcher.private_files import make_folder, private_files
from hybridtron.launcher.schedulers import local, slurm
from hybridtron.launcher.schedulers.handle import Handle
from hybridtron.launcher.snapshot import PACKAGE, copy_code, write_environment
from hybridtron.reporting.numbers import plural
from hybridtron.training.run_folder.folder import LAUNCHER as FOLDERS
from hybridtron.training.run_folder.submitted import SUBMITTED


def submit(
    jobs: Sequence[Job],
    launch: LaunchConfig,
    folder: Path | None = None,
    parallelism: int | None = None,
    echo: bool = False,
) -> list[Handle]:
    """Submit jobs and return a handle for each, in their order.

    Jobs of equal size become one array of SLURM. On this machine they are processes, which end with this one.

    Args:
        jobs: each with a folder of its own.
        launch: where they run.
        folder: for the code of all jobs and their scripts; by default that of the first job.
        parallelism: jobs that may run at once; by default all on SLURM, and here as many as there are cores for.
        echo: print what the first rank of each job prints; on this machine only.

    Raises:
        UserError: where a job does not fit its layout or sbatch refuses it. Jobs submitted before it are
            cancelled.
    """
    if not jobs:
        return []
    if parallelism is not None and parallelism < 1:
        raise UserError(f"parallelism = {parallelism}: expected at least 1")
    folder = (folder or jobs[0].folder).absolute()
    with private_files():
        specs = _prepare(jobs, launch, folder)
        if launch.cluster == "local":
            largest = max(spec.node_counts[-1] * spec.processes_per_node for spec in specs)
            queue = local.LocalQueue(specs, parallelism or max(1, usable_cores() // largest), echo)
            return list(queue.handles)
        return _submit_to_slurm(specs, launch, folder, parallelism)


def dry_run(job: Job, launch: LaunchConfig) -> str:
    """Return what `submit` would start, and write nothing: the script for sbatch, or the processes of this machine.

    Raises UserError as `submit` does, but for what sbatch refuses.
    """
    folder = job.folder.absolute()
    spec = _spec(job, launch, folder / "code" / "DIGEST" if launch.snapshot_code else PACKAGE.parent)
    command = slurm.batch_command(Path(spec.root), spec.launch_folder / "job.json")
    if launch.cluster == "local":
        local.require_gpus(launch.gpus_per_node)
        ranks = spec.node_counts[-1] * spec.processes_per_node
        return (
            f"{plural(ranks, 'supervisor')} on this machine:\n    {command}\n"
            f"each of which starts one rank:\n    {shlex.join(spec.command)}\n"
        )
    slurm.require_usable_path(job.folder)
    return slurm.script(job.name, folder / "launch" / "slurm", launch, spec, command, None)


def _prepare(jobs: Sequence[Job], launch: LaunchConfig, folder: Path) -> list[Spec]:
    """Check all jobs, then write what their processes read."""
    for job in jobs:
        allocation_of(job, launch)
        if launch.cluster == "local":
            local.require_gpus(launch.gpus_per_node)
        if launch.cluster == "slurm":
            slurm.require_usable_path(job.folder)
        for name in FOLDERS:
            require_folder(job.folder / name)
    make_folder(folder)
    root = copy_code(make_folder(folder / "code")) if launch.snapshot_code else PACKAGE.parent
    write_environment(make_folder(folder / "launch"))
    specs = [_spec(job, launch, root) for job in jobs]
    for job, spec in zip(jobs, specs, strict=True):
        for name in ("launch", "logs"):
            make_folder(spec.path / name)
        if job.config is not None:
            config = job.config.model_copy(update={"folder": spec.folder}).with_absolute_paths()
            replace_file(spec.launch_folder / "config.yaml", dump(config))
        spec.write()
    return specs


def _spec(job: Job, launch: LaunchConfig, root: Path) -> Spec:
    allocation, folder = allocation_of(job, launch), job.folder.absolute()
    training = ("train", str(folder / "launch" / "config.yaml"), "--resume")
    return Spec(
        name=job.name,
        folder=str(folder),
        root=str(root),
        arguments=training if job.config is not None else tuple(job.arguments),
        is_training=job.config is not None,
        node_counts=allocation.node_counts,
        processes_per_node=allocation.processes_per_node,
        launch=launch.model_dump(mode="json"),
        launch_id=uuid.uuid4().hex,
    )


def _submit_to_slurm(
    specs: Sequence[Spec], launch: LaunchConfig, folder: Path, parallelism: int | None
) -> list[Handle]:  # fmt: skip
    """Submit jobs of equal size together; return their handles in the order of `specs`."""
    groups: dict[tuple[tuple[int, ...], int], list[Spec]] = {}
    for spec in specs:
        groups.setdefault((spec.node_counts, spec.processes_per_node), []).append(spec)
    found: dict[str, Handle] = {}
    for group in groups.values():
        first = group[0]
        array = (len(group), min(len(group), parallelism or len(group))) if len(group) > 1 else None
        file = first.launch_folder / "job.json"
        if array:
            file = folder / "launch" / f"{slurm.new_name()}.list"
            replace_file(file, "\0".join(str(spec.launch_folder / "job.json") for spec in group))
        command = slurm.batch_command(Path(first.root), file)
        output = folder / "launch" / "slurm"
        try:
            number = slurm.submit_script(first.name, output, launch, first, command, array)
        except UserError as error:
            for handle in found.values():
                handle.cancel()
            refused = {"outcome": "failed", "action": "end", "code": 2, "cause": str(error), "job": ""}
            for spec in group:
                replace_file(spec.launch_folder / "result.json", json.dumps(refused) + "\n")
            raise
        for handle in slurm.handles(group, number, array is not None):
            submitted = {"job": handle.job_id, "output": str(output)}
            replace_file(handle.folder / SUBMITTED, json.dumps(submitted) + "\n")
            found[handle.folder.as_posix()] = handle
    return [found[spec.path.as_posix()] for spec in specs]
