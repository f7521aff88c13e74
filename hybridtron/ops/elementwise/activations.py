"""Activations of feed-forward layers: SwiGLU, and those of the plain MLP by the name that configs use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.dispatch import kernels, otherwise, plain, register, select
from hybridtron.ops.elementwise.row_blocks import as_rows, from_rows, row_order, split_rows
from hybridtron.ops.native.library import require_kernels
from hybridtron.ops.triton import activations as triton_activations
from hybridtron.ops.triton.launch import triton_kernels

aten = torch.ops.aten


def gelu(x: Tensor) -> Tensor:
    """Compute GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return select("gelu", x)(x)


def gelu_reference(x: Tensor) -> Tensor:
    """Compute `gelu` by its formula."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """Compute relu(x)^2 (So et al. 2021, arXiv 2109.08668)."""
    return select("relu2", x)(x)


def swiglu(x: Tensor) -> Tensor:
    """Compute silu(gate) * up for x [..., 2f] whose first half is the gate and second half is up; returns [..., f].

    Shazeer 2020, arXiv 2002.05202: a linear layer gated by the SiLU of another.
    """
    return select("swiglu", x)(x)


def swiglu_reference(x: Tensor) -> Tensor:
    """Compute `swiglu` by its formula."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def clamped_swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """Compute (up + 1) * gate * sigmoid(alpha * gate) for x [..., 2f] whose first half is the gate and second half is
    up; the gate is at most `limit`, up within [-limit, limit]. Returns [..., f] (gpt-oss)."""
    gate, up = x.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


class _Form(NamedTuple):
    """An activation of `inputs` runs of channels; its kernels are NAME_forward and NAME_backward.

    `forward` writes its last argument from the inputs, `backward` its last `inputs` from these and the gradient.
    """

    name: str
    inputs: int
    forward: Callable[..., Any] | None = None  # None: by kernels alone
    backward: Callable[..., Any] | None = None


class _Activation(torch.autograd.Function):
    """Keeps its input alone: an activation is cheaper to compute again than to write and read back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: _Form, native: bool) -> Tensor:
        order = row_order(x)
        rows = as_rows(x, order)
        out = torch.empty(len(rows), x.shape[-1] // form.inputs, dtype=x.dtype, device=x.device)
        if native:
            getattr(require_kernels(), f"{form.name}_forward")(*out.shape, rows, rows.stride(0), out)
        else:
            for block in split_rows(*rows.chunk(form.inputs, -1), out):
                form.forward(*block)  # type: ignore[misc]
        ctx.save_for_backward(rows)
        ctx.shape, ctx.order, ctx.form, ctx.native = x.shape, order, form, native
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,), form = ctx.saved_tensors, ctx.form
        dx, grads = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device), as_rows(grad, ctx.order)
        if ctx.native:
            kernel = getattr(require_kernels(), f"{form.name}_backward")
            kernel(*grads.shape, rows, rows.stride(0), grads, grads.stride(0), dx)
        else:
            for block in split_rows(*rows.chunk(form.inputs, -1), grads, *dx.chunk(form.inputs, -1)):
                form.backward(*block)
        return from_rows(dx, ctx.shape, ctx.order), None, None


def _apply(form: _Form, native: bool, x: Tensor) -> Tensor:
    return _Activation.apply(x, form, native)


def _swiglu_backward(gate: Tensor, up: Tensor, dy: Tensor, dgate: Tensor, dup: Tensor) -> None:
    aten.silu_backward.grad_input(torch.mul(dy, up, out=dgate), gate, grad_input=dgate)
    aten.silu.out(gate, out=dup).mul_(dy)


_SWIGLU = _Form("swiglu", 2, lambda gate, up, y: aten.silu.out(gate, out=y).mul_(up), _swiglu_backward)
_RELU2 = _Form(
    "squared_relu",
    1,
    lambda x, y: torch.clamp_min(x, 0, out=y).mul_(y),
    lambda x, dy, dx: torch.clamp_min(x, 0, out=dx).mul_(dy).mul_(2),
)

for operation, label, formula, form, on_cuda in (
    ("swiglu", "swiglu", swiglu_reference, _SWIGLU, triton_activations.swiglu),
    ("relu2", "squared relu", lambda x: F.relu(x).square(), _RELU2, triton_activations.relu2),
):
    register(
        operation,
        label,
        plain(formula, compiled=True),
        triton_kernels(on_cuda),
        kernels(partial(_apply, form, True)),
        otherwise("PyTorch, in blocks of rows", partial(_apply, form, False)),
        sample=lambda one: (one,),
    )

register(
    "gelu",
    "gelu",
    plain(gelu_reference, compiled=True),
    kernels(partial(_apply, _Form("gelu", 1), True)),
    otherwise("PyTorch", gelu_reference),
    sample=lambda one: (one,),
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": F.relu, "relu2": relu2, "silu": F.silu}
