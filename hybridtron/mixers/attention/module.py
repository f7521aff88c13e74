"""Attention on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.elementwise.norm import rms_norm, sharded_rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype

_FIRST_CAPACITY = 64  # tokens; a cache doubles when it is full


class KeyValueCache(NamedTuple):
    """Rotated keys, and values. With a window, token t has the index t modulo the window."""

    keys: Tensor  # [b, capacity, kv_heads, d]
    values: Tensor
    seen: int  # tokens so far


class Attention(Mixer):
    """Causal softmax attention; parts of the projection are queries, keys, values and gates."""

    in_name, out_name = "qkv", "proj"

    def core(self, packed: Tensor) -> Tensor:
        # Split before transposing: the gradients are then joined in the order that the projection wants.
        q, k, v, *gates = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))
        q, k, v = self._heads(q, k, v)
        q, k = self._rotate(0, q, k)
        y = self._attend(q, k, v, self.config.window)
        return self._gate(y, *gates).flatten(2).transpose(0, 1)

    def initial_state(self, batch: int) -> KeyValueCache:
        config = self.config
        capacity = min(_FIRST_CAPACITY, config.window or _FIRST_CAPACITY)
        empty = next(self.qkv.parameters()).new_empty(batch, capacity, config.kv_heads, config.head_size)
        return KeyValueCache(empty, torch.empty_like(empty), 0)

    def step_core(self, packed: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        window, (keys, values, seen) = self.config.window, state
        q, k, v, *gates = packed.unsqueeze(1).split(self.core_sizes, -1)
        q, k, v = self._heads(q, k, v)  # [b, 1, heads, d]
        q, k = self._rotate(seen, q, k)
        index = seen % window if window else seen
        if index == keys.shape[1]:
            capacity = min(2 * index, window or 2 * index)
            keys, values = (torch.cat([t, torch.empty_like(t[:, : capacity - index])], 1) for t in (keys, values))
        keys[:, index], values[:, index] = k[:, 0], v[:, 0]
        held = min(seen + 1, window or seen + 1)
        y = self._attend(q, keys[:, :held], values[:, :held], None)
        return self._gate(y, *gates).flatten(1), KeyValueCache(keys, values, seen + 1)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """Map queries, keys and values [b, s, heads * d] to [b, s, heads, d], queries and keys normed."""
        if self.config.qk_norm == "full":
            q, k = self._norm(q, "q_norm_weight"), self._norm(k, "k_norm_weight")
        q, k, v = (part.unflatten(-1, (-1, self.config.head_size)) for part in (q, k, v))
        if self.config.qk_norm == "head":
            q, k = self._norm(q, "q_norm_weight"), self._norm(k, "k_norm_weight")
        return [q, k, v]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """Norm x over its last axis, of which this process may hold the channels of some heads."""
        channels, eps = self.specs[name].numel, self.backend.norm_eps
        weight = self.local_heads(name) if self.config.qk_norm == "full" else self.of_all_heads(name)
        if self.config.qk_norm_zero_centered:
            weight = 1 + weight.to(accumulation_dtype(weight))
        if x.shape[-1] == channels:
            return rms_norm(x, weight, eps)
        return sharded_rms_norm(x, weight, eps, channels, self.backend.sum_over_heads)

    def _gate(self, y: Tensor, gates: Tensor | None = None) -> Tensor:
        """Multiply outputs [b, s, heads, d] by the sigmoid of gates [b, s, heads or heads * d], where there are any."""
        return y if gates is None else y * gates.unflatten(-1, (y.shape[2], -1)).sigmoid()

    def _rotate(self, position: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Give queries and keys of tokens from `position` on their rotary positions."""
        config = self.config
        if not config.rotary_dim:
            return q, k
        cos, sin = rotary_tables(
            q.size(1),
            config.rotary_dim,
            config.rotary_base,
            device=q.device,
            offset=position,
            scaling=config.rotary_scaling,
        )
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        sinks = self.local_heads("sinks") if self.config.sinks else None
        return attention(q, k, v, window, self.config.softmax_scale, sinks)
