/* Multi-head Hyena's convolution of outer products by pairs of tokens, for heads so small that batched matrix products
 * are slow. The filter lies between zeros, so that the weights of sixteen queries for a key are one vector of it, and
 * those of later keys are zero. */
#include "query_lanes.h"

enum { SEQUENCES = 8, MOST_OUTER_TOKENS = 2048, MOST_OUTER_WIDTH = 32, LAGS = 32, HEAD_ELEMENTS = 16384 }; /* the last: of a buffer */
typedef float lag_vector __attribute__((vector_size(64), aligned(4), may_alias));
#define WEIGHTS(taps, lag) (*(const lag_vector *)((taps) + (lag)))

INLINE long lane_rows(long tokens) { return ceil_div(tokens, QUERY_LANES) * QUERY_LANES; }

/* ramp = the taps between as many zeros as there are lanes, at least. */
INLINE void load_taps(long seq_len, const float *h, float *ramp) {
    memset(ramp, 0, (lane_rows(seq_len) + LAGS) * sizeof(float));
    memcpy(ramp + QUERY_LANES, h, seq_len * sizeof(float));
}

/* Tokens may be far apart in memory: those of several heads, which lie together, are copied at a time. */
INLINE long heads_at_a_time(long rows, long heads, long width) {
    long most = HEAD_ELEMENTS / (rows * width);
    return most < 1 ? 1 : least(most, heads);
}

/* Rows [heads, rows, width], zero after the last token. */
INLINE void load_heads(long tokens, long heads, long width, const float *x, long token, long head, long rows, float *to) {
    for (long t = 0; t < tokens; t++)
        for (long m = 0; m < heads; m++)
            for (long i = 0; i < width; i += 8) memcpy(to + (m * rows + t) * width + i, x + t * token + m * head + i, 8 * sizeof(float));
    for (long m = 0; m < heads; m++) memset(to + (m * rows + tokens) * width, 0, (rows - tokens) * width * sizeof(float));
}

INLINE void store_heads(long tokens, long heads, long width, const float *from, long rows, float *x, long token, long head) {
    for (long t = 0; t < tokens; t++)
        for (long m = 0; m < heads; m++)
            for (long i = 0; i < width; i += 8) memcpy(x + t * token + m * head + i, from + (m * rows + t) * width + i, 8 * sizeof(float));
}

/* y_t = sum_{j <= t} h_{t - j} (q_t . k_j) v_j in every head. */
KERNEL outer_conv_forward(long batch, long seq_len, long heads, long width,
    const float *q SHAPE(batch, seq_len, heads, width) STRIDES(q_batch, q_token, q_head), long q_batch, long q_token, long q_head,
    const float *k SHAPE(batch, seq_len, heads, width) STRIDES(k_batch, k_token, k_head), long k_batch, long k_token, long k_head,
    const float *v SHAPE(batch, seq_len, heads, width) STRIDES(v_batch, v_token, v_head), long v_batch, long v_token, long v_head,
    const float *h SHAPE(heads, seq_len),
    float *y SHAPE(batch, seq_len, heads, width) STRIDES(y_batch, y_token, y_head), long y_batch, long y_token, long y_head, int threads)
    REQUIRE(1 <= heads, 1 <= seq_len, seq_len <= MOST_OUTER_TOKENS, 8 <= width, width % 8 == 0, width <= MOST_OUTER_WIDTH) {
    long rows = lane_rows(seq_len), most = heads_at_a_time(rows, heads, width), groups = ceil_div(heads, most);
    PARALLEL(batch * heads * seq_len * seq_len)
    for (long piece = 0; piece < batch * groups; piece++) {
        long b = piece / groups, first = piece % groups * most, count = least(most, heads - first);
        float queries[most * rows * width] LINED, keys[most * rows * width] LINED, values[most * rows * width] LINED, scores[rows * QUERY_LANES] LINED;
        float columns[width * QUERY_LANES] LINED, ramp[rows + LAGS] LINED, *taps = ramp + QUERY_LANES;
        load_heads(seq_len, count, width, q + b * q_batch + first * q_head, q_token, q_head, rows, queries);
        load_heads(seq_len, count, width, k + b * k_batch + first * k_head, k_token, k_head, rows, keys);
        load_heads(seq_len, count, width, v + b * v_batch + first * v_head, v_token, v_head, rows, values);
        for (long m = 0; m < count; m++) {
            float *own = queries + m * rows * width;
            load_taps(seq_len, h + (first + m) * seq_len, ramp);
            for (long start = 0; start < seq_len; start += QUERY_LANES) {
                long last = start + QUERY_LANES;
                load_columns(QUERY_LANES, width, own + start * width, width, columns);
                products(0, last, width, columns, keys + m * rows * width, 1.0f, scores);
                for (long j = 0; j < last; j++) VECTOR(scores + j * QUERY_LANES) *= WEIGHTS(taps, start - j);
                combine(0, last, width, scores, values + m * rows * width, (head_vector){0.0f} + 1.0f, columns);
                if (any(not_finite(width, (head_vector *)columns))) /* 0 times a later NaN, unless it is one of their own */
                    combine_seen(0, last, width, scores, values + m * rows * width, (head_vector){0.0f} + 1.0f, columns, start, ALL_KEYS);
                store_columns(QUERY_LANES, width, columns, own + start * width, width); /* in the place of the queries */
            }
        }
        store_heads(seq_len, count, width, queries, rows, y + b * y_batch + first * y_head, y_token, y_head);
    }
}

