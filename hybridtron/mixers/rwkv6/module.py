"""RWKV-6's time mixing on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.rwkv6.config import MIXED, RWKV6Config
from hybridtron.mixers.token_shift import before_each
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.rwkv6 import rwkv6, rwkv6_step

_NORM_EPS = 64e-5  # of the norm over each head, as in the authors' code


class RWKV6State(NamedTuple):
    before: Tensor  # the token before the next one [b, h]
    heads: Tensor  # [b, heads, d, d]


class RWKV6(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own heads."""

    mix_base: nn.Parameter
    mix_down: nn.Parameter
    mix_up: nn.Parameter
    decay_base: nn.Parameter
    decay_down: nn.Parameter
    bonus: nn.Parameter
    norm_weight: nn.Parameter
    norm_bias: nn.Parameter

    def __init__(self, config: RWKV6Config, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.specs, self.packing = config, backend, specs, config.packing
        for name, spec in specs.items():
            if "." not in name:
                self.register_parameter(name, backend.parameter(spec))
        self.out_proj = backend.row_linear(specs["out_proj.weight"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.backend.to_local_heads(x)
        packed = self._project(x, before_each(x, self.backend))  # [s, b, 5 heads * d]
        return self.out_proj(self.backend.with_full_sequence(self.core, packed, self.packing))

    def core(self, packed: Tensor) -> Tensor:
        """Of some heads w, k, v, r and g [s, b, 5 heads * d] -> [s, b, heads * d]."""
        w, k, v, r, g = (
            part.unflatten(-1, (-1, self.config.head_dim)).transpose(0, 1) for part in packed.chunk(5, -1)
        )  # [b, s, heads, d]
        y = rwkv6(r, k, v, self._log_decay(w), self._own("bonus"), self.config.chunk_size)
        return self._gated(y, g).transpose(0, 1)

    def initial_state(self, batch: int) -> RWKV6State:
        config, like = self.config, self.mix_base
        size = (batch, config.num_heads, config.head_dim, config.head_dim)
        return RWKV6State(
            like.new_zeros(batch, config.hidden_size), like.new_zeros(size, dtype=accumulation_dtype(like))
        )

    def step(self, x: Tensor, state: RWKV6State) -> tuple[Tensor, RWKV6State]:
        packed = self._project(x.unsqueeze(0), state.before.unsqueeze(0)).squeeze(0)
        w, k, v, r, g = (part.unflatten(-1, (-1, self.config.head_dim)) for part in packed.chunk(5, -1))
        y, heads = rwkv6_step(state.heads, r, k, v, self._log_decay(w), self._own("bonus"))
        return self.out_proj(self._gated(y, g).unsqueeze(0)).squeeze(0), RWKV6State(x, heads)

    def _project(self, x: Tensor, before: Tensor) -> Tensor:
        """Tokens and those before them, [s, b, h] each, -> w, k, v, r and g of this rank side by side."""
        change = before - x
        low = torch.tanh(F.linear(x + change * self._shared("mix_base"), self._shared("mix_down")))
        low = low.unflatten(-1, (len(MIXED), -1)).movedim(-2, 0).flatten(1, 2)  # [5, s b, rank]
        shifts = (low @ self._shared("mix_up")).unflatten(1, x.shape[:2])  # [5, s, b, h]
        projected = []
        for name, shift in zip(MIXED, shifts.unbind(), strict=True):
            mixed = x + change * (self._shared(f"mix_{name}") + shift)
            if name == "decay":
                mixed = torch.tanh(F.linear(mixed, self._shared("decay_down")))
            projected.append(F.linear(mixed, getattr(self, f"{name}_weight")))
        return torch.cat(projected, -1)

    def _shared(self, name: str) -> Tensor:
        return self.backend.of_all_heads(getattr(self, name))

    def _log_decay(self, w: Tensor) -> Tensor:
        """-exp of the decays' base and what the token adds, w [..., heads, d]."""
        base = self._own("decay_base")
        return -(w.to(accumulation_dtype(w)) + base).exp()

    def _gated(self, y: Tensor, g: Tensor) -> Tensor:
        """[..., heads, d] -> [..., heads * d]: normed head by head, and gated."""
        normed = F.layer_norm(y.to(accumulation_dtype(y)), y.shape[-1:], eps=_NORM_EPS)
        return ((normed * self._own("norm_weight") + self._own("norm_bias")) * F.silu(g)).flatten(-2).to(g.dtype)

    def _own(self, name: str) -> Tensor:
        """A parameter over this process's heads, [heads, d]."""
        own = self.backend.local_heads(getattr(self, name), self.specs[name])
        return own.unflatten(0, (-1, self.config.head_dim))
