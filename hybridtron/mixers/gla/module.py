"""Gated linear attention on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.gla.config import GLAConfig
from hybridtron.ops.elementwise.norm import norm_then_gate
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.gla import gla, gla_step
from hybridtron.tensors import Init, TensorSpec


class GLA(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own heads."""

    gate_down: nn.Parameter
    norm_weight: nn.Parameter

    def __init__(self, config: GLAConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend = config, backend
        rows = sum(part.size for part in config.core_parts)
        self.packing = TensorSpec((rows, config.hidden_size), Init("input"), config.core_parts)
        self.core_sizes = backend.core_sizes(self.packing)
        self.in_proj = backend.column_linear(specs["in_proj.weight"])
        self.gate_up = backend.column_linear(specs["gate_up.weight"], specs["gate_up.bias"])
        for name in ("gate_down", "norm_weight"):
            self.register_parameter(name, backend.parameter(specs[name]))
        self.out_proj = backend.row_linear(specs["out_proj.weight"])
        self.norm_eps = backend.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.backend.with_full_sequence(self.core, self._project(x), self.packing))

    def core(self, packed: Tensor) -> Tensor:
        """The projected channels of some heads [s, b, q + k + v + z + g] -> [s, b, heads * p]."""
        q, k, v, z, g = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, .]
        return self._finish(gla(q, k, v, g, self.config.chunk_size), z).transpose(0, 1)

    def initial_state(self, batch: int) -> Tensor:
        config = self.config
        size = (batch, config.num_heads, config.key_size, config.value_size)
        return self.gate_down.new_zeros(size, dtype=accumulation_dtype(self.gate_down))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, z, g = self._heads(self._project(x.unsqueeze(0)).squeeze(0))  # [b, heads, .]
        y, state = gla_step(state, q, k, v, g)
        return self.out_proj(self._finish(y, z).unsqueeze(0)).squeeze(0), state

    def _project(self, x: Tensor) -> Tensor:
        """[s, b, h] -> [s, b, q + k + v + z + g]."""
        return torch.cat([self.in_proj(x), self.gate_up(F.linear(x, self.gate_down))], -1)

    def _heads(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """[..., q + k + v + z + g] -> five of [..., heads, .]: scaled queries, keys, values, gates and log decays."""
        config = self.config
        heads = self.core_sizes[0] // config.key_size
        q, k, v, z, g = (part.unflatten(-1, (heads, -1)) for part in packed.split(self.core_sizes, -1))
        decays = F.logsigmoid(g.to(accumulation_dtype(g))) / config.gate_divisor
        return q * config.key_size**-0.5, k, v, z, decays

    def _finish(self, y: Tensor, z: Tensor) -> Tensor:
        return norm_then_gate(y, z, self.backend.of_all_heads(self.norm_weight), self.norm_eps)
