"""Gated DeltaNet on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.gated_deltanet.config import GatedDeltaNetConfig
from hybridtron.ops.conv.short_conv import short_conv, short_conv_step
from hybridtron.ops.elementwise.norm import norm_then_gate
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule, gated_delta_rule_step

_L2_EPS = 1e-6  # under the root of the length of queries and keys, as in the authors' code


class GatedDeltaNetState(NamedTuple):
    conv: Tensor  # the inputs of the convolutions before the next token [b, k - 1, q + k + v]
    memory: Tensor  # [b, value heads, n, p]


class GatedDeltaNet(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own heads."""

    conv_weight: nn.Parameter
    dt_bias: nn.Parameter
    A_log: nn.Parameter
    norm_weight: nn.Parameter

    def __init__(self, config: GatedDeltaNetConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.specs = config, backend, specs
        self.core_sizes = backend.core_sizes(specs["in_proj.weight"])
        self.in_proj = backend.column_linear(specs["in_proj.weight"])
        for name in ("conv_weight", "dt_bias", "A_log", "norm_weight"):
            self.register_parameter(name, backend.parameter(specs[name]))
        self.out_proj = backend.row_linear(specs["out_proj.weight"])
        self.norm_eps = backend.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.backend.with_full_sequence(self.core, self.in_proj(x), self.specs["in_proj.weight"]))

    def core(self, packed: Tensor) -> Tensor:
        """The projected channels of some heads [s, b, q + k + v + z + beta + dt] -> [s, b, value heads * p]."""
        conv_input, *rest = packed.transpose(0, 1).split([sum(self.core_sizes[:3]), *self.core_sizes[3:]], -1)
        convolved = short_conv(conv_input, self._own("conv_weight"), activation="silu")
        q, k, v, z, g, beta = self._heads(convolved, *rest)  # [b, s, heads, .]
        return self._finish(gated_delta_rule(q, k, v, g, beta, self.config.chunk_size), z).transpose(0, 1)

    def initial_state(self, batch: int) -> GatedDeltaNetState:
        config, (channels, taps) = self.config, self.conv_weight.shape
        size = (batch, config.value_heads, config.key_size, config.value_size)
        return GatedDeltaNetState(
            self.conv_weight.new_zeros(batch, taps - 1, channels),
            self.conv_weight.new_zeros(size, dtype=accumulation_dtype(self.conv_weight)),
        )

    def step(self, x: Tensor, state: GatedDeltaNetState) -> tuple[Tensor, GatedDeltaNetState]:
        packed = self.in_proj(x.unsqueeze(0)).squeeze(0)
        conv_input, *rest = packed.split([sum(self.core_sizes[:3]), *self.core_sizes[3:]], -1)
        convolved, cache = short_conv_step(state.conv, conv_input, self.conv_weight, activation="silu")
        q, k, v, z, g, beta = self._heads(convolved, *rest)  # [b, heads, .]
        y, memory = gated_delta_rule_step(state.memory, q, k, v, g, beta)
        return self.out_proj(self._finish(y, z).unsqueeze(0)).squeeze(0), GatedDeltaNetState(cache, memory)

    def _own(self, name: str) -> Tensor:
        return self.backend.local_heads(getattr(self, name), self.specs[name])

    def _heads(
        self, convolved: Tensor, z: Tensor, beta: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """[..., channels] -> queries, keys, values and gates [..., heads, .], log decays and strengths [..., heads]."""
        config, dtype = self.config, accumulation_dtype(convolved)
        q, k, v = convolved.split(self.core_sizes[:3], -1)
        q, k = (part.unflatten(-1, (-1, config.key_size)) for part in (q, k))
        v, z = (part.unflatten(-1, (-1, config.value_size)) for part in (v, z))
        steps = F.softplus(dt.to(dtype) + self._own("dt_bias"))
        strengths = torch.sigmoid(beta.to(dtype)) * (2 if config.allow_negative else 1)
        return _unit(q) * config.key_size**-0.5, _unit(k), v, z, -self._own("A_log").to(dtype).exp() * steps, strengths

    def _finish(self, y: Tensor, z: Tensor) -> Tensor:
        return norm_then_gate(y, z, self.backend.of_all_heads(self.norm_weight), self.norm_eps)


def _unit(x: Tensor) -> Tensor:
    """x divided by its length over the last axis, in the dtype of states."""
    wide = x.to(accumulation_dtype(x))
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + _L2_EPS)
