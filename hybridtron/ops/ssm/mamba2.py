"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) between its projections: short convolution, scan, gated norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.conv.short_conv import short_conv
from hybridtron.ops.dispatch import Implementation, otherwise, register, select
from hybridtron.ops.elementwise.norm import gated_rms_norm
from hybridtron.ops.native.library import kernels_for
from hybridtron.ops.ssm.mamba2_buffers import Sizes
from hybridtron.ops.ssm.mamba2_fused import FusedMamba2
from hybridtron.ops.ssm.ssd import ssd

MAX_CONV_TAPS = 16  # MOST_TAPS of native/mamba2.c


def mamba2_core(
    packed: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    head_dim: int,
    state_dim: int,
    chunk_size: int,
    eps: float,
) -> Tensor:
    """Compute [s, b, heads * p] from z, x, B, C and dt in the channels of packed [s, b, z + x + B + C + dt].

    x, B and C pass the causal convolution, conv_weight [x + B + C, k], and SiLU; `ssd` runs over them with steps
    softplus(dt + dt_bias) and A, negative; its result is gated by z and normed over the heads that share B and C.
    dt_bias, A and D are [heads], norm_weight [heads * p].
    """
    sizes = Sizes.of(packed, conv_weight, D, head_dim, state_dim, chunk_size)
    weights = (conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    return select("mamba2_core", packed, sizes.taps, *weights)(sizes, eps, packed, *weights)


def composed_mamba2(sizes: Sizes, eps: float, packed: Tensor, *weights: Tensor) -> Tensor:
    """Compute `mamba2_core` from ops that work by themselves."""
    conv_weight, conv_bias, dt_bias, A, D, norm_weight = weights
    # Split before transposing: the gradients are then joined in the order that the projection wants.
    parts = packed.split([sizes.inner, sizes.channels, sizes.heads], -1)
    z, conv_input, dt = (part.transpose(0, 1) for part in parts)  # [b, s, .]
    convolved = short_conv(conv_input, conv_weight, conv_bias, activation="silu")
    split = convolved.split([count * width for count, width in sizes.convolved], -1)
    x, b, c = (
        part.unflatten(-1, size) for part, size in zip(split, sizes.convolved, strict=True)
    )  # [b, s, heads or groups, .]
    y = ssd(x, F.softplus(dt.float() + dt_bias), A, b, c, D, sizes.chunk_size).flatten(2)  # [b, s, heads * p]
    return gated_rms_norm(y, z, norm_weight, eps, sizes.groups).transpose(0, 1)


def _native(packed: Tensor, taps: int, *weights: Tensor) -> bool:
    return taps <= MAX_CONV_TAPS and packed.stride(-1) == 1 and kernels_for(packed, *weights) is not None


register(
    "mamba2_core",
    "mamba2 scan",
    Implementation(
        "C kernels",
        f"float32 on a CPU, at most {MAX_CONV_TAPS} taps, channels contiguous, under no torch.func transform",
        _native,
        FusedMamba2.apply,
    ),
    otherwise("short_conv, ssd and gated_rms_norm", composed_mamba2),
    sample=lambda one: (one, 4),
)
