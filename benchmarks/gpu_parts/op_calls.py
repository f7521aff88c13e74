"""A call of every operation of `hybridtron.ops.dispatch`, at sizes of one's choice: what tests/gpu checks and
benchmarks/gpu.py times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_parts.summed_linear import SummedLinear
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.outer_conv import outer_conv
from hybridtron.ops.conv.short_conv import gated_short_conv, short_conv
from hybridtron.ops.elementwise.activations import gelu, relu2, swiglu
from hybridtron.ops.elementwise.cross_entropy import cross_entropy, linear_cross_entropy
from hybridtron.ops.elementwise.norm import gated_rms_norm, norm_and_gate, rms_norm
from hybridtron.ops.flops import (
    attention_flops,
    gated_delta_rule_flops,
    gla_flops,
    linear_attention_flops,
    long_conv_fft_flops,
    outer_conv_flops,
    rwkv7_flops,
    ssd_flops,
)
from hybridtron.ops.linear import linear
from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule
from hybridtron.ops.linear_attention.gla import gla
from hybridtron.ops.linear_attention.kernelized import linear_attention
from hybridtron.ops.linear_attention.retention import retention
from hybridtron.ops.linear_attention.rwkv6 import rwkv6
from hybridtron.ops.linear_attention.rwkv7 import rwkv7
from hybridtron.ops.moe.grouped_linear import grouped_linear
from hybridtron.ops.ssm.mamba2 import mamba2_core
from hybridtron.ops.ssm.selective_scan import selective_scan
from hybridtron.ops.ssm.ssd import ssd

EPS = 1e-5


class Sizes(NamedTuple):
    """`channels` is heads * head_dim. Experts share the batch's tokens evenly but for one, which has none."""

    batch: int
    seq_len: int
    heads: int
    head_dim: int
    state_dim: int  # of ssd; selective_scan has 16 states
    groups: int  # of keys and values, and of B and C
    chunk: int
    vocab: int
    experts: int

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim


SMALL = Sizes(2, 200, 4, 64, 64, 2, 64, 1000, 4)  # tests; the length is a multiple of no block
TINY = Sizes(1, 32, 2, 16, 16, 1, 16, 64, 2)  # the benchmark's dry mode
WIDE = Sizes(1, 4096, 64, 64, 128, 8, 128, 32768, 8)  # of a model of width 4096


class Draw:
    """Random inputs on one device in one dtype, with gradients; `wide` ones keep at least float32."""

    def __init__(self, sizes: Sizes, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> None:
        self.sizes, self.device, self.dtype = sizes, device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, wide: bool = False) -> Tensor:
        """Draw on the CPU, so that every device gets the same values, rounded to bfloat16, which all dtypes hold."""
        return self._made(torch.randn(shape, generator=self.generator), wide)

    def sequence(self, *shape: int, wide: bool = False) -> Tensor:
        return self.normal(self.sizes.batch, self.sizes.seq_len, *shape, wide=wide)

    def heads(self, heads: int | None = None, width: int | None = None) -> Tensor:
        return self.sequence(heads or self.sizes.heads, width or self.sizes.head_dim)

    def keys(self, heads: int | None = None, width: int | None = None) -> Tensor:
        """Return vectors of length one."""
        return self.of(F.normalize(self.heads(heads, width).detach().float(), dim=-1))

    def log_decays(self, *shape: int) -> Tensor:
        return self.of(F.logsigmoid(self.sequence(*shape).detach().float() + 3), wide=True)

    def steps(self, *shape: int, wide: bool = True) -> Tensor:
        return self.of(F.softplus(self.sequence(*shape).detach().float() - 3), wide=wide)

    def rates(self, *shape: int) -> Tensor:
        """Return negative numbers around -1."""
        return self.of(-(self.normal(*shape).detach().float() * 0.3).exp(), wide=True)

    def of(self, values: Tensor, wide: bool = False) -> Tensor:
        return self._made(values.cpu().float(), wide)

    def _made(self, values: Tensor, wide: bool) -> Tensor:
        dtype = torch.promote_types(self.dtype, torch.float32) if wide else self.dtype
        return values.bfloat16().to(self.device, dtype).requires_grad_()


