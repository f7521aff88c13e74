"""Mamba on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.mamba1.config import Mamba1Config
from hybridtron.ops.conv.short_conv import short_conv, short_conv_step
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.ssm.selective_scan import selective_scan, selective_scan_step
from hybridtron.tensors import Init, PackedPart, TensorSpec


class Mamba1State(NamedTuple):
    conv: Tensor  # the inputs of the convolution before the next token [b, k - 1, inner]
    ssm: Tensor  # [b, inner, n]


class Mamba1(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own channels.

    What all channels share, the step before its projection, B and C, is made from all of them: the convolution and the
    scan each have the whole sequence, the projection between them a run of it.
    """

    conv_weight: nn.Parameter
    conv_bias: nn.Parameter
    dt_weight: nn.Parameter
    dt_bias: nn.Parameter
    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(self, config: Mamba1Config, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.specs = config, backend, specs
        self.in_proj = backend.column_linear(specs["in_proj.weight"])
        self.x_proj = backend.row_linear(specs["x_proj.weight"])
        for name in ("conv_weight", "conv_bias", "dt_weight", "dt_bias", "A_log", "D"):
            self.register_parameter(name, backend.parameter(specs[name]))
        self.out_proj = backend.row_linear(specs["out_proj.weight"])
        # Every process gets its share of x and z, and a copy of what its channels share.
        x, z = specs["in_proj.weight"].parts
        self.copies = backend.context_parallel_size
        shared = PackedPart("shared", backend.shards.tensor.size * self.copies, config.step_rank + 2 * config.state_dim)
        rows = 2 * config.inner_size + shared.size
        self.packing = TensorSpec((rows, config.hidden_size), Init("input"), (x, z, shared))

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.in_proj(u).chunk(2, -1)  # [s, b, inner]
        x = self.backend.with_full_sequence(self.convolve, x, self.specs["conv_weight"])
        shared = self.backend.to_local_heads(self.x_proj(x))  # [s, b, dt + B + C]
        packed = torch.cat([x, z] + [shared] * self.copies, -1)
        return self.out_proj(self.backend.with_full_sequence(self.core, packed, self.packing))

    def convolve(self, x: Tensor) -> Tensor:
        """Some channels of [s, b, inner]."""
        weight, bias = self._own("conv_weight"), self._own("conv_bias")
        return short_conv(x.transpose(0, 1), weight, bias, activation="silu").transpose(0, 1)

    def core(self, packed: Tensor) -> Tensor:
        """Some channels and what they share [s, b, x + z + dt + B + C] -> [s, b, x]."""
        x, z, dt, B, C = (part.transpose(0, 1) for part in self._split(packed))  # [b, s, .]
        y = selective_scan(x, self._steps(dt), -_wide(self._own("A_log")).exp(), B, C, self._own("D"))
        return (y * F.silu(z)).transpose(0, 1)

    def initial_state(self, batch: int) -> Mamba1State:
        (channels, taps), like = self.conv_weight.shape, self.conv_weight
        return Mamba1State(
            like.new_zeros(batch, taps - 1, channels),
            like.new_zeros(batch, *self.A_log.shape, dtype=accumulation_dtype(like)),
        )

    def step(self, u: Tensor, state: Mamba1State) -> tuple[Tensor, Mamba1State]:
        x, z = self.in_proj(u.unsqueeze(0)).squeeze(0).chunk(2, -1)
        x, cache = short_conv_step(state.conv, x, self.conv_weight, self.conv_bias, "silu")
        x, z, dt, B, C = self._split(torch.cat([x, z, self.x_proj(x.unsqueeze(0)).squeeze(0)], -1))  # [b, .]
        y, ssm = selective_scan_step(state.ssm, x, self._steps(dt), -_wide(self.A_log).exp(), B, C, self.D)
        return self.out_proj((y * F.silu(z)).unsqueeze(0)).squeeze(0), Mamba1State(cache, ssm)

    def _own(self, name: str) -> Tensor:
        return self.backend.local_heads(getattr(self, name), self.specs[name])

    def _split(self, packed: Tensor) -> tuple[Tensor, ...]:
        config = self.config
        inner = self.backend.core_sizes(self.packing)[:2]
        return packed.split([*inner, config.step_rank, config.state_dim, config.state_dim], -1)

    def _steps(self, dt: Tensor) -> Tensor:
        """Steps of some channels from what all of them share."""
        projected = F.linear(dt, self._own("dt_weight"))
        return F.softplus(projected.to(accumulation_dtype(projected)) + self._own("dt_bias"))


def _wide(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x))
