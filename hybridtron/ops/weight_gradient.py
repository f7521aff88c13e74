"""Weight gradients of linear layers, added to a sum in float32 by the product itself.

Left to autograd, the product of each micro-batch is rounded to the format of the weight, written, read again and added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.ops.device import device_type
from hybridtron.ops.dispatch import Implementation, otherwise, register, select
from hybridtron.ops.native.library import flops_are_counted
from hybridtron.ops.vendor import on_cuda, usable, vendor_function

APEX = "fused_weight_gradient_mlp_cuda"  # the module of NVIDIA's apex, a CUDA extension that its installation may lack
_NARROW = (torch.bfloat16, torch.float16)


def add_weight_gradient(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """Add grad^T x to total [out, in] in place; grad [rows, out] and x [rows, in] are of one format."""
    select("weight_gradient", total, grad, x)(total, grad, x)


def _by_apex(total: Tensor, grad: Tensor, x: Tensor) -> None:
    vendor_function(APEX, "wgrad_gemm_accum_fp32")(x.contiguous(), grad.contiguous(), total)


def _in_the_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    torch.addmm(total, grad.t(), x, out=total)


def _in_a_widened_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    torch.addmm(total, grad.t(), x, out_dtype=total.dtype, out=total)


def _after_the_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    total.add_(grad.t() @ x)


def _widens(total: Tensor, grad: Tensor, x: Tensor) -> bool:
    """Return whether narrow factors are to be added to a float32 sum."""
    return total.dtype == torch.float32 and grad.dtype == x.dtype and x.dtype in _NARROW


def _takes_apex(total: Tensor, grad: Tensor, x: Tensor) -> bool:
    return _widens(total, grad, x) and total.is_contiguous() and on_cuda(total, grad, x) and usable(APEX)


def _takes_widened_product(total: Tensor, grad: Tensor, x: Tensor) -> bool:
    """Return whether PyTorch has such a product: on CUDA, not on a CPU that stands for it, and where neither its
    counter of FLOPs, which does not know it, nor its tuning of products, which refuses it, is at work."""
    if not _widens(total, grad, x) or device_type(x.device) != "cuda" or x.is_cpu:
        return False
    return not (flops_are_counted() or (x.is_cuda and torch.cuda.tunable.is_enabled()))


register(
    "weight_gradient",
    "sum of weight gradients",
    Implementation(
        "apex",
        "bfloat16 or float16 on CUDA, a float32 sum; apex with its CUDA extensions is installed; "
        "HYBRIDTRON_VENDOR_KERNELS is not 0",
        _takes_apex,
        _by_apex,
    ),
    Implementation(
        "PyTorch, in the product", "a sum in the same format", lambda *t: len({each.dtype for each in t}) == 1,
        _in_the_product,
    ),
    Implementation(
        "PyTorch, in a float32 product", "bfloat16 or float16 on CUDA, a float32 sum", _takes_widened_product,
        _in_a_widened_product,
    ),
    otherwise("PyTorch, after the product", _after_the_product),
    sample=lambda one: (one.float(), one, one),
)  # fmt: skip
