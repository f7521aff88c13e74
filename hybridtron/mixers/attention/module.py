"""Attention on a backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention

_FIRST_CAPACITY = 64  # tokens; a cache doubles when it is full


class KeyValueCache(NamedTuple):
    """Rotated keys, and values. With a window, token t has the index t modulo the window."""

    keys: Tensor  # [b, capacity, kv_heads, d]
    values: Tensor
    seen: int  # tokens so far


class Attention(Mixer):
    """Causal softmax attention; parts of the projection are queries, keys and values."""

    in_name, out_name = "qkv", "proj"

    def core(self, packed: Tensor) -> Tensor:
        # Split before transposing: the gradients are then joined in the order that the projection wants.
        q, k, v = self._heads(part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))
        q, k = self._rotate(0, q, k)
        return self._attend(q, k, v, self.config.window).flatten(2).transpose(0, 1)

    def initial_state(self, batch: int) -> KeyValueCache:
        config = self.config
        capacity = min(_FIRST_CAPACITY, config.window or _FIRST_CAPACITY)
        empty = next(self.qkv.parameters()).new_empty(batch, capacity, config.kv_heads, config.head_size)
        return KeyValueCache(empty, torch.empty_like(empty), 0)

    def step_core(self, packed: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        window, (keys, values, seen) = self.config.window, state
        q, k, v = self._heads(packed.unsqueeze(1).split(self.core_sizes, -1))  # [b, 1, heads, d]
        q, k = self._rotate(seen, q, k)
        index = seen % window if window else seen
        if index == keys.shape[1]:
            capacity = min(2 * index, window or 2 * index)
            keys, values = (torch.cat([t, torch.empty_like(t[:, : capacity - index])], 1) for t in (keys, values))
        keys[:, index], values[:, index] = k[:, 0], v[:, 0]
        held = min(seen + 1, window or seen + 1)
        y = self._attend(q, keys[:, :held], values[:, :held], None)
        return y.flatten(1), KeyValueCache(keys, values, seen + 1)

    def _heads(self, parts: Iterable[Tensor]) -> list[Tensor]:
        """Map parts [b, s, heads * d] to [b, s, heads, d]."""
        return [part.unflatten(-1, (-1, self.config.head_size)) for part in parts]

    def _rotate(self, position: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Give queries and keys of tokens from `position` on their rotary positions."""
        config = self.config
        if not config.rotary_dim:
            return q, k
        cos, sin = rotary_tables(q.size(1), config.rotary_dim, config.rotary_base, device=q.device, offset=position)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return attention(q, k, v, window, sinks=self.local_heads("sinks") if self.config.sinks else None)
