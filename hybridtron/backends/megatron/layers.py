"""megatron-core's parallel linears and embedding, with products of our own and FP8 numbers that are emulated."""

from __future__ import annotations

from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from hybridtron.backends.megatron.linear import parallel_linear
from hybridtron.backends.megatron.mappings import copy_to_region
from hybridtron.backends.megatron.tensor_overlap import matmul_reduce
from hybridtron.ops.fp8.linear import Operands, fp8_linear
from hybridtron.ops.opaque import opaque


def leave_uninitialized(weight: Tensor) -> None:
    """Initialize nothing, in place of megatron-core: values must not depend on the layout."""


class ColumnLinear(ColumnParallelLinear):
    fp8: Operands | None = None  # with them it multiplies FP8 numbers, emulated

    @opaque  # which sends messages, and adds to main_grad in the backward pass
    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.fp8 is None:
            weight = self.weight if weight is None else weight
            overlap = self.config.tp_comm_overlap
            return parallel_linear(x, weight, self.bias, self.tp_group, self.sequence_parallel, in_pieces=overlap)
        if self.sequence_parallel:
            x = gather_from_sequence_parallel_region(x, group=self.tp_group)
        elif self.tp_group.size() > 1:
            x = copy_to_region(x, self.tp_group)
        return fp8_linear(x, self.weight, self.bias, self.fp8)


class RowLinear(RowParallelLinear):
    fp8: Operands | None = None

    @opaque
    def forward(self, x: Tensor) -> Tensor:
        if self.fp8 is None and self.config.tp_comm_overlap:
            y = matmul_reduce(x, self.weight, self.tp_group, scatter=self.sequence_parallel)
        else:
            weight, scatter = self.weight, self.sequence_parallel
            partial = parallel_linear(x, weight) if self.fp8 is None else fp8_linear(x, weight, None, self.fp8)
            reduce = reduce_scatter_to_sequence_parallel_region if scatter else reduce_from_tensor_model_parallel_region
            y = reduce(partial, group=self.tp_group)
        return y if self.bias is None else y + self.bias


class Embedding(VocabParallelEmbedding):
    def forward(self, tokens: Tensor) -> Tensor:
        embedded = super().forward(tokens)  # [b, s, h], or [s / tp, b, h] under sequence parallelism
        return embedded if self.reduce_scatter_embeddings else embedded.transpose(0, 1).contiguous()
