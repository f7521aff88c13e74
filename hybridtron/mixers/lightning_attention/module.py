"""Lightning attention on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.retention import retention, retention_prefill, retention_step
from hybridtron.tensors import Init, PackedPart, TensorSpec


class LightningAttention(Mixer):
    """Linear attention with fixed decays; parts of the projection are q, k, v and z.

    With rotary positions the state is that of keys rotated backward by their distance to the last token, so that it
    needs no position: each token rotates it by one more.
    """

    _decays: Tensor | None = None  # kept on the device, since copying them there would wait for it

    def core(self, packed: Tensor) -> Tensor:
        q, k, v, z = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, .]
        y = retention(*self._rotate(q, k), v, self._log_decay(packed), self.config.chunk_size)
        return self._norm_and_gate(y, z).transpose(0, 1)

    def initial_state(self, batch: int) -> Tensor:
        config = self.config
        return self.zero_state(batch, self.local_count(config.num_heads), config.key_size, config.value_size)

    def prefill_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, z = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, .]
        q, k = self._rotate(q, k)
        y, state = retention_prefill(state, q, k, v, self._log_decay(packed), self.config.chunk_size)
        return self._norm_and_gate(y, z).transpose(0, 1), self._rotate_state(state, len(packed))

    def step_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, z = self._heads(packed)  # [b, heads, .]
        y, state = retention_step(self._rotate_state(state, 1), q, k, v, self._log_decay(packed))
        return self._norm_and_gate(y, z), state

    def _heads(self, packed: Tensor) -> list[Tensor]:
        """Split [..., channels] into queries, keys, values and gates [..., heads, .]."""
        *qkv, z = packed.split(self.core_sizes, -1)
        if self.config.activation == "silu":
            qkv = [F.silu(part) for part in qkv]
        heads = self.core_sizes[0] // self.config.key_size
        return [part.unflatten(-1, (heads, -1)) for part in (*qkv, z)]

    def _log_decay(self, like: Tensor) -> Tensor:
        """Return the log decays of this process's heads [heads], in the dtype of states."""
        dtype, kept = accumulation_dtype(like), self._decays
        if kept is None or (kept.dtype, kept.device) != (dtype, like.device):
            with torch.inference_mode(False), torch._C._DisableFuncTorch():  # a plain tensor, which outlives both
                kept = self._decays = torch.tensor(self.config.log_decays(), dtype=dtype, device=like.device)
        heads = TensorSpec(kept.shape, Init("zeros"), (PackedPart("head", len(kept)),))
        return self.backend.local_heads(heads.shard(kept, self.backend.shards), heads)

    def _rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys [b, s, heads, n] to positions from 1 on, that of the state before them being 0."""
        if not self.config.rotary:
            return q, k
        cos, sin = rotary_tables(q.shape[1], q.shape[-1], self.config.rotary_base, device=q.device, offset=1)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)

    def _rotate_state(self, state: Tensor, tokens: int) -> Tensor:
        """Rotate the key axis of a state [b, heads, n, p] backward by so many positions."""
        if not self.config.rotary:
            return state
        tables = rotary_tables(
            1, state.shape[-2], self.config.rotary_base, dtype=state.dtype, device=state.device, offset=tokens
        )
        cos, sin = (table.view(-1, 1) for table in tables)
        first, second = state.chunk(2, -2)
        return torch.cat([first * cos + second * sin, second * cos - first * sin], -2)

    def _norm_and_gate(self, y: Tensor, z: Tensor) -> Tensor:
        """Norm and gate outputs y [..., heads, p] by z: -> [..., heads * p]."""
        config = self.config
        eps = config.norm_eps or self.backend.norm_eps
        if config.norm == "head":
            if config.gate == "silu":
                return self.norm_and_gate(y, z, eps)
            normed = rms_norm(y, self.of_all_heads("norm_weight"), eps).flatten(-2)
        else:
            channels, weight = self.specs["norm_weight"].numel, self.local_heads("norm_weight")
            normed = self.norm_all_heads(y.flatten(-2), weight, channels, eps)
        gate = F.silu if config.gate == "silu" else torch.sigmoid
        return normed * gate(z.flatten(-2))
