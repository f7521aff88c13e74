"""Hyena experts on a backend."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.hyena.module import Hyena, join_runs
from hybridtron.mixers.mixer import ConvState
from hybridtron.ops.elementwise.precision import accumulation_dtype


class HyenaExperts(Hyena):
    """Narrow Hyenas side by side; a tensor- or context-parallel rank computes its own channels of every expert.

    Parts of the projection are q, k and v, in each one expert after another.
    """

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        y = self.over_sequence(self.in_proj(x), documents)
        y = join_runs(y, self.backend.context_parallel_size, self.config.num_experts)
        return self.out_proj(self.combine(self._experts(y), self.backend.to_local_heads(x)))

    def prefill(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        y, state = self.prefill_core(self.in_proj(x), state)
        return self.out_proj(self.combine(self._experts(y), x)), state

    def step(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        y, state = self.step_core(self.in_proj(x.unsqueeze(0)).squeeze(0), state)
        return self.out_proj(self.combine(self._experts(y), x).unsqueeze(0)).squeeze(0), state

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        """Weigh the outputs [..., experts, w] of the best experts of tokens x [..., h]: -> [..., w]."""
        bias = self.of_all_heads("router_bias") if self.config.bias else None
        scores = F.linear(x, self.of_all_heads("router_weight"), bias).to(accumulation_dtype(x))
        best, experts = scores.topk(self.config.top_k, -1)  # [..., k]
        chosen = y.gather(-2, experts.unsqueeze(-1).expand(*experts.shape, y.shape[-1]))  # [..., k, w]
        return (chosen * best.softmax(-1).to(y.dtype).unsqueeze(-1)).sum(-2)

    def _experts(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.config.num_experts, -1))
