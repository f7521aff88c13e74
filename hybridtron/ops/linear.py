"""Linear layers: y = x W^T + b.

On AMD processors with AVX-512 oneDNN multiplies large float32 matrices faster than MKL, which PyTorch takes.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.dispatch import Implementation, otherwise, register, select
from hybridtron.ops.native.library import flops_are_counted, kernels_for

# Below, the fixed cost of a call to oneDNN outweighs what it gains (measured on Zen 4, widths 64 to 2048).
_LEAST_ROWS = 1024
_LEAST_PRODUCTS = 1 << 26
_NO_ACTIVATION: tuple[str, list[Any], str] = ("none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [..., in] by a weight [out, in] and add a bias [out]; return [..., out]."""
    return select("linear", x, weight, bias)(x, weight, bias)


class _OneDNNLinear(torch.autograd.Function):
    """Keeps its inputs alone. The gradient of x is such a product again, which reads the transposed weight in place;
    that of the weight is left to MKL, since oneDNN would first copy both factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *_NO_ACTIVATION)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_dx, needs_dweight, needs_dbias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        dx = linear(rows, weight.t()).view(x.shape) if needs_dx else None
        dweight = rows.t() @ x.flatten(0, -2) if needs_dweight else None
        return dx, dweight, rows.sum(0) if needs_dbias else None


@functools.cache
def onednn_is_faster() -> bool:
    """Return whether this is a processor on which oneDNN was measured to be faster than MKL."""
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):
        return False
    try:
        is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return is_amd and backends.cpu.get_cpu_capability() == "AVX512"


def _takes_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN takes these without a copy, and faster, and nothing asks for PyTorch's own products."""
    products = x.numel() * weight.shape[0]
    return (
        products >= _LEAST_PRODUCTS
        and x.numel() >= _LEAST_ROWS * x.shape[-1]
        and onednn_is_faster()
        and not x.is_meta
        and x.is_contiguous()
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and kernels_for(*(tensor for tensor in (x, weight, bias) if tensor is not None)) is not None
        and torch._C._get_mkldnn_enabled()
        and torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")  # type: ignore[attr-defined]
        and not torch.is_autocast_enabled("cpu")
        and not flops_are_counted()
    )


register(
    "linear",
    "linear layer",
    Implementation(
        "oneDNN",
        f"float32 on an AMD processor with AVX-512, contiguous, at least {_LEAST_ROWS} rows and {_LEAST_PRODUCTS} "
        "multiplications; HYBRIDTRON_NATIVE is not 0",
        _takes_onednn,
        _OneDNNLinear.apply,
    ),
    otherwise("PyTorch", F.linear, compiled=True),
    sample=lambda one: (one.new_empty(_LEAST_ROWS, 256), one.new_empty(256, 256), None),
)
