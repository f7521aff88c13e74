"""Implicit filters on a backend."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.implicit_filter.config import ImplicitFilterConfig
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.tensors import Init, TensorSpec

# Shares of the filter's length after which the fastest and the slowest window have fallen to _TARGET.
_FAST, _SLOW, _TARGET = 0.3, 1.5, 1e-2


class ImplicitFilter(nn.Module):
    """Makes this process's filters [filters, tokens], in float32, or float64 for such parameters."""

    output_weight: nn.Parameter

    def __init__(self, config: ImplicitFilterConfig, backend: Backend) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        for name, spec in config.tensors().items():
            if name.startswith("filter."):
                self.register_parameter(name.removeprefix("filter."), backend.parameter(spec))
        self.spec = config.tensors()["filter.output_weight"]
        self.one_each = TensorSpec(self.spec.shape[:1], Init("ones"), self.spec.parts)  # a number for every filter

    def forward(self, tokens: int) -> Tensor:
        frequency = self._shared("frequency")
        x = self._features(torch.arange(tokens, dtype=frequency.dtype, device=frequency.device))
        x = torch.sin(frequency * F.linear(x, self._shared("input_weight"), self._shared("input_bias")))
        if self.config.filter_layers:
            layers = zip(self._shared("inner_weight").unbind(), self._shared("inner_bias").unbind(), strict=True)
            for weight, bias in layers:
                x = torch.sin(frequency * F.linear(x, weight, bias))
        output_weight = self.backend.local_heads(self.output_weight, self.spec)
        values = output_weight.to(x.dtype) @ x.t()  # [filters, tokens]
        times = torch.arange(tokens, dtype=x.dtype, device=x.device) / (self.config.filter_length - 1)
        return values * (-self._decays(x).unsqueeze(1) * times).exp()

    def _shared(self, name: str) -> Tensor:
        """Return a parameter that the filters of all processes share, in the dtype that filters are computed in."""
        parameter = getattr(self, name)
        return self.backend.of_all_heads(parameter).to(accumulation_dtype(parameter))

    def _features(self, positions: Tensor) -> Tensor:
        """Map [tokens] to [tokens, features]: the time, and cosines and sines of it in bands of rising frequency."""
        length, bands = self.config.filter_length, (self.config.filter_embedding - 1) // 2
        frequencies = torch.linspace(1e-4, bands - 1, bands, dtype=positions.dtype, device=positions.device)
        angles = (2 * math.pi / length * positions).unsqueeze(1) * frequencies
        return torch.cat([positions.unsqueeze(1) / (length - 1), angles.cos(), -angles.sin()], 1)

    def _decays(self, like: Tensor) -> Tensor:
        """Return the decay rates of this process's filters; all lie evenly between the slowest and the fastest, dealt
        in turn to the runs of filters."""
        slowest, fastest = -math.log(_TARGET) / _SLOW, -math.log(_TARGET) / _FAST
        rates = torch.linspace(slowest, fastest, *self.one_each.shape, dtype=like.dtype, device=like.device)
        rates = rates.unflatten(0, (-1, self.config.decay_runs)).t().flatten()
        return self.backend.local_heads(self.one_each.shard(rates, self.backend.shards), self.one_each)


def with_skip(filters: Tensor, skip: Tensor) -> Tensor:
    """Add the input's own weight [f] to the first tap of filters [f, s]."""
    return torch.cat([filters[:, :1] + skip.to(filters.dtype).unsqueeze(1), filters[:, 1:]], 1)
