"""What a convolution with implicit filters keeps to generate: all its inputs, as the filters have no finite state."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_FIRST_ROOM = 64  # tokens; a cache doubles when it is full


class InputCache(NamedTuple):
    inputs: tuple[Tensor, ...]  # [b, room, c] each
    filters: Tensor  # [filters, room]
    seen: int  # tokens so far

    @classmethod
    def empty(cls, inputs: tuple[Tensor, ...], per_filter: Tensor) -> InputCache:
        """For inputs [b, c] a token, and as many filters as `per_filter` is long."""
        return cls(
            tuple(u.new_empty(len(u), 0, u.shape[1]) for u in inputs), per_filter.new_empty(len(per_filter), 0), 0
        )

    def add(self, inputs: tuple[Tensor, ...], filters_of: Callable[[int], Tensor]) -> InputCache:
        """With the inputs [b, c] of one more token; `filters_of` makes filters of any length where there is no room."""
        places, filters, seen = self
        if seen == filters.shape[1]:
            room = max(_FIRST_ROOM, 2 * seen)
            places = tuple(torch.cat([old, old.new_empty(len(old), room - seen, old.shape[2])], 1) for old in places)
            filters = filters_of(room)
        for place, u in zip(places, inputs, strict=True):
            place[:, seen] = u
        return InputCache(places, filters, seen + 1)

    def held(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """The inputs of all tokens [b, s, c], and the filters [filters, s] turned to meet at the last."""
        return tuple(place[:, : self.seen] for place in self.inputs), self.filters[:, : self.seen].flip(-1)
