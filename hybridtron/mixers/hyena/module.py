"""Hyena on a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.mixers.hyena.config import ROLES
from hybridtron.mixers.implicit_filter.cache import InputCache
from hybridtron.mixers.implicit_filter.config import ImplicitFilterConfig
from hybridtron.mixers.implicit_filter.module import ImplicitFilter, with_skip
from hybridtron.mixers.mixer import ConvState, Mixer
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.short_conv import short_conv, short_conv_prefill, short_conv_step


class ProjectedHyena(Mixer):
    """Gates around a long convolution, on three projections.

    Subclasses define what is kept of q, k and v for the long convolution, and how the filters apply to it.
    """

    def __init__(self, config: ImplicitFilterConfig, backend: Backend) -> None:
        super().__init__(config, backend)
        self.filter = ImplicitFilter(config, backend)

    def project_out(self, y: Tensor) -> Tensor:
        return self.out_proj(join_runs(y, self.backend.context_parallel_size, self.config.projection_groups))

    def core(self, packed: Tensor) -> Tensor:
        weight, bias, skip = map(self.local_heads, ("conv_weight", "conv_bias", "skip"))
        streams = short_conv(self._in_roles(packed).transpose(0, 1), weight, bias)  # [b, s, 3 channels]
        h = with_skip(self.filter(len(packed)), skip)
        q, v, k = streams.chunk(ROLES, -1)
        return self.mix(q, k, v, h).transpose(0, 1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
        """Combine q, k, v [b, s, channels] and filters [filters, s] -> [b, s, channels]."""
        raise NotImplementedError

    def mix_more(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        """Apply `mix` to the last tokens: q [b, s, channels], all that was kept [b, t, channels], filters h
        [filters, t]."""
        raise NotImplementedError

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Return what later tokens need of k and v [..., channels]."""
        raise NotImplementedError

    def mix_last(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        """Apply `mix` to the last token: q [b, channels], all that was kept [b, s, channels], reversed filters h
        [filters, s]."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> ConvState:
        empty = self.conv_weight.new_empty(batch, self.local_count(self.config.inner_size))
        return ConvState(self.zero_conv_inputs(batch), InputCache.empty(self.kept(empty, empty), self.skip))

    def prefill_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        inputs = self._in_roles(packed).transpose(0, 1)
        streams, conv = short_conv_prefill(state.conv, inputs, self.conv_weight, self.conv_bias)
        q, v, k = streams.chunk(ROLES, -1)  # [b, s, channels]
        cache = state.memory.add(self.kept(k, v), self._filters)
        y = self.mix_more(q, cache.inputs.held(), cache.filters[:, : cache.inputs.seen])
        return y.to(packed.dtype).transpose(0, 1), ConvState(conv, cache)

    def step_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        streams, conv = short_conv_step(state.conv, self._in_roles(packed), self.conv_weight, self.conv_bias)
        q, v, k = streams.chunk(ROLES, -1)
        cache = state.memory.add(tuple(u.unsqueeze(1) for u in self.kept(k, v)), self._filters)
        return self.mix_last(q, *cache.held()).to(packed.dtype), ConvState(conv, cache)

    def _filters(self, tokens: int) -> Tensor:
        return with_skip(self.filter(tokens), self.skip)

    def _in_roles(self, packed: Tensor) -> Tensor:
        """Put projections [..., c] as q, v and k side by side, runs of channels one after another in each."""
        groups, projections = self.config.projection_groups, packed.chunk(ROLES, -1)
        if groups == 1:
            return packed
        return torch.cat([projections[(g + role * groups) % ROLES] for role in range(ROLES) for g in range(groups)], -1)


class Hyena(ProjectedHyena):
    """q * conv(k * v), a filter for every channel."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
        return q * long_conv(k * v, h)

    def mix_more(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        return q * long_conv(inputs[0], h)[:, -q.shape[1] :]

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (k * v,)

    def mix_last(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        return q * (inputs[0] * h.t()).sum(1)


def join_runs(y: Tensor, processes: int, runs: int) -> Tensor:
    """Join the output of `with_full_sequence` where each process computed its share of several runs of channels:
    [..., processes * runs * c], one process after another -> the whole runs, one after another."""
    if processes == 1 or runs == 1:
        return y
    return y.unflatten(-1, (processes, runs, -1)).transpose(-3, -2).flatten(-3)
