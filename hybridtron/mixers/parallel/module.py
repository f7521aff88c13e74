"""Several mixers side by side on a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.decoding import State
from hybridtron.mixers.parallel.config import ParallelMixersConfig
from hybridtron.ops.elementwise.precision import accumulation_dtype


class Parallel(nn.Module):
    """[s, b, h] -> [s, b, h]: the sum, the mean or a weighted sum of what the branches give."""

    gate: nn.Parameter | None

    def __init__(self, config: ParallelMixersConfig, backend: Backend) -> None:
        super().__init__()
        self.config = config
        self.branches = nn.ModuleList(branch.build(backend) for branch in config.branches)
        spec = config.tensors().get("gate")
        self.register_parameter("gate", backend.parameter(spec) if spec else None)

    def forward(self, x: Tensor) -> Tensor:
        return self._merge(x, [branch(x) for branch in self.branches])

    def initial_state(self, batch: int) -> State:
        branches: Any = self.branches
        return tuple(branch.initial_state(batch) for branch in branches)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        branches: Any = self.branches
        outputs, states = zip(*(branch.step(x, own) for branch, own in zip(branches, state, strict=True)), strict=True)
        return self._merge(x, outputs), states

    def _merge(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Of outputs [..., h] made from x [..., h]."""
        if self.gate is not None:
            logits = F.linear(x, self.gate)  # [..., branches]
            weights = logits.to(accumulation_dtype(x)).softmax(-1).to(x.dtype).split(1, -1)
            outputs = [weight * output for weight, output in zip(weights, outputs, strict=True)]
        merged = outputs[0]
        for output in outputs[1:]:
            merged = merged + output
        return merged / len(outputs) if self.config.merge == "mean" else merged
