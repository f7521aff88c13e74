"""The gated delta product (Siems et al. 2025, arXiv 2502.10297): several steps of the delta rule a token.

A token has r keys, values and strengths. The state decays once, is corrected r times, and then read: the gated delta
rule over r times as many tokens, of which the first of each r decays and the last is read.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule, gated_delta_rule_prefill, gated_delta_rule_step
from hybridtron.ops.recurrence import run_steps


def gated_delta_product(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk_size: int) -> Tensor:
    """Compute the gated delta product over whole sequences from a zero state.

    q [b, s, m, n], k [b, s, r, m, n], v [b, s, r, h, p], g [b, s, h], beta [b, s, r, h]; `chunk_size` counts steps. The
    rest is as in `gated_delta_rule`.
    """
    return _last_steps(gated_delta_rule(*_steps_as_tokens(q, k, v, g, beta), chunk_size), k)


def gated_delta_product_prefill(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Compute `gated_delta_product` from state [b, h, n, p]; returns y and the state after the last token."""
    y, state = gated_delta_rule_prefill(state, *_steps_as_tokens(q, k, v, g, beta), chunk_size)
    return _last_steps(y, k), state


def gated_delta_product_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute one token: the arguments are those of `gated_delta_product` without s; returns y and the state."""
    decay = g
    for key, value, strength in zip(k.unbind(1), v.unbind(1), beta.unbind(1), strict=True):
        y, state = gated_delta_rule_step(state, q, key, value, decay, strength)
        decay = g.new_zeros(g.shape)
    return y, state


def gated_delta_product_reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Compute the recurrence itself, token by token in float64."""
    state = q.new_zeros(q.shape[0], v.shape[-2], q.shape[-1], v.shape[-1])
    return run_steps(gated_delta_product_step, state, q, k, v, g, beta)[0]


def _steps_as_tokens(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments of `gated_delta_rule` over steps: queries of all but the last, and decays of all but the
    first step of a token, are zero."""
    others = k.shape[2] - 1
    queries = F.pad(q.unsqueeze(2), (0, 0, 0, 0, others, 0))
    decays = F.pad(g.unsqueeze(2), (0, 0, 0, others))
    return queries.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), decays.flatten(1, 2), beta.flatten(1, 2)


def _last_steps(y: Tensor, k: Tensor) -> Tensor:
    """Return the outputs of the last step of each token: [b, s * r, h, p] -> [b, s, h, p]."""
    steps = k.shape[2]
    return y[:, steps - 1 :: steps]
