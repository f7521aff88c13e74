"""Triton kernels of the gradients of the gated delta rule in chunks; layouts are those of `delta_rule`.

With U = (I + T)^-1 R the corrections, R = beta V - beta exp(c) K S: dR = (I + T)^-T dU and dT = -dR U^T.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybridtron.ops.triton.kernels.delta_rule import decays_between
from hybridtron.ops.triton.kernels.tiles import load_tile, load_values, products, store_tile


@triton.jit
def delta_correction_gradients(
    q, k, total, dy, dcorrections, seq_len, padded, heads,
    REPEATS: tl.constexpr, N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what corrections get from the outputs of their chunk; program (chunk, block of p, b h)."""
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    groups = heads // REPEATS
    shared = (sequence * seq_len * groups + head // REPEATS) * N
    row = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    channel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    sums = load_values(total + sequence * padded * heads + head, row, padded, heads)
    scores = products(q + shared, k + shared, row, seq_len, groups * N, N, CHUNK, BLOCK_N, PRECISION)
    matrix = tl.trans(scores * decays_between(sums, CHUNK, False))
    place = (sequence * seq_len * heads + head) * P
    slopes = load_tile(dy + place, row, channel, seq_len, P, heads * P)
    out = tl.dot(matrix, slopes, input_precision=PRECISION)
    store_tile(dcorrections + place, row, channel, seq_len, P, heads * P, out)


@triton.jit
def delta_state_gradients(
    q, k, known, total, dy, dcorrections, dstates, seq_len, padded, heads,
    REPEATS: tl.constexpr, N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, ALL_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the state after every chunk, and add what corrections get from it; program (block of p,
    b h), which holds all N channels of keys."""
    sequence = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    groups = heads // REPEATS
    q += (sequence * seq_len * groups + head // REPEATS) * N
    k += (sequence * seq_len * groups + head // REPEATS) * N
    known += (sequence * seq_len * heads + head) * N
    dy += (sequence * seq_len * heads + head) * P
    dcorrections += (sequence * seq_len * heads + head) * P
    column = tl.arange(0, ALL_N)
    channel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    token = tl.arange(0, CHUNK)
    chunks = padded // CHUNK
    first = tl.program_id(1).to(tl.int64) * chunks
    dstate = tl.zeros((ALL_N, BLOCK_P), dtype=tl.float32)
    for index in range(chunks):
        chunk = chunks - 1 - index
        store_tile(dstates + (first + chunk) * N * P, column, channel, N, P, P, dstate)
        row = chunk * CHUNK + token.to(tl.int64)
        sums = load_values(total + sequence * padded * heads + head, row, padded, heads)
        last = tl.sum(tl.where(token == CHUNK - 1, sums, 0.0), axis=0)
        faded = load_tile(k, row, column, seq_len, N, groups * N) * tl.exp(last - sums)[:, None]
        slopes = load_tile(dcorrections, row, channel, seq_len, P, heads * P)
        slopes += tl.dot(faded, dstate, input_precision=PRECISION)
        store_tile(dcorrections, row, channel, seq_len, P, heads * P, slopes)
        queries = load_tile(q, row, column, seq_len, N, groups * N) * tl.exp(sums)[:, None]
        outputs = load_tile(dy, row, channel, seq_len, P, heads * P)
        recalled = load_tile(known, row, column, seq_len, N, heads * N)
        dstate = dstate * tl.exp(last) + tl.dot(tl.trans(queries), outputs, input_precision=PRECISION)
        dstate -= tl.dot(tl.trans(recalled), slopes, input_precision=PRECISION)


@triton.jit
def delta_matrix_gradients(
    q, k, v, beta, total, inverse, corrections, dy, dcorrections, dr, dv, dbeta, dtotal, dscores, doverlaps,
    seq_len, padded, heads,
    REPEATS: tl.constexpr, N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dR, dv, what beta and `total` get within a chunk, and the gradients of q k^T and k k^T; program (chunk,
    b h)."""
    sequence = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    groups = heads // REPEATS
    shared = (sequence * seq_len * groups + head // REPEATS) * N
    own = sequence * seq_len * heads + head
    square = tl.program_id(1).to(tl.int64) * padded * CHUNK
    token = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64) * CHUNK + token
    strength = load_values(beta + own, row, seq_len, heads)
    matrix = tl.trans(load_tile(inverse + square, row, token, padded, CHUNK, CHUNK))
    score_slopes = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    system_slopes = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    strength_slopes = tl.zeros((CHUNK,), dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        channel = start + tl.arange(0, BLOCK_P)
        solved = tl.trans(load_tile(corrections + own * P, row, channel, seq_len, P, heads * P))
        outputs = load_tile(dy + own * P, row, channel, seq_len, P, heads * P)
        slopes = load_tile(dcorrections + own * P, row, channel, seq_len, P, heads * P)
        right = tl.dot(matrix, slopes, input_precision=PRECISION)
        score_slopes += tl.dot(outputs, solved, input_precision=PRECISION)
        system_slopes -= tl.dot(right, solved, input_precision=PRECISION)
        values = load_tile(v + own * P, row, channel, seq_len, P, heads * P)
        strength_slopes += tl.sum(right * values, axis=1)
        store_tile(dr + own * P, row, channel, seq_len, P, heads * P, right)
        store_tile(dv + own * P, row, channel, seq_len, P, heads * P, right * strength[:, None])
    sums = load_values(total + sequence * padded * heads + head, row, padded, heads)
    before = decays_between(sums, CHUNK, True)
    score_slopes = score_slopes * decays_between(sums, CHUNK, False)
    system_slopes = system_slopes * before
    scores = products(q + shared, k + shared, row, seq_len, groups * N, N, CHUNK, BLOCK_N, PRECISION)
    overlaps = products(k + shared, k + shared, row, seq_len, groups * N, N, CHUNK, BLOCK_N, PRECISION)
    strength_slopes += tl.sum(system_slopes * overlaps, axis=1)
    system_slopes = system_slopes * strength[:, None]
    # A token's own score has no decay.
    through = tl.where(token[:, None] > token[None, :], score_slopes * scores + system_slopes * overlaps, 0.0)
    inside = row < seq_len
    tl.store(dbeta + own + row * heads, strength_slopes, mask=inside)
    slopes = tl.sum(through, axis=1) - tl.sum(through, axis=0)
    tl.store(dtotal + sequence * padded * heads + head + row * heads, slopes)
    store_tile(dscores + square, row, token, padded, CHUNK, CHUNK, score_slopes)
    store_tile(doverlaps + square, row, token, padded, CHUNK, CHUNK, system_slopes)


@triton.jit
def delta_key_gradients(
    q, k, beta, total, corrections, dy, dr, states, dstates, dscores, doverlaps, dq, dk, dbeta, dtotal, batch,
    seq_len, padded, heads,
    REPEATS: tl.constexpr, N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dq and dk of every head, and what beta and `total` get from a block of n by way of states; program (chunk,
    block of n, b h)."""
    chunk = tl.program_id(0).to(tl.int64)
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    groups = heads // REPEATS
    shared = (sequence * seq_len * groups + head // REPEATS) * N
    own = sequence * seq_len * heads + head
    square = tl.program_id(2).to(tl.int64) * padded * CHUNK
    state_place = (tl.program_id(2).to(tl.int64) * (padded // CHUNK) + chunk) * N * P
    token = tl.arange(0, CHUNK)
    row = chunk * CHUNK + token
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    by_queries = tl.zeros((CHUNK, BLOCK_N), dtype=tl.float32)
    by_keys = tl.zeros((CHUNK, BLOCK_N), dtype=tl.float32)
    by_recalled = tl.zeros((CHUNK, BLOCK_N), dtype=tl.float32)
    kept = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        channel = start + tl.arange(0, BLOCK_P)
        state = load_tile(states + state_place, column, channel, N, P, P)
        dstate = load_tile(dstates + state_place, column, channel, N, P, P)
        kept += tl.sum(state * dstate, axis=1)
        outputs = load_tile(dy + own * P, row, channel, seq_len, P, heads * P)
        solved = load_tile(corrections + own * P, row, channel, seq_len, P, heads * P)
        right = load_tile(dr + own * P, row, channel, seq_len, P, heads * P)
        by_queries += tl.dot(outputs, tl.trans(state), input_precision=PRECISION)
        by_keys += tl.dot(solved, tl.trans(dstate), input_precision=PRECISION)
        by_recalled += tl.dot(right, tl.trans(state), input_precision=PRECISION)
    queries = load_tile(q + shared, row, column, seq_len, N, groups * N)
    keys = load_tile(k + shared, row, column, seq_len, N, groups * N)
    sums = load_values(total + sequence * padded * heads + head, row, padded, heads)
    strength = load_values(beta + own, row, seq_len, heads)
    last = tl.sum(tl.where(token == CHUNK - 1, sums, 0.0), axis=0)
    by_queries = by_queries * tl.exp(sums)[:, None]
    by_keys = by_keys * tl.exp(last - sums)[:, None]
    by_recalled = by_recalled * tl.exp(sums)[:, None]
    through_keys = tl.sum(keys * by_keys, axis=1)
    through_recalled = tl.sum(keys * by_recalled, axis=1)
    slopes = tl.sum(queries * by_queries, axis=1) - through_keys - strength * through_recalled
    carried = tl.sum(through_keys, axis=0) + tl.exp(last) * tl.sum(kept, axis=0)
    slopes += tl.where(token == CHUNK - 1, carried, 0.0)
    block = tl.program_id(1).to(tl.int64) * batch
    tl.store(dtotal + (block + sequence) * padded * heads + head + row * heads, slopes)
    tl.store(dbeta + (block + sequence) * seq_len * heads + head + row * heads, -through_recalled, mask=row < seq_len)
    scores = load_tile(dscores + square, row, token, padded, CHUNK, CHUNK)
    overlaps = load_tile(doverlaps + square, row, token, padded, CHUNK, CHUNK)
    by_queries += tl.dot(scores, keys, input_precision=PRECISION)
    by_keys += tl.dot(tl.trans(scores), queries, input_precision=PRECISION)
    by_keys += tl.dot(overlaps + tl.trans(overlaps), keys, input_precision=PRECISION)
    by_keys -= strength[:, None] * by_recalled
    store_tile(dq + own * N, row, column, seq_len, N, heads * N, by_queries)
    store_tile(dk + own * N, row, column, seq_len, N, heads * N, by_keys)
