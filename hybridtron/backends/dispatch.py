"""Tokens to their experts and back, in one process."""

from __future__ import annotations

from torch import Tensor

from hybridtron.backends.base import Experts


def dispatch_locally(tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
    """Run the experts of a process that holds them all; a `Dispatcher`."""
    by_expert = chosen.T  # [experts, n]
    index = by_expert.nonzero()[:, 1]  # the tokens of the first expert, then those of the second, ...
    counts = chosen.sum(0).tolist()
    rows = experts(tokens.index_select(0, index), counts, weights.T.masked_select(by_expert))
    return tokens.new_zeros(tokens.shape).index_add_(0, index, rows)
