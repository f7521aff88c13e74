"""Tokens per second that the loaders of training batches read (data.loader), without training.

    make .venv/dev
    .venv/bin/python benchmarks/data_loader.py [--repeats 5] [--json FILE]

Token files of 200 MB (uint16) in the page cache, sequences of 2048 tokens, micro-batches of 16, one rank, batches on
the CPU, one thread each. The loaders take turns; the median of the repeats is printed, by the clock and by the
processor time of the process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.data.datasets.indexed_dataset import bin_path, idx_path, write_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.loader import Loader, make_loader
from hybridtron.data.loaders.sampler import BatchSampler

TOKENS, SEQ_LEN, MICRO_BATCH, STEPS = 100_000_000, 2048, 16, 50
LOADERS = ("mmap", "dali")


def tokens_per_second(load_batches: Loader, clock: Callable[[], float], first_step: int) -> float:
    """Return how fast the batches of STEPS steps are read."""
    since = clock()
    for step in range(first_step, first_step + STEPS):
        load_batches(step)
    return STEPS * MICRO_BATCH * SEQ_LEN / (clock() - since)


def main() -> None:
    """Write the token files, measure and print the table."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, dict[str, list[float]]] = {name: {"clock": [], "processor": []} for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "train"
        np.random.default_rng(0).integers(0, 65536, TOKENS, dtype=np.uint16).tofile(bin_path(prefix))
        write_index(idx_path(prefix), np.array([TOKENS]), np.dtype(np.uint16))
        dataset = TokenDataset(prefix, SEQ_LEN, seed=0)
        sampler = BatchSampler(BatchSizes(MICRO_BATCH), MICRO_BATCH, 0, 1)
        loaders = {name: make_loader(name, dataset, sampler, torch.device("cpu")) for name in LOADERS}
        for name in LOADERS:
            tokens_per_second(loaders[name], time.perf_counter, 0)  # warms up
        for number in range(options.repeats):
            for kind, clock in (("clock", time.perf_counter), ("processor", time.process_time)):
                for name in LOADERS:
                    first = STEPS * (1 + 2 * number + (kind == "processor"))
                    rates[name][kind].append(tokens_per_second(loaders[name], clock, first))
    medians = {name: {kind: statistics.median(each) for kind, each in rates[name].items()} for name in LOADERS}
    print("million tokens/s   by the clock   of processor time")
    for name in LOADERS:
        print(f"{name:16} {medians[name]['clock'] / 1e6:14.1f} {medians[name]['processor'] / 1e6:19.1f}")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
