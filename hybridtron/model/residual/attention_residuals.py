"""Block attention residuals (Kimi, arXiv 2603.15031): layers attend to the outputs of the blocks of layers before them.

The states are the sum of the block so far, then the embedding and the sums of the finished blocks, in order. Before a
block's first layer, the sum is that of the block before it (the embedding before the first).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual import plain
from hybridtron.model.residual.config import AttentionResidualsConfig
from hybridtron.model.residual.stream import States
from hybridtron.ops.attention.over_states import attend_over_states


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
        return norm(attend_over_states(self.query, states, self.eps, self.config.normed_values)), None

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        total, *blocks = states
        y = self.scaled(y)
        return (y, *blocks, total) if self.begins_block else (total + y, *blocks)

    def added(self, before: States, after: States) -> Tensor:
        return after[0] if self.begins_block else super().added(before, after)


class End(plain.End):
    """Attends to all states with a query of its own."""

    def __init__(self, config: ModelConfig, backend: Backend, last: bool) -> None:
        super().__init__(config, backend, last)
        assert isinstance(config.residual, AttentionResidualsConfig)
        self.config, self.eps = config.residual, config.norm_eps
        if last:
            self.query = backend.parameter(config.residual.end_tensors(config)["query"])

    def forward(self, states: States) -> Tensor:
        return attend_over_states(self.query, states, self.eps, self.config.normed_values)
