"""Triton kernels of gated linear attention in chunks.

q, k, dq, dk [b, s, h, N], v, dy [b, s, h, P] and `total` [b, padded, h, N] are contiguous; `total` is the sum of log
decays in a chunk up to each token, padded to whole chunks. Scores are [b h, padded, CHUNK], states [b h, chunks, N, P],
both float32. No exponent is positive: a block of SUB tokens sees the tokens before it by way of the sum at its first
token, and its own tokens one at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybridtron.ops.triton.kernels.tiles import load_row, load_tile, products, store_tile


@triton.jit
def gla_scores(
    q, k, total, scores, seq_len, padded, heads,
    N: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the scores of SUB queries for the keys of their chunk; program (block of queries, b h)."""
    first = tl.program_id(0).to(tl.int64) * SUB
    sequence = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    q += (sequence * seq_len * heads + head) * N
    k += (sequence * seq_len * heads + head) * N
    total += (sequence * padded * heads + head) * N
    stride = heads * N
    row = first + tl.arange(0, SUB)
    key = first // CHUNK * CHUNK + tl.arange(0, CHUNK)
    acc = tl.zeros((SUB, CHUNK), dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        queries = load_tile(q, row, column, seq_len, N, stride)
        sums = load_tile(total, row, column, padded, N, stride)
        before = load_row(total, first, column, padded, N, stride)
        keys = load_tile(k, key, column, seq_len, N, stride)
        key_sums = load_tile(total, key, column, padded, N, stride)
        exponents = tl.where((key < first)[:, None], before[None, :] - key_sums, float("-inf"))
        faded = queries * tl.exp(sums - before[None, :])
        acc += tl.dot(faded, tl.trans(keys * tl.exp(exponents)), input_precision=PRECISION)
        for own in range(SUB):
            one_key = load_row(k, first + own, column, seq_len, N, stride)
            one_sum = load_row(total, first + own, column, padded, N, stride)
            fading = tl.where((row >= first + own)[:, None], sums - one_sum[None, :], float("-inf"))
            score = tl.sum(queries * one_key[None, :] * tl.exp(fading), axis=1)
            acc += tl.where((key == first + own)[None, :], score[:, None], 0.0)
    scores += tl.program_id(1).to(tl.int64) * padded * CHUNK
    store_tile(scores, row, tl.arange(0, CHUNK), padded, CHUNK, CHUNK, acc)


@triton.jit
def gla_score_gradients(
    dy, v, dscores, seq_len, padded, heads,
    P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dy v^T of a chunk, on and below the diagonal; program (chunk, b h)."""
    sequence = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    dy += (sequence * seq_len * heads + head) * P
    v += (sequence * seq_len * heads + head) * P
    token = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64) * CHUNK + token
    acc = products(dy, v, row, seq_len, heads * P, P, CHUNK, BLOCK_P, PRECISION)
    acc = tl.where(token[:, None] >= token[None, :], acc, 0.0)
    dscores += tl.program_id(1).to(tl.int64) * padded * CHUNK
    store_tile(dscores, row, token, padded, CHUNK, CHUNK, acc)


@triton.jit
def gla_states(
    x, v, total, states, seq_len, padded, heads,
    N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the state before every chunk from keys x and values v; program (block of n, block of p, b h).

    REVERSE: write the gradient of the state after every chunk from queries x and gradients of outputs v.
    """
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    x += (sequence * seq_len * heads + head) * N
    v += (sequence * seq_len * heads + head) * P
    total += (sequence * padded * heads + head) * N
    stride = heads * N
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    chunks = padded // CHUNK
    first = tl.program_id(2).to(tl.int64) * chunks
    token = tl.arange(0, CHUNK)
    state = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.float32)
    for index in range(chunks):
        chunk = index
        if REVERSE:
            chunk = chunks - 1 - index
        store_tile(states + (first + chunk) * N * P, column, channel, N, P, P, state)
        row = chunk * CHUNK + token.to(tl.int64)
        sums = load_tile(total, row, column, padded, N, stride)
        last = tl.sum(tl.where((token == CHUNK - 1)[:, None], sums, 0.0), axis=0)
        exponents = sums
        if not REVERSE:
            exponents = last[None, :] - sums
        faded = load_tile(x, row, column, seq_len, N, stride) * tl.exp(exponents)
        values = load_tile(v, row, channel, seq_len, P, heads * P)
        state = state * tl.exp(last)[:, None] + tl.dot(tl.trans(faded), values, input_precision=PRECISION)


@triton.jit
def gla_mix(
    scores, x, v, total, states, out, seq_len, padded, heads,
    N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the outputs of a chunk from queries x, values v and states; program (chunk, block of p, b h).

    REVERSE: write the gradients of values from keys x, gradients of outputs v and of states.
    """
    chunk = tl.program_id(0).to(tl.int64)
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    x += (sequence * seq_len * heads + head) * N
    v += (sequence * seq_len * heads + head) * P
    out += (sequence * seq_len * heads + head) * P
    total += (sequence * padded * heads + head) * N
    scores += tl.program_id(2).to(tl.int64) * padded * CHUNK
    states += (tl.program_id(2).to(tl.int64) * (padded // CHUNK) + chunk) * N * P
    stride = heads * N
    token = tl.arange(0, CHUNK)
    row = chunk * CHUNK + token
    channel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    matrix = load_tile(scores, row, token, padded, CHUNK, CHUNK)
    if REVERSE:
        matrix = tl.trans(matrix)
    values = load_tile(v, row, channel, seq_len, P, heads * P)
    acc = tl.dot(matrix, values, input_precision=PRECISION)
    for start in range(0, N, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        exponents = load_tile(total, row, column, padded, N, stride)
        if REVERSE:
            last = load_row(total, chunk * CHUNK + CHUNK - 1, column, padded, N, stride)
            exponents = last[None, :] - exponents
        faded = load_tile(x, row, column, seq_len, N, stride) * tl.exp(exponents)
        state = load_tile(states, column, channel, N, P, P)
        acc += tl.dot(faded, state, input_precision=PRECISION)
    store_tile(out, row, channel, seq_len, P, heads * P, acc)


@triton.jit
def gla_gradients_between(
    k, v, dy, total, states, dstates, dq, dk, dlast, seq_len, padded, heads,
    N: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what dq, dk and the gradient of a chunk's last sum get from states; program (chunk, block of n, b h)."""
    chunk = tl.program_id(0).to(tl.int64)
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    offset = sequence * seq_len * heads + head
    total += (sequence * padded * heads + head) * N
    place = tl.program_id(2).to(tl.int64) * (padded // CHUNK) + chunk
    stride = heads * N
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    queries = tl.zeros((CHUNK, BLOCK_N), dtype=tl.float32)
    keys = tl.zeros((CHUNK, BLOCK_N), dtype=tl.float32)
    kept = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        channel = start + tl.arange(0, BLOCK_P)
        state = load_tile(states + place * N * P, column, channel, N, P, P)
        dstate = load_tile(dstates + place * N * P, column, channel, N, P, P)
        slopes = load_tile(dy + offset * P, row, channel, seq_len, P, heads * P)
        values = load_tile(v + offset * P, row, channel, seq_len, P, heads * P)
        queries += tl.dot(slopes, tl.trans(state), input_precision=PRECISION)
        keys += tl.dot(values, tl.trans(dstate), input_precision=PRECISION)
        kept += tl.sum(state * dstate, axis=1)
    sums = load_tile(total, row, column, padded, N, stride)
    last = load_row(total, chunk * CHUNK + CHUNK - 1, column, padded, N, stride)
    keys = keys * tl.exp(last[None, :] - sums)
    own = load_tile(k + offset * N, row, column, seq_len, N, stride)
    store_tile(dq + offset * N, row, column, seq_len, N, stride, queries * tl.exp(sums))
    store_tile(dk + offset * N, row, column, seq_len, N, stride, keys)
    kept = kept * tl.exp(last) + tl.sum(own * keys, axis=0)
    tl.store(dlast + place * N + column, kept, mask=column < N)


@triton.jit
def gla_gradients_within(
    q, k, total, dscores, dq, dk, dlast, dtotal, seq_len, padded, heads,
    N: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dq and dk what SUB tokens get from their chunk, and write dtotal; program (block, block of n, b h)."""
    first = tl.program_id(0).to(tl.int64) * SUB
    sequence = tl.program_id(2).to(tl.int64) // heads
    head = tl.program_id(2) % heads
    offset = (sequence * seq_len * heads + head) * N
    q += offset
    k += offset
    total += (sequence * padded * heads + head) * N
    dscores += tl.program_id(2).to(tl.int64) * padded * CHUNK
    stride = heads * N
    row = first + tl.arange(0, SUB)
    token = tl.arange(0, CHUNK)
    chunk = first // CHUNK
    others = chunk * CHUNK + token
    own = (first % CHUNK) + tl.arange(0, SUB)  # columns of the block in the chunk's scores
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    queries = load_tile(q, row, column, seq_len, N, stride)
    keys = load_tile(k, row, column, seq_len, N, stride)
    sums = load_tile(total, row, column, padded, N, stride)
    all_queries = load_tile(q, others, column, seq_len, N, stride)
    all_keys = load_tile(k, others, column, seq_len, N, stride)
    all_sums = load_tile(total, others, column, padded, N, stride)
    # keys before the block, by way of its first token
    edge = load_row(total, first, column, padded, N, stride)
    exponents = tl.where((others < first)[:, None], edge[None, :] - all_sums, float("-inf"))
    slopes = load_tile(dscores, row, token, padded, CHUNK, CHUNK)
    query_slopes = tl.dot(slopes, all_keys * tl.exp(exponents), input_precision=PRECISION)
    query_slopes = query_slopes * tl.exp(sums - edge[None, :])
    # queries after it, by way of its last token
    edge = load_row(total, first + SUB - 1, column, padded, N, stride)
    exponents = tl.where((others >= first + SUB)[:, None], all_sums - edge[None, :], float("-inf"))
    slopes = load_tile(dscores, others, own, padded, CHUNK, CHUNK)
    key_slopes = tl.dot(tl.trans(slopes), all_queries * tl.exp(exponents), input_precision=PRECISION)
    key_slopes = key_slopes * tl.exp(edge[None, :] - sums)
    for index in range(SUB):
        one = first + index
        one_query = load_row(q, one, column, seq_len, N, stride)
        one_key = load_row(k, one, column, seq_len, N, stride)
        one_sum = load_row(total, one, column, padded, N, stride)
        weight = tl.load(dscores + row * CHUNK + one % CHUNK, mask=row > one, other=0.0)
        fading = tl.where((row > one)[:, None], sums - one_sum[None, :], float("-inf"))
        query_slopes += weight[:, None] * one_key[None, :] * tl.exp(fading)
        weight = tl.load(dscores + one * CHUNK + own, mask=row < one, other=0.0)
        fading = tl.where((row < one)[:, None], one_sum[None, :] - sums, float("-inf"))
        key_slopes += weight[:, None] * one_query[None, :] * tl.exp(fading)
    query_slopes += load_tile(dq + offset, row, column, seq_len, N, stride)
    key_slopes += load_tile(dk + offset, row, column, seq_len, N, stride)
    place = tl.program_id(2).to(tl.int64) * (padded // CHUNK) + chunk
    carried = tl.load(dlast + place * N + column, mask=column < N, other=0.0)
    slopes = queries * query_slopes - keys * key_slopes
    slopes += tl.where((own == CHUNK - 1)[:, None], carried[None, :], 0.0)
    store_tile(dtotal + (sequence * padded * heads + head) * N, row, column, padded, N, stride, slopes)
    # A token's own score has no decay.
    slope = tl.load(dscores + row * CHUNK + own)[:, None]
    store_tile(dq + offset, row, column, seq_len, N, stride, query_slopes + slope * keys)
    store_tile(dk + offset, row, column, seq_len, N, stride, key_slopes + slope * queries)
