"""What saving costs a run, at one and at eight processes of this machine.

    python benchmarks/checkpoint.py [--steps 50] [--json FILE]

Blocks of ten steps with one save and without take turns, so that other load of the machine meets both. The cost is what
a block with a save takes longer than its neighbour without, over the time of that neighbour; medians, as the last save
of a block ends in it or is waited for. The rate is that of one save alone, staged, checksummed, written and synced,
beside `cp` and `sync` of a file of as many bytes on the same disk. Memory is what the saves add to the peak of a
process, beside the bytes of its staging buffer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.config.load import build
from hybridtron.distributed.process_groups.environment import Environment, read_environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.distributed.process_groups.launch import launch
from hybridtron.training.build import build_engine
from hybridtron.training.checkpointing.saver import Saver
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.train_state import TrainState
from hybridtron.training.validation.resolve import data_parallel_size, resolve

BLOCK = 10  # steps
LAYOUTS: dict[int, dict[str, Any]] = {1: {}, 8: {"distributed_optimizer": True, "tensor": 2}}


def config_of(processes: int, folder: Path) -> RunConfig:
    width = 256 if processes == 1 else 128
    blocks = {"attn": {"type": "attention", "num_heads": 4}, "mlp": {"type": "swiglu", "ffn_hidden_size": 3 * width}}
    model = {"hidden_size": width, "vocab_size": 320, "blocks": blocks, "pattern": "attn mlp attn mlp attn mlp"}
    data = {"train": "none", "seq_len": 256, "tokenizer": "byte"}
    train = {"steps": 10**6, "global_batch_size": 8}
    sections = {"name": "checkpoint", "folder": str(folder), "model": model, "data": data, "train": train}
    return resolve(build({**sections, "parallel": LAYOUTS[processes], "optimizer": {"lr": 1e-4}}, RunConfig))


def worker(processes: int, steps: int, folder: Path) -> None:
    """One process; the first writes what it measured."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    config = config_of(processes, folder / "run")
    here = read_environment() if processes > 1 else Environment(0, 1, 0, None, "single")
    with process_groups(config.parallel, here) as parallel_context:
        engine, _ = build_engine(config, parallel_context)
        share = config.train.global_batch_size // data_parallel_size(config, processes)
        text = torch.randint(256, (share, config.data.seq_len + 1))
        batch = [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in text.split(1)]
        run = RunFolder(config.run_folder)
        if parallel_context.is_main:
            run.path.mkdir()
        saver = Saver(config, engine, run, print, lambda state: None)
        step = 0

        def block(saves: bool) -> float:
            nonlocal step
            began = time.perf_counter()
            for index in range(BLOCK):
                engine.train_step(batch, 1e-4)
                saver.poll()
                step += 1
                if saves and index == 0:
                    saver.save(TrainState(step), is_last=False)
            saver.finish()
            return time.perf_counter() - began

        block(saves=False)
        before = peak_bytes()
        block(saves=True)  # plans, and touches the buffer
        added = peak_bytes() - before
        pairs = []
        for turn in range(steps // BLOCK):
            order = (True, False) if turn % 2 else (False, True)
            seconds = {saves: block(saves) for saves in order}
            pairs.append((seconds[False], seconds[True]))
        alone = []
        for _ in range(3):
            dist.barrier()
            began = time.perf_counter()
            step += 1
            saver.save(TrainState(step), is_last=True)
            alone.append(time.perf_counter() - began)
        assert saver.writer.buffer is not None
        mine = {"added": added, "buffer": saver.writer.buffer.numel()}
        everyone: list[Any] = [None] * processes
        dist.all_gather_object(everyone, mine)
        if parallel_context.is_main:
            found = {"pairs": pairs, "alone": alone, "memory": everyone}
            (folder / "found.json").write_text(json.dumps(found))


def peak_bytes() -> int:
    """Return the largest memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def copy_seconds(folder: Path, size: int) -> float:
    """Return the seconds of cp and sync of a file of so many bytes: the median of three."""
    source, target = folder / "source", folder / "target"
    with source.open("wb") as file:
        for _ in range(0, size, 1 << 20):
            file.write(os.urandom(1 << 20))
    seconds = []
    for _ in range(3):
        target.unlink(missing_ok=True)
        began = time.perf_counter()
        subprocess.run(["cp", source, target], check=True)
        subprocess.run(["sync", target], check=True)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure(processes: int, steps: int, parent: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--worker", str(processes), "--steps", str(steps), "--folder", name]
        if launch(command, processes):
            raise SystemExit(f"{processes} processes: one of them failed")
        found = json.loads((folder / "found.json").read_text())
        size = sum(each["buffer"] for each in found["memory"])
        shutil.rmtree(folder / "run")
        copied = copy_seconds(folder, size)
    costs = [(saved - plain) / plain for plain, saved in found["pairs"]]
    return {
        "checkpoint_bytes": size,
        "ms_per_step": 1000 * statistics.median(plain for plain, _ in found["pairs"]) / BLOCK,
        "cost": statistics.median(costs),
        "costs": costs,
        "save_MB_per_s": size / 1e6 / statistics.median(found["alone"]),
        "cp_MB_per_s": size / 1e6 / copied,
        "added_peak_bytes": max(each["added"] for each in found["memory"]),
        "staging_buffer_bytes": max(each["buffer"] for each in found["memory"]),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="with saves, and as many without")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--disk", type=Path, help="a folder on the disk to measure; by default that of temporary files")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.steps, options.folder)
        return
    conditions: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    conditions |= {"cores": os.cpu_count(), "load": os.getloadavg()}
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, every {BLOCK} steps")
    titles = ("processes", "MB", "ms a step", "cost", "save MB/s", "cp MB/s", "added MB", "buffer MB")
    print("".join(f"{title:>11}" for title in titles))
    rows = {}
    for processes in LAYOUTS:
        row = rows[processes] = measure(processes, options.steps, options.disk)
        sizes = (row["save_MB_per_s"], row["cp_MB_per_s"], row["added_peak_bytes"] / 1e6)
        print(
            f"{processes:11}{row['checkpoint_bytes'] / 1e6:11.1f}{row['ms_per_step']:11.0f}{row['cost']:11.1%}"
            + "".join(f"{size:11.1f}" for size in (*sizes, row["staging_buffer_bytes"] / 1e6)),
            flush=True,
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**conditions, "processes": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
