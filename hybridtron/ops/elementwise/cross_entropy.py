"""Cross-entropy in nats, and the log-partition for a z-loss (Chowdhery et al. 2022, arXiv 2204.02311, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.dispatch import otherwise, plain, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.elementwise.row_blocks import as_rows, from_rows, row_order, split_rows
from hybridtron.ops.triton import cross_entropy as triton_cross_entropy
from hybridtron.ops.triton.launch import triton_kernels


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the negative log-likelihood and log-partition of each position, both differentiable.

    logits [..., V] of any float dtype, targets [...] of integers in [0, V). Returns (nll [...], log_z [...]) in float32
    (float64 for float64 logits), where log_z = log sum_v exp(logits_v) and nll = log_z - logits[target].
    """
    return select("cross_entropy", logits)(logits, targets)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, project: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute `cross_entropy` of the output projection x weight^T; x [..., h], weight [V, h], targets [...].

    `project` returns the logits [..., V], for implementations that need them whole.
    """
    return select("linear_cross_entropy", x, weight)(x, weight, targets, project)


def cross_entropy_reference(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `cross_entropy` by its formula."""
    wide = logits.to(accumulation_dtype(logits))
    log_z = torch.logsumexp(wide, -1)
    return log_z - wide.gather(-1, targets.unsqueeze(-1)).squeeze(-1), log_z


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits, which exist anyway, and no probabilities: backward takes exp(logits - log_z) block by block."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        dtype, order = accumulation_dtype(logits), row_order(logits)
        rows = as_rows(logits, order)
        # targets in the order of the rows, with an axis of 1 in the place of V
        index = as_rows(targets.unsqueeze(-1), order)
        log_z = torch.empty(len(rows), 1, dtype=dtype, device=logits.device)
        for some, target in split_rows(rows, log_z):
            largest = some.amax(-1, keepdim=True).to(dtype)
            total = torch.sub(some, largest).exp_().sum(-1, keepdim=True)
            torch.add(largest, total.log_(), out=target)
        nll = log_z - rows.gather(-1, index)
        ctx.save_for_backward(rows, index, log_z)
        ctx.shape, ctx.order = logits.shape, order
        return from_rows(nll, logits.shape, order).squeeze(-1), from_rows(log_z, logits.shape, order).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, grad_log_z: Tensor) -> tuple[Tensor, None]:
        rows, index, log_z = ctx.saved_tensors
        on_target = as_rows(grad_nll.unsqueeze(-1), ctx.order)
        on_all = on_target + as_rows(grad_log_z.unsqueeze(-1), ctx.order)
        dlogits = torch.empty_like(rows)
        for some, normaliser, factor, out in split_rows(rows, log_z, on_all, dlogits):
            same_dtype = out.dtype == log_z.dtype
            probabilities = torch.sub(some, normaliser, out=out if same_dtype else None).exp_()
            torch.mul(probabilities, factor, out=out)
        dlogits.scatter_add_(-1, index, on_target.neg().to(dlogits.dtype))
        return from_rows(dlogits, ctx.shape, ctx.order), None


register(
    "cross_entropy",
    "cross-entropy",
    plain(cross_entropy_reference),
    triton_kernels(triton_cross_entropy.cross_entropy),
    otherwise("PyTorch, in blocks of rows", _CrossEntropy.apply),
    sample=lambda one: (one,),
)
register(
    "linear_cross_entropy",
    "output projection and cross-entropy",
    triton_kernels(
        lambda x, weight, targets, project: triton_cross_entropy.linear_cross_entropy(x, weight, targets),
        "weight of the dtype of x",
        lambda x, weight: x.dtype == weight.dtype,
    ),
    otherwise("linear and cross-entropy", lambda x, weight, targets, project: cross_entropy(project(), targets)),
    sample=lambda one: (one, one),
)
