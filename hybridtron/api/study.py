"""What a model is and what a layout costs, without building either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron.api.configs import Config, read_model_config, read_training_config
from hybridtron.planner import GPUS_PER_NODE

if TYPE_CHECKING:
    from hybridtron.accounting.describe import Account
    from hybridtron.planner.dry_run import Device
    from hybridtron.planner.plan import Plan


def describe(config: Config, *overrides: str) -> Account:
    """Count parameters, FLOPs per token and state of a model, layer by layer.

    Args:
        config: a YAML file, a run folder, a dict, or a pattern of layers such as `2*(mamba mlp) attn mlp`.
        overrides: `key=value`, such as `data.seq_len=4096`.
    """
    from hybridtron.accounting import picture  # noqa: F401  # registers how an account is printed
    from hybridtron.accounting.describe import describe

    resolved = read_model_config(config, *overrides)
    return describe(resolved.model, resolved.data.seq_len, resolved.name)


def plan(
    config: Config,
    *overrides: str,
    gpus: int,
    dry_run: bool = False,
    device: Device = "gpu",
    memory_gib: float = 80.0,
    overhead_gib: float | None = None,
    disk_gb_per_s: float | None = None,
    table: Path | str | None = None,
    gpus_per_node: int = GPUS_PER_NODE,
) -> Plan:
    """Work out stages, memory and traffic of a config's layout on `gpus` processes.

    Args:
        config: a YAML file or a dict with all sections of a run.
        overrides: `key=value`, such as `parallel.tensor=4`.
        gpus: processes in all.
        dry_run: build every distinct stage without values, run it, and count activations and what is sent.
        device: "gpu" or "cpu": where the run will be; ops keep other tensors on a GPU than on a CPU.
        memory_gib: the memory of one process's GPU, to which the total is compared.
        disk_gb_per_s: rate in 10^9 bytes per second at which all processes together write a checkpoint.
        overhead_gib: memory beside tensors (CUDA context, buffers of NCCL); by default 2 on a GPU, 0.5 on a CPU.
        table: layers.csv of `measure_efficiency`, whose measured times stand in place of FLOPs.
        gpus_per_node: processes of a node, for its pinned CPU memory.

    Raises:
        UserError: where the layout does not fit the model or the number of processes.
    """
    from hybridtron.errors import UserError
    from hybridtron.planner import show  # noqa: F401  # registers how a plan is printed
    from hybridtron.planner.memory import Capacity
    from hybridtron.planner.plan import plan

    for key, number in {"gpus": gpus, "gpus_per_node": gpus_per_node}.items():
        if not isinstance(number, int) or number < 1:
            raise UserError(f"{key} = {number!r}: expected a whole number of at least 1")
    capacity = Capacity.of(device, memory_gib, overhead_gib)
    measured = None if table is None else Path(table)
    resolved = read_training_config(config, *overrides)
    return plan(resolved, gpus, dry_run, capacity, disk_gb_per_s, measured, gpus_per_node)
