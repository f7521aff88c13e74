"""Linear attention on a backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.linear_attention.kernelized import (
    elu_features,
    linear_attention,
    linear_attention_prefill,
    linear_attention_step,
    taylor_features,
)

_FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": elu_features,
    "relu": F.relu,
    "identity": lambda x: x,
    "taylor": taylor_features,
}


class LinearAttention(Mixer):
    """Linear attention; parts of the projection are queries, keys and values."""

    in_name, out_name = "qkv", "proj"

    def core(self, packed: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, .]
        q, k = self._features(q, k)
        config = self.config
        return linear_attention(q, k, v, config.chunk_size, config.normalizes, config.eps).flatten(2).transpose(0, 1)

    def initial_state(self, batch: int) -> Tensor:
        config = self.config
        return self.zero_state(
            batch, self.local_count(config.num_heads), config.features, config.value_size + config.normalizes
        )

    def prefill_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        q, k, v = (part.transpose(0, 1) for part in self._heads(packed))  # [b, s, heads, .]
        q, k = self._features(q, k)
        y, state = linear_attention_prefill(state, q, k, v, config.chunk_size, config.normalizes, config.eps)
        return y.flatten(2).transpose(0, 1), state

    def step_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self._heads(packed)  # [b, heads, .]
        y, state = linear_attention_step(state, *self._features(q, k), v, self.config.normalizes, self.config.eps)
        return y.flatten(1), state

    def _heads(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split [..., q + k + v] into three of [..., heads, .]."""
        q, k, v = packed.split(self.core_sizes, -1)
        heads = v.shape[-1] // self.config.value_size
        return q.unflatten(-1, (heads, -1)), k.unflatten(-1, (heads, -1)), v.unflatten(-1, (heads, -1))

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.feature_map != "hadamard":
            features = _FEATURES[self.config.feature_map]
            return features(q), features(k)
        size = self.config.key_size
        if self.config.shared_feature_map:
            weights = self.of_all_heads("feature_weight").unflatten(0, (4, size))
            biases = self.of_all_heads("feature_bias").unflatten(0, (4, size))
            q1, q2, k1, k2 = map(F.linear, (q, q, k, k), weights, biases)
        else:
            weights = self.local_heads("feature_weight").unflatten(0, (4, -1, size))  # [4, heads, outputs, inputs]
            q1, q2, k1, k2 = (
                torch.einsum("...hi,hoi->...ho", x, weight) for x, weight in zip((q, q, k, k), weights, strict=True)
            )
        return q1 * q2, k1 * k2
