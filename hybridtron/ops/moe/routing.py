"""Choice of a token's experts, and losses that keep their load even: functions of router scores [s, b, experts].

Scores are handed on as logarithms: sigmoids of very negative logits underflow together, where their ratios are sound.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Literal["softmax", "sigmoid", "sqrt_softplus"]

_LINEAR = -20.0  # logit up to which the softplus is an exponential in float32


def router_log_scores(logits: Tensor, kind: Score) -> Tensor:
    """Return the logarithm of each token's score of each expert: a softmax over the experts, a sigmoid for each, or
    the root of a softplus for each (DeepSeek V4)."""
    match kind:
        case "softmax":
            return logits.log_softmax(-1)
        case "sigmoid":
            return F.logsigmoid(logits)
    # Below _LINEAR, log softplus(x) is x.
    log_softplus = F.softplus(logits.clamp_min(_LINEAR)).log()
    return 0.5 * torch.where(logits < _LINEAR, logits, log_softplus)


def choose(
    log_scores: Tensor, top_k: int, bias: Tensor | None = None, num_groups: int = 1, top_groups: int = 1
) -> Tensor:
    """Choose the `top_k` experts of highest score for each token, as a mask of the shape of `log_scores`.

    `bias` [experts] is added to scores for this choice alone (Wang et al. 2024, arXiv 2408.15664, equation 3). With
    several groups of experts, only those of the `top_groups` groups whose two highest values have the largest sum
    can be chosen (DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2).
    """
    preference = log_scores.detach() if bias is None else log_scores.detach().exp() + bias
    chosen = torch.zeros_like(preference, dtype=torch.bool)
    if num_groups > 1:
        values = (preference - preference.amax(-1, keepdim=True)).exp() if bias is None else preference
        values = values.unflatten(-1, (num_groups, -1))
        strength = values.topk(min(2, values.shape[-1]), -1).values.sum(-1)  # [..., groups]
        left_out = torch.ones_like(strength, dtype=torch.bool).scatter(-1, strength.topk(top_groups, -1).indices, False)
        preference = preference.masked_fill(left_out.repeat_interleave(values.shape[-1], -1), -torch.inf)
    return chosen.scatter(-1, preference.topk(top_k, -1).indices, True)


def combining_weights(log_scores: Tensor, chosen: Tensor, normalize: bool, factor: float) -> Tensor:
    """Return the factor of each expert's output: `factor` times the chosen scores, 0 elsewhere.

    With `normalize` the factors of a token add up to `factor`.
    """
    if normalize:
        weights = log_scores.masked_fill(~chosen, torch.finfo(log_scores.dtype).min).softmax(-1)
    else:
        weights = log_scores.exp()
    weights = weights.masked_fill(~chosen, 0.0)
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


def balance_loss(log_scores: Tensor, counts: Tensor, seq_len: int, top_k: int) -> Tensor:
    """Compute the load-balancing loss, averaged over sequences: 1 where the load is even, `experts / top_k` at worst.

    experts * sum_i f_i P_i with f_i the share of a sequence's choices that fell on expert i and P_i the mean share of
    its scores (Fedus et al. 2021, arXiv 2101.03961, equations 4-6; DeepSeek-AI 2024, arXiv 2412.19437, equations
    17-20). `counts` [b, experts] are the choices of whole sequences of `seq_len` tokens; `log_scores` [s, b, experts]
    may be those of a run of their tokens: the results of all runs then add up to the loss.
    """
    f = counts.to(log_scores.dtype) / (seq_len * top_k)  # [b, experts]
    p = log_scores.softmax(-1).sum(0) / seq_len
    return log_scores.shape[-1] * (f * p).sum(-1).mean()


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
