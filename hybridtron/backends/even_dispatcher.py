"""Sends tokens to experts as if all experts were chosen equally often: where tensors have shapes but no values."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from hybridtron.backends.context_parallel import all_to_all
from hybridtron.backends.dispatcher import DispatcherKind, ExpertGroups, Experts


class EvenDispatcher:
    """A `Dispatcher` on the meta device, whose messages are those of megatron-core's for an even load; without groups
    it sends none."""

    def __init__(
        self,
        kind: DispatcherKind,
        num_experts: int,
        top_k: int,
        capacity_factor: float | None,
        groups: ExpertGroups | None,
    ) -> None:
        self.send = {"alltoall": self._to_their_experts, "allgather": self._to_all}[kind]
        self.num_experts, self.groups = num_experts, groups
        self.held = num_experts // groups.expert.size() if groups else num_experts
        self.chosen_share = top_k / num_experts * min(1.0, capacity_factor or 1.0)  # of the tokens, by each expert

    def __call__(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
        if self.groups is None or self.groups.both.size() == 1:
            return self._locally(tokens, weights, experts)
        return self.send(tokens, weights, chosen, experts)

    def _locally(self, tokens: Tensor, weights: Tensor, experts: Experts) -> Tensor:
        """Take the shapes of `dispatch_locally`, and keep what it keeps."""
        rows = self._of_one_expert(tokens) * self.num_experts
        expert, index = torch.empty(rows, 2, dtype=torch.long, device=tokens.device).unbind(1)
        given = self._through(experts, tokens.index_select(0, index), weights[index, expert])
        return tokens.new_zeros(tokens.shape).index_add_(0, index, given)

    def _to_their_experts(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
        assert self.groups is not None
        expert, tensor = self.groups.expert, self.groups.tensor
        rows = self._of_one_expert(tokens) * self.num_experts
        sent, factors = _fitted(tokens, rows), _fitted(weights.flatten(), rows)
        sent, factors = (_all_to_all(x, expert) for x in (sent, factors))
        sent, factors = (_gathered(x, tensor) for x in (sent, factors))
        given = _reduced(self._through(experts, sent, factors), tensor)
        return _fitted(_all_to_all(given, expert), len(tokens))

    def _to_all(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
        assert self.groups is not None
        everyone = self.groups.both
        gathered, factors, _ = (_gathered(x, everyone) for x in (tokens, weights, chosen))
        rows = self._of_one_expert(gathered) * self.held
        given = self._through(experts, _fitted(gathered, rows), _fitted(factors.flatten(), rows))
        return _reduced(_fitted(given, len(gathered)), everyone)

    def _of_one_expert(self, tokens: Tensor) -> int:
        return -int(-len(tokens) * self.chosen_share // 1)

    def _through(self, experts: Experts, rows: Tensor, factors: Tensor) -> Tensor:
        return experts(rows, [len(rows) // self.held] * self.held, factors)


def _fitted(x: Tensor, rows: int) -> Tensor:
    """Give [n, ...] the shape [rows, ...], without values."""
    return x.repeat(-(-rows // len(x)), *[1] * (x.dim() - 1))[:rows]


def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return all_to_all(x.unflatten(0, (group.size(), -1)), group).flatten(0, 1)


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return gather_from_sequence_parallel_region(x, group=group)


def _reduced(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    from megatron.core.tensor_parallel import reduce_scatter_to_sequence_parallel_region

    return reduce_scatter_to_sequence_parallel_region(x, group=group)
