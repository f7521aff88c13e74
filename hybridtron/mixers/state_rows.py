"""Choose and join sequences of the states that mixers generate from; see `hybridtron.mixers.mixer.State`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridtron.mixers.implicit_filter.cache import InputCache
from hybridtron.mixers.mixer import State


def take_rows(state: State, rows: Tensor) -> State:
    """Return the state of some sequences, by their indices [n], in memory of its own."""
    return _map([state], lambda leaves: leaves[0].index_select(0, rows.to(leaves[0].device)))


def join_rows(states: Sequence[State]) -> State:
    """Return the state of the sequences of several states, which have seen equally many tokens."""
    return states[0] if len(states) == 1 else _map(states, lambda leaves: torch.cat(leaves))


def counts_tokens(state: State) -> bool:
    """Return whether a state says how many tokens it has seen, so that its sequences all have seen as many."""
    if isinstance(state, tuple | list):
        return any(map(counts_tokens, state))
    return isinstance(state, int)


def _map(states: Sequence[State], function: Any) -> State:
    """Apply a function to the tensors at the same place of each state."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(states)
    if not isinstance(first, tuple | list):
        return first
    parts = [_map(parts, function) for parts in zip(*states, strict=True)]
    if isinstance(first, InputCache):  # its filters are the same for all sequences
        return first._replace(inputs=parts[0])
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
