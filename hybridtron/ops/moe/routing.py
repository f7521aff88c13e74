"""Which experts a token is sent to, and what keeps their load even: functions of router scores [s, b, experts]."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Score = Literal["softmax", "sigmoid"]

SMALLEST_SUM = 1e-20  # of the chosen scores, which sigmoids may all underflow


def router_scores(logits: Tensor, kind: Score) -> Tensor:
    """Affinity of each token to each expert: a softmax over the experts, or a sigmoid of its own for each."""
    return logits.softmax(-1) if kind == "softmax" else logits.sigmoid()


def choose(scores: Tensor, top_k: int, bias: Tensor | None = None) -> Tensor:
    """The `top_k` experts of highest score of each token, as a mask of the shape of `scores`.

    `bias` [experts] is added for this choice alone (Wang et al. 2024, arXiv 2408.15664, equation 3).
    """
    preference = scores.detach() if bias is None else scores.detach() + bias
    chosen = torch.zeros_like(preference, dtype=torch.bool)
    return chosen.scatter(-1, preference.topk(top_k, -1).indices, True)


def combining_weights(scores: Tensor, chosen: Tensor, normalize: bool, factor: float) -> Tensor:
    """What the output of each expert is multiplied with: the chosen scores, 0 elsewhere; with `normalize` those of a
    token add up to `factor`, else each is multiplied with it."""
    weights = scores.masked_fill(~chosen, 0.0)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + SMALLEST_SUM)
    return weights * factor if factor != 1 else weights


def capacity(seq_len: int, num_experts: int, top_k: int, factor: float) -> int:
    """Tokens of one sequence that an expert takes: `factor` times an even share, rounded up."""
    return math.ceil(factor * seq_len * top_k / num_experts)


def within_capacity(chosen: Tensor, earlier: Tensor, limit: int) -> Tensor:
    """Of the choices [s, b, experts] the first `limit` of each expert in each sequence, so that no token matters to the
    ones before it.

    `earlier` [b, experts] counts the choices of the tokens that come before these in the same sequences.
    """
    return chosen & (chosen.cumsum(0) + earlier <= limit)


def balance_loss(scores: Tensor, counts: Tensor, seq_len: int, top_k: int) -> Tensor:
    """Load-balancing loss of each sequence, averaged over sequences: 1 where the load is even, `experts / top_k` at
    worst.

    experts * sum_i f_i P_i with f_i the share of a sequence's choices that fell on expert i and P_i the mean share of
    its scores (Fedus et al. 2021, arXiv 2101.03961, equations 4-6; DeepSeek-AI 2024, arXiv 2412.19437, equations
    17-20). `counts` [b, experts] are the choices of whole sequences of `seq_len` tokens; `scores` [s, b, experts] may
    be those of a run of their tokens: the results of all runs then add up to the loss.
    """
    shares = scores / scores.sum(-1, keepdim=True)
    f = counts.to(scores.dtype) / (seq_len * top_k)  # [b, experts]
    p = shares.sum(0) / seq_len
    return scores.shape[-1] * (f * p).sum(-1).mean()


def router_z_loss(logits: Tensor, seq_len: int) -> Tensor:
    """Mean square of the log partition function (Zoph et al. 2022, ST-MoE, arXiv 2202.08906, equation 5) of logits
    [s, b, experts]; for a run of a sequence of `seq_len` tokens its part of that mean."""
    return logits.logsumexp(-1).square().sum(0).mean() / seq_len


def balancing_step(load: Tensor, rate: float) -> Tensor:
    """How far the bias [experts] of `choose` moves after a batch of `load` [experts] choices: up by `rate` for experts
    of less than average load, down for those of more (arXiv 2408.15664, algorithm 1)."""
    return rate * (load.sum() - len(load) * load).sign()
