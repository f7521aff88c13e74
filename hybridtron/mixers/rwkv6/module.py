"""RWKV-6's time mixing on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.rwkv6.config import MIXED
from hybridtron.mixers.token_shift import before_each, before_each_next
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear import linear
from hybridtron.ops.linear_attention.rwkv6 import rwkv6, rwkv6_prefill, rwkv6_step

_NORM_EPS = 64e-5  # of the norm over each head, as in the authors' code


class RWKV6State(NamedTuple):
    before: Tensor  # the token before the next one [b, h]
    heads: Tensor  # [b, heads, d, d]


class RWKV6(Mixer):
    """RWKV-6 time mixing; parts of the core's input are w, k, v, r and g."""

    def project_in(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        x = self.backend.to_local_heads(x)
        return self._project(x, before_each(x, self.backend, documents))

    def core(self, packed: Tensor) -> Tensor:
        w, k, v, r, g = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, d]
        y = rwkv6(r, k, v, self._log_decay(w), self._per_head("bonus"), self.config.chunk_size)
        return self._norm_and_gate(y, g).transpose(0, 1)

    def initial_state(self, batch: int) -> RWKV6State:
        config = self.config
        heads = self.zero_state(batch, self.local_count(config.num_heads), config.head_dim, config.head_dim)
        return RWKV6State(self.mix_base.new_zeros(batch, config.hidden_size), heads)

    def prefill(self, x: Tensor, state: RWKV6State) -> tuple[Tensor, RWKV6State]:
        packed = self._project(x, before_each_next(x, state.before))
        w, k, v, r, g = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, d]
        log_w, bonus = self._log_decay(w), self._per_head("bonus")
        y, heads = rwkv6_prefill(state.heads, r, k, v, log_w, bonus, self.config.chunk_size)
        return self.project_out(self._norm_and_gate(y, g).transpose(0, 1)), RWKV6State(x[-1].clone(), heads)

    def step(self, x: Tensor, state: RWKV6State) -> tuple[Tensor, RWKV6State]:
        w, k, v, r, g = self._heads(self._project(x.unsqueeze(0), state.before.unsqueeze(0)).squeeze(0))
        y, heads = rwkv6_step(state.heads, r, k, v, self._log_decay(w), self._per_head("bonus"))
        return self.project_out(self._norm_and_gate(y, g).unsqueeze(0)).squeeze(0), RWKV6State(x, heads)

    def _heads(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Split [..., 5 heads * d] into w, k, v, r and g [..., heads, d]."""
        return packed.unflatten(-1, (5, -1, self.config.head_dim)).unbind(-3)

    def _project(self, x: Tensor, before: Tensor) -> Tensor:
        """Map tokens and those before them, [s, b, h] each, to w, k, v, r and g of this rank [s, b, 5 heads * d]."""
        change = before - x
        low = torch.tanh(linear(x + change * self.of_all_heads("mix_base"), self.of_all_heads("mix_down")))
        low = low.unflatten(-1, (len(MIXED), -1)).movedim(-2, 0).flatten(1, 2)  # [5, s b, rank]
        shifts = (low @ self.of_all_heads("mix_up")).unflatten(1, x.shape[:2])  # [5, s, b, h]
        projected = []
        for name, shift in zip(MIXED, shifts.unbind(), strict=True):
            mixed = x + change * (self.of_all_heads(f"mix_{name}") + shift)
            if name == "decay":
                mixed = torch.tanh(linear(mixed, self.of_all_heads("decay_down")))
            projected.append(linear(mixed, getattr(self, f"{name}_weight")))
        return torch.cat(projected, -1)

    def _log_decay(self, w: Tensor) -> Tensor:
        """Return the log decays, -exp(base + w), of what the tokens add to the base, w [..., heads, d]."""
        return -(w.to(accumulation_dtype(w)) + self._per_head("decay_base")).exp()

    def _norm_and_gate(self, y: Tensor, g: Tensor) -> Tensor:
        """Norm [..., heads, d] head by head, and gate: -> [..., heads * d]."""
        normed = F.layer_norm(y.to(accumulation_dtype(y)), y.shape[-1:], eps=_NORM_EPS)
        return (
            ((normed * self._per_head("norm_weight") + self._per_head("norm_bias")) * F.silu(g)).flatten(-2).to(g.dtype)
        )

    def _per_head(self, name: str) -> Tensor:
        """Return a parameter of this process's heads as [heads, d]."""
        return self.local_heads(name).unflatten(0, (-1, self.config.head_dim))
