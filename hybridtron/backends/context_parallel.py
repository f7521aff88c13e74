"""From runs of a sequence to shares of its heads and back, by one all-to-all among the processes that share it.

Process r of n holds tokens r s/n .. (r + 1) s/n - 1 of every sequence. What mixes tokens works head by head, so each
process can compute s tokens of 1/n of the heads instead (Jacobs et al. 2023, DeepSpeed-Ulysses, arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hybridtron.ops.opaque import opaque


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(blocks, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grads[0], ctx.group), None


@opaque
def all_to_all(blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Exchange blocks [n, ...]: block r goes to process r of n; those received lie in the order of their senders."""
    return _AllToAll.apply(blocks, group)


def _all_to_all(blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
    blocks = blocks.contiguous()
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks, group=group)
    return received


def sequence_to_heads(x: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Trade runs for heads: [s / n, b, c] -> [s, b, c / n], where x packs parts of `sizes` channels
    and every part is shared out evenly."""
    n = group.size()
    shares = torch.cat([part.unflatten(-1, (n, -1)) for part in x.split(list(sizes), -1)], -1)  # [s / n, b, n, c / n]
    return all_to_all(shares.movedim(2, 0), group).flatten(0, 1)


def heads_to_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Trade heads for runs: [s, b, c / n] -> [s / n, b, c], the inverse of `sequence_to_heads` for one part."""
    runs = x.unflatten(0, (group.size(), -1))  # [n, s / n, b, c / n]
    return all_to_all(runs, group).movedim(0, 2).flatten(2)


def own_share(parameter: Tensor, sizes: Sequence[int], axis: int, group: dist.ProcessGroup) -> Tensor:
    """Return this process's share of every part along `axis`."""
    n, rank = group.size(), group.rank()
    return torch.cat([part.chunk(n, axis)[rank] for part in parameter.split(list(sizes), axis)], axis)