class OpCall(NamedTuple):
    """`inputs` draws the tensors that get gradients; `call` takes the sizes and them; `flops` are those of the
    matrix multiplications (and Fourier transforms) of a forward pass of the whole batch."""

    inputs: Callable[[Draw], list[Tensor]]
    call: Callable[..., Tensor]
    flops: Callable[[Sizes], float] = lambda size: 0.0


def _linear(draw: Draw) -> list[Tensor]:
    width = draw.sizes.channels
    return [draw.sequence(width), draw.of(draw.normal(width, width).detach().float() / width**0.5)]


def _linear_flops(size: Sizes) -> float:
    return 2.0 * size.batch * size.seq_len * size.channels**2


def _rwkv7(draw: Draw) -> list[Tensor]:
    decays = draw.of(-0.6 * torch.sigmoid(draw.heads().detach().float()), wide=True)
    return [draw.heads(), decays, draw.heads(), draw.heads(), draw.keys(), draw.heads()]


def _qkv(draw: Draw) -> list[Tensor]:
    return [draw.heads(), draw.heads(draw.sizes.groups), draw.heads(draw.sizes.groups)]


def _same_heads(draw: Draw) -> list[Tensor]:
    return [draw.heads(), draw.keys(), draw.heads()]


def _rotary(size: Sizes, x: Tensor) -> Tensor:
    return apply_rotary(x, *rotary_tables(size.seq_len, size.head_dim, device=x.device))


def _mamba2(draw: Draw) -> list[Tensor]:
    size = draw.sizes
    convolved = size.channels + 2 * size.groups * size.state_dim
    packed = draw.normal(size.seq_len, size.batch, size.channels + convolved + size.heads)
    weights = [draw.normal(convolved, 4), draw.normal(convolved), draw.normal(size.heads, wide=True)]
    return [packed, *weights, draw.rates(size.heads), draw.normal(size.heads, wide=True), draw.normal(size.channels)]


def _mamba2_core(size: Sizes, packed: Tensor, *weights: Tensor) -> Tensor:
    return mamba2_core(
        packed, *weights, head_dim=size.head_dim, state_dim=size.state_dim, chunk_size=size.chunk, eps=EPS
    )


def _ssd(draw: Draw) -> list[Tensor]:
    size = draw.sizes
    keys = [draw.sequence(size.groups, size.state_dim) for _ in range(2)]
    steps, rates = draw.steps(size.heads), draw.rates(size.heads)
    return [draw.heads(), steps, rates, *keys, draw.normal(size.heads, wide=True)]


def _selective_scan(draw: Draw) -> list[Tensor]:
    size, states = draw.sizes, 16
    keys = [draw.sequence(states) for _ in range(2)]
    steps, rates = draw.steps(size.channels), draw.rates(size.channels, states)
    return [draw.sequence(size.channels), steps, rates, *keys, draw.normal(size.channels, wide=True)]


def _filters(draw: Draw, taps: int, channels_each: int = 1) -> Tensor:
    decay = torch.exp(-torch.arange(taps) / (taps / 4)) / taps**0.5
    count = draw.sizes.channels // channels_each
    return draw.of(draw.normal(count, taps, wide=True).detach().cpu().float() * decay, wide=True)


def _counts(size: Sizes) -> list[int]:
    rows = size.batch * size.seq_len
    share = rows // (size.experts - 1)
    return [0, *[share] * (size.experts - 2), rows - share * (size.experts - 2)]


def _heads_flops(count: Callable[..., int]) -> Callable[[Sizes], float]:
    def flops(size: Sizes) -> float:
        return size.batch * count(size.seq_len, size.heads, size.head_dim, size.head_dim, size.chunk)

    return flops


