"""Root-mean-square norm (Zhang & Sennrich 2019, arXiv 1910.07467) and Mamba-2's gated form of it (arXiv 2405.21060)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.device import device_type
from hybridtron.ops.dispatch import Implementation, kernels, otherwise, plain, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.elementwise.row_blocks import as_rows, from_rows, row_order, split_rows
from hybridtron.ops.native.library import pieces, require_kernels
from hybridtron.ops.triton import norm as triton_norm
from hybridtron.ops.triton.launch import triton_kernels

aten = torch.ops.aten


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight over the last axis in float32; x [..., c], weight [c]."""
    return select("rms_norm", x, weight)(x, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm` by its formula."""
    dtype = accumulation_dtype(x)
    wide = x.to(dtype)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)).to(x.dtype)


def sharded_rms_norm(
    x: Tensor, weight: Tensor, eps: float, channels: int, sum_shards: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute `rms_norm` over `channels` channels of which x [..., c] and weight [c] are a shard.

    `sum_shards` adds up a tensor over all shards.
    """
    dtype = accumulation_dtype(x)
    wide = x.to(dtype)
    mean = sum_shards(wide.square().sum(-1, keepdim=True)) / channels
    return (wide * torch.rsqrt(mean + eps) * weight.to(dtype)).to(x.dtype)


def gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float, num_groups: int) -> Tensor:
    """Compute rms_norm of x * silu(z) over each of `num_groups` equal groups of channels: gate first, then norm.

    x and z are [..., c], weight [c]; num_groups divides c. Accumulated in float32; returned in the dtype of x,
    laid out in memory as z is.
    """
    return select("gated_rms_norm", x, z, weight, num_groups)(x, z, weight, eps, num_groups)


def norm_and_gate(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute rms_norm(x) * silu(z) over the last axis: norm first, then gate.

    x and z are [..., heads, d], weight [d]. The norm is accumulated in float32.
    """
    return select("norm_and_gate", x, z, weight)(x, z, weight, eps)


def composed_norm_and_gate(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `norm_and_gate` by two operations."""
    return rms_norm(x, weight, eps) * F.silu(z)


def gated_rms_norm_reference(x: Tensor, z: Tensor, weight: Tensor, eps: float, num_groups: int) -> Tensor:
    """Compute `gated_rms_norm` by its formula."""
    dtype = accumulation_dtype(x)
    gated = (x.to(dtype) * F.silu(z.to(dtype))).unflatten(-1, (num_groups, -1))
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (normed.flatten(-2) * weight.to(dtype)).to(x.dtype)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Compute 1 / sqrt(mean(x^2) + eps) over the last axis, which is kept."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, native: bool) -> Tensor:
        dtype, order = accumulation_dtype(x), row_order(x)
        rows, scale = as_rows(x, order), weight.to(dtype)
        out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        if native:
            inverse_rms = rows.new_empty(len(rows), 1)
            require_kernels().rms_norm_forward(
                *rows.shape, rows, rows.stride(0), weight.contiguous(), eps, out, inverse_rms
            )
        else:
            inverse_rms = _inverse_rms(rows.to(dtype), eps)
            for source, factor, target in split_rows(rows, inverse_rms, out):
                if x.dtype == dtype:
                    torch.mul(source, factor, out=target).mul_(scale)
                else:
                    torch.mul(source * factor, scale, out=target)
        ctx.save_for_backward(rows, weight, inverse_rms)
        ctx.shape, ctx.order, ctx.native = x.shape, order, native
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Call the fused kernel of layer normalisation with a mean of zero.

        That kernel returns r (g w - mean(g w) - n mean(g w n)) for n = r x, which lacks only the term r mean(g w).
        """
        rows, weight, inverse_rms = ctx.saved_tensors
        dtype, channels = inverse_rms.dtype, rows.shape[-1]
        g, scale = as_rows(grad, ctx.order).to(dtype), weight.to(dtype)
        if ctx.native:
            dx, sums = rows.new_empty(rows.shape), rows.new_empty(pieces(len(rows)), channels)
            require_kernels().rms_norm_backward(
                *rows.shape, rows, rows.stride(0), weight.contiguous(), inverse_rms, g, g.stride(0), dx, sums
            )
            return from_rows(dx, ctx.shape, ctx.order), sums.sum(0), None, None
        dx, dweight, _ = aten.native_layer_norm_backward(
            g, rows.to(dtype), [channels], torch.zeros_like(inverse_rms), inverse_rms, scale, None, [True, True, False]
        )
        dx.add_((g @ scale).div_(channels).unsqueeze_(-1).mul_(inverse_rms))
        return from_rows(dx.to(rows.dtype), ctx.shape, ctx.order), dweight.to(weight.dtype), None, None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, weight: Tensor, eps: float, num_groups: int) -> Tensor:
        dtype, order = accumulation_dtype(x), row_order(z)
        rows, gates, scale = as_rows(x, order), as_rows(z, order), weight.to(dtype)
        out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        inverse_rms = torch.empty(len(rows), num_groups, 1, dtype=dtype, device=x.device)
        for source, gate, factor, target in split_rows(rows, gates, inverse_rms, out):
            gated = F.silu(gate.to(dtype)).mul_(source)
            groups = gated.unflatten(-1, (num_groups, -1))
            groups.mul_(factor.copy_(_inverse_rms(groups, eps)))
            torch.mul(gated, scale, out=target)
        ctx.save_for_backward(rows, gates, weight, inverse_rms)
        ctx.shape, ctx.order = x.shape, order
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        rows, gates, weight, inverse_rms = ctx.saved_tensors
        dtype, num_groups = inverse_rms.dtype, inverse_rms.shape[1]
        scale, channels = weight.to(dtype), rows.shape[1] // num_groups
        dx, dz, dweight = torch.empty_like(rows), torch.empty_like(gates), torch.zeros_like(scale)
        tensors = (rows, gates, as_rows(grad, ctx.order), inverse_rms, dx, dz)
        for source, gate, g, factor, dsource, dgate in split_rows(*tensors):
            x, z, g = source.to(dtype), gate.to(dtype), g.to(dtype)
            activated = F.silu(z)
            normed = (activated * x).view(-1, num_groups, channels).mul_(factor)
            product = g * normed.view(x.shape)
            dweight.add_(product.sum(0))
            along = product.mul_(scale).view(normed.shape).mean(-1, keepdim=True)
            dgated = torch.mul(g, scale, out=product).view(normed.shape)
            dgated = dgated.addcmul_(normed, along, value=-1).mul_(factor).view(x.shape)
            torch.mul(dgated, activated, out=dsource)
            if dgate.dtype == dtype:
                aten.silu_backward.grad_input(dgated.mul_(x), z, grad_input=dgate)
            else:
                dgate.copy_(aten.silu_backward(dgated.mul_(x), z))
        shape, order = ctx.shape, ctx.order
        return from_rows(dx, shape, order), from_rows(dz, shape, order), dweight.to(weight.dtype), None, None


register(
    "rms_norm",
    "rms norm",
    plain(rms_norm_reference, compiled=True),
    triton_kernels(
        triton_norm.rms_norm,
        f"a weight of another dtype than x, at most {triton_norm.MAX_WIDTH} channels",
        # torch.nn.functional.rms_norm would round such a weight to the dtype of x.
        lambda x, weight: weight.dtype != x.dtype and len(weight) <= triton_norm.MAX_WIDTH,
    ),
    Implementation(
        "torch.nn.functional.rms_norm",
        "on CUDA",
        lambda x, weight: device_type(x.device) == "cuda",
        lambda x, weight, eps: F.rms_norm(x, weight.shape, weight.to(x.dtype), eps),
        # PyTorch's _fused_rms_norm keeps x, the weight and the inverse of the root mean squares in float32
        # (tools/autograd/derivatives.yaml), as _RMSNorm does.
        lambda x, weight, eps: _RMSNorm.apply(x, weight.to(x.dtype), eps, False),
    ),
    kernels(lambda x, weight, eps: _RMSNorm.apply(x, weight, eps, True)),
    otherwise("PyTorch, in blocks of rows", lambda x, weight, eps: _RMSNorm.apply(x, weight, eps, False)),
    sample=lambda one: (one, one),
)
register(
    "gated_rms_norm",
    "gated rms norm",
    plain(gated_rms_norm_reference, compiled=True),
    triton_kernels(
        triton_norm.gated_rms_norm,
        f"at most {triton_norm.MAX_WIDTH} channels in a group",
        lambda x, z, weight, num_groups: len(weight) <= num_groups * triton_norm.MAX_WIDTH,
    ),
    otherwise("PyTorch, in blocks of rows", _GatedRMSNorm.apply),
    sample=lambda one: (one, one, one[0], 1),
)
register(
    "norm_and_gate",
    "rms norm, then gate",
    triton_kernels(
        triton_norm.norm_and_gate,
        f"at most {triton_norm.MAX_WIDTH} channels in a head",
        lambda x, z, weight: len(weight) <= triton_norm.MAX_WIDTH,
    ),
    kernels(composed_norm_and_gate),
    otherwise("rms_norm and silu", composed_norm_and_gate, compiled=True),
    sample=lambda one: (one, one, one[0]),
)
