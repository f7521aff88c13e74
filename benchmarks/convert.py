"""What converting a large hybrid to Hugging Face and back takes: peak memory, and speed beside `cp -r`.

    python benchmarks/convert.py FOLDER [--size 7b | 1b] [--json FILE]

Makes a checkpoint of random bf16 weights in FOLDER, in the files of tensor parallelism 4 x pipeline 2, box by box;
copies it with `cp -r` and syncs; converts it to Nemotron-H by `to_hf`, checksums verified, and back by `from_hf`; and
compares every tensor with the first checkpoint. Each step is a process of its own, whose peak resident memory is VmHWM
of /proc/self/status. Seconds are those of converting, without the start of the process and with everything brought to
disk; those of the check, which reads every tensor back and hashes every file, stand beside them. FOLDER needs room for
three checkpoints: 42 GB for 7b, 6 GB for 1b.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code

SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "vocab_size": 131072, "ffn": 16384, "pattern": "4*(5*(mamba mlp) attn) 4*(mamba mlp)"},
    "1b": {"hidden_size": 2048, "vocab_size": 65536, "ffn": 8192, "pattern": "2*(5*(mamba mlp) attn) mamba mlp"},
}
LAYOUT = {"tensor": 4, "pipeline": 2}
STEPS = ("make", "to_hf", "from_hf", "compare")


def config_of(size: str, folder: Path) -> Any:
    from hybridtron.config.load import build
    from hybridtron.training.config import RunConfig

    sizes = SIZES[size]
    blocks = {
        "mamba": {"type": "mamba2", "head_dim": 64, "state_dim": 128, "num_groups": 8},
        "attn": {"type": "attention", "num_heads": 32, "num_kv_heads": 8, "rotary_fraction": 0.0},
        "mlp": {"type": "mlp", "ffn_hidden_size": sizes["ffn"], "activation": "relu2"},
    }
    model = {key: sizes[key] for key in ("hidden_size", "vocab_size", "pattern")}
    sections = {"train": {"steps": 1, "global_batch_size": 1}, "optimizer": {"lr": 1e-4}}
    data = {"train": "none", "seq_len": 4096, "tokenizer": "byte"}
    own = {"name": size, "folder": str(folder), "model": {**model, "blocks": blocks}, "data": data}
    return build({**own, **sections, "precision": {"format": "bf16"}}, RunConfig)


def make(folder: Path, size: str) -> None:
    """Write a run of random weights in the files of LAYOUT."""
    import torch

    from hybridtron.convert.checkpoints.layout_files import files_of_layout
    from hybridtron.convert.formats.source import TensorInfo
    from hybridtron.convert.mapping.parts import stored_shapes
    from hybridtron.convert.new_run import new_run
    from hybridtron.training.run_folder.train_state import TrainState

    config = config_of(size, folder / "run")
    tensors = {key: TensorInfo(shape, torch.bfloat16) for key, shape in stored_shapes(config.model).items()}
    files = files_of_layout(config.model, config.data.seq_len, tensors, **LAYOUT)
    noise = torch.randn(2**26, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    with new_run(folder / "run", config, TrainState(), tensors, run=folder, files=files) as sink:
        for number, (key, box) in enumerate(each for content in files for each in content):
            start = number * 7919 * 4096 % (len(noise) - box.numel)
            sink.write(key, noise[start : start + box.numel].view(box.sizes), box.offsets)


def to_hf(folder: Path, size: str) -> dict[str, float]:
    """Convert the run to a folder of Hugging Face; return the seconds of converting and of checking."""
    import hybridtron as ht

    return ht.convert.to_hf(folder / "run", folder / "hf", architecture="nemotron_h", logits="never").seconds


def from_hf(folder: Path, size: str) -> dict[str, float]:
    """Convert the folder of Hugging Face back to a run; return the seconds of converting and of checking."""
    import hybridtron as ht

    return ht.convert.from_hf(folder / "hf", folder / "back", logits="never").seconds


def compare(folder: Path, size: str) -> None:
    """Raise AssertionError where the run that came back differs in a bit."""
    from hybridtron.convert.checkpoints.verify import verify

    result = verify(folder / "run", folder / "back", logits=False)
    if not result.same:
        raise AssertionError(f"the run that came back differs: {result}")


def in_process(step: str, folder: Path, size: str) -> dict[str, Any]:
    """Run a step in a process of its own; return its seconds and its peak memory."""
    command = [sys.executable, __file__, str(folder), "--size", size, "--step", step]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def timed(step: Callable[[Path, str], dict[str, float] | None], folder: Path, size: str) -> dict[str, Any]:
    """Run a step in this process; return its seconds and the process's peak memory."""
    import hybridtron.convert.exporting  # imports are no part of the step
    import hybridtron.convert.importing  # noqa: F401

    began, cpu = time.perf_counter(), time.process_time()
    parts = step(folder, size) or {}
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": parts.get("convert", round(seconds, 2)),
        "check_seconds": parts.get("check", 0.0),
        "cpu_seconds": round(cpu, 2),
        "peak_gib": round(int(status["VmHWM"].split()[0]) / 2**20, 3),
    }


def copied(folder: Path) -> dict[str, float]:
    """Copy the run with `cp -r` and sync it; return the seconds without and with the sync."""
    began = time.perf_counter()
    subprocess.run(["cp", "-r", folder / "run", folder / "copy"], check=True)
    middle = time.perf_counter()
    subprocess.run(["sync", "-f", folder / "copy"], check=True)
    end = time.perf_counter()
    shutil.rmtree(folder / "copy")
    return {"cp_seconds": round(middle - began, 2), "cp_and_sync_seconds": round(end - began, 2)}


def measure(folder: Path, size: str) -> dict[str, Any]:
    """Go through all steps; return what each took."""
    found: dict[str, Any] = {"size": size, "cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    found["make"] = in_process("make", folder, size)
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    found |= {"gb": round(total / 1e9, 2), **copied(folder)}
    for step in ("to_hf", "from_hf", "compare"):
        found[step] = in_process(step, folder, size)
    for step in ("to_hf", "from_hf"):
        found[step]["mb_per_s"] = round(total / 1e6 / found[step]["seconds"])
        for name in ("cp", "cp_and_sync"):
            found[step][f"share_of_{name}"] = round(found[f"{name}_seconds"] / found[step]["seconds"], 2)
    return {**found, "load_after": round(os.getloadavg()[0], 1)}


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="scratch folder; what the benchmark makes in it is removed")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(timed(globals()[options.step], options.folder, options.size)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        found = measure(options.folder, options.size)
    finally:
        for name in ("run", "hf", "back", "copy"):
            shutil.rmtree(options.folder / name, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(
        f"{options.size}: {found['gb']} GB, cp -r {found['cp_seconds']} s, with sync {found['cp_and_sync_seconds']} s"
    )
    for step in ("to_hf", "from_hf"):
        each = found[step]
        print(
            f"{step}: {each['seconds']} s, {each['mb_per_s']} MB/s, {each['share_of_cp']} of the speed of cp -r "
            f"({each['share_of_cp_and_sync']} with sync), peak memory {each['peak_gib']} GiB; "
            f"check: {each['check_seconds']} s"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
