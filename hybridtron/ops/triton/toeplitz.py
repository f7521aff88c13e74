"""The causal convolution with filters of some hundred taps, shared by runs of channels, by Triton kernels.

Tensor cores multiply Toeplitz blocks of the filter with inputs (Ku et al. 2025, arXiv 2503.01868, section 3), which
needs enough columns, channels of a group times sequences, that share a filter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.memory_layout import channels_contiguous, empty_laid_out_as
from hybridtron.ops.triton.launch import ceil_div, launch, power_of_two, widen

MAX_TAPS = 1024
MIN_COLUMNS = 16  # that share a filter
_BLOCK_TOKENS = 64
_BACKWARD_PROGRAMS = 512  # about; each leaves a matrix of partial sums for the filter's gradient


def fits(u: Tensor, h: Tensor) -> bool:
    """Return whether u [b, s, c] has enough columns for each of the filters h [g, k], which are not too long."""
    return h.shape[1] <= MAX_TAPS and u.shape[0] * u.shape[2] >= MIN_COLUMNS * len(h)


def long_conv(u: Tensor, h: Tensor) -> Tensor:
    """Compute y_t = sum_j h[j] u_{t - j} by channel; u [b, s, c], h [g, k] in float32, which c / g channels share.

    Taps are rounded to the dtype of u, sums are in float32.
    """
    return _ToeplitzConv.apply(u, h)


class _ToeplitzConv(torch.autograd.Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, h: Tensor) -> Tensor:
        u, h = channels_contiguous(u), h.contiguous()
        ctx.save_for_backward(u, h)
        return _convolve(u, h, reverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        u, h = ctx.saved_tensors
        grad = channels_contiguous(grad)
        return _convolve(grad, h, reverse=True), _filter_gradient(u, grad, h)


def _convolve(u: Tensor, h: Tensor, *, reverse: bool) -> Tensor:
    (batch, seq_len, channels), y = u.shape, empty_laid_out_as(u, u.shape)
    constants = _constants(u, channels // len(h))
    grid = ceil_div(seq_len, _BLOCK_TOKENS), len(h), ceil_div(batch * constants["WIDTH"], constants["BLOCK_COLUMNS"])
    launch(
        "toeplitz:convolve", grid, u, h, y, seq_len, h.shape[1], batch, *u.stride()[:2], *y.stride()[:2],
        REVERSE=reverse, **constants,
    )  # fmt: skip
    return y


def _filter_gradient(u: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    (batch, seq_len, channels), (groups, taps) = u.shape, h.shape
    constants, block = _constants(u, channels // groups), _BLOCK_TOKENS
    distances = ceil_div(taps + block - 1, block)
    splits = max(1, min(ceil_div(seq_len, block), _BACKWARD_PROGRAMS // (distances * groups)))
    products = torch.empty(splits, groups, distances, block, block, dtype=torch.float32, device=u.device)
    launch(
        "toeplitz:correlate", (distances, groups, splits), u, grad, products, seq_len, batch, *u.stride()[:2],
        *grad.stride()[:2], COLUMN_BLOCKS=ceil_div(batch * constants["WIDTH"], constants["BLOCK_COLUMNS"]), **constants,
    )  # fmt: skip
    # Entry (i, j) at a distance belongs to the lag distance * block + i - j. With the columns in reverse and row i
    # begun i places later, lags lie in columns: -(block - 1) to block - 1.
    skewed = F.pad(products.sum(0).flip(-1), (0, block)).flatten(-2)[..., :-block]
    by_lag = skewed.unflatten(-1, (block, 2 * block - 1)).sum(-2)  # [groups, distances, 2 block - 1]
    dh = by_lag.new_zeros(groups, (distances + 1) * block)
    for distance, sums in enumerate(by_lag.unbind(1)):
        dh[:, distance * block : distance * block + 2 * block - 1] += sums
    return dh[:, block - 1 : block - 1 + taps].to(h.dtype)


def _constants(u: Tensor, width: int) -> dict[str, int]:
    columns = max(16, min(64, power_of_two(len(u) * width)))
    blocks = {"BLOCK_TOKENS": _BLOCK_TOKENS, "BLOCK_COLUMNS": columns}
    return {"WIDTH": width, **blocks, "WIDEN": widen(u), "num_warps": 4}
