"""Mamba-3 on a backend."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.ssm.mamba3 import Mamba3State, mamba3, mamba3_prefill, mamba3_step

_SLOWEST_DECAY = 1e-4  # per unit of time; slower rates are raised to it, as in the published code


class Mamba3(Mixer):
    """Rotating state space with a decay per head; parts of the projection are z, x, B, C, dt, A, trap and angles."""

    def core(self, packed: Tensor) -> Tensor:
        z, x, *rest = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))  # [b, s, .]
        tokens = self._inputs(x), *self._tokens(*rest)
        y = mamba3(*tokens, self.local_heads("D"), self.config.chunk_size)
        return self._outputs(y, z).transpose(0, 1)

    def initial_state(self, batch: int) -> Mamba3State:
        """Return zeros; of the last token the input before `mimo_x` is kept, [b, h, p]."""
        config = self.config
        return Mamba3State(
            self.zero_state(batch, self.local_count(config.num_heads), config.head_dim, config.state_dim),
            self.zero_state(batch, self.local_count(config.num_heads), config.mimo_rank, config.state_dim),
            self.zero_state(batch, self.local_count(config.num_heads), config.head_dim),
            self.zero_state(batch, self.local_count(config.num_heads), config.num_angles),
        )

    def prefill_core(self, packed: Tensor, state: Mamba3State) -> tuple[Tensor, Mamba3State]:
        z, x, *rest = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))  # [b, s, .]
        tokens = self._inputs(x), *self._tokens(*rest)
        y, after = mamba3_prefill(self._entered(state), *tokens, self.D, self.config.chunk_size)
        return self._outputs(y, z).transpose(0, 1), self._left(after, x[:, -1])

    def step_core(self, packed: Tensor, state: Mamba3State) -> tuple[Tensor, Mamba3State]:
        z, x, *rest = packed.split(self.core_sizes, -1)  # [b, .]
        y, after = mamba3_step(self._entered(state), self._inputs(x), *self._tokens(*rest), self.D)
        return self._outputs(y, z), self._left(after, x)

    def _entered(self, state: Mamba3State) -> Mamba3State:
        """Return the state as the operation takes it, with the last token's input in every rank."""
        return state._replace(x=self._inputs(state.x.flatten(-2)))

    def _left(self, state: Mamba3State, x: Tensor) -> Mamba3State:
        """Return the state after the last token, whose input is x [b, h * p]."""
        return state._replace(x=x.unflatten(-1, (-1, self.config.head_dim)).to(state.memory.dtype))

    def _inputs(self, x: Tensor) -> Tensor:
        """Map [..., h * p] to the inputs of each rank [..., h, r, p]."""
        x = x.unflatten(-1, (-1, 1, self.config.head_dim))
        return x if self.config.mimo_rank == 1 else x * self.local_heads("mimo_x").to(x.dtype)

    def _tokens(
        self, B: Tensor, C: Tensor, dt: Tensor, A: Tensor, trap: Tensor, angles: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return dt, log decays, mixes, angular velocities, B and C of each head from parts of the projection."""
        config, dtype = self.config, accumulation_dtype(dt)
        heads = dt.shape[-1]
        dt = F.softplus(dt.to(dtype) + self.local_heads("dt_bias"))
        A = A.to(dtype)
        rate = F.softplus(A) if config.decay_activation == "softplus" else F.relu(A) + 1 / (1 + F.relu(-A))
        theta = math.pi * angles.to(dtype).tanh().unflatten(-1, (-1, 1, config.num_angles))  # [..., g, 1, k]
        theta = theta.expand(*theta.shape[:-2], heads // theta.shape[-3], -1).flatten(-3, -2)
        decay = -dt * rate.clamp_min(_SLOWEST_DECAY)
        return dt, decay, trap.to(dtype).sigmoid(), theta, self._biased(B, "B"), self._biased(C, "C")

    def _biased(self, x: Tensor, name: str) -> Tensor:
        """Norm B or C of each group and rank [..., g * r * n], and add each head's bias: [..., h, r, n]."""
        bias, config = self.local_heads(f"{name}_bias"), self.config
        groups = x.unflatten(-1, (-1, config.mimo_rank, config.state_dim))
        normed = rms_norm(groups, self.of_all_heads(f"{name}_norm_weight"), self.backend.norm_eps)
        return (normed.unsqueeze(-3) + bias.unflatten(0, (groups.shape[-3], -1))).flatten(-4, -3)

    def _outputs(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate the outputs of each rank [..., h, r, p] by z [..., h * p], and join them: [..., h * p]."""
        config = self.config
        z = z.unflatten(-1, (-1, 1, config.head_dim))
        if config.output_norm:
            weight = self.local_heads("norm_weight").unflatten(0, (-1, 1, config.head_dim))
            y = rms_norm(y, y.new_ones(config.head_dim), self.backend.norm_eps) * weight
        if config.mimo_rank == 1:
            return (y * F.silu(z)).flatten(-3)
        y = y * F.silu(z * self.local_heads("mimo_z").to(z.dtype))
        return (y * self.local_heads("mimo_out").to(y.dtype)).sum(-2).flatten(-2)
