"""Products of tensor-parallel linears in pieces of their tokens: the message of one travels while others multiply.

The decomposition of Wang et al. 2024 (Domino, arXiv 2409.15241) along tokens, and of Transformer Engine's user buffers,
by asynchronous collectives of torch.distributed alone. Pieces have one order in all processes. A message is begun one
product ahead at most: where CUDA has one queue (CUDA_DEVICE_MAX_CONNECTIONS=1), a message that waits for another one
holds up the product behind it.

Sizes: s tokens of b sequences; tensor-parallel ranks hold s / tp tokens each under sequence parallelism.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.backends.megatron.main_grad import main_grad_of, weight_gradient

# One piece's product has no message beside it, and one piece's message no product: a share of 1 / PIECES of either is
# not hidden. Each further piece makes products and messages smaller, and so slower. Transformer Engine cuts into 4 too.
PIECES = 4
LEAST_ROWS = 128  # of a piece: a tile of a product on tensor cores; messages of fewer rows take as long


def pieces_of(rows: int) -> list[slice]:
    """Cut so many rows into runs whose lengths differ by one at most: PIECES, or fewer that have LEAST_ROWS each."""
    count = max(1, min(PIECES, rows // LEAST_ROWS))
    return [slice(*ends) for ends in pairwise(rows * i // count for i in range(count + 1))]


def all_gather_matmul(x: Tensor, weight: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Multiply the tokens of all ranks, of which x [s / tp, b, in] are this one's, by a weight [local out, in]:
    -> [s, b, local out], without gradient. A piece multiplies while the next is gathered."""
    y = x.new_empty(group.size() * len(x), *x.shape[1:-1], len(weight))
    runs = y.view(group.size(), -1, len(weight))  # [tp, s / tp * b, local out]
    for piece, gathered in _gathered_pieces(_rows(x), group):
        _multiply(gathered, weight.t(), runs[:, piece])
    return y


def matmul_reduce(x: Tensor, weight: Tensor, group: dist.ProcessGroup, scatter: bool) -> Tensor:
    """Multiply x [s, b, local in] by a weight [out, local in] and sum over the ranks: -> [s, b, out], or with `scatter`
    the tokens of this rank [s / tp, b, out]. A piece is summed while the next multiplies.

    With `scatter` the backward pass multiplies a piece of the gradient while the next is gathered.
    """
    y = _MatmulReduce.apply(x, weight, group, scatter)
    assert isinstance(y, Tensor)
    return y


class _MatmulReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group: dist.ProcessGroup, scatter: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad, ctx.group, ctx.scatter = main_grad_of(weight), group, scatter
        shards = group.size() if scatter else 1
        y = x.new_empty(len(x) // shards, *x.shape[1:-1], len(weight))
        summed, messages = y.flatten(0, -2), []
        runs = x.reshape(shards, len(summed), x.shape[-1])  # [tp, s / tp * b, local in]
        for piece in pieces_of(len(summed)):
            if scatter:
                partial = torch.bmm(runs[:, piece], weight.t().expand(shards, -1, -1))
                messages.append(_scatter_sum(partial.flatten(0, 1), group, summed[piece]))
            else:
                partial = torch.mm(runs[0, piece], weight.t(), out=summed[piece])
                messages.append(_Message(dist.all_reduce(partial, group=group, async_op=True), partial, partial))
        for message in messages:
            message.wait()
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needs_dweight = ctx.needs_input_grad[1]
        if ctx.scatter:
            shards = ctx.group.size()
            dx = x.new_empty(x.shape)
            whole = grad.new_empty(shards, grad.shape[:-1].numel(), grad.shape[-1])  # [tp, s / tp * b, out]
            for piece, gathered in _gathered_pieces(_rows(grad), ctx.group):
                _multiply(gathered, weight, dx.view(shards, -1, dx.shape[-1])[:, piece])
                whole[:, piece] = gathered  # for one sum over all tokens, which in bf16 pieces would round
            rows = whole.flatten(0, 1)
        else:
            rows = _rows(grad)
            dx = (rows @ weight).view_as(x)
        dweight = weight_gradient(rows, x.flatten(0, -2), weight, ctx.main_grad) if needs_dweight else None
        return dx, dweight, None, None


class _Message(NamedTuple):
    """A collective under way. It keeps what it reads and writes from being freed."""

    work: Any
    read: Tensor
    written: Tensor

    def wait(self) -> Tensor:
        """Return what it wrote; on CUDA the stream waits, not the process."""
        self.work.wait()
        return self.written


def _rows(x: Tensor) -> Tensor:
    """Return x [s, b, n] as rows [s * b, n] that lie contiguous in memory."""
    return x.contiguous().flatten(0, -2)


def _gather(rows: Tensor, group: dist.ProcessGroup) -> _Message:
    """Begin to gather the ranks' rows [n, h] -> [tp * n, h]."""
    whole = rows.new_empty(group.size() * len(rows), rows.shape[1])
    return _Message(dist.all_gather_into_tensor(whole, rows, group=group, async_op=True), rows, whole)


def _scatter_sum(whole: Tensor, group: dist.ProcessGroup, own: Tensor) -> _Message:
    """Begin to sum [tp * n, h] over the ranks, each of which is given its run of the rows in `own` [n, h]."""
    return _Message(dist.reduce_scatter_tensor(own, whole, group=group, async_op=True), whole, own)


def _gathered_pieces(rows: Tensor, group: dist.ProcessGroup) -> Iterator[tuple[slice, Tensor]]:
    """Gather the ranks' rows [n, h] in pieces: yield where each lies among the n, and all ranks' rows [tp, k, h] of it,
    while the next is under way."""
    first, *others = pieces_of(len(rows))
    piece, message = first, _gather(rows[first], group)
    for following in others:
        ahead = _gather(rows[following], group)
        yield piece, message.wait().unflatten(0, (group.size(), -1))
        piece, message = following, ahead
    yield piece, message.wait().unflatten(0, (group.size(), -1))


def _multiply(gathered: Tensor, weight: Tensor, y: Tensor) -> None:
    """Write the products of a piece of all ranks' rows [tp, k, n] and a weight [n, m] to y [tp, k, m], in place."""
    torch.bmm(gathered, weight.expand(len(gathered), -1, -1), out=y)
