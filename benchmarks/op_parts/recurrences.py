"""Forms of recurrences: what one would write first, and the public ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.ssm.mamba3 import Mamba3State, mamba3_step
from op_parts.attention import seen
from op_parts.inputs import (
    CHUNK,
    HEADS,
    WIDTH,
)


def chunked_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    return torch_chunk_gated_delta_rule(q, k, v, g, beta, chunk_size=CHUNK)[0]


def chunked_kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

    return chunk_kimi_delta_attention(q, k, v, g, beta, chunk_size=CHUNK)[0]


def recurrence_of_transformers(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The scan of transformers' MambaMixer.slow_forward: states of all tokens made at once, then a loop over them."""
    decay = torch.exp(A * dt.unsqueeze(-1))
    added = dt.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1)
    state, outputs = torch.zeros(1, *A.shape), []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + added[:, t]
        outputs.append((state @ C[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1) + x * D


def dual_form(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The listing of the Mamba-2 paper (Dao and Gu 2024): chunks by einsum over segment sums."""
    chunk = 64

    def chunks(t: Tensor) -> Tensor:
        return t.unflatten(1, (-1, chunk))  # [b, c, l, ...]

    def segment_sums(t: Tensor) -> Tensor:
        total = t.cumsum(-1)
        difference = total.unsqueeze(-1) - total.unsqueeze(-2)
        return difference.masked_fill(~seen(t.shape[-1], None), -torch.inf)

    skip = x * D.unsqueeze(-1)
    x, decay = chunks(x * dt.unsqueeze(-1)), chunks(dt * A).permute(0, 3, 1, 2)  # [b, h, c, l]
    B, C = (chunks(t.expand(-1, -1, x.shape[3], -1)) for t in (B, C))
    total = decay.cumsum(-1)
    y = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, segment_sums(decay).exp(), x)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, (total[..., -1:] - total).exp(), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
    between = segment_sums(F.pad(total[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    y = y + torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, total.exp())
    return y.flatten(1, 2) + skip


def mamba3_loop(*inputs: Tensor) -> Tensor:
    """Compute Mamba-3 token by token."""
    x, _, _, _, theta, B, _, D = inputs
    sizes = ((*x.shape[2:3], x.shape[4], B.shape[4]), B.shape[2:], x.shape[2:], theta.shape[2:])
    state, outputs = Mamba3State(*(torch.zeros(1, *size) for size in sizes)), []
    for x, dt, decay, mix, theta, B, C in zip(*(tensor.unbind(1) for tensor in inputs[:-1]), strict=True):
        y, state = mamba3_step(state, x, dt, decay, mix, theta, B, C, D)
        outputs.append(y)
    return torch.stack(outputs, 1)


def mamba3_inputs(length: int, rank: int) -> list[Tensor]:
    """Return x, dt, log decays, mixes, angular velocities, B, C and D."""
    dt = F.softplus(torch.randn(1, length, HEADS) - 3)
    wide = [torch.randn(1, length, HEADS, rank, WIDTH) for _ in range(3)]
    mix, theta = torch.rand(1, length, HEADS), math.pi * torch.randn(1, length, HEADS, WIDTH // 4).tanh()
    return [wide[0], dt, -dt * torch.rand(HEADS) - 1e-3, mix, theta, *wide[1:], torch.randn(HEADS)]
