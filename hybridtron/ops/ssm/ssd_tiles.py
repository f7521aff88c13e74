"""The chunked form of `ssd` and its gradient, over tiles of a few sequences and groups that stay in a core's cache.

Inside a tile tensors are [chunks, b, h, l, d], so that all but the first or last chunk is one contiguous slice. Heads
of one group lie side by side as columns [.., g, l, r d] where they meet the B and C that they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.cuts import runs
from hybridtron.ops.device import device_type
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.elementwise.row_blocks import CPU_BLOCK_ELEMENTS, DEVICE_BLOCK_ELEMENTS

_SMALLEST_STEP = 1e-20  # stands for smaller steps, zero included: the gradient of a step is found by dividing by it


class TiledSSD(torch.autograd.Function):
    """`ssd` for a sequence that is a multiple of the chunk `length`.

    Keeps C B^T, the states and what they gave to y, so that backward repeats no matmul of forward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, length: int
    ) -> Tensor:
        decays = _Decays.of(dt, A, length, accumulation_dtype(x))
        y = torch.empty_like(x)
        inputs, outputs = _Inputs.of(x, B, C, D, decays, length), _by_chunk(y, length)
        tiles, kept = list(_tiles(x, B, length)), list[Tensor | None]()
        for tile in tiles:
            kept += _forward(inputs.tile(tile), outputs[:, tile.sequences, tile.heads])
        ctx.save_for_backward(x, dt, A, B, C, D, *decays, *kept)
        ctx.length, ctx.tiles = length, tiles
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, *saved = ctx.saved_tensors
        length, decays, kept = ctx.length, _Decays(*saved[:4]), iter(saved[4:])
        inputs, dy = _Inputs.of(x, B, C, D, decays, length), _by_chunk(grad, length)
        dx, dB, dC = (torch.empty_like(tensor) for tensor in (x, B, C))
        log_total, log_step, inject = (torch.zeros_like(decays.total) for _ in range(3))
        skip = torch.zeros(x.shape[2], dtype=decays.total.dtype, device=x.device)
        by_chunk = [_by_chunk(tensor, length) for tensor in (dx, dB, dC)]
        gradients = _Gradients(by_chunk[0], by_chunk[1], by_chunk[2], skip, log_total, log_step, inject)
        for tile in ctx.tiles:
            of_tile = _Kept(next(kept), next(kept), next(kept))
            _backward(dy[:, tile.sequences, tile.heads], inputs.tile(tile), of_tile, gradients.tile(tile))
        # inject_j = exp(c_l - c_j) dt_j
        log_inject = inject * decays.inject
        log_total -= log_inject
        log_total[..., -1] += log_inject.sum(-1)
        # c_i sums the steps up to i, so a step gathers what reaches the sums from it on.
        log_decay = log_total.flip(-1).cumsum(-1).flip(-1)
        step = log_step.add_(log_inject).div_(decays.step)
        if A.dim() == 1:
            step = step + log_decay * A.to(log_decay.dtype).unsqueeze(-1)
            dA = (log_decay * decays.step).sum((0, 1, 3))
        else:
            dA = log_decay.permute(1, 0, 3, 2).reshape(A.shape)
        ddt = step.permute(1, 0, 3, 2).reshape(dt.shape)
        return dx, ddt.to(dt.dtype), dA.to(A.dtype), dB, dC, None if D is None else skip.to(D.dtype), None


class _Tile(NamedTuple):
    sequences: slice
    groups: slice
    heads: slice  # those of the groups


