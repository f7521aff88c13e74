"""Step time and bytes sent by layout, of one small hybrid with experts, over processes of this machine.

    python benchmarks/parallel.py [--steps 7] [--json FILE]

On two cores, processes share what one process would have: the table shows what a layout costs, not what it gains. Each
process computes on one thread. A step is the whole global batch: forward, backward, reduction, clipping, AdamW. Times
are medians over the steps after two of warm-up. Bytes are those that all processes together send in a step, counted
by a dry run of the same layout with ring algorithms (`hybridtron plan --dry-run`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.config.load import build
from hybridtron.distributed.process_groups.environment import Environment, read_environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.distributed.process_groups.launch import launch
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import data_parallel_size, resolve

SEQ_LEN, GLOBAL_BATCH, WARM_UP = 128, 8, 2
MODEL: dict[str, Any] = {
    "hidden_size": 128,
    "vocab_size": 320,
    "blocks": {
        "mamba": {"type": "mamba2", "head_dim": 32, "state_dim": 32, "num_groups": 4},
        "attn": {"type": "attention", "num_heads": 4},
        "mlp": {"type": "swiglu", "ffn_hidden_size": 384},
        "moe": {"type": "moe", "num_experts": 4, "top_k": 2, "ffn_hidden_size": 192},
    },
    "pattern": "mamba mlp mamba moe attn mlp mamba moe",
}
SP, DO = {"tensor": 2, "sequence": True}, {"distributed_optimizer": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "data 2": (2, {}),
    "data 2, distributed optimizer": (2, DO),
    "tensor 2, sequence": (2, SP),
    "context 2": (2, {"context": 2}),
    "pipeline 2": (2, {"pipeline": 2}),
    "pipeline 2 x 2 interleaved": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "expert 2": (2, {"expert": 2}),
    "full recomputation": (1, {"recompute": "full"}),
    "tensor 2, pipeline 2": (4, {**SP, "pipeline": 2}),
    "tensor 2, expert 2, data 2": (4, {**SP, "expert": 2, **DO}),
}


def config_of(parallel: dict[str, Any]) -> RunConfig:
    train = {"steps": 1, "global_batch_size": GLOBAL_BATCH, "micro_batch_size": 1}
    data = {"train": "none", "seq_len": SEQ_LEN, "tokenizer": "byte"}
    sections = {"name": "parallel", "model": MODEL, "train": train, "data": data, "parallel": parallel}
    return resolve(build({**sections, "optimizer": {"lr": 1e-3}}, RunConfig))


def worker(name: str, steps: int, folder: Path) -> None:
    """One process of a layout; the first writes the seconds of each step."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    processes, parallel = LAYOUTS[name]
    here = read_environment() if processes > 1 else Environment(0, 1, 0, None, "single")
    config = config_of(parallel)
    share = GLOBAL_BATCH // data_parallel_size(config, processes)
    with process_groups(config.parallel, here) as parallel_context:
        engine, _ = build_engine(config, parallel_context)
        text = torch.randint(
            256, (share, SEQ_LEN + 1), generator=torch.Generator().manual_seed(parallel_context.data_rank)
        )
        batch = [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in text.split(1)]
        seconds = []
        for _ in range(WARM_UP + steps):
            began = time.perf_counter()
            engine.train_step(batch, 1e-3)
            seconds.append(time.perf_counter() - began)
        if parallel_context.is_main:
            (folder / "seconds.json").write_text(json.dumps(seconds[WARM_UP:]))


def measure(name: str, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", name, "--steps", str(steps), "--folder", folder]
        if launch(command, LAYOUTS[name][0]):
            raise SystemExit(f"{name}: a process failed")
        return statistics.median(json.loads((Path(folder) / "seconds.json").read_text()))


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.steps, options.folder)
        return
    from hybridtron.planner.plan import plan

    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {GLOBAL_BATCH} x {SEQ_LEN} tokens a step, micro-batches of 1, float32")
    print(f"overhead, not speed-up: all processes share the {os.cpu_count()} cores of this machine")
    print(f"{'layout':32}{'processes':>10}{'ms a step':>11}{'tokens/s':>10}{'to one':>8}  sent a step")
    rows: dict[str, dict[str, Any]] = {}
    for name, (processes, parallel) in LAYOUTS.items():
        seconds = measure(name, options.steps)
        sent = plan(config_of(parallel), processes, dry_run=True).sent_bytes_per_step or {}
        first = rows["one process"]["seconds_per_step"] if rows else seconds
        rows[name] = {"processes": processes, "seconds_per_step": seconds, "sent_bytes_per_step": sent}
        kinds = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in sorted(sent.items(), key=lambda kv: -kv[1]))
        print(
            f"{name:32}{processes:10}{1000 * seconds:11.0f}{GLOBAL_BATCH * SEQ_LEN / seconds:10.0f}"
            f"{seconds / first:8.2f}  {sum(sent.values()) / 2**20:6.1f} MiB{f' ({kinds})' if kinds else ''}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "layouts": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
