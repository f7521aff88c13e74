/* Softmax over tiles of keys, as the middle of attention whose scores never leave the cache: each tile rescales what the
 * tiles before it have added up (Milakov & Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135).
 *
 * Row r of a tile [rows, keys] is of query r % queries, which stands at key `query + ahead` of the tile or after its end,
 * and sees the `window` keys up to it. Its scores are cap tanh(scale x / cap), or scale x without a cap (0), plus
 * own[row] - decays[r / queries, key], which is minus the forgetting between key and query. */
#include "common.h"

enum { TILE_LANES = 16 }; /* whole vectors are worked on, with keys that are not seen hidden or zero */
static const float UNSEEN = -1e30f;

/* Keys [first, last) of a tile that a query sees, widened to whole vectors [from, to). */
typedef struct { long first, last, from, to; } Span;

INLINE Span span(long query, long keys, long ahead, long window) {
    long last = query + ahead + 1, first = last - window;
    last = least(last, keys);
    first = first < 0 ? 0 : least(first, last);
    return (Span){first, last, first / TILE_LANES * TILE_LANES, least(keys, ceil_div(last, TILE_LANES) * TILE_LANES)};
}

INLINE void make_scores(Span s, float scale, float cap, float own, const float *decay, float *p) {
    if (cap > 0.0f) {
        float inner = scale / cap;
#pragma GCC ivdep
        for (long j = s.from; j < s.to; j++) p[j] = cap * hyperbolic_tangent(inner * p[j]);
    } else {
#pragma GCC ivdep
        for (long j = s.from; j < s.to; j++) p[j] *= scale;
    }
    if (decay) {
#pragma GCC ivdep
        for (long j = s.from; j < s.to; j++) p[j] += own - decay[j];
    }
    for (long j = s.from; j < s.first; j++) p[j] = UNSEEN;
    for (long j = s.last; j < s.to; j++) p[j] = UNSEEN;
}

/* Products of queries and keys become e^(score - largest), `largest` [rows] being that of this and earlier tiles;
 * `total` [rows], the sums of these, and `outputs` [rows, width], those times values, are rescaled to it, and the former
 * completed. */
KERNEL softmax_tile_forward(long rows, long queries, long keys, long ahead, long window, float scale, float cap,
    float *scores SHAPE(rows, keys), const float *own SHAPE(rows) OPTIONAL, long stride,
    const float *decays SHAPE(ceil_div(rows, queries), keys) STRIDES(stride) OPTIONAL,
    float *largest SHAPE(rows), float *total SHAPE(rows), long width, float *outputs SHAPE(rows, width), int threads)
    REQUIRE(queries >= 1, window >= 1, cap >= 0, (own is None) == (decays is None)) {
    PARALLEL(rows * keys)
    for (long row = 0; row < rows; row++) {
        Span s = span(row % queries, keys, ahead, window);
        float *p = scores + row * keys, *y = outputs + row * width, before = largest[row], most = before, sum = 0.0f;
        const float *decay = decays ? decays + row / queries * stride : 0;
        make_scores(s, scale, cap, own ? own[row] : 0.0f, decay, p);
#pragma omp simd reduction(max : most)
        for (long j = s.from; j < s.to; j++) most = p[j] > most ? p[j] : most;
#pragma GCC ivdep
        for (long j = s.from; j < s.to; j++) {
            p[j] = exponential(p[j] - most);
            sum += p[j];
        }
        if (most <= UNSEEN) { /* as keys that are not seen: scores that are as good as -inf */
            sum = 0.0f;
            for (long j = s.first; j < s.last; j++) sum += p[j];
            for (long j = s.from; j < s.first; j++) p[j] = 0.0f;
            for (long j = s.last; j < s.to; j++) p[j] = 0.0f;
        }
        memset(p, 0, s.from * sizeof(float));
        memset(p + s.to, 0, (keys - s.to) * sizeof(float));
        if (most > before) {
            float factor = exponential(before - most);
            for (long i = 0; i < width; i++) y[i] *= factor;
            total[row] *= factor;
            largest[row] = most;
        }
        total[row] += sum;
    }
}

/* Products of queries and keys become probabilities e^(score - log_sums[row]), and the gradient by probabilities becomes
 * that by these products over `scale`. `along` [rows] has the sums of probabilities times their gradients. With decays, the
 * gradients by own and, but for the sign, by decays are added to own_sums [rows] and sums [ceil(rows / queries), keys]. */
KERNEL softmax_tile_backward(long rows, long queries, long keys, long ahead, long window, float scale, float cap,
    float *scores SHAPE(rows, keys), float *gradient SHAPE(rows, keys), const float *own SHAPE(rows) OPTIONAL, long stride,
    const float *decays SHAPE(ceil_div(rows, queries), keys) STRIDES(stride) OPTIONAL, const float *log_sums SHAPE(rows),
    const float *along SHAPE(rows), float *own_sums SHAPE(rows) OPTIONAL,
    float *sums SHAPE(ceil_div(rows, queries), keys) OPTIONAL, int threads)
    REQUIRE(queries >= 1, window >= 1, cap >= 0, (own is None) == (decays is None), (own is None) == (own_sums is None), (own is None) == (sums is None)) {
    PARALLEL(rows * keys)
    for (long matrix = 0; matrix < ceil_div(rows, queries); matrix++) {
        const float *decay = decays ? decays + matrix * stride : 0;
        float *sum = sums ? sums + matrix * keys : 0;
        for (long row = matrix * queries; row < least(rows, (matrix + 1) * queries); row++) {
            Span s = span(row % queries, keys, ahead, window);
            float *p = scores + row * keys, *g = gradient + row * keys;
            float mine = own ? own[row] : 0.0f, center = along[row], log_sum = log_sums[row], all = 0.0f;
            make_scores(s, scale, cap, mine, decay, p);
            if (cap > 0.0f) { /* the slope of the cap, kept in place of the gradient */
                float inverse = 1.0f / cap;
#pragma GCC ivdep
                for (long j = s.from; j < s.to; j++) {
                    float share = decay ? (p[j] - (mine - decay[j])) * inverse : p[j] * inverse;
                    float probability = exponential(p[j] - log_sum), change = probability * (g[j] - center);
                    p[j] = probability;
                    all += change;
                    if (sum) sum[j] += change;
                    g[j] = change * (1.0f - share * share);
                }
            } else {
#pragma GCC ivdep
                for (long j = s.from; j < s.to; j++) {
                    p[j] = exponential(p[j] - log_sum);
                    float change = p[j] * (g[j] - center);
                    all += change;
                    if (sum) sum[j] += change;
                    g[j] = change;
                }
            }
            if (own_sums) own_sums[row] += all;
            for (long j = s.from; j < s.first; j++) p[j] = g[j] = 0.0f; /* e^0 where log_sum is that of keys not seen */
            for (long j = s.last; j < s.to; j++) p[j] = g[j] = 0.0f;
            memset(p, 0, s.from * sizeof(float));
            memset(p + s.to, 0, (keys - s.to) * sizeof(float));
            memset(g, 0, s.from * sizeof(float));
            memset(g + s.to, 0, (keys - s.to) * sizeof(float));
        }
    }
}
