"""benchmarks/gpu.py runs through, with tiny sizes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_every_part_gives_rows_in_the_dry_mode(tmp_path):
    """Only megatron-core's stacks may fail, which need a GPU for scans and FP8; then the table goes on."""
    done = run("--cpu", "--quick", "--json", tmp_path / "found.json", "--kernels", tmp_path / "kernels.txt")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert {row["part"] for row in found["rows"]} == {"slice", "keys", "op", "MAD"}
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert all(name.endswith("megatron-core") and name != "7B attention, bf16, 32, megatron-core" for name in errors), (
        errors
    )
    assert (
        "7B hybrid, bf16, 32, ours, kernels: 0.00 ms of kernels" in (tmp_path / "kernels.txt").read_text()
    )  # on a CPU
    ours = rows["7B hybrid, bf16, 32, ours"]
    assert ours["tokens_per_s"] > 0
    assert ours["tflops"] > 0
    assert rows["7B attention, bf16, 32, ours"]["ratio"] > 0
    assert rows["1B hybrid, bf16, 32, cuda_graphs true"]["ratio"] > 0


def test_without_cuda_it_says_so():
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("hybridtron: error: benchmarks/gpu.py: no CUDA device is usable")
