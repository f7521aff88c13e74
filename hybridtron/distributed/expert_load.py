"""Counts of a step's tokens that chose each expert, over all processes.

A module that owns experts counts them in `expert_load` and is given the sums by `rebalance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybridtron.tensors import TensorSpec


class _OwnsExperts(Protocol):
    expert_load: Tensor  # [experts], of the tokens of this process

    def rebalance(self, load: Tensor) -> None: ...


class ExpertLoads:
    """The loads of all layers with experts, of which this process holds those of `chunks`."""

    def __init__(self, chunks: Sequence[nn.Module], specs: dict[str, TensorSpec], device: torch.device) -> None:
        self.num_experts = {name.rsplit(".", 1)[0]: spec.shape[0] for name, spec in specs.items() if spec.experts}
        self.device = device
        self.held: dict[str, _OwnsExperts] = {
            name: module for chunk in chunks for name, module in chunk.named_modules() if name in self.num_experts
        }

    def begin(self) -> None:
        """Set the counts to zero."""
        for module in self.held.values():
            module.expert_load.zero_()

    def total(self) -> dict[str, Tensor]:
        """Add up the counts of every layer with experts, by its module's name; every process calls this."""
        if not self.num_experts:
            return {}
        counts = {
            name: self.held[name].expert_load
            if name in self.held
            else torch.zeros(size, dtype=torch.int64, device=self.device)
            for name, size in self.num_experts.items()
        }
        joined = torch.cat(list(counts.values()))
        dist.all_reduce(joined)  # every token of a layer is counted by one process of its pipeline stage
        return dict(zip(counts, joined.split(list(self.num_experts.values())), strict=True))

    def rebalance(self, total: dict[str, Tensor]) -> None:
        """Give the layers of this process the counts of all."""
        for name, module in self.held.items():
            module.rebalance(total[name])


def fractions(total: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute each expert's share of its layer's choices, by layer: `3`, or `3.branches.0` of several mixers."""
    return {
        name.removeprefix("layers.").replace(".mixer", "", 1): load / load.sum().clamp_min(1)
        for name, load in total.items()
    }
