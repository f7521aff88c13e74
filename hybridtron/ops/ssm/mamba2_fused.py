"""Mamba-2 between its projections by the compiled kernels, with its own gradient; see `mamba2` and `ssd`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.cuts import runs
from hybridtron.ops.native.library import Kernels, require_kernels
from hybridtron.ops.ssm.mamba2_buffers import Buffers, Kept, Sizes, Sums, Weights, views


class FusedMamba2(torch.autograd.Function):
    """Sequence by sequence, so that what one step writes the next reads from cache, with the gradient written packed.

    Tensors of a sequence are [chunks, heads or groups, length, .]. The convolution is repeated in backward, which costs
    less than keeping its outputs; no matrix multiplication is.
    """

    @staticmethod
    def forward(ctx: Any, sizes: Sizes, eps: float, packed: Tensor, conv_weight: Tensor, *others: Tensor) -> Tensor:
        weights = Weights(*(tensor.contiguous() for tensor in (conv_weight.t(), *others)))
        kept = Kept.empty(packed, sizes)
        out = packed.new_empty(sizes.seq_len, sizes.batch, sizes.inner)
        run = Run(require_kernels(), weights, sizes, Buffers.empty(packed, sizes))
        for index in range(sizes.batch):
            run.forward(packed[:, index], eps, views(kept, index), out[:, index])
        ctx.save_for_backward(packed, *weights, *kept)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, *saved = ctx.saved_tensors
        sizes, weights, kept = ctx.sizes, Weights(*saved[:6]), Kept(*saved[6:])
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        dpacked, sums = torch.empty_like(packed), Sums.empty(packed, sizes)
        run = Run(require_kernels(), weights, sizes, Buffers.empty(packed, sizes))
        for index in range(sizes.batch):
            run.backward(packed[:, index], views(kept, index), grad[:, index], dpacked[:, index], views(sums, index))
        conv = sums.conv.sum((0, 1))  # [k + 1, channels]
        rest = (sums.dt_bias.sum(0), sums.A.sum(0), sums.D.sum((0, 1)), sums.norm.sum((0, 1)))
        return None, None, dpacked, conv[:-1].t(), conv[-1], *rest


def fused_mamba2_prefill(
    sizes: Sizes, eps: float, first: Tensor, memory: Tensor, packed: Tensor, conv_weight: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `FusedMamba2` from memory [b, h, p, n]; return its output and memory.

    `first` [b, k - 1, channels] is what the convolution makes of the first tokens, which follow on others.
    """
    weights = Weights(*(tensor.contiguous() for tensor in (conv_weight.t(), *others)))
    kept = views(Kept.empty(packed, sizes._replace(batch=1)), 0)
    run = Run(require_kernels(), weights, sizes, Buffers.empty(packed, sizes))
    out = packed.new_empty(sizes.seq_len, sizes.batch, sizes.inner)
    states = memory.new_empty(sizes.chunks + 1, sizes.heads, sizes.state_dim, sizes.head_dim)  # before each, and after
    after = torch.empty_like(memory)
    for index in range(sizes.batch):
        states[0] = memory[index].transpose(1, 2)
        run.prefill(packed[:, index], eps, first[index], kept, states, out[:, index])
        after[index] = states[-1].transpose(1, 2)
    return out, after


def _batch(x: Tensor) -> Tensor:
    """View [chunks, heads, i, j] as [chunks heads, i, j]."""
    return x.view(-1, *x.shape[2:])


