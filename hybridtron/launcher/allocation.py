"""Nodes and processes of a job, from its layout and the launch file."""

from __future__ import annotations

from dataclasses import dataclass

from hybridtron.errors import UserError
from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.job import Job
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import data_parallel_size


@dataclass(frozen=True)
class Allocation:
    """What a job asks for. `node_counts` are the numbers of nodes it can run on, largest last."""

    node_counts: tuple[int, ...]
    processes_per_node: int

    @property
    def nodes(self) -> int:
        return self.node_counts[-1]

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node


def allocation_of(job: Job, launch: LaunchConfig) -> Allocation:
    """Return the nodes and processes of a job. Raises UserError where they do not fit."""
    if job.config is not None:
        return allocate(job.config, launch)
    per_node = min(job.processes, launch.processes_per_node)
    if launch.cluster == "local":
        return Allocation((1,), job.processes)
    if job.processes % per_node:
        raise UserError(f"processes = {job.processes}: expected a multiple of processes_per_node {per_node}")
    return Allocation((job.processes // per_node,), per_node)


def allocate(config: RunConfig, launch: LaunchConfig) -> Allocation:
    """Return the allocation of a training run. Raises UserError where it does not fit the layout or the batch."""
    parallel, per_node = config.parallel, launch.processes_per_node
    nodes = launch.nodes
    if nodes is None:
        wanted = parallel.model_size * (parallel.data or 1)
        if launch.cluster == "local" or wanted < per_node:
            if wanted > per_node or (parallel.data and wanted != per_node):
                raise UserError(
                    f"processes_per_node = {per_node}: expected {wanted}, as the layout (tensor x context x pipeline x "
                    "data) needs"
                )
            nodes = 1
        elif wanted % per_node:
            raise UserError(
                f"processes_per_node = {per_node}: expected a divisor of the {wanted} processes of the layout "
                "(tensor x context x pipeline x data)"
            )
        else:
            nodes = wanted // per_node
    data_parallel_size(config, nodes * per_node, f"nodes {nodes} x processes_per_node {per_node}")
    smallest = nodes if launch.min_nodes is None else launch.min_nodes
    if smallest > nodes:
        raise UserError(f"min_nodes = {smallest}: expected at most {nodes}, the nodes of the job")
    return Allocation(_possible(config, smallest, nodes, per_node), per_node)


def _possible(config: RunConfig, smallest: int, largest: int, per_node: int) -> tuple[int, ...]:
    """Return the numbers of nodes that layout and batch divide over. Raises UserError where `smallest` is not one."""
    counts, refusal = [], ""
    for nodes in range(smallest, largest + 1):
        try:
            data_parallel_size(config, nodes * per_node)
        except UserError as error:
            refusal = refusal or str(error)
        else:
            counts.append(nodes)
    if counts[0] != smallest:
        raise UserError(
            f"min_nodes = {smallest}: the job could not go on with so few ({refusal}); expected one of "
            f"{', '.join(map(str, counts))}"
        )
    return tuple(counts)
