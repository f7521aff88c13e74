"""RWKV-6's channel mixing on a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.token_shift import before_each, before_each_next
from hybridtron.ops.elementwise.activations import ACTIVATIONS
from hybridtron.ops.linear import linear


class RWKV6Channel(Mixer):
    """RWKV-6 channel mixing; a tensor-parallel rank computes its own inner channels, and all receptances."""

    def core(self, packed: Tensor) -> Tensor:
        return ACTIVATIONS["relu2"](packed)  # [s, b, f] -> [s, b, f]

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        whole = self.backend.to_local_heads(x)
        before = before_each(whole, self.backend, documents)
        value = self.value(self.run_core(self._key(whole, before, self.of_all_heads("mix_key"))))
        if not self.config.receptance:
            return self._gated(value, x, before)
        if len(whole) > len(x):  # sequence parallelism: receptances of the own run of tokens
            run = len(x) * self.backend.shards.tensor.rank
            before = before[run : run + len(x)]
        else:
            before = before_each(x, self.backend, documents)  # `whole` sends gradients to the inner channels' owners
        return self._gated(value, x, before)

    def initial_state(self, batch: int) -> Tensor:
        """Return the token before the first, zeros [b, h]."""
        return self.mix_key.new_zeros(batch, len(self.mix_key))

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before = before_each_next(x, state)
        value = self.value(self.core(self._key(x, before, self.mix_key)))
        return self._gated(value, x, before), x[-1].clone()

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        value = self.value(self.core(self._key(x, state, self.mix_key)).unsqueeze(0)).squeeze(0)
        return self._gated(value, x, state), x

    def _key(self, x: Tensor, before: Tensor, mix: Tensor) -> Tensor:
        return linear(x + (before - x) * mix, self.key_weight)

    def _gated(self, value: Tensor, x: Tensor, before: Tensor) -> Tensor:
        """Multiply values by the receptances of their tokens, where there are any."""
        if not self.config.receptance:
            return value
        mixed = x + (before - x) * self.mix_receptance
        return torch.sigmoid(linear(mixed, self.receptance_weight)) * value
