"""Plain PyTorch in one process: every module works under torch.func.functional_call and vmap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.ops.attention import attention
from hybridtron.ops.cross_entropy import cross_entropy
from hybridtron.ops.norm import rms_norm
from hybridtron.tensors import TensorSpec


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


class TorchBackend:
    """One process, no groups."""

    name = "torch"
    tensor_parallel_size = 1

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", norm_eps: float = 1e-5
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.norm_eps = norm_eps

    def parameter(self, spec: TensorSpec) -> nn.Parameter:
        dtype = self.dtype
        return nn.Parameter(torch.empty(spec.shape, dtype=dtype, device=self.device))

    def column_linear(self, weight: TensorSpec, bias: TensorSpec | None = None, *, shared: bool = False) -> nn.Module:
        return Linear(None if shared else self.parameter(weight), self.parameter(bias) if bias else None)

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        return self.column_linear(weight, bias)

    def norm(self, weight: TensorSpec) -> nn.Module:
        return RMSNorm(self.parameter(weight), self.norm_eps)

    def embedding(self, weight: TensorSpec) -> nn.Module:
        return Embedding(self.parameter(weight))

    def core_attention(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return attention(q, k, v, window)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(logits, targets)

    def gather_logits(self, logits: Tensor) -> Tensor:
        return logits
