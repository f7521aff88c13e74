"""Hyena experts on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.mixers.hyena.module import join_runs
from hybridtron.mixers.hyena_experts.config import HyenaExpertsConfig
from hybridtron.mixers.implicit_filter.cache import InputCache
from hybridtron.mixers.implicit_filter.module import ImplicitFilter, with_skip
from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.short_conv import short_conv, short_conv_step
from hybridtron.ops.elementwise.precision import accumulation_dtype


class HyenaExpertsState(NamedTuple):
    conv: Tensor  # the inputs of the short convolutions before the next token [b, k - 1, 3 experts * w]
    cache: InputCache


class HyenaExperts(Mixer):
    """Narrow Hyenas side by side; a tensor- or context-parallel rank computes its own channels of every expert.

    Parts of the projection are q, k and v, in each one expert after another.
    """

    def __init__(self, config: HyenaExpertsConfig, backend: Backend) -> None:
        super().__init__(config, backend)
        self.filter = ImplicitFilter(config, backend)

    def forward(self, x: Tensor) -> Tensor:
        y = self.over_sequence(self.in_proj(x))
        y = join_runs(y, self.backend.context_parallel_size, self.config.num_experts)
        return self.out_proj(self.combine(self._experts(y), self.backend.to_local_heads(x)))

    def core(self, packed: Tensor) -> Tensor:
        weight, bias, skip = map(self.local_heads, ("conv_weight", "conv_bias", "skip"))
        q, k, v = short_conv(packed.transpose(0, 1), weight, bias).chunk(3, -1)  # [b, s, experts * w]
        return (q * long_conv(k * v, with_skip(self.filter(len(packed)), skip))).transpose(0, 1)

    def initial_state(self, batch: int) -> HyenaExpertsState:
        size, taps = self.conv_weight.shape
        empty = self.conv_weight.new_empty(batch, self.config.channels)
        return HyenaExpertsState(
            self.conv_weight.new_zeros(batch, taps - 1, size), InputCache.empty((empty,), self.skip)
        )

    def step(self, x: Tensor, state: HyenaExpertsState) -> tuple[Tensor, HyenaExpertsState]:
        packed = self.in_proj(x.unsqueeze(0)).squeeze(0)
        streams, conv = short_conv_step(state.conv, packed, self.conv_weight, self.conv_bias)
        q, k, v = streams.chunk(3, -1)
        cache = state.cache.add((k * v,), lambda tokens: with_skip(self.filter(tokens), self.skip))
        (inputs,), h = cache.held()
        experts = self._experts((q * (inputs * h.t()).sum(1)).to(x.dtype))
        return self.out_proj(self.combine(experts, x).unsqueeze(0)).squeeze(0), HyenaExpertsState(conv, cache)

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        """Weigh the outputs [..., experts, w] of the best experts of tokens x [..., h]: -> [..., w]."""
        bias = self.of_all_heads("router_bias") if self.config.bias else None
        scores = F.linear(x, self.of_all_heads("router_weight"), bias).to(accumulation_dtype(x))
        best, experts = scores.topk(self.config.top_k, -1)  # [..., k]
        chosen = y.gather(-2, experts.unsqueeze(-1).expand(*experts.shape, y.shape[-1]))  # [..., k, w]
        return (chosen * best.softmax(-1).to(y.dtype).unsqueeze(-1)).sum(-2)

    def _experts(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.config.num_experts, -1))
