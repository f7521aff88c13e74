"""Plain PyTorch in one process: every module works under torch.func.functional_call and vmap."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Dispatcher, DispatcherKind
from hybridtron.backends.dispatch import dispatch_locally
from hybridtron.backends.even_dispatch import EvenDispatcher
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.elementwise.cross_entropy import cross_entropy
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.tensors import WHOLE, Shard, Shards, TensorSpec


class Linear(nn.Module):
    """y = x W^T + b, with the weight its own or handed in."""

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            assert self.weight is not None
            weight = self.weight
        return F.linear(x, weight, self.bias)


class RMSNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Embedding(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens.transpose(0, 1), self.weight)  # [b, s] -> [s, b, h]


def new_parameter(spec: TensorSpec, shards: Shards, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    """Allocate an uninitialised parameter of one process's shape; what is not trained stays in float32."""
    values = torch.empty(spec.local_shape(shards), dtype=dtype if spec.trained else torch.float32, device=device)
    return nn.Parameter(values, requires_grad=spec.trained)


class TorchBackend:
    """One process, no groups."""

    name = "torch"
    shards = WHOLE
    sequence = Shard()
    context_parallel_size = 1

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", norm_eps: float = 1e-5
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.norm_eps = norm_eps

    def parameter(self, spec: TensorSpec) -> nn.Parameter:
        return new_parameter(spec, self.shards, self.dtype, self.device)

    def column_linear(self, weight: TensorSpec, bias: TensorSpec | None = None, *, shared: bool = False) -> nn.Module:
        return Linear(None if shared else self.parameter(weight), self.parameter(bias) if bias else None)

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        return self.column_linear(weight, bias)

    def norm(self, weight: TensorSpec) -> nn.Module:
        return RMSNorm(self.parameter(weight), self.norm_eps)

    def embedding(self, weight: TensorSpec) -> nn.Module:
        return Embedding(self.parameter(weight))

    def with_full_sequence(self, core: Callable[[Tensor], Tensor], packed: Tensor, spec: TensorSpec) -> Tensor:
        return core(packed)

    def core_sizes(self, spec: TensorSpec) -> list[int]:
        return spec.local_sizes(self.shards)

    def local_heads(self, parameter: Tensor, spec: TensorSpec) -> Tensor:
        return parameter

    def gather_runs(self, value: Tensor) -> Tensor:
        return value.unsqueeze(0)

    def dispatcher(
        self, kind: DispatcherKind, num_experts: int, top_k: int, capacity_factor: float | None
    ) -> Dispatcher:
        if torch.device(self.device).type == "meta":
            return EvenDispatcher(kind, num_experts, top_k, capacity_factor, None)
        return dispatch_locally

    def to_local_heads(self, x: Tensor) -> Tensor:
        return x

    def of_all_heads(self, parameter: Tensor) -> Tensor:
        return parameter

    def core_attention(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return attention(q, k, v, window)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(logits, targets)

    def gather_logits(self, logits: Tensor) -> Tensor:
        return logits
