"""Mamba on a backend."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents, isolated
from hybridtron.mixers.mixer import ConvState, Mixer
from hybridtron.ops.conv.short_conv import short_conv, short_conv_prefill, short_conv_step
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.ssm.selective_scan import selective_scan, selective_scan_prefill, selective_scan_step
from hybridtron.tensors import PackedPart


class Mamba1(Mixer):
    """Selective state space with a decay per channel; parts of the core's input are x, z and what channels share.

    The step before its projection, B and C, which all channels share, are made from all of them: the convolution and
    the scan each have the whole sequence, the projection between them a run of it.
    """

    @cached_property
    def packing(self) -> tuple[PackedPart, ...]:
        """Declare the core's input: a process has its share of x and z, and a copy of what channels share."""
        copies = self.backend.shards.tensor.size * self.backend.context_parallel_size
        shared = PackedPart("shared", copies, sum(self.config.shared_sizes.values()))
        return (*self.specs["in_proj.weight"].parts, shared)

    def project_in(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        x, z = self.in_proj(x).chunk(2, -1)  # [s, b, inner]
        convolve = isolated(self.convolve, documents)
        x = self.backend.with_full_sequence(convolve, x, self.specs["conv_weight"].parts)
        shared = self.backend.to_local_heads(self._shared(x))  # [s, b, dt + B + C]
        return torch.cat([x, z] + [shared] * self.backend.context_parallel_size, -1)

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve some channels of [s, b, inner]."""
        weight = self.local_heads("conv_weight")
        bias = self.local_heads("conv_bias") if self.config.conv_bias else None
        return short_conv(x.transpose(0, 1), weight, bias, activation="silu").transpose(0, 1)

    def core(self, packed: Tensor) -> Tensor:
        x, z, dt, B, C = (part.transpose(0, 1) for part in self._split(packed))  # [b, s, .]
        y = selective_scan(x, self._steps(dt), self._rates(), B, C, self.local_heads("D"))
        return (y * F.silu(z)).transpose(0, 1)

    def initial_state(self, batch: int) -> ConvState:
        return ConvState(self.zero_conv_inputs(batch), self.zero_state(batch, *self.A_log.shape))

    def prefill(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        x, z = self.in_proj(x).chunk(2, -1)  # [s, b, inner]
        bias = self.conv_bias if self.config.conv_bias else None
        x, conv = short_conv_prefill(state.conv, x.transpose(0, 1), self.conv_weight, bias, "silu")
        dt, B, C = self._shared(x).split(list(self.config.shared_sizes.values()), -1)  # [b, s, .]
        y, ssm = selective_scan_prefill(state.memory, x, self._steps(dt), self._rates(), B, C, self.D)
        return self.project_out(y.transpose(0, 1) * F.silu(z)), ConvState(conv, ssm)

    def step(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        x, z = self.in_proj(x.unsqueeze(0)).squeeze(0).chunk(2, -1)
        bias = self.conv_bias if self.config.conv_bias else None
        x, conv = short_conv_step(state.conv, x, self.conv_weight, bias, "silu")
        x, z, dt, B, C = self._split(torch.cat([x, z, self._shared(x.unsqueeze(0)).squeeze(0)], -1))  # [b, .]
        y, ssm = selective_scan_step(state.memory, x, self._steps(dt), self._rates(), B, C, self.D)
        return self.project_out((y * F.silu(z)).unsqueeze(0)).squeeze(0), ConvState(conv, ssm)

    def _split(self, packed: Tensor) -> tuple[Tensor, ...]:
        return packed.split([*self.core_sizes[:2], *self.config.shared_sizes.values()], -1)

    def _shared(self, x: Tensor) -> Tensor:
        """Project [s, b, inner] to what all channels share: dt, B and C, each normed by itself where there are norms.

        Before `to_local_heads`, so that a norm's weights get the gradient of all heads.
        """
        config, shared = self.config, self.x_proj(x)
        if config.inner_norm == "none":
            return shared
        eps, parts = config.inner_norm_eps or self.backend.norm_eps, []
        for name, part in zip(config.shared_sizes, shared.split(list(config.shared_sizes.values()), -1), strict=True):
            learned = config.inner_norm == "learned"
            weight = getattr(self, f"{name}_norm_weight") if learned else part.new_ones(part.size(-1))
            parts.append(rms_norm(part, weight, eps))
        return torch.cat(parts, -1)

    def _steps(self, dt: Tensor) -> Tensor:
        """Return the steps of some channels from what all of them share."""
        projected = F.linear(dt, self.local_heads("dt_weight"))
        return F.softplus(projected.to(accumulation_dtype(projected)) + self.local_heads("dt_bias"))

    def _rates(self) -> Tensor:
        """Return the decay rates of some channels [inner, n], all negative."""
        log = self.local_heads("A_log")
        return -log.to(accumulation_dtype(log)).exp()
