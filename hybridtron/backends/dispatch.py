"""Tokens to their experts and back, in one process."""

from __future__ import annotations

from torch import Tensor

from hybridtron.backends.base import Experts


def dispatch_locally(tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
    """Run the experts of a process that holds them all; a `Dispatcher`."""
    counts = chosen.sum(0).tolist()  # the one wait for a GPU; what follows has sizes that are known
    chosen_by = chosen.T.nonzero_static(size=sum(counts))  # the first expert's tokens, then the second's, ...
    expert, index = chosen_by.unbind(1)
    rows = experts(tokens.index_select(0, index), counts, weights[index, expert])
    return tokens.new_zeros(tokens.shape).index_add_(0, index, rows)
