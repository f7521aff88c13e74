"""Mamba-2 on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.mamba2.config import Mamba2Config
from hybridtron.ops.conv.short_conv import short_conv_step
from hybridtron.ops.elementwise.norm import gated_rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.ssm.mamba2 import mamba2_core
from hybridtron.ops.ssm.ssd import ssd_step


class Mamba2State(NamedTuple):
    conv: Tensor  # the inputs of the convolution before the next token [b, k - 1, x + B + C]
    ssm: Tensor  # [b, heads, p, n]


class Mamba2(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own heads and their groups."""

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

    def forward(self, u: Tensor) -> Tensor:
        packed = self.in_proj(u)  # [s, b, z + conv + dt]
        return self.out_proj(self.backend.with_full_sequence(self.core, packed, self.specs["in_proj.weight"]))

    def core(self, packed: Tensor) -> Tensor:
        """The projected channels of some heads [s, b, z + conv + dt] -> [s, b, heads * p]."""
        conv_weight, conv_bias, dt_bias, A_log, D, norm_weight = (
            self.backend.local_heads(getattr(self, name), self.specs[name])
            for name in ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
        )
        return mamba2_core(
            packed,
            conv_weight,
            conv_bias,
            dt_bias,
            -A_log.to(accumulation_dtype(A_log)).exp(),
            D,
            norm_weight,
            head_dim=self.config.head_dim,
            state_dim=self.config.state_dim,
            chunk_size=self.config.chunk_size,
            eps=self.norm_eps,
        )

    def initial_state(self, batch: int) -> Mamba2State:
        config, (channels, taps) = self.config, self.conv_weight.shape
        size = (batch, config.num_heads, config.head_dim, config.state_dim)
        return Mamba2State(
            self.conv_weight.new_zeros(batch, taps - 1, channels),
            self.conv_weight.new_zeros(size, dtype=accumulation_dtype(self.conv_weight)),
        )

    def step(self, u: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        config = self.config
        sizes = self.backend.core_sizes(self.specs["in_proj.weight"])
        z, *convolved, dt = self.in_proj(u.unsqueeze(0)).squeeze(0).split(sizes, -1)
        conv_input = torch.cat(convolved, -1)
        conv_output, cache = short_conv_step(state.conv, conv_input, self.conv_weight, self.conv_bias, "silu")
        x, b, c = (
            part.unflatten(-1, (-1, width))
            for part, width in zip(
                conv_output.split(sizes[1:-1], -1), (config.head_dim, config.state_dim, config.state_dim), strict=True
            )
        )  # [b, heads or groups, .]
        steps = F.softplus(dt.to(state.ssm.dtype) + self.dt_bias)
        y, ssm = ssd_step(state.ssm, x, steps, -self.A_log.to(steps.dtype).exp(), b, c, self.D)
        y = gated_rms_norm(y.flatten(1), z, self.norm_weight, self.norm_eps, config.groups)
        return self.out_proj(y.unsqueeze(0)).squeeze(0), Mamba2State(cache, ssm)
