"""The installed Transformer Engine: absent, broken, too old or usable.

It consists of three packages of one version, which pip may leave incomplete. megatron-core imports it wherever it finds
it, and falls over one that is broken; `hide_unusable_transformer_engine` makes it look absent before that.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

MINIMUM = (2, 11)  # whose source the backend was written against
INSTALL = "pip install --no-build-isolation 'transformer-engine[core-cu13,pytorch]>=2.11,<2.12'"
NEEDS_CUDA = "Transformer Engine needs a CUDA device"
_PACKAGES = ("transformer_engine", "transformer_engine_torch", "transformer_engine_cu12", "transformer_engine_cu13")


def transformer_engine_problem() -> str | None:
    """Return why Transformer Engine is not usable in this process, in one line, or None where it is."""
    if not torch.cuda.is_available():
        return NEEDS_CUDA
    if problem := import_problem():
        return problem
    found = version("transformer_engine")
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        return f"transformer_engine {found} is installed; expected at least {wanted}: {INSTALL}"
    return None


@functools.cache
def import_problem() -> str | None:
    """Import Transformer Engine; return why that fails, in one line: which package, how, and what to install."""
    if not _is_there():
        return f"Transformer Engine is not installed: {INSTALL}"
    try:
        load_cudnn_of_torch()
        with _without_jax():
            importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # assertions, missing libraries, undefined symbols: all mean a broken installation
        return f"Transformer Engine cannot be imported ({_cause(error)}); installed are {_versions()}: {_remedy(error)}"
    return None


def load_cudnn_of_torch(packages: Path = Path(torch.__file__).parents[1]) -> int:
    """Load every library of the cuDNN that pip installed beside torch, and return how many there are.

    Transformer Engine looks for cuDNN in the system first. Where that has another version, libraries of both would end
    in one process, which fails then or in torch's next convolution. A library that is loaded is not looked for again.
    """
    libraries = sorted((packages / "nvidia" / "cudnn" / "lib").glob("libcudnn*.so.*"), key=_by_need)
    for library in libraries:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return len(libraries)


def _by_need(library: Path) -> tuple[int, str]:
    """Order cuDNN's libraries so that each comes after those that it needs, which the system would give otherwise."""
    kind = library.name.removeprefix("libcudnn_").partition(".")[0]
    return {"graph": 0, "ops": 1}.get(kind, 2), library.name


def hide_unusable_transformer_engine() -> None:
    """Make `import transformer_engine` fail as if it was absent, where it is broken or there is no CUDA device.

    Call this before megatron-core is imported. A broken one on a machine with CUDA is reported once.
    """
    if not _is_there():
        return
    if torch.cuda.is_available():
        problem = import_problem()
        if problem is None:
            return
        logger.warning("%s", problem)
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        del sys.modules[name]
    sys.modules["transformer_engine"] = None  # type: ignore[assignment]


def _is_there() -> bool:
    return importlib.util.find_spec("transformer_engine") is not None


@contextlib.contextmanager
def _without_jax() -> Iterator[None]:
    """Keep Transformer Engine from importing jax, for which it needs another package."""
    os.environ.setdefault("NVTE_FRAMEWORK", "pytorch")  # otherwise a missing library is a warning
    if "jax" in sys.modules:
        yield
        return
    sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["jax"]


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _versions() -> str:
    found = []
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found) or "none of its packages"


def _remedy(error: Exception) -> str:
    """Return what to do about it: a package that is missing, or all of Transformer Engine again."""
    name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name and not name.startswith("transformer_engine"):
        return f"{name} is missing: pip install {name}"
    if "shared object" in str(error) and not isinstance(error, FileNotFoundError):
        return "expected this library of CUDA's toolkit, or from the packages that torch's CUDA build brings"
    return (
        f"expected transformer_engine, transformer_engine_torch and one of _cu12 and _cu13, of one version: {INSTALL}"
    )
