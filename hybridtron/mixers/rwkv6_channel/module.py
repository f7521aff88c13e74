"""RWKV-6's channel mixing on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.rwkv6_channel.config import RWKV6ChannelConfig
from hybridtron.mixers.token_shift import before_each
from hybridtron.ops.elementwise.activations import ACTIVATIONS


class RWKV6Channel(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor-parallel rank computes its own inner channels, and all receptances."""

    def __init__(self, config: RWKV6ChannelConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.backend = backend
        self.mix_key = backend.parameter(specs["mix_key"])
        self.mix_receptance = backend.parameter(specs["mix_receptance"])
        self.key_weight = backend.parameter(specs["key_weight"])
        self.receptance_weight = backend.parameter(specs["receptance_weight"])
        self.value = backend.row_linear(specs["value.weight"])
        self.core = ACTIVATIONS["relu2"]  # [s, b, f] -> [s, b, f]

    def forward(self, x: Tensor) -> Tensor:
        whole = self.backend.to_local_heads(x)
        before = before_each(whole, self.backend)
        value = self.value(self.core(self._key(whole, before, self.backend.of_all_heads(self.mix_key))))
        if len(whole) > len(x):  # sequence parallelism: receptances of the own run of tokens
            run = len(x) * self.backend.shards.tensor.rank
            before = before[run : run + len(x)]
        else:
            before = before_each(x, self.backend)  # `whole` sends gradients to the inner channels' owners
        return self._receptance(x, before) * value

    def initial_state(self, batch: int) -> Tensor:
        """The token before the next one [b, h]."""
        return self.mix_key.new_zeros(batch, len(self.mix_key))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        value = self.value(self.core(self._key(x, state, self.mix_key)).unsqueeze(0)).squeeze(0)
        return self._receptance(x, state) * value, x

    def _key(self, x: Tensor, before: Tensor, mix: Tensor) -> Tensor:
        return F.linear(x + (before - x) * mix, self.key_weight)

    def _receptance(self, x: Tensor, before: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(x + (before - x) * self.mix_receptance, self.receptance_weight))
