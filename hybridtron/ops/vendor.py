"""Conditions of implementations that call CUDA kernels of other packages.

A package is imported when an op first gets tensors on CUDA that its kernels could take. Where it is missing, does not
import, or HYBRIDTRON_VENDOR_KERNELS=0 is set, the next implementation is taken.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hybridtron.ops.elementwise.precision import under_transforms
from hybridtron.ops.native.declarations import PLAIN

logger = logging.getLogger(__name__)


def on_cuda(*tensors: Tensor | None) -> bool:
    """Return whether kernels can read these tensors: plain ones in a GPU's memory, under no torch.func transform.

    A dry run's tensors without values are not: it takes the PyTorch form instead of a vendor's kernels.
    """
    if under_transforms() or os.environ.get("HYBRIDTRON_VENDOR_KERNELS") == "0":
        return False
    return all(t is None or (t.is_cuda and type(t) in PLAIN) for t in tensors)


def usable(module: str) -> bool:
    """Return whether a module of another package is installed and imports."""
    return _imported(module) is not None


def vendor_function(module: str, name: str) -> Any:
    """Return a function of a module that is `usable`."""
    return getattr(_imported(module), name)


@functools.cache
def _imported(module: str) -> ModuleType | None:
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return None
    _keep_tuning()
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package built for another torch or CUDA fails in many ways
        logger.warning("%s is installed but not used: importing it failed: %s", package, error)
        return None


def _keep_tuning() -> None:
    """Ask Triton to keep on disk what autotuning finds, unless the user has said otherwise.

    mamba-ssm tries a hundred configurations for one shape, 40 seconds or more, and without this each process does so
    again. Triton reads it where a kernel is declared, so before the import. In its deterministic mode mamba-ssm takes
    one configuration instead, unless this is set.
    """
    if os.environ.get("MAMBA_DETERMINISTIC") != "1" and not torch.are_deterministic_algorithms_enabled():
        os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
