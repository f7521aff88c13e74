"""What a convolution with implicit filters keeps to generate: all its inputs, as the filters have no finite state."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_FIRST_CAPACITY = 64  # tokens; a cache doubles when it is full


class InputCache(NamedTuple):
    inputs: tuple[Tensor, ...]  # [b, capacity, c] each
    filters: Tensor  # [filters, capacity]
    seen: int  # tokens so far

    @classmethod
    def empty(cls, inputs: tuple[Tensor, ...], per_filter: Tensor) -> InputCache:
        """Return an empty cache for inputs [b, c] a token and as many filters as `per_filter` is long."""
        return cls(
            tuple(u.new_empty(len(u), 0, u.shape[1]) for u in inputs), per_filter.new_empty(len(per_filter), 0), 0
        )

    def add(self, inputs: tuple[Tensor, ...], filters_of: Callable[[int], Tensor]) -> InputCache:
        """Append the inputs [b, c] of one token; `filters_of` makes filters of any length when the cache is full."""
        caches, filters, seen = self
        if seen == filters.shape[1]:
            capacity = max(_FIRST_CAPACITY, 2 * seen)
            caches = tuple(torch.cat([t, t.new_empty(len(t), capacity - seen, t.shape[2])], 1) for t in caches)
            filters = filters_of(capacity)
        for cache, u in zip(caches, inputs, strict=True):
            cache[:, seen] = u
        return InputCache(caches, filters, seen + 1)

    def held(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the inputs of all tokens [b, s, c] and the filters reversed [filters, s]."""
        return tuple(cache[:, : self.seen] for cache in self.inputs), self.filters[:, : self.seen].flip(-1)
