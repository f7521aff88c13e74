"""Attention on a backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.attention.config import AttentionConfig
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.sinks import attention_with_sinks

_FIRST_ROOM = 64  # tokens; a cache doubles when it is full


class KeyValueCache(NamedTuple):
    """Keys, turned to their positions, and values. With a window, token t lies in place t modulo the window."""

    keys: Tensor  # [b, room, kv_heads, d]
    values: Tensor
    seen: int  # tokens so far


class Attention(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own heads."""

    def __init__(self, config: AttentionConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.packing = config, backend, specs["qkv.weight"]
        self.core_sizes = backend.core_sizes(self.packing)
        self.qkv = backend.column_linear(specs["qkv.weight"], specs.get("qkv.bias"))
        self.proj = backend.row_linear(specs["proj.weight"], specs.get("proj.bias"))
        self.sinks_spec = specs.get("sinks")
        self.sinks = backend.parameter(self.sinks_spec) if self.sinks_spec else None

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.backend.with_full_sequence(self.core, self.qkv(x), self.packing))

    def core(self, packed: Tensor) -> Tensor:
        """Queries, keys and values of some heads [s, b, q + k + v] -> [s, b, heads * d]."""
        # Split before transposing: the gradients are then joined in the order that the projection wants.
        q, k, v = self._heads(part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))
        q, k = self._turned(0, q, k)
        return self._attend(q, k, v, self.config.window).flatten(2).transpose(0, 1)

    def initial_state(self, batch: int) -> KeyValueCache:
        config = self.config
        room = min(_FIRST_ROOM, config.window or _FIRST_ROOM)
        empty = next(self.qkv.parameters()).new_empty(batch, room, config.kv_heads, config.head_size)
        return KeyValueCache(empty, torch.empty_like(empty), 0)

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        config, (keys, values, seen) = self.config, state
        q, k, v = self._heads(self.qkv(x.unsqueeze(0)).transpose(0, 1).split(self.core_sizes, -1))  # [b, 1, heads, d]
        q, k = self._turned(seen, q, k)
        place = seen % config.window if config.window else seen
        if place == keys.shape[1]:
            room = min(2 * place, config.window or 2 * place)
            keys, values = (torch.cat([old, torch.empty_like(old[:, : room - place])], 1) for old in (keys, values))
        keys[:, place], values[:, place] = k[:, 0], v[:, 0]
        held = min(seen + 1, config.window or seen + 1)
        y = self._attend(q, keys[:, :held], values[:, :held], None)
        return self.proj(y.flatten(1).unsqueeze(0)).squeeze(0), KeyValueCache(keys, values, seen + 1)

    def _heads(self, parts: Iterable[Tensor]) -> list[Tensor]:
        """[b, s, heads * d] -> [b, s, heads, d]."""
        return [part.unflatten(-1, (-1, self.config.head_size)) for part in parts]

    def _turned(self, position: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of tokens from `position` on with their rotary positions."""
        config = self.config
        if not config.rotary_dim:
            return q, k
        cos, sin = rotary_tables(q.size(1), config.rotary_dim, config.rotary_base, device=q.device, offset=position)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        if self.sinks is None or self.sinks_spec is None:
            return self.backend.core_attention(q, k, v, window)
        return attention_with_sinks(q, k, v, self.backend.local_heads(self.sinks, self.sinks_spec), window)
