"""Attention on a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.mixers.token_cache import FIRST_CAPACITY, TokenCache
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.attention.step import attention_step, rotary_table, rotate_step
from hybridtron.ops.elementwise.norm import rms_norm, sharded_rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.native.library import Kernels

_WITH_KERNELS = {
    "type", "norm_position", "num_heads", "num_kv_heads", "head_dim", "window", "rotary_base", "rotary_fraction",
    "softmax_scale", "rotary_scaling", "sinks", "qkv_bias", "proj_bias",
}  # fmt: skip


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

    def initial_state(self, batch: int) -> TokenCache:
        """Return an empty cache of rotated keys and of values, [b, kv_heads, tokens, d] each."""
        config = self.config
        empty = next(self.qkv.parameters()).new_empty(batch, config.kv_heads, 0, config.head_size)
        return TokenCache((empty, empty), window=config.window)

    def prefill_core(self, packed: Tensor, state: TokenCache) -> tuple[Tensor, TokenCache]:
        q, k, v, *gates = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))
        q, k, v = self._heads(q, k, v)
        q, k = self._rotate(state.seen, q, k)
        new = (k.transpose(1, 2), v.transpose(1, 2))
        if state.window:  # the memory may not hold all keys that the first of these queries sees
            k, v = (torch.cat(pair, 2).transpose(1, 2) for pair in zip(state.in_order(), new, strict=True))
        state, first = state.append(*new), not state.seen
        if not state.window and not first:
            k, v = (t.transpose(1, 2) for t in state.held())
        y = self._attend(q, k, v, self.config.window)
        return self._gate(y, *gates).flatten(2).transpose(0, 1), state

    def step_core(self, packed: Tensor, state: TokenCache) -> tuple[Tensor, TokenCache]:
        config = self.config
        q, k, v, *gates = packed.split(self.core_sizes, -1)
        q, k, v = self._heads(q, k, v)  # [b, heads, d]
        if config.rotary_dim:
            q, k = (
                rotate_step(
                    t, state.position(), state.seen, config.rotary_dim, config.rotary_base, config.rotary_scaling
                )
                for t in (q, k)
            )
        state = state.append(k.unsqueeze(2), v.unsqueeze(2))
        sinks = self.local_heads("sinks") if config.sinks else None
        keys, values = state.held()
        y = attention_step(q, keys, values, config.softmax_scale, sinks, state.own_tokens())
        return self._gate(y, *gates).flatten(1), state

    def prepare_step_core(self, kernels: Kernels, packed: Tensor, y: Tensor, state: TokenCache) -> PreparedStep | None:
        config, batch = self.config, len(packed)
        if not config.changed_keys() <= _WITH_KERNELS:
            return None
        if state.length == state.capacity < (config.window or state.capacity + 1):
            state = state.reserve(max(2 * state.capacity, FIRST_CAPACITY))
        keys, values = (t.contiguous() for t in state.entries)
        whole_ring = config.window and state.capacity >= config.window
        positions = 1 << max(8, state.seen.bit_length()) if whole_ring else state.capacity
        cos, sin = rotary_table(positions, config.rotary_dim, config.rotary_base, config.rotary_scaling)
        padding = [0] * batch if state.padding is None else state.padding.tolist()
        counts = torch.tensor([state.seen, *padding])
        scale = config.head_size**-0.5 if config.softmax_scale is None else config.softmax_scale
        step = kernels.attention_step.prepare(
            batch, config.num_heads, config.kv_heads, config.head_size, config.rotary_dim // 2, positions,
            state.capacity, config.window or 0, packed, cos, sin, self.sinks if config.sinks else None, scale,
            keys, values, counts, y,
        )  # fmt: skip

        def after() -> TokenCache:
            return state._replace(entries=(keys, values), seen=int(counts[0]))

        return PreparedStep([step], after, positions - state.seen)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """Map queries, keys and values [..., heads * d] to [..., heads, d], queries and keys normed."""
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
        """Multiply outputs [..., heads, d] by the sigmoid of gates [..., heads or heads * d], where there are any."""
        return y if gates is None else y * gates.unflatten(-1, (y.shape[-2], -1)).sigmoid()

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
