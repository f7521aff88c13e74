"""Cross entropy over a vocabulary that is cut over the ranks of a group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        local_vocab = logits.size(-1)
        first = local_vocab * group.rank()
        peak = logits.amax(-1).float()  # [...]
        dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
        weights = (logits.float() - peak.unsqueeze(-1)).exp_()  # [..., local vocabulary]
        local = targets - first
        foreign = (local < 0) | (local >= local_vocab)
        index = local.masked_fill(foreign, 0).unsqueeze(-1)
        target_logit = logits.gather(-1, index).squeeze(-1).float().masked_fill(foreign, 0.0)
        sums = torch.stack([weights.sum(-1), target_logit])
        dist.all_reduce(sums, group=group)
        total, target_logit = sums.unbind(0)
        log_z = total.log() + peak
        ctx.save_for_backward(weights.div_(total.unsqueeze(-1)), index, foreign)
        ctx.dtype = logits.dtype
        return log_z - target_logit, log_z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_nll, grad_log_z = grads
        softmax, index, foreign = ctx.saved_tensors
        grad = softmax * (grad_nll + grad_log_z).unsqueeze(-1)
        grad.scatter_add_(-1, index, -grad_nll.masked_fill(foreign, 0.0).unsqueeze(-1))
        return grad.to(ctx.dtype), None, None


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Compute negative log likelihood and log partition function of each position, both differentiable.

    logits: [..., vocabulary / group size], rank r holding the r-th run of the vocabulary; targets: [...] whole ids.
    Results [...] are float32 and equal on every rank.
    """
    return _VocabParallelCrossEntropy.apply(logits, targets, group)
