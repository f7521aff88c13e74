"""megatron-core's parallel linears and embedding: tensor and sequence parallel, on NCCL or gloo.

Needs initialised process groups; `hybridtron.distributed` makes them and hands them in.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor, nn

from hybridtron.backends.torch import RMSNorm
from hybridtron.backends.vocab_parallel import vocab_parallel_cross_entropy
from hybridtron.ops.attention import attention
from hybridtron.ops.cross_entropy import cross_entropy
from hybridtron.tensors import TensorSpec


def _unused(weight: Tensor) -> None:
    """Initialisation of megatron-core, which is switched off: values must not depend on the layout."""


class _ColumnLinear(ColumnParallelLinear):
    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return super().forward(x, weight)[0]


class _RowLinear(RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _Embedding(VocabParallelEmbedding):
    def forward(self, tokens: Tensor) -> Tensor:
        embedded = super().forward(tokens)  # [b, s, h], or [s / tp, b, h] under sequence parallelism
        return embedded if self.reduce_scatter_embeddings else embedded.transpose(0, 1).contiguous()


class MegatronBackend:
    """Modules of megatron-core over one tensor-parallel group."""

    name = "megatron"

    def __init__(
        self,
        config: ModelParallelConfig,
        tensor_parallel_group: dist.ProcessGroup,
        device: torch.device | str,
        norm_eps: float = 1e-5,
    ) -> None:
        self.config = config
        self.group = tensor_parallel_group
        self.device = device
        self.norm_eps = norm_eps
        self.tensor_parallel_size = tensor_parallel_group.size()

    def parameter(self, spec: TensorSpec) -> nn.Parameter:
        dtype = self.config.params_dtype
        shape = spec.local_shape(self.tensor_parallel_size)
        return nn.Parameter(torch.empty(shape, dtype=dtype, device=self.device))

    def column_linear(self, weight: TensorSpec, bias: TensorSpec | None = None, *, shared: bool = False) -> nn.Module:
        return _ColumnLinear(
            weight.shape[1],
            weight.shape[0],
            config=self.config,
            init_method=_unused,
            bias=bias is not None,
            skip_weight_param_allocation=shared,
            tp_group=self.group,
        )

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        return _RowLinear(
            weight.shape[1],
            weight.shape[0],
            config=self.config,
            init_method=_unused,
            bias=bias is not None,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=self.group,
        )

    def norm(self, weight: TensorSpec) -> nn.Module:
        return RMSNorm(self.parameter(weight), self.norm_eps)

    def embedding(self, weight: TensorSpec) -> nn.Module:
        return _Embedding(
            *weight.shape,
            init_method=_unused,
            config=self.config,
            reduce_scatter_embeddings=self.config.sequence_parallel,
            tp_group=self.group,
        )

    def core_attention(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return attention(q, k, v, window)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.tensor_parallel_size == 1:
            return cross_entropy(logits, targets)
        return vocab_parallel_cross_entropy(logits, targets, self.group)

    def gather_logits(self, logits: Tensor) -> Tensor:
        return gather_from_tensor_model_parallel_region(logits, group=self.group)
