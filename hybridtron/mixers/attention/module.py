"""Attention on a backend."""

from __future__ import annotations

from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.attention.config import AttentionConfig
from hybridtron.ops.rotary import apply_rotary, rotary_tables


class Attention(nn.Module):
    """[s, b, h] -> [s, b, h]; under tensor parallelism each rank computes its own heads."""

    def __init__(self, config: AttentionConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config = config
        self.qkv = backend.column_linear(specs["qkv.weight"], specs.get("qkv.bias"))
        self.proj = backend.row_linear(specs["proj.weight"])
        self.core_attention = backend.core_attention
        self.local_sizes = specs["qkv.weight"].local_sizes(backend.tensor_parallel_size)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).split(self.local_sizes, -1)  # [s, b, q or k or v of this rank]
        # Split before transposing: the gradients are then joined in the order that the projection wants.
        q, k, v = (
            part.unflatten(-1, (-1, self.config.head_size)).transpose(0, 1) for part in parts
        )  # [b, s, heads, d]
        if self.config.rotary_dim:
            cos, sin = rotary_tables(q.size(1), self.config.rotary_dim, self.config.rotary_base, device=q.device)
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        y = self.core_attention(q, k, v, self.config.window)  # [b, s, heads, d]
        return self.proj(y.flatten(2).transpose(0, 1))
