"""Every operation with its inputs and forms."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.conv.dynamic_conv import dynamic_conv, dynamic_conv_step
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.outer_conv import outer_conv
from hybridtron.ops.conv.short_conv import short_conv
from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule, gated_delta_rule_step
from hybridtron.ops.linear_attention.gla import gla, gla_step
from hybridtron.ops.linear_attention.kernelized import linear_attention, linear_attention_step
from hybridtron.ops.linear_attention.retention import retention, retention_step
from hybridtron.ops.linear_attention.rwkv6 import rwkv6, rwkv6_step
from hybridtron.ops.linear_attention.rwkv7 import rwkv7, rwkv7_step
from hybridtron.ops.ssm.mamba3 import mamba3
from hybridtron.ops.ssm.selective_scan import selective_scan, selective_scan_step
from hybridtron.ops.ssm.ssd import ssd, ssd_step
from op_parts.attention import sdpa, square, square_with_decays, square_with_sinks, square_with_softcap
from op_parts.convolutions import all_products, conv1d, direct, padded_fft, shifted, windows
from op_parts.inputs import (
    CHANNELS,
    CHUNK,
    HEADS,
    SOFTCAP,
    STATES,
    WIDTH,
    WINDOW,
    Op,
    heads,
    log_decays,
    positive,
    projections,
    rwkv7_inputs,
    scan,
    unit,
)
from op_parts.recurrences import (
    chunked_delta,
    chunked_kda,
    dual_form,
    mamba3_inputs,
    mamba3_loop,
    recurrence_of_transformers,
)

SQUARE_STATE = (HEADS, WIDTH, WIDTH)
FADING = -(2.0 ** -torch.arange(1, HEADS + 1))  # log decays of retention
OPS: dict[str, Op] = {
    "attention": Op(projections, attention, square, sdpa, "torch SDPA", logarithmic=False),
    "attention, window 256": Op(
        projections,
        partial(attention, window=WINDOW),
        partial(square, window=WINDOW),
        partial(sdpa, window=WINDOW),
        "torch SDPA, masked",
    ),
    "attention with sinks": Op(
        lambda s: [*projections(s), torch.randn(HEADS)],
        lambda q, k, v, sinks: attention(q, k, v, sinks=sinks),
        square_with_sinks,
        None,
        "",
        logarithmic=False,
    ),
    "attention with forget gates": Op(
        lambda s: [*projections(s), log_decays(1, s, HEADS).double().cumsum(1)],
        lambda q, k, v, sums: attention(q, k, v, decays=sums),
        square_with_decays,
        None,
        "",
        logarithmic=False,
    ),
    "attention with softcap": Op(
        projections, partial(attention, softcap=SOFTCAP), square_with_softcap, None, "", logarithmic=False
    ),
    "linear_attention": Op(
        lambda s: [positive(heads(s)), positive(heads(s)), heads(s)],
        partial(linear_attention, chunk_size=CHUNK, normalize=False),
        partial(scan, partial(linear_attention_step, normalize=False), SQUARE_STATE, 3),
        None,
        "",
    ),
    "retention": Op(
        projections,
        partial(retention, log_decay=FADING, chunk_size=CHUNK),
        partial(scan, partial(retention_step, log_decay=FADING), SQUARE_STATE, 3),
        None,
        "",
    ),
    "gla": Op(
        lambda s: [*projections(s), log_decays(1, s, HEADS, WIDTH)],
        partial(gla, chunk_size=CHUNK),
        partial(scan, gla_step, SQUARE_STATE, 4),
        None,
        "",
    ),
    "rwkv6": Op(
        lambda s: [*projections(s), log_decays(1, s, HEADS, WIDTH), torch.randn(HEADS, WIDTH)],
        partial(rwkv6, chunk_size=CHUNK),
        partial(scan, rwkv6_step, SQUARE_STATE, 4),
        None,
        "",
    ),
    "rwkv7": Op(
        rwkv7_inputs,
        partial(rwkv7, chunk_size=CHUNK),
        partial(scan, rwkv7_step, SQUARE_STATE, 6),
        None,
        "",
    ),
    "gated_delta_rule": Op(
        lambda s: [heads(s), unit(heads(s)), heads(s), log_decays(1, s, HEADS), torch.rand(1, s, HEADS)],
        partial(gated_delta_rule, chunk_size=CHUNK),
        partial(scan, gated_delta_rule_step, SQUARE_STATE, 5),
        chunked_delta,
        "transformers Qwen3-Next",
    ),
    "gated_delta_rule, decays by channel": Op(
        lambda s: [heads(s), unit(heads(s)), heads(s), log_decays(1, s, HEADS, WIDTH), torch.rand(1, s, HEADS)],
        partial(gated_delta_rule, chunk_size=CHUNK),
        partial(scan, gated_delta_rule_step, SQUARE_STATE, 5),
        chunked_kda,
        "transformers Kimi Linear",
    ),
    "selective_scan": Op(
        lambda s: [
            torch.randn(1, s, CHANNELS),
            F.softplus(torch.randn(1, s, CHANNELS) - 3),
            -torch.rand(CHANNELS, STATES) * STATES - 0.5,
            torch.randn(1, s, STATES),
            torch.randn(1, s, STATES),
            torch.randn(CHANNELS),
        ],
        selective_scan,
        lambda x, dt, A, B, C, D: scan(
            lambda state, x, dt, B, C: selective_scan_step(state, x, dt, A, B, C, D), A.shape, 4, x, dt, B, C
        ),
        recurrence_of_transformers,
        "transformers Mamba",
    ),
    "ssd": Op(
        lambda s: [
            heads(s),
            F.softplus(torch.randn(1, s, HEADS) - 3),
            -torch.rand(HEADS) * STATES - 0.5,
            torch.randn(1, s, 1, WIDTH),
            torch.randn(1, s, 1, WIDTH),
            torch.randn(HEADS),
        ],
        partial(ssd, chunk_size=CHUNK),
        lambda x, dt, A, B, C, D: scan(
            lambda state, x, dt, B, C: ssd_step(state, x, dt, A, B, C, D), SQUARE_STATE, 4, x, dt, B, C
        ),
        dual_form,
        "Mamba-2 paper's listing",
    ),
    **{
        f"mamba3, rank {rank}": Op(
            partial(mamba3_inputs, rank=rank), partial(mamba3, chunk_size=CHUNK), mamba3_loop, None, ""
        )
        for rank in (1, 4)
    },
    "short_conv": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(CHANNELS, 4)], short_conv, shifted, conv1d, "torch conv1d"
    ),
    "dynamic_conv": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(1, s, 4, CHANNELS)],
        dynamic_conv,
        partial(scan, dynamic_conv_step, (3, CHANNELS), 2),
        windows,
        "Jet-Nemotron's plain form",
    ),
    "long_conv, 128 taps": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(CHANNELS, 128)], long_conv, direct, padded_fft, "padded FFT"
    ),
    "long_conv, all taps": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(CHANNELS, s)], long_conv, direct, padded_fft, "padded FFT"
    ),
    **{
        f"outer_conv, {n} heads of {CHANNELS // n}": Op(
            lambda s, n=n: [*(torch.randn(1, s, n, CHANNELS // n) for _ in range(3)), torch.randn(n, s) / s],  # type: ignore[misc]
            outer_conv,
            all_products,
            None,
            "",
        )
        for n in (32, 16, 4)
    },
}
