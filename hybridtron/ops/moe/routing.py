"""Choice of a token's experts, and losses that keep their load even: functions of router scores [s, b, experts]."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Score = Literal["softmax", "sigmoid"]

SMALLEST_SUM = 1e-20  # of the chosen scores, which sigmoids may all underflow


def router_scores(logits: Tensor, kind: Score) -> Tensor:
    """Return each token's affinity to each expert: a softmax over the experts, or a sigmoid for each."""
    return logits.softmax(-1) if kind == "softmax" else logits.sigmoid()


def choose(scores: Tensor, top_k: int, bias: Tensor | None = None) -> Tensor:
    """Choose the `top_k` experts of highest score for each token, as a mask of the shape of `scores`.

    `bias` [experts] is added for this choice alone (Wang et al. 2024, arXiv 2408.15664, equation 3).
    """
    preference = scores.detach() if bias is None else scores.detach() + bias
    chosen = torch.zeros_like(preference, dtype=torch.bool)
    return chosen.scatter(-1, preference.topk(top_k, -1).indices, True)


def combining_weights(scores: Tensor, chosen: Tensor, normalize: bool, factor: float) -> Tensor:
    """Return the factor of each expert's output: `factor` times the chosen scores, 0 elsewhere.

    With `normalize` the factors of a token add up to `factor`.
    """
    weights = scores.masked_fill(~chosen, 0.0)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + SMALLEST_SUM)
    return weights * factor if factor != 1 else weights


def capacity(seq_len: int, num_experts: int, top_k: int, factor: float) -> int:
    """Return how many tokens of one sequence an expert takes: `factor` times an even share, rounded up."""
    return math.ceil(factor * seq_len * top_k / num_experts)


def within_capacity(chosen: Tensor, earlier: Tensor, limit: int) -> Tensor:
    """Return the first `limit` choices [s, b, experts] of each expert in each sequence.

    No token affects the ones before it.

    `earlier` [b, experts] counts the choices of the tokens that come before these in the same sequences.
    """
    return chosen & (chosen.cumsum(0) + earlier <= limit)


def balance_loss(scores: Tensor, counts: Tensor, seq_len: int, top_k: int) -> Tensor:
    """Compute the load-balancing loss, averaged over sequences: 1 where the load is even, `experts / top_k` at worst.

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
    """Compute the mean square of the log partition function of logits [s, b, experts].

    Of a run of a sequence of `seq_len` tokens, compute its part of that mean (Zoph et al. 2022, ST-MoE, arXiv
    2202.08906, equation 5).
    """
    return logits.logsumexp(-1).square().sum(0).mean() / seq_len


def balancing_step(load: Tensor, rate: float) -> Tensor:
    """Return the change of the bias [experts] of `choose` after a batch of `load` [experts] choices.

    It is `rate` for experts of less than average load, -`rate` for those of more (arXiv 2408.15664, algorithm 1).
    """
    return rate * (load.sum() - len(load) * load).sign()
