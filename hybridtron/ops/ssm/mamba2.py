"""What Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) does between its projections: short convolution, scan, gated norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.conv.short_conv import short_conv
from hybridtron.ops.elementwise.norm import gated_rms_norm
from hybridtron.ops.elementwise.row_blocks import CPU_BLOCK_ELEMENTS, runs
from hybridtron.ops.native.library import Kernels, kernels_for, pieces, require_kernels
from hybridtron.ops.ssm.ssd import chunks_of, ssd

_MOST_TAPS = 16  # MOST_TAPS of native/mamba2.c


def mamba2_core(
    packed: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    head_dim: int,
    state_dim: int,
    chunk_size: int,
    eps: float,
) -> Tensor:
    """z, x, B, C, dt in the channels of packed [s, b, z + x + B + C + dt] -> [s, b, heads * p].

    x, B and C pass the causal convolution, conv_weight [x + B + C, k], and SiLU; `ssd` runs over them with steps
    softplus(dt + dt_bias) and A, negative; its result is gated by z and normed over the heads that share B and C.
    dt_bias, A and D are [heads], norm_weight [heads * p].
    """
    sizes = _Sizes.of(packed, conv_weight, D, head_dim, state_dim, chunk_size)
    arguments = (packed, conv_weight, conv_bias, dt_bias, A, D, norm_weight, sizes, eps)
    if sizes.taps <= _MOST_TAPS and packed.stride(-1) == 1 and kernels_for(*arguments[:7]):
        return _FusedMamba2.apply(*arguments)
    return composed_mamba2(*arguments)


class _Sizes(NamedTuple):
    seq_len: int
    batch: int
    heads: int
    head_dim: int
    groups: int
    state_dim: int
    chunk_size: int
    chunks: int
    length: int  # of a chunk
    taps: int

    @classmethod
    def of(
        cls, packed: Tensor, conv_weight: Tensor, D: Tensor, head_dim: int, state_dim: int, chunk_size: int
    ) -> _Sizes:
        (seq_len, batch, _), heads, (channels, taps) = packed.shape, len(D), conv_weight.shape
        groups = (channels - heads * head_dim) // (2 * state_dim)
        chunks, length = chunks_of(seq_len, chunk_size)
        return cls(seq_len, batch, heads, head_dim, groups, state_dim, chunk_size, chunks, length, taps)

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def convolved(self) -> list[tuple[int, int]]:
        """Heads or groups, and their width, of x, B and C."""
        shared = (self.groups, self.state_dim)
        return [(self.heads, self.head_dim), shared, shared]

    @property
    def channels(self) -> int:
        return sum(count * width for count, width in self.convolved)


def composed_mamba2(
    packed: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    sizes: _Sizes,
    eps: float,
) -> Tensor:
    """`mamba2_core` from ops that work by themselves."""
    # Split before transposing: the gradients are then joined in the order that the projection wants.
    parts = packed.split([sizes.inner, sizes.channels, sizes.heads], -1)
    z, conv_input, dt = (part.transpose(0, 1) for part in parts)  # [b, s, .]
    convolved = short_conv(conv_input, conv_weight, conv_bias, activation="silu")
    split = convolved.split([count * width for count, width in sizes.convolved], -1)
    x, b, c = (
        part.unflatten(-1, size) for part, size in zip(split, sizes.convolved, strict=True)
    )  # [b, s, heads or groups, .]
    y = ssd(x, F.softplus(dt.float() + dt_bias), A, b, c, D, sizes.chunk_size).flatten(2)  # [b, s, heads * p]
    return gated_rms_norm(y, z, norm_weight, eps, sizes.groups).transpose(0, 1)


class _FusedMamba2(torch.autograd.Function):
    """Sequence by sequence, so that what one step writes the next reads from cache, with the gradient written packed.

    Tensors of a sequence are [chunks, heads or groups, length, .]. The convolution is repeated in backward, which costs
    less than keeping its outputs; no matrix multiplication is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        dt_bias: Tensor,
        A: Tensor,
        D: Tensor,
        norm_weight: Tensor,
        sizes: _Sizes,
        eps: float,
    ) -> Tensor:
        tensors = (conv_weight.t(), conv_bias, dt_bias, A, D, norm_weight)
        weights = _Weights(*(tensor.contiguous() for tensor in tensors))
        kept = _Kept.empty(packed, sizes)
        out, buffers = packed.new_empty(sizes.seq_len, sizes.batch, sizes.inner), _Buffers.empty(packed, sizes)
        for index in range(sizes.batch):
            _forward(packed[:, index], weights, sizes, eps, buffers, kept.of(index), out[:, index])
        ctx.save_for_backward(packed, *weights, *kept)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, *saved = ctx.saved_tensors
        sizes, weights, kept = ctx.sizes, _Weights(*saved[:6]), _Kept(*saved[6:])
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        dpacked, buffers, sums = torch.empty_like(packed), _Buffers.empty(packed, sizes), _Sums.empty(packed, sizes)
        for index in range(sizes.batch):
            _backward(
                packed[:, index], weights, sizes, buffers, kept.of(index), grad[:, index], dpacked[:, index],
                sums.of(index),
            )  # fmt: skip
        conv = sums.conv.sum((0, 1))  # [k + 1, channels]
        rest = (sums.dt_bias.sum(0), sums.A.sum(0), sums.D.sum((0, 1)), sums.norm.sum((0, 1)))
        return dpacked, conv[:-1].t(), conv[-1], *rest, None, None