def _tiles(x: Tensor, B: Tensor, length: int) -> Iterator[_Tile]:
    """Yield runs of sequences and groups with few enough elements to stay in cache."""
    (batch, seq_len, heads, head_dim), (groups, state_size) = x.shape, B.shape[2:]
    repeats = heads // groups
    group_elements = seq_len * max(repeats * max(head_dim, length), state_size)
    max_groups = (4 * CPU_BLOCK_ELEMENTS if device_type(x.device) == "cpu" else DEVICE_BLOCK_ELEMENTS) // group_elements
    for sequences in runs(batch, max(1, max_groups // groups)):
        for some in runs(groups, max(1, max_groups)):
            yield _Tile(sequences, some, slice(some.start * repeats, some.stop * repeats))


def _by_chunk(x: Tensor, length: int) -> Tensor:
    """View [b, s, h, d] as [chunks, b, h, l, d]."""
    return x.unflatten(1, (-1, length)).permute(1, 0, 3, 2, 4)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """View [chunks, b, h, l, d] as [chunks, b, g, l, r, d]."""
    return x.unflatten(2, (groups, -1)).transpose(3, 4)


class _Decays(NamedTuple):
    """Steps and decays of the tokens of a chunk, each [chunks, b, h, l]."""

    step: Tensor  # dt, at least _SMALLEST_STEP
    total: Tensor  # c_i, the sum of dt A up to i
    inject: Tensor  # exp(c_l - c_j) dt_j: what a token adds to the state after the chunk
    carry: Tensor  # exp(c_i): what is left of the state before the chunk

    @classmethod
    def of(cls, dt: Tensor, A: Tensor, length: int, dtype: torch.dtype) -> _Decays:
        step = _by_chunk(dt.to(dtype).unsqueeze(-1), length).squeeze(-1).clamp(min=_SMALLEST_STEP).contiguous()
        if A.dim() == 1:
            total = (step * A.to(dtype).unsqueeze(-1)).cumsum(-1)
        else:
            total = _by_chunk(A.to(dtype).unsqueeze(-1), length).squeeze(-1).cumsum(-1)
        return cls(step, total, (total[..., -1:] - total).exp_().mul_(step), total.exp())

    def within(self) -> Tensor:
        """Return exp(c_i - c_j) dt_j for j <= i, else 0: [chunks, b, h, l, l]."""
        decays = torch.sub(self.total.unsqueeze(-1), self.total.unsqueeze(-2)).exp_()
        return decays.tril_().mul_(self.step.unsqueeze(-2))  # above the diagonal the exponential may be infinite

    def of_state(self, chunk: int, groups: int) -> Tensor:
        """Return exp(c_l), the part of the state before a chunk that is left after it: [b, g, 1, r, 1]."""
        return self.carry[chunk, ..., -1].unflatten(1, (groups, -1))[:, :, None, :, None]


class _Inputs(NamedTuple):
    x: Tensor  # [chunks, b, h, l, p]
    b: Tensor  # [chunks, b, g, l, n]
    c: Tensor
    skip: Tensor | None  # D [h]
    decays: _Decays

    @classmethod
    def of(cls, x: Tensor, B: Tensor, C: Tensor, D: Tensor | None, decays: _Decays, length: int) -> _Inputs:
        skip = None if D is None else D.to(decays.total.dtype)
        return cls(_by_chunk(x, length), _by_chunk(B, length), _by_chunk(C, length), skip, decays)

    def tile(self, tile: _Tile) -> _Inputs:
        """Return the inputs of a tile, next to each other in memory."""
        sequences, groups, heads = tile
        x, b, c = self.x[:, sequences, heads], self.b[:, sequences, groups], self.c[:, sequences, groups]
        decays = _Decays(*(tensor[:, sequences, heads] for tensor in self.decays))
        skip = None if self.skip is None else self.skip[heads]
        return _Inputs(x.contiguous(), b.contiguous(), c.contiguous(), skip, decays)

    def matrices(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return M with D on its diagonal, [chunks, b, g, r, l, l], and its factor of decays, of the same shape."""
        within = self.decays.within().unflatten(2, (scores.shape[2], -1))
        matrices = within * scores.unsqueeze(3)
        if self.skip is not None:
            matrices.flatten(2, 3).diagonal(dim1=-2, dim2=-1).add_(self.skip.unsqueeze(-1))
        return matrices, within


class _Kept(NamedTuple):
    """Results of the forward pass of a tile that backward reads; without a second chunk there are no states."""

    scores: Tensor  # C B^T [chunks, b, g, l, l]
    states: Tensor | None  # after every chunk but the last [chunks - 1, b, g, n, r, p]
    carried: Tensor | None  # C S before its decay, in every chunk but the first [chunks - 1, b, g, l, r, p]


class _Gradients(NamedTuple):
    """Memory for the gradients of a tile, laid out as the inputs; `skip` is added to, the others are written."""

    x: Tensor
    b: Tensor
    c: Tensor
    skip: Tensor
    log_total: Tensor  # by c_i, but for what goes through `inject`
    log_step: Tensor  # by log dt_j, likewise
    inject: Tensor  # by `inject` itself

    def tile(self, tile: _Tile) -> _Gradients:
        sequences, groups, heads = tile
        inner = (tensor[:, sequences, heads] for tensor in self[4:])
        b, c = self.b[:, sequences, groups], self.c[:, sequences, groups]
        return _Gradients(self.x[:, sequences, heads], b, c, self.skip[heads], *inner)


def _columns(x: Tensor, factors: Tensor, groups: int) -> Tensor:
    """Return x [chunks, b, h, l, d] times factors [chunks, b, h, l], heads as columns: [chunks b g, l, r d]."""
    source = _by_group(x, groups)
    out = torch.empty(source.shape, dtype=x.dtype, device=x.device)
    torch.mul(source, _by_group(factors.unsqueeze(-1), groups), out=out)
    return _matrices(out)


def _matrices(x: Tensor) -> Tensor:
    """View [chunks, b, g, i, r, j] or [chunks, b, g, i, j] as matrices [chunks b g, i, r j]."""
    return x.view(-1, x.shape[3], x.shape[4:].numel())


def _forward(inputs: _Inputs, y: Tensor) -> _Kept:
    """Write y [chunks, b, h, l, p]."""
    x, b, c, _, decays = inputs
    (chunks, _, heads, length, head_dim), groups = x.shape, b.shape[2]
    scores = torch.bmm(_matrices(c), _matrices(b).transpose(1, 2)).view(*b.shape[:4], length)
    matrices, _ = inputs.matrices(scores)
    within = torch.bmm(matrices.view(-1, length, length).to(x.dtype), _matrices(x)).view(x.shape)
    if chunks == 1:
        y.copy_(within)
        return _Kept(scores, None, None)
    injected = _columns(x[:-1], decays.inject[:-1], groups)
    states = torch.bmm(_matrices(b[:-1]).transpose(1, 2), injected).to(decays.total.dtype)
    states = states.view(chunks - 1, *b.shape[1:3], b.shape[4], heads // groups, head_dim)
    for chunk in range(1, chunks - 1):
        states[chunk].addcmul_(states[chunk - 1], decays.of_state(chunk, groups))
    carried = torch.bmm(_matrices(c[1:]), _matrices(states).to(x.dtype))
    carried = carried.view(chunks - 1, *b.shape[1:4], heads // groups, head_dim)
    y[0] = within[0]
    decay = _by_group(decays.carry[1:].unsqueeze(-1), groups)
    torch.addcmul(_by_group(within[1:], groups), carried, decay, out=_by_group(y[1:], groups))
    return _Kept(scores, states, carried)


def _backward(dy: Tensor, inputs: _Inputs, kept: _Kept, gradients: _Gradients) -> None:
    """Write the gradients of a tile from dy [chunks, b, h, l, p]."""
    dy, (x, b, c, skip, decays), scores = dy.contiguous(), inputs, kept.scores
    length, groups, dtype = x.shape[3], b.shape[2], decays.total.dtype
    matrices, within = inputs.matrices(scores)
    dx = torch.bmm(matrices.view(-1, length, length).to(x.dtype).transpose(1, 2), _matrices(dy)).view(x.shape)
    dmatrices = torch.bmm(_matrices(dy), _matrices(x).transpose(1, 2)).to(dtype).view(matrices.shape)
    if skip is not None:
        gradients.skip.add_(dmatrices.diagonal(dim1=-2, dim2=-1).sum((0, 1, 4)).flatten())
    dscores = dmatrices.mul_(within)
    log_within = torch.mul(dscores, scores.unsqueeze(3), out=within)  # by log(exp(c_i - c_j) dt_j)
    # A token's own entry has no decay. It would cancel in the difference below, but only up to rounding.
    own = log_within.diagonal(dim1=-2, dim2=-1)
    by_itself = own.flatten(2, 3).clone()
    own.zero_()
    by_source = log_within.sum(-2).flatten(2, 3)
    torch.sub(log_within.sum(-1).flatten(2, 3), by_source, out=gradients.log_total)
    torch.add(by_source, by_itself, out=gradients.log_step)
    dscores = (dscores.squeeze(3) if groups == x.shape[2] else dscores.sum(3)).to(x.dtype).view(-1, length, length)
    dc = torch.bmm(dscores, _matrices(b))
    db = torch.bmm(dscores.transpose(1, 2), _matrices(c))
    _backward_states(dy, inputs, kept, gradients, dx, db, dc)
    gradients.x.copy_(dx)
    gradients.b.copy_(db.view(b.shape))
    gradients.c.copy_(dc.view(c.shape))


def _backward_states(
    dy: Tensor, inputs: _Inputs, kept: _Kept, gradients: _Gradients, dx: Tensor, db: Tensor, dc: Tensor
) -> None:
    """Add what passes from chunk to chunk to dx [chunks, b, h, l, p] and to db and dc [chunks b g, l, n]."""
    (x, b, c, _, decays), (_, states, carried) = inputs, kept
    if states is None or carried is None:
        return
    groups, dtype = b.shape[2], decays.total.dtype
    inner = b.shape[1] * groups  # matrices of one chunk
    dcarried = _columns(dy[1:], decays.carry[1:], groups)
    log_carry = (dcarried.view(carried.shape) * carried).sum(-1, dtype=dtype)  # [chunks - 1, b, g, l, r]
    gradients.log_total[1:] += log_carry.transpose(3, 4).flatten(2, 3)
    torch.baddbmm(dc[inner:], dcarried, _matrices(states).to(x.dtype).transpose(1, 2), out=dc[inner:])
    dstates = torch.bmm(_matrices(c[1:]).transpose(1, 2), dcarried).to(dtype).view(states.shape)
    for chunk in range(len(states) - 1, 0, -1):
        decay = decays.of_state(chunk, groups)
        dstates[chunk - 1].addcmul_(dstates[chunk], decay)
        log_state = (dstates[chunk] * states[chunk - 1]).sum((2, 4), keepdim=True).mul_(decay)  # [b, g, 1, r, 1]
        gradients.log_total[chunk, ..., -1] += log_state.flatten(1)
    dstate_matrices = _matrices(dstates).to(x.dtype)
    injected = _columns(x[:-1], decays.inject[:-1], groups)
    torch.baddbmm(db[:-inner], injected, dstate_matrices.transpose(1, 2), out=db[:-inner])
    dinjected = torch.bmm(_matrices(b[:-1]), dstate_matrices).view(carried.shape)
    inject = (dinjected * _by_group(x[:-1], groups)).sum(-1, dtype=dtype)
    gradients.inject[:-1] = inject.transpose(3, 4).flatten(2, 3)
    _by_group(dx[:-1], groups).addcmul_(dinjected, _by_group(decays.inject[:-1].unsqueeze(-1), groups).to(dx.dtype))
