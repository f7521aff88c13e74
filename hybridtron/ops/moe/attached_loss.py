"""Losses of a layer's own, such as a router's, that are minimised beside the loss of the model.

A layer attaches its loss to its output, which passes unchanged. The backward pass of the model's loss through that
output then adds the gradient of the attached one, whichever process holds the layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_scale = 1.0


@contextlib.contextmanager
def attached_losses_scale(scale: float) -> Iterator[None]:
    """Multiply the attached losses of what is computed inside by `scale`, 1 by default, in their backward passes.

    For who divides the model's loss, as by the number of micro-batches, before going backward.
    """
    global _scale
    before, _scale = _scale, scale
    try:
        yield
    finally:
        _scale = before


def attach_loss(x: Tensor, loss: Tensor) -> Tensor:
    """Return x with a gradient that adds that of the scalar `loss`. Works under torch.func transforms."""
    return _Attached.apply(x, loss * _scale)


class _Attached(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grads[0], torch.ones_like(loss)