class _Weights(NamedTuple):
    taps: Tensor  # [k, channels]
    conv_bias: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    norm: Tensor


class _Kept(NamedTuple):
    """What the forward pass leaves to the backward pass; the first axis is that of the sequences."""

    y: Tensor  # before the norm [b, chunks, h, l, p]
    inverse: Tensor  # of the root mean squares [b, s, g]
    scores: Tensor  # C B^T [b, chunks, g, l, l]
    states: Tensor  # after every chunk but the last [b, chunks - 1, h, n, p]
    decays: Tensor  # dt, total, inject and carry of `ssd_tiles` [b, 4, chunks, h, l]

    @classmethod
    def empty(cls, like: Tensor, sizes: _Sizes) -> _Kept:
        s, b, h, p, g, n, _, chunks, length, _ = sizes
        return cls(
            like.new_empty(b, chunks, h, length, p),
            like.new_empty(b, s, g),
            like.new_empty(b, chunks, g, length, length),
            like.new_empty(b, chunks - 1, h, n, p),
            like.new_empty(b, 4, chunks, h, length),
        )

    def of(self, index: int) -> _Kept:
        return _Kept(*(tensor[index] for tensor in self))


class _Buffers(NamedTuple):
    """What is overwritten sequence by sequence."""

    convolved: list[Tensor]  # x, B, C [chunks, h or g, l, .]
    matrices: Tensor  # as many chunks of [h, l, l] as stay in cache
    scaled: Tensor  # B or C by the factor of each head [chunks - 1, h, l, n]
    zeros: Tensor  # the tokens before the sequence

    @classmethod
    def empty(cls, like: Tensor, sizes: _Sizes) -> _Buffers:
        square = sizes.heads * sizes.length**2
        at_a_time = min(sizes.chunks, max(1, CPU_BLOCK_ELEMENTS // square))
        return cls(
            [like.new_empty(sizes.chunks, count, sizes.length, width) for count, width in sizes.convolved],
            like.new_empty(at_a_time, sizes.heads, sizes.length, sizes.length),
            like.new_empty(sizes.chunks - 1, sizes.heads, sizes.length, sizes.state_dim),
            like.new_zeros(sizes.inner + sizes.groups * sizes.state_dim),
        )


class _Sums(NamedTuple):
    """Gradients of the parameters, in the parts that the kernels leave; the first axis is that of the sequences."""

    conv: Tensor  # [b, chunks, k + 1, channels], the last of k + 1 that of the bias
    dt_bias: Tensor  # [b, h]
    A: Tensor
    D: Tensor  # [b, chunks, h]
    norm: Tensor  # [b, pieces, heads * p]

    @classmethod
    def empty(cls, like: Tensor, sizes: _Sizes) -> _Sums:
        batch, heads = sizes.batch, sizes.heads
        return cls(
            like.new_empty(batch, sizes.chunks, sizes.taps + 1, sizes.channels),
            like.new_empty(batch, heads),
            like.new_empty(batch, heads),
            like.new_empty(batch, sizes.chunks, heads),
            like.new_empty(batch, pieces(sizes.seq_len), sizes.inner),
        )

    def of(self, index: int) -> _Sums:
        return _Sums(*(tensor[index] for tensor in self))


def _batch(x: Tensor) -> Tensor:
    """[chunks, heads, i, j] as [chunks heads, i, j]."""
    return x.view(-1, *x.shape[2:])


def _convolve(kernels: Kernels, packed: Tensor, weights: _Weights, sizes: _Sizes, buffers: _Buffers) -> list[Tensor]:
    start = 0
    for (count, width), out in zip(sizes.convolved, buffers.convolved, strict=True):
        kernels.conv_forward(
            sizes.seq_len, sizes.length, count, width, sizes.taps, sizes.channels, packed[:, sizes.inner + start :],
            packed.stride(0), weights.taps[:, start:], weights.conv_bias[start:], buffers.zeros, out,
        )  # fmt: skip
        start += count * width
    return buffers.convolved


def _forward(
    packed: Tensor, weights: _Weights, sizes: _Sizes, eps: float, buffers: _Buffers, kept: _Kept, out: Tensor
) -> None:
    """Writes `kept` and out [s, heads * p] of one sequence from packed [s, .]."""
    kernels = require_kernels(packed)
    s, _, h, p, g, n, _, chunks, length, _ = sizes
    y, inverse, scores, states, (dt, total, inject, carry) = kept
    x, b, c = _convolve(kernels, packed, weights, sizes, buffers)
    raw, step = packed[:, sizes.inner + sizes.channels :], packed.stride(0)
    kernels.decays_forward(s, length, h, raw, step, weights.dt_bias, weights.A, dt, total, inject, carry)
    for run in runs(chunks, len(buffers.matrices)):
        count = run.stop - run.start
        matrices = buffers.matrices[:count]
        torch.bmm(_batch(c[run]), _batch(b[run]).transpose(1, 2), out=_batch(scores[run]))
        kernels.ssd_matrices(count, h, g, length, scores[run], total[run], dt[run], weights.D, matrices)
        torch.bmm(_batch(matrices), _batch(x[run]), out=_batch(y[run]))
    if chunks > 1:
        scaled = buffers.scaled
        kernels.scale_tokens(chunks - 1, h, g, length, n, b, inject, scaled)
        torch.bmm(_batch(scaled).transpose(1, 2), _batch(x[:-1]), out=_batch(states))
        kernels.scan_states(chunks - 1, h, length, n * p, carry, states)
        kernels.scale_tokens(chunks - 1, h, g, length, n, c[1:], carry[1:], scaled)
        later = _batch(y[1:])
        torch.baddbmm(later, _batch(scaled), _batch(states), out=later)
    kernels.gated_norm_forward(
        s, length, h, p, g, y, packed, step, weights.norm, eps, out, out.stride(0), inverse
    )  # fmt: skip


def _backward(
    packed: Tensor,
    weights: _Weights,
    sizes: _Sizes,
    buffers: _Buffers,
    kept: _Kept,
    grad: Tensor,
    dpacked: Tensor,
    sums: _Sums,
) -> None:
    """Writes dpacked [s, .] and `sums` of one sequence from grad [s, heads * p]."""
    kernels = require_kernels(packed)
    s, _, h, p, g, n, _, chunks, length, taps = sizes
    y, inverse, scores, states, (dt, total, inject, carry) = kept
    step, dstep = packed.stride(0), dpacked.stride(0)
    x, b, c = _convolve(kernels, packed, weights, sizes, buffers)
    dy, dx, db, dc = torch.empty_like(y), torch.empty_like(x), torch.empty_like(b), torch.empty_like(c)
    kernels.gated_norm_backward(
        s, length, h, p, g, y, packed, step, weights.norm, inverse, grad, grad.stride(0), dy, dpacked, dstep, sums.norm
    )
    dscores, log_total, log_step = torch.empty_like(scores), torch.empty_like(total), torch.empty_like(total)
    diagonals = total.new_empty(len(buffers.matrices), h, length)
    for run in runs(chunks, len(buffers.matrices)):
        count = run.stop - run.start
        matrices, of_scores = buffers.matrices[:count], _batch(dscores[run])
        torch.bmm(_batch(dy[run]), _batch(x[run]).transpose(1, 2), out=_batch(matrices))
        kernels.ssd_matrices_backward(
            count, h, g, length, scores[run], total[run], dt[run], weights.D, matrices, dscores[run], log_total[run],
            log_step[run], sums.D[run], diagonals,
        )  # fmt: skip
        torch.bmm(_batch(matrices).transpose(1, 2), _batch(dy[run]), out=_batch(dx[run]))
        torch.bmm(of_scores, _batch(b[run]), out=_batch(dc[run]))
        torch.bmm(of_scores.transpose(1, 2), _batch(c[run]), out=_batch(db[run]))
    log_carry, log_inject = torch.empty_like(total[1:]), torch.empty_like(total[1:])
    log_chunk = total.new_empty(chunks - 1, h)
    if chunks > 1:
        scaled, dstates = buffers.scaled, torch.empty_like(states)
        shape = (chunks - 1, h, g, length, n)
        torch.bmm(_batch(dy[1:]), _batch(states).transpose(1, 2), out=_batch(scaled))
        kernels.scale_tokens_backward(*shape, c[1:], carry[1:], scaled, dc[1:], log_carry)
        kernels.scale_tokens(*shape, c[1:], carry[1:], scaled)
        torch.bmm(_batch(scaled).transpose(1, 2), _batch(dy[1:]), out=_batch(dstates))
        kernels.scan_states_backward(chunks - 1, h, length, n * p, carry, states, dstates, log_chunk)
        torch.bmm(_batch(x[:-1]), _batch(dstates).transpose(1, 2), out=_batch(scaled))
        kernels.scale_tokens_backward(*shape, b, inject, scaled, db, log_inject)
        kernels.scale_tokens(*shape, b, inject, scaled)
        earlier = _batch(dx[:-1])
        torch.baddbmm(earlier, _batch(scaled), _batch(dstates), out=earlier)
    first = sizes.inner + sizes.channels
    kernels.decays_backward(
        s, length, h, packed[:, first:], step, weights.dt_bias, weights.A, dt, log_total, log_step, log_carry,
        log_inject, log_chunk, dpacked[:, first:], dstep, sums.A, sums.dt_bias,
    )  # fmt: skip
    start, rings = 0, packed.new_empty(chunks, taps, max(h * p, g * n))
    for (count, width), gradient in zip(sizes.convolved, (dx, db, dc), strict=True):
        kernels.conv_backward(
            s, length, count, width, taps, sizes.channels, packed[:, sizes.inner + start :], step,
            weights.taps[:, start:], weights.conv_bias[start:], buffers.zeros, gradient,
            dpacked[:, sizes.inner + start :], dstep, sums.conv[..., start:], rings,
        )  # fmt: skip
        start += count * width
