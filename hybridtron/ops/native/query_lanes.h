/* Small heads: sixteen queries side by side in a vector meet keys and values one row after another.
 *
 * Keys that a query does not see get the weight zero. Where a tile holds NaNs or infinities, which zeros do not cancel, it
 * is worked on again, or instead, by functions that leave such keys out. */
#ifndef HYBRIDTRON_QUERY_LANES_H
#define HYBRIDTRON_QUERY_LANES_H

#include "common.h"

enum { QUERY_LANES = 16, ALL_KEYS = 1048576 /* a window */ };
typedef float head_vector __attribute__((vector_size(64), may_alias));
typedef float half_vector __attribute__((vector_size(32), may_alias));
typedef int32_t head_integers __attribute__((vector_size(64), may_alias));
#define LINED __attribute__((aligned(64)))
#define VECTOR(address) (*(head_vector *)(address))

/* Where sixteen queries, the first at key `position`, see key `key`: all bits set, else none. */
INLINE head_integers sees(long key, long position, long window) {
    const head_integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int32_t back = (int32_t)least(window, ALL_KEYS), at = (int32_t)(key - position);
    return (lane >= at) & (lane - at < back);
}

INLINE head_integers first_lanes(long count) { return sees(0, 0, count); }

INLINE head_vector where(head_integers chosen, head_vector x, float other) {
    return (head_vector)(((head_integers)x & chosen) | ((head_integers)((head_vector){0.0f} + other) & ~chosen));
}

INLINE int any(head_integers chosen) {
    int32_t all = 0;
    for (long t = 0; t < QUERY_LANES; t++) all |= chosen[t];
    return all != 0;
}

/* Where a sum has the highest exponent, that of infinities and NaNs. */
INLINE head_integers not_finite(long count, const head_vector *x) {
    const int32_t highest = 0x7f800000;
    head_vector sum = x[0];
    for (long i = 1; i < count; i++) sum += x[i];
    return ((head_integers)sum & highest) == highest;
}

/* Rows [tokens, width] of one head, those after them to a multiple of four zero. */
INLINE void load_head(long tokens, long width, const float *x, long step, float *rows) {
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < width; i++) rows[t * width + i] = x[t * step + i];
    for (long i = tokens * width; i < ceil_div(tokens, 4) * 4 * width; i++) rows[i] = 0.0f;
}

/* columns[i] = the i-th channel of sixteen rows, zero after the last. */
INLINE void load_columns(long tokens, long width, const float *x, long step, float *columns) {
    for (long i = 0; i < width; i++)
        for (long t = 0; t < QUERY_LANES; t++) columns[i * QUERY_LANES + t] = t < tokens ? x[t * step + i] : 0.0f;
}

INLINE void store_columns(long tokens, long width, const float *columns, float *x, long step) {
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < width; i++) x[t * step + i] = columns[i * QUERY_LANES + t];
}

/* out[j] = factor sum_i columns[i] rows[j, i] for keys [from, to), four at a time. */
INLINE void products(long from, long to, long width, const float *columns, const float *rows, float factor, float *out) {
    for (long j = from; j < to; j += 4) {
        const float *a = rows + j * width, *b = a + width, *c = b + width, *d = c + width;
        head_vector sa = {0.0f}, sb = {0.0f}, sc = {0.0f}, sd = {0.0f};
        for (long i = 0; i < width; i++) {
            head_vector column = VECTOR(columns + i * QUERY_LANES);
            sa += column * a[i];
            sb += column * b[i];
            sc += column * c[i];
            sd += column * d[i];
        }
        VECTOR(out + j * QUERY_LANES) = sa * factor;
        VECTOR(out + (j + 1) * QUERY_LANES) = sb * factor;
        VECTOR(out + (j + 2) * QUERY_LANES) = sc * factor;
        VECTOR(out + (j + 3) * QUERY_LANES) = sd * factor;
    }
}

