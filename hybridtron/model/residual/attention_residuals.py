"""Block attention residuals (Kimi, arXiv 2603.15031): layers attend to the outputs of the blocks of layers before them.

The states are the sum of the block so far, then the embedding and the sums of the finished blocks, in order. Before a
block's first layer, the sum is that of the block before it (the embedding before the first).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual import plain
from hybridtron.model.residual.config import AttentionResidualsConfig
from hybridtron.model.residual.stream import States
from hybridtron.ops.elementwise.precision import accumulation_dtype


class Layer(plain.Layer):
    """Reads the weighted sum of all states; adds to the sum of its block, or begins one."""

    def __init__(self, config: ModelConfig, layer: int, backend: Backend) -> None:
        super().__init__(config, layer, backend)
        assert isinstance(config.residual, AttentionResidualsConfig)
        self.config, self.eps = config.residual, config.norm_eps
        self.begins_block = layer % config.residual.block_size == 0
        specs = config.residual.tensors(config, layer)
        self.query = backend.parameter(specs["query"]) if specs else None

    def read(self, states: States, norm: plain.Norm) -> tuple[Tensor, None]:
        if self.query is None:
            return norm(states[0]), None
        return norm(attend(self.query, states, self.eps, self.config.normed_values)), None

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        total, *blocks = states
        y = self.scaled(y)
        return (y, *blocks, total) if self.begins_block else (total + y, *blocks)


class End(plain.End):
    """Attends to all states with a query of its own."""

    def __init__(self, config: ModelConfig, backend: Backend, last: bool) -> None:
        super().__init__(config, backend, last)
        assert isinstance(config.residual, AttentionResidualsConfig)
        self.config, self.eps = config.residual, config.norm_eps
        if last:
            self.query = backend.parameter(config.residual.end_tensors(config)["query"])

    def forward(self, states: States) -> Tensor:
        return attend(self.query, states, self.eps, self.config.normed_values)


def attend(query: Tensor, states: States, eps: float, normed_values: bool = False) -> Tensor:
    """Add up states h [..., c] with weights softmax over the states of query [c] . h / rms(h), in float32 -> [..., c].

    With `normed_values`, h / rms(h) are added up. No state is copied for the backward pass.
    """
    dtype = accumulation_dtype(query)
    row = query.to(dtype).unsqueeze(0)
    logits, scales = [], []
    for state in states:
        wide = state.to(dtype)
        scales.append(torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps))
        logits.append(F.linear(wide, row) * scales[-1])
    weights = torch.cat(logits, -1).softmax(-1)
    if normed_values:
        weights = weights * torch.cat(scales, -1)
    total = sum(weight * state for weight, state in zip(weights.split(1, -1), states, strict=True))
    assert isinstance(total, Tensor)
    return total.to(states[0].dtype)
