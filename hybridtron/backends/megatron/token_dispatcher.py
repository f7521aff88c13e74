"""Tokens to experts on other processes and back, by megatron-core's dispatchers."""

from __future__ import annotations

import copy

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoEAlltoAllTokenDispatcher,
    MoETokenDispatcher,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridtron.backends.dispatcher import DispatcherKind, ExpertGroups, Experts


class MegatronDispatcher:
    """A `Dispatcher` over the processes that share the experts of a layer."""

    def __init__(
        self,
        kind: DispatcherKind,
        num_experts: int,
        top_k: int,
        drops: bool,
        config: TransformerConfig,
        groups: ExpertGroups,
    ) -> None:
        config = copy.copy(config)
        config.num_moe_experts, config.moe_router_topk = num_experts, top_k
        if drops:  # then, whatever the factor, it counts the chosen experts instead of expecting top_k of each token
            config.moe_expert_capacity_factor = 1.0
        held = num_experts // groups.expert.size()
        first = groups.expert.rank() * held
        kinds: dict[DispatcherKind, type[MoETokenDispatcher]] = {
            "alltoall": MoEAlltoAllTokenDispatcher,
            "allgather": MoEAllGatherTokenDispatcher,
        }
        self.steps = kinds[kind](
            held,
            list(range(first, first + held)),
            config=config,
            pg_collection=ProcessGroupCollection(ep=groups.expert, expt_tp=groups.tensor, tp_ep=groups.both),
        )

    def __call__(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
        steps = self.steps
        sent = steps.token_dispatch(*steps.dispatch_preprocess(tokens, chosen, weights))
        rows, counts, row_weights = steps.dispatch_postprocess(*sent)
        returned = steps.combine_preprocess(experts(rows, counts.tolist(), row_weights))
        return steps.combine_postprocess(steps.token_combine(returned))