/* columns[i] = factor sum_j weights[j] rows[j, i] over keys [from, to), for `count` channels. */
INLINE void combine_some(long count, long from, long to, long width, const float *weights, const float *rows, head_vector factor, float *columns) {
    head_vector sums[QUERY_LANES];
    for (long i = 0; i < count; i++) sums[i] = (head_vector){0.0f};
    for (long j = from; j < to; j++) {
        head_vector weight = VECTOR(weights + j * QUERY_LANES);
        for (long i = 0; i < count; i++) sums[i] += weight * rows[j * width + i];
    }
    for (long i = 0; i < count; i++) VECTOR(columns + i * QUERY_LANES) = sums[i] * factor;
}

INLINE void combine(long from, long to, long width, const float *weights, const float *rows, head_vector factor, float *columns) {
    long i = 0;
    for (; i + 16 <= width; i += 16) combine_some(16, from, to, width, weights, rows + i, factor, columns + i * QUERY_LANES);
    for (; i + 8 <= width; i += 8) combine_some(8, from, to, width, weights, rows + i, factor, columns + i * QUERY_LANES);
    for (; i < width; i++) combine_some(1, from, to, width, weights, rows + i, factor, columns + i * QUERY_LANES);
}

/* The same to the bit over the keys that each query sees; writes zeros over the weights of the others. */
static __attribute__((noinline)) void combine_seen(long from, long to, long width, float *weights, const float *rows, head_vector factor, float *columns, long position, long window) {
    for (long i = 0; i < width; i++) VECTOR(columns + i * QUERY_LANES) = (head_vector){0.0f};
    for (long j = from; j < to; j++) {
        head_integers seen = sees(j, position, window);
        head_vector weight = VECTOR(weights + j * QUERY_LANES) = where(seen, VECTOR(weights + j * QUERY_LANES), 0.0f);
        for (long i = 0; i < width; i++) VECTOR(columns + i * QUERY_LANES) += weight * where(seen, (head_vector){0.0f} + rows[j * width + i], 0.0f);
    }
    for (long i = 0; i < width; i++) VECTOR(columns + i * QUERY_LANES) *= factor;
}

/* sums[j, i] += sum_t weights[j, t] rows[t, i] over sixteen queries, for keys [from, to); so many channels of the rows
 * stay in registers. */
#define SCATTER(type) \
    for (long i = 0; i < width; i += (long)(sizeof(type) / sizeof(float))) { \
        type own[QUERY_LANES]; \
        for (long t = 0; t < QUERY_LANES; t++) own[t] = *(const type *)(rows + t * width + i); \
        for (long j = from; j < to; j++) { \
            const float *weight = weights + j * QUERY_LANES; \
            type *sum = (type *)(sums + j * width + i), even = *sum, odd = {0.0f}; \
            for (long t = 0; t < QUERY_LANES; t += 2) { \
                even += own[t] * weight[t]; \
                odd += own[t + 1] * weight[t + 1]; \
            } \
            *sum = even + odd; \
        } \
    }

INLINE void scatter(long from, long to, long width, const float *weights, const float *rows, float *sums) {
    if (width % QUERY_LANES) {
        SCATTER(half_vector)
    } else {
        SCATTER(head_vector)
    }
}

/* The same, but for rounding, over the queries that see each key. */
static __attribute__((noinline)) void scatter_seen(long from, long to, long width, const float *weights, const float *rows, float *sums, long position, long window) {
    for (long j = from; j < to; j++)
        for (long i = 0; i < width; i += 8) {
            half_vector *sum = (half_vector *)(sums + j * width + i), parts[2] = {*sum, {0.0f}};
            for (long t = 0; t < QUERY_LANES; t++)
                if (position + t >= j && position + t - j < window) parts[t % 2] += *(const half_vector *)(rows + t * width + i) * weights[j * QUERY_LANES + t];
            *sum = parts[0] + parts[1];
        }
}

#endif