/* Scores and their gradients, both [keys, lanes], become what values and what keys and queries are multiplied by.
 * sums[lag] += the products of the two: of sixteen keys at a time each is put a place further to the left.
 * Returns whether the products of the last sixteen keys are finite, among them those for earlier queries. */
INLINE int weigh(long start, const float *taps, float *scores, float *slopes, float *skewed, float *sums) {
    head_vector latest = {0.0f};
    for (long first = 0; first <= start; first += QUERY_LANES) {
        for (long r = 0; r < QUERY_LANES; r++) {
            long j = first + r;
            head_vector score = VECTOR(scores + j * QUERY_LANES), slope = VECTOR(slopes + j * QUERY_LANES), weight = WEIGHTS(taps, start - j);
            *(lag_vector *)(skewed + r * LAGS + QUERY_LANES - 1 - r) = score * slope;
            VECTOR(scores + j * QUERY_LANES) = score * weight;
            VECTOR(slopes + j * QUERY_LANES) = slope * weight;
        }
        float *sum = sums + start - first - (QUERY_LANES - 1);
        lag_vector near = {0.0f}, far = {0.0f};
        for (long r = 0; r < QUERY_LANES; r++) {
            near += VECTOR(skewed + r * LAGS);
            far += VECTOR(skewed + r * LAGS + QUERY_LANES);
        }
        *(lag_vector *)sum += near;
        *(lag_vector *)(sum + QUERY_LANES) += far;
        latest = near + far;
    }
    return !any(not_finite(1, &latest));
}

