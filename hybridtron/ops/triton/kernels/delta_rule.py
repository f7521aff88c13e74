"""Triton kernels of the gated delta rule in chunks: solving for the corrections, states, outputs.

q and k [b, s, h / REPEATS, N], v, outputs and corrections [b, s, h, P], beta [b, s, h] and `total` [b, padded, h] are
contiguous; `total` is the sum of log decays in a chunk up to each token, padded to whole chunks. Matrices of a chunk
are [b h, padded, CHUNK], states [b h, chunks, N, P], both float32. Names follow ops/linear_attention/delta_rule.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybridtron.ops.triton.kernels.tiles import load_tile, load_values, products, store_tile


@triton.jit
def unit_lower_inverse(strict, CHUNK: tl.constexpr, LEVELS: tl.constexpr):
    """Return (I + strict)^-1 of a strictly lower triangular matrix, from the inverses of its halves.

    The inverse of [[A, 0], [C, B]] is that of its diagonal blocks, less their inverses around C.
    """
    row = tl.arange(0, CHUNK)[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    inverse = tl.where(row == column, 1.0, 0.0)
    inverse -= tl.where((row // 2 == column // 2) & (row > column), strict, 0.0)
    for level in tl.static_range(1, LEVELS):
        size = 2**level
        in_pair = row // (2 * size) == column // (2 * size)
        corner = tl.where(in_pair & (row // size > column // size), strict, 0.0)
        inverse -= tl.dot(inverse, tl.dot(corner, inverse, input_precision="tf32x3"), input_precision="tf32x3")
    return inverse


@triton.jit
def decays_between(sums, CHUNK: tl.constexpr, STRICT: tl.constexpr):
    """Return exp(c_i - c_j) for j <= i, or j < i, else 0."""
    token = tl.arange(0, CHUNK)
    seen = token[:, None] >= token[None, :]
    if STRICT:
        seen = token[:, None] > token[None, :]
    return tl.exp(tl.where(seen, sums[:, None] - sums[None, :], float("-inf")))


@triton.jit
def delta_solve(
    k, beta, total, inverse, seq_len, padded, heads,
    REPEATS: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write (I + T)^-1 of a chunk; program (chunk, b h)."""
    sequence = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    groups = heads // REPEATS
    k += (sequence * seq_len * groups + head // REPEATS) * N
    token = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64) * CHUNK + token
    sums = load_values(total + sequence * padded * heads + head, row, padded, heads)
    strength = load_values(beta + sequence * seq_len * heads + head, row, seq_len, heads)
    overlaps = products(k, k, row, seq_len, groups * N, N, CHUNK, BLOCK_N, PRECISION)
    strict = strength[:, None] * decays_between(sums, CHUNK, True) * overlaps
    inverse += tl.program_id(1).to(tl.int64) * padded * CHUNK
    store_tile(inverse, row, token, padded, CHUNK, CHUNK, unit_lower_inverse(strict, CHUNK, LEVELS))


@triton.jit
def delta_apply(
    inverse, x, beta, total, out, seq_len, padded, heads,
    REPEATS: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the inverse times beta v, or KEYS: times beta exp(c) k; program (chunk, block of channels, b h)."""
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    groups = heads // REPEATS
    token = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64) * CHUNK + token
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    factor = load_values(beta + sequence * seq_len * heads + head, row, seq_len, heads)
    if KEYS:
        factor = factor * tl.exp(load_values(total + sequence * padded * heads + head, row, padded, heads))
    x += (sequence * seq_len * groups + head // REPEATS) * D
    inputs = load_tile(x, row, column, seq_len, D, groups * D) * factor[:, None]
    matrix = load_tile(inverse + tl.program_id(2).to(tl.int64) * padded * CHUNK, row, token, padded, CHUNK, CHUNK)
    out += (sequence * seq_len * heads + head) * D
    store_tile(out, row, column, seq_len, D, heads * D, tl.dot(matrix, inputs, input_precision=PRECISION))


@triton.jit
def delta_states(
    k, known, total, corrections, states, seq_len, padded, heads,
    REPEATS: tl.constexpr, N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, ALL_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the state before every chunk, and turn corrections of a zero state into those of it; program (block of p,
    b h), which holds all N channels of keys."""
    sequence = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    groups = heads // REPEATS
    k += (sequence * seq_len * groups + head // REPEATS) * N
    known += (sequence * seq_len * heads + head) * N
    corrections += (sequence * seq_len * heads + head) * P
    column = tl.arange(0, ALL_N)
    channel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    token = tl.arange(0, CHUNK)
    chunks = padded // CHUNK
    first = tl.program_id(1).to(tl.int64) * chunks
    state = tl.zeros((ALL_N, BLOCK_P), dtype=tl.float32)
    for chunk in range(chunks):
        store_tile(states + (first + chunk) * N * P, column, channel, N, P, P, state)
        row = chunk * CHUNK + token.to(tl.int64)
        recalled = load_tile(known, row, column, seq_len, N, heads * N)
        solved = load_tile(corrections, row, channel, seq_len, P, heads * P)
        solved -= tl.dot(recalled, state, input_precision=PRECISION)
        store_tile(corrections, row, channel, seq_len, P, heads * P, solved)
        sums = load_values(total + sequence * padded * heads + head, row, padded, heads)
        last = tl.sum(tl.where(token == CHUNK - 1, sums, 0.0), axis=0)
        faded = load_tile(k, row, column, seq_len, N, groups * N) * tl.exp(last - sums)[:, None]
        state = state * tl.exp(last) + tl.dot(tl.trans(faded), solved, input_precision=PRECISION)


@triton.jit
def delta_outputs(
    q, k, total, corrections, states, out, seq_len, padded, heads,
    REPEATS: tl.constexpr, N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the outputs of a chunk; program (chunk, block of p, b h)."""
    chunk = tl.program_id(0).to(tl.int64)
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    groups = heads // REPEATS
    q += (sequence * seq_len * groups + head // REPEATS) * N
    k += (sequence * seq_len * groups + head // REPEATS) * N
    states += (tl.program_id(2).to(tl.int64) * (padded // CHUNK) + chunk) * N * P
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    channel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    sums = load_values(total + sequence * padded * heads + head, row, padded, heads)
    scores = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    acc = tl.zeros((CHUNK, BLOCK_P), dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        queries = load_tile(q, row, column, seq_len, N, groups * N)
        keys = load_tile(k, row, column, seq_len, N, groups * N)
        state = load_tile(states, column, channel, N, P, P)
        scores += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        acc += tl.dot(queries, state, input_precision=PRECISION)
    acc = acc * tl.exp(sums)[:, None]
    place = (sequence * seq_len * heads + head) * P
    solved = load_tile(corrections + place, row, channel, seq_len, P, heads * P)
    acc += tl.dot(scores * decays_between(sums, CHUNK, False), solved, input_precision=PRECISION)
    store_tile(out + place, row, channel, seq_len, P, heads * P, acc)
