"""The fused Mamba-2 (`mamba2_fused`) over documents where they lie in their sequences, without copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.native.library import require_kernels
from hybridtron.ops.ssm.mamba2_buffers import Buffers, Kept, Sizes, Sums, Weights, views
from hybridtron.ops.ssm.mamba2_fused import Run
from hybridtron.ops.ssm.ssd import chunks_of


class Span(NamedTuple):
    """One document of a batch of sequences."""

    tokens: slice
    sequence: int
    sizes: Sizes

    def of(self, x: Tensor) -> Tensor:
        """Return the document's part of x [s, b, .], [tokens, .]."""
        return x[self.tokens, self.sequence]


def spans(sizes: Sizes, documents: Sequence[np.ndarray]) -> list[Span]:
    """Return the documents of sequences of these sizes, from the lengths of those in each sequence."""
    found = []
    for sequence, lengths in enumerate(documents):
        for end, tokens in zip(np.cumsum(lengths).tolist(), lengths.tolist(), strict=True):
            chunks, length = chunks_of(tokens, sizes.chunk_size)
            own = sizes._replace(seq_len=tokens, batch=1, chunks=chunks, length=length)
            found.append(Span(slice(end - tokens, end), sequence, own))
    return found


class FusedDocuments(torch.autograd.Function):
    """`FusedMamba2` with each document as a sequence by itself."""

    @staticmethod
    def forward(
        ctx: Any, documents: Sequence[Span], eps: float, packed: Tensor, conv_weight: Tensor, *others: Tensor
    ) -> Tensor:
        weights = Weights(*(tensor.contiguous() for tensor in (conv_weight.t(), *others)))
        out = packed.new_empty(*packed.shape[:2], documents[0].sizes.inner)
        kept: list[Tensor] = []
        for span in documents:
            own = views(Kept.empty(packed, span.sizes), 0)
            run = Run(require_kernels(), weights, span.sizes, Buffers.empty(packed, span.sizes))
            run.forward(span.of(packed), eps, own, span.of(out))
            kept += own
        ctx.save_for_backward(packed, *weights, *kept)
        ctx.documents = documents
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, *saved = ctx.saved_tensors
        count = len(Weights._fields)
        weights, kept = Weights(*saved[:count]), saved[count:]
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        dpacked, parts = torch.empty_like(packed), []
        for index, span in enumerate(ctx.documents):
            own = Kept(*kept[index * len(Kept._fields) : (index + 1) * len(Kept._fields)])
            sums = views(Sums.empty(packed, span.sizes), 0)
            run = Run(require_kernels(), weights, span.sizes, Buffers.empty(packed, span.sizes))
            run.backward(span.of(packed), own, span.of(grad), span.of(dpacked), sums)
            parts.append((sums.conv.sum(0), sums.dt_bias, sums.A, sums.D.sum(0), sums.norm.sum(0)))
        conv, *rest = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))  # conv [k + 1, channels]
        return None, None, dpacked, conv[:-1].t(), conv[-1], *rest
