"""Multi-head Hyena's convolution of outer products (Massaroli et al. 2023, arXiv 2310.18780, section 4).

Every head has a filter h, and its state is a matrix: y_t = q_t^T sum_{j <= t} h_{t - j} k_j v_j^T. Two forms give the
same result, both in memory that is linear in the length: by pairs of tokens, at a cost per token that grows with the
length, and by Fourier transforms of all d * d entries of k v^T, at one that grows with its logarithm. The faster one is
taken, so the logarithm bounds the cost of any length. Compiled kernels go by pairs of tokens too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hybridtron.ops.conv import outer_conv_fft, outer_conv_pairs
from hybridtron.ops.conv.outer_conv_native import MOST_TOKENS, MOST_WIDTH, NativeOuterConv, takes_native_outer_conv
from hybridtron.ops.cuts import PAIRS_FACTOR, runs, takes_pairs
from hybridtron.ops.dispatch import Implementation, otherwise, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype


def outer_conv(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Convolve q, k and v [b, s, m, d] of m heads with h [m, at least s]; return y [b, s, m, d] in the dtype of v.

    Computed in float32, or in float64 for float64 inputs. By pairs of tokens no output depends on a later one. By
    transforms, beyond 6 d^2 tokens, rounding carries a token into earlier outputs too: any y_tp is then off by at most
    eps log2(4 s) |h| sum_n |q_tn| |k_n v_p|, with eps of that dtype and 2-norms over the s tokens.
    """
    seq_len, dtype = q.shape[1], accumulation_dtype(v)
    arguments = (q.to(dtype), k.to(dtype), v.to(dtype), h[:, :seq_len].to(dtype))
    return select("outer_conv", *arguments)(*arguments).to(v.dtype)


def outer_conv_prefill(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Compute `outer_conv` of the last s of t tokens: q [b, s, m, d], k and v [b, t, m, d], h [m, t] -> [b, s, m, d].

    Earlier tokens are read in blocks of s, whose weights h_{t - j} are a view of the filter.
    """
    seq_len, dtype = q.shape[1], accumulation_dtype(v)
    before = k.shape[1] - seq_len
    y = outer_conv(q, k[:, before:], v[:, before:], h)
    if not before:
        return y
    queries, keys, values = (t.to(dtype).transpose(1, 2) for t in (q, k, v))  # [b, m, ., d]
    carried, reversed_taps = torch.zeros_like(queries), h.to(dtype).flip(-1)  # tap i at t - 1 - i
    for block in runs(before, seq_len):
        scores = queries @ keys[:, :, block].transpose(-1, -2)
        # Query i stands at before + i, key j at block.start + j: its tap is at (t - 1 - before - i) + block.start + j.
        part = reversed_taps[:, block.start : block.stop + seq_len - 1]
        weights = part.unfold(-1, block.stop - block.start, 1).flip(1)  # [m, s, keys]
        carried = carried + (scores * weights) @ values[:, :, block]
    return (y + carried.transpose(1, 2)).to(v.dtype)


def by_pairs(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Compute `outer_conv` of float32 or float64 with h [m, s], at a cost of s^2 d."""
    return _OuterConv.apply(q, k, v, h, outer_conv_pairs, torch.is_grad_enabled())[0]


def by_fft(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Compute the same as `by_pairs`, at a cost of s log(s) d^2."""
    return _OuterConv.apply(q, k, v, h, outer_conv_fft, torch.is_grad_enabled())[0]


def outer_conv_reference(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Compute the sum itself, token by token over the states [m, d, d] of float64."""
    q, k, v, h = (t.double() for t in (q, k, v, h))
    added = k.unsqueeze(-1) * v.unsqueeze(-2)  # [b, s, m, d, d]
    outputs = []
    for t in range(q.shape[1]):
        weights = h[:, : t + 1].flip(-1).t()[..., None, None]  # [t + 1, m, 1, 1]
        outputs.append((q[:, t].unsqueeze(-1) * (weights * added[:, : t + 1]).sum(1)).sum(-2))
    return torch.stack(outputs, 1)


class _OuterConv(torch.autograd.Function):
    """Either form, with its own gradients. Under vmap the mapped axis becomes more heads."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, h: Tensor, form: ModuleType, keep: bool) -> tuple[Tensor, Tensor]:
        return form.forward(q, k, v, h, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, h, ctx.form, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, h, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        return *_Gradients.apply(*ctx.saved_tensors, grad, ctx.form), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _over_heads(_OuterConv.apply, info.batch_size, in_dims, inputs, (2, 2, 2, 0), (2, 0))


class _Gradients(torch.autograd.Function):
    """A function of its own, so that it too can be mapped."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, h: Tensor, kept: Tensor, grad: Tensor, form: ModuleType
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return form.gradients(q, k, v, h, kept, grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save nothing: there are no second derivatives."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _over_heads(_Gradients.apply, info.batch_size, in_dims, inputs, (2, 2, 2, 0, 0, 2), (2, 2, 2, 0))


def _over_heads(
    function: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Sequence[int | None],
    inputs: Sequence[Any],
    axes: Sequence[int],
    out_axes: tuple[int, ...],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Call the function with a mapped axis, at `in_dims` of its inputs, folded into that of the heads, at `axes`."""
    folded = []
    for tensor, dim, axis in zip(inputs, in_dims, axes, strict=False):
        if dim is None:
            wide = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
        else:
            wide = tensor.movedim(dim, axis)
        folded.append(wide.flatten(axis, axis + 1))
    outputs = function(*folded, *inputs[len(axes) :])
    return tuple(out.unflatten(axis, (size, -1)) for out, axis in zip(outputs, out_axes, strict=True)), out_axes


register(
    "outer_conv",
    "convolution of outer products",
    Implementation(
        "C kernels, by pairs of tokens",
        f"float32 on a CPU, heads of at most {MOST_WIDTH} channels, at most {MOST_TOKENS} tokens",
        takes_native_outer_conv,
        NativeOuterConv.apply,
    ),
    Implementation(
        "PyTorch, by pairs of tokens",
        f"at most {PAIRS_FACTOR} head_dim^2 tokens",
        lambda q, *_: takes_pairs(q.shape[1], q.shape[3]),
        by_pairs,
    ),
    otherwise("PyTorch, by Fourier transforms", by_fft),
    sample=lambda one: (*3 * (one.new_ones(1, 1, 1, 8),), one),
)
