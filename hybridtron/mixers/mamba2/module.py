"""Mamba-2 on a backend."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.mamba2.config import Mamba2Config
from hybridtron.ops.norm import gated_rms_norm
from hybridtron.ops.short_conv import short_conv
from hybridtron.ops.ssd import ssd


class Mamba2(nn.Module):
    """[s, b, h] -> [s, b, h]; under tensor parallelism each rank computes its own heads and their groups."""

    conv_weight: nn.Parameter
    conv_bias: nn.Parameter
    dt_bias: nn.Parameter
    A_log: nn.Parameter
    D: nn.Parameter
    norm_weight: nn.Parameter

    def __init__(self, config: Mamba2Config, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.specs = config, backend, specs
        self.in_proj = backend.column_linear(specs["in_proj.weight"])
        for name in ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight"):
            self.register_parameter(name, backend.parameter(specs[name]))
        self.out_proj = backend.row_linear(specs["out_proj.weight"])
        self.norm_eps = backend.norm_eps
        z, *conv, dt = backend.core_sizes(specs["in_proj.weight"])
        self.core_sizes, self.conv_sizes = (z, sum(conv), dt), tuple(conv)
        self.norm_groups = conv[-1] // config.state_dim

    def forward(self, u: Tensor) -> Tensor:
        packed = self.in_proj(u)  # [s, b, z + conv + dt]
        return self.out_proj(self.backend.over_sequence(self.core, packed, self.specs["in_proj.weight"]))

    def core(self, packed: Tensor) -> Tensor:
        """The projected channels of some heads [s, b, z + conv + dt] -> [s, b, heads * p]."""
        conv_weight, conv_bias, dt_bias, A_log, D, norm_weight = (
            self.backend.own_heads(getattr(self, name), self.specs[name])
            for name in ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
        )
        # Split before transposing: the gradients are then joined in the order that the projection wants.
        z, conv_input, dt = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))  # [b, s, .]
        convolved = short_conv(conv_input, conv_weight, conv_bias, activation="silu")
        x, b, c = convolved.split(self.conv_sizes, -1)
        y = ssd(
            x.unflatten(-1, (-1, self.config.head_dim)),  # [b, s, heads, p]
            F.softplus(dt.float() + dt_bias),  # [b, s, heads]
            -A_log.exp(),
            b.unflatten(-1, (-1, self.config.state_dim)),  # [b, s, groups, n]
            c.unflatten(-1, (-1, self.config.state_dim)),
            D,
            self.config.chunk_size,
        ).flatten(2)  # [b, s, heads * p]
        y = gated_rms_norm(y, z, norm_weight, self.norm_eps, self.norm_groups)
        return y.transpose(0, 1)
