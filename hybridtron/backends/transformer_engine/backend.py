"""Transformer Engine's linears and norms in the layouts of megatron-core, on CUDA.

Parameters have the names, shapes, cuts and order of `MegatronBackend`, so checkpoints do not depend on which of the two
wrote them. Taken from Transformer Engine: column- and row-parallel linears, and RMS norms. Not taken: embeddings and
output projections with their weights (it has none of either), core attention (`ops/attention` reaches cuDNN's
and FlashAttention's kernels through torch, with windows and sinks that its own lacks), and grouped linears of experts
(its parameters are one tensor per expert, ours one for all).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import transformer_engine.pytorch as te
from torch import Tensor, nn

from hybridtron.backends.megatron.backend import MegatronBackend
from hybridtron.backends.megatron.layers import leave_uninitialized
from hybridtron.tensors import TensorSpec


def behind_hooks() -> bool:
    """Return whether hooks (recomputation, activations in CPU memory) take the tensors that autograd saves.

    The backward pass then gets weights without their attributes. It could add to the gradients' buffer, but would
    return no gradient, which megatron-core needs to know that a weight is ready where reductions overlap.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class Linear(te.Linear):
    """Adds weight gradients to the float32 buffer of megatron-core's data parallelism, where there is one.

    Whether it multiplies FP8 numbers is set by `hybridtron.backends.transformer_engine.fp8`.
    """

    fp8_context: Callable[[], AbstractContextManager[None]] = nullcontext
    fp8_alignment = 1  # without gradients, other numbers of tokens are multiplied in bf16

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        assert weight is None, "the weight is this module's own"
        self.fuse_wgrad_accumulation = hasattr(self.weight, "main_grad") and not behind_hooks()
        in_fp8 = torch.is_grad_enabled() or x.shape[:-1].numel() % self.fp8_alignment == 0
        with self.fp8_context() if in_fp8 else nullcontext():
            return super().forward(x)


class TransformerEngineBackend(MegatronBackend):
    """Transformer Engine's modules over the groups of one layout."""

    name = "transformer_engine"

    def column_linear(self, weight: TensorSpec, bias: TensorSpec | None = None, *, shared: bool = False) -> nn.Module:
        return super().column_linear(weight, bias, shared=True) if shared else self._linear("column", weight, bias)

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        return self._linear("row", weight, bias)

    def norm(self, weight: TensorSpec, *, zero_centered: bool = False) -> nn.Module:
        return te.RMSNorm(
            weight.shape,
            eps=self.norm_eps,
            device=str(self.device),
            dtype=self.dtype,
            zero_centered_gamma=zero_centered,
        )

    def _linear(self, mode: Literal["column", "row"], weight: TensorSpec, bias: TensorSpec | None) -> nn.Module:
        width, length = weight.shape
        return Linear(
            length,
            width,
            bias=bias is not None,
            parallel_mode=mode,
            sequence_parallel=self.config.sequence_parallel,
            tp_group=self.group,
            params_dtype=self.dtype,
            device=str(self.device),
            init_method=leave_uninitialized,
        )
