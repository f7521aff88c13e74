"""What is installed, what is missing, and which path each operation takes on this machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

from rich.table import Table

from hybridtron.accounting.tables import print_table, terminal

REQUIRED = (
    "torch", "megatron-core", "numpy", "pydantic", "pyyaml", "psutil", "tensorboard", "matplotlib", "rich",
    "tokenizers", "zstandard", "scipy",
)  # fmt: skip
OPTIONAL = {
    "transformer-engine": "FP8 and fused layers on NVIDIA GPUs",
    "mamba-ssm": "Triton kernels for Mamba",
    "causal-conv1d": "CUDA kernel for short convolutions",
    "flash-attn": "attention kernels",
    "nvidia-dali": "data loading",
    "botorch": "the Bayesian engine of hybridtron search",
    "pyarrow": "parquet files of runs",
    "transformers": "the outside implementations that tests and benchmarks compare with",
}


def examine() -> dict[str, Any]:
    """JSON-ready: {python, platform, required, optional, apex, device, processes, operations, problems}."""
    import torch

    from hybridtron.distributed.cpu_compat import MEGATRON_VERSION
    from hybridtron.ops.native import library

    cuda = torch.cuda.is_available()
    required = {name: installed_version(name) for name in REQUIRED}
    problems = [f"{name} is missing: pip install {name}" for name, found in required.items() if found is None]
    if not cuda and required["megatron-core"] not in (None, MEGATRON_VERSION):
        problems.append(f"megatron-core is {required['megatron-core']}; on a CPU {MEGATRON_VERSION} is needed")
    apex = _apex()
    if apex == "not NVIDIA's":
        problems.append("the installed apex is PyPI's web toolkit, not NVIDIA's: pip uninstall apex")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "required": required,
        "optional": {name: installed_version(name) for name in OPTIONAL},
        "apex": apex,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, torch threads: {torch.get_num_threads()}",
        "processes": "nccl" if cuda else "gloo, megatron-core under the CPU shim",
        "operations": {
            "attention": "scaled_dot_product_attention" if cuda else "matrix multiplications and softmax",
            "mamba1 scan": "PyTorch, in tiles" if cuda or library.status() else "C kernels compiled for this machine",
            "mamba2 scan": "PyTorch, in chunks",
            "linear attention, gla, rwkv6, delta rule": "PyTorch, in chunks",
            "long convolutions": "Fourier transforms of PyTorch",
            "experts": "PyTorch, a matrix product per expert",
            "short convolution": "PyTorch, shifted multiply-adds",
            "between multiplications": "PyTorch" if cuda else _native(library.status()),
            "optimizer": "AdamW of PyTorch" if installed_version("transformer-engine") is None else "FusedAdam",
        },
        "problems": problems,
    }


def _native(reason: str | None) -> str:
    """What does the elementwise work of float32 ops, given why it is not the compiled kernels."""
    return "C kernels compiled for this machine" if reason is None else f"PyTorch ({reason})"


def show(report: dict[str, Any]) -> None:
    console = terminal()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("python", report["python"])
    table.add_row("platform", report["platform"])
    table.add_row("device", report["device"])
    table.add_row("processes", report["processes"])
    for name, found in report["required"].items():
        table.add_row(name, found or "[red]missing[/]")
    for name, found in report["optional"].items():
        table.add_row(name, found or f"[dim]not installed: {OPTIONAL[name]}[/]")
    table.add_row("apex", report["apex"] or "[dim]not installed: fused weight gradients without Transformer Engine[/]")
    for operation, path in report["operations"].items():
        table.add_row(operation, path)
    print_table(console, table)
    for problem in report["problems"]:
        console.print(f"[red]problem[/] {problem}")
    if not report["problems"]:
        console.print("nothing is missing for this machine")


def installed_version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _apex() -> str | None:
    """NVIDIA's apex and PyPI's share a name; PyPI's describes itself as a web toolkit."""
    try:
        about = metadata("apex")
    except PackageNotFoundError:
        return None
    return "not NVIDIA's" if "pyramid" in str(about).lower() else about["Version"]
