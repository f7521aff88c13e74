"""StripedHyena 2's convolutions on a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.striped_hyena.config import StripedHyenaConfig
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.modal_filter import modal_filter, modal_step
from hybridtron.ops.conv.short_conv import short_conv, short_conv_step
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.tensors import Init, TensorSpec

# Powers of ten: how often a medium filter's window falls by e over its length.
_WEAKEST, _STRONGEST = -2.0, 2.0


class StripedHyenaState(NamedTuple):
    conv: Tensor  # the inputs of the convolutions of q, k and v before the next token [b, k - 1, 3 h]
    inputs: Tensor  # what the filters remember of k * v: the last inputs [b, taps - 1, h], or modes [b, h, n]


class StripedHyena(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own groups of channels.

    Subclasses make the filters.
    """

    conv_weight: nn.Parameter
    names: tuple[str, ...]  # parameters besides the projections and their convolution

    def __init__(self, config: StripedHyenaConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.config, self.backend, self.specs = config, backend, specs
        self.in_proj = backend.column_linear(specs["in_proj.weight"])
        for name in ("conv_weight", *self.names):
            self.register_parameter(name, backend.parameter(specs[name]))
        self.out_proj = backend.row_linear(specs["out_proj.weight"])

    def forward(self, x: Tensor) -> Tensor:
        packed = self.in_proj(x)  # [s, b, q + k + v]
        return self.out_proj(self.backend.with_full_sequence(self.core, packed, self.specs["in_proj.weight"]))

    def core(self, packed: Tensor) -> Tensor:
        """The projections of some groups of channels [s, b, q + k + v] -> [s, b, channels]."""
        q, k, v = short_conv(packed.transpose(0, 1), self._own("conv_weight")).chunk(3, -1)  # [b, s, channels]
        inputs = k * v
        y = long_conv(inputs, self.filters(inputs.shape[1]))
        return (q * self._skipped(y, inputs)).transpose(0, 1)

    def filters(self, tokens: int) -> Tensor:
        """Filters [own groups, at most `tokens` or their own length]."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> StripedHyenaState:
        size, taps = self.conv_weight.shape
        conv = self.conv_weight.new_zeros(batch, taps - 1, size)
        return StripedHyenaState(conv, self.initial_inputs(batch))

    def initial_inputs(self, batch: int) -> Tensor:
        raise NotImplementedError

    def step(self, x: Tensor, state: StripedHyenaState) -> tuple[Tensor, StripedHyenaState]:
        packed = self.in_proj(x.unsqueeze(0)).squeeze(0)
        streams, conv = short_conv_step(state.conv, packed, self.conv_weight)
        q, k, v = streams.chunk(3, -1)
        y, inputs = self.convolve_next(state.inputs, k * v)
        y = q * self._skipped(y, k * v)
        return self.out_proj(y.unsqueeze(0)).squeeze(0), StripedHyenaState(conv, inputs)

    def convolve_next(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """What is remembered and the next input [b, h] -> its output, and what is remembered then."""
        raise NotImplementedError

    def _own(self, name: str) -> Tensor:
        return self.backend.local_heads(getattr(self, name), self.specs[name])

    def _skipped(self, y: Tensor, u: Tensor) -> Tensor:
        return y + self._own("skip").to(y.dtype) * u if "skip" in self.names else y


class _Explicit(StripedHyena):
    """Filters of free taps, which see so many inputs."""

    filter_weight: nn.Parameter

    def initial_inputs(self, batch: int) -> Tensor:
        return self.filter_weight.new_zeros(batch, self.filter_weight.shape[1] - 1, self.config.hidden_size)

    def convolve_next(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.filters(self.filter_weight.shape[1])
        return short_conv_step(inputs, u, h.flip(-1).repeat_interleave(u.shape[1] // len(h), 0))


class HyenaSE(_Explicit):
    """Short explicit: free taps."""

    names = ("filter_weight",)

    def filters(self, tokens: int) -> Tensor:
        return self._own("filter_weight")


class HyenaMR(_Explicit):
    """Medium regularised: free taps under an exponential window."""

    names = ("filter_weight", "skip")

    def filters(self, tokens: int) -> Tensor:
        spec, taps = self.specs["filter_weight"], self._own("filter_weight")
        taps = taps.to(accumulation_dtype(taps))
        one_each = TensorSpec(spec.shape[:1], Init("ones"), spec.parts)  # a number for every filter
        like: dict[str, Any] = {"dtype": taps.dtype, "device": taps.device}
        rates = one_each.shard(torch.logspace(_WEAKEST, _STRONGEST, spec.shape[0], **like), self.backend.shards)
        times = torch.linspace(0, 1, spec.shape[1], **like)
        return taps * (-self.backend.local_heads(rates, one_each).unsqueeze(1) * times).exp()


class HyenaLI(StripedHyena):
    """Long implicit: a sum of decaying exponentials."""

    names = ("log_rate", "residues", "skip")

    def filters(self, tokens: int) -> Tensor:
        return modal_filter(*self._modes(), tokens)

    def initial_inputs(self, batch: int) -> Tensor:
        like, order = self.conv_weight, self.specs["residues"].shape[1]
        return like.new_zeros(batch, self.config.hidden_size, order, dtype=accumulation_dtype(like))

    def convolve_next(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return modal_step(inputs, u, *self._modes())

    def _modes(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the poles and residues, [own groups, n]."""
        log_rate, residues = self._own("log_rate"), self._own("residues")
        dtype = accumulation_dtype(residues)
        return -log_rate.to(dtype).exp(), residues.to(dtype)
