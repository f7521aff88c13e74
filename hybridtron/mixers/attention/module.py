"""Attention on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.mixers.token_cache import FIRST_CAPACITY, TokenCache
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.attention.step import attention_step, rotary_table, rotate_step
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.native.library import Kernels

_MOST_HEADS = 128  # MOST_HEADS of step.c
_WITH_KERNELS = {
    "type", "norm_position", "num_heads", "num_kv_heads", "head_dim", "window", "rotary_base", "rotary_fraction",
    "softmax_scale", "rotary_scaling", "sinks", "qkv_bias", "proj_bias",
}  # fmt: skip


class Attention(Mixer):
    """Causal softmax attention; parts of the projection are queries, keys, values and gates."""

    in_name, out_name = "qkv", "proj"

    def core(self, packed: Tensor) -> Tensor:
        # Split before transposing: the gradients are then joined in the order that the projection wants.
        parts = {name: part.transpose(0, 1) for name, part in self._parts(packed).items()}
        q, k, v = self._heads(parts)
        q, k = self._place(0, q, k)
        y = self._attend(q, k, v, self._decays(parts))
        return self._norm_and_gate(y, parts).flatten(2).transpose(0, 1)

    def initial_state(self, batch: int) -> TokenCache:
        """Return an empty cache of rotated keys and of values, [b, kv_heads, tokens, d] each; with forget gates also of
        the sums of their logarithms [b, tokens, heads], in float64, which a long sequence needs."""
        config = self.config
        empty = next(self.qkv.parameters()).new_empty(batch, self.local_count(config.kv_heads), 0, config.head_size)
        sums = [empty.new_empty(batch, 0, self.local_count(config.num_heads), dtype=torch.float64)] * config.forget_gate
        return TokenCache((empty, empty, *sums), window=config.window)

    def prefill_core(self, packed: Tensor, state: TokenCache) -> tuple[Tensor, TokenCache]:
        parts = {name: part.transpose(0, 1) for name, part in self._parts(packed).items()}
        q, k, v = self._heads(parts)
        q, k = self._place(state.seen, q, k)
        decays = self._decays(parts, state)
        new = (k.transpose(1, 2), v.transpose(1, 2), *([] if decays is None else [decays]))
        seen = new
        if state.window:  # the memory may not hold all keys that the first of these queries sees
            seen = tuple(torch.cat(pair, -2) for pair in zip(state.in_order(), new, strict=True))
        state, first = state.append(*new), not state.seen
        if not state.window and not first:
            seen = state.held()
        k, v, *sums = seen
        y = self._attend(q, k.transpose(1, 2), v.transpose(1, 2), *sums)
        return self._norm_and_gate(y, parts).flatten(2).transpose(0, 1), state

    def step_core(self, packed: Tensor, state: TokenCache) -> tuple[Tensor, TokenCache]:
        config = self.config
        parts = self._parts(packed)
        q, k, v = self._heads(parts)  # [b, heads, d]
        if config.rotary_dim:
            q, k = (
                rotate_step(
                    t, state.position(), state.seen, config.rotary_dim, config.rotary_base, config.rotary_scaling
                )
                for t in (q, k)
            )
        if config.length_scaling is not None:
            q = self._scale_by_length(q, torch.as_tensor(state.position(), device=q.device).reshape(-1, 1, 1))
        decays = self._decays({name: part.unsqueeze(1) for name, part in parts.items()}, state)
        state = state.append(k.unsqueeze(2), v.unsqueeze(2), *([] if decays is None else [decays]))
        sinks = self.local_heads("sinks") if config.sinks else None
        keys, values, *sums = state.held()
        if decays is not None:
            decays = decays - sums[0]
        y = attention_step(q, keys, values, config.softmax_scale, sinks, state.own_tokens(), config.softcap, decays)
        return self._norm_and_gate(y, parts).flatten(1), state

    def prepare_step_core(self, kernels: Kernels, packed: Tensor, y: Tensor, state: TokenCache) -> PreparedStep | None:
        config, batch = self.config, len(packed)
        if not config.changed_keys() <= _WITH_KERNELS or config.num_heads > _MOST_HEADS * config.kv_heads:
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

    def _parts(self, packed: Tensor) -> dict[str, Tensor]:
        """Split the projection [..., c] into its parts, by name."""
        return dict(zip((part.name for part in self.packing), packed.split(self.core_sizes, -1), strict=True))

    def _heads(self, parts: dict[str, Tensor]) -> list[Tensor]:
        """Map queries, keys and values [..., heads * d] to [..., heads, d], queries and keys normed."""
        q, k, v = (parts[name] for name in "qkv")
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
        return self.norm_all_heads(x, weight, channels, eps)

    def _norm_and_gate(self, y: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Norm outputs [..., heads, d] and multiply them by sigmoids of gates [..., heads or heads * d]."""
        if self.config.output_norm:
            y = rms_norm(y, self.of_all_heads("output_norm_weight"), self.backend.norm_eps)
        return y * parts["gate"].unflatten(-1, (y.shape[-2], -1)).sigmoid() if "gate" in parts else y

    def _decays(self, parts: dict[str, Tensor], state: TokenCache | None = None) -> Tensor | None:
        """Return sums of log forget gates [b, s, heads] in float64, those of the tokens in the cache included."""
        if "forget" not in parts:
            return None
        logits = parts["forget"].double() + self.local_heads("forget_bias").double()
        sums = F.logsigmoid(logits).cumsum(1)
        if state is None or not state.seen:
            return sums
        return sums + state.entries[2][:, (state.seen - 1) % (state.window or state.seen)].unsqueeze(1)

    def _place(self, position: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate and scale queries and keys [b, s, heads, d] of tokens from `position` on."""
        config = self.config
        if config.rotary_dim:
            cos, sin = rotary_tables(
                q.size(1),
                config.rotary_dim,
                config.rotary_base,
                device=q.device,
                offset=position,
                scaling=config.rotary_scaling,
            )
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        if config.length_scaling is not None:
            positions = torch.arange(position, position + q.size(1), device=q.device)
            q = self._scale_by_length(q, positions.view(-1, 1, 1))
        return q, k

    def _scale_by_length(self, q: Tensor, positions: Tensor) -> Tensor:
        return (q * self.config.length_scaling.factors(positions + 1).to(accumulation_dtype(q))).to(q.dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, decays: Tensor | None = None) -> Tensor:
        config = self.config
        sinks = self.local_heads("sinks") if config.sinks else None
        return attention(q, k, v, config.window, config.softmax_scale, sinks, config.softcap, decays)
