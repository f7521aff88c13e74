"""Weight gradients that the product itself adds to `main_grad`.

That is the float32 buffer in which megatron-core's data parallelism adds up the gradients of micro-batches. Its own
linears write to it (`gradient_accumulation_fusion`) by apex alone, and mark the weight, so that gradients which come to
it another way, as by the lookup of a tied embedding, are lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.ops.weight_gradient import add_weight_gradient


def main_grad_of(weight: Tensor) -> Tensor | None:
    """Return the buffer of a weight, None without data parallelism. To be asked in the forward pass: what is saved for
    the backward pass may come back as another tensor."""
    return getattr(weight, "main_grad", None)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, main_grad: Tensor | None) -> Tensor:
    """Return grad^T x, from grad [rows, out] and x [rows, in]; or add it to main_grad and return zeros.

    Zeros without memory, not None: megatron-core begins the reduction of a bucket once it was handed all its gradients.
    Those of the weight's other uses are added to the zeros, and to main_grad by megatron-core.
    """
    if main_grad is None:
        return grad.t() @ x
    add_weight_gradient(main_grad, grad, x)
    return torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device, layout=torch.sparse_coo)