CALLS: dict[str, OpCall] = {
    "attention": OpCall(
        _qkv,
        lambda size, q, k, v: attention(q, k, v),
        lambda size: size.batch * attention_flops(size.seq_len, size.heads, size.head_dim),
    ),
    "adjusted_attention": OpCall(
        lambda draw: [*_qkv(draw), draw.log_decays(draw.sizes.heads)],
        lambda size, q, k, v, gates: attention(q, k, v, softcap=30.0, decays=gates.double().cumsum(1)),
        lambda size: size.batch * attention_flops(size.seq_len, size.heads, size.head_dim),
    ),
    "apply_rotary": OpCall(lambda draw: [draw.heads()], _rotary),
    "selective_scan": OpCall(_selective_scan, lambda size, *t: selective_scan(*t)),
    "mamba2_core": OpCall(
        _mamba2,
        _mamba2_core,
        lambda s: s.batch * ssd_flops(s.seq_len, s.heads, s.head_dim, s.groups, s.state_dim, s.chunk),
    ),
    "ssd": OpCall(
        _ssd,
        lambda size, x, dt, A, B, C, D: ssd(x, dt, A, B, C, D, size.chunk),
        lambda s: s.batch * ssd_flops(s.seq_len, s.heads, s.head_dim, s.groups, s.state_dim, s.chunk),
    ),
    "linear_attention": OpCall(
        lambda draw: [draw.of(t.detach().abs()) for t in (draw.heads(), draw.heads())] + [draw.heads()],
        lambda size, q, k, v: linear_attention(q, k, v, size.chunk, True),
        lambda s: s.batch * linear_attention_flops(s.seq_len, s.heads, s.head_dim, s.head_dim, s.chunk, True),
    ),
    "retention": OpCall(
        _same_heads,
        lambda size, q, k, v: retention(
            q, k, v, -(2.0 ** -torch.arange(1, size.heads + 1, device=q.device)), size.chunk
        ),
        _heads_flops(partial(linear_attention_flops, normalize=False)),
    ),
    "gla": OpCall(
        lambda draw: [*_same_heads(draw), draw.log_decays(draw.sizes.heads, draw.sizes.head_dim)],
        lambda size, q, k, v, g: gla(q, k, v, g, size.chunk),
        _heads_flops(gla_flops),
    ),
    "rwkv6": OpCall(
        lambda draw: [
            *_same_heads(draw),
            draw.log_decays(draw.sizes.heads, draw.sizes.head_dim),
            draw.normal(draw.sizes.heads, draw.sizes.head_dim),
        ],
        lambda size, r, k, v, w, u: rwkv6(r, k, v, w, u, size.chunk),
        _heads_flops(gla_flops),
    ),
    "rwkv7": OpCall(
        _rwkv7,
        lambda size, q, g, k, v, a, rates: rwkv7(q, g, k, v, a, -a * rates.sigmoid(), min(size.chunk, 64)),
        lambda s: s.batch * rwkv7_flops(s.seq_len, s.heads, s.head_dim, s.head_dim, min(s.chunk, 64)),
    ),
    "gated_delta_rule": OpCall(
        lambda draw: [
            *_same_heads(draw),
            draw.log_decays(draw.sizes.heads),
            draw.of(draw.sequence(draw.sizes.heads).detach().float().sigmoid(), wide=True),
        ],
        lambda size, q, k, v, g, beta: gated_delta_rule(q, k, v, g, beta, size.chunk),
        lambda s: s.batch * gated_delta_rule_flops(s.seq_len, s.heads, s.heads, s.head_dim, s.head_dim, s.chunk),
    ),
    "short_conv": OpCall(
        lambda draw: [draw.sequence(draw.sizes.channels), draw.normal(draw.sizes.channels, 4)],
        lambda size, x, weight: short_conv(x, weight, activation="silu"),
    ),
    "long_conv": OpCall(
        lambda draw: [draw.sequence(draw.sizes.channels), _filters(draw, min(128, draw.sizes.seq_len), 16)],
        lambda size, *t: long_conv(*t),
        lambda s: s.batch * long_conv_fft_flops(s.seq_len, s.channels // 16, s.channels, min(128, s.seq_len)),
    ),
    "convolve": OpCall(
        lambda draw: [draw.sequence(draw.sizes.channels), _filters(draw, draw.sizes.seq_len)],
        lambda size, *t: long_conv(*t),
        lambda s: s.batch * long_conv_fft_flops(s.seq_len, s.channels, s.channels, s.seq_len),
    ),
    "outer_conv": OpCall(
        lambda draw: [
            *(draw.heads(2 * draw.sizes.heads, draw.sizes.head_dim // 2) for _ in range(3)),
            draw.of(draw.normal(2 * draw.sizes.heads, draw.sizes.seq_len).detach().float() / draw.sizes.seq_len),
        ],
        lambda size, *t: outer_conv(*t),
        lambda s: s.batch * sum(outer_conv_flops(s.seq_len, 2 * s.heads, s.head_dim // 2)),
    ),
    "linear": OpCall(_linear, lambda size, x, weight: linear(x, weight), _linear_flops),
    "weight_gradient": OpCall(
        _linear, lambda size, x, weight: SummedLinear.apply(x.flatten(0, 1), weight), _linear_flops
    ),
    "grouped_linear": OpCall(
        lambda draw: [
            draw.normal(draw.sizes.batch * draw.sizes.seq_len, draw.sizes.channels),
            draw.of(
                draw.normal(draw.sizes.experts, 128, draw.sizes.channels).detach().float() / draw.sizes.channels**0.5
            ),
        ],
        lambda size, rows, weight: grouped_linear(rows, weight, _counts(size)),
        lambda s: 2.0 * s.batch * s.seq_len * s.channels * 128,
    ),
    "rms_norm": OpCall(
        lambda draw: [draw.sequence(draw.sizes.channels), draw.normal(draw.sizes.channels)],
        lambda size, x, weight: rms_norm(x, weight, EPS),
    ),
    "gated_rms_norm": OpCall(
        lambda draw: [*(draw.sequence(draw.sizes.channels) for _ in range(2)), draw.normal(draw.sizes.channels)],
        lambda size, x, z, weight: gated_rms_norm(x, z, weight, EPS, size.groups),
    ),
    "norm_and_gate": OpCall(
        lambda draw: [draw.heads(), draw.heads(), draw.normal(draw.sizes.head_dim)],
        lambda size, x, z, weight: norm_and_gate(x, z, weight, EPS),
    ),
    "gated_short_conv": OpCall(
        lambda draw: [*(draw.sequence(draw.sizes.channels) for _ in range(3)), draw.normal(draw.sizes.channels, 7)],
        lambda size, before, x, after, weight: gated_short_conv(before, x, after, weight),
    ),
    "linear_cross_entropy": OpCall(
        lambda draw: [
            draw.sequence(draw.sizes.channels),
            draw.of(draw.normal(draw.sizes.vocab, draw.sizes.channels).detach().float() / draw.sizes.channels**0.5),
        ],
        lambda size, x, weight: linear_cross_entropy(x, weight, _targets(size, x), lambda: F.linear(x, weight))[0],
        lambda s: 2.0 * s.batch * s.seq_len * s.channels * s.vocab,
    ),
    "swiglu": OpCall(lambda draw: [draw.sequence(2 * draw.sizes.channels)], lambda size, x: swiglu(x)),
    "gelu": OpCall(lambda draw: [draw.sequence(draw.sizes.channels)], lambda size, x: gelu(x)),
    "relu2": OpCall(lambda draw: [draw.sequence(draw.sizes.channels)], lambda size, x: relu2(x)),
    "cross_entropy": OpCall(
        lambda draw: [draw.sequence(draw.sizes.vocab)],
        lambda size, logits: cross_entropy(logits, _targets(size, logits))[0],
    ),
}


def _targets(size: Sizes, logits: Tensor) -> Tensor:
    return torch.arange(size.batch * size.seq_len, device=logits.device).view(logits.shape[:-1]) % size.vocab


# Calls of implementations that do not take those of CALLS, by operation and implementation.
SPECIAL_CALLS: dict[tuple[str, str], OpCall] = {
    ("attention", "flash attention of PyTorch"): OpCall(
        _qkv,
        lambda size, q, k, v: attention(q, k, v, window=size.seq_len // 4),
        lambda s: s.batch * attention_flops(s.seq_len, s.heads, s.head_dim, s.seq_len // 4),
    ),
    ("rms_norm", "Triton"): OpCall(
        lambda draw: [draw.sequence(draw.sizes.channels), draw.normal(draw.sizes.channels, wide=True)],
        lambda size, x, weight: rms_norm(x, weight, EPS),
    ),
}


def call_of(operation: str, implementation: str) -> OpCall:
    """Return the call that an implementation of an operation is tested and timed by."""
    return SPECIAL_CALLS.get((operation, implementation), CALLS[operation])
