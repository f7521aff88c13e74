"""Manifold-constrained hyper-connections (arXiv 2512.24880), as in DeepSeek V4: several streams, mixed for each token.

The only state has the streams one after another, [..., n h]. Weights are computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual import plain
from hybridtron.model.residual.config import HyperConnectionsConfig
from hybridtron.model.residual.stream import States
from hybridtron.ops.elementwise.precision import accumulation_dtype
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
        n, eps = self.config.streams, self.config.eps
        sizes = [n, n, n * n]
        logits = stream_logits(x, self.weight, self.norm_eps).split(sizes, -1)
        parts = zip(logits, self.scale.unbind(), self.bias.split(sizes), strict=True)
        pre, post, comb = (logit * scale + bias for logit, scale, bias in parts)
        comb = sinkhorn(comb.unflatten(-1, (n, n)).softmax(-1) + eps, self.config.sinkhorn_iterations, eps)
        return norm(add_up(pre.sigmoid() + eps, x)), ((2 * post.sigmoid()).to(x.dtype), comb.to(x.dtype))

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        (x,), (post, comb) = states, mixing
        n, h = self.config.streams, y.shape[-1]
        added = torch.bmm(post.reshape(-1, n, 1), self.scaled(y).reshape(-1, 1, h))
        mixed = torch.baddbmm(added, comb.reshape(-1, n, n).transpose(1, 2), x.reshape(-1, n, h))
        return (mixed.view(x.shape),)


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
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
    return F.linear(wide, weight) * torch.rsqrt(mean_square + norm_eps)


def add_up(weights: Tensor, x: Tensor) -> Tensor:
    """Add up streams [..., n h] by weights [..., n] -> [..., h]."""
    n = weights.shape[-1]
    total = torch.bmm(weights.to(x.dtype).reshape(-1, 1, n), x.reshape(-1, n, x.shape[-1] // n))
    return total.view(*x.shape[:-1], -1)
