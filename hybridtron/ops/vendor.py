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
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package built for another torch or CUDA fails in many ways
        logger.warning("%s is installed but not used: importing it failed: %s", package, error)
        return None
