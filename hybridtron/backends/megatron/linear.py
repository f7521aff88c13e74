"""The product of a parallel linear, as megatron-core's own, which adds no weight gradients to `main_grad` without
apex."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.parallel_state import get_global_memory_buffer
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.backends.megatron.main_grad import main_grad_of, weight_gradient
from hybridtron.backends.megatron.tensor_overlap import all_gather_matmul
from hybridtron.ops.linear import linear


def parallel_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    in_pieces: bool = False,
) -> Tensor:
    """Multiply x [s, b, in] by a weight [out, in] and add a bias [out]; return [s, b, out].

    `group` are the processes that multiply the same x by other rows of the weight: its gradient is summed over them.
    With `sequence_parallel` each of them holds a run of the tokens, x [s / tp, b, in], and gets the gradient of those;
    with `in_pieces` these are gathered while others of them are multiplied.
    """
    if group is None or group.size() == 1:
        group, sequence_parallel = None, False
    return _ParallelLinear.apply(x, weight, bias, group, sequence_parallel, in_pieces)


class _ParallelLinear(torch.autograd.Function):
    """Keeps x as it is given. Messages of the backward pass travel during the product that does not need them; on CUDA
    that takes CUDA_DEVICE_MAX_CONNECTIONS=1."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        group: dist.ProcessGroup | None,
        sequence_parallel: bool,
        in_pieces: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad, ctx.group, ctx.sequence_parallel = main_grad_of(weight), group, sequence_parallel
        if group is not None and sequence_parallel and in_pieces:
            y = all_gather_matmul(x, weight, group)
            return y if bias is None else y.add_(bias)
        if group is not None and sequence_parallel:
            x, gathered = _begin_gather(x, group)
            gathered.wait()
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_dx, needs_dweight, needs_dbias = ctx.needs_input_grad[:3]
        rows = grad.reshape(-1, grad.shape[-1])
        gathered, whole, summed, dx, dweight = None, x, None, None, None
        if ctx.sequence_parallel and needs_dweight:
            whole, gathered = _begin_gather(x, ctx.group)
        if needs_dx:
            dx = linear(rows, weight.t()).view(*grad.shape[:-1], x.shape[-1])
        if gathered:
            gathered.wait()
        if dx is not None and ctx.group is not None:
            dx, summed = _begin_sum(dx, x, ctx.group, ctx.sequence_parallel)
        if needs_dweight:
            dweight = weight_gradient(rows, whole.flatten(0, -2), weight, ctx.main_grad)
        dbias = rows.sum(0) if needs_dbias else None
        if summed:
            summed.wait()
        return dx, dweight, dbias, None, None, None


def _begin_gather(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Any]:
    """Begin to gather runs x [s / tp, b, in]; return where [s, b, in] will be, and the message to wait for.

    That is megatron-core's buffer for this, which holds them until the next call.
    """
    whole = get_global_memory_buffer().get_tensor([len(x) * group.size(), *x.shape[1:]], x.dtype, "mpu")
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=True)


def _begin_sum(dx: Tensor, x: Tensor, group: dist.ProcessGroup, scattered: bool) -> tuple[Tensor, Any]:
    """Begin to add up gradients of the same tokens; return where the sum will be, for `scattered` that of the run of
    tokens x alone, and the message to wait for."""
    if not scattered:
        return dx, dist.all_reduce(dx, group=group, async_op=True)
    own = torch.empty_like(x, memory_format=torch.contiguous_format)
    return own, dist.reduce_scatter_tensor(own, dx, group=group, async_op=True)
