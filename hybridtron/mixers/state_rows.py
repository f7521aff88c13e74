"""Choose and join sequences of the states that mixers generate from; see `hybridtron.mixers.mixer.State`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridtron.mixers.implicit_filter.cache import InputCache
from hybridtron.mixers.mixer import State
from hybridtron.mixers.token_cache import TokenCache


def take_rows(state: State, rows: Tensor) -> State:
    """Return the state of some sequences, by their indices [n], in memory of its own."""
    return _map(
        [state],
        lambda tensors: tensors[0].index_select(0, rows.to(tensors[0].device)),
        lambda caches: caches[0].take(rows),
    )


def join_rows(states: Sequence[State]) -> State:
    """Return the state of the sequences of several states, with padding in front of those of fewer tokens."""
    return states[0] if len(states) == 1 else _map(states, torch.cat, TokenCache.join)


def reserve(state: State, tokens: int) -> State:
    """Return the state with memory for so many tokens of each sequence in all."""
    return _map([state], lambda tensors: tensors[0], lambda caches: caches[0].reserve(tokens))


def without_padding(state: State, tokens: int) -> State:
    """Return the state of sequences of so many tokens each, without padding in front of them."""
    return _map([state], lambda tensors: tensors[0], lambda caches: caches[0].without_padding(tokens))


def _map(states: Sequence[State], of_tensors: Callable[[Any], Tensor], of_caches: Callable[[Any], TokenCache]) -> State:
    """Apply a function to what stands at the same place of each state: tensors, or caches of tokens."""
    first = states[0]
    if isinstance(first, Tensor):
        return of_tensors(states)
    if isinstance(first, TokenCache):
        return of_caches(states)
    if isinstance(first, InputCache):  # its filters are the same for all sequences
        longest = max((state.filters for state in states), key=lambda filters: filters.shape[1])
        return InputCache(of_caches([state.inputs for state in states]), longest)
    parts = [_map(parts, of_tensors, of_caches) for parts in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
