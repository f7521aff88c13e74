"""What a convolution with implicit filters keeps to generate: all its inputs, as the filters have no finite state."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hybridtron.mixers.token_cache import TokenCache


class InputCache(NamedTuple):
    """Inputs of all tokens, zeros where a shorter sequence has padding, and filters of as many taps as it holds."""

    inputs: TokenCache  # [b, capacity, c] each
    filters: Tensor  # [filters, capacity]

    @classmethod
    def empty(cls, inputs: tuple[Tensor, ...], per_filter: Tensor) -> InputCache:
        """Return an empty cache for inputs [b, c] a token and as many filters as `per_filter` is long."""
        none = tuple(u.new_empty(len(u), 0, u.shape[1]) for u in inputs)
        return cls(TokenCache(none), per_filter.new_empty(len(per_filter), 0))

    def add(self, inputs: tuple[Tensor, ...], filters_of: Callable[[int], Tensor]) -> InputCache:
        """Append inputs [b, s, c] of the next tokens; `filters_of` makes filters of any length for a larger cache."""
        tokens = self.inputs.append(*inputs)
        filters = self.filters if self.filters.shape[1] >= tokens.capacity else filters_of(tokens.capacity)
        return InputCache(tokens, filters)

    def held(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the inputs of all tokens [b, s, c] and the filters reversed [filters, s]."""
        return self.inputs.held(), self.filters[:, : self.inputs.seen].flip(-1)
