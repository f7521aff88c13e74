"""Sends tokens to experts as if all experts were chosen equally often: where tensors have shapes but no values."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.backends.base import ExpertGroups, Experts
from hybridtron.backends.context_parallel import exchange


class EvenDispatcher:
    """A `Dispatcher` on the meta device: what it sends has the size of an even load."""

    def __init__(self, num_experts: int, top_k: int, groups: ExpertGroups) -> None:
        self.num_local = num_experts // groups.expert.size()
        self.top_k, self.groups = top_k, groups

    def __call__(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
        expert, tensor = self.groups.expert, self.groups.tensor
        unit = expert.size() * self.num_local
        rows = -(-len(tokens) * self.top_k // unit) * unit
        sent = tokens.repeat(-(-rows // len(tokens)), 1)[:rows].unflatten(0, (expert.size(), -1))
        received = exchange(sent, expert).flatten(0, 1)  # [rows, h], from the processes with other experts
        received = torch.cat([received] * tensor.size()) if tensor.size() > 1 else received
        share = weights.mean() * torch.ones(len(received), dtype=tokens.dtype, device=tokens.device)
        given = experts(received, [len(received) // self.num_local] * self.num_local, share)
        back = exchange(given[:rows].unflatten(0, (expert.size(), -1)), expert).flatten(0, 1)
        return back.repeat(-(-len(tokens) // rows), 1)[: len(tokens)]
