"""FLOPs of operations, counted without torch."""

from __future__ import annotations

import math

from hybridtron.ops.cuts import (
    DIRECT_TAPS,
    GLA_BLOCK,
    binary_chunks,
    chunks_of,
    delta_rule_chunks,
    fft_size,
    modal_filter_shape,
    num_pairs,
    query_blocks,
    segment_length,
    takes_pairs,
)


def attention_flops(seq_len: int, num_heads: int, head_dim: int, window: int | None = None) -> int:
    """Count the matmul FLOPs of the forward pass of one sequence, with the keys and values as wide as the queries."""
    blocks = query_blocks(seq_len, seq_len, window)
    return sum(4 * num_heads * head_dim * block.num_queries * block.num_keys for block in blocks)


def ssd_flops(seq_len: int, num_heads: int, head_dim: int, num_groups: int, state_size: int, chunk_size: int) -> int:
    """Count the matmul FLOPs of the forward pass of one sequence; the backward pass takes twice as many."""
    count, length = chunks_of(seq_len, chunk_size)
    within = count * 2 * length * length * (num_groups * state_size + num_heads * head_dim)
    between = (count - 1) * 2 * 2 * length * num_heads * head_dim * state_size
    return within + between


def mamba3_flops(seq_len: int, num_heads: int, head_dim: int, state_size: int, rank: int, chunk_size: int) -> int:
    """Count the matmul FLOPs of the forward pass of one sequence; the backward pass takes twice as many.

    Not among them: the product of a token's own B and C where the rank is 1, an elementwise step.
    """
    count, length = chunks_of(seq_len, max(1, chunk_size // rank))
    rows = length * rank
    within = count * 2 * rows * rows * (state_size + head_dim)
    between = (count - 1) * 2 * 2 * rows * head_dim * state_size
    own = seq_len * 2 * rank * rank * (state_size + head_dim) if rank > 1 else 0
    return num_heads * (within + between + own)


def linear_attention_flops(
    seq_len: int, num_heads: int, features: int, head_dim: int, chunk_size: int, normalize: bool
) -> int:
    """Count the matmul FLOPs of the forward pass of one sequence; the backward pass takes twice as many."""
    (count, length), width = chunks_of(seq_len, chunk_size), head_dim + normalize
    within = count * 2 * length * length * num_heads * (features + width)
    between = (count - 1) * 2 * 2 * length * num_heads * features * width
    return within + between


def gla_flops(seq_len: int, num_heads: int, key_dim: int, head_dim: int, chunk_size: int) -> int:
    """Count the matmul FLOPs of the forward pass of one sequence; the backward pass takes twice as many.

    Not among them: queries times keys in the smallest blocks, 2 key_dim * 4 per token and head, by elementwise steps.
    """
    count, length = binary_chunks(seq_len, chunk_size)
    size = min(GLA_BLOCK, length)
    per_token = 2 * size * head_dim
    while size < length:
        per_token += size * (key_dim + head_dim)  # half of the tokens see `size` others
        size *= 2
    within = count * length * num_heads * per_token
    between = (count - 1) * 2 * 2 * length * num_heads * key_dim * head_dim
    return within + between


def gated_delta_rule_flops(
    seq_len: int,
    num_groups: int,
    num_heads: int,
    key_dim: int,
    head_dim: int,
    chunk_size: int,
    channel_decays: bool = False,
) -> int:
    """Count the matmul FLOPs of the forward pass of one sequence; the backward pass takes twice as many.

    With decays by channel, not among them: keys and queries times keys in the smallest blocks, 2 x 2 key_dim * 4 per
    token and head, by elementwise steps.
    """
    count, length = delta_rule_chunks(seq_len, chunk_size)
    square = 2 * length * length
    scores = num_groups * 2 * square * key_dim
    if channel_decays:  # half of the tokens see 4, 8, ... others, at every level of halves
        scores = num_heads * 2 * length * max(0, length - GLA_BLOCK) * key_dim
    inversion = sum(2 * length * (1 << level) ** 2 for level in range(1, length.bit_length() - 1))
    within = scores + num_heads * (inversion + 2 * square * head_dim)
    between = num_heads * (square * key_dim + 3 * 2 * length * key_dim * head_dim)
    return count * within + (count - 1) * between


def long_conv_fft_flops(seq_len: int, filters: int, channels: int, taps: int) -> int:
    """Count the FLOPs of the Fourier transforms of one sequence and of the filters, and of multiplying them."""
    taps = min(taps, seq_len)
    if taps <= DIRECT_TAPS:
        return 0
    length = segment_length(seq_len, taps)
    segments = -(-seq_len // length)
    return convolve_fft_flops(length + taps - 1, filters, segments * channels)


def convolve_fft_flops(least: int, filters: int, signals: int) -> int:
    """Count the FLOPs of `convolve` on so many signals and filters whose lengths add up to `least` + 1.

    A real transform of size n is counted as 2.5 n log2(n), half of the usual 5 n log2(n) of a complex one.
    """
    size = fft_size(least)
    transform = 2.5 * size * math.log2(size)
    return round((2 * signals + filters) * transform) + 6 * (size // 2 + 1) * signals


def outer_conv_flops(seq_len: int, heads: int, head_dim: int) -> tuple[int, int]:
    """Count the FLOPs of the forward pass of one sequence: of matmuls, and of Fourier transforms."""
    if takes_pairs(seq_len, head_dim):
        return heads * 2 * 2 * num_pairs(seq_len) * head_dim, 0
    return 0, convolve_fft_flops(2 * seq_len - 1, heads, heads * head_dim * head_dim)


def modal_filter_flops(groups: int, modes: int, length: int) -> int:
    """Count the matmul FLOPs of making the filters; the backward pass takes twice as many."""
    return 2 * groups * modes * math.prod(modal_filter_shape(length))


def rwkv7_flops(seq_len: int, num_heads: int, key_dim: int, head_dim: int, chunk_size: int) -> int:
    """Count the matmul FLOPs of the forward pass of one sequence; the backward pass takes twice as many."""
    count, length = delta_rule_chunks(seq_len, chunk_size)
    square = 2 * length * length
    inversion = sum(2 * length * (1 << level) ** 2 for level in range(1, length.bit_length() - 1))
    within = 4 * square * key_dim + inversion + 4 * square * head_dim
    between = square * key_dim + 4 * 2 * length * key_dim * head_dim
    return num_heads * (count * within + (count - 1) * between)
