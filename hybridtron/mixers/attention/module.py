"""Attention on a backend."""

from __future__ import annotations

from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.attention.config import AttentionConfig
from hybridtron.ops.rotary import apply_rotary, rotary_tables


class Attention(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own heads."""

    def __init__(self, config: AttentionConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.packing = config, backend, specs["qkv.weight"]
        self.core_sizes = backend.core_sizes(self.packing)
        self.qkv = backend.column_linear(specs["qkv.weight"], specs.get("qkv.bias"))
        self.proj = backend.row_linear(specs["proj.weight"])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.backend.over_sequence(self.core, self.qkv(x), self.packing))

    def core(self, packed: Tensor) -> Tensor:
        """Queries, keys and values of some heads [s, b, q + k + v] -> [s, b, heads * d]."""
        config = self.config
        # Split before transposing: the gradients are then joined in the order that the projection wants.
        q, k, v = (
            part.unflatten(-1, (-1, config.head_size)).transpose(0, 1) for part in packed.split(self.core_sizes, -1)
        )  # [b, s, heads, d]
        if config.rotary_dim:
            cos, sin = rotary_tables(q.size(1), config.rotary_dim, config.rotary_base, device=q.device)
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        y = self.backend.core_attention(q, k, v, config.window)  # [b, s, heads, d]
        return y.flatten(2).transpose(0, 1)
