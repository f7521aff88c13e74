/* Small heads: sixteen queries side by side in a vector meet keys and values one row after another. */
#ifndef HYBRIDTRON_QUERY_LANES_H
#define HYBRIDTRON_QUERY_LANES_H

#include "common.h"

enum { QUERY_LANES = 16 };
typedef float head_vector __attribute__((vector_size(64), may_alias));
typedef float half_vector __attribute__((vector_size(32), may_alias));
typedef int32_t head_integers __attribute__((vector_size(64), may_alias));
#define LINED __attribute__((aligned(64)))
#define VECTOR(address) (*(head_vector *)(address))

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

#endif
