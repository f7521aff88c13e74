"""Mamba-2 on a backend."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import ConvState, Mixer, recompute
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.ops.conv.short_conv import short_conv_step
from hybridtron.ops.elementwise.norm import gated_rms_norm, gated_rms_norm_reference
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.native.library import Kernels
from hybridtron.ops.opaque import opaque
from hybridtron.ops.ssm.mamba2 import mamba2_core, mamba2_prefill, step_sizes
from hybridtron.ops.ssm.ssd import ssd_step

_WITH_KERNELS = {
    "type", "norm_position", "expand", "head_dim", "state_dim", "num_groups", "conv_kernel", "conv_bias", "proj_bias",
    "dt_limit_min", "dt_limit_max", "chunk_size",
}  # fmt: skip


class Mamba2(Mixer):
    """Selective state space with a decay per head; parts of the projection are z, x, B, C and dt."""

    def core(self, packed: Tensor, documents: Documents | None = None) -> Tensor:
        return mamba2_core(packed, *self._weights(), **self._settings(), documents=documents)

    @opaque
    def isolated_core(self, packed: Tensor, documents: Documents) -> Tensor:
        """Leave documents to the operation, whose kernels go from one to the next where they lie."""
        core = partial(self.core, documents=documents)
        return recompute(core, packed) if self.recompute_core else core(packed)

    def initial_state(self, batch: int) -> ConvState:
        config = self.config
        memory = self.zero_state(batch, self.local_count(config.num_heads), config.head_dim, config.state_dim)
        return ConvState(self.zero_conv_inputs(batch), memory)

    def prefill_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        y, conv, memory = mamba2_prefill(state.conv, state.memory, packed, *self._weights(), **self._settings())
        return y, ConvState(conv, memory)

    def step_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        config, sizes = self.config, self.core_sizes
        conv_weight, conv_bias, dt_bias, A, D, norm_weight = self._weights()
        z, conv_input, dt = packed.split([sizes[0], sum(sizes[1:-1]), sizes[-1]], -1)
        convolved, conv = short_conv_step(state.conv, conv_input, conv_weight, conv_bias, "silu")
        x, b, c = convolved.split(sizes[1:-1], -1)
        x = x.unflatten(-1, (-1, config.head_dim))  # [b, heads or groups, .]
        b, c = b.unflatten(-1, (-1, config.state_dim)), c.unflatten(-1, (-1, config.state_dim))
        steps = step_sizes(dt.to(A.dtype), dt_bias, config.dt_limit)
        y, memory = ssd_step(state.memory, x, steps, A, b, c, D)
        norm = (
            gated_rms_norm_reference if z.device.type == "cpu" else gated_rms_norm
        )  # the fused form is for many tokens
        y = norm(y.flatten(1), z, norm_weight, self.backend.norm_eps, self.local_count(config.groups))
        return y, ConvState(conv, memory)

    def prepare_step_core(self, kernels: Kernels, packed: Tensor, y: Tensor, state: ConvState) -> PreparedStep | None:
        config = self.config
        if not config.changed_keys() <= _WITH_KERNELS:
            return None
        state = ConvState(state.conv.contiguous(), state.memory.contiguous())
        sizes = (len(packed), config.num_heads, config.groups, config.head_dim, config.state_dim, config.conv_kernel)
        step = kernels.mamba2_step.prepare(
            *sizes, packed, state.conv, self.conv_weight, self.conv_bias if config.conv_bias else None, self.dt_bias,
            self.A_log, self.D, *config.dt_limit, self.norm_weight, self.backend.norm_eps, state.memory, y,
        )  # fmt: skip
        return PreparedStep([step], lambda: state)

    def _weights(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        """Return the arguments of `mamba2_core` after the tokens."""
        log = self.local_heads("A_log")
        return (
            self.local_heads("conv_weight"),
            self.local_heads("conv_bias") if self.config.conv_bias else None,
            self.local_heads("dt_bias"),
            -log.to(accumulation_dtype(log)).exp(),
            self.local_heads("D"),
            self.local_heads("norm_weight"),
        )

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "head_dim": config.head_dim, "state_dim": config.state_dim, "chunk_size": config.chunk_size,
            "eps": self.backend.norm_eps, "dt_limit": config.dt_limit,
        }  # fmt: skip
