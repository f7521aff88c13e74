"""megatron-core's parallel linears and embedding: tensor, sequence and context parallel, on NCCL or gloo.

Needs initialised process groups; `hybridtron.distributed` makes them and hands them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.backends.context_parallel import own_share, to_heads, to_sequence
from hybridtron.backends.dispatcher import Dispatcher, DispatcherKind, ExpertGroups, dispatch_locally
from hybridtron.backends.even_dispatcher import EvenDispatcher
from hybridtron.backends.megatron.cross_entropy import vocab_parallel_cross_entropy
from hybridtron.backends.megatron.linear import product
from hybridtron.backends.megatron.tensor_overlap import summed_product
from hybridtron.backends.megatron.token_dispatcher import MegatronDispatcher
from hybridtron.ops.elementwise.cross_entropy import cross_entropy
from hybridtron.ops.fp8.linear import Operands, fp8_linear
from hybridtron.ops.opaque import opaque
from hybridtron.tensors import PackedPart, Shard, Shards, TensorSpec


def leave_uninitialized(weight: Tensor) -> None:
    """Initialize nothing, in place of megatron-core: values must not depend on the layout."""


class _ColumnLinear(ColumnParallelLinear):
    fp8: Operands | None = None  # with them it multiplies FP8 numbers, emulated

    @opaque  # which sends messages, and adds to main_grad in the backward pass
    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.fp8 is None:
            weight = self.weight if weight is None else weight
            overlap = self.config.tp_comm_overlap
            return product(x, weight, self.bias, self.tp_group, self.sequence_parallel, in_pieces=overlap)
        if self.sequence_parallel:
            x = gather_from_sequence_parallel_region(x, group=self.tp_group)
        elif self.tp_group.size() > 1:
            x = _SummedGradient.apply(x, self.tp_group)
        return fp8_linear(x, self.weight, self.bias, self.fp8)


class _RowLinear(RowParallelLinear):
    fp8: Operands | None = None

    @opaque
    def forward(self, x: Tensor) -> Tensor:
        if self.fp8 is None and self.config.tp_comm_overlap:
            y = summed_product(x, self.weight, self.tp_group, scatter=self.sequence_parallel)
        else:
            partial = product(x, self.weight) if self.fp8 is None else fp8_linear(x, self.weight, None, self.fp8)
            reduce = reduce_from_tensor_model_parallel_region
            if self.sequence_parallel:
                reduce = reduce_scatter_to_sequence_parallel_region
            y = reduce(partial, group=self.tp_group)
        return y if self.bias is None else y + self.bias


class _Embedding(VocabParallelEmbedding):
    def forward(self, tokens: Tensor) -> Tensor:
        embedded = super().forward(tokens)  # [b, s, h], or [s / tp, b, h] under sequence parallelism
        return embedded if self.reduce_scatter_embeddings else embedded.transpose(0, 1).contiguous()


class _SummedGradient(torch.autograd.Function):
    """x itself, whose gradient is added up over a group. megatron-core's own loses the sum of a gradient that does not
    lie contiguous in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.group), None


class _Sum(torch.autograd.Function):
    """The sum of x over a group, for use in each of its processes: so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.group), None


_summed_gradient, _summed = opaque(_SummedGradient.apply), opaque(_Sum.apply)
_gather_runs = opaque(gather_from_sequence_parallel_region)


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


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
        return _ColumnLinear(
            *reversed(weight.shape), bias=bias is not None, skip_weight_param_allocation=shared, **self._shared_options
        )

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        options = {"input_is_parallel": True, "skip_bias_add": False, **self._shared_options}
        return _RowLinear(*reversed(weight.shape), bias=bias is not None, **options)

    def embedding(self, weight: TensorSpec) -> nn.Module:
        reduce_scatter = self.config.sequence_parallel
        return _Embedding(*weight.shape, reduce_scatter_embeddings=reduce_scatter, **self._shared_options)

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
        whole = to_heads(packed, sizes, self.context_group)  # [s, b, c / cp]
        return to_sequence(core(whole), self.context_group)

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
        return _summed_gradient(x, self.group)

    def of_all_heads(self, parameter: Tensor) -> Tensor:
        if self.config.sequence_parallel or self.group.size() == 1:
            return parameter  # megatron-core adds up the gradients of all parameters that no rank cuts
        return _summed_gradient(parameter, self.group)

    def sum_over_heads(self, x: Tensor) -> Tensor:
        for group in (self.group, self.context_group):
            if group.size() > 1:
                x = _summed(x, group)
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
