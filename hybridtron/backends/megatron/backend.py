"""Layers over the processes of a layout, by megatron-core: tensor, sequence and context parallel, on NCCL or gloo.

Needs initialised process groups; `hybridtron.distributed` makes them and hands them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.backends.context_parallel import heads_to_sequence, own_share, sequence_to_heads
from hybridtron.backends.dispatcher import Dispatcher, DispatcherKind, ExpertGroups, dispatch_locally
from hybridtron.backends.even_dispatcher import EvenDispatcher
from hybridtron.backends.megatron.cross_entropy import vocab_parallel_cross_entropy
from hybridtron.backends.megatron.layers import ColumnLinear, Embedding, RowLinear, leave_uninitialized
from hybridtron.backends.megatron.mappings import all_reduce, copy_to_region
from hybridtron.backends.megatron.token_dispatcher import MegatronDispatcher
from hybridtron.ops.elementwise.cross_entropy import cross_entropy
from hybridtron.ops.opaque import opaque
from hybridtron.tensors import PackedPart, Shard, Shards, TensorSpec

_gather_runs = opaque(gather_from_sequence_parallel_region)


class MegatronBackend(Backend):
    """Modules of megatron-core over the groups of one layout."""

    name = "megatron"

    def __init__(
        self,
        config: TransformerConfig,
        shards: Shards,
        tensor_parallel_group: dist.ProcessGroup,
        context_parallel_group: dist.ProcessGroup,
        sequence_group: dist.ProcessGroup,
        expert_groups: ExpertGroups,
        device: torch.device | str,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(config.params_dtype, device, norm_eps, shards)
        self.config = config
        self.group = tensor_parallel_group
        self.context_group = context_parallel_group
        self.context_parallel_size = context_parallel_group.size()
        self.sequence_parallel = config.sequence_parallel
        self.sequence_group = sequence_group
        self.sequence = Shard(sequence_group.rank(), sequence_group.size())
        self.expert_groups = expert_groups

    def column_linear(self, weight: TensorSpec, bias: TensorSpec | None = None, *, shared: bool = False) -> nn.Module:
        return ColumnLinear(
            *reversed(weight.shape), bias=bias is not None, skip_weight_param_allocation=shared, **self._shared_options
        )

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        options = {"input_is_parallel": True, "skip_bias_add": False, **self._shared_options}
        return RowLinear(*reversed(weight.shape), bias=bias is not None, **options)

    def embedding(self, weight: TensorSpec) -> nn.Module:
        reduce_scatter = self.config.sequence_parallel
        return Embedding(*weight.shape, reduce_scatter_embeddings=reduce_scatter, **self._shared_options)

    @property
    def _shared_options(self) -> dict[str, Any]:
        return {"config": self.config, "init_method": leave_uninitialized, "tp_group": self.group}

    def dispatcher(
        self, kind: DispatcherKind, num_experts: int, top_k: int, capacity_factor: float | None
    ) -> Dispatcher:
        if torch.device(self.device).type == "meta":
            return EvenDispatcher(kind, num_experts, top_k, capacity_factor, self.expert_groups)
        if self.expert_groups.both.size() == 1:
            return dispatch_locally
        return MegatronDispatcher(
            kind, num_experts, top_k, capacity_factor is not None, self.config, self.expert_groups
        )

    def with_full_sequence(
        self, core: Callable[[Tensor], Tensor], packed: Tensor, parts: Sequence[PackedPart]
    ) -> Tensor:
        if self.context_parallel_size == 1:
            return core(packed)
        sizes = [part.size // self.shards.tensor.size for part in parts]
        whole = sequence_to_heads(packed, sizes, self.context_group)  # [s, b, c / cp]
        return heads_to_sequence(core(whole), self.context_group)

    def local_heads(self, parameter: Tensor, spec: TensorSpec) -> Tensor:
        if self.context_parallel_size == 1:
            return parameter
        return own_share(parameter, spec.local_sizes(self.shards), spec.axis, self.context_group)

    def gather_runs(self, value: Tensor) -> Tensor:
        if self.sequence.size == 1:
            return value.unsqueeze(0)
        runs = value.new_empty(self.sequence.size, *value.shape)
        dist.all_gather_into_tensor(runs.flatten(0, 1), value.detach().contiguous(), group=self.sequence_group)
        return runs

    def to_local_heads(self, x: Tensor) -> Tensor:
        if self.config.sequence_parallel:
            return _gather_runs(x, tensor_parallel_output_grad=True, group=self.group)
        return copy_to_region(x, self.group)

    def of_all_heads(self, parameter: Tensor) -> Tensor:
        if self.config.sequence_parallel or self.group.size() == 1:
            return parameter  # megatron-core adds up the gradients of all parameters that no rank cuts
        return copy_to_region(parameter, self.group)

    def sum_over_heads(self, x: Tensor) -> Tensor:
        for group in (self.group, self.context_group):
            if group.size() > 1:
                x = all_reduce(x, group)
        return x

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.shards.tensor.size == 1:
            return cross_entropy(logits, targets)
        return vocab_parallel_cross_entropy(logits, targets, self.group)

    @contextmanager
    def whole_sequences(self, model: nn.Module) -> Iterator[None]:
        if not self.sequence_parallel:
            yield
            return
        changed: list[tuple[Any, str, Any]] = [
            (owner, name, getattr(owner, name))
            for owner in (self, self.config, *model.modules())
            for name in ("sequence_parallel", "reduce_scatter_embeddings")
            if getattr(owner, name, False)
        ]
        changed.append((self, "sequence", self.sequence))
        try:
            for owner, name, _ in changed:
                setattr(owner, name, False)
            self.sequence = Shard(self.context_group.rank(), self.context_parallel_size)
            yield
        finally:
            for owner, name, value in changed:
                setattr(owner, name, value)

    def gather_logits(self, logits: Tensor) -> Tensor:
        return gather_from_tensor_model_parallel_region(logits, group=self.group)