class Run(NamedTuple):
    """What all sequences of a pass share."""

    kernels: Kernels
    weights: Weights
    sizes: Sizes
    buffers: Buffers

    def convolve(self, packed: Tensor) -> list[Tensor]:
        """Return x, B and C of one sequence after the convolution and SiLU, written into the buffers."""
        kernels, weights, sizes, buffers = self
        start = 0
        for (count, width), out in zip(sizes.convolved, buffers.convolved, strict=True):
            kernels.conv_forward(
                sizes.seq_len, sizes.length, count, width, sizes.taps, sizes.channels, packed[:, sizes.inner + start :],
                packed.stride(0), weights.taps[:, start:], weights.conv_bias[start:], buffers.zeros, out,
            )  # fmt: skip
            start += count * width
        return buffers.convolved

    def within_chunks(self, packed: Tensor, kept: Kept, first: Tensor | None = None) -> list[Tensor]:
        """Write what tokens of a chunk see of each other, and the decays, into `kept`; return x, B and C.

        `first` [k - 1, channels] takes the place of the convolution's first outputs.
        """
        kernels, weights, sizes, buffers = self
        s, _, h, _, g, _, _, chunks, length, _ = sizes
        y, _, scores, _, (dt, total, inject, carry) = kept
        x, b, c = self.convolve(packed)
        if first is not None:
            for out, part in zip((x, b, c), first.split([n * width for n, width in sizes.convolved], -1), strict=True):
                out[0, :, : len(first)] = part.unflatten(-1, (out.shape[1], -1)).transpose(0, 1)
        raw, step = packed[:, sizes.inner + sizes.channels :], packed.stride(0)
        kernels.decays_forward(s, length, h, raw, step, weights.dt_bias, weights.A, dt, total, inject, carry)
        for run in runs(chunks, len(buffers.matrices)):
            count = run.stop - run.start
            matrices = buffers.matrices[:count]
            torch.bmm(_batch(c[run]), _batch(b[run]).transpose(1, 2), out=_batch(scores[run]))
            kernels.ssd_matrices(count, h, g, length, scores[run], total[run], dt[run], weights.D, matrices)
            torch.bmm(_batch(matrices), _batch(x[run]), out=_batch(y[run]))
        return [x, b, c]

    def norm_and_gate(self, packed: Tensor, eps: float, kept: Kept, out: Tensor) -> None:
        """Write out [s, heads * p] from y of `kept`, gated by z of packed and normed."""
        s, _, h, p, g, _, _, _, length, _ = self.sizes
        self.kernels.gated_norm_forward(
            s, length, h, p, g, kept.y, packed, packed.stride(0), self.weights.norm, eps, out, out.stride(0),
            kept.inverse,
        )  # fmt: skip

    def prefill(self, packed: Tensor, eps: float, first: Tensor, kept: Kept, states: Tensor, out: Tensor) -> None:
        """Write out [s, heads * p] of one sequence from packed [s, .] and the state before the first chunk, states[0],
        and the states after each chunk, states[1:]."""
        _, _, h, _, g, n, _, chunks, length, _ = self.sizes
        x, b, c = self.within_chunks(packed, kept, first)
        _, _, inject, carry = kept.decays
        scaled = packed.new_empty(chunks, h, length, n)
        self.kernels.scale_tokens(chunks, h, g, length, n, b, inject, scaled)
        torch.bmm(_batch(scaled).transpose(1, 2), _batch(x), out=_batch(states[1:]))
        for chunk, decay in enumerate(carry[..., -1:, None].unbind()):
            states[chunk + 1].addcmul_(states[chunk], decay)
        self.kernels.scale_tokens(chunks, h, g, length, n, c, carry, scaled)
        torch.baddbmm(_batch(kept.y), _batch(scaled), _batch(states[:-1]), out=_batch(kept.y))
        self.norm_and_gate(packed, eps, kept, out)

    def forward(self, packed: Tensor, eps: float, kept: Kept, out: Tensor) -> None:
        """Write `kept` and out [s, heads * p] of one sequence from packed [s, .]."""
        kernels, _, sizes, buffers = self
        _, _, h, p, g, n, _, chunks, length, _ = sizes
        y, _, _, states, (_, _, inject, carry) = kept
        x, b, c = self.within_chunks(packed, kept)
        if chunks > 1:
            scaled = buffers.scaled
            kernels.scale_tokens(chunks - 1, h, g, length, n, b, inject, scaled)
            torch.bmm(_batch(scaled).transpose(1, 2), _batch(x[:-1]), out=_batch(states))
            kernels.scan_states(chunks - 1, h, length, n * p, carry, states)
            kernels.scale_tokens(chunks - 1, h, g, length, n, c[1:], carry[1:], scaled)
            later = _batch(y[1:])
            torch.baddbmm(later, _batch(scaled), _batch(states), out=later)
        self.norm_and_gate(packed, eps, kept, out)

    def backward(self, packed: Tensor, kept: Kept, grad: Tensor, dpacked: Tensor, sums: Sums) -> None:
        """Write dpacked [s, .] and `sums` of one sequence from grad [s, heads * p]."""
        kernels, weights, sizes, buffers = self
        s, _, h, p, g, n, _, chunks, length, taps = sizes
        total, step, dstep = kept.decays[1], packed.stride(0), dpacked.stride(0)
        x, b, c = self.convolve(packed)
        dy, dx, db, dc = torch.empty_like(kept.y), torch.empty_like(x), torch.empty_like(b), torch.empty_like(c)
        kernels.gated_norm_backward(
            s, length, h, p, g, kept.y, packed, step, weights.norm, kept.inverse, grad, grad.stride(0), dy, dpacked,
            dstep, sums.norm,
        )  # fmt: skip
        log_total, log_step = torch.empty_like(total), torch.empty_like(total)
        self.backward_within(kept, (dy, dx, db, dc), (log_total, log_step, sums.D))
        log_carry, log_inject = torch.empty_like(total[1:]), torch.empty_like(total[1:])
        log_chunk = total.new_empty(chunks - 1, h)
        if chunks > 1:
            self.backward_between(kept, (dy, dx, db, dc), (log_carry, log_inject, log_chunk))
        first = sizes.inner + sizes.channels
        kernels.decays_backward(
            s, length, h, packed[:, first:], step, weights.dt_bias, weights.A, kept.decays[0], log_total, log_step,
            log_carry, log_inject, log_chunk, dpacked[:, first:], dstep, sums.A, sums.dt_bias,
        )  # fmt: skip
        start, rings = 0, packed.new_empty(chunks, taps, max(h * p, g * n))
        for (count, width), gradient in zip(sizes.convolved, (dx, db, dc), strict=True):
            kernels.conv_backward(
                s, length, count, width, taps, sizes.channels, packed[:, sizes.inner + start :], step,
                weights.taps[:, start:], weights.conv_bias[start:], buffers.zeros, gradient,
                dpacked[:, sizes.inner + start :], dstep, sums.conv[..., start:], rings,
            )  # fmt: skip
            start += count * width

    def backward_within(self, kept: Kept, gradients: tuple[Tensor, ...], by_log: tuple[Tensor, ...]) -> None:
        """Write dx, db and dc of what tokens of a chunk see of each other; write the gradients by c, log dt and D."""
        kernels, weights, sizes, buffers = self
        h, g, chunks, length = sizes.heads, sizes.groups, sizes.chunks, sizes.length
        (x, b, c), scores, (dt, total, _, _) = buffers.convolved, kept.scores, kept.decays
        (dy, dx, db, dc), (log_total, log_step, dD) = gradients, by_log
        dscores, diagonals = torch.empty_like(scores), total.new_empty(len(buffers.matrices), h, length)
        for run in runs(chunks, len(buffers.matrices)):
            count = run.stop - run.start
            matrices, of_scores = buffers.matrices[:count], _batch(dscores[run])
            torch.bmm(_batch(dy[run]), _batch(x[run]).transpose(1, 2), out=_batch(matrices))
            kernels.ssd_matrices_backward(
                count, h, g, length, scores[run], total[run], dt[run], weights.D, matrices, dscores[run],
                log_total[run], log_step[run], dD[run], diagonals,
            )  # fmt: skip
            torch.bmm(_batch(matrices).transpose(1, 2), _batch(dy[run]), out=_batch(dx[run]))
            torch.bmm(of_scores, _batch(b[run]), out=_batch(dc[run]))
            torch.bmm(of_scores.transpose(1, 2), _batch(c[run]), out=_batch(db[run]))

    def backward_between(self, kept: Kept, gradients: tuple[Tensor, ...], by_log: tuple[Tensor, ...]) -> None:
        """Add to dx, db and dc what passes from chunk to chunk; write the gradients by the logarithms of its decays."""
        kernels, _, sizes, buffers = self
        _, _, h, p, g, n, _, chunks, length, _ = sizes
        (x, b, c), states, (_, _, inject, carry) = buffers.convolved, kept.states, kept.decays
        (dy, dx, db, dc), (log_carry, log_inject, log_chunk) = gradients, by_log
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
