"""Hyena experts on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.hyena.module import joined
from hybridtron.mixers.hyena_experts.config import HyenaExpertsConfig
from hybridtron.mixers.implicit_filter.cache import InputCache
from hybridtron.mixers.implicit_filter.module import ImplicitFilter, with_skip
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.short_conv import short_conv, short_conv_step
from hybridtron.ops.elementwise.precision import accumulation_dtype


class HyenaExpertsState(NamedTuple):
    conv: Tensor  # the inputs of the short convolutions before the next token [b, k - 1, 3 experts * w]
    cache: InputCache


class HyenaExperts(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own channels of every expert."""

    conv_weight: nn.Parameter
    conv_bias: nn.Parameter
    skip: nn.Parameter
    router_weight: nn.Parameter
    router_bias: nn.Parameter | None

    def __init__(self, config: HyenaExpertsConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.specs = config, backend, specs
        self.in_proj = backend.column_linear(specs["in_proj.weight"], specs.get("in_proj.bias"))
        for name in ("conv_weight", "conv_bias", "skip", "router_weight", "router_bias"):
            self.register_parameter(name, backend.parameter(specs[name]) if name in specs else None)
        self.filter = ImplicitFilter(config, backend)
        self.out_proj = backend.row_linear(specs["out_proj.weight"], specs.get("out_proj.bias"))

    def forward(self, x: Tensor) -> Tensor:
        packed = self.in_proj(x)  # [s, b, q + k + v], in each one expert after another
        y = self.backend.with_full_sequence(self.core, packed, self.specs["in_proj.weight"])
        y = joined(y, self.backend.context_parallel_size, self.config.num_experts)
        experts = y.unflatten(-1, (self.config.num_experts, -1))
        return self.out_proj(self._combined(experts, self.backend.to_local_heads(x)))

    def core(self, packed: Tensor) -> Tensor:
        """The projections of some channels of every expert [s, b, q + k + v] -> their outputs [s, b, experts * w]."""
        weight, bias, skip = (
            self.backend.local_heads(getattr(self, name), self.specs[name])
            for name in ("conv_weight", "conv_bias", "skip")
        )
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
        y = (q * (inputs * h.t()).sum(1)).to(x.dtype).unflatten(-1, (self.config.num_experts, -1))
        return self.out_proj(self._combined(y, x).unsqueeze(0)).squeeze(0), HyenaExpertsState(conv, cache)

    def _combined(self, y: Tensor, x: Tensor) -> Tensor:
        """Of the outputs [..., experts, w] for tokens x [..., h] those of the best experts, weighted: [..., w]."""
        weight = self.backend.of_all_heads(self.router_weight)
        bias = None if self.router_bias is None else self.backend.of_all_heads(self.router_bias)
        best, experts = F.linear(x, weight, bias).to(accumulation_dtype(x)).topk(self.config.top_k, -1)  # [..., k]
        chosen = y.gather(-2, experts.unsqueeze(-1).expand(*experts.shape, y.shape[-1]))  # [..., k, w]
        return (chosen * best.softmax(-1).to(y.dtype).unsqueeze(-1)).sum(-2)
