"""Mamba-2 on a backend."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import ConvState, Mixer, recompute
from hybridtron.ops.conv.short_conv import short_conv_prefill, short_conv_step
from hybridtron.ops.elementwise.norm import gated_rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.ssm.mamba2 import mamba2_core, step_sizes
from hybridtron.ops.ssm.ssd import ssd_prefill, ssd_step


class Mamba2(Mixer):
    """Selective state space with a decay per head; parts of the projection are z, x, B, C and dt."""

    def core(self, packed: Tensor, documents: Documents | None = None) -> Tensor:
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
            documents=documents,
        )

    def isolated_core(self, packed: Tensor, documents: Documents) -> Tensor:
        """Leave documents to the operation, whose kernels go from one to the next where they lie."""
        core = partial(self.core, documents=documents)
        return recompute(core, packed) if self.recompute_core else core(packed)

    def initial_state(self, batch: int) -> ConvState:
        config = self.config
        memory = self.zero_state(batch, config.num_heads, config.head_dim, config.state_dim)
        return ConvState(self.zero_conv_inputs(batch), memory)

    def prefill_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        z, conv_input, dt = (part.transpose(0, 1) for part in self._split(packed))  # [b, s, .]
        convolved, conv = short_conv_prefill(state.conv, conv_input, self.conv_weight, self._conv_bias, "silu")
        x, dt, A, b, c = self._scanned(convolved, dt)
        y, ssm = ssd_prefill(state.memory, x, dt, A, b, c, self.D, self.config.chunk_size)
        return self._norm_and_gate(y, z).transpose(0, 1), ConvState(conv, ssm)

    def step_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        z, conv_input, dt = self._split(packed)
        convolved, conv = short_conv_step(state.conv, conv_input, self.conv_weight, self._conv_bias, "silu")
        y, ssm = ssd_step(state.memory, *self._scanned(convolved, dt), self.D)
        return self._norm_and_gate(y, z), ConvState(conv, ssm)

    @property
    def _conv_bias(self) -> Tensor | None:
        return self.conv_bias if self.config.conv_bias else None

    def _split(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Split into z, the channels of the convolution together, and dt."""
        z, *convolved, dt = self.core_sizes
        return packed.split([z, sum(convolved), dt], -1)

    def _scanned(self, convolved: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the arguments of `ssd`: x, dt, A, B and C, tokens [..., heads or groups, .]."""
        config, dtype = self.config, accumulation_dtype(dt)
        x, b, c = (
            part.unflatten(-1, (-1, width))
            for part, width in zip(
                convolved.split(self.core_sizes[1:-1], -1),
                (config.head_dim, config.state_dim, config.state_dim),
                strict=True,
            )
        )
        steps = step_sizes(dt.to(dtype), self.dt_bias, config.dt_limit)
        return x, steps, -self.A_log.to(dtype).exp(), b, c

    def _norm_and_gate(self, y: Tensor, z: Tensor) -> Tensor:
        """Map outputs [..., heads, p] to [..., heads * p], normed and gated."""
        return gated_rms_norm(y.flatten(-2), z, self.norm_weight, self.backend.norm_eps, self.config.groups)
