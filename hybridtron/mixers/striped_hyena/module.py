"""StripedHyena 2's convolutions on a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridtron.mixers.mixer import ConvState, Mixer
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.modal_filter import modal_filter, modal_prefill, modal_step
from hybridtron.ops.conv.short_conv import short_conv, short_conv_prefill, short_conv_step
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.tensors import Init, TensorSpec

# Powers of ten: how often a medium filter's window falls by e over its length.
_WEAKEST, _STRONGEST = -2.0, 2.0


class StripedHyena(Mixer):
    """q * conv(k * v) with grouped filters; parts of the projection are q, k and v. Subclasses make the filters."""

    def core(self, packed: Tensor) -> Tensor:
        q, k, v = short_conv(packed.transpose(0, 1), self.local_heads("conv_weight")).chunk(3, -1)  # [b, s, channels]
        inputs = k * v
        y = long_conv(inputs, self.filters(inputs.shape[1]))
        return (q * self._add_skip(y, inputs)).transpose(0, 1)

    def filters(self, tokens: int) -> Tensor:
        """Return filters [own groups, at most `tokens` or their own length]."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> ConvState:
        return ConvState(self.zero_conv_inputs(batch), self.initial_inputs(batch))

    def initial_inputs(self, batch: int) -> Tensor:
        """Return what the filters know of k * v before the first token: inputs [b, taps - 1, h] or modes [b, h, n]."""
        raise NotImplementedError

    def prefill_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        streams, conv = short_conv_prefill(state.conv, packed.transpose(0, 1), self.conv_weight)
        q, k, v = streams.chunk(3, -1)  # [b, s, channels]
        y, inputs = self.convolve_more(state.memory, k * v)
        return (q * self._add_skip(y, k * v)).transpose(0, 1), ConvState(conv, inputs)

    def step_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        streams, conv = short_conv_step(state.conv, packed, self.conv_weight)
        q, k, v = streams.chunk(3, -1)
        y, inputs = self.convolve_next(state.memory, k * v)
        return q * self._add_skip(y, k * v), ConvState(conv, inputs)

    def convolve_more(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve the next inputs u [b, s, h]: return their outputs, and what the filters remember after them."""
        raise NotImplementedError

    def convolve_next(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve the next input u [b, h]: return its output, and what the filters remember after it."""
        raise NotImplementedError

    def _add_skip(self, y: Tensor, u: Tensor) -> Tensor:
        return y + self.local_heads("skip").to(y.dtype) * u if "skip" in self.specs else y


class _Explicit(StripedHyena):
    """Filters of free taps, which see so many inputs."""

    def initial_inputs(self, batch: int) -> Tensor:
        return self.filter_weight.new_zeros(
            batch, self.filter_weight.shape[1] - 1, self.local_count(self.config.hidden_size)
        )

    def convolve_more(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        taps, seen = self.filter_weight.shape[1], torch.cat([inputs, u], 1)
        return long_conv(seen, self.filters(taps))[:, taps - 1 :], seen[:, u.shape[1] :].clone()

    def convolve_next(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.filters(self.filter_weight.shape[1])
        return short_conv_step(inputs, u, h.flip(-1).repeat_interleave(u.shape[1] // len(h), 0))


class HyenaSE(_Explicit):
    """Short explicit: free taps."""

    def filters(self, tokens: int) -> Tensor:
        return self.local_heads("filter_weight")


class HyenaMR(_Explicit):
    """Medium regularised: free taps under an exponential window."""

    def filters(self, tokens: int) -> Tensor:
        spec, taps = self.specs["filter_weight"], self.local_heads("filter_weight")
        taps = taps.to(accumulation_dtype(taps))
        one_each = TensorSpec(spec.shape[:1], Init("ones"), spec.parts)  # a number for every filter
        like: dict[str, Any] = {"dtype": taps.dtype, "device": taps.device}
        rates = one_each.shard(torch.logspace(_WEAKEST, _STRONGEST, spec.shape[0], **like), self.backend.shards)
        times = torch.linspace(0, 1, spec.shape[1], **like)
        return taps * (-self.backend.local_heads(rates, one_each).unsqueeze(1) * times).exp()


class HyenaLI(StripedHyena):
    """Long implicit: a sum of decaying exponentials."""

    def filters(self, tokens: int) -> Tensor:
        return modal_filter(*self._modes(), tokens)

    def initial_inputs(self, batch: int) -> Tensor:
        return self.zero_state(batch, self.local_count(self.config.hidden_size), self.config.filter_order)

    def convolve_more(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        carried, inputs = modal_prefill(inputs, u, *self._modes())
        return long_conv(u, self.filters(u.shape[1])) + carried, inputs

    def convolve_next(self, inputs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return modal_step(inputs, u, *self._modes())

    def _modes(self) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the poles, and the residues, [own groups, n]."""
        log_rate, residues = self.local_heads("log_rate"), self.local_heads("residues")
        dtype = accumulation_dtype(residues)
        return -log_rate.to(dtype).exp(), residues.to(dtype)
