"""Speed on one GPU: slices of the model families, megatron-core's own stacks, every operation, a setting of MAD.

    PYTHONPATH=.:SITE python benchmarks/gpu.py [--json FILE] [--kernels FILE] [--quick] [--only slices keys ops mad]
    python benchmarks/gpu.py --cpu                    # tiny sizes, to see that the script runs through

Ends within 8 minutes on one H100. A step is a whole training step of two micro-batches of 8,192 tokens, with clipping
and AdamW. FLOPs are those of `hybridtron describe`, three forward passes; MFU divides by the dense peak (bf16 989, fp8
1979 TFLOP/s on an H100 or H200), HFU counts recomputation too. Ours and megatron-core's stack take steps in turn; the
speed-up is the median over turns of their seconds over ours. Steps with a key of docs/performance.md stand beside steps
without. Of an operation, forward and backward are timed, with the time between kernels and without; the latter is
compared with the time that memory bandwidth or the peak alone would need. A failure is a row with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as run from a checkout
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # pairs of models come and go
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
SECONDS = {"slices": 200, "keys": 110, "ops": 90, "mad": 50}


def rows_of(part: str, options: argparse.Namespace, device: Any) -> Iterator[Any]:
    """Yield the rows of a part of the benchmark."""
    from gpu_parts import keys, mad_setting, ops, slices
    from gpu_parts.timing import Budget

    budget = Budget(SECONDS[part] * (0.25 if options.quick else 1))
    if part == "slices":
        yield from slices.slice_rows(options.quick, options.cpu, budget, options.kernels)
    elif part == "keys":
        yield from keys.key_rows(options.quick, options.cpu, budget)
    elif part == "ops":
        yield from ops.op_rows(options.cpu, device, budget)
    else:
        yield from mad_setting.mad_rows(options.cpu, device, budget)


def environment(device: Any) -> dict[str, Any]:
    """Return what was measured on, and with which packages."""
    import torch

    from hybridtron.accounting.doctor import installed_version

    packages = ("torch", "triton", "megatron-core", "transformer-engine", "mamba-ssm", "causal-conv1d", "flash-attn")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, a dry run",
        **{name: found for name in packages if (found := installed_version(name))},
    }


def main() -> None:
    from hybridtron.cli.arguments import ArgumentParser

    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECONDS, default=list(SECONDS), metavar="PART")
    parser.add_argument(
        "--quick", action="store_true", help="slices in bf16 and one FP8 recipe, one key, a quarter of the time"
    )
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on a CPU: the figures mean nothing")
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="append the slices' kernels and their times here")
    parser.add_argument("--json", type=Path, help="also write the rows here, as they come")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch
    from rich.console import Console

    if not options.cpu and not torch.cuda.is_available():
        print("hybridtron: error: benchmarks/gpu.py: no CUDA device is usable; --cpu tries the script", file=sys.stderr)
        raise SystemExit(2)
    device = torch.device("cpu" if options.cpu else "cuda")
    measured_on, found = environment(device), []
    console = Console(width=max(140, Console().width))
    console.print(", ".join(f"{name} {value}" for name, value in measured_on.items()))
    from gpu_parts.rows import Row, first_line, print_table

    for part in options.only:
        started = time.monotonic()
        try:
            for row in rows_of(part, options, device):
                found.append(row)
                print(f"{time.monotonic() - started:5.0f} s  {row.name}", file=sys.stderr, flush=True)
                if options.json:
                    record = {**measured_on, "rows": [each._asdict() for each in found]}
                    options.json.write_text(json.dumps(record, indent=2) + "\n")
        except Exception as error:
            found.append(Row(part, "ended early", error=first_line(error)))
    print_table(found, console)


if __name__ == "__main__":
    from hybridtron.cli.exit_code import exit_code

    sys.exit(exit_code(main))
