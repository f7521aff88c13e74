"""Time of each sequence op against its naive form and the nearest public PyTorch implementation, by sequence length.

    make .venv/dev
    .venv/bin/python benchmarks/ops.py [--only NAME ...] [--lengths 512 2048 ...] [--repeats 3] [--json FILE]

One thread, float32, one sequence, forward and backward. `naive` is what one would write first: a loop over tokens, the
full square of scores, a direct convolution. `public` is the nearest implementation in PyTorch that others publish and
that runs without a GPU. The forms take turns, so that a machine whose speed drifts favours none, and ratios are medians
over the turns, of processor time, which leaves out waiting for a core. A form that would take over a minute is left out
(`-`). `growth` divides the cost per token by that at the shortest length: an op whose cost per token grows as the
logarithm of the length stays below the ratio of the logarithms, printed beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from op_parts.inputs import Form, Op
from op_parts.table import OPS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.memory import keep_freed_memory

LENGTHS = (512, 2048, 8192, 32768)
LONGEST = 60.0  # seconds


def seconds(form: Form, inputs: list[Tensor], gradient: Tensor) -> float:
    """Processor seconds of a forward and a backward pass."""
    start = time.process_time()
    torch.autograd.grad(form(*inputs), inputs, gradient)
    return time.process_time() - start


def measure(op: Op, length: int, repeats: int, left_out: set[str]) -> dict[str, Any]:
    """Seconds of our form, and the ratios of the others to it."""
    torch.manual_seed(0)
    inputs = [tensor.requires_grad_() for tensor in op.inputs(length)]
    gradient = torch.randn_like(op.ours(*inputs))
    forms = {"ours": op.ours, "naive": op.naive, "public": op.public}
    present = {name: form for name, form in forms.items() if form is not None and name not in left_out}
    times: dict[str, list[float]] = {name: [] for name in present}
    for name, form in present.items():
        times[name].append(seconds(form, inputs, gradient))
        if name != "ours" and times[name][0] * 16 > LONGEST:  # the next length is four times this one
            left_out.add(name)
    if max(each[0] for each in times.values()) < LONGEST / 6:  # else it is long enough to count by itself
        for each in times.values():
            each.clear()
    for _ in range(0 if times["ours"] else repeats):
        for name, form in present.items():
            times[name].append(seconds(form, inputs, gradient))
    own = times.pop("ours")
    ratios = {name: statistics.median(b / a for a, b in zip(own, other, strict=True)) for name, other in times.items()}
    return {"seconds": statistics.median(own), **ratios}


def rows(names: list[str], lengths: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    left_out = {name: set[str]() for name in names}
    shortest: dict[str, float] = {}
    jobs = [(name, length) for name in names for length in lengths]
    for name, length in track(jobs, "measuring", console=Console(stderr=True)):
        op = OPS[name]
        found = measure(op, length, repeats, left_out[name])
        per_token = found["seconds"] / length
        growth = per_token / shortest.setdefault(name, per_token)
        limit = math.log(length) / math.log(lengths[0]) if op.logarithmic else None
        yield {"op": name, "length": length, **found, "growth": growth, "limit": limit, "public_name": op.named}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=OPS, default=list(OPS), metavar="NAME")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here, as they come")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore")
    found = []
    for row in rows(options.only, sorted(options.lengths), options.repeats):
        found.append(row)
        if options.json:
            options.json.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "rows": found}, indent=2) + "\n")
    table = Table("op", *(["length", "us/token", "naive", "public", "", "growth", "limit"]))
    for row in found:
        cells = [row.get(name) for name in ("naive", "public")]
        table.add_row(
            row["op"],
            f"{row['length']:,}",
            f"{row['seconds'] / row['length'] * 1e6:.2f}",
            *("-" if cell is None else f"{cell:.1f}x" for cell in cells),
            row["public_name"],
            f"{row['growth']:.2f}",
            "-" if row["limit"] is None else f"{row['limit']:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
