"""torch.compile for the layers of a model, each by itself: layers of one block share what is compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import torch
from torch import nn

from hybridtron.errors import UserError
from hybridtron.model.layer import Layer
from hybridtron.ops.opaque import keep_opaque

VARIANTS = 64  # of one function: kinds of layers, in training and evaluation, before torch leaves it uncompiled
# Language, variable and programs by which inductor finds the compiler of its kernels, and Triton that of their callers.
COMPILERS = {"cpu": ("C++", "CXX", ("g++",)), "cuda": ("C", "CC", ("gcc", "clang"))}


def compile_layers(chunks: Sequence[nn.Module], device: torch.device, backend: str = "inductor") -> None:
    """Compile the forward and backward passes of all layers in place, when they first run.

    Names of parameters, hooks of layers, recomputation of whole layers and token-by-token generation stay outside.
    What was compiled for other models of this process is used again, or dropped where there is much of it.
    Raises UserError where inductor would find no compiler for the device.
    """
    if backend == "inductor" and (missing := missing_compiler(device.type)):
        raise UserError(f"train.compile = true: {missing}; expected it installed, or false")
    import torch._dynamo
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    keep_opaque()
    if len(_debug_get_cache_entry_list(Layer.compute.__code__)) > VARIANTS // 2:
        torch._dynamo.reset()
    for layer in (module for chunk in chunks for module in chunk.modules() if isinstance(module, Layer)):
        _compute_cached(layer)
        # Sizes are the same in each step: as variables they would cost speed wherever two blocks have different ones.
        layer.compute = torch.compile(layer.compute, backend=backend, dynamic=False)  # type: ignore[method-assign]


def missing_compiler(device_type: str) -> str | None:
    """Return what is missing for inductor to compile for this type of device, or None."""
    if device_type == "cuda" and not importlib.util.find_spec("triton"):
        return "the package triton is not installed"
    language, variable, programs = COMPILERS[device_type]
    wanted = [os.environ[variable]] if variable in os.environ else programs
    return None if any(map(shutil.which, wanted)) else f"there is no {language} compiler ({' or '.join(wanted)})"


def _compute_cached(layer: nn.Module) -> None:
    """Compute the cached properties of the layer's modules, whose lock in Python 3.11 torch cannot look into."""
    for module in layer.modules():
        for name in dir(type(module)):
            if isinstance(getattr(type(module), name, None), cached_property):
                with suppress(KeyError):  # of a mixer that has no such projection
                    getattr(module, name)
