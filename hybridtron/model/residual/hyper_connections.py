"""Manifold-constrained hyper-connections (arXiv 2512.24880), as in DeepSeek V4: several streams, mixed for each token.

The only state has the streams one after another, [..., n h]. Weights are computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.mixers.mixer import recompute
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual import plain
from hybridtron.model.residual.config import HyperConnectionsConfig
from hybridtron.model.residual.stream import States
from hybridtron.ops.elementwise.precision import accumulation_dtype, under_transforms
from hybridtron.ops.elementwise.sinkhorn import sinkhorn


class Layer(plain.Layer):
    """Reads pre X and writes comb^T X + post m y."""

    def __init__(self, config: ModelConfig, layer: int, backend: Backend) -> None:
        super().__init__(config, layer, backend)
        assert isinstance(config.residual, HyperConnectionsConfig)
        self.config, self.norm_eps = config.residual, config.norm_eps
        specs = config.residual.tensors(config, layer)
        self.weight, self.bias, self.scale = (backend.parameter(specs[name]) for name in ("weight", "bias", "scale"))

    def read(self, states: States, norm: plain.Norm) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        (x,) = states
        n = self.config.streams
        logits = stream_logits(x, self.weight, self.norm_eps)
        # The iteration keeps 80 matrices a token for its backward pass, many times what they are computed from. It is
        # handed its parameters: functional_call has others in their place by the time of the backward pass.
        given = (logits, self.scale, self.bias)
        weights = self._weights(given) if under_transforms() else recompute(self._weights, given)
        pre, post, comb = weights.split([n, n, n * n], -1)
        return norm(add_up(pre, x)), (post.to(x.dtype), comb.to(x.dtype))

    def _weights(self, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return pre, post and comb [..., n + n + n n] of the linear's output, the scales and the biases."""
        (logits, scales, biases), n, eps = given, self.config.streams, self.config.eps
        sizes = [n, n, n * n]
        parts = zip(logits.split(sizes, -1), scales.unbind(), biases.split(sizes), strict=True)
        pre, post, comb = (logit * scale + bias for logit, scale, bias in parts)
        comb = comb.unflatten(-1, (n, n)).softmax(-1) + eps
        comb = sinkhorn(comb, self.config.sinkhorn_iterations, eps)
        return torch.cat([pre.sigmoid() + eps, 2 * post.sigmoid(), comb.flatten(-2)], -1)

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        (x,), (post, comb) = states, mixing
        n = self.config.streams
        mixed = comb.unflatten(-1, (n, n)).transpose(-1, -2) @ x.unflatten(-1, (n, -1))
        return ((mixed + post.unsqueeze(-1) * self.scaled(y).unsqueeze(-2)).flatten(-2),)


class End(plain.End):
    """Copies the embedding to every stream, and adds up the streams at the end by sigmoid weights."""

    def __init__(self, config: ModelConfig, backend: Backend, last: bool) -> None:
        super().__init__(config, backend, last)
        assert isinstance(config.residual, HyperConnectionsConfig)
        self.config, self.norm_eps = config.residual, config.norm_eps
        if last:
            specs = config.residual.end_tensors(config)
            self.weight, self.bias, self.scale = (
                backend.parameter(specs[name]) for name in ("weight", "bias", "scale")
            )

    def begin(self, x: Tensor) -> States:
        return (torch.cat([x] * self.config.streams, -1),)

    def forward(self, states: States) -> Tensor:
        (x,) = states
        logits = stream_logits(x, self.weight, self.norm_eps)
        return add_up((logits * self.scale + self.bias).sigmoid() + self.config.eps, x)


def stream_logits(x: Tensor, weight: Tensor, norm_eps: float) -> Tensor:
    """Map the normed streams [..., n h] by a linear [c, n h], in float32 -> [..., c]."""
    wide = x.to(accumulation_dtype(x))
    return F.linear(wide, weight) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm_eps)


def add_up(weights: Tensor, x: Tensor) -> Tensor:
    """Add up streams [..., n h] by weights [..., n] -> [..., h]."""
    weights = weights.to(x.dtype)
    return (weights.unsqueeze(-2) @ x.unflatten(-1, (weights.shape[-1], -1))).squeeze(-2)
