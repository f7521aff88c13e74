"""Gated linear attention on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.gla import gla, gla_prefill, gla_step


class GLA(Mixer):
    """Gated linear attention; parts of the core's input are q, k, v, z and g."""

    def project_in(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        return torch.cat([self.in_proj(x), self.gate_up(F.linear(x, self.gate_down))], -1)

    def core(self, packed: Tensor) -> Tensor:
        q, k, v, z, g = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, .]
        return self.norm_and_gate(gla(q, k, v, g, self.config.chunk_size), z).transpose(0, 1)

    def initial_state(self, batch: int) -> Tensor:
        config = self.config
        return self.zero_state(batch, self.local_count(config.num_heads), config.key_size, config.value_size)

    def prefill_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, z, g = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, .]
        y, state = gla_prefill(state, q, k, v, g, self.config.chunk_size)
        return self.norm_and_gate(y, z).transpose(0, 1), state

    def step_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, z, g = self._heads(packed)  # [b, heads, .]
        y, state = gla_step(state, q, k, v, g)
        return self.norm_and_gate(y, z), state

    def _heads(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Split [..., channels] into scaled queries, keys, values, gates and log decays, each [..., heads, .]."""
        config = self.config
        heads = self.core_sizes[0] // config.key_size
        q, k, v, z, g = (part.unflatten(-1, (heads, -1)) for part in packed.split(self.core_sizes, -1))
        decays = F.logsigmoid(g.to(accumulation_dtype(g))) / config.gate_divisor
        return q * config.key_size**-0.5, k, v, z, decays
