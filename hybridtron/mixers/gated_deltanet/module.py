"""Gated DeltaNet on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.mixers.mixer import ConvState, Mixer
from hybridtron.ops.conv.short_conv import short_conv, short_conv_prefill, short_conv_step
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule, gated_delta_rule_prefill, gated_delta_rule_step

_L2_EPS = 1e-6  # under the root of the length of queries and keys, as in the authors' code


class GatedDeltaNet(Mixer):
    """Gated delta rule; parts of the projection are q, k, v, z, beta and dt."""

    def core(self, packed: Tensor) -> Tensor:
        conv_input, *rest = self._split(packed.transpose(0, 1))
        convolved = short_conv(conv_input, self.local_heads("conv_weight"), activation="silu")
        q, k, v, z, g, beta = self._heads(convolved, *rest)  # [b, s, heads, .]
        y = gated_delta_rule(q, k, v, g, beta, self.config.chunk_size)
        return self.norm_and_gate(y, z, self.config.norm_eps).transpose(0, 1)

    def initial_state(self, batch: int) -> ConvState:
        config = self.config
        memory = self.zero_state(batch, config.value_heads, config.key_size, config.value_size)
        return ConvState(self.zero_conv_inputs(batch), memory)

    def prefill_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        conv_input, *rest = self._split(packed.transpose(0, 1))
        convolved, conv = short_conv_prefill(state.conv, conv_input, self.conv_weight, activation="silu")
        q, k, v, z, g, beta = self._heads(convolved, *rest)  # [b, s, heads, .]
        y, memory = gated_delta_rule_prefill(state.memory, q, k, v, g, beta, self.config.chunk_size)
        return self.norm_and_gate(y, z, self.config.norm_eps).transpose(0, 1), ConvState(conv, memory)

    def step_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        conv_input, *rest = self._split(packed)
        convolved, conv = short_conv_step(state.conv, conv_input, self.conv_weight, activation="silu")
        q, k, v, z, g, beta = self._heads(convolved, *rest)  # [b, heads, .]
        y, memory = gated_delta_rule_step(state.memory, q, k, v, g, beta)
        return self.norm_and_gate(y, z, self.config.norm_eps), ConvState(conv, memory)

    def _split(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Split into the channels of the convolutions together, then z, beta and dt."""
        return packed.split([sum(self.core_sizes[:3]), *self.core_sizes[3:]], -1)

    def _heads(
        self, convolved: Tensor, z: Tensor, beta: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values and gates [..., heads, .], log decays and strengths [..., heads]."""
        config, dtype = self.config, accumulation_dtype(convolved)
        q, k, v = convolved.split(self.core_sizes[:3], -1)
        q, k = (part.unflatten(-1, (-1, config.key_size)) for part in (q, k))
        v, z = (part.unflatten(-1, (-1, config.value_size)) for part in (v, z))
        steps = F.softplus(dt.to(dtype) + self.local_heads("dt_bias"))
        decays = -self.local_heads("A_log").to(dtype).exp() * steps
        strengths = torch.sigmoid(beta.to(dtype)) * (2 if config.allow_negative else 1)
        return _unit(q) * config.key_size**-0.5, _unit(k), v, z, decays, strengths


def _unit(x: Tensor) -> Tensor:
    """Divide x by its length over the last axis, in the dtype of states."""
    wide = x.to(accumulation_dtype(x))
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + _L2_EPS)
