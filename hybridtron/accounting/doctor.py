"""Installed and missing packages, and the implementation that each operation takes on this machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from typing import Any

from rich.text import Text

from hybridtron.accounting.gpu_report import PACKAGES, cudnn, describe_gpu, gpu_packages, import_failure
from hybridtron.reporting.table import Table, terminal

REQUIRED = (
    "torch", "megatron-core", "numpy", "pydantic", "pyyaml", "psutil", "tensorboard", "matplotlib", "jinja2", "rich",
    "tokenizers", "zstandard", "scipy", "submitit",
)  # fmt: skip
OPTIONAL = {
    "transformer-engine": "the fused Adam that megatron-core prefers on NVIDIA GPUs",
    "botorch": "the Bayesian engine of hybridtron search",
    "pyarrow": "parquet files of runs",
    "wandb": "metrics to Weights & Biases",
    "transformers": "the outside implementations that tests and benchmarks compare with",
}


def examine() -> dict[str, Any]:
    """Return a JSON-ready report: {python, platform, required, optional, apex, device, gpu, gpu_packages, processes,
    native_kernels, operations, implementations, optimizer, problems}.

    `gpu` describes the GPU, None where there is none. `operations` maps each operation to the implementation that a
    float32 call takes on this machine; `implementations` is the whole table of `hybridtron.ops.dispatch` with the
    conditions, and with what a bfloat16 call takes on CUDA.
    """
    import torch

    from hybridtron.distributed.megatron_versions import unsupported
    from hybridtron.ops.dispatch import implementation_table
    from hybridtron.ops.native import library
    from hybridtron.ops.weight_gradient import APEX

    cuda = torch.cuda.is_available()
    required = {name: installed_version(name) for name in REQUIRED}
    problems = [f"{name} is missing: pip install {name}" for name, found in required.items() if found is None]
    megatron = required["megatron-core"]
    if megatron and (problem := unsupported(megatron)):
        problems.append(problem)
    apex = _apex()
    if apex == "not NVIDIA's":
        problems.append("the installed apex is PyPI's web toolkit, not NVIDIA's: pip uninstall apex")
    if cuda and find_spec(APEX) and (problem := import_failure(APEX)):
        problems.append(problem)
    kernels = gpu_packages(try_imports=cuda)
    problems += [package["problem"] for package in kernels.values() if package["problem"]]
    if cuda and (problem := cudnn()[1]):
        problems.append(problem)
    table = implementation_table(torch.device("cuda" if cuda else "cpu"))
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "required": required,
        "optional": {name: installed_version(name) for name in OPTIONAL},
        "apex": apex,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, torch threads: {torch.get_num_threads()}",
        "gpu": describe_gpu(),
        "gpu_packages": kernels,
        "processes": "nccl" if cuda else "gloo, megatron-core under the CPU shim",
        "native_kernels": library.status() or "compiled for this machine",
        "operations": {row["label"]: row["taken"] for row in table},
        "implementations": table,
        "optimizer": "PyTorch AdamW" if installed_version("transformer-engine") is None else "FusedAdam",
        "problems": problems,
    }


def show(report: dict[str, Any]) -> None:
    """Print a report of `examine` as tables."""
    console = terminal()
    rows = [(name, report[name]) for name in ("python", "platform", "device", "processes")]
    rows += [(f"GPU {key}", found or Text("unknown", "dim")) for key, found in (report["gpu"] or {}).items()]
    rows += [(name, found or Text("missing", "red")) for name, found in report["required"].items()]
    optional = {name: found for name, found in report["optional"].items() if name not in report["gpu_packages"]}
    rows += [(name, found or _not_installed(OPTIONAL[name])) for name, found in optional.items()]
    for package in PACKAGES:
        found = report["gpu_packages"][package.name]
        state = Text(found["problem"], "red") if found["problem"] else found["version"]
        rows.append((package.name, state or _not_installed(f"for GPUs: {package.purpose}")))
    rows += [
        ("apex", _apex_row(report)),
        ("optimizer", report["optimizer"]),
        ("C kernels", report["native_kernels"]),
    ]
    console.file.write(Table.from_rows(("", ""), rows).to_terminal(console, header=False) + "\n")
    console.file.write(_implementations(report["implementations"]).to_terminal(console))
    for problem in report["problems"]:
        console.print(f"[red]problem[/] {problem}")
    if not report["problems"]:
        console.print("nothing is missing for this machine")


def _not_installed(purpose: str) -> Text:
    return Text(f"not installed: {purpose}", "dim")


def _implementations(rows: list[dict[str, Any]]) -> Table:
    """Build the table of operations: what a float32 call takes here, a bfloat16 one on CUDA, and what else there is."""
    others = [
        "\n".join(f"{one['name']}: {one['condition']}" for one in row["implementations"] if one["name"] != row["taken"])
        for row in rows
    ]
    shown = [(row["label"], row["taken"], row["taken_on_cuda"], other) for row, other in zip(rows, others, strict=True)]
    return Table.from_rows(("operation", "taken for float32", "for bfloat16 on CUDA", "and otherwise"), shown)


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _apex() -> str | None:
    """Return the version of NVIDIA's apex. PyPI has another package of that name, a web toolkit."""
    try:
        about = metadata("apex")
    except PackageNotFoundError:
        return None
    return "not NVIDIA's" if "pyramid" in str(about).lower() else about["Version"]


def _apex_row(report: dict[str, Any]) -> str | Text:
    """Say which apex there is, and whether linears of the megatron backend leave sums of weight gradients to it."""
    found = report["apex"] or "not installed"
    taken = {row["operation"]: row["taken_on_cuda"] for row in report["implementations"]}["weight_gradient"]
    use = f"{found}: {taken if taken == 'apex' else 'PyTorch'} adds weight gradients up in their products"
    return use if report["apex"] else Text(use, "dim")
