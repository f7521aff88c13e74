"""RMS norm over groups of channels, plain or gated, by Triton kernels: one pass over memory in each direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.elementwise.row_blocks import as_rows, from_rows, row_order
from hybridtron.ops.triton.launch import ceil_div, launch, power_of_two

MAX_WIDTH = 16384  # channels of a group, which a program holds at once
_NO_GATE, _GATE_FIRST, _GATE_LAST = 0, 1, 2  # GATE of the kernels
_TILE_ELEMENTS = 2048
_BACKWARD_PROGRAMS = 1024  # about; each leaves one row of partial sums for the weight's gradient


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight over the last axis; x [..., c], weight [c]."""
    return _Norm.apply(x, None, weight, eps, 1, _NO_GATE)


def gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float, num_groups: int) -> Tensor:
    """Compute rms_norm of x * silu(z) over each of `num_groups` groups of channels; x and z [..., c], weight [c]."""
    return _Norm.apply(x, z, weight, eps, num_groups, _GATE_FIRST)


def norm_and_gate(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute rms_norm(x) * silu(z) over the last axis; x and z [..., heads, d], weight [d]."""
    heads = x.shape[-2:]
    return _Norm.apply(x.flatten(-2), z.flatten(-2), weight, eps, heads[0], _GATE_LAST).unflatten(-1, heads)


class _Tile(NamedTuple):
    """The blocks of a program."""

    rows: int
    width: int
    warps: int

    @classmethod
    def of(cls, width: int) -> _Tile:
        block = power_of_two(width)
        rows = max(1, min(32, _TILE_ELEMENTS // block))
        return cls(rows, block, max(1, min(16, rows * block // 256)))

    def constants(self, groups: int, width: int, gate: int) -> dict[str, int]:
        """Return the constants of a kernel."""
        blocks = {"BLOCK_ROWS": self.rows, "BLOCK_WIDTH": self.width, "num_warps": self.warps}
        return {"GROUPS": groups, "WIDTH": width, "GATE": gate, **blocks}


class _Norm(torch.autograd.Function):
    """Keeps its inputs and the inverse root mean squares. A weight of one group's width is shared by all groups."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor | None, weight: Tensor, eps: float, num_groups: int, gate: int
    ) -> Tensor:
        order = row_order(x if z is None else z)
        rows, weight = as_rows(x, order), weight.contiguous()
        gates = rows if z is None else as_rows(z, order)
        count, channels = rows.shape
        width = channels // num_groups
        weight_stride = 0 if len(weight) == width else width
        dtype = torch.promote_types(x.dtype, gates.dtype) if gate == _GATE_LAST else x.dtype
        out = torch.empty(count, channels, dtype=dtype, device=x.device)
        inverse_rms = torch.empty(count, num_groups, dtype=torch.float32, device=x.device)
        tile = _Tile.of(width)
        launch(
            "norm:norm_forward", (ceil_div(count, tile.rows), num_groups), rows, gates, weight, out,
            inverse_rms, count, rows.stride(0), gates.stride(0), weight_stride, eps,
            **tile.constants(num_groups, width, gate),
        )  # fmt: skip
        ctx.save_for_backward(rows, gates, weight, inverse_rms)
        ctx.shape, ctx.order, ctx.gate, ctx.weight_stride = x.shape, order, gate, weight_stride
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, weight, inverse_rms = ctx.saved_tensors
        shape, order, g = ctx.shape, ctx.order, as_rows(grad, ctx.order)
        (count, channels), num_groups = rows.shape, inverse_rms.shape[1]
        width = channels // num_groups
        tile = _Tile.of(width)
        programs = min(ceil_div(count, tile.rows), ceil_div(_BACKWARD_PROGRAMS, num_groups))
        dx = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        dz = torch.empty(rows.shape, dtype=gates.dtype, device=rows.device) if ctx.gate else dx
        sums = torch.empty(programs, num_groups, width, dtype=torch.float32, device=rows.device)
        launch(
            "norm:norm_backward", (programs, num_groups), rows, gates, weight, inverse_rms, g, dx, dz, sums,
            count, rows.stride(0), gates.stride(0), ctx.weight_stride, g.stride(0),
            **tile.constants(num_groups, width, ctx.gate),
        )  # fmt: skip
        dweight = sums.sum(0).flatten() if ctx.weight_stride or num_groups == 1 else sums.sum((0, 1))
        dgate = from_rows(dz, shape, order) if ctx.gate else None
        return from_rows(dx, shape, order), dgate, dweight.to(weight.dtype), None, None, None
