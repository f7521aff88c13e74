"""The selective scan over segments of tokens and tiles of channels that stay in cache.

All but the recurrence takes one operation per segment, the recurrence one per token. Backward starts each segment again
from the state before it, which is all that is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.cuts import runs
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.elementwise.row_blocks import block_length, enough

_SEGMENT = 32  # tokens; a state is kept per segment


class _Segment(NamedTuple):
    """Some tokens of some sequences and channels in the dtype of the states; k tokens, i sequences, j channels."""

    x: Tensor  # [k, i, 1, j]
    dt: Tensor
    B: Tensor  # [k, i, n, 1]
    C: Tensor

    @classmethod
    def of(
        cls, tensors: tuple[Tensor, ...], where: tuple[slice, slice], channels: slice, dtype: torch.dtype
    ) -> _Segment:
        x, dt, B, C = tensors
        wide = (t[where].transpose(0, 1)[..., channels].to(dtype).unsqueeze(2) for t in (x, dt))
        return cls(*wide, *(t[where].transpose(0, 1).to(dtype).unsqueeze(-1) for t in (B, C)))


class _Buffers:
    """Memory for a tile, used segment after segment; [k, i, n, j] each."""

    def __init__(self, sequences: int, A: Tensor) -> None:
        self.decays, self.states, self.adjoints, self.work = A.new_empty(4, _SEGMENT, sequences, *A.shape)
        self.each_decay, self.each_state, self.each_adjoint = (
            t.unbind() for t in (self.decays, self.states, self.adjoints)
        )

    def run(self, segment: _Segment, A: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decays and the states after each token of a segment that begins with `state` [i, n, j]."""
        count = len(segment.x)
        decays, states = self.decays[:count], self.states[:count]
        torch.mul(segment.dt, A, out=decays).exp_()
        torch.mul(segment.dt * segment.x, segment.B, out=states)
        for index in range(count):
            state = self.each_state[index].addcmul_(self.each_decay[index], state)
        return decays, states

    def run_back(self, segment: _Segment, dy: Tensor, later: Tensor) -> Tensor:
        """Return the gradients of the states of the segment that `run` ran last.

        `later` [i, n, j] holds the gradient of its last state by the tokens after it, and is overwritten by that of
        the state before it.
        """
        count = len(segment.x)
        adjoints = torch.mul(dy, segment.C, out=self.adjoints[:count])
        adjoint = self.each_adjoint[count - 1].add_(later)
        for index in range(count - 2, -1, -1):
            adjoint = self.each_adjoint[index].addcmul_(self.each_decay[index + 1], adjoint)
        torch.mul(self.each_decay[0], adjoint, out=later)
        return adjoints


class TiledScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        dtype = accumulation_dtype(x)
        columns, skip = A.to(dtype).t().contiguous(), D.to(dtype)  # A as [n, d]
        batch, seq_len, _ = x.shape
        y, starts = torch.empty_like(x), columns.new_empty(-(-seq_len // _SEGMENT), batch, *columns.shape)
        for sequences, channels in enough(_tiles(x, columns), x):
            a = columns[:, channels].contiguous()
            state = a.new_zeros(sequences.stop - sequences.start, *a.shape)
            buffers = _Buffers(len(state), a)
            for index, tokens in enough(enumerate(runs(seq_len, _SEGMENT)), x):
                starts[index, sequences, :, channels] = state
                segment = _Segment.of((x, dt, B, C), (sequences, tokens), channels, dtype)
                _, states = buffers.run(segment, a, state)
                outputs = torch.mul(states, segment.C, out=buffers.work[: len(states)]).sum(2)  # [k, i, j]
                y[sequences, tokens, channels] = outputs.addcmul_(segment.x.squeeze(2), skip[channels]).transpose(0, 1)
                state.copy_(states[-1])
        ctx.save_for_backward(x, dt, A, B, C, D, starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, D, starts = ctx.saved_tensors
        dtype = starts.dtype
        columns, skip = A.to(dtype).t().contiguous(), D.to(dtype)
        dx, ddt, dA, dD = torch.empty_like(x), torch.empty_like(dt), torch.zeros_like(columns), torch.zeros_like(skip)
        dB, dC = (torch.zeros(t.shape, dtype=dtype, device=t.device) for t in (B, C))
        for sequences, channels in enough(_tiles(x, columns), x):
            a = columns[:, channels].contiguous()
            later = a.new_zeros(sequences.stop - sequences.start, *a.shape)
            buffers = _Buffers(len(later), a)
            for index, tokens in reversed(list(enough(enumerate(runs(x.shape[1], _SEGMENT)), x))):
                where = (sequences, tokens)
                segment = _Segment.of((x, dt, B, C), where, channels, dtype)
                start = starts[index, sequences, :, channels]
                decays, states = buffers.run(segment, a, start)
                dy = grad[where].transpose(0, 1)[..., channels].to(dtype).unsqueeze(2)  # [k, i, 1, j]
                adjoints, work = buffers.run_back(segment, dy, later), buffers.work[: len(states)]
                dC[where] += torch.mul(states, dy, out=work).sum(-1).transpose(0, 1)
                stepped = segment.dt * segment.x
                dB[where] += torch.mul(adjoints, stepped, out=work).sum(-1).transpose(0, 1)
                dstepped = torch.mul(adjoints, segment.B, out=work).sum(2)  # [k, i, j]
                slopes = adjoints.mul_(decays)  # of the exponents dt A
                slopes[0].mul_(start)
                slopes[1:].mul_(states[:-1])
                dA[:, channels] += torch.mul(slopes, segment.dt, out=work).sum((0, 1))
                inputs, steps, dy = (t.squeeze(2) for t in (segment.x, segment.dt, dy))
                ddt[sequences, tokens, channels] = (
                    torch.mul(slopes, a, out=work).sum(2).addcmul_(dstepped, inputs).transpose(0, 1)
                )
                dx[sequences, tokens, channels] = (dstepped * steps).addcmul_(dy, skip[channels]).transpose(0, 1)
                dD[channels] += (dy * inputs).sum((0, 1))
        return dx, ddt, dA.t().to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD.to(D.dtype)


def _tiles(x: Tensor, columns: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield sequences and channels of x [b, s, d] whose states, [n, d] each, fit in cache for a segment of tokens."""
    (states, width), elements = columns.shape, block_length(_SEGMENT, x.device)
    step = min(width, max(1, elements // states))
    for sequences in runs(x.shape[0], max(1, elements // (states * step))):
        for channels in runs(width, step):
            yield sequences, channels
