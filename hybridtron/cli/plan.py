"""`hybridtron plan`: stages, memory and traffic of a layout."""

from __future__ import annotations

import argparse

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument
from hybridtron.cli.output import print_result
from hybridtron.planner import GPUS_PER_NODE

SUMMARY = "stages, memory, traffic and checkpoints of a config's layout on any number of processes"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb)
    verb.add_argument("--gpus", type=int, required=True, metavar="N", help="processes in all")
    verb.add_argument("--dry-run", action="store_true", help="build every distinct stage without values and run it")
    verb.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="where the run will be (default: %(default)s)"
    )
    verb.add_argument(
        "--memory-gib", type=float, default=80.0, metavar="GIB", help="memory of one GPU (default: %(default)g)"
    )
    verb.add_argument(
        "--overhead-gib",
        type=float,
        metavar="GIB",
        help="memory beside tensors: CUDA context, buffers of NCCL (default: 2 on a GPU, 0.5 on a CPU)",
    )
    verb.add_argument(
        "--gpus-per-node",
        type=int,
        default=GPUS_PER_NODE,
        metavar="N",
        help="processes of a node, for its pinned CPU memory (default: %(default)d)",
    )
    verb.add_argument(
        "--disk-gb-per-s",
        type=float,
        metavar="RATE",
        help="10^9 bytes per second that all processes together write to disk, for the time of a checkpoint",
    )
    verb.add_argument(
        "--table", metavar="FILE", help="layers.csv of hybridtron efficiency --by-block: measured times for FLOPs"
    )
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the plan of a config on --gpus processes."""
    from hybridtron.api.study import plan

    made = plan(
        options.config,
        *options.overrides,
        gpus=options.gpus,
        dry_run=options.dry_run,
        device=options.device,
        memory_gib=options.memory_gib,
        overhead_gib=options.overhead_gib,
        disk_gb_per_s=options.disk_gb_per_s,
        table=options.table,
        gpus_per_node=options.gpus_per_node,
    )
    print_result(made, options.json)
    return 0
