"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) between its projections: short convolution, scan, gated norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents, isolated
from hybridtron.ops.conv.short_conv import short_conv, short_conv_prefill
from hybridtron.ops.dispatch import Implementation, otherwise, register, select
from hybridtron.ops.elementwise.norm import gated_rms_norm
from hybridtron.ops.native.library import kernels_for
from hybridtron.ops.ssm.mamba2_buffers import Sizes
from hybridtron.ops.ssm.mamba2_documents import FusedDocuments, spans
from hybridtron.ops.ssm.mamba2_fused import FusedMamba2, fused_mamba2_prefill
from hybridtron.ops.ssm.ssd import ssd, ssd_prefill
from hybridtron.ops.ssm.vendor import MAMBA2

MAX_CONV_TAPS = 16  # MOST_TAPS of native/mamba2.c
Limits = tuple[float, float]
NO_LIMIT: Limits = (0.0, math.inf)
_ORDINARY = Sizes(
    seq_len=2, batch=1, heads=1, head_dim=64, groups=1, state_dim=128, chunk_size=128, chunks=1, length=2, taps=4
)


def mamba2_core(
    packed: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    head_dim: int,
    state_dim: int,
    chunk_size: int,
    eps: float,
    dt_limit: Limits = NO_LIMIT,
    documents: Documents | None = None,
) -> Tensor:
    """Compute [s, b, heads * p] from z, x, B, C and dt in the channels of packed [s, b, z + x + B + C + dt].

    x, B and C pass the causal convolution, conv_weight [x + B + C, k], and SiLU; `ssd` runs over them with steps
    softplus(dt + dt_bias), clamped to dt_limit, and A, negative; its result is gated by z and normed over the heads
    that share B and C.
    dt_bias, A and D are [heads], norm_weight [heads * p]. Each of the `documents` is computed as a sequence by itself.
    """
    sizes = Sizes.of(packed, conv_weight, D, head_dim, state_dim, chunk_size)
    if conv_bias is None:
        conv_bias = conv_weight.new_zeros(conv_weight.size(0))
    weights = (conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    if documents is not None and dt_limit == NO_LIMIT and _native(sizes, packed, *weights):
        return FusedDocuments.apply(spans(sizes, documents.lengths), eps, packed, *weights)

    def core(packed: Tensor) -> Tensor:
        sizes = Sizes.of(packed, conv_weight, D, head_dim, state_dim, chunk_size)
        if dt_limit != NO_LIMIT:  # which the kernels do not have
            return composed_mamba2(sizes, eps, packed, *weights, dt_limit=dt_limit)
        return select("mamba2_core", sizes, packed, *weights)(sizes, eps, packed, *weights)

    return isolated(core, documents)(packed)


def mamba2_prefill(
    conv: Tensor,
    memory: Tensor,
    packed: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    head_dim: int,
    state_dim: int,
    chunk_size: int,
    eps: float,
    dt_limit: Limits = NO_LIMIT,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `mamba2_core` after the inputs of the convolution in conv [b, k - 1, x + B + C] from memory [b, h, p, n].

    Returns [s, b, heads * p], and both after the last token. Where no gradients are wanted the kernels
    are used, which give none.
    """
    sizes = Sizes.of(packed, conv_weight, D, head_dim, state_dim, chunk_size)
    z, conv_input, dt = (part.transpose(0, 1) for part in packed.split([sizes.inner, sizes.channels, sizes.heads], -1))
    bias = conv_weight.new_zeros(len(conv_weight)) if conv_bias is None else conv_bias
    weights, kept = (conv_weight, bias, dt_bias, A, D, norm_weight), sizes.taps - 1
    plain = dt_limit != NO_LIMIT or torch.is_grad_enabled() or sizes.length < kept
    if not plain and _native(sizes, packed, *weights):
        first, _ = short_conv_prefill(conv, conv_input[:, :kept], conv_weight, conv_bias, activation="silu")
        y, memory = fused_mamba2_prefill(sizes, eps, first, memory, packed, *weights)
        return y, conv_input[:, sizes.seq_len - kept :].clone(), memory
    convolved, conv = short_conv_prefill(conv, conv_input, conv_weight, conv_bias, activation="silu")
    split = convolved.split([count * width for count, width in sizes.convolved], -1)
    x, b, c = (part.unflatten(-1, size) for part, size in zip(split, sizes.convolved, strict=True))
    y, memory = ssd_prefill(memory, x, step_sizes(dt.float(), dt_bias, dt_limit), A, b, c, D, chunk_size)
    return gated_rms_norm(y.flatten(2), z, norm_weight, eps, sizes.groups).transpose(0, 1), conv, memory


def step_sizes(dt: Tensor, dt_bias: Tensor, limits: Limits) -> Tensor:
    """Compute softplus(dt + dt_bias), clamped to the limits."""
    steps = F.softplus(dt + dt_bias)
    return steps if limits == NO_LIMIT else steps.clamp(*limits)


def composed_mamba2(sizes: Sizes, eps: float, packed: Tensor, *weights: Tensor, dt_limit: Limits = NO_LIMIT) -> Tensor:
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
    y = ssd(x, step_sizes(dt.float(), dt_bias, dt_limit), A, b, c, D, sizes.chunk_size).flatten(2)  # [b, s, heads * p]
    return gated_rms_norm(y, z, norm_weight, eps, sizes.groups).transpose(0, 1)


def _native(sizes: Sizes, packed: Tensor, *weights: Tensor) -> bool:
    return sizes.taps <= MAX_CONV_TAPS and packed.stride(-1) == 1 and kernels_for(packed, *weights) is not None


register(
    "mamba2_core",
    "mamba2 scan",
    Implementation(
        "C kernels",
        f"float32 on a CPU, at most {MAX_CONV_TAPS} taps, channels contiguous, under no torch.func transform",
        _native,
        FusedMamba2.apply,
    ),
    MAMBA2,
    otherwise("short_conv, ssd and gated_rms_norm", composed_mamba2),
    sample=lambda one: (_ORDINARY, one),
)