/* dh [some sequences, heads, seq_len] is to be added up over its first axis. */
KERNEL outer_conv_backward(long batch, long seq_len, long heads, long width,
    const float *q SHAPE(batch, seq_len, heads, width) STRIDES(q_batch, q_token, q_head), long q_batch, long q_token, long q_head,
    const float *k SHAPE(batch, seq_len, heads, width) STRIDES(k_batch, k_token, k_head), long k_batch, long k_token, long k_head,
    const float *v SHAPE(batch, seq_len, heads, width) STRIDES(v_batch, v_token, v_head), long v_batch, long v_token, long v_head,
    const float *h SHAPE(heads, seq_len),
    const float *dy SHAPE(batch, seq_len, heads, width) STRIDES(dy_batch, dy_token, dy_head), long dy_batch, long dy_token, long dy_head,
    float *dq SHAPE(batch, seq_len, heads, width) STRIDES(dq_batch, dq_token, dq_head), long dq_batch, long dq_token, long dq_head,
    float *dk SHAPE(batch, seq_len, heads, width) STRIDES(dk_batch, dk_token, dk_head), long dk_batch, long dk_token, long dk_head,
    float *dv SHAPE(batch, seq_len, heads, width) STRIDES(dv_batch, dv_token, dv_head), long dv_batch, long dv_token, long dv_head,
    float *dh SHAPE(ceil_div(batch, SEQUENCES), heads, seq_len), int threads)
    REQUIRE(1 <= heads, 1 <= seq_len, seq_len <= MOST_OUTER_TOKENS, 8 <= width, width % 8 == 0, width <= MOST_OUTER_WIDTH) {
    long rows = lane_rows(seq_len), most = heads_at_a_time(rows, heads, width), groups = ceil_div(heads, most), size = rows * width;
    PARALLEL(batch * heads * seq_len * seq_len)
    for (long piece = 0; piece < ceil_div(batch, SEQUENCES) * groups; piece++) {
        long some = piece / groups, first = piece % groups * most, count = least(most, heads - first);
        float queries[most * size] LINED, keys[most * size] LINED, values[most * size] LINED, outputs[most * size] LINED;
        float key_sums[most * size] LINED, value_sums[most * size] LINED, scores[rows * QUERY_LANES] LINED, slopes[rows * QUERY_LANES] LINED;
        float columns[width * QUERY_LANES] LINED, skewed[QUERY_LANES * LAGS] LINED, ramp[rows + LAGS] LINED, sums[most * (rows + LAGS)] LINED;
        memset(sums, 0, sizeof sums);
        memset(skewed, 0, sizeof skewed);
        for (long b = some * SEQUENCES; b < least(batch, (some + 1) * SEQUENCES); b++) {
            load_heads(seq_len, count, width, q + b * q_batch + first * q_head, q_token, q_head, rows, queries);
            load_heads(seq_len, count, width, k + b * k_batch + first * k_head, k_token, k_head, rows, keys);
            load_heads(seq_len, count, width, v + b * v_batch + first * v_head, v_token, v_head, rows, values);
            load_heads(seq_len, count, width, dy + b * dy_batch + first * dy_head, dy_token, dy_head, rows, outputs);
            memset(key_sums, 0, sizeof key_sums);
            memset(value_sums, 0, sizeof value_sums);
            for (long m = 0; m < count; m++) {
                load_taps(seq_len, h + (first + m) * seq_len, ramp);
                for (long start = 0; start < seq_len; start += QUERY_LANES) {
                    long last = start + QUERY_LANES;
                    float *own = queries + m * size + start * width, *g = outputs + m * size + start * width;
                    load_columns(QUERY_LANES, width, own, width, columns);
                    products(0, last, width, columns, keys + m * size, 1.0f, scores);
                    load_columns(QUERY_LANES, width, g, width, columns);
                    products(0, last, width, columns, values + m * size, 1.0f, slopes);
                    int finite = weigh(start, ramp + QUERY_LANES, scores, slopes, skewed, sums + m * (rows + LAGS) + QUERY_LANES);
                    combine(0, last, width, slopes, keys + m * size, (head_vector){0.0f} + 1.0f, columns);
                    if (finite) {
                        scatter(0, last, width, scores, g, value_sums + m * size);
                        scatter(0, last, width, slopes, own, key_sums + m * size);
                    } else {
                        combine_seen(0, last, width, slopes, keys + m * size, (head_vector){0.0f} + 1.0f, columns, start, ALL_KEYS);
                        scatter_seen(0, last, width, scores, g, value_sums + m * size, start, ALL_KEYS);
                        scatter_seen(0, last, width, slopes, own, key_sums + m * size, start, ALL_KEYS);
                    }
                    store_columns(QUERY_LANES, width, columns, own, width); /* in the place of the queries */
                }
            }
            store_heads(seq_len, count, width, queries, rows, dq + b * dq_batch + first * dq_head, dq_token, dq_head);
            store_heads(seq_len, count, width, key_sums, rows, dk + b * dk_batch + first * dk_head, dk_token, dk_head);
            store_heads(seq_len, count, width, value_sums, rows, dv + b * dv_batch + first * dv_head, dv_token, dv_head);
        }
        for (long m = 0; m < count; m++) memcpy(dh + (some * heads + first + m) * seq_len, sums + m * (rows + LAGS) + QUERY_LANES, seq_len * sizeof(float));
    }
}
