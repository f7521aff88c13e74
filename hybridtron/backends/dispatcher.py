"""Tokens to their experts and back: the interface of dispatchers, and the one of a process that holds all experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.distributed as dist
from torch import Tensor

DispatcherKind = Literal["alltoall", "allgather"]

Experts = Callable[[Tensor, list[int], Tensor], Tensor]
"""Rows [n, h] in the order of a process's experts, how many each of these has, and the weight of each row [n] ->
[n, h], each row times its weight."""


class Dispatcher(Protocol):
    """Sends tokens through the experts that were chosen for them, wherever those are."""

    def __call__(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
        """Return the sums of the chosen experts' outputs [n, h], from tokens [n, h] and each expert's weights and
        choice [n, experts]. Every process calls this with its own tokens."""
        ...


@dataclass(frozen=True)
class ExpertGroups:
    """The processes among which tokens travel to experts."""

    expert: dist.ProcessGroup  # with other experts
    tensor: dist.ProcessGroup  # with other channels of the same experts
    both: dist.ProcessGroup


def dispatch_locally(tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
    """Run the experts of a process that holds them all; a `Dispatcher`."""
    counts = chosen.sum(0).tolist()  # the one wait for a GPU; what follows has sizes that are known
    chosen_by = chosen.T.nonzero_static(size=sum(counts))  # the first expert's tokens, then the second's, ...
    expert, index = chosen_by.unbind(1)
    rows = experts(tokens.index_select(0, index), counts, weights[index, expert])
    return tokens.new_zeros(tokens.shape).index_add_(0, index, rows)
