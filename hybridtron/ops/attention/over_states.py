"""Attention of one query to several states of the same token: attention residuals (arXiv 2603.15031)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.elementwise.precision import accumulation_dtype, by_formula


def attend_over_states(query: Tensor, states: tuple[Tensor, ...], eps: float, normed_values: bool = False) -> Tensor:
    """Add up states h [..., c] with weights softmax over the states of query [c] . h / rms(h) -> [..., c].

    rms(h) is sqrt(mean(h^2) + eps). With `normed_values`, h / rms(h) are added up. Accumulated in float32. The backward
    pass needs the states alone, which layers share, and a few numbers a token.
    """
    if by_formula():
        return attend_over_states_reference(query, states, eps, normed_values)
    result: Tensor = _Attend.apply(query, eps, normed_values, *states)
    return result


def attend_over_states_reference(
    query: Tensor, states: tuple[Tensor, ...], eps: float, normed_values: bool = False
) -> Tensor:
    """Compute `attend_over_states` by its formula."""
    dtype = accumulation_dtype(query)
    values = torch.stack(states, -2).to(dtype)  # [..., states, c]
    keys = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    weights = (keys @ query.to(dtype).unsqueeze(-1)).softmax(-2)
    return (weights * (keys if normed_values else values)).sum(-2).to(states[0].dtype)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, eps: float, normed_values: bool, *states: Tensor) -> Tensor:
        dtype = accumulation_dtype(query)
        column, width = query.to(dtype).unsqueeze(1), len(query)
        rows = [state.reshape(-1, width).to(dtype) for state in states]
        norms = torch.cat([torch.linalg.vector_norm(row, dim=1, keepdim=True) for row in rows], 1)  # [tokens, states]
        inverse = norms.square_().div_(width).add_(eps).rsqrt_()
        scores = torch.cat([row @ column for row in rows], 1)
        weights = (scores * inverse).softmax(1)
        factors = (weights * inverse if normed_values else weights).split(1, 1)
        total = rows[0] * factors[0]
        for row, factor in zip(rows[1:], factors[1:], strict=True):
            total.addcmul_(row, factor)
        ctx.save_for_backward(query, weights, inverse, scores, *states)
        ctx.normed_values = normed_values
        return total.to(states[0].dtype).view(states[0].shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, weights, inverse, scores, *states = ctx.saved_tensors
        width = len(query)
        g = grad.reshape(-1, width).to(weights.dtype)
        rows = [state.reshape(-1, width).to(weights.dtype) for state in states]
        along = torch.stack([(g * row).sum(1) for row in rows], 1)  # [tokens, states]
        d_weights = along * inverse if ctx.normed_values else along
        d_logits = weights * (d_weights - (weights * d_weights).sum(1, keepdim=True))
        d_scores, d_inverse = d_logits * inverse, d_logits * scores
        factors = weights
        if ctx.normed_values:
            factors, d_inverse = weights * inverse, d_inverse + weights * along
        shrink = d_inverse * inverse**3 / -width
        row_of_query = query.to(weights.dtype)
        d_states = [
            (g * factor).addcmul_(row_of_query, score).addcmul_(row, less).to(grad.dtype).view(grad.shape)
            for row, factor, score, less in zip(
                rows, factors.split(1, 1), d_scores.split(1, 1), shrink.split(1, 1), strict=True
            )
        ]
        d_query = torch.stack([row.t() @ score for row, score in zip(rows, d_scores.unbind(1), strict=True)]).sum(0)
        return d_query.to(query.dtype), None, None, *d_states
