"""Forward and backward passes with and without torch.compile on a CPU, in turn in one process, on one thread.

    .venv/bin/python benchmarks/compile.py [--repeats 7] [--json FILE]

Small models of hidden size 256 in float32, four sequences of 256 tokens: those of Llama, Mamba-2 and a hybrid, whose
operations have kernels in C here, and RWKV-7, which has none. The ratio is the median over turns of the seconds without
over those with torch.compile: above one it helps. Compiling is the processor time of the first passes, with that of the
compiler; it is long where the cache of inductor (TORCHINDUCTOR_CACHE_DIR) is empty, which the program takes care of.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hybridtron as ht
from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.model.compiling import compile_layers

BLOCKS = {
    "attn": {"type": "attention", "num_heads": 8, "num_kv_heads": 4},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 1024},
    "mamba": {"type": "mamba2", "head_dim": 64, "state_dim": 64, "num_groups": 2},
    "time": {"type": "rwkv7", "head_dim": 64},
    "channel": {"type": "rwkv6_channel", "ffn_hidden_size": 1024, "receptance": False},
}
MODELS = {"Llama": "2*(attn mlp)", "Mamba-2": "4*mamba", "hybrid": "mamba mlp attn mlp", "RWKV-7": "2*(time channel)"}
BATCH, SEQ_LEN = 4, 256


def passes(pattern: str, compiled: bool) -> Callable[[], float]:
    """Return a call of the forward and backward passes of a model, which returns its loss."""
    model = {"hidden_size": 256, "blocks": BLOCKS, "pattern": pattern, "backend": "torch"}
    built = ht.build_model({"model": model, "data": {"seq_len": SEQ_LEN}})
    if compiled:
        compile_layers([built], torch.device("cpu"))
    ids = torch.randint(256, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))

    def call() -> float:
        built.zero_grad()
        loss = built(ids[:, :-1], ids[:, 1:])[0].mean()
        loss.backward()
        return loss.item()

    return call


def clocked(call: Callable[[], float]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def processor_seconds() -> float:
    return sum(os.times()[:4])  # of the processes that have ended too


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Return the row of a model."""
    plain, compiled = passes(MODELS[name], False), passes(MODELS[name], True)
    expected = plain()
    before = processor_seconds()
    difference = abs(compiled() - expected) / expected
    compiling = processor_seconds() - before
    compiled()
    pairs = [(clocked(plain), clocked(compiled)) for _ in range(repeats)]
    return {
        "model": name,
        "seconds": statistics.median(pair[0] for pair in pairs),
        "compiled_seconds": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "compiling_seconds": compiling,
        "difference": difference,
    }


def main() -> None:
    """Print a line for each model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        rows = []
        for name in MODELS:
            rows.append(measure(name, options.repeats))
            print(*(f"{key} {value:.3g}" if isinstance(value, float) else value for key, value in rows[-1].items()))
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
