"""Cross entropy by Triton kernels: of given logits, and of an output projection whose logits never lie whole in memory.

The projection is computed for one block of the vocabulary after another, forward for the log partition function and
once more in backward, which turns each block of logits into their gradient in place (Wijmans et al. 2025, arXiv
2411.09009, do so inside one kernel; here the products are cuBLAS's). Backward begins with the last block of forward,
which is kept: of as many logits as make one block none are computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.cuts import runs
from hybridtron.ops.elementwise.row_blocks import as_rows, enough, from_rows, row_order
from hybridtron.ops.triton.launch import ceil_div, launch, power_of_two

_BLOCK_LOGITS = 1 << 28  # in memory at a time: 512 MiB of bfloat16
_BLOCK_MULTIPLE = 1024  # of the words of a block, so that matrix products take whole tiles
_COLUMNS = 4096  # that a program loads at once


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the negative log-likelihood and log partition function, each [...], of logits [..., V]."""
    return _CrossEntropy.apply(logits, targets)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `cross_entropy` of the logits x weight^T, x [..., h], weight [V, h] of the same dtype, targets [...]."""
    return _LinearCrossEntropy.apply(x, weight, targets)


class _Statistics:
    """Running sums over the vocabulary of each of n rows, in float32."""

    def __init__(self, rows: Tensor, targets: Tensor) -> None:
        count = len(rows)
        self.targets = targets
        self.peak = torch.full((count,), float("-inf"), dtype=torch.float32, device=rows.device)
        self.total, self.target_logit = (torch.zeros_like(self.peak) for _ in range(2))

    def add(self, logits: Tensor, first: int) -> None:
        """Add logits [n, v] of the words from `first` on."""
        launch(
            "cross_entropy:add_block", (len(logits),), logits, self.targets, self.peak, self.total, self.target_logit,
            logits.stride(0), first, logits.shape[1], **_constants(logits),
        )  # fmt: skip

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood and the log partition function, [n] each."""
        log_z = self.total.log_().add_(self.peak)
        return log_z - self.target_logit, log_z


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits, which exist anyway, and the log partition function."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.order = logits.shape, row_order(logits)
        rows, index = as_rows(logits, ctx.order), _by_row(targets, ctx.order)
        statistics = _Statistics(rows, index)
        statistics.add(rows, 0)
        nll, log_z = statistics.result()
        ctx.save_for_backward(rows, index, log_z)
        return _unflatten(nll, ctx), _unflatten(log_z, ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, grad_log_z: Tensor) -> tuple[Tensor, None]:
        rows, index, log_z = ctx.saved_tensors
        dlogits = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        _write_gradient(rows, index, log_z, _factors(ctx, grad_nll, grad_log_z), dlogits, 0)
        return from_rows(dlogits, ctx.shape, ctx.order), None


class _LinearCrossEntropy(torch.autograd.Function):
    """Keeps its inputs, the log partition function and one block of logits. Gradients of x are added up over blocks in
    float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.order = x.shape, row_order(x)
        rows, index = as_rows(x, ctx.order), _by_row(targets, ctx.order)
        statistics = _Statistics(rows, index)
        ctx.last_logits = None
        for words in _vocabulary_blocks(rows, weight):
            ctx.last_logits = None  # those of the block before are freed first
            ctx.last_logits = rows @ weight[words].t()
            statistics.add(ctx.last_logits, words.start)
        nll, log_z = statistics.result()
        ctx.save_for_backward(rows, weight, index, log_z)
        return _unflatten(nll, ctx), _unflatten(log_z, ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, grad_log_z: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, index, log_z = ctx.saved_tensors
        factors = _factors(ctx, grad_nll, grad_log_z)
        dx = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        logits, ctx.last_logits = ctx.last_logits, None  # a second backward pass of the same graph computes them again
        for words in reversed(list(_vocabulary_blocks(rows, weight))):
            logits = rows @ weight[words].t() if logits is None else logits
            _write_gradient(logits, index, log_z, factors, logits, words.start)
            torch.mm(logits.t(), rows, out=dweight[words])
            dx.add_(logits @ weight[words])
            logits = None
        return from_rows(dx.to(rows.dtype), ctx.shape, ctx.order), dweight, None


def _write_gradient(
    logits: Tensor, index: Tensor, log_z: Tensor, factors: tuple[Tensor, Tensor], out: Tensor, first: int
) -> None:
    count, columns = logits.shape
    constants = _constants(logits)
    launch(
        "cross_entropy:write_gradient", (count, ceil_div(columns, constants["BLOCK_COLUMNS"])), logits, index, log_z,
        *factors, out, logits.stride(0), out.stride(0), first, columns, **constants,
    )  # fmt: skip


def _factors(ctx: Any, grad_nll: Tensor, grad_log_z: Tensor) -> tuple[Tensor, Tensor]:
    """Return what multiplies each row's probabilities, and what is subtracted at its target."""
    on_target = _by_row(grad_nll, ctx.order).float()
    return on_target + _by_row(grad_log_z, ctx.order), on_target


def _vocabulary_blocks(rows: Tensor, weight: Tensor) -> Iterator[slice]:
    """Yield runs of words whose logits for all rows make a block."""
    words = _BLOCK_LOGITS // max(1, len(rows)) // _BLOCK_MULTIPLE * _BLOCK_MULTIPLE
    return enough(runs(len(weight), max(_BLOCK_MULTIPLE, words)), rows)


def _by_row(x: Tensor, order: list[int]) -> Tensor:
    """Return x [...] as a contiguous [n], in the order of the rows."""
    return as_rows(x.unsqueeze(-1), order).flatten().contiguous()


def _unflatten(x: Tensor, ctx: Any) -> Tensor:
    return from_rows(x.unsqueeze(-1), ctx.shape, ctx.order).squeeze(-1)


def _constants(logits: Tensor) -> dict[str, int]:
    columns = min(_COLUMNS, power_of_two(logits.shape[1]))
    return {"BLOCK_COLUMNS": columns, "num_warps": max(1, min(8, columns // 256))}
