"""Plain PyTorch in place of the CUDA packages that megatron-core's MambaMixer imports: triton, mamba_ssm, einops.

So the mixer itself is megatron-core's, with its own parameters, sharding and names; only its kernels are replaced.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_REARRANGED = {
    "l b d -> b l d": lambda x: x.transpose(0, 1),
    "b l d -> b d l": lambda x: x.transpose(1, 2),
    "b d l -> b l d": lambda x: x.transpose(1, 2),
    "b l (h p) -> b l h p": lambda x, p: x.unflatten(-1, (-1, p)),
    "b l (g n) -> b l g n": lambda x, n: x.unflatten(-1, (-1, n)),
    "b l h p -> l b (h p)": lambda x: x.flatten(2).transpose(0, 1),
}


def _rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    return _REARRANGED[pattern](x, **sizes)


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, *, D: Tensor, dt_bias: Tensor,
          **_: Any) -> Tensor:  # fmt: skip
    """Run the recurrence of Mamba-2 token by token; x is [b, l, h, p], dt [b, l, h], B and C [b, l, g, n]."""
    heads = x.shape[2]
    dt = F.softplus(dt + dt_bias)
    B, C = (part.repeat_interleave(heads // part.shape[2], 2) for part in (B, C))
    state, outputs = x.new_zeros(*x.shape[:1], heads, x.shape[3], B.shape[3]), []
    for i in range(x.shape[1]):
        step = dt[:, i, :, None, None]
        state = state * (step * A[:, None, None]).exp() + step * x[:, i, :, :, None] * B[:, i, :, None]
        outputs.append((state * C[:, i, :, None]).sum(-1) + D[:, None] * x[:, i])
    return torch.stack(outputs, 1)


class _GatedNorm(nn.Module):
    """The norm of mamba_ssm: gate, then an RMS norm of every group."""

    def __init__(self, size: int, eps: float, group_size: int, norm_before_gate: bool, dtype: torch.dtype, **_: Any):
        super().__init__()
        self.weight, self.eps, self.group_size = nn.Parameter(torch.ones(size, dtype=dtype)), eps, group_size

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        groups = (x * F.silu(z)).unflatten(-1, (-1, self.group_size))
        return F.rms_norm(groups, (self.group_size,), eps=self.eps).flatten(-2) * self.weight


def install() -> None:
    """Put the modules where megatron-core imports them. Call it before megatron.core.ssm.mamba_mixer is imported."""
    _module("einops", rearrange=_rearrange, repeat=None)
    _module("triton", jit=lambda function: function, language=_module("triton.language", constexpr=int))
    _module("mamba_ssm")
    _module("mamba_ssm.ops")
    _module("mamba_ssm.ops.triton")
    _module("mamba_ssm.ops.triton.layernorm_gated", RMSNorm=_GatedNorm)
    scan = {"mamba_chunk_scan_combined": _scan, "mamba_split_conv1d_scan_combined": None}
    _module("mamba_ssm.ops.triton.ssd_combined", **scan)


def _module(name: str, **members: Any) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(members)
    return module
