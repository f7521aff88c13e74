"""The launch file: where a job runs, what it asks for, and when it is restarted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from hybridtron.config.load import load
from hybridtron.config.schema import Strict, problem
from hybridtron.files import as_path
from hybridtron.launcher.environment_variables import looks_secret

Launch = str | os.PathLike[str] | dict[str, object]


def _word(text: str) -> str:
    """Return text that is one word on a command line of SLURM."""
    if not re.fullmatch(r"[^\s\x00-\x1f\x7f'\"\\$`;&|<>]+", text):
        raise problem("", text, "one word, without spaces, quotes and signs that a shell reads")
    return text


def _line(text: str) -> str:
    """Return text without line ends and control characters."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise problem("", text, "text of one line, without control characters")
    return text


SLURM_ALONE = (
    "memory_gb", "exclusive", "partition", "account", "qos", "constraint", "time_minutes", "sbatch", "srun", "setup",
    "container_image", "container_mounts",
)  # fmt: skip

Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]


class LaunchConfig(Strict):
    """Where a job runs and how it stays alive."""

    cluster: Literal["local", "slurm"] = Field("local", description="local: processes on this machine. slurm: sbatch.")

    nodes: int | None = Field(
        None, ge=1, description="Nodes of a job; by default as many as tensor x context x pipeline x data need."
    )
    min_nodes: int | None = Field(
        None, ge=1, description="Nodes that a job may go on with, where some are lost; by default all of `nodes`."
    )
    processes_per_node: int = Field(1, ge=1, description="Processes on each node: one for each GPU.")
    gpus_per_node: int = Field(0, ge=0, description="GPUs to ask for on each node; 0: none are asked for.")
    cpus_per_process: int | None = Field(None, ge=1, description="CPU cores of each process.")
    memory_gb: int | None = Field(None, ge=1, description="Memory of each node in GB; by default the partition's.")
    exclusive: bool = Field(False, description="Share no node with other jobs.")

    partition: Word | None = Field(None, description="Partition of the cluster; by default its own default.")
    account: Word | None = Field(None, description="Account that the time is charged to.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Line | None = Field(None, description="Features that nodes must have.")
    time_minutes: int | None = Field(None, ge=1, description="Time limit; the job saves and is queued again before it.")
    save_seconds: int = Field(
        120, ge=1, description="Seconds before the time limit at which the job saves; also the longest that may take."
    )
    sbatch: dict[Word, Line | int | bool] = Field(
        {}, description="Further options of sbatch, without the dashes, such as {reservation: week12}."
    )
    srun: tuple[Line, ...] = Field((), description="Further arguments of srun, such as --cpu-bind=cores.")
    setup: tuple[str, ...] = Field((), description="Lines of shell that run on the first node before the job.")
    container_image: Line | None = Field(None, description="Image for srun --container-image (pyxis).")
    container_mounts: Line | None = Field(None, description="Mounts for srun --container-mounts, such as /data:/data.")

    environment: dict[Word, Line] = Field({}, description="Variables that every process gets.")
    snapshot_code: bool = Field(True, description="Copy the package into the run folder, and run from the copy.")

    start_seconds: float = Field(
        1800.0, gt=0, description="Longest time until the first step is done; also of the end, after the last one."
    )
    heartbeat_seconds: float = Field(
        900.0, gt=0, description="Longest time without a sign of progress: longer than a step, evaluation or save."
    )
    collective_seconds: float = Field(600.0, gt=0, description="Longest time of one operation between processes.")
    max_restarts: int = Field(3, ge=0, description="Restarts after failures within restart_window_hours.")
    restart_window_hours: float = Field(24.0, gt=0, description="Hours in which max_restarts are counted.")

    @field_validator("environment")
    @classmethod
    def _names_of_variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise problem(name, value, "a name of letters, digits and _")
            if looks_secret(name):  # the value is not printed either
                raise problem(
                    name, "...", "no secret, as it would be copied into run folders: set it in the shell that submits"
                )
        return environment

    @model_validator(mode="after")
    def _agrees(self) -> LaunchConfig:
        if self.gpus_per_node not in (0, self.processes_per_node):
            raise problem("gpus_per_node", self.gpus_per_node, f"processes_per_node {self.processes_per_node}, or 0")
        if self.nodes is not None and self.min_nodes is not None and self.min_nodes > self.nodes:
            raise problem("min_nodes", self.min_nodes, f"at most nodes {self.nodes}")
        if self.cluster == "local" and (self.nodes or 1) > 1:
            raise problem("nodes", self.nodes, "1 with cluster local")
        if self.cluster == "local":
            for key in SLURM_ALONE:
                if value := getattr(self, key):
                    raise problem(key, value, "it only with cluster slurm")
        if self.time_minutes and self.save_seconds >= 60 * self.time_minutes:
            raise problem("save_seconds", self.save_seconds, f"less than time_minutes {self.time_minutes}")
        return self


def read_launch(launch: Launch | LaunchConfig, overrides: Sequence[str] = ()) -> LaunchConfig:
    """Read a launch file, or a dict like one. Raises UserError, one line for each key that is wrong."""
    if isinstance(launch, LaunchConfig):
        return launch
    return load(
        launch if isinstance(launch, dict) else as_path(launch, "launch", "the path of a launch file, or a dict"),
        overrides,
        LaunchConfig,
    )
