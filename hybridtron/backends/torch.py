"""Plain PyTorch in one process: every module works under torch.func.functional_call and vmap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.backends.dispatcher import Dispatcher, DispatcherKind, dispatch_locally
from hybridtron.backends.even_dispatcher import EvenDispatcher
from hybridtron.ops.fp8.linear import Operands, fp8_linear
from hybridtron.ops.linear import linear
from hybridtron.tensors import TensorSpec


class Linear(nn.Module):
    """y = x W^T + b, with the weight its own or handed in. With `fp8` operands it multiplies FP8 numbers, emulated."""

    fp8: Operands | None = None

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            assert self.weight is not None
            weight = self.weight
        return linear(x, weight, self.bias) if self.fp8 is None else fp8_linear(x, weight, self.bias, self.fp8)


class Embedding(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens.transpose(0, 1), self.weight)  # [b, s] -> [s, b, h]


class TorchBackend(Backend):
    """One process, no groups."""

    name = "torch"

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", norm_eps: float = 1e-5
    ) -> None:
        super().__init__(dtype, device, norm_eps)

    def column_linear(self, weight: TensorSpec, bias: TensorSpec | None = None, *, shared: bool = False) -> nn.Module:
        return Linear(None if shared else self.parameter(weight), self.parameter(bias) if bias else None)

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        return self.column_linear(weight, bias)

    def embedding(self, weight: TensorSpec) -> nn.Module:
        return Embedding(self.parameter(weight))

    def dispatcher(
        self, kind: DispatcherKind, num_experts: int, top_k: int, capacity_factor: float | None
    ) -> Dispatcher:
        if torch.device(self.device).type == "meta":
            return EvenDispatcher(kind, num_experts, top_k, capacity_factor, None)
        return dispatch_locally
