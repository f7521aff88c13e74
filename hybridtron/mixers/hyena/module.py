"""Hyena on a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.hyena.config import ROLES, ProjectedHyenaConfig
from hybridtron.mixers.implicit_filter.cache import InputCache
from hybridtron.mixers.implicit_filter.module import ImplicitFilter, with_skip
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.short_conv import short_conv, short_conv_step


class HyenaState(NamedTuple):
    conv: Tensor  # the inputs of the short convolutions before the next token [b, k - 1, 3 inner]
    cache: InputCache


class ProjectedHyena(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own channels or heads.

    Subclasses say what is kept of q, k and v for the long convolution, and how the filters apply to it.
    """

    conv_weight: nn.Parameter
    conv_bias: nn.Parameter
    skip: nn.Parameter

    def __init__(self, config: ProjectedHyenaConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.specs = config, backend, specs
        self.in_proj = backend.column_linear(specs["in_proj.weight"], specs.get("in_proj.bias"))
        for name in ("conv_weight", "conv_bias", "skip"):
            self.register_parameter(name, backend.parameter(specs[name]))
        self.filter = ImplicitFilter(config, backend)
        self.out_proj = backend.row_linear(specs["out_proj.weight"], specs.get("out_proj.bias"))

    def forward(self, x: Tensor) -> Tensor:
        packed = self.in_proj(x)  # [s, b, projections]
        y = self.backend.with_full_sequence(self.core, packed, self.specs["in_proj.weight"])
        return self.out_proj(joined(y, self.backend.context_parallel_size, self.config.projection_groups))

    def core(self, packed: Tensor) -> Tensor:
        """The projections of some channels [s, b, c] -> [s, b, channels]."""
        weight, bias, skip = (
            self.backend.local_heads(getattr(self, name), self.specs[name])
            for name in ("conv_weight", "conv_bias", "skip")
        )
        streams = short_conv(self._in_roles(packed).transpose(0, 1), weight, bias)  # [b, s, 3 channels]
        h = with_skip(self.filter(len(packed)), skip)
        q, v, k = streams.chunk(ROLES, -1)
        return self.mix(q, k, v, h).transpose(0, 1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
        """q, k, v [b, s, channels] and filters [filters, s] -> [b, s, channels]."""
        raise NotImplementedError

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """What the next tokens need of k and v [b, channels]."""
        raise NotImplementedError

    def mix_last(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        """`mix` for the last token: q [b, channels], all that was kept [b, s, channels], h [filters, s] backwards."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> HyenaState:
        size, taps = self.conv_weight.shape
        empty = self.conv_weight.new_empty(batch, self.config.inner_size)
        inputs = self.kept(empty, empty)
        return HyenaState(self.conv_weight.new_zeros(batch, taps - 1, size), InputCache.empty(inputs, self.skip))

    def step(self, x: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        packed = self._in_roles(self.in_proj(x.unsqueeze(0)).squeeze(0))
        streams, conv = short_conv_step(state.conv, packed, self.conv_weight, self.conv_bias)
        q, v, k = streams.chunk(ROLES, -1)
        cache = state.cache.add(self.kept(k, v), lambda tokens: with_skip(self.filter(tokens), self.skip))
        y = self.mix_last(q, *cache.held())
        return self.out_proj(y.to(x.dtype).unsqueeze(0)).squeeze(0), HyenaState(conv, cache)

    def _in_roles(self, packed: Tensor) -> Tensor:
        """Projections [..., c] -> q, v and k side by side, runs of channels one after another in each."""
        groups, projections = self.config.projection_groups, packed.chunk(ROLES, -1)
        if groups == 1:
            return packed
        return torch.cat([projections[(g + role * groups) % ROLES] for role in range(ROLES) for g in range(groups)], -1)


class Hyena(ProjectedHyena):
    """q * conv(k * v), a filter for every channel."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
        return q * long_conv(k * v, h)

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (k * v,)

    def mix_last(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        return q * (inputs[0] * h.t()).sum(1)


def joined(y: Tensor, processes: int, runs: int) -> Tensor:
    """Join what `with_full_sequence` gives where each process computed its share of several runs of channels:
    [..., processes * runs * c], one process after another -> the whole runs, one after another."""
    if processes == 1 or runs == 1:
        return y
    return y.unflatten(-1, (processes, runs, -1)).transpose(-3, -2).flatten(-3)
