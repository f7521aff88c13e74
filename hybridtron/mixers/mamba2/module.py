"""Mamba-2 on a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.mixers.mixer import ConvState, Mixer
from hybridtron.ops.conv.short_conv import short_conv_step
from hybridtron.ops.elementwise.norm import gated_rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.ssm.mamba2 import mamba2_core, step_sizes
from hybridtron.ops.ssm.ssd import ssd_step


class Mamba2(Mixer):
    """Selective state space with a decay per head; parts of the projection are z, x, B, C and dt."""

    def core(self, packed: Tensor) -> Tensor:
        config, log = self.config, self.local_heads("A_log")
        return mamba2_core(
            packed,
            self.local_heads("conv_weight"),
            self.local_heads("conv_bias") if config.conv_bias else None,
            self.local_heads("dt_bias"),
            -log.to(accumulation_dtype(log)).exp(),
            self.local_heads("D"),
            self.local_heads("norm_weight"),
            head_dim=config.head_dim,
            state_dim=config.state_dim,
            chunk_size=config.chunk_size,
            eps=self.backend.norm_eps,
            dt_limit=config.dt_limit,
        )

    def initial_state(self, batch: int) -> ConvState:
        config = self.config
        memory = self.zero_state(batch, config.num_heads, config.head_dim, config.state_dim)
        return ConvState(self.zero_conv_inputs(batch), memory)

    def step_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        config, sizes = self.config, self.core_sizes
        z, *convolved, dt = packed.split(sizes, -1)
        conv_input = torch.cat(convolved, -1)
        bias = self.conv_bias if config.conv_bias else None
        conv_output, conv = short_conv_step(state.conv, conv_input, self.conv_weight, bias, "silu")
        x, b, c = (
            part.unflatten(-1, (-1, width))
            for part, width in zip(
                conv_output.split(sizes[1:-1], -1), (config.head_dim, config.state_dim, config.state_dim), strict=True
            )
        )  # [b, heads or groups, .]
        steps = step_sizes(dt.to(state.memory.dtype), self.dt_bias, config.dt_limit)
        y, ssm = ssd_step(state.memory, x, steps, -self.A_log.to(steps.dtype).exp(), b, c, self.D)
        y = gated_rms_norm(y.flatten(1), z, self.norm_weight, self.backend.norm_eps, config.groups)
        return y, ConvState(conv, ssm)
