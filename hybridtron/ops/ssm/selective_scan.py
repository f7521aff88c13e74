"""Mamba's selective scan (Gu & Dao 2023, arXiv 2312.00752): a state space whose step and in- and output depend on the
token, with a decay for every channel and state element.

For channel d and state element n:
    h_t[d, n] = exp(dt_t[d] A[d, n]) h_{t-1}[d, n] + dt_t[d] x_t[d] B_t[n],
    y_t[d] = sum_n C_t[n] h_t[d, n] + D[d] x_t[d].

No chunk of it is a matrix product. Where the compiled kernels serve it takes one of them, else `selective_scan_tiles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.dispatch import Implementation, otherwise, plain, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.memory_layout import channels_contiguous
from hybridtron.ops.native.library import kernels_for, require_kernels
from hybridtron.ops.recurrence import run_steps, sums_around
from hybridtron.ops.ssm.selective_scan_tiles import TiledScan
from hybridtron.ops.ssm.vendor import SELECTIVE_SCAN

MAX_STATES = 64  # MOST_STATES of native/selective_scan.c
_SEGMENT, _BLOCK = 32, 32  # SEGMENT and BLOCK of native/selective_scan.c


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Compute the selective scan over whole sequences from a zero state.

    x and dt [b, s, d], dt not negative; A [d, n], negative; B and C [b, s, n]; D [d]. Returns y [b, s, d]. States are
    kept in float32 (float64 for float64 inputs).
    """
    return select("selective_scan", A, x, dt, B, C, D)(x, dt, A, B, C, D)


def selective_scan_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Compute the recurrence itself, token by token in float64."""
    state = x.new_zeros(x.shape[0], *A.shape)
    return run_steps(lambda state, x, dt, B, C: selective_scan_step(state, x, dt, A, B, C, D), state, x, dt, B, C)[0]


def selective_scan_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute one token: state [b, d, n], x and dt [b, d], B and C [b, n]; returns y [b, d] and the state."""
    inputs, steps, b, c = (t.to(state.dtype) for t in (x, dt, B, C))
    decay = (steps.unsqueeze(-1) * A.to(state.dtype)).exp()
    state = decay * state + (steps * inputs).unsqueeze(-1) * b.unsqueeze(1)
    y = (state * c.unsqueeze(1)).sum(-1) + D.to(state.dtype) * inputs
    return y.to(x.dtype), state


def _plain_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Compute the same in differentiable, batchable operations, which keep all states."""
    dtype = accumulation_dtype(x)
    inputs, steps, b, c = (t.to(dtype) for t in (x, dt, B, C))
    decays = (steps.unsqueeze(-1) * A.to(dtype)).exp()  # [b, s, d, n]
    added = (steps * inputs).unsqueeze(-1) * b.unsqueeze(2)
    state, states = torch.zeros_like(added[:, 0]), []
    for new, decay in zip(added.unbind(1), decays.unbind(1), strict=True):
        state = torch.addcmul(new, decay, state)
        states.append(state)
    y = (torch.stack(states, 1) * c.unsqueeze(2)).sum(-1) + D.to(dtype) * inputs
    return y.to(x.dtype)


def selective_scan_prefill(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `selective_scan` from state [b, d, n]; returns y [b, s, d] and the state after the last token.

    Without gradients the compiled kernels start from a state. Otherwise what the state adds is computed beside a scan
    from zero, one of its n elements after another.
    """
    if A.shape[1] > MAX_STATES or torch.is_grad_enabled() or kernels_for(state, x, dt, A, B, C, D) is None:
        return _beside_scan(state, x, dt, A, B, C, D)
    carried = state.transpose(1, 2).contiguous()  # [b, n, d]
    if carried.data_ptr() == state.data_ptr():
        carried = carried.clone()
    x, dt, B, C = (channels_contiguous(t) for t in (x, dt, B, C))
    y, _ = _scan_forward(x, dt, A.t().contiguous(), B, C, D.contiguous(), carried.unbind())
    return y, carried.transpose(1, 2)


def _beside_scan(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    inputs, steps, rates, b, c = (t.to(state.dtype) for t in (x, dt, A, B, C))
    before, after = sums_around(steps)
    y, stepped, states = selective_scan(x, dt, A, B, C, D).to(state.dtype), steps * inputs, []
    for n, held in enumerate(state.unbind(-1)):
        rate = rates[:, n]
        left = (before * rate).exp()
        y = y + c[..., n : n + 1] * left * held.unsqueeze(1)
        states.append(left[:, -1] * held + ((after * rate).exp() * stepped * b[..., n : n + 1]).sum(1))
    return y.to(x.dtype), torch.stack(states, -1)


class _NativeScan(torch.autograd.Function):
    """Sequence by sequence; of the states only those before every segment of tokens are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        x, dt, B, C = (channels_contiguous(t) for t in (x, dt, B, C))
        columns, skip = A.t().contiguous(), D.contiguous()  # A as [n, d]
        y, starts = _scan_forward(x, dt, columns, B, C, skip, [None] * len(x))
        ctx.save_for_backward(x, dt, columns, B, C, skip, starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, dt, columns, B, C, skip, starts = ctx.saved_tensors
        grad, (batch, seq_len, width), states = channels_contiguous(grad), x.shape, len(columns)
        blocks = -(-width // _BLOCK)
        dx, ddt, dA, dD = torch.empty_like(x), torch.empty_like(dt), torch.zeros_like(columns), torch.zeros_like(skip)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        sums, work = x.new_empty(2, blocks, seq_len, states), x.new_empty(blocks, 2, _SEGMENT, states, _BLOCK)
        kernels = require_kernels()
        for index in range(batch):
            kernels.scan_backward(
                seq_len, width, states, *_rows(x[index], dt[index]), columns, *_rows(B[index], C[index]), skip,
                starts[index], *_rows(grad[index]), work, *_rows(dx[index], ddt[index]), dA, sums[0], sums[1], dD,
            )  # fmt: skip
            torch.sum(sums[0], 0, out=dB[index])
            torch.sum(sums[1], 0, out=dC[index])
        return dx, ddt, dA.t(), dB, dC, dD


def _scan_forward(
    x: Tensor, dt: Tensor, columns: Tensor, B: Tensor, C: Tensor, skip: Tensor, carried: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Return y and the states before every segment [b, segments, n, d]; `carried` [n, d] of each sequence is read and
    overwritten by its state after the last token, None stands for zeros."""
    (batch, seq_len, width), kernels = x.shape, require_kernels()
    y, starts = torch.empty_like(x), x.new_empty(batch, -(-seq_len // _SEGMENT), *columns.shape)
    for index in range(batch):
        kernels.scan_forward(
            seq_len, width, len(columns), *_rows(x[index], dt[index]), columns, *_rows(B[index], C[index]), skip,
            carried[index], starts[index], *_rows(y[index]),
        )  # fmt: skip
    return y, starts


def _rows(*tensors: Tensor) -> Iterator[Tensor | int]:
    """Yield the arguments of a kernel for rows [s, .]: each tensor and the stride of its rows."""
    for tensor in tensors:
        yield tensor
        yield tensor.stride(0)


register(
    "selective_scan",
    "mamba1 scan",
    plain(_plain_scan),
    SELECTIVE_SCAN,
    Implementation(
        "C kernels",
        f"float32 on a CPU, at most {MAX_STATES} states",
        lambda A, *others: A.shape[1] <= MAX_STATES and kernels_for(A, *others) is not None,
        _NativeScan.apply,
    ),
    otherwise("PyTorch, in tiles", TiledScan.apply),
    sample=lambda one: (one,),
)
