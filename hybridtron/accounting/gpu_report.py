"""The GPU of this machine, and the packages with kernels for it: installed, half-installed or missing."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hybridtron.backends.transformer_engine.installation import import_problem

DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class GpuPackage:
    """A package, the module whose import shows that it works, and the parts that it needs: one of each tuple."""

    name: str
    module: str
    purpose: str
    parts: tuple[tuple[str, ...], ...] = ()


PACKAGES = (
    GpuPackage(
        "transformer-engine",
        "transformer_engine.pytorch",
        "model.backend transformer_engine, FP8, fused Adam",
        (("transformer-engine-torch",), ("transformer-engine-cu13", "transformer-engine-cu12")),
    ),
    GpuPackage("triton", "triton", "own kernels"),
    GpuPackage("mamba-ssm", "mamba_ssm.ops.selective_scan_interface", "kernels of Mamba's scans"),
    GpuPackage("causal-conv1d", "causal_conv1d", "the kernel of short convolutions"),
    GpuPackage("nvidia-dali", "nvidia.dali", "data.loader dali"),
)
DALI = ("nvidia-dali", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def describe_gpu() -> dict[str, str | None] | None:
    """Return name, capability, memory, driver and versions of the libraries of the current GPU; None without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "count": str(torch.cuda.device_count()),
        "capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": cudnn()[0],
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "triton": installed("triton"),
    }


def cudnn() -> tuple[str | None, str | None]:
    """Return the version of cuDNN in this process, and what is wrong with it in one line: one that torch refuses."""
    import torch

    try:
        return _dotted(torch.backends.cudnn.version()), None
    except RuntimeError as error:
        return None, " ".join(str(error).split())


def gpu_packages(try_imports: bool) -> dict[str, dict[str, str | None]]:
    """Return version and problem of each package; what is not installed has neither.

    With `try_imports`, for a machine with a GPU, a package that cannot be imported has the reason as its problem.
    """
    return {package.name: _examine(package, try_imports) for package in PACKAGES}


def installed(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    for each in DALI if name == "nvidia-dali" else (name,):
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None


def _examine(package: GpuPackage, try_import: bool) -> dict[str, str | None]:
    found = installed(package.name)
    problem = _half_installed(package, found)
    if found and not problem and try_import:
        problem = import_failure(package.module)
    return {"version": found, "problem": problem}


def _half_installed(package: GpuPackage, found: str | None) -> str | None:
    """Return which part of a package is missing or of another version; of parts without the package too."""
    for names in package.parts:
        parts = {name: part for name in names if (part := installed(name))}
        if found and not parts:
            return f"{package.name} {found} is there without {' or '.join(names)}: install both with one pip command"
        for name, part in parts.items():
            if found is None:
                return f"{name} {part} is there without {package.name}: install both with one pip command"
            if part != found:
                return f"{package.name} {found} with {name} {part}: expected the same version"
    return None


def import_failure(module: str) -> str | None:
    """Return why a module cannot be imported, in one line, or None."""
    if module.startswith("transformer_engine"):
        return import_problem()
    try:
        importlib.import_module(module)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"import {module}: {type(error).__name__}: {lines[0] if lines else 'no message'}"
    return None


def _driver() -> str | None:
    """Return the release of NVIDIA's driver, or None where the system does not tell it."""
    try:
        words = DRIVER.read_text().split("\n")[0].split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _dotted(number: int | None) -> str | None:
    """Return cuDNN's version number, such as 91300, as text, 9.13.0."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else None
